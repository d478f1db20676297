"""Lock B: the file that qwen-code locks with. Programs may remove it, so it is no guarantee."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.locks import lock_file
from qwen_wsgi.credentials.locks.stale import (
    SEEN_S,
    STALE_S,
    EventSink,
    ForeignLock,
    StaleLock,
)

log = logging.getLogger(__name__)

#: Pause between two tries for qwen-code's lock; qwen-code itself tries every 0.1 to 2 s. Seconds.
CLI_POLL_S: Final = 0.1
#: Touch our lock this often: five times within the shortest limit. Seconds.
HEARTBEAT_S: Final = 2.0


def _ignore(name: str, fields: Mapping[str, object] | None = None) -> None:
    return None


class _Hold:
    """One period in which `CliLock` has its file."""

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

    A thread touches the file while it is held, so that no qwen-code finds it stale, and checks
    whether it is still there: every qwen-code that ends unlinks it, whoever owns it. A file that
    is gone is created again at once; one that another program has created makes the lock `lost`.

    Limits: between such an unlink and the next heartbeat a qwen-code can take the lock, and even
    release it, unnoticed. So call `check()` before a step that must not happen twice, and compare
    before publishing.

    Events, for counting and logging: `foreign_lock_lost` (ours was removed or replaced by another
    program), `foreign_lock_broken`, `own_dead_lock_broken`, `lock_timeout`.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        sleep: Callable[[float], None] = sleep,
        token_hex: Callable[[int], str] = secrets.token_hex,
        stale_s: float = STALE_S,
        seen_s: float = SEEN_S,
        heartbeat_s: float = HEARTBEAT_S,
        on_event: EventSink = _ignore,
        checkpoint: Callable[[str], None] = _ignore,
    ) -> None:
        """
        Args:
            seen_s: how long a lock that is older than `stale_s` must stay unchanged.
            on_event: called with name and fields, also from the heartbeat's thread.
            checkpoint: called between two steps that another process may come between: `break`,
                `renamed`, `missing`, `release`.
        """
        self.path = path
        #: Whether another program had the lock during the current or latest hold: do not start new
        #: work, and publish by compare-and-swap only.
        self.lost = False
        self._name = os.fspath(path)
        self._clock = clock
        self._sleep = sleep
        self._token_hex = token_hex
        self._heartbeat_s = heartbeat_s
        self._on_event = on_event
        self._checkpoint = checkpoint
        self._stale = StaleLock(
            path,
            clock=clock,
            token_hex=token_hex,
            stale_s=stale_s,
            seen_s=seen_s,
            on_event=on_event,
            checkpoint=checkpoint,
        )
        self._hold: _Hold | None = None

    @property
    def held(self) -> bool:
        """Whether this process has the lock, as of the last heartbeat."""
        hold = self._hold
        return hold is not None and hold.pid == os.getpid() and not hold.lost

    def acquire(
        self, timeout_s: float = 25.0, *, give_up: Callable[[], bool] = lock_file.never
    ) -> bool:
        """Take the lock; False on timeout, or when `give_up` ended the wait.

        Args:
            timeout_s: 0 tries once.
            give_up: called before each further try; true ends the wait.

        Raises:
            OSError: it cannot be taken at all: permission, read-only or full file system, no
                directory, or a directory in its place.
        """
        if self._own_hold() is not None:
            raise RuntimeError("the lock is already taken through this object")
        begun_s = self._clock.monotonic()
        while (fd := self._try()) is None:
            waited_s = self._clock.monotonic() - begun_s
            if timeout_s - waited_s < lock_file.TICK_S:
                self._report_timeout(waited_s)
                return False
            self._sleep(min(CLI_POLL_S, timeout_s - waited_s))
            if give_up():
                return False
        self._begin(fd)
        self._stale.sweep()
        return True

    def release(self) -> None:
        """Remove the lock if it is still ours; harmless when not held, and in a forked child."""
        hold, self._hold = self._own_hold(), None
        if hold is None:
            return
        # Under the mutex, and marked: a late heartbeat must not create the file again.
        with hold.mutex:
            hold.released = True
            try:
                self._unlink_own(hold.fd)
            except OSError as error:
                # The next attempt waits until it is stale.
                log.warning("lock was not removed path=%s problem=%s", self.path, error.strerror)
            finally:
                os.close(hold.fd)
                hold.stop.set()
        # Last, because it lets other greenlets run. The heartbeat's own events must not join it.
        heartbeat = hold.heartbeat
        if heartbeat and heartbeat.is_alive() and heartbeat is not threading.current_thread():
            heartbeat.join()

    def check(self) -> bool:
        """Do a heartbeat now; return whether the lock is (again) ours."""
        hold = self._own_hold()
        return hold is not None and self._check(hold)

    def observed(self) -> ForeignLock | None:
        """Return another process's lock at the path; None without one, or when we hold it.

        Raises:
            OSError: it cannot be inspected, or is a directory.
        """
        return None if self.held else self._stale.inspect()

    def _try(self) -> int | None:
        with suppress(FileExistsError):
            return self._create()
        lock = self._stale.inspect()
        if lock is not None and self._stale.is_abandoned(lock) and self._stale.remove(lock):
            # Another process may have been faster.
            with suppress(FileExistsError):
                return self._create()
        return None

    def _create(self) -> int:
        # O_EXCL follows no symbolic link, not even a dangling one.
        fd = os.open(self._name, lock_file.FLAGS | os.O_EXCL, 0o600)
        try:
            os.write(fd, lock_file.signature(self._token_hex(16)))
        except BaseException:
            # E.g. the disk is full: do not leave a lock behind that nobody holds.
            with suppress(OSError):
                self._unlink_own(fd)
            os.close(fd)
            raise
        return fd

    def _begin(self, fd: int) -> None:
        self.lost = False
        self._hold = hold = _Hold(fd)
        try:
            # A daemon: the lock of a process that ended is broken at once by the next one.
            hold.heartbeat = threading.Thread(
                target=self._beat, args=(hold,), name="cli-lock-heartbeat", daemon=True
            )
            hold.heartbeat.start()
        except BaseException:
            self.release()
            raise

    def _unlink_own(self, fd: int) -> None:
        with suppress(FileNotFoundError):
            if lock_file.is_at(self._name, fd):
                self._checkpoint("release")
                os.unlink(self._name)

    def _own_hold(self) -> _Hold | None:
        hold = self._hold
        if hold is None or hold.pid == os.getpid():
            return hold
        # We are a forked child: the lock is our parent's. Its mutex may have been copied while it
        # was locked by a thread that does not exist here; only the fd must be closed.
        self._hold = None
        os.close(hold.fd)
        return None

    # The heartbeat.

    def _beat(self, hold: _Hold) -> None:
        while not hold.stop.wait(self._heartbeat_s):
            try:
                if not self._check(hold):
                    return
            except Exception:  # of the event sink; without a heartbeat we would lose the lock
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
            # Outside the mutex: the sink may use this object.
            fields = {"path": self._name, "cause": cause, "recreated": not hold.lost}
            self._on_event("foreign_lock_lost", fields)
        return not hold.lost

    def _keep(self, hold: _Hold) -> str:
        """Touch the lock, or create it again; return what happened to it, or an empty text."""
        try:
            if lock_file.is_at(self._name, hold.fd):
                # Through the fd: by its name we might touch, and so prolong, another's lock.
                os.utime(hold.fd)
                return ""
        except FileNotFoundError:
            self._checkpoint("missing")
            with suppress(FileExistsError):
                # The new fd is stored before the old one is closed: a fork in between copies an fd
                # that is open.
                old, hold.fd = hold.fd, self._create()
                os.close(old)
                return "removed"
        hold.lost = True
        return "replaced"

    def _report_timeout(self, waited_s: float) -> None:
        fields: dict[str, object] = {"path": self._name, "waited_s": round(waited_s, 3)}
        # Errors do not matter here: the lock may be gone, or be a directory, by now.
        with suppress(OSError):
            if lock := self._stale.inspect():
                fields |= {"age_s": round(lock.age_s, 3), "pid": lock.pid, "alive": lock.alive}
        self._on_event("lock_timeout", fields)
