"""What all workers of the box should know of accounts at once: who must be left alone, who serves
which conversation.

A throttle that one worker meets concerns the others, and a message to them would come too late. So
there is one small file in the state directory, mapped into every worker: reading it costs a
microsecond and no system call. It is advisory. Two workers that write the same slot at the same
moment lose one of the notes, which costs one upstream request that is refused; nothing waits for a
lock. Times are of CLOCK_BOOTTIME, which no clock step moves, and the file begins anew at a boot.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qwen_wsgi.clock import boottime

log = logging.getLogger(__name__)

_NAME: Final = "board"
_VERSION: Final = "1"

#: Before the slots: until when any trouble matters. Mostly there is none, and nothing to look up.
_CONCERN: Final = struct.Struct("=d")

#: One trouble: key, left alone until, failures in a row, time of the latest one, its cause.
_TROUBLE: Final = struct.Struct("=8sdId20s")
_TROUBLES: Final = 512
#: One conversation: key, account, time of its latest call.
_VISIT: Final = struct.Struct("=8s8sd")
_VISITS: Final = 4096
#: Places that are looked at for a key before the oldest of them is taken.
_PROBES: Final = 4

_TROUBLES_AT: Final = _CONCERN.size
_VISITS_AT: Final = _TROUBLES_AT + _TROUBLES * _TROUBLE.size
_SIZE: Final = _VISITS_AT + _VISITS * _VISIT.size

_FREE: Final = bytes(8)

#: The first pause after a throttle that names none, doubled up to the longest: Model Studio's
#: limits recover within a minute ("rate limit" page).
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
#: Failures that count as a row are not further apart than this.
ROW_S: Final = 120.0
#: So many of them open the circuit: the host is left alone, then asked by one call at a time.
BREAKS_AT: Final = 5
#: The first pause of an open circuit; doubled with every probe that fails, up to the longest.
OPEN_S: Final = 5.0
LONGEST_OPEN_S: Final = 120.0
#: While one call probes, the others stay away for this long at most.
PROBE_S: Final = 30.0
#: A conversation is remembered for as long as any upstream keeps its cache.
VISIT_S: Final = 3600.0


def key_of(*parts: str) -> bytes:
    """A short name for something in the board; tells nothing about secrets among the parts."""
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=8).digest()


class Board:
    """The notes. Shared by all greenlets of a worker, and through its file by all workers.

    Args:
        directory: where the file is; None keeps the notes in this process alone.
        boottime: seconds that never step and go on while the machine is suspended.
        boot_id: changes with every boot of the machine.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        boottime: Callable[[], float] = boottime,
        boot_id: str | None = None,
    ) -> None:
        self._now = boottime
        self._memory = _mapped(directory, _boot_id() if boot_id is None else boot_id)

    # --- troubles ----------------------------------------------------------------------------

    @property
    def is_clear(self) -> bool:
        """Nothing is noted that still matters; so it nearly always is, and this is soon asked."""
        until: float = _CONCERN.unpack_from(self._memory)[0]
        return until < self._now()

    def blocked_s(self, key: bytes) -> float:
        """For how long `key` is to be left alone; 0.0 if it is not."""
        at = self._find(key)
        if at is None:
            return 0.0
        until: float = _TROUBLE.unpack_from(self._memory, at)[1]
        return max(0.0, until - self._now())

    def cause(self, key: bytes) -> str:
        """Why it is left alone, as noted; empty if it is not."""
        at = self._find(key)
        if at is None:
            return ""
        noted: bytes = _TROUBLE.unpack_from(self._memory, at)[4]
        return noted.rstrip(b"\0").decode(errors="replace")

    def leave_alone(self, key: bytes, seconds: float | None, cause: str) -> float:
        """Note that nobody should ask for a while; a longer note that is there stays.

        Args:
            seconds: None doubles the pause with every failure in a row.

        Returns:
            For how long it is left alone now.
        """
        at, now = self._place(key), self._now()
        until, failures = self._counted(at, now)
        if seconds is None:
            seconds = min(PAUSE_S * 2.0 ** min(failures - 1, 8), LONGEST_PAUSE_S)
        until = max(until, now + seconds)
        self._note(at, key, until, failures, now, cause)
        return until - now

    def failed(self, key: bytes, cause: str) -> float:
        """Count a failure of a host; for how long its circuit is open now, 0.0 if it is not."""
        at, now = self._place(key), self._now()
        until, failures = self._counted(at, now)
        opened_s = 0.0
        if failures >= BREAKS_AT:
            opened_s = min(OPEN_S * 2.0 ** min(failures - BREAKS_AT, 8), LONGEST_OPEN_S)
            until = now + opened_s
        self._note(at, key, until, failures, now, cause)
        return opened_s

    def probing(self, key: bytes) -> None:
        """A call asks a host whose circuit was open: until it is answered the others stay away."""
        at = self._find(key)
        if at is not None and self.failures(key) >= BREAKS_AT:
            _, _, failures, latest, cause = _TROUBLE.unpack_from(self._memory, at)
            self._note(at, key, self._now() + PROBE_S, failures, latest, cause)

    def answered(self, key: bytes) -> None:
        """It works: forget what was noted."""
        at = self._find(key)
        if at is not None:
            self._note(at, _FREE, 0.0, 0, 0.0, "")

    def failures(self, key: bytes) -> int:
        """How many failures in a row are noted."""
        at = self._find(key)
        return 0 if at is None else int(_TROUBLE.unpack_from(self._memory, at)[2])

    def _counted(self, at: int, now: float) -> tuple[float, int]:
        """Until when it is left alone, and its failures in a row with one more."""
        _, until, failures, latest, _ = _TROUBLE.unpack_from(self._memory, at)
        in_a_row = now - latest < ROW_S + max(0.0, until - latest)
        return until, failures + 1 if in_a_row else 1

    def _note(
        self, at: int, key: bytes, until: float, failures: int, latest: float, cause: str | bytes
    ) -> None:
        told = cause.encode()[:20] if isinstance(cause, str) else cause
        concern = max(_CONCERN.unpack_from(self._memory)[0], max(until, latest) + ROW_S)
        _CONCERN.pack_into(self._memory, 0, concern)
        _TROUBLE.pack_into(self._memory, at, key, until, failures, latest, told)

    def _find(self, key: bytes) -> int | None:
        if self.is_clear:
            return None
        return self._at(key, _TROUBLES_AT, _TROUBLES, _TROUBLE.size)

    def _place(self, key: bytes) -> int:
        """The key's slot, else a free one, else that of the oldest trouble; blank if it is new."""
        at = self._at(key, _TROUBLES_AT, _TROUBLES, _TROUBLE.size)
        if at is not None:
            return at
        places = _places(key, _TROUBLES_AT, _TROUBLES, _TROUBLE.size)
        at = min(places, key=lambda place: float(_TROUBLE.unpack_from(self._memory, place)[3]))
        self._note(at, key, 0.0, 0, 0.0, "")
        return at

    def _at(self, key: bytes, start: int, count: int, size: int) -> int | None:
        memory = self._memory
        for at in _places(key, start, count, size):
            if memory[at : at + 8] == key:
                return at
        return None

    # --- conversations -----------------------------------------------------------------------

    def visited(self, conversation: bytes) -> bytes | None:
        """The account that served a conversation lately, as it was given to `visit`."""
        at = self._at(conversation, _VISITS_AT, _VISITS, _VISIT.size)
        if at is None:
            return None
        _, account, when = _VISIT.unpack_from(self._memory, at)
        return account if 0 <= self._now() - when < VISIT_S else None

    def visit(self, conversation: bytes, account: bytes) -> None:
        """Note who serves a conversation."""
        at = self._at(conversation, _VISITS_AT, _VISITS, _VISIT.size)
        if at is None:
            places = _places(conversation, _VISITS_AT, _VISITS, _VISIT.size)
            at = min(places, key=lambda place: float(_VISIT.unpack_from(self._memory, place)[2]))
        _VISIT.pack_into(self._memory, at, conversation, account, self._now())


@functools.lru_cache(maxsize=4096)
def _places(key: bytes, start: int, count: int, size: int) -> tuple[int, ...]:
    first = int.from_bytes(key, "big") % count
    return tuple(start + (first + step) % count * size for step in range(_PROBES))


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _mapped(directory: Path | None, boot_id: str) -> mmap.mmap | bytearray:
    """The file in memory; plain memory where there is no writing, which other workers cannot see.

    The name holds the version and the boot, so that the first worker makes it and nobody replaces
    it while another one has it mapped.
    """
    if directory is None:
        return bytearray(_SIZE)
    path = directory / f"{_NAME}-{key_of(_VERSION, boot_id).hex()}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = _opened(path)
        try:
            return mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        log.warning("workers cannot share what they learn of accounts path=%s: %s", path, error)
        return bytearray(_SIZE)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    for old in path.parent.glob(f"{_NAME}-*"):
        if old != path:  # which another worker may have made in this moment
            with contextlib.suppress(OSError):
                old.unlink()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(fresh, flags | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        # Written and not left as a hole: on a full disk a mapped hole kills the process.
        if os.write(fd, bytes(_SIZE)) < _SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.close(fd)
        os.unlink(fresh)
    return os.open(path, flags)
