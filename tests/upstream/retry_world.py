"""Attempts at accounts whose answers a test scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import (
    ApiError,
    Failure,
    Scope,
    UpstreamError,
)
from qwen_wsgi.state.shared_files import key_of
from qwen_wsgi.upstream.retry import Retrier
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.catalogue import Listing
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Plan, Route, Router
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import account_of, pool_of, settings_of


def raised(world: World, *outcomes: ApiError | str, takes_s: float = 0.0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        world.run(*outcomes, takes_s=takes_s)
    return caught.value


LISTING = Listing({"m": {"id": "m"}}, live=True)


class FakeCatalogue:
    def listing_for_call(self, account: Account) -> Listing:
        return LISTING


class World:
    """Attempts at some accounts whose answers a test scripts; time goes on in pauses only."""

    def __init__(self, *names: str, **environ: object) -> None:
        self.clock = FakeClock()
        self.cooldowns = Cooldowns(None, boottime=self.clock.monotonic)
        self.affinity = Affinity(None, boottime=self.clock.monotonic)
        settings = settings_of(**{"QWEN_PROXY_WORKERS": 1, **environ})
        accounts = [account_of(name, base_url=f"https://{name}.example/v1") for name in names]
        self.pool = pool_of(*accounts, settings=settings, cooldowns=self.cooldowns)
        catalogue: Any = FakeCatalogue()
        self.router = Router(settings, self.pool, catalogue, self.affinity)
        self.pauses: list[float] = []
        #: What happens while a call waits for the end of a pause.
        self.on_wait: Callable[[], None] = lambda: None
        waiting: Any = self
        self.retrier = Retrier(
            settings,
            self.router,
            self.pool,
            self.cooldowns,
            self.affinity,
            self.clock,
            waiting=waiting,
            sleep=self.sleep,
            jitter=lambda: 0.5,
        )
        self.asked: list[str] = []
        self.record = CallRecord(client="client")

    def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 2))
        self.clock.advance(seconds)

    def wait(self, seconds: float, seen: float) -> None:
        """In place of `Waiting`."""
        self.sleep(seconds)
        self.on_wait()

    def plan(self, conversation: str | None = None, evidence: bytes | None = None) -> Plan:
        return self.router.plan(
            "m",
            conversation=None if conversation is None else lambda: key_of(conversation),
            evidence=None if evidence is None else lambda: evidence,
        )

    def run(
        self,
        *outcomes: ApiError | str | Callable[[], None],
        takes_s: float = 0.0,
        plan: Plan | None = None,
    ) -> str:
        """One call; `outcomes` are those of its attempts in turn."""
        left = list(outcomes)
        self.asked = []
        self.record = CallRecord(client="client")

        def ask(route: Route, slot: Slot) -> str:
            self.asked.append(route.account.name)
            self.clock.advance(takes_s)
            outcome = left.pop(0)
            if isinstance(outcome, ApiError):
                raise outcome
            return f"{outcome} by {route.account.name}"

        try:
            return self.retrier.run(plan or self.plan(), ask, self.record)
        finally:
            assert all(
                self.pool.limiter(route.account).in_flight == 0 for route in self.plan().routes
            )


def failure(
    scope: Scope = Scope.UPSTREAM,
    *,
    retry: bool = True,
    elsewhere: bool = True,
    wait_s: float | None = None,
    cause: str = "some_cause",
    doubtful: bool = False,
    at_once: bool = False,
) -> UpstreamError:
    return UpstreamError(
        f"It failed: {cause}.",
        status=429 if scope is Scope.ACCOUNT_MODEL else 502,
        code=cause,
        failure=Failure(cause, scope, retry, elsewhere, wait_s, doubtful=doubtful, at_once=at_once),
    )


def throttled(wait_s: float | None = None) -> UpstreamError:
    return failure(Scope.ACCOUNT_MODEL, wait_s=wait_s, cause="rate_limited")
