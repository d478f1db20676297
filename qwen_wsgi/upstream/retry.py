"""The attempts of one call: who is asked, what a failure teaches, when it is given up.

Everything before the first byte of an answer may be tried again, nothing after it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.errors import (
    AccountUnavailable,
    ApiError,
    Failure,
    Scope,
    forget_frames,
)
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.routing.cooldown import Board
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Candidate, Plan, Route, Router

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Upstream requests of one call.
MOST_ATTEMPTS: Final = 3
#: Pause before the same host is asked again after it failed; doubled with each attempt.
_BACKOFF_S: Final = 0.5
#: An account whose credential or billing is refused is left alone for this long.
_ACCOUNT_PAUSE_S: Final = 60.0


@dataclass
class Course:
    """What became of one call so far; for its log line and headers.

    Attributes:
        route: who was asked last.
        count: upstream requests that were begun, the repetition after a renewed login not counted.
        queued_s: seconds in queues and pauses.
        connect_s: what setting up the last connection took; 0.0 for one that was kept.
        first_at: monotonic time of the upstream's first event, or None.
        changed: what was changed of the request for the account that was asked last.
    """

    client: str = "-"
    route: Route | None = None
    count: int = 0
    queued_s: float = 0.0
    connect_s: float = 0.0
    first_at: float | None = None
    changed: tuple[str, ...] = ()
    without: set[str] = field(default_factory=set)
    first_error: ApiError | None = None


class Retrier:
    """Runs calls; keeps no state of its own but what it writes on the board."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        board: Board,
        clock: Clock,
        *,
        sleep: Callable[[float], None] = sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._budget_s = settings.retry_budget_s
        self._router = router
        self._board = board
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter

    def run(self, plan: Plan, ask: Callable[[Route, Slot], T], course: Course) -> T:
        """Ask until somebody answers.

        Args:
            ask: makes one attempt up to the first byte. When it returns, the place is its result's
                to leave; when it raises, it is left here.
            course: is kept up to date.

        Raises:
            ApiError: what the client is to be told.
        """
        try:
            return self._run(plan, ask, course)
        except ApiError as error:
            forget_frames(error)
            raise
        finally:
            course.first_error = None  # its frames hold the course

    def failed_late(self, route: Route, error: ApiError) -> None:
        """Learn from a failure after the first event, which cannot be tried again.

        What an upstream says of an account counts. That a stream broke does not: a server that
        restarts cuts all its streams at once, and may well answer the next call.
        """
        failure = classify.failure_of(error)
        if failure is not None and failure.scope is not Scope.UPSTREAM:
            self._learn(failure, route)

    def _run(self, plan: Plan, ask: Callable[[Route, Slot], T], course: Course) -> T:
        end_s = self._clock.monotonic() + self._budget_s
        while True:
            standing = self._next(plan, course, end_s)
            if standing is None:
                continue  # waited
            place = self._enter(standing.route, course, end_s)
            try:
                answer = ask(standing.route, place)
            except BaseException as error:
                place.leave()
                if not isinstance(error, ApiError):
                    raise
                forget_frames(error)
                self._after(error, plan, standing.route, course, end_s)
            else:
                self._worked(plan, standing.route)
                return answer

    def _next(self, plan: Plan, course: Course, end_s: float) -> Candidate | None:
        """The next route to ask; None after a wait for one."""
        standing = self._router.choose(plan, course.without)
        if standing is None:
            raise course.first_error or _nobody(plan)
        left_s = standing.blocked_s
        if left_s <= 0:
            return standing
        now_s = self._clock.monotonic()
        if now_s + left_s > end_s:
            raise course.first_error or self._left_alone(plan, standing)
        # Not all in the moment when it is free again.
        self._pause(left_s + self._jitter() * min(1.0, end_s - now_s - left_s), course)
        return None

    def _enter(self, route: Route, course: Course, end_s: float) -> Slot:
        started_s = self._clock.monotonic()
        gate = self._router.gate(route.account)
        try:
            place = gate.enter(course.client, max(0.0, end_s - started_s))
        finally:
            course.queued_s += self._clock.monotonic() - started_s
            course.route = route
        course.count += 1
        self._board.probing(self._router.keys(route.account).host)
        return place

    def _after(
        self, error: ApiError, plan: Plan, route: Route, course: Course, end_s: float
    ) -> None:
        """Learn from a failure, and get ready for the next attempt.

        Raises:
            ApiError: there is none.
        """
        name = route.account.name
        if isinstance(error, AccountUnavailable):
            # No request was made; another account may still answer.
            course.count -= 1
            course.without.add(name)
            course.first_error = course.first_error or error
            return
        failure = classify.failure_of(error)
        if failure is None:
            raise error
        self._learn(failure, route)
        if course.first_error is None or isinstance(course.first_error, AccountUnavailable):
            course.first_error = error
        if not (failure.retry or failure.elsewhere):
            raise error
        if course.count >= MOST_ATTEMPTS or self._clock.monotonic() >= end_s:
            raise course.first_error
        if not failure.retry:
            course.without.add(name)
        elif not failure.elsewhere or self._alone(plan, course, name):
            self._back_off(failure, course, end_s)
        elif failure.scope is not Scope.ACCOUNT_MODEL:
            course.without.add(name)  # the others first; with a throttle the board says so

    def _alone(self, plan: Plan, course: Course, name: str) -> bool:
        others = {route.account.name for route in plan.routes} - course.without - {name}
        return not others

    def _back_off(self, failure: Failure, course: Course, end_s: float) -> None:
        if failure.scope in (Scope.ACCOUNT_MODEL, Scope.ACCOUNT):
            return  # the board says for how long
        pause_s = _BACKOFF_S * 2.0 ** (course.count - 1) * (0.75 + 0.5 * self._jitter())
        if self._clock.monotonic() + pause_s > end_s and course.first_error is not None:
            raise course.first_error
        self._pause(pause_s, course)

    def _pause(self, seconds: float, course: Course) -> None:
        self._sleep(seconds)
        course.queued_s += seconds

    def _learn(self, failure: Failure, route: Route) -> None:
        """Tell all workers whom to leave alone."""
        keys, cause = self._router.keys(route.account), failure.cause
        pause_s = 0.0
        if failure.scope is Scope.ACCOUNT_MODEL:
            pause_s = self._board.leave_alone(keys.of_model(route.model), failure.wait_s, cause)
        elif failure.scope is Scope.ACCOUNT:
            wait_s = _ACCOUNT_PAUSE_S if failure.wait_s is None else failure.wait_s
            pause_s = self._board.leave_alone(keys.payer, wait_s, cause)
        elif failure.scope is Scope.UPSTREAM:
            pause_s = self._board.failed(keys.host, cause)
        if pause_s:
            log.warning(
                "account is left alone account=%s model=%s cause=%s seconds=%.1f",
                route.account.name,
                route.model if failure.scope is Scope.ACCOUNT_MODEL else "*",
                cause,
                pause_s,
            )

    def _worked(self, plan: Plan, route: Route) -> None:
        keys, board = self._router.keys(route.account), self._board
        if not board.is_clear:
            for key in (keys.payer, keys.of_model(route.model), keys.host):
                board.answered(key)
        if plan.conversation is not None:
            board.visit(plan.conversation, keys.own)

    def _left_alone(self, plan: Plan, standing: Candidate) -> ApiError:
        """Nobody may be asked for longer than the call may wait."""
        keys = self._router.keys(standing.route.account)
        noted = [keys.payer, keys.of_model(standing.route.model), keys.host]
        longest = max(noted, key=self._board.blocked_s)
        return classify.cooling_down(
            self._board.cause(longest), model=plan.model, wait_s=standing.blocked_s
        )


def _nobody(plan: Plan) -> ApiError:
    return AccountUnavailable(
        f"No account of this proxy can serve `{plan.model}` now.", code="no_usable_account"
    )
