"""The two locks around a refresh, always taken in this order: ours, then qwen-code's.

`ProxyLock` excludes our own greenlets and processes, for certain. `CliLock` is the file that
qwen-code locks with; it is a courtesy among programs that may remove it, not a guarantee.

Nothing here waits in the kernel: a blocking flock stops gevent's hub, hence every greenlet of the
worker (gevent issue 1657). Both locks look, sleep, and look again.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi.clock import Clock

log = logging.getLogger(__name__)

#: Pauses between two looks at our lock, drawn anew each time so that waiters do not march in step.
PROXY_POLL_S: Final = (0.05, 0.25)
#: Pause between two looks at qwen-code's lock; qwen-code itself looks every 0.1 to 2 s.
CLI_POLL_S: Final = 0.1
#: The largest limit known after which a qwen-code calls a lock stale (35 s in 0.24.4; 10 s up to
#: 0.15.10), and a margin. A lock that is younger may be in use.
STALE_S: Final = 37.0
#: A lock that looks stale by the wall clock must also stand still for this long before our eyes.
SEEN_S: Final = 2.0
#: Touch our lock this often: five times in the shortest limit.
HEARTBEAT_S: Final = 2.0
#: What a crash of ours left behind in a takeover is removed after this time.
SWEEP_S: Final = 3600.0

#: A rest that is too short to wait for; sums of floats hardly ever end at 0.
_TICK_S: Final = 0.001
#: Neither lock file can be a link to another place, and neither outlives an exec.
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: What both files say: program, pid, start time of the process; then the wall clock in our lock,
#: something unique in qwen-code's.
_HOLDER: Final = re.compile(rb"qwen-proxy ([1-9][0-9]{0,9}) ([0-9]+) ([0-9]+\.[0-9]+)\n")
_AUTHOR: Final = re.compile(rb"qwen-proxy ([1-9][0-9]{0,9}) ([0-9]+) [0-9a-f]+\n")
_MAX_BYTES: Final = 256

EventSink = Callable[[str, Mapping[str, object]], None]


def _sleep(seconds: float) -> None:
    # Looked up per call: as a default value, `time.sleep` would be the one from before the monkey
    # patch whenever this module was imported first, and would stop the hub.
    time.sleep(seconds)


def _never() -> bool:
    return False


def _ignore(name: str, fields: Mapping[str, object] | None = None) -> None:
    return None


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is no such process.

    With the pid it names a process for good; a pid alone is given out again. A zombie counts as
    gone: it holds nothing, and its parent may take its time.

    Raises:
        OSError: it cannot be told, e.g. for want of file descriptors.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # "pid (name) state …": the name may contain blanks and parentheses, so count from the last.
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _is_at(name: str, fd: int) -> bool:
    # The open fd is our identity: as long as it is open, no new file can get its inode number.
    return os.path.samestat(os.fstat(fd), os.lstat(name))


def _signature(word: str) -> bytes:
    pid = os.getpid()
    # 0 without a /proc: then nobody can tell whether we live, and must not guess.
    return f"qwen-proxy {pid} {start_time(pid) or 0} {word}\n".encode()


class LockHolder(NamedTuple):
    """Who has the proxy's lock, as the file says; None for what it does not say (yet)."""

    pid: int | None
    start_time: int | None
    #: Wall clock, seconds.
    since_s: float | None


class ProxyLock:
    """Lock A: an flock on a file of ours beside the credential file.

    Excludes every other `ProxyLock` on the path, of this process too. The kernel frees it when its
    holder dies, however that happens, so it is never stale. The file is never unlinked: those who
    wait on the old inode and those who open the new one would not exclude each other.

    `release()` only what `acquire()` gave you: one object may be shared by threads, and does not
    know which of them has the lock. Not reentrant.

    Limits: one machine (NFS is not supported). Somebody who removes the file while it is locked
    lets the next one in. A child that is forked, and not exec'ed, while its parent holds the lock
    keeps it locked until it touches this object or ends.
    """

    def __init__(
        self,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = _sleep,
        random: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            path: its directory is made when absent (0700), but not the ones above.
        """
        self.path = path
        self._name = os.fspath(path)
        self._monotonic = monotonic
        self._sleep = sleep
        self._random = random
        self._now = now
        #: The fd that carries the lock, and the process that took it.
        self._hold: tuple[int, int] | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lock, through this object."""
        hold = self._hold
        return hold is not None and hold[1] == os.getpid()

    def acquire(self, timeout_s: float, *, give_up: Callable[[], bool] = _never) -> bool:
        """Take the lock; False if that took too long, or was no longer wanted.

        Args:
            timeout_s: 0 tries once.
            give_up: asked before each further try; true ends the wait.

        Raises:
            OSError: the file cannot be locked at all: permission, read-only or full file system,
                a symbolic link in its place, no directory to make its own in.
        """
        self._leave_to_parent()
        deadline_s = self._monotonic() + timeout_s
        shortest_s, longest_s = PROXY_POLL_S
        while not self._try():
            left_s = deadline_s - self._monotonic()
            if left_s < _TICK_S:
                return False
            self._sleep(min(left_s, shortest_s + (longest_s - shortest_s) * self._random()))
            if give_up():
                return False
        return True

    def release(self) -> None:
        """Let go; harmless when not held, and in a forked child."""
        self._leave_to_parent()
        hold, self._hold = self._hold, None
        if hold is not None:
            try:
                # Closing would not do if a forked child still has a copy of the fd.
                fcntl.flock(hold[0], fcntl.LOCK_UN)
            finally:
                os.close(hold[0])

    def holder(self) -> LockHolder | None:
        """Who has the lock now; None when nobody has. Creates nothing.

        It looks by trying a shared lock for an instant: a try of somebody else that falls into
        this instant fails, and is repeated unless its timeout was 0.

        Raises:
            OSError: the file exists, but cannot be looked at.
        """
        try:
            fd = os.open(self._name, _READ_FLAGS)
        except FileNotFoundError:
            return None
        try:
            # Shared: two who look at the same time must not take each other for the holder.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _HOLDER.fullmatch(os.read(fd, _MAX_BYTES))
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
                if not _is_at(self._name, fd):
                    # Between open and flock somebody replaced the file: others lock the new one.
                    return False
            except (BlockingIOError, FileNotFoundError):
                return False
            # It only serves those who ask who it is: a full disk must not cost us the lock.
            with suppress(OSError):
                # First of all, so that nobody reads the name of the holder before us.
                os.ftruncate(fd, 0)
                os.write(fd, _signature(f"{self._now():.3f}"))
            self._hold, fd = (fd, os.getpid()), -1
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    def _open(self) -> int:
        try:
            return os.open(self._name, _FLAGS, 0o600)
        except FileNotFoundError:
            # Another process may make it at the same time.
            with suppress(FileExistsError):
                os.mkdir(self.path.parent, 0o700)
            return os.open(self._name, _FLAGS, 0o600)

    def _leave_to_parent(self) -> None:
        hold = self._hold
        if hold is not None and hold[1] != os.getpid():
            # Over a fork the lock is shared: LOCK_UN would unlock the parent's, close does not.
            self._hold = None
            os.close(hold[0])


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


class _Hold:
    """One span of time in which `CliLock` has its file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pid = os.getpid()
        #: Guards fd, lost and released between owner and heartbeat.
        self.mutex = threading.Lock()
        self.lost = False
        self.released = False
        self.stop = threading.Event()
        self.heartbeat: threading.Thread | None = None


class CliLock:
    """Lock B: qwen-code's own, a file created with O_EXCL. Take it only while holding lock A, so
    that at most one of our processes contends for it.

    A thread touches the file while it is held, so that no qwen-code finds it stale, and looks
    whether it is still there: every qwen-code that ends unlinks it, whoever owns it. A file that
    is gone is created again at once; one that somebody else has created makes the lock `lost`.

    Limits: between such an unlink and the next heartbeat a qwen-code can get in, and even be done
    again unnoticed. So look again with `check()` before a step that must not happen twice, and
    compare before publishing.

    Events, for counting and logging: `foreign_lock_lost` (ours was removed or replaced, by whom
    it should not), `foreign_lock_broken`, `own_dead_lock_broken`, `lock_timeout`.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        sleep: Callable[[float], None] = _sleep,
        token_hex: Callable[[int], str] = secrets.token_hex,
        stale_s: float = STALE_S,
        seen_s: float = SEEN_S,
        heartbeat_s: float = HEARTBEAT_S,
        on_event: EventSink = _ignore,
        checkpoint: Callable[[str], None] = _ignore,
    ) -> None:
        """
        Args:
            seen_s: how long a lock that is older than `stale_s` must stand still.
            on_event: called with name and fields, also from the heartbeat's thread.
            checkpoint: called between two steps that somebody else may come between: `break`,
                `renamed`, `missing`, `release`.
        """
        self.path = path
        #: Whether somebody else had the lock during the current hold, or the latest one: do not
        #: start new work, and publish by compare-and-swap only.
        self.lost = False
        self._name = os.fspath(path)
        self._clock = clock
        self._sleep = sleep
        self._token_hex = token_hex
        self._stale_s = stale_s
        self._seen_s = seen_s
        self._heartbeat_s = heartbeat_s
        self._on_event = on_event
        self._checkpoint = checkpoint
        self._hold: _Hold | None = None
        #: The lock last seen, and since when; outlives an `acquire()`, so that a lock which is
        #: dated in the future is outwaited over several of them.
        self._seen: tuple[LockVersion, float] | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lock, as far as the last heartbeat knows."""
        hold = self._hold
        return hold is not None and hold.pid == os.getpid() and not hold.lost

    def acquire(self, timeout_s: float = 25.0, *, give_up: Callable[[], bool] = _never) -> bool:
        """Take the lock; False if that took too long, or was no longer wanted.

        Args:
            timeout_s: 0 tries once.
            give_up: asked before each further try; true ends the wait.

        Raises:
            OSError: it cannot be taken at all: permission, read-only or full file system, no
                directory, or a directory in its place.
        """
        if self._own_hold() is not None:
            raise RuntimeError("the lock is already taken through this object")
        begun_s = self._clock.monotonic()
        while (fd := self._try()) is None:
            waited_s = self._clock.monotonic() - begun_s
            if timeout_s - waited_s < _TICK_S:
                self._report_timeout(waited_s)
                return False
            self._sleep(min(CLI_POLL_S, timeout_s - waited_s))
            if give_up():
                return False
        self._begin(fd)
        self._sweep()
        return True

    def release(self) -> None:
        """Remove the lock if it is still ours; harmless when not held, and in a forked child."""
        hold, self._hold = self._own_hold(), None
        if hold is None:
            return
        # Under the mutex and marked: a heartbeat that is late must not create the file again.
        with hold.mutex:
            hold.released = True
            try:
                self._unlink_own(hold.fd)
            except OSError as error:
                # The next one of ours waits until it is stale.
                log.warning("lock was not removed path=%s problem=%s", self.path, error.strerror)
            finally:
                os.close(hold.fd)
                hold.stop.set()
        # Last, as it lets other greenlets run. Not from an event that the heartbeat reports.
        heartbeat = hold.heartbeat
        if heartbeat and heartbeat.is_alive() and heartbeat is not threading.current_thread():
            heartbeat.join()

    def check(self) -> bool:
        """Look now, as the heartbeat does every two seconds; whether the lock is (again) ours."""
        hold = self._own_hold()
        return hold is not None and self._check(hold)

    def observed(self) -> ForeignLock | None:
        """What is at the path; None when nothing is, or our own lock.

        Raises:
            OSError: it cannot be looked at, or is a directory.
        """
        return None if self.held else self._look()

    def _try(self) -> int | None:
        with suppress(FileExistsError):
            return self._create()
        lock = self._look()
        if lock is not None and self._is_abandoned(lock) and self._break(lock):
            # At once, but perhaps somebody was quicker.
            with suppress(FileExistsError):
                return self._create()
        return None

    def _create(self) -> int:
        # O_EXCL does not follow a symbolic link either, not even one that leads nowhere.
        fd = os.open(self._name, _FLAGS | os.O_EXCL, 0o600)
        try:
            os.write(fd, _signature(self._token_hex(16)))
        except BaseException:
            # The disk is full, say: do not leave a lock behind that nobody holds.
            with suppress(OSError):
                self._unlink_own(fd)
            os.close(fd)
            raise
        return fd

    def _begin(self, fd: int) -> None:
        self.lost = False
        self._hold = hold = _Hold(fd)
        try:
            # A daemon: a lock that is left behind by the end of the process is broken at once.
            hold.heartbeat = threading.Thread(
                target=self._beat, args=(hold,), name="cli-lock-heartbeat", daemon=True
            )
            hold.heartbeat.start()
        except BaseException:
            self.release()
            raise

    def _unlink_own(self, fd: int) -> None:
        with suppress(FileNotFoundError):
            if _is_at(self._name, fd):
                self._checkpoint("release")
                os.unlink(self._name)

    def _own_hold(self) -> _Hold | None:
        hold = self._hold
        if hold is None or hold.pid == os.getpid():
            return hold
        # We are a forked child: the lock is our parent's. Its mutex may have been copied while it
        # was locked, by a thread that does not exist here; only the fd is ours to close.
        self._hold = None
        os.close(hold.fd)
        return None

    # The heartbeat.

    def _beat(self, hold: _Hold) -> None:
        while not hold.stop.wait(self._heartbeat_s):
            try:
                if not self._check(hold):
                    return
            except Exception:  # of the event sink; without a heartbeat we would be robbed
                log.exception("heartbeat of the lock failed path=%s", self.path)

    def _check(self, hold: _Hold) -> bool:
        if hold.pid != os.getpid():
            # Threads do not survive a fork, but greenlets do: this is our parent's lock.
            return False
        with hold.mutex:
            if hold.released or hold.lost:
                return False
            try:
                cause = self._keep(hold)
            except OSError as error:
                hold.lost, cause = True, errno.errorcode.get(error.errno or 0, "unknown")
            self.lost = hold.lost
        if cause:
            # Outside the mutex: the sink may well ask this object.
            fields = {"path": self._name, "cause": cause, "recreated": not hold.lost}
            self._on_event("foreign_lock_lost", fields)
        return not hold.lost

    def _keep(self, hold: _Hold) -> str:
        """Touch the lock, or create it again; say what happened to it, or nothing."""
        try:
            if _is_at(self._name, hold.fd):
                # Through the fd: by its name we might touch, and so keep alive, another's lock.
                os.utime(hold.fd)
                return ""
        except FileNotFoundError:
            self._checkpoint("missing")
            with suppress(FileExistsError):
                # The new fd is stored before the old one is closed: whoever forks in between
                # copies an fd that is open.
                old, hold.fd = hold.fd, self._create()
                os.close(old)
                return "removed"
        hold.lost = True
        return "replaced"

    # The takeover of a lock that was left behind.

    def _look(self) -> ForeignLock | None:
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
            start_time(pid) == started if pid and started else None,
            stat.S_ISLNK(status.st_mode),
            version,
        )

    def _author(self, status: os.stat_result) -> tuple[int | None, int]:
        """Pid and start time of the qwen-proxy that wrote the lock; None when none did."""
        if not stat.S_ISREG(status.st_mode):
            return None, 0
        try:
            fd = os.open(self._name, _READ_FLAGS)
        except OSError:
            # Not to be read is not to be known as ours: the stricter rules hold.
            return None, 0
        try:
            # What is read must belong to the file that was looked at, not to its successor.
            same = os.path.samestat(os.fstat(fd), status)
            found = _AUTHOR.fullmatch(os.read(fd, _MAX_BYTES)) if same else None
        finally:
            os.close(fd)
        return (int(found[1]), int(found[2])) if found else (None, 0)

    def _is_abandoned(self, lock: ForeignLock) -> bool:
        if lock.alive is False:
            # Ours, of a process that was killed. That a pid means another process in another
            # container does no harm: whoever of us holds lock B holds lock A, which is with us.
            return True
        if lock.seen_s >= self._stale_s:
            # Whatever the wall clock says: the date may be in the future.
            return True
        # The second look spares a lock that was only just created while the clock stepped.
        return lock.age_s > self._stale_s and lock.seen_s >= self._seen_s

    def _break(self, lock: ForeignLock) -> bool:
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

    def _sweep(self) -> None:
        """Remove what a crash between the rename and the unlink of a takeover left behind."""
        pattern = re.compile(re.escape(self.path.name) + r"\.break\.[0-9]+\.[0-9a-f]{32}")
        with suppress(OSError), os.scandir(self.path.parent) as entries:
            for entry in entries:
                if not pattern.fullmatch(entry.name):
                    continue
                # ctime is when it was renamed, mtime when its owner last touched it.
                renamed_s = entry.stat(follow_symlinks=False).st_ctime
                if self._clock.now() - renamed_s > SWEEP_S:
                    os.unlink(entry.path)

    def _report_timeout(self, waited_s: float) -> None:
        fields: dict[str, object] = {"path": self._name, "waited_s": round(waited_s, 3)}
        # Not worth an error of its own: the lock may be gone, or be a directory, by now.
        with suppress(OSError):
            if lock := self._look():
                fields |= {"age_s": round(lock.age_s, 3), "pid": lock.pid, "alive": lock.alive}
        self._on_event("lock_timeout", fields)
