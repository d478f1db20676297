"""Inspects qwen-code's lock file, and breaks a stale one."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.locks import lock_file

#: The largest known age after which a qwen-code treats a lock as stale (35 s in 0.24.4; 10 s up to
#: 0.15.10), and a margin. A younger lock may be in use.
STALE_S: Final = 37.0
#: A lock that is stale by the wall clock must also stay unchanged for this long while we watch it.
SEEN_S: Final = 2.0
#: What a crash of ours left behind while breaking a lock is removed after this time.
SWEEP_S: Final = 3600.0

#: The content of our file: program, pid, start time of the process, something unique.
_AUTHOR: Final = re.compile(rb"qwen-proxy ([1-9][0-9]{0,9}) ([0-9]+) [0-9a-f]+\n")

EventSink = Callable[[str, Mapping[str, object]], None]


class LockVersion(NamedTuple):
    """Identifies a version of a lock file: its successor may get the same inode number, and its
    owner's touch makes a new version."""

    dev: int
    ino: int
    mtime_ns: int


@dataclass(frozen=True)
class ForeignLock:
    """A file at the path of qwen-code's lock.

    Attributes:
        age_s: by the wall clock; negative when it is dated in the future.
        seen_s: how long we have seen it unchanged, by the monotonic clock.
        pid: of the qwen-proxy that wrote it; None when another program did.
        alive: whether that process runs; None when unknown.
        symlink: it is a symbolic link, which neither qwen-code nor qwen-proxy creates.
    """

    age_s: float
    seen_s: float
    pid: int | None
    alive: bool | None
    symlink: bool
    version: LockVersion = field(repr=False)

    @property
    def ours(self) -> bool:
        """Whether a qwen-proxy wrote it."""
        return self.pid is not None

    @property
    def in_future(self) -> bool:
        """Whether its date is later than the wall clock."""
        return self.age_s < 0


class StaleLock:
    """Inspects a lock that is in the way, and breaks it once no process can be using it.

    Events: `foreign_lock_broken`, `own_dead_lock_broken`.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        token_hex: Callable[[int], str],
        stale_s: float,
        seen_s: float,
        on_event: EventSink,
        checkpoint: Callable[[str], None],
    ) -> None:
        """
        Args:
            seen_s, on_event, checkpoint: see `CliLock`.
        """
        self._path = path
        self._name = os.fspath(path)
        self._clock = clock
        self._token_hex = token_hex
        self._stale_s = stale_s
        self._seen_s = seen_s
        self._on_event = on_event
        self._checkpoint = checkpoint
        #: The lock last seen, and since when; kept between calls of `acquire()`, so that a lock
        #: which is dated in the future becomes stale over several of them.
        self._seen: tuple[LockVersion, float] | None = None

    def inspect(self) -> ForeignLock | None:
        """Return the lock at the path now; None when there is none.

        Raises:
            OSError: it cannot be inspected, or is a directory.
        """
        # Always lstat: a symbolic link is a lock like any other, wherever it points.
        try:
            status = os.lstat(self._name)
        except FileNotFoundError:
            self._seen = None
            return None
        if stat.S_ISDIR(status.st_mode):
            # qwen-code cannot remove it either; waiting does not help.
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._name)
        version = LockVersion(status.st_dev, status.st_ino, status.st_mtime_ns)
        now_s = self._clock.monotonic()
        seen = self._seen
        if seen is None or seen[0] != version:
            self._seen = seen = version, now_s
        pid, started = self._author(status)
        return ForeignLock(
            self._clock.now() - status.st_mtime,
            now_s - seen[1],
            pid,
            lock_file.start_time(pid) == started if pid and started else None,
            stat.S_ISLNK(status.st_mode),
            version,
        )

    def _author(self, status: os.stat_result) -> tuple[int | None, int]:
        """Pid and start time of the qwen-proxy that wrote the lock; None for another program."""
        if not stat.S_ISREG(status.st_mode):
            return None, 0
        try:
            fd = os.open(self._name, lock_file.READ_FLAGS)
        except OSError:
            # An unreadable lock is not known to be ours: the stricter rules apply.
            return None, 0
        try:
            # The content must belong to the inspected file, not to its successor.
            same = os.path.samestat(os.fstat(fd), status)
            found = _AUTHOR.fullmatch(os.read(fd, lock_file.MAX_BYTES)) if same else None
        finally:
            os.close(fd)
        return (int(found[1]), int(found[2])) if found else (None, 0)

    def is_abandoned(self, lock: ForeignLock) -> bool:
        """Whether no process can be using it any more."""
        if lock.alive is False:
            # Ours, of a process that was killed. If the pid is from another container this is still
            # right: a qwen-proxy that holds lock B also holds lock A, which we hold now.
            return True
        if lock.seen_s >= self._stale_s:
            # Without the wall clock: the date may be in the future.
            return True
        # The second condition spares a lock that was only just created while the clock stepped.
        return lock.age_s > self._stale_s and lock.seen_s >= self._seen_s

    def remove(self, lock: ForeignLock) -> bool:
        """Remove this very lock; return whether the path may be free now."""
        self._checkpoint("break")
        # Since we looked, its owner may have removed it and another process created a new one. An
        # unlink would remove that one; after a rename to a private name we can check what we got.
        private = f"{self._name}.break.{os.getpid()}.{self._token_hex(16)}"
        try:
            os.rename(self._name, private)
            self._checkpoint("renamed")
            status = os.lstat(private)
        except FileNotFoundError:
            # Its owner was faster.
            return True
        if LockVersion(status.st_dev, status.st_ino, status.st_mtime_ns) != lock.version:
            self._put_back(private)
            return False
        os.unlink(private)
        fields = {"path": self._name, "age_s": round(lock.age_s, 3), "pid": lock.pid}
        dead = lock.alive is False
        self._on_event("own_dead_lock_broken" if dead else "foreign_lock_broken", fields)
        return True

    def _put_back(self, private: str) -> None:
        try:
            # Unlike a rename, a link does not replace a lock that was created meanwhile.
            os.link(private, self._name, follow_symlinks=False)
        except FileExistsError:
            # Its owner has lost it; a qwen-code never notices, a qwen-proxy does.
            pass
        except OSError:
            # A file of another user, or a file system without links. If this replaces a third lock,
            # its owner and the second one's were running at the same time already.
            os.rename(private, self._name)
            return
        os.unlink(private)

    def sweep(self) -> None:
        """Remove what a crash between the rename and the unlink left behind."""
        pattern = re.compile(re.escape(self._path.name) + r"\.break\.[0-9]+\.[0-9a-f]{32}")
        with suppress(OSError), os.scandir(self._path.parent) as entries:
            for entry in entries:
                if not pattern.fullmatch(entry.name):
                    continue
                # ctime is when it was renamed, mtime when its owner touched it last.
                renamed_s = entry.stat(follow_symlinks=False).st_ctime
                if self._clock.now() - renamed_s > SWEEP_S:
                    os.unlink(entry.path)
