"""Renews one login: who may try, when, and the transaction of one try.

A refresh token is taken to be single-use. So it is sent only by the holder of both locks, only
after the room for its successor was reserved and the intent is on disk, and its successor goes into
the journal before anything else. What each crash leaves behind, and how the next process goes on,
is in docs/credentials.md; `checkpoint` names those points, for tests.
"""

from __future__ import annotations

import datetime
import enum
import errno
import logging
import math
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import atomic, document, journal, locks, policy
from qwen_wsgi.credentials.document import CredentialDocument
from qwen_wsgi.credentials.files import Unusable
from qwen_wsgi.credentials.journal import Backoff, Intent, Journal, Received, fingerprint
from qwen_wsgi.credentials.locks import CliLock, ProxyLock
from qwen_wsgi.credentials.policy import State
from qwen_wsgi.credentials.store import LoginStore, Sight, render
from qwen_wsgi.credentials.token_endpoint import (
    Ambiguous,
    NotSent,
    OAuthFailure,
    Rejected,
    Throttled,
    TokenAnswer,
    TokenEndpoint,
)

log = logging.getLogger(__name__)

#: Lock A may be held for 25 s of waiting for B and 26 s of transaction.
PROXY_LOCK_S: Final = 55.0
#: qwen-code gives up waiting for its lock after 29 s.
CLI_LOCK_S: Final = 25.0
#: Connect and read timeouts of the first sending, and of the one repetition: together below 26 s.
FIRST_TIMEOUT_S: Final = (3.05, 15.0)
SECOND_TIMEOUT_S: Final = (3.05, 5.0)

#: Pause after a failed attempt; scaled down for short-lived tokens, doubled up to the longest.
RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 600.0
#: The pause while no valid token is at hand and the failure cost nothing.
URGENT_RETRY_S: Final = 5.0
#: A refused answer may be a race that somebody else won: their file is there by then.
REJECTED_PAUSE_S: Final = 1.0
#: A token that a forced refresh brought and that is refused within this time was never good.
CLOSED_WITHIN_S: Final = 60.0
#: Pause between tries to write a login that could not be written.
RESCUE_S: Final = 5.0
#: A qwen-code deletes the file when its refresh token is refused, most likely because another one
#: has spent it and lost its lock: that one waits for its answer no longer than 30 s.
GONE_S: Final = 35.0
#: A request does not wait longer for our lock to note that its account is closed.
_NOTE_S: Final = 2.0
#: Doublings of the pause after which it is the longest for certain.
_DOUBLINGS: Final = 16

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Pace:
    """All times of a renewal, in seconds; the module's constants say why. Tests scale them.

    Attributes:
        lifetime_s: what a token that somebody else fetched is taken to live; None: for hours.
    """

    proxy_lock_s: float = PROXY_LOCK_S
    cli_lock_s: float = CLI_LOCK_S
    first_timeout_s: tuple[float, float] = FIRST_TIMEOUT_S
    second_timeout_s: tuple[float, float] = SECOND_TIMEOUT_S
    retry_s: float = RETRY_S
    longest_retry_s: float = LONGEST_RETRY_S
    urgent_retry_s: float = URGENT_RETRY_S
    rejected_pause_s: float = REJECTED_PAUSE_S
    rescue_s: float = RESCUE_S
    stale_s: float = locks.STALE_S
    seen_s: float = locks.SEEN_S
    heartbeat_s: float = locks.HEARTBEAT_S
    gone_s: float = GONE_S
    lifetime_s: float | None = None


class Outcome(enum.Enum):
    """How an attempt ended; the names are those of the counters."""

    OK = "ok"
    #: Somebody else's login or refresh is in use now.
    ADOPTED = "adopted"
    #: Nothing left this machine.
    NOT_SENT = "not_sent"
    #: It may have been carried out, and its answer is lost.
    AMBIGUOUS = "ambiguous"
    #: The endpoint refused the refresh token.
    REJECTED = "rejected"
    THROTTLED = "throttled"
    #: Something on the way refused the request.
    REFUSED = "refused"
    LOCK_TIMEOUT = "lock_timeout"
    #: The file cannot be replaced, so the token was not spent.
    READ_ONLY = "read_only"
    #: It is not time for an attempt, or nothing to refresh with.
    NOT_DUE = "not_due"
    #: A fault of ours.
    FAILED = "failed"


class Ability(enum.Enum):
    """Whether a login can be renewed, beside how long it is good for."""

    REFRESHABLE = "refreshable"
    NO_REFRESH_TOKEN = "no_refresh_token"
    READ_ONLY = "read_only"
    REJECTED = "rejected"
    #: A refresh succeeded, and the API refused its token all the same.
    TIER_CLOSED = "oauth_tier_closed"


@dataclass(frozen=True)
class Attempt:
    """The latest attempt of this process. `detail` is a clause for people."""

    outcome: Outcome
    detail: str
    at_ms: int


class _Drained(NotSent):
    """The process is going away: nothing was sent, and nothing will be."""


class _Overtaken(NotSent):
    """Somebody else renewed the login, or logged in, while we connected."""


class _Work:
    """The thread that is at it, for those who wait."""

    def __init__(self) -> None:
        #: There is something new to look at.
        self.told = threading.Event()
        #: The thread has ended.
        self.over = threading.Event()


def _sleep(seconds: float) -> None:
    # Looked up per call: as a default value it would be the one from before the monkey patch
    # whenever this module was imported first, and would stop gevent's hub.
    time.sleep(seconds)


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
        pace: Pace | None = None,
        sleep: Callable[[float], None] = _sleep,
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
        #: Why the file cannot be replaced; empty when it can, as far as is known.
        self.read_only = ""
        #: Why the latest login is in this process's memory alone; empty as it should be.
        self.unsaved = ""
        self.clock = clock
        self._endpoint = endpoint
        self._clock = clock
        self._pace = pace or Pace()
        self._sleep = sleep
        self._checkpoint = checkpoint
        self.boottime = boottime
        paths = store.paths
        self.proxy_lock = ProxyLock(paths.proxy_lock)
        self.cli_lock = CliLock(
            paths.cli_lock,
            clock=clock,
            stale_s=self._pace.stale_s,
            seen_s=self._pace.seen_s,
            heartbeat_s=self._pace.heartbeat_s,
            on_event=self._lock_event,
        )
        #: So that the workers do not all become stale in the same moment; of the window.
        self._share = jitter()
        #: Deadlines of tokens that this process fetched, by a clock that does not step.
        self._deadlines: dict[str, float] = {}
        #: Fingerprints of refused refresh tokens and of the access token of a closed account: what
        #: the journal should say, where it cannot be written.
        self._refused: frozenset[str] = frozenset()
        self._closed = ""
        #: What this process waits for before it tries again: fingerprint and monotonic time.
        self._pause: tuple[str, float] = ("", 0.0)
        #: The version of the file that a qwen-code left as it was when it let go of its lock.
        self._untouched: object = None
        #: Stands in every log line of the attempt under way.
        self._number = ""
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._running: _Work | None = None
        self._noting = False
        #: Fingerprint of a login that could not be noted.
        self._noted = ""
        self._draining = False

    # --- judging ---------------------------------------------------------------------------------

    def state(self, sight: Sight) -> State:
        """What the login's access token is worth now."""
        login = sight.newest.login
        if login is None:
            return State.MISSING
        lifetime_ms = self._lifetime_ms(sight)
        early_ms = self._share * min(30_000, policy.windows(lifetime_ms).advisory_ms / 4)
        now_s = self._clock.now()
        judged = policy.state(login.expires_at_ms, lifetime_ms, now_s)
        if judged is State.FRESH and early_ms:
            judged = policy.state(login.expires_at_ms, lifetime_ms, now_s + early_ms / 1000)
            judged = State.STALE if judged is not State.FRESH else judged
        deadline = self._deadlines.get(login.access_token)
        if deadline is not None and judged is not State.EXPIRED:
            # The wall clock may have been set back since; boot time goes on, in suspend too.
            by_boot = policy.state(int(deadline * 1000), lifetime_ms, self.boottime())
            judged = max(judged, by_boot, key=_URGENCY.index)
        return judged

    def fresh_until(self, sight: Sight) -> tuple[float, float]:
        """Until when `state` is FRESH, by wall clock and by boot time; for who asks all the time.

        It stays right for this very `sight`: whatever else `state` looks at came before it.
        """
        login = sight.newest.login
        if login is None:
            return -math.inf, -math.inf
        advisory_s = policy.windows(self._lifetime_ms(sight)).advisory_ms / 1000
        early_s = self._share * min(30.0, advisory_s / 4)
        deadline = self._deadlines.get(login.access_token, math.inf)
        return login.expires_at_ms / 1000 - advisory_s - early_s, deadline - advisory_s

    def ability(self, sight: Sight) -> Ability:
        """Whether, and if not why, the login can be renewed."""
        login = sight.newest.login
        if login is not None and fingerprint(login.access_token) in (
            sight.journal.closed,
            self._closed,
        ):
            return Ability.TIER_CLOSED
        if login is None or not login.refresh_token:
            return Ability.NO_REFRESH_TOKEN
        fp = fingerprint(login.refresh_token)
        if fp in sight.journal.tombstones or fp in self._refused:
            return Ability.REJECTED
        return Ability.READ_ONLY if self.read_only else Ability.REFRESHABLE

    def _settled(self, sight: Sight, rejected: str | None) -> bool:
        """Whether there is nothing to do: somebody was faster."""
        login = sight.newest.login
        return (
            login is not None
            and login.access_token != rejected
            and self.state(sight) is State.FRESH
        )

    def _due(self, sight: Sight, rejected: str | None) -> bool:
        """Whether an attempt may be made now, as far as this and all other processes know."""
        login = sight.newest.login
        if login is None or self.ability(sight) not in (Ability.REFRESHABLE, Ability.READ_ONLY):
            return False
        if self._pausing(login) or self._just_gone(sight):
            return False
        now_ms = self._clock.now() * 1000
        backoff = sight.journal.backoff
        if backoff is not None and backoff.fp == fingerprint(login.refresh_token):
            # A pause that lies further ahead than the longest is a clock that was set back.
            left_ms = backoff.not_before_ms - now_ms
            if 0 < left_ms <= self._pace.longest_retry_s * 1000:
                return False
        if rejected is not None and self.state(sight) is State.FRESH:
            forced = sight.journal.forced_at_ms
            if forced is not None and 0 <= now_ms - forced < self._pause_s(sight) * 1000:
                return False
        return True

    def _pausing(self, login: CredentialDocument) -> bool:
        """Whether this process failed with this very login a moment ago."""
        fp, until_s = self._pause
        return self._clock.monotonic() < until_s and fp == fingerprint(login.refresh_token)

    def _just_gone(self, sight: Sight) -> bool:
        """Whether the file was deleted so lately that the journal's token may be in use elsewhere.

        Its successor is in the file then before long. Meanwhile the access token is still good.
        """
        return sight.is_gone and self.store.gone_s() < self._pace.gone_s

    def _wanted(self, sight: Sight, rejected: str | None) -> bool:
        """Whether there is something to do now: a rescued login to publish, or a renewal."""
        login = sight.newest.login
        if login is not None and sight.newest.unpublished and not self._pausing(login):
            return True
        return self._due(sight, rejected)

    def _lifetime_ms(self, sight: Sight) -> int | None:
        if sight.lifetime_ms is None and self._pace.lifetime_s is not None:
            return int(self._pace.lifetime_s * 1000)
        return sight.lifetime_ms

    def _pause_s(self, sight: Sight) -> float:
        """The shortest pause between two attempts; tests' tokens live seconds, real ones hours."""
        lifetime_ms = self._lifetime_ms(sight)
        return min(
            self._pace.retry_s, self._pace.retry_s if lifetime_ms is None else lifetime_ms / 8000
        )

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
            if self._draining or not self._wanted(self.store.look(), rejected):
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
            if self._noting or self._draining or not self._unnoted(self.store.look()):
                return
            self._noting = True
        try:
            threading.Thread(target=self._note, name="qwen-login-note", daemon=True).start()
        except RuntimeError:  # no more threads to be had; the next look tries again
            self._noting = False

    def _unnoted(self, sight: Sight) -> bool:
        """Whether the shared file holds a login of somebody else that the journal lacks."""
        login, received = sight.newest.login, sight.journal.received
        if login is None or not login.refresh_token or sight.newest.source != "shared":
            return False
        if sight.reading.value is not login or sight.reading.identity is None or self.read_only:
            return False
        if received is not None and received.login.refresh_token == login.refresh_token:
            return False
        fp = fingerprint(login.refresh_token)
        return fp not in sight.journal.tombstones and fp != self._noted

    def _note(self) -> None:
        fp = ""
        try:
            atomic.make_directory(self.store.paths.proxy_lock.parent)
            if not self.proxy_lock.acquire(_NOTE_S, give_up=lambda: self._draining):
                return
            try:
                sight = self.store.reload()
                login = sight.newest.login
                if login is None or sight.newest.source != "shared":
                    return
                fp = fingerprint(login.refresh_token)
                at_ms = int(self._clock.now() * 1000)
                seen = Received("", login, at_ms, None, forced=False, published=True)
                self.store.write_journal(replace(sight.journal, received=seen))
            finally:
                self.proxy_lock.release()
        except (OSError, Unusable) as error:
            # Not worth a state of its own: the next renewal finds out what is wrong, and says it.
            log.debug("login could not be noted login=%s: %s", self.store.shown, error)
            self._noted = fp
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

    def attempt(self, *, rejected: str | None = None) -> Attempt:
        """Make one attempt in this thread; never raises for what can go wrong outside."""
        number = self._number = secrets.token_hex(4)
        try:
            outcome, detail = self._locked(number, rejected)
        except Exception as error:  # a thread's top: nobody else would hear of it
            log.error("login refresh failed attempt=%s", number, exc_info=error)
            outcome, detail = Outcome.FAILED, type(error).__name__
        self.counters[f"refresh_total.{outcome.value}"] += 1
        attempt = Attempt(outcome, detail, int(self._clock.now() * 1000))
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
        sight = self.store.look()
        pause_s = self._pause_s(sight)
        if outcome is Outcome.LOCK_TIMEOUT and self._is_urgent(sight):
            pause_s = min(pause_s, self._pace.urgent_retry_s)
        if sight.newest.login is not None:
            self._hold_off(fingerprint(sight.newest.login.refresh_token), pause_s)

    def _hold_off(self, fp: str, pause_s: float) -> None:
        self._pause = fp, self._clock.monotonic() + pause_s

    def _is_urgent(self, sight: Sight) -> bool:
        return self.state(sight) in (State.EXPIRING, State.EXPIRED)

    def _locked(self, number: str, rejected: str | None) -> tuple[Outcome, str]:
        waited = False

        def settled() -> bool:
            nonlocal waited
            waited = True
            return self._draining or self._settled(self.store.look(), rejected)

        self.store.look()  # before our locks change the directory's date, see `gone_s`
        try:
            # With what is above it (QWEN_CLI_AUTH), and for root in the name of the file's owner.
            atomic.make_directory(self.store.paths.proxy_lock.parent)
            if not self.proxy_lock.acquire(self._pace.proxy_lock_s, give_up=settled):
                return self._without_lock("the proxy's own lock", rejected)
            try:
                self._checkpoint("alone")
                waited, before = False, self.store.look().reading.identity
                broken = self.counters["foreign_lock_broken_total"]
                if not self.cli_lock.acquire(self._pace.cli_lock_s, give_up=settled):
                    return self._without_lock("qwen-code's lock", rejected)
                try:
                    broken = self.counters["foreign_lock_broken_total"] - broken
                    if (
                        waited
                        and not broken
                        and self._is_untouched(before)
                        and not self._outwaited(rejected)
                    ):
                        return Outcome.NOT_SENT, "qwen-code let go of its lock, but may be at it"
                    return self._transaction(number, rejected)
                finally:
                    self.cli_lock.release()
            finally:
                self.proxy_lock.release()
        except OSError as error:
            return self._cannot_write(error)

    def _is_untouched(self, before: object) -> bool:
        """Whether somebody had qwen-code's lock and has not renewed the login; once per version.

        It found nothing to do, or another qwen-code that ended has removed its lock (see `locks`)
        and it still waits for an answer: then its token is spent.
        """
        identity = self.store.look().reading.identity
        if identity is None or identity != before or identity == self._untouched:
            return False
        self._untouched = identity
        return True

    def _outwaited(self, rejected: str | None) -> bool:
        """Give that answer some time: here while calls wait, else by a later attempt (False)."""
        sight = self.store.look()
        if not self._is_urgent(sight) and rejected is None:
            if sight.newest.login is not None:
                fp = fingerprint(sight.newest.login.refresh_token)
                self._hold_off(fp, self._pause_s(sight))
            return False
        end_s = self._clock.monotonic() + self._pace.urgent_retry_s
        while self._clock.monotonic() < end_s and not self._draining:
            if self._settled(self.store.look(), rejected):
                break
            self._sleep(locks.CLI_POLL_S)
        return True

    def _without_lock(self, what: str, rejected: str | None) -> tuple[Outcome, str]:
        if self._settled(self.store.look(), rejected):
            return Outcome.ADOPTED, "another process renewed it"
        if self._draining:
            return Outcome.NOT_SENT, "the process is stopping"
        return Outcome.LOCK_TIMEOUT, f"{what} was not to be had; nothing was sent"

    def _cannot_write(self, error: OSError) -> tuple[Outcome, str]:
        self.read_only = error.strerror or type(error).__name__
        what = "the disk is full" if error.errno in _NO_ROOM else self.read_only
        where = self.store.paths.document.parent
        return Outcome.READ_ONLY, f"{where} cannot be written ({what}); the token was not spent"

    # --- the transaction: both locks are held ----------------------------------------------------

    def _transaction(self, number: str, rejected: str | None) -> tuple[Outcome, str]:
        self._checkpoint("locked")
        for directory in {self.store.paths.document.parent, self.store.paths.journal.parent}:
            atomic.sweep(directory, now_s=self._clock.now())
        try:
            sight = self.store.reload()
        except Unusable as error:
            return Outcome.FAILED, f"the file {error}; nothing was sent"
        if restored := sight.newest.unpublished:
            sight = self._republish(sight)
        if self._settled(sight, rejected):
            if restored:
                return Outcome.OK, "a login that a crash had kept from the file was restored"
            return Outcome.ADOPTED, "another process renewed it"
        if not self._due(sight, rejected):
            return Outcome.NOT_DUE, "no attempt is due"
        login = sight.newest.login
        assert login is not None  # _due
        shared, ours = self.store.reserve(login)
        self.read_only = ""
        self._checkpoint("reserved")
        try:
            return self._exchange(_Step(number, rejected, sight, login, shared, ours))
        finally:
            shared.discard()
            ours.discard()

    def _republish(self, sight: Sight) -> Sight:
        """Write what a crash kept in the journal into the shared file, and look again."""
        login, received = sight.newest.login, sight.journal.received
        assert login is not None
        atomic.replace_file(self.store.paths.document, render(login.raw))
        self._checkpoint("published")
        if received is not None:
            published = replace(received, published=True)
            self.store.write_journal(replace(sight.journal, received=published))
        log.warning(
            "login restored from the journal login=%s attempt=%s", self.store.shown, self._number
        )
        return self.store.reload()

    def _exchange(self, step: _Step) -> tuple[Outcome, str]:
        """Spend the refresh token; at most twice, and only if the first answer was lost."""
        try:
            answer = self._send(step, self._pace.first_timeout_s)
        except Ambiguous as first:
            self._checkpoint("ambiguous")
            log.warning(
                "login refresh: the answer was lost, sending once more attempt=%s: %s",
                step.number,
                first,
            )
            try:
                answer = self._send(step, self._pace.second_timeout_s)
            except _Overtaken as second:
                return Outcome.ADOPTED, str(second)
            except Rejected as second:
                return self._rejected(step, second, lost=True)
            except OAuthFailure as second:
                # Whatever became of the second, the first may have been carried out.
                return self._back_off(step, Outcome.AMBIGUOUS, f"{first}; then: {second}")
        except _Overtaken as failure:
            return Outcome.ADOPTED, str(failure)
        except _Drained as failure:
            return Outcome.NOT_SENT, str(failure)
        except NotSent as failure:
            return self._back_off(step, Outcome.NOT_SENT, str(failure))
        except Rejected as failure:
            return self._rejected(step, failure, lost=False)
        except Throttled as failure:
            return self._back_off(
                step, Outcome.THROTTLED, str(failure), pause_s=failure.retry_after_s
            )
        except OAuthFailure as failure:
            return self._back_off(step, Outcome.REFUSED, str(failure))
        self._checkpoint("answered")
        return self._keep(step, answer)

    def _send(self, step: _Step, timeout_s: tuple[float, float]) -> TokenAnswer:
        return self._endpoint.refresh(
            step.login.refresh_token,
            timeout_s=timeout_s,
            before_send=lambda: self._intend(step),
        )

    def _intend(self, step: _Step) -> None:
        """The last moment before the token leaves: is it still ours to spend? Say so on disk."""
        if self._draining and not step.sent:
            raise _Drained("the process is stopping")
        # Also before the repetition: whoever has the lock now is about to send the same token.
        if not self.cli_lock.check():
            raise NotSent("qwen-code took its lock away")
        if self._replaced(step):
            raise _Overtaken("somebody else renewed the login meanwhile")
        intent = Intent(step.fp, os.getpid(), int(self._clock.now() * 1000), step.number)
        try:
            self.store.write_journal(replace(step.journal, intent=intent))
        except OSError as error:
            raise NotSent(f"the journal cannot be written ({error.strerror})") from error
        step.sent = True
        self._checkpoint("intent")

    def _replaced(self, step: _Step) -> bool:
        with suppress(OSError, Unusable):
            login = self.store.reload().newest.login
            return login is None or login.refresh_token != step.login.refresh_token
        return False

    def _keep(self, step: _Step, answer: TokenAnswer) -> tuple[Outcome, str]:
        """Make the answer durable: journal first, then the shared file, unless it moved on."""
        received = self._received(step, answer)
        self._deadlines = {received.login.access_token: answer.sent_boottime_s + answer.life_s}
        kept = Journal(
            received=received,
            tombstones=step.journal.tombstones,
            forced_at_ms=(
                int(self._clock.now() * 1000) if step.forced else step.journal.forced_at_ms
            ),
            spent=step.journal.spent,
        )
        if fingerprint(received.login.refresh_token) != step.fp:
            kept = kept.with_spent(step.fp, received.at_ms)
        # From here on this process knows it, whatever happens to the disk.
        self.store.held = received
        try:
            step.ours.publish(journal.render(kept))
        except OSError as error:
            if not step.ours.published and not self._rescue(step, kept, error):
                return Outcome.FAILED, "the new login could not be written before the stop"
        self._warn(answer)
        self._checkpoint("journaled")
        try:
            return self._publish(step, received, kept)
        except OSError as error:
            # The journal has it: all of us use it from there, and the next attempt publishes it.
            self.read_only = error.strerror or type(error).__name__
            self._hold_off(fingerprint(received.login.refresh_token), self._pause_s(step.sight))
            where = self.store.paths.document
            return Outcome.OK, f"in the journal only, {where} cannot be written ({self.read_only})"
        finally:
            self.store.held = None

    def _warn(self, answer: TokenAnswer) -> None:
        if answer.expires_in_s is None:
            log.warning(
                "the login service did not say how long its token is good, taken to be %.0f s "
                "attempt=%s",
                answer.life_s,
                self._number,
            )
        if answer.clock_skew_s is not None:
            log.warning(
                "the clock of %s differs from this machine's by %.0f s attempt=%s",
                self._endpoint.host,
                answer.clock_skew_s,
                self._number,
            )

    def _received(self, step: _Step, answer: TokenAnswer) -> Received:
        raw: dict[str, Any] = dict(step.login.raw)
        raw["access_token"] = answer.access_token
        raw["token_type"] = answer.token_type or step.login.token_type
        raw["expiry_date"] = answer.expires_at_ms
        if answer.refresh_token:
            raw["refresh_token"] = answer.refresh_token
        if answer.resource_url:
            raw["resource_url"] = answer.resource_url
        return Received(
            spent=step.fp,
            login=document.parse(render(raw), None),
            at_ms=answer.received_wall_ms,
            lifetime_ms=int(answer.life_s * 1000),
            forced=step.forced,
            published=False,
        )

    def _publish(self, step: _Step, received: Received, kept: Journal) -> tuple[Outcome, str]:
        """Compare and swap: the CLI's login takes no lock, and a login of somebody wins."""
        try:
            there = self.store.reload().reading.value
        except Unusable:
            there = None  # torn by somebody in place; ours is whole
        if there is not None and fingerprint(there.refresh_token) not in (
            step.fp,
            fingerprint(received.login.refresh_token),
        ):
            # Superseded for good: it must not come back when that login is deleted some day.
            self.store.write_journal(replace(kept, received=None))
            return Outcome.ADOPTED, "somebody logged in meanwhile, and their login is used"
        try:
            step.shared.publish(render(received.login.raw))
        except OSError:
            if not step.shared.published:
                raise
        self._checkpoint("published")
        with suppress(OSError):  # without it the next reader compares the two, and finds the same
            self.store.write_journal(replace(kept, received=replace(received, published=True)))
        self._checkpoint("finished")
        left_s = received.login.expires_at_ms / 1000 - self._clock.now()
        return Outcome.OK, f"valid for {left_s:.0f} s"

    def _rescue(self, step: _Step, kept: Journal, error: OSError) -> bool:
        """The new login exists in memory alone: serve it, and try until the journal takes it.

        Our lock stays held, so that no other worker spends the old token, which is dead; that of
        qwen-code is let go, because its heartbeat must not keep a CLI out for hours.

        Returns:
            False if the process stops before it worked.
        """
        self.unsaved = error.strerror or type(error).__name__
        log.error(
            "the new login cannot be written, keep this process alive! login=%s attempt=%s: %s",
            self.store.shown,
            step.number,
            self.unsaved,
        )
        self.cli_lock.release()
        if (running := self._running) is not None:
            running.told.set()  # they can go on: the new token is there
        while True:
            last_try = self._draining
            with suppress(OSError):
                if not step.ours.published:
                    step.ours.publish(journal.render(kept))
                break
            with suppress(OSError):  # where the room that was reserved went bad
                self.store.write_journal(kept)
                break
            if last_try:
                return False
            self._sleep(self._pace.rescue_s)
        self.unsaved = ""
        log.warning(
            "the new login is written now login=%s attempt=%s", self.store.shown, step.number
        )
        return True

    # --- when it did not work --------------------------------------------------------------------

    def _rejected(self, step: _Step, failure: Rejected, *, lost: bool) -> tuple[Outcome, str]:
        """The token is not good any more; first of all because somebody else may have spent it."""
        self._sleep(self._pace.rejected_pause_s)
        current = step.journal
        with suppress(OSError, Unusable):
            sight = self.store.reload()
            there = sight.newest.login
            if there is not None and there.refresh_token != step.login.refresh_token:
                return Outcome.ADOPTED, "another process had renewed it"
            current = sight.journal
        self._refused |= {step.fp}
        now_ms = int(self._clock.now() * 1000)
        with suppress(OSError):
            self.store.write_journal(
                replace(current, intent=None, backoff=None).with_tombstone(step.fp, now_ms)
            )
        why = f"the endpoint refused the refresh token ({failure})"
        if lost:
            why += "; the answer to the first sending was lost, and it was the login"
        elif (earlier := step.earlier) is not None:
            why += (
                f"; it had been sent before, by process {earlier.pid} at {_utc(earlier.at_ms)} "
                f"(attempt {earlier.attempt}), and the answer, which was the login, was lost in "
                "a crash or on the way"
            )
        return Outcome.REJECTED, why + ". A new login is needed"

    def _back_off(
        self, step: _Step, outcome: Outcome, detail: str, *, pause_s: float | None = None
    ) -> tuple[Outcome, str]:
        """Note for all workers until when no other attempt is to be made."""
        longest_s = self._pace.longest_retry_s
        before = step.journal.backoff
        failures = before.failures + 1 if before and before.fp == step.fp else 1
        if pause_s is None:
            pause_s = self._pause_s(step.sight) * 2 ** min(failures - 1, _DOUBLINGS)
            if outcome is Outcome.NOT_SENT and self._is_urgent(step.sight):
                pause_s = min(pause_s, self._pace.urgent_retry_s)
        pause_s = min(pause_s, longest_s)
        self._hold_off(step.fp, pause_s)
        now_ms = int(self._clock.now() * 1000)
        until_ms = now_ms + int(pause_s * 1000)
        backoff = Backoff(step.fp, failures, until_ms, outcome.value, now_ms)
        with suppress(OSError, Unusable):
            current = self.store.reload().journal
            # An answer that was lost stays on record until the token is known to be good or bad.
            intent = current.intent if outcome is Outcome.AMBIGUOUS else step.earlier
            self.store.write_journal(replace(current, backoff=backoff, intent=intent))
        return outcome, detail

    def forget(self) -> bool:
        """Remove the journal, for a deliberate logout; False if the lock was not to be had.

        Raises:
            OSError: it cannot be removed.
        """
        if not self.proxy_lock.acquire(PROXY_LOCK_S):
            return False
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.store.paths.journal)
        finally:
            self.proxy_lock.release()
        return True

    def close_tier(self, login: CredentialDocument) -> None:
        """Note, for all workers, that a token which a refresh brought is refused all the same."""
        closed = self._closed = fingerprint(login.access_token)
        if self.store.look().journal.closed == closed:
            return
        # Called by a request: whoever has the lock longer than this leaves it to the next one.
        with suppress(OSError, Unusable):
            if not self.proxy_lock.acquire(_NOTE_S, give_up=lambda: self._draining):
                return
            try:
                sight = self.store.reload()
                newest = sight.newest.login
                if (
                    newest is not None
                    and newest.access_token == login.access_token
                    and sight.journal.closed != closed
                ):
                    self.store.write_journal(replace(sight.journal, closed=closed))
                    log.warning(
                        "login refused by the API after a refresh, too; no more of them login=%s",
                        self.store.shown,
                    )
            finally:
                self.proxy_lock.release()

    def _lock_event(self, name: str, fields: Mapping[str, object] | None = None) -> None:
        self.counters[f"{name}_total"] += 1
        log.warning(
            "login lock event=%s login=%s attempt=%s %s",
            name,
            self.store.shown,
            self._number,
            dict(fields or {}),
        )


#: From least to most urgent.
_URGENCY: Final = (State.FRESH, State.STALE, State.EXPIRING, State.EXPIRED, State.MISSING)


class _Step:
    """What one transaction carries along."""

    def __init__(
        self,
        number: str,
        rejected: str | None,
        sight: Sight,
        login: CredentialDocument,
        shared: atomic.Reservation,
        ours: atomic.Reservation,
    ) -> None:
        self.number = number
        self.forced = rejected is not None and rejected == login.access_token
        self.sight = sight
        self.login = login
        self.shared = shared
        self.ours = ours
        self.fp = fingerprint(login.refresh_token)
        self.sent = False
        #: As it was under our lock, without a login that somebody else's has superseded: it must
        #: not come back when that one is deleted some day.
        self.journal = sight.journal
        received = sight.journal.received
        if (
            sight.newest.source == "shared"
            and received is not None
            and fingerprint(received.login.refresh_token) != self.fp
        ):
            self.journal = replace(self.journal, received=None)
        intent = sight.journal.intent
        #: An earlier sending of the same token, whose answer nobody wrote down.
        self.earlier = intent if intent is not None and intent.fp == self.fp else None


def _utc(at_ms: int) -> str:
    with suppress(OverflowError, ValueError, OSError):
        at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
        return f"{at:%Y-%m-%dT%H:%M:%SZ}"
    return "an impossible time"
