"""Takes the two locks around a refresh, always in this order: ours, then qwen-code's.

`ProxyLock` excludes our own greenlets and processes, for certain. `CliLock` is the file that
qwen-code locks with; it is a courtesy among programs that may remove it, not a guarantee.

Neither waits in the kernel: a blocking flock stops gevent's hub, hence every greenlet of the
worker (gevent issue 1657). Both look, sleep, and look again.
"""

from __future__ import annotations

from collections.abc import Callable

from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.durable import WriteProblem
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.locks.cli_lock import CLI_POLL_S
from qwen_wsgi.credentials.refresh.attempt import Outcome
from qwen_wsgi.credentials.refresh.context import RefreshContext, RefreshState
from qwen_wsgi.credentials.refresh.policy import RefreshPolicy


class LockPair:
    """Holds both locks around the work of one attempt, if that is still needed after the wait."""

    def __init__(self, context: RefreshContext, state: RefreshState, policy: RefreshPolicy) -> None:
        self._context = context
        self._state = state
        self._policy = policy
        #: The version of the file that a qwen-code released its lock on without replacing it.
        self._untouched: object = None

    def hold(
        self, rejected: str | None, work: Callable[[], tuple[Outcome, str]]
    ) -> tuple[Outcome, str]:
        """Do the work while both locks are held; otherwise return why it was not done.

        Args:
            rejected: the access token that the API refused.
        """
        store, timing = self._context.store, self._context.timing
        proxy_lock, cli_lock = self._context.proxy_lock, self._context.cli_lock
        waited = False

        def give_up() -> bool:
            nonlocal waited
            waited = True
            return self._state.draining or self._policy.is_settled(store.snapshot(), rejected)

        store.snapshot()  # before our locks change the directory's date, see `gone_s`
        try:
            # With its parents (QWEN_CLI_AUTH), and for root in the name of the file's owner.
            durable.make_directory(store.paths.proxy_lock.parent)
            if not proxy_lock.acquire(timing.proxy_lock_s, give_up=give_up):
                return self._without_lock("the proxy's own lock", rejected)
            try:
                self._context.checkpoint("alone")
                waited, before = False, store.snapshot().reading.identity
                broken = self._state.counters["foreign_lock_broken_total"]
                if not cli_lock.acquire(timing.cli_lock_s, give_up=give_up):
                    return self._without_lock("qwen-code's lock", rejected)
                try:
                    broken = self._state.counters["foreign_lock_broken_total"] - broken
                    if (
                        waited
                        and not broken
                        and self._is_untouched(before)
                        and not self._wait_for_foreign_answer(rejected)
                    ):
                        return (
                            Outcome.NOT_SENT,
                            "qwen-code released its lock without a new login and may still be "
                            "refreshing",
                        )
                    return work()
                finally:
                    cli_lock.release()
            finally:
                proxy_lock.release()
        except OSError as error:
            return self._cannot_write(error)

    def _is_untouched(self, before: object) -> bool:
        """Whether qwen-code's lock was released without a new login; once per version of the file.

        Its owner found nothing to do, or another qwen-code that ended has removed the lock (see
        `CliLock`) and the owner still waits for an answer: then its token is spent.
        """
        identity = self._context.store.snapshot().reading.identity
        if identity is None or identity != before or identity == self._untouched:
            return False
        self._untouched = identity
        return True

    def _wait_for_foreign_answer(self, rejected: str | None) -> bool:
        """Give that answer some time: here while calls wait, else by a later attempt (False)."""
        store, clock = self._context.store, self._context.clock
        snapshot = store.snapshot()
        if not self._policy.is_urgent(snapshot) and rejected is None:
            if snapshot.newest.login is not None:
                fp = fingerprint(snapshot.newest.login.refresh_token)
                self._policy.hold_off(fp, self._policy.pause_s(snapshot))
            return False
        end_s = clock.monotonic() + self._context.timing.urgent_retry_s
        while clock.monotonic() < end_s and not self._state.draining:
            if self._policy.is_settled(store.snapshot(), rejected):
                break
            self._context.sleep(CLI_POLL_S)
        return True

    def _without_lock(self, lock: str, rejected: str | None) -> tuple[Outcome, str]:
        if self._policy.is_settled(self._context.store.snapshot(), rejected):
            return Outcome.ADOPTED, "another process renewed it"
        if self._state.draining:
            return Outcome.NOT_SENT, "the process is stopping"
        return Outcome.LOCK_TIMEOUT, f"{lock} was not free in time; nothing was sent"

    def _cannot_write(self, error: OSError) -> tuple[Outcome, str]:
        problem = self._state.read_only = WriteProblem.of(error)
        why = "the disk is full" if problem.is_disk_full else problem.text
        where = self._context.store.paths.document.parent
        return Outcome.READ_ONLY, f"{where} cannot be written ({why}); the token was not spent"
