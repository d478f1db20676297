"""What is at the path of qwen-code's lock, and the takeover of one that was left behind."""

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

#: The largest limit known after which a qwen-code calls a lock stale (35 s in 0.24.4; 10 s up to
#: 0.15.10), and a margin. A lock that is younger may be in use.
STALE_S: Final = 37.0
#: A lock that looks stale by the wall clock must also stand still for this long before our eyes.
SEEN_S: Final = 2.0
#: What a crash of ours left behind in a takeover is removed after this time.
SWEEP_S: Final = 3600.0

#: What our file says: program, pid, start time of the process, something unique.
_AUTHOR: Final = re.compile(rb"qwen-proxy ([1-9][0-9]{0,9}) ([0-9]+) [0-9a-f]+\n")

EventSink = Callable[[str, Mapping[str, object]], None]


class LockVersion(NamedTuple):
    """Tells a lock file from its successor, which may get the same inode number, and from itself
    after its owner touched it."""

    dev: int
    ino: int
    mtime_ns: int


@dataclass(frozen=True)
class ForeignLock:
    """A file at the path of qwen-code's lock, as we see it.

    Attributes:
        age_s: by the wall clock; negative when it is dated in the future.
        seen_s: how long we have seen it unchanged, by the monotonic clock.
        pid: of the qwen-proxy that wrote it; None when somebody else did.
        alive: whether that process runs; None when that cannot be told.
        symlink: it is a symbolic link, which no program of this family makes.
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


class Takeover:
    """Looks at a lock that is in the way, and removes it once nobody can be using it.

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
        #: The lock last seen, and since when; outlives an `acquire()`, so that a lock which is
        #: dated in the future is outwaited over several of them.
        self._seen: tuple[LockVersion, float] | None = None

    def look(self) -> ForeignLock | None:
        """What is at the path now.

        Raises:
            OSError: it cannot be looked at, or is a directory.
        """
        # lstat throughout: a symbolic link is a lock like any other, wherever it leads.
        try:
            status = os.lstat(self._name)
        except FileNotFoundError:
            self._seen = None
            return None
        if stat.S_ISDIR(status.st_mode):
            # qwen-code cannot get past it either; waiting will not help.
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
        """Pid and start time of the qwen-proxy that wrote the lock; None when none did."""
        if not stat.S_ISREG(status.st_mode):
            return None, 0
        try:
            fd = os.open(self._name, lock_file.READ_FLAGS)
        except OSError:
            # Not to be read is not to be known as ours: the stricter rules hold.
            return None, 0
        try:
            # What is read must belong to the file that was looked at, not to its successor.
            same = os.path.samestat(os.fstat(fd), status)
            found = _AUTHOR.fullmatch(os.read(fd, lock_file.MAX_BYTES)) if same else None
        finally:
            os.close(fd)
        return (int(found[1]), int(found[2])) if found else (None, 0)

    def is_abandoned(self, lock: ForeignLock) -> bool:
        """Whether nobody can be using it any more."""
        if lock.alive is False:
            # Ours, of a process that was killed. That a pid means another process in another
            # container does no harm: whoever of us holds lock B holds lock A, which is with us.
            return True
        if lock.seen_s >= self._stale_s:
            # Whatever the wall clock says: the date may be in the future.
            return True
        # The second look spares a lock that was only just created while the clock stepped.
        return lock.age_s > self._stale_s and lock.seen_s >= self._seen_s

    def remove(self, lock: ForeignLock) -> bool:
        """Remove this very lock; whether the path may be free now."""
        self._checkpoint("break")
        # Since we looked, its owner may have removed it and another created a new one. An unlink
        # would hit that one; a rename to a name that only we know lets us see what we got.
        private = f"{self._name}.break.{os.getpid()}.{self._token_hex(16)}"
        try:
            os.rename(self._name, private)
            self._checkpoint("renamed")
            status = os.lstat(private)
        except FileNotFoundError:
            # Its owner was quicker.
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
            # Its owner has lost it; a qwen-code never notices, ours do.
            pass
        except OSError:
            # A file of another user, or a file system without links. Should this replace a third
            # lock, its owner and the second one's were at work together already.
            os.rename(private, self._name)
            return
        os.unlink(private)

    def sweep(self) -> None:
        """Remove what a crash between the rename and the unlink of a takeover left behind."""
        pattern = re.compile(re.escape(self._path.name) + r"\.break\.[0-9]+\.[0-9a-f]{32}")
        with suppress(OSError), os.scandir(self._path.parent) as entries:
            for entry in entries:
                if not pattern.fullmatch(entry.name):
                    continue
                # ctime is when it was renamed, mtime when its owner last touched it.
                renamed_s = entry.stat(follow_symlinks=False).st_ctime
                if self._clock.now() - renamed_s > SWEEP_S:
                    os.unlink(entry.path)
