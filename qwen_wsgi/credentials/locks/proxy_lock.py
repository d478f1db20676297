"""Lock A, an flock: excludes our own greenlets and processes, for certain."""

from __future__ import annotations

import fcntl
import os
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi.clock import sleep
from qwen_wsgi.credentials.locks import lock_file

#: Pauses between two tries, random each time so that waiters do not try at the same moments.
#: Seconds.
PROXY_POLL_S: Final = (0.05, 0.25)

#: The file's content: program, pid, start time of the process, wall clock.
_HOLDER: Final = re.compile(rb"qwen-proxy ([1-9][0-9]{0,9}) ([0-9]+) ([0-9]+\.[0-9]+)\n")


class LockHolder(NamedTuple):
    """The holder of the proxy's lock, from the file; None for what it does not contain (yet)."""

    pid: int | None
    start_time: int | None
    #: Wall clock, seconds.
    since_s: float | None


class ProxyLock:
    """Lock A: an flock on a file of ours beside the credential file.

    Excludes every other `ProxyLock` on the path, in this process too. The kernel frees it when its
    holder dies, however that happens, so it is never stale. The file is never unlinked: waiters on
    the old inode and processes that open the new one would not exclude each other.

    Call `release()` only after `acquire()` returned True: one object may be shared by threads, and
    does not know which of them has the lock. Not reentrant.

    Limits: one machine (NFS is not supported). If the file is removed while it is locked, another
    process can take the lock too. A child that is forked, and not exec'ed, while its parent holds
    the lock keeps it locked until it uses this object or ends.
    """

    def __init__(
        self,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = sleep,
        random: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            path: its directory is created when missing (0700), but not that one's parents.
        """
        self.path = path
        self._name = os.fspath(path)
        self._monotonic = monotonic
        self._sleep = sleep
        self._random = random
        self._now = now
        #: The fd with the lock, and the process that took it.
        self._hold: tuple[int, int] | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lock, through this object."""
        hold = self._hold
        return hold is not None and hold[1] == os.getpid()

    def acquire(self, timeout_s: float, *, give_up: Callable[[], bool] = lock_file.never) -> bool:
        """Take the lock; False on timeout, or when `give_up` ended the wait.

        Args:
            timeout_s: 0 tries once.
            give_up: called before each further try; true ends the wait.

        Raises:
            OSError: the file cannot be locked at all: permission, read-only or full file system,
                a symbolic link in its place, no parent directory.
        """
        self._leave_to_parent()
        deadline_s = self._monotonic() + timeout_s
        shortest_s, longest_s = PROXY_POLL_S
        while not self._try():
            left_s = deadline_s - self._monotonic()
            if left_s < lock_file.TICK_S:
                return False
            self._sleep(min(left_s, shortest_s + (longest_s - shortest_s) * self._random()))
            if give_up():
                return False
        return True

    def release(self) -> None:
        """Release the lock; harmless when not held, and in a forked child."""
        self._leave_to_parent()
        hold, self._hold = self._hold, None
        if hold is not None:
            try:
                # Closing is not enough if a forked child still has a copy of the fd.
                fcntl.flock(hold[0], fcntl.LOCK_UN)
            finally:
                os.close(hold[0])

    def holder(self) -> LockHolder | None:
        """Find out who has the lock now; None when nobody has. Creates nothing.

        It takes a shared lock for an instant: another process's try in this instant fails, and is
        repeated unless its timeout was 0.

        Raises:
            OSError: the file exists, but cannot be opened.
        """
        try:
            fd = os.open(self._name, lock_file.READ_FLAGS)
        except FileNotFoundError:
            return None
        try:
            # Shared: two that look at the same time must not take each other for the holder.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _HOLDER.fullmatch(os.read(fd, lock_file.MAX_BYTES))
        else:
            return None
        finally:
            os.close(fd)
        if found is None:
            # It was locked a moment ago and is not signed yet.
            return LockHolder(None, None, None)
        return LockHolder(int(found[1]), int(found[2]), float(found[3]))

    def _try(self) -> bool:
        # A new fd for every try: one that is inherited or shared would share the lock as well.
        fd = self._open()
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not lock_file.is_at(self._name, fd):
                    # The file was replaced between open and flock: others lock the new one.
                    return False
            except (BlockingIOError, FileNotFoundError):
                return False
            # Only for `holder`: a full disk must not cost us the lock.
            with suppress(OSError):
                # First, so that nobody reads the previous holder's pid.
                os.ftruncate(fd, 0)
                os.write(fd, lock_file.signature(f"{self._now():.3f}"))
            self._hold, fd = (fd, os.getpid()), -1
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    def _open(self) -> int:
        try:
            return os.open(self._name, lock_file.FLAGS, 0o600)
        except FileNotFoundError:
            # Another process may create it at the same time.
            with suppress(FileExistsError):
                os.mkdir(self.path.parent, 0o700)
            return os.open(self._name, lock_file.FLAGS, 0o600)

    def _leave_to_parent(self) -> None:
        hold = self._hold
        if hold is not None and hold[1] != os.getpid():
            # Over a fork the lock is shared: LOCK_UN would unlock the parent's, close does not.
            self._hold = None
            os.close(hold[0])
