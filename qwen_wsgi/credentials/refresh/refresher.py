"""Renews one login: who may try, and in which thread.

When an attempt is due, `judge` says. The attempt takes `both_locks` for a `transaction`.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.credential import Ability as Ability
from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore, Snapshot
from qwen_wsgi.credentials.locks.cli_lock import CliLock
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.refresh.attempt import Attempt as Attempt
from qwen_wsgi.credentials.refresh.attempt import Outcome as Outcome
from qwen_wsgi.credentials.refresh.commit import Committer
from qwen_wsgi.credentials.refresh.journal_updates import JournalUpdates
from qwen_wsgi.credentials.refresh.judge import RefreshPolicy
from qwen_wsgi.credentials.refresh.lock_pair import LockPair
from qwen_wsgi.credentials.refresh.pace import RefreshTiming as RefreshTiming
from qwen_wsgi.credentials.refresh.transaction import Transaction

log = logging.getLogger(__name__)


class _Work:
    """The thread that is at it, for those who wait."""

    def __init__(self) -> None:
        #: There is something new to look at.
        self.told = threading.Event()
        #: The thread has ended.
        self.over = threading.Event()


class Refresher:
    """One login's renewal; shared by all greenlets of a process.

    At most one thread per process is at it, in a thread of its own: a request that is killed must
    not take a spent token with it. Requests wait for the event and then look at the login, not at
    the thread's result.

    It may be forked at any time, with one limit: under gevent a child that is forked, and not
    exec'ed, in the middle of an attempt has a copy of its greenlet, which competes for the answer.
    """

    def __init__(
        self,
        store: LoginStore,
        endpoint: TokenEndpoint,
        clock: Clock,
        *,
        pace: RefreshTiming | None = None,
        sleep: Callable[[float], None] = sleep,
        jitter: Callable[[], float] = random.random,
        checkpoint: Callable[[str], None] = lambda name: None,
        boottime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """
        Args:
            checkpoint: called between two steps of an attempt, in this order: `alone`, `locked`,
                `reserved`, `intent`, `answered` (or `ambiguous`, and `intent` again), `journaled`,
                `published`, `finished`.
            boottime: seconds that never step and go on while the machine is suspended.
        """
        self.store = store
        self.counters: Counter[str] = Counter()
        self.last: Attempt | None = None
        self.clock = clock
        self.boottime = boottime
        pace = pace or RefreshTiming()
        paths = store.paths
        self.proxy_lock = ProxyLock(paths.proxy_lock)
        self.cli_lock = CliLock(
            paths.cli_lock,
            clock=clock,
            stale_s=pace.stale_s,
            seen_s=pace.seen_s,
            heartbeat_s=pace.heartbeat_s,
            on_event=self._lock_event,
        )
        self.judge = judge = RefreshPolicy(store, clock, pace, share=jitter(), boottime=boottime)
        self._pace = pace

        def is_draining() -> bool:
            return self._draining

        self._notes = JournalUpdates(store, judge, self.proxy_lock, clock, is_draining=is_draining)
        self._keeper = Committer(
            store,
            judge,
            self.cli_lock,
            clock,
            pace,
            host=endpoint.host,
            sleep=sleep,
            checkpoint=checkpoint,
            is_draining=is_draining,
            tell=self._tell,
        )
        self._transaction = Transaction(
            store,
            endpoint,
            judge,
            self._keeper,
            self.cli_lock,
            clock,
            pace,
            sleep=sleep,
            checkpoint=checkpoint,
            is_draining=is_draining,
        )
        self._both_locks = LockPair(
            store,
            judge,
            self.proxy_lock,
            self.cli_lock,
            clock,
            pace,
            counters=self.counters,
            sleep=sleep,
            checkpoint=checkpoint,
            is_draining=is_draining,
        )
        #: Stands in every log line of the attempt under way.
        self._number = ""
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._running: _Work | None = None
        self._noting = False
        self._draining = False

    # --- what it knows ---------------------------------------------------------------------------

    @property
    def read_only(self) -> str:
        """Why the file cannot be replaced; empty when it can, as far as is known."""
        return self.judge.read_only

    @read_only.setter
    def read_only(self, why: str) -> None:
        self.judge.read_only = why

    @property
    def unsaved(self) -> str:
        """Why the latest login is in this process's memory alone; empty as it should be."""
        return self._keeper.unsaved

    def state(self, snapshot: Snapshot) -> TokenState:
        """See `Judge.state`."""
        return self.judge.state(snapshot)

    def fresh_until(self, snapshot: Snapshot) -> tuple[float, float]:
        """See `Judge.fresh_until`."""
        return self.judge.fresh_until(snapshot)

    def ability(self, snapshot: Snapshot) -> Ability:
        """See `Judge.ability`."""
        return self.judge.ability(snapshot)

    # --- one attempt at a time -------------------------------------------------------------------

    def start(self, *, rejected: str | None = None) -> threading.Event | None:
        """Have the login renewed if that is due.

        Args:
            rejected: the access token that the API refused.

        Returns:
            What is set when the attempt under way has ended; None if there is none and none is due.
        """
        self._leave_to_parent()
        with self._guard:
            if self._running is not None:
                return self._running.told
            if self._draining or not self.judge.wanted(self.store.snapshot(), rejected):
                return None
            work = self._running = _Work()
        try:
            threading.Thread(
                target=self._run, args=(work, rejected), name="qwen-login-refresh", daemon=True
            ).start()
        except RuntimeError as error:  # no more threads to be had; without this nobody tries again
            log.error("login refresh could not begin login=%s: %s", self.store.shown, error)
            self._end(work)
        return work.told

    def note(self) -> None:
        """Have a login that somebody else put into the file written into our journal.

        A qwen-code deletes the file when a refresh of its own is refused, even if another one has
        just written a good login there (docs/credentials.md). Then ours is the only copy.
        """
        self._leave_to_parent()
        with self._guard:
            if self._noting or self._draining or not self._notes.is_lacking(self.store.snapshot()):
                return
            self._noting = True
        try:
            threading.Thread(target=self._note, name="qwen-login-note", daemon=True).start()
        except RuntimeError:  # no more threads to be had; the next look tries again
            self._noting = False

    def _note(self) -> None:
        try:
            self._notes.write()
        finally:
            self._noting = False

    def drain(self, timeout_s: float) -> bool:
        """Start nothing more; cancel what was not sent, and wait for what was. False on timeout."""
        self._leave_to_parent()
        with self._guard:
            self._draining = True
            running = self._running
        return running is None or running.over.wait(timeout_s)

    def _leave_to_parent(self) -> None:
        if self._pid != os.getpid():
            # Forked meanwhile: the thread stayed with the parent, and the guard may have been
            # copied while it was locked.
            self._guard, self._running, self._pid = threading.Lock(), None, os.getpid()
            self._noting = False

    def _run(self, work: _Work, rejected: str | None) -> None:
        try:
            self.attempt(rejected=rejected)
        finally:
            self._end(work)

    def _end(self, work: _Work) -> None:
        with self._guard:
            if self._running is work:
                self._running = None
        work.told.set()
        work.over.set()

    def _tell(self) -> None:
        if (running := self._running) is not None:
            running.told.set()

    def attempt(self, *, rejected: str | None = None) -> Attempt:
        """Make one attempt in this thread; never raises for what can go wrong outside."""
        number = self._number = secrets.token_hex(4)
        try:
            outcome, detail = self._both_locks.hold(
                rejected, lambda: self._transaction.run(number, rejected)
            )
        except Exception as error:  # a thread's top: nobody else would hear of it
            log.error("login refresh failed attempt=%s", number, exc_info=error)
            outcome, detail = Outcome.FAILED, type(error).__name__
        self.counters[f"refresh_total.{outcome.value}"] += 1
        attempt = Attempt(outcome, detail, int(self.clock.now() * 1000))
        if outcome is Outcome.NOT_DUE:
            # Another process failed a moment ago; what this one knows is worth more.
            self.last = self.last or attempt
            return attempt
        self.last = attempt
        self._space(outcome)
        log.log(
            logging.INFO if outcome in (Outcome.OK, Outcome.ADOPTED) else logging.WARNING,
            "login refresh outcome=%s login=%s attempt=%s: %s",
            outcome.value,
            self.store.shown,
            number,
            detail,
        )
        return attempt

    def _space(self, outcome: Outcome) -> None:
        """Keep this process from trying again at once where the journal does not say so."""
        if outcome not in (Outcome.LOCK_TIMEOUT, Outcome.READ_ONLY, Outcome.FAILED):
            return
        snapshot = self.store.snapshot()
        pause_s = self.judge.pause_s(snapshot)
        if outcome is Outcome.LOCK_TIMEOUT and self.judge.is_urgent(snapshot):
            pause_s = min(pause_s, self._pace.urgent_retry_s)
        if snapshot.newest.login is not None:
            self.judge.hold_off(fingerprint(snapshot.newest.login.refresh_token), pause_s)

    def _lock_event(self, name: str, fields: Mapping[str, object] | None = None) -> None:
        self.counters[f"{name}_total"] += 1
        log.warning(
            "login lock event=%s login=%s attempt=%s %s",
            name,
            self.store.shown,
            self._number,
            dict(fields or {}),
        )

    # --- beside the renewal ----------------------------------------------------------------------

    def close_tier(self, login: CredentialDocument) -> None:
        """See `Notes.close_tier`."""
        self._notes.close_tier(login)

    def forget(self) -> bool:
        """See `Notes.forget`."""
        return self._notes.forget()
