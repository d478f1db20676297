"""Refreshes one login, in a thread of its own and one attempt at a time."""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from qwen_wsgi.clock import Clock, boottime, sleep
from qwen_wsgi.credentials.credential import Ability, TokenState
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.durable import WriteProblem
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore, Snapshot
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.refresh.attempt import Attempt, Outcome
from qwen_wsgi.credentials.refresh.context import (
    RefreshContext,
    RefreshState,
    RunningAttempt,
    cli_lock_of,
)
from qwen_wsgi.credentials.refresh.journal_updates import JournalUpdates
from qwen_wsgi.credentials.refresh.lock_pair import LockPair
from qwen_wsgi.credentials.refresh.policy import RefreshPolicy
from qwen_wsgi.credentials.refresh.timing import CLOSED_CALL_S, RefreshTiming
from qwen_wsgi.credentials.refresh.transaction import Transaction
from qwen_wsgi.credentials.shared.shared_login import SharedLogin

log = logging.getLogger(__name__)


#: Outcomes after which the journal holds no pause.
_UNRECORDED: Final = (Outcome.LOCK_TIMEOUT, Outcome.READ_ONLY, Outcome.FAILED, Outcome.LEFT)
_QUIET: Final = (Outcome.OK, Outcome.ADOPTED, Outcome.LEFT)


class Refresher:
    """Refreshes one login; shared by all greenlets of a process.

    At most one thread per process makes an attempt, never a request's own: a request that is killed
    must not take a spent token with it. Requests wait for the event and then look at the login, not
    at the thread's result.

    It may be forked at any time, with one limit: under gevent a child that is forked, and not
    exec'ed, in the middle of an attempt has a copy of its greenlet, which competes for the answer.
    """

    def __init__(
        self,
        store: LoginStore,
        endpoint: TokenEndpoint,
        clock: Clock,
        *,
        timing: RefreshTiming | None = None,
        sleep: Callable[[float], None] = sleep,
        jitter: Callable[[], float] = random.random,
        checkpoint: Callable[[str], None] = lambda name: None,
        boottime: Callable[[], float] = boottime,
        shared: SharedLogin | None = None,
    ) -> None:
        """
        Args:
            checkpoint: called between two steps of an attempt, in this order: `alone`, `locked`,
                `reserved`, `intent`, `answered` (or `ambiguous`, and `intent` again), `journaled`,
                `published`, `finished`.
            boottime: seconds that never step and go on while the machine is suspended.
            shared: for a login that other boxes use too.
        """
        timing = timing or RefreshTiming()
        self._state = state = RefreshState()
        self.context = context = RefreshContext(
            store=store,
            endpoint=endpoint,
            clock=clock,
            boottime=boottime,
            timing=timing,
            sleep=sleep,
            checkpoint=checkpoint,
            share=jitter(),
            proxy_lock=ProxyLock(store.paths.proxy_lock),
            cli_lock=cli_lock_of(store, clock, timing, state),
            shared=shared,
        )
        self._policy = RefreshPolicy(context, state)
        self._locks = LockPair(context, state, self._policy)
        self._transaction = Transaction(context, state, self._policy)
        self._journal = JournalUpdates(context, state)
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._backing_up = False
        #: Fingerprint of the token that the API accepted, while that is being recorded.
        self._noting = ""

    # --- what it knows ---------------------------------------------------------------------------

    @property
    def read_only(self) -> WriteProblem | None:
        """Why the login's files cannot be replaced; None when they can, as far as is known."""
        return self._state.read_only

    @property
    def unsaved(self) -> str:
        """Why the latest login is in this process's memory alone; empty when it is on disk."""
        return self._state.unsaved

    @property
    def last(self) -> Attempt | None:
        """The latest attempt of this process."""
        return self._state.last

    @property
    def counters(self) -> Counter[str]:
        """How often attempts ended in which way, and events of the locks."""
        return self._state.counters

    def token_state(self, snapshot: Snapshot) -> TokenState:
        """See `RefreshPolicy.token_state`."""
        return self._policy.token_state(snapshot)

    def fresh_until(self, snapshot: Snapshot) -> tuple[float, float]:
        """See `RefreshPolicy.fresh_until`."""
        return self._policy.fresh_until(snapshot)

    def ability(self, snapshot: Snapshot) -> Ability:
        """See `RefreshPolicy.ability`."""
        return self._policy.ability(snapshot)

    def has_answered(self, snapshot: Snapshot) -> bool:
        """See `RefreshPolicy.has_answered`."""
        return self._policy.has_answered(snapshot)

    def was_closed(self, snapshot: Snapshot) -> bool:
        """See `RefreshPolicy.was_closed`."""
        return self._policy.was_closed(snapshot)

    def closed_at_ms(self, snapshot: Snapshot) -> int | None:
        """See `RefreshPolicy.closed_at_ms`."""
        return self._policy.closed_at_ms(snapshot)

    def call_tries_in_s(self, snapshot: Snapshot) -> float:
        """In how many seconds a call may try a closed login, as far as this process knows."""
        mine_s = self._state.trial_until - self.context.clock.monotonic()
        return max(0.0, mine_s, self._policy.call_tries_in_s(snapshot))

    def trial_in_s(self, snapshot: Snapshot) -> float:
        """See `RefreshPolicy.trial_in_s`."""
        return self._policy.trial_in_s(snapshot)

    def forced_in_s(self, snapshot: Snapshot) -> float:
        """See `RefreshPolicy.forced_in_s`."""
        return self._policy.forced_in_s(snapshot)

    def check_writable(self) -> WriteProblem | None:
        """Find out whether the login's files could be replaced, without creating any.

        A problem is recorded, as if an attempt had met it, and shows in `ability`.
        """
        problem = self.context.store.write_problem()
        if problem is not None:
            self._state.read_only = problem
        return problem

    # --- one attempt at a time -------------------------------------------------------------------

    def start(self, *, rejected: str | None = None) -> threading.Event | None:
        """Start an attempt in a thread of its own, if one is due.

        Args:
            rejected: the access token that the API refused.

        Returns:
            An event that is set when callers should look at the login again; None if no attempt is
            under way and none is due.
        """
        self._leave_to_parent()
        store = self.context.store
        with self._guard:
            if (running := self._state.running) is not None:
                return running.progress
            if self._state.draining or not self._policy.is_wanted(store.snapshot(), rejected):
                return None
            running = self._state.running = RunningAttempt()
        try:
            threading.Thread(
                target=self._run, args=(running, rejected), name="qwen-login-refresh", daemon=True
            ).start()
        except RuntimeError as error:  # no more threads; without this no later call would try
            log.error("login refresh could not begin login=%s: %s", store.shown, error)
            self._end(running)
        return running.progress

    def back_up(self) -> None:
        """Copy a login that another program put into the file to our journal, in a thread.

        A qwen-code deletes the file when a refresh of its own is refused, even if another one has
        just written a good login there (docs/credentials.md). Then ours is the only copy.
        """
        self._leave_to_parent()
        with self._guard:
            if (
                self._backing_up
                or self._state.draining
                or not self._journal.is_backup_due(self.context.store.snapshot())
            ):
                return
            self._backing_up = True
        try:
            threading.Thread(target=self._back_up, name="qwen-login-backup", daemon=True).start()
        except RuntimeError:  # no more threads; the next call tries again
            self._backing_up = False

    def sweep(self) -> None:
        """Remove the reservations that crashes left behind, if no attempt is under way anywhere;
        else the next attempt does it. For the start of a process."""
        store, lock = self.context.store, self.context.proxy_lock
        with suppress(OSError):
            if store.holds_left_overs() and lock.acquire(0.0):
                try:
                    store.sweep(alone=True)
                finally:
                    lock.release()

    def begin_trial(self) -> None:
        """Let the calling call try a closed login; others of this process wait for what it finds,
        a minute at most."""
        self._state.trial_until = self.context.clock.monotonic() + CLOSED_CALL_S

    def note_answered(self, token: str) -> None:
        """Remember that the API accepts an access token, and tell the other workers if they may
        doubt it: in a thread, because the journal's lock may be held."""
        fp = self._state.answered = fingerprint(token)
        self._leave_to_parent()
        snapshot = self.context.store.snapshot()
        login = snapshot.newest.login
        if login is None or login.access_token != token or self._noting == fp:
            return
        if self._state.draining or not self._journal.is_doubted(snapshot):
            return
        self._noting = fp
        try:
            threading.Thread(
                target=self._note, args=(login,), name="qwen-login-answered", daemon=True
            ).start()
        except RuntimeError:  # no more threads; this process knows it
            self._noting = ""

    def _note(self, login: CredentialDocument) -> None:
        try:
            self._journal.note_answered(login)
        finally:
            self._noting = ""

    def _back_up(self) -> None:
        try:
            self._journal.back_up()
        finally:
            self._backing_up = False

    def drain(self, timeout_s: float) -> bool:
        """Start no more attempts; cancel what was not sent, and wait for what was.

        Returns:
            False on timeout.
        """
        self._leave_to_parent()
        with self._guard:
            self._state.draining = True
            running = self._state.running
        return running is None or running.over.wait(timeout_s)

    def _leave_to_parent(self) -> None:
        if self._pid != os.getpid():
            # Forked meanwhile: the thread stayed with the parent, and the guard may have been
            # copied while it was locked.
            self._guard, self._state.running, self._pid = threading.Lock(), None, os.getpid()
            self._backing_up, self._noting = False, ""

    def _run(self, running: RunningAttempt, rejected: str | None) -> None:
        try:
            self.attempt(rejected=rejected)
        finally:
            self._end(running)

    def _end(self, running: RunningAttempt) -> None:
        with self._guard:
            if self._state.running is running:
                self._state.running = None
        running.progress.set()
        running.over.set()

    def attempt(self, *, rejected: str | None = None) -> Attempt:
        """Make one attempt in this thread; never raises for what can go wrong outside."""
        state = self._state
        id = state.attempt_id = secrets.token_hex(4)
        try:
            outcome, detail = self._left(rejected) or self._locks.hold(
                rejected, lambda: self._transaction.run(id, rejected)
            )
        except Exception as error:  # the top of a thread: nothing above would log it
            log.error("login refresh failed attempt=%s", id, exc_info=error)
            outcome, detail = Outcome.FAILED, type(error).__name__
        state.counters[f"refresh_total.{outcome.value}"] += 1
        attempt = Attempt(outcome, detail, int(self.context.clock.now() * 1000))
        if outcome is Outcome.NOT_DUE:
            # Another process failed a moment ago; what this process knows is worth more.
            state.last = state.last or attempt
            return attempt
        state.last = attempt
        self._hold_off(outcome, needed=rejected is not None)
        log.log(
            logging.INFO if outcome in _QUIET else logging.WARNING,
            "login refresh outcome=%s login=%s attempt=%s: %s",
            outcome.value,
            self.context.store.shown,
            id,
            detail,
        )
        return attempt

    def _left(self, rejected: str | None) -> tuple[Outcome, str] | None:
        """Look at what the other boxes know, and leave the renewal to the one that may do it; None
        if it is this one, or there is a login to be written into the file."""
        store, shared = self.context.store, self.context.shared
        if shared is None:
            return None
        shared.sync()

        def settled() -> bool:
            return self._state.draining or self._policy.is_settled(store.snapshot(), rejected)

        snapshot = store.snapshot()
        if not settled() and not shared.may_try():
            needed = rejected is not None or self._policy.is_urgent(snapshot)
            if needed and shared.ask(rejected or "", settled):
                self._state.notify_waiters()  # the new token can be used
            snapshot = store.snapshot()
        if snapshot.newest.unpublished or shared.may_try():
            return None
        if self._policy.is_settled(snapshot, rejected):
            return Outcome.ADOPTED, "another box renewed it"
        return Outcome.LEFT, shared.describe()

    def _hold_off(self, outcome: Outcome, *, needed: bool) -> None:
        """Keep this process from trying again at once where the journal holds no pause.

        Args:
            needed: the API refuses the token that there is.
        """
        if outcome not in _UNRECORDED:
            return
        snapshot = self.context.store.snapshot()
        pause_s = self._policy.pause_s(snapshot)
        if needed or outcome is Outcome.LEFT or self._policy.is_urgent(snapshot):
            # Nothing was spent, and a disk, a mount or a Redis that is healed is used soon.
            pause_s = min(pause_s, self.context.timing.urgent_retry_s)
        if snapshot.newest.login is not None:
            self._policy.hold_off(fingerprint(snapshot.newest.login.refresh_token), pause_s)

    # --- the journal -----------------------------------------------------------------------------

    def close_tier(self, login: CredentialDocument) -> None:
        """See `JournalUpdates.close_tier`."""
        self._journal.close_tier(login)

    def give_another_chance(self, login: CredentialDocument) -> None:
        """See `JournalUpdates.give_another_chance`."""
        self._journal.give_another_chance(login)

    def forget(self) -> bool:
        """See `JournalUpdates.forget`."""
        return self._journal.forget()
