"""What workers have counted, for all of them to add up: one small file per worker.

A worker writes its own file, a *block*, in place, and reads those of the others. The block of a
worker that has ended is taken over by another one, exactly once: it takes the file by renaming it,
writes the sum with the id of what it took into its own block, and then removes the file. Whoever
adds up leaves out blocks that another one names as taken. So nothing is lost or counted twice,
whenever a process is killed, and no lock is needed (docs/decisions/061).

A block has two places that are written in turn, each with a checksum: a reader always finds a whole
one. Nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

from qwen_wsgi.clock import boottime
from qwen_wsgi.protocol.json_object import encoded, loads
from qwen_wsgi.state.workers import SILENT_S, is_gone, sees, this_worker

log = logging.getLogger(__name__)

Key = tuple[str, ...]
#: Numbers by a key; those of workers are added one by one.
Rows = dict[Key, list[float]]

#: The version of the files is in their names: another one leaves them alone.
_PREFIX: Final = "block-1-"
#: Number of the writing, length of the content, checksum of the content.
_HEAD: Final = Struct("<QII")
#: Bytes of each of the two places; the file is sparse.
_PLACE: Final = 2 * 1024 * 1024
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: How long a block names what it has taken: longer than anybody needs to add up. Seconds.
_NAMED_S: Final = 60.0
#: A worker whose counts do not change gives a sign of life this often. Seconds.
_BEAT_S: Final = 15.0
#: One of another container, whose processes cannot be seen, has ended if it gave none for so long.
#: Long because machines are suspended; it is not shown as running much sooner (`SILENT_S`).
_ELSEWHERE_S: Final = 3600.0
#: After what time a file that cannot be read is removed. Seconds.
_UNREADABLE_S: Final = 86_400.0
#: How often all is read again because another worker has changed the files meanwhile.
_ROUNDS: Final = 10


class Block(NamedTuple):
    """What one worker has written of itself.

    Attributes:
        id: of the block.
        worker: as `this_worker` names it.
        beat: when it was written, by the boot time.
        since: when the worker began, seconds since 1970.
        taken: ids of blocks whose counts are in this one.
        counts: what it has counted, and workers before it whose blocks it took over.
        gauges: how things are with the worker now.
    """

    id: str
    worker: str
    beat: float
    since: float
    taken: tuple[str, ...]
    counts: Rows
    gauges: Rows


class _File(NamedTuple):
    """A block's file; with the id of the block whose worker is taking it over, else ""."""

    path: Path
    id: str
    taker: str


class SharedCounters:
    """The blocks of all workers, and this worker's own. Nothing here waits, so greenlets need no
    lock.

    Args:
        directory: created when it is first needed. None shares nothing.
        since: when this worker began, seconds since 1970.
        boottime: seconds that never step, the same in all processes.
        worker: names this process when it writes first.
        gone: whether a worker has ended, see `state.workers.is_gone`.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        since: float = 0.0,
        boottime: Callable[[], float] = boottime,
        worker: Callable[[], str] = this_worker,
        gone: Callable[[str, float], bool] = is_gone,
    ) -> None:
        self._directory = directory
        self._since = since
        self._boottime = boottime
        self._this_worker = worker
        self._is_gone = gone
        self._fd = -1
        self._id = self._worker = ""
        self._number = 0
        self._written_at = float("-inf")
        #: Ids of the blocks that were taken over, each with the time when.
        self._taken: dict[str, float] = {}
        #: The files of those that are not removed yet.
        self._left: dict[str, Path] = {}
        self._fails = False

    # --- the own block -----------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether the block is to be written although nothing has changed: it was cut or removed,
        or nobody has heard of this worker for a while."""
        if self._directory is None:
            return False
        late = self._boottime() - self._written_at >= _BEAT_S
        return late or not self._is_there(self._directory, least=_HEAD.size)

    def write(self, counts: Rows, gauges: Mapping[Key, list[float]]) -> None:
        """Write the own block. A failure is told to the log, once.

        Args:
            counts: emptied if the file is gone: another worker has taken over what was written, or
                somebody wants all to begin anew.
        """
        if self._directory is None:
            return
        try:
            self._open(self._directory, counts)
            self._write(counts, gauges)
        except OSError as error:
            if not self._fails:
                log.warning(
                    "the metrics of this worker cannot be written for the others directory=%s: %s",
                    self._directory,
                    error,
                )
            self._fails = True
            return
        self._fails = False
        for path in self._left.values():
            _remove(path)
        self._left.clear()

    def _write(self, counts: Rows, gauges: Mapping[Key, list[float]]) -> None:
        now = self._boottime()
        self._taken = {
            id: at for id, at in self._taken.items() if now - at < _NAMED_S or id in self._left
        }
        content = encoded(
            {
                "worker": self._worker,
                "beat": now,
                "since": self._since,
                "taken": list(self._taken),
                "counts": list(counts.items()),
                "gauges": list(gauges.items()),
            }
        )
        if len(content) > _PLACE - _HEAD.size:
            raise OSError(f"{len(content)} bytes are more than there is room for")
        head = _HEAD.pack(self._number + 1, len(content), crc32(content))
        os.pwrite(self._fd, head + content, (self._number + 1) % 2 * _PLACE)
        self._number += 1
        self._written_at = now

    def _is_there(self, directory: Path, *, least: int = 0) -> bool:
        """Whether the file has still its name, and at least this length."""
        if self._fd < 0:
            return False
        try:
            found = os.lstat(directory / (_PREFIX + self._id))
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._fd)) and found.st_size >= least

    def _open(self, directory: Path, counts: Rows) -> None:
        if self._is_there(directory):
            return
        if self._fd >= 0:
            counts.clear()
            self._close_file()
        self._id, self._number = secrets.token_hex(8), 0
        self._worker = self._this_worker()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(directory / (_PREFIX + self._id), _FLAGS, 0o600)

    def close(self) -> None:
        """Share nothing any more; the block stays. Harmless when repeated."""
        self._directory = None
        self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._close_file()

    # --- the others --------------------------------------------------------------------------

    def others(self) -> list[Block]:
        """The blocks of the other workers: their counts are to be added to the own ones. Those of
        workers that do not run any more have no gauges, and began at no time (0.0)."""
        if self._directory is None:
            return []
        blocks: list[Block] = []
        for _ in range(_ROUNDS):
            seen = _files(self._directory)
            try:
                blocks = [block for file in seen if (block := _read(file)) is not None]
            except FileNotFoundError:  # taken over in this moment
                continue
            if {file.id for file in _files(self._directory)} <= {file.id for file in seen}:
                break
        named = {id for block in blocks for id in block.taken} | self._taken.keys()
        others = {block.id: block for block in blocks if block.id not in {*named, self._id}}
        return [
            block if self._runs(block) else block._replace(gauges={}, since=0.0)
            for block in others.values()
        ]

    def take_over(self, add: Callable[[Rows], None]) -> bool:
        """Take over the counts of workers that have ended; whether there were any. Then the own
        block is to be written.

        Args:
            add: adds them to the own counts.
        """
        if self._directory is None or not self._is_there(self._directory):
            return False
        found = self._readable(self._directory)
        running = {file.id for file, block in found if not file.taker and self._is_alive(block)}
        running.add(self._id)
        free = [(file, block) for file, block in found if (file.taker or file.id) not in running]
        named = {id: block.id for _, block in found for id in block.taken}
        # Before the block that names them is renamed: nobody may count them once more.
        for file, _ in free:
            if file.id in named and named[file.id] not in running:
                _remove(file.path)
        taken = False
        for file, block in free:
            if file.id not in named and self._take(self._directory, file):
                add(block.counts)
                taken = True
        return taken

    def _readable(self, directory: Path) -> list[tuple[_File, Block]]:
        """The blocks with their files. Files that nobody can read are removed after a day."""
        found = []
        for file in _files(directory):
            with contextlib.suppress(OSError):
                if (block := _read(file)) is not None:
                    found.append((file, block))
                elif time.time() - file.path.lstat().st_mtime > _UNREADABLE_S:
                    _remove(file.path)
        return found

    def _take(self, directory: Path, file: _File) -> bool:
        mine = directory / f"{_PREFIX}{file.id}.{self._id}"
        try:
            os.rename(file.path, mine)
        except OSError:  # another worker was faster
            return False
        self._taken[file.id] = self._boottime()
        self._left[file.id] = mine
        return True

    def _runs(self, block: Block) -> bool:
        """Whether its worker runs, and says so."""
        return self._boottime() - block.beat < SILENT_S and not self._is_gone(block.worker, 0.0)

    def _is_alive(self, block: Block) -> bool:
        """Whether its worker may still write. Silence says nothing where the process can be seen:
        the machine may have slept."""
        if self._is_gone(block.worker, 0.0):
            return False
        return sees(self._worker, block.worker) or self._boottime() - block.beat < _ELSEWHERE_S


def _files(directory: Path) -> list[_File]:
    """The files of all blocks; none if the directory cannot be read."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    found = []
    for name in sorted(names):
        if name.startswith(_PREFIX):
            id, _, taker = name.removeprefix(_PREFIX).partition(".")
            found.append(_File(directory / name, id, taker))
    return found


def _read(file: _File) -> Block | None:
    """Read a block: the later of its two places that is whole; None if none is.

    Raises:
        OSError: it cannot be opened; FileNotFoundError if it is not there any more.
    """
    fd = os.open(file.path, _READ_FLAGS)
    try:
        heads = [_head(fd, at) for at in (0, _PLACE)]
        for number, at, size, checksum in sorted(heads, reverse=True):
            content = os.pread(fd, size, at + _HEAD.size) if number else b""
            if content and crc32(content) == checksum:
                return _parse(file.id, content)
    finally:
        os.close(fd)
    return None


def _head(fd: int, at: int) -> tuple[int, int, int, int]:
    """Number, place, size and checksum of what is at a place; number 0 for nothing."""
    head = os.pread(fd, _HEAD.size, at)
    if len(head) < _HEAD.size:
        return 0, at, 0, 0
    number, size, checksum = _HEAD.unpack(head)
    return (number, at, size, checksum) if size <= _PLACE else (0, at, 0, 0)


def _parse(id: str, content: bytes) -> Block:
    value: dict[str, Any] = loads(content)
    return Block(
        id,
        value["worker"],
        value["beat"],
        value["since"],
        tuple(value["taken"]),
        {tuple(key): row for key, row in value["counts"]},
        {tuple(key): row for key, row in value["gauges"]},
    )


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
