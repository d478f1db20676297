"""What calls write down at their end: a line in a file of their worker, read into the table later.

A call waits neither for the database, in which large responses are being stored, nor for the disk:
a line is one `write`, after which it outlives its process (not a power cut: the kernel brings it to
the disk some seconds later). Only one process writes to a file, and it holds a lock while it may do
so; a file without a lock is complete. A file that has grown large is left for a new one.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Final, NamedTuple, Protocol

from qwen_wsgi.clock import sleep
from qwen_wsgi.state import file_lock

log = logging.getLogger(__name__)

#: Of a line, with its end: what is written as a whole or not at all, as far as that can be had.
MAX_LINE: Final = 4096
#: A file that has more is left for a new one.
_MAX_BYTES: Final = 1024 * 1024
#: Lines in memory while they cannot be written.
_MAX_WAITING: Final = 10_000
#: While they cannot be written: how often it is tried, and how often the log is told.
_AGAIN_S: Final = 1.0
_TELL_S: Final = 60.0

#: Read at a time, which is a transaction of some hundred rows.
_READ_BYTES: Final = 128 * 1024
#: Pause between two looks whether another process has done with the journals.
_LOOK_S: Final = 0.02

_SUFFIX: Final = ".jsonl"
_LOCK: Final = "fold.lock"
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class JournalWriter:
    """The journal of this worker. Used by its greenlets, which do not take turns within a call.

    Args:
        directory: created with the first line.
        write: as `os.write`, for tests.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int = _MAX_BYTES,
        max_waiting: int = _MAX_WAITING,
        monotonic: Callable[[], float] = time.monotonic,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._monotonic = monotonic
        self._write = write
        self._fd = -1
        self._path = directory
        #: Bytes of the open file. No other process writes to it.
        self._size = 0
        #: The file ends within a line that could not be taken back.
        self._torn = False
        #: Lines that are not written yet; while there are some, or the file is not fit to be
        #: written to, a line takes the long way.
        self._waiting: deque[bytes] = deque(maxlen=max_waiting)
        self._is_ready = False
        self._lost = 0
        self._again_s = self._told_s = -math.inf

    def append(self, line: bytes) -> None:
        """Write a line, which has its end. What cannot be written waits in memory; never raises
        because of the disk."""
        if self._is_ready and self._size < self._max_bytes:
            try:
                self._put(line)
            except OSError as error:
                self._keep(line)
                self._failed(error)
            return
        self._keep(line)
        if self._monotonic() >= self._again_s:
            self.flush()

    def flush(self) -> None:
        """Write what waits, and see that the file is still there; to be called now and then."""
        try:
            if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
                log.warning("a journal of calls was removed, with what was in it: %s", self._path)
                self._leave()
            while self._waiting:
                if self._fd < 0 or self._size >= self._max_bytes:
                    self._begin()
                self._put(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._failed(error)
            return
        self._is_ready = self._fd >= 0
        if self._lost:
            log.error("%d calls are lost: they could not be written down", self._lost)
            self._lost = 0

    def close(self) -> None:
        """Write what waits, and free the file: others may remove it once it is read."""
        if self._waiting:
            self.flush()
        self._leave()

    def _put(self, line: bytes) -> None:
        """Write a line, whole or not at all.

        Raises:
            OSError: it is not written.
        """
        data = b"\n" + line if self._torn else line
        written = self._write(self._fd, data)
        if written == len(data):
            self._size += written
            self._torn = False
            return
        try:
            # By what is there: somebody may have cut the file meanwhile.
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
        except OSError:
            self._size += written
            self._torn = True
            if written == len(data) - 1:
                return  # all but its end, which comes with the next line
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _keep(self, line: bytes) -> None:
        self._lost += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(line)  # in place of the oldest one

    def _failed(self, error: OSError) -> None:
        self._is_ready = False
        now_s = self._monotonic()
        self._again_s = now_s + _AGAIN_S
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            log.error(
                "calls cannot be written down, and %d wait in memory (%d are lost); usage is "
                "incomplete until %s can be written: %s",
                len(self._waiting),
                self._lost,
                self._directory,
                error.strerror or error,
            )

    def _begin(self) -> None:
        """Go over to a new file.

        Raises:
            OSError: none can be made.
        """
        self._leave()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(9):
            name = f"{int(time.time() * 1000):013d}-{os.getpid()}-{token_hex(4)}{_SUFFIX}"
            path = self._directory / name
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
            try:
                if file_lock.take(fd, shared=True) and os.fstat(fd).st_nlink:
                    self._fd, self._path, fd = fd, path, -1
                    return
                # A reader came between, and removes the empty file.
            finally:
                if fd >= 0:
                    os.close(fd)
        raise OSError(errno.EAGAIN, "other processes hold its files")

    def _leave(self) -> None:
        fd, self._fd = self._fd, -1
        self._size, self._torn, self._is_ready = 0, False, False
        if fd >= 0:
            os.close(fd)


class Target(Protocol):
    """Where the lines of journals go: a table, which knows how far each journal is read."""

    def offset(self, journal: str) -> int:
        """How far a journal is in the table; 0 for one that it does not know. Bytes."""

    def add(self, journal: str, begin: int, end: int, lines: Sequence[bytes]) -> int | None:
        """Add the lines between two places of a journal, in one transaction with the second place.

        Returns:
            How many lines were no calls; None if the journal is not read up to `begin`, and nothing
            was added.
        """

    def forget(self, journals: Sequence[str]) -> None:
        """Forget how far all other journals than these are read."""


class Folded(NamedTuple):
    """What a round of reading has done.

    Attributes:
        lines: how many were read into the table.
        is_whole: all that was written before it began is in the table.
    """

    lines: int
    is_whole: bool


class Journals:
    """The journals of all workers. Any process reads them, one at a time.

    Args:
        target: where they go. Whoever is killed in the middle leaves it as if it had not begun the
            transaction that it was in.
    """

    def __init__(
        self,
        directory: Path,
        target: Target,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._directory = directory
        self._target = target
        self._monotonic = monotonic
        self._sleep = sleep

    @property
    def exist(self) -> bool:
        """Whether there are any."""
        return bool(self._names())

    def fold(self, *, wait_s: float = 0.0, work_s: float = math.inf) -> Folded:
        """Read into the table what was added to journals, and remove those that nobody writes to.

        Args:
            wait_s: how long another process is waited for that does it at this moment.
            work_s: no further transaction is begun after so long.

        Raises:
            OSError: the directory cannot be used.
            Exception: what the target raises; what was not read is read the next time.
        """
        if not self._names():
            return Folded(0, True)
        lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            if not self._take(lock, wait_s):
                return Folded(0, False)
            return self._fold(self._monotonic() + work_s)
        finally:
            os.close(lock)

    def _take(self, lock: int, wait_s: float) -> bool:
        until_s = self._monotonic() + wait_s
        while not file_lock.take(lock):
            if self._monotonic() >= until_s:
                return False
            self._sleep(_LOOK_S)
        return True

    def _fold(self, until_s: float) -> Folded:
        lines, is_whole = 0, True
        names = self._names()
        for name in names:
            try:
                fd = os.open(self._directory / name, os.O_RDWR | _FLAGS)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error("a journal of calls cannot be read path=%s: %s", name, error.strerror)
                is_whole = False
                continue
            try:
                done = self._fold_one(name, fd, until_s)
            finally:
                os.close(fd)
            lines += done.lines
            is_whole &= done.is_whole
        self._target.forget(self._names())
        return Folded(lines, is_whole)

    def _fold_one(self, name: str, fd: int, until_s: float) -> Folded:
        is_complete = file_lock.take(fd)
        begin, lines = self._target.offset(name), 0
        if os.fstat(fd).st_size < begin:
            log.warning("a journal of calls was cut, and is read from its beginning path=%s", name)
            if self._target.add(name, begin, 0, []) is None:
                return Folded(0, False)
            begin = 0
        while data := os.pread(fd, _READ_BYTES, begin):
            if self._monotonic() >= until_s:
                return Folded(lines, False)
            size = data.rfind(b"\n") + 1
            if not size:
                if len(data) < _READ_BYTES and not is_complete:
                    break  # a line that is being written
                size = len(data)
            found = [line for line in data[:size].split(b"\n") if line]
            wrong = self._target.add(name, begin, begin + size, found)
            if wrong is None:
                return Folded(lines, False)
            if wrong:
                log.warning(
                    "a journal of calls has %d lines that cannot be read, as a full disk leaves "
                    "them: they are left out path=%s",
                    wrong,
                    name,
                )
            begin += size
            lines += len(found) - wrong
        if is_complete:
            with suppress(FileNotFoundError):
                os.unlink(self._directory / name)
        return Folded(lines, True)

    def _names(self) -> list[str]:
        """The journals, the oldest first."""
        try:
            return sorted(each for each in os.listdir(self._directory) if each.endswith(_SUFFIX))
        except FileNotFoundError:
            return []
