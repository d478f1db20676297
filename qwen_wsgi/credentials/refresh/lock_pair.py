"""Takes both locks for an attempt, and judges what the wait for them has shown."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from typing import Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore
from qwen_wsgi.credentials.locks.cli_lock import CLI_POLL_S, CliLock
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.refresh.attempt import Outcome
from qwen_wsgi.credentials.refresh.judge import RefreshPolicy
from qwen_wsgi.credentials.refresh.pace import RefreshTiming

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class LockPair:
    """Ours, then qwen-code's, around the work of one attempt."""

    def __init__(
        self,
        store: LoginStore,
        judge: RefreshPolicy,
        proxy_lock: ProxyLock,
        cli_lock: CliLock,
        clock: Clock,
        pace: RefreshTiming,
        *,
        counters: Counter[str],
        sleep: Callable[[float], None],
        checkpoint: Callable[[str], None],
        is_draining: Callable[[], bool],
    ) -> None:
        """
        Args:
            counters: the events of the locks are counted there.
        """
        self._store = store
        self._judge = judge
        self._proxy_lock = proxy_lock
        self._cli_lock = cli_lock
        self._clock = clock
        self._pace = pace
        self._counters = counters
        self._sleep = sleep
        self._checkpoint = checkpoint
        self._is_draining = is_draining
        #: The version of the file that a qwen-code left as it was when it let go of its lock.
        self._untouched: object = None

    def hold(
        self, rejected: str | None, work: Callable[[], tuple[Outcome, str]]
    ) -> tuple[Outcome, str]:
        """Do the work while both locks are held; else say why it was not done.

        Args:
            rejected: the access token that the API refused.
        """
        waited = False

        def settled() -> bool:
            nonlocal waited
            waited = True
            return self._is_draining() or self._judge.settled(self._store.snapshot(), rejected)

        self._store.snapshot()  # before our locks change the directory's date, see `gone_s`
        try:
            # With what is above it (QWEN_CLI_AUTH), and for root in the name of the file's owner.
            durable.make_directory(self._store.paths.proxy_lock.parent)
            if not self._proxy_lock.acquire(self._pace.proxy_lock_s, give_up=settled):
                return self._without_lock("the proxy's own lock", rejected)
            try:
                self._checkpoint("alone")
                waited, before = False, self._store.snapshot().reading.identity
                broken = self._counters["foreign_lock_broken_total"]
                if not self._cli_lock.acquire(self._pace.cli_lock_s, give_up=settled):
                    return self._without_lock("qwen-code's lock", rejected)
                try:
                    broken = self._counters["foreign_lock_broken_total"] - broken
                    if (
                        waited
                        and not broken
                        and self._is_untouched(before)
                        and not self._outwaited(rejected)
                    ):
                        return Outcome.NOT_SENT, "qwen-code let go of its lock, but may be at it"
                    return work()
                finally:
                    self._cli_lock.release()
            finally:
                self._proxy_lock.release()
        except OSError as error:
            return self._cannot_write(error)

    def _is_untouched(self, before: object) -> bool:
        """Whether somebody had qwen-code's lock and has not renewed the login; once per version.

        It found nothing to do, or another qwen-code that ended has removed its lock (see `CliLock`)
        and it still waits for an answer: then its token is spent.
        """
        identity = self._store.snapshot().reading.identity
        if identity is None or identity != before or identity == self._untouched:
            return False
        self._untouched = identity
        return True

    def _outwaited(self, rejected: str | None) -> bool:
        """Give that answer some time: here while calls wait, else by a later attempt (False)."""
        snapshot = self._store.snapshot()
        if not self._judge.is_urgent(snapshot) and rejected is None:
            if snapshot.newest.login is not None:
                fp = fingerprint(snapshot.newest.login.refresh_token)
                self._judge.hold_off(fp, self._judge.pause_s(snapshot))
            return False
        end_s = self._clock.monotonic() + self._pace.urgent_retry_s
        while self._clock.monotonic() < end_s and not self._is_draining():
            if self._judge.settled(self._store.snapshot(), rejected):
                break
            self._sleep(CLI_POLL_S)
        return True

    def _without_lock(self, what: str, rejected: str | None) -> tuple[Outcome, str]:
        if self._judge.settled(self._store.snapshot(), rejected):
            return Outcome.ADOPTED, "another process renewed it"
        if self._is_draining():
            return Outcome.NOT_SENT, "the process is stopping"
        return Outcome.LOCK_TIMEOUT, f"{what} was not to be had; nothing was sent"

    def _cannot_write(self, error: OSError) -> tuple[Outcome, str]:
        self._judge.read_only = error.strerror or type(error).__name__
        what = "the disk is full" if error.errno in _NO_ROOM else self._judge.read_only
        where = self._store.paths.document.parent
        return Outcome.READ_ONLY, f"{where} cannot be written ({what}); the token was not spent"
