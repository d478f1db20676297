"""The attempts of one call: which account is asked, what a failure teaches, when to give up.

Everything before the first byte of an answer may be tried again, nothing after it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import (
    AccountUnavailable,
    ApiError,
    Failure,
    Scope,
    UpstreamError,
    forget_frames,
)
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.failures.causes import PLAN_SPENT
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.cooldown import DOUBTED, REFUSED, Cooldowns
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.outcomes import Outcomes
from qwen_wsgi.upstream.routing.router import Candidate, Plan, Route, Router
from qwen_wsgi.upstream.routing.waiting import Waiting

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Upstream requests of one call.
MOST_ATTEMPTS: Final = 3
#: Pause before the same host is asked again after it failed; doubled with each attempt.
_BACKOFF_S: Final = 0.5
#: Causes of a failure after which no upstream has seen anything of the request.
_UNSENT: Final = frozenset({"unreachable", "connect_timeout", "tls", "proxy", "bad_url"})
#: What is left of a call's time is nothing.
_NO_TIME_S: Final = 0.001


@dataclass
class _Attempts:
    """The attempts of one call so far.

    Attributes:
        end_s: monotonic time after which nothing is begun.
        excluded: names of accounts that are not asked again.
        error: the first failure that tells the client something.
    """

    plan: Plan
    record: CallRecord
    end_s: float
    count: int = 0
    excluded: set[str] = field(default_factory=set)
    error: ApiError | None = None


class Retrier:
    """Makes attempts until one succeeds. Shared by all greenlets of a worker.

    Keeps no state but what it writes into cooldowns and affinity.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        pool: AccountPool,
        cooldowns: Cooldowns,
        affinity: Affinity,
        clock: Clock,
        *,
        outcomes: Outcomes | None = None,
        waiting: Waiting | None = None,
        sleep: Callable[[float], None] = sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """
        Args:
            outcomes: how attempts end is noted there; None makes one that nobody else sees.
            waiting: waits for the end of a pause; None makes the ordinary one.
        """
        self._budget_s = settings.retry_budget_s
        self._router = router
        self._pool = pool
        self._cooldowns = cooldowns
        self._affinity = affinity
        self._clock = clock
        self._outcomes = outcomes or Outcomes(None)
        self._waiting = waiting or Waiting(lambda: cooldowns.news)
        self._sleep = sleep
        self._jitter = jitter

    def run(
        self,
        plan: Plan,
        ask: Callable[[Route, Slot], T],
        record: CallRecord,
        *,
        discard: Callable[[T], None] = lambda answer: None,
    ) -> T:
        """Ask one account after the other until one answers.

        Args:
            ask: makes one attempt up to the first byte. The slot is released when it returns,
                unless it has kept it.
            record: `account`, `upstream_model`, `attempts` and `queued_s` are written to it.
            discard: frees an answer that is not returned after all.

        Raises:
            ApiError: the client's error.
        """
        if record.budget is not None:
            record.budget.reserve()
        attempts = _Attempts(plan, record, self._clock.monotonic() + self._budget_s)
        try:
            while True:
                begun = self._at_once(attempts) or self._in_steps(attempts)
                if begun is None:
                    continue  # waited for a cooldown
                route, slot = begun
                try:
                    answer = ask(route, slot)
                except ApiError as error:
                    slot.release()
                    forget_frames(error)
                    if not _has_reached(error):
                        record.count_request(route.account.name, -1)
                        if record.budget is not None:
                            record.budget.unsent()
                    self._failed(error, route, slot.began, attempts)
                    continue
                except BaseException:
                    slot.release()
                    raise
                finally:
                    if slot.probed:
                        self._cooldowns.end_probe(slot.probed)
                if not slot.kept:
                    slot.release()
                try:
                    self._succeeded(plan, route, slot.began)
                except BaseException:
                    discard(answer)
                    raise
                return answer
        except ApiError as error:
            self._tell_when(error, plan)
            forget_frames(error)
            raise
        finally:
            attempts.error = None  # its frames hold the attempts

    def failed_late(self, plan: Plan, route: Route, began: float, error: ApiError) -> None:
        """Learn from a failure after the first event, which cannot be tried again.

        What an upstream reports about an account counts. That a stream broke does not: a server
        that restarts cuts all its streams at once, and may well answer the next call.

        Args:
            began: when the attempt began, by `Cooldowns.now`.
        """
        failure = error.failure if isinstance(error, UpstreamError) else None
        if failure is not None and failure.scope is not Scope.UPSTREAM:
            self._outcomes.failed(route.account, error)
            self._learn(failure, plan, route, began)
            self._learn_of_plan(error, route)

    def _at_once(self, attempts: _Attempts) -> tuple[Route, Slot] | None:
        """The only route of a plan, and a slot of its account, as mostly: no pause is recorded,
        no plan's windows are known, and a slot is free. Else None, and nothing was done."""
        routes, pool = attempts.plan.routes, self._pool
        if len(routes) > 1 or attempts.excluded or pool.plans.seen:
            return None
        began = self._cooldowns.now()
        if not self._cooldowns.is_clear_at(began):
            return None
        route = routes[0]
        slot = pool.limiter(route.account).take()
        if slot is None:
            return None
        slot.began = began
        try:
            self._begin(route, attempts)
        except BaseException:
            slot.release()
            raise
        return route, slot

    def _in_steps(self, attempts: _Attempts) -> tuple[Route, Slot] | None:
        """The next route to ask, and a slot of its account; None after a wait for one.

        Raises:
            ApiError: there is none that can be asked within the call's budget.
        """
        candidate = self._next(attempts)
        if candidate is None:
            return None
        slot = self._acquire(candidate.route, attempts)
        return None if slot is None else (candidate.route, slot)

    def _next(self, attempts: _Attempts) -> Candidate | None:
        """The next route to ask; None after a wait for one.

        Raises:
            ApiError: there is none that can be asked within the call's budget.
        """
        candidate = self._router.choose(attempts.plan, attempts.excluded)
        if candidate is None:
            raise attempts.error or _none_left(attempts.plan)
        if candidate.cooldown_s <= 0:
            return candidate
        seen = self._cooldowns.news
        # Once more: what changes from here on ends the wait.
        candidate = self._router.choose(attempts.plan, attempts.excluded) or candidate
        left_s, budget_s = candidate.cooldown_s, attempts.end_s - self._clock.monotonic()
        route = candidate.route
        if self._pool.is_probed(route.account, route.model):
            # Its end is not known: the probe's answer may come at any moment.
            left_s = min(left_s, budget_s)
        if left_s > budget_s or budget_s < _NO_TIME_S:
            raise attempts.error or self._cooling_down(attempts.plan, candidate)
        # With jitter: not all waiting calls at once.
        spare_s = min(1.0, budget_s - left_s)
        self._wait(left_s + self._jitter() * spare_s, seen, attempts)
        return None

    def _acquire(self, route: Route, attempts: _Attempts) -> Slot | None:
        """Take a slot of the account; None if it began to cool down meanwhile."""
        record, account = attempts.record, route.account
        started_s = self._clock.monotonic()
        record.is_queued = True
        try:
            slot = self._pool.limiter(account).acquire(
                record.client_id, max(0.0, attempts.end_s - started_s)
            )
        finally:
            record.is_queued = False
            record.queued_s += self._clock.monotonic() - started_s
            # Also of a call that gets no slot.
            record.account, record.upstream_model = account.name, route.model
            record.half_price = account.batch_wait_s is not None
        cooldowns = self._cooldowns
        try:
            slot.began = cooldowns.now()
            if not cooldowns.is_clear_at(slot.began):
                if self._pool.cooldown_s(account, route.model) > 0:
                    slot.release()
                    return None
                host = self._pool.keys(account).host
                slot.probed = host if cooldowns.begin_probe(host) else b""
            self._begin(route, attempts)
        except BaseException:
            slot.release()
            if slot.probed:
                cooldowns.end_probe(slot.probed)
            raise
        return slot

    def _begin(self, route: Route, attempts: _Attempts) -> None:
        """Count an attempt, for the log, the account's plan and the client's limits."""
        record, account = attempts.record, route.account
        record.account, record.upstream_model = account.name, route.model
        record.half_price = account.batch_wait_s is not None
        attempts.count += 1
        record.attempts += 1
        record.count_request(account.name)
        if self._pool.plans.seen:
            self._pool.plans.began(account.name)
        if record.budget is not None:
            record.budget.sent()

    def _failed(self, error: ApiError, route: Route, began: float, attempts: _Attempts) -> None:
        """Learn from a failed attempt, and get ready for the next one.

        Raises:
            ApiError: there is no next one.
        """
        name = route.account.name
        if isinstance(error, AccountUnavailable):
            # No request was made; another account may still answer.
            attempts.count -= 1
            attempts.record.attempts -= 1
            attempts.excluded.add(name)
            attempts.error = attempts.error or error
            return
        failure = error.failure if isinstance(error, UpstreamError) else None
        if failure is None:
            raise error
        attempts.record.failures += ((name, failure.cause),)
        if not failure.at_once:  # else nobody has answered, and nobody has failed
            self._outcomes.failed(route.account, error)
            self._learn(failure, attempts.plan, route, began)
            self._learn_of_plan(error, route)
        if attempts.error is None or isinstance(attempts.error, AccountUnavailable):
            attempts.error = error
        if not (failure.retry or failure.elsewhere):
            raise error
        late = self._clock.monotonic() >= attempts.end_s and not failure.at_once
        if attempts.count >= MOST_ATTEMPTS or late:
            raise attempts.error
        if failure.at_once:
            return
        if not failure.retry:
            attempts.excluded.add(name)
        elif not failure.elsewhere or self._is_last(name, attempts):
            self._back_off(failure, attempts)
        elif failure.scope is not Scope.ACCOUNT_MODEL:
            attempts.excluded.add(name)  # the others first; after a throttle its cooldown says so

    def _is_last(self, name: str, attempts: _Attempts) -> bool:
        """Whether no other account is left to ask."""
        return self._router.choose(attempts.plan, {*attempts.excluded, name}) is None

    def _back_off(self, failure: Failure, attempts: _Attempts) -> None:
        if failure.scope in (Scope.ACCOUNT_MODEL, Scope.ACCOUNT):
            return  # the cooldown says for how long
        pause_s = _BACKOFF_S * 2.0 ** (attempts.count - 1) * (0.75 + 0.5 * self._jitter())
        if self._clock.monotonic() + pause_s > attempts.end_s and attempts.error is not None:
            raise attempts.error
        self._pause(pause_s, attempts)

    def _pause(self, seconds: float, attempts: _Attempts) -> None:
        attempts.record.is_queued = True
        try:
            self._sleep(seconds)
        finally:
            attempts.record.is_queued = False
        attempts.record.queued_s += seconds

    def _wait(self, seconds: float, seen: float, attempts: _Attempts) -> None:
        """Wait for so long, or until a pause has ended before its time."""
        started_s = self._clock.monotonic()
        attempts.record.is_queued = True
        try:
            self._waiting.wait(seconds, seen)
        finally:
            attempts.record.is_queued = False
            attempts.record.queued_s += self._clock.monotonic() - started_s

    def _learn(self, failure: Failure, plan: Plan, route: Route, began: float) -> None:
        """Record what a failure means for the calls to come, for all workers."""
        keys, cause, cooldowns = self._pool.keys(route.account), failure.cause, self._cooldowns
        evidence = plan.evidence() if failure.doubtful and plan.evidence is not None else None
        pause_s = 0.0
        if failure.scope is Scope.UPSTREAM:
            pause_s = cooldowns.record_failure(keys.host, cause, began=began, evidence=evidence)
        else:
            cooldowns.clear(keys.host)  # it answers
        if failure.scope is Scope.ACCOUNT_MODEL:
            key = keys.of_model(route.model)
            if failure.doubtful:
                pause_s = cooldowns.record_failure(
                    key, cause, began=began, evidence=evidence, steps=DOUBTED
                )
            else:
                pause_s = cooldowns.set_cooldown(key, failure.wait_s, cause, began=began)
        elif failure.scope is Scope.ACCOUNT:
            pause_s = cooldowns.set_cooldown(
                keys.payer, failure.wait_s, cause, began=began, steps=REFUSED
            )
        if pause_s:
            log.warning(
                "account is cooling down account=%s model=%s cause=%s seconds=%.1f%s",
                route.account.name,
                route.model if failure.scope is Scope.ACCOUNT_MODEL else "*",
                cause,
                pause_s,
                f": {failure.remedy}" if failure.remedy else "",
            )

    def _learn_of_plan(self, error: ApiError, route: Route) -> None:
        """Note that a plan's window is spent, if its vendor says until when."""
        if not isinstance(error, UpstreamError) or (failure := error.failure) is None:
            return
        if failure.cause == PLAN_SPENT and failure.reset_s:
            self._pool.plans.told(route.account.name, error.upstream_message, failure.reset_s)

    def _succeeded(self, plan: Plan, route: Route, began: float) -> None:
        self._outcomes.answered(route.account)
        cooldowns, conversation = self._cooldowns, plan.conversation
        if conversation is None and cooldowns.is_clear_at(began):
            return  # as mostly
        keys = self._pool.keys(route.account)
        if not cooldowns.is_clear:
            cooldowns.clear(keys.host)
            # What began before the account was told to wait says nothing of it.
            for key in (keys.payer, keys.of_model(route.model)):
                cooldowns.clear(key, began=began)
        if conversation is not None:
            self._affinity.remember(conversation, keys.own)

    def _tell_when(self, error: ApiError, plan: Plan) -> None:
        """Say in a failure of accounts when the first of them may be asked again."""
        is_clear = self._cooldowns.is_clear and not self._pool.plans.seen
        if is_clear or not _is_of_accounts(error):
            return
        candidate = self._router.choose(plan, set())
        if candidate is not None and candidate.cooldown_s > 0:
            route = candidate.route
            _, _, longer_s = self._pool.why_paused(route.account, route.model)
            error.retry_after_s = max(candidate.cooldown_s, longer_s)

    def _cooling_down(self, plan: Plan, candidate: Candidate) -> ApiError:
        """The error where every account cools down for longer than the call may wait."""
        account: Account = candidate.route.account
        cause, why, longer_s = self._pool.why_paused(account, candidate.route.model)
        wait_s = max(candidate.cooldown_s, longer_s)
        return classify.cooling_down(cause, model=plan.model, wait_s=wait_s, why=why)


def ask_no_more(error: UpstreamError, note: str = "") -> None:
    """Have a request not sent again by us; with a note also not by the client.

    Args:
        note: what is said behind the error's own message, of what may have been done already.
    """
    if error.failure is not None:
        error.failure = replace(error.failure, retry=False, elsewhere=False)
    if note:
        error.message += note
        error.should_retry = False


def _is_of_accounts(error: ApiError) -> bool:
    """Whether a failure is one of the accounts, and not of the request."""
    if isinstance(error, UpstreamError):
        return error.failure is not None and error.failure.scope is not Scope.REQUEST
    return isinstance(error, AccountUnavailable)


def _has_reached(error: ApiError) -> bool:
    """Whether an attempt that failed has reached an upstream."""
    failure = error.failure if isinstance(error, UpstreamError) else None
    return failure is not None and failure.cause not in _UNSENT


def _none_left(plan: Plan) -> ApiError:
    return AccountUnavailable(
        f"No account of this proxy can serve `{plan.model}` now.", code="no_usable_account"
    )
