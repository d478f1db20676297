"""Who is asked after a failure, how long a call waits, and when it is given up."""

from __future__ import annotations

import pytest

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import (
    AccountUnavailable,
    ApiError,
    ClientGone,
    Scope,
    UpstreamTimeout,
)
from qwen_wsgi.upstream.retry import MOST_ATTEMPTS
from qwen_wsgi.upstream.routing.cooldown import BREAKS_AT
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Route
from tests.upstream.retry_world import World, failure, throttled


def raised(world: World, *outcomes: ApiError | str, takes_s: float = 0.0) -> ApiError:
    with pytest.raises(ApiError) as caught:
        world.run(*outcomes, takes_s=takes_s)
    return caught.value


def test_a_good_answer_costs_one_attempt() -> None:
    world = World("a", "b")
    assert world.run("ok") == "ok by a"
    assert (world.record.attempts, world.record.queued_s, world.pauses) == (1, 0.0, [])
    assert (world.record.account, world.record.upstream_model) == ("a", "m")


@pytest.mark.parametrize("scope", [Scope.UPSTREAM, Scope.ACCOUNT, Scope.ACCOUNT_MODEL])
def test_what_another_account_may_answer_goes_there_at_once(scope: Scope) -> None:
    world = World("a", "b")
    assert world.run(failure(scope), "ok") == "ok by b"
    assert (world.asked, world.pauses, world.record.attempts) == (["a", "b"], [], 2)


def test_a_fault_of_the_request_goes_straight_back() -> None:
    world = World("a", "b")
    fault = failure(Scope.REQUEST, retry=False, elsewhere=False)
    assert raised(world, fault) is fault
    assert world.asked == ["a"]
    assert world.run("ok") == "ok by a", "nobody is left alone for it"


def test_what_no_retry_helps_is_not_tried_again() -> None:
    world = World("a")
    spent = failure(Scope.ACCOUNT, retry=False, wait_s=3600)
    assert raised(world, spent) is spent
    assert world.asked == ["a"]


def test_one_account_is_asked_again_after_a_growing_pause() -> None:
    world = World("a")
    assert world.run(failure(), failure(), "ok") == "ok by a"
    assert world.pauses == [0.5, 1.0]
    assert world.record.queued_s == 1.5


def test_what_only_this_account_can_answer_is_asked_of_it_again() -> None:
    world = World("a", "b")
    conflict = failure(Scope.REQUEST, elsewhere=False)
    assert world.run(conflict, "ok") == "ok by a"


def test_there_are_so_many_attempts_and_no_more() -> None:
    world = World("a")
    first = failure(cause="first")
    assert raised(world, first, failure(), failure(), "never") is first
    assert len(world.asked) == MOST_ATTEMPTS == 3


def test_a_throttled_account_is_waited_for_within_the_budget() -> None:
    world = World("a")
    assert world.run(throttled(4), "ok") == "ok by a"
    assert world.pauses == [4.5], "a little later than it was told"


def test_a_throttle_that_outlasts_the_budget_is_told_at_once() -> None:
    world = World("a")
    error = raised(world, throttled(31))
    assert (error.code, world.pauses) == ("rate_limited", [])

    later = raised(world)
    assert world.asked == [], "nobody is asked meanwhile"
    assert later.status == 429
    assert later.retry_after_s == pytest.approx(31)
    world.clock.advance(31)
    assert world.run("ok") == "ok by a"


def test_a_long_attempt_uses_up_the_budget() -> None:
    world = World("a", "b")
    raised(world, UpstreamTimeout("silent", failure=failure().failure), takes_s=31)
    assert world.asked == ["a"]


def test_without_a_budget_there_is_one_attempt() -> None:
    world = World("a", "b", QWEN_PROXY_RETRY_BUDGET=0)
    raised(world, failure())
    assert world.asked == ["a"]


def test_an_account_without_a_credential_is_passed_over_and_counts_no_attempt() -> None:
    world = World("a", "b")
    missing = AccountUnavailable("The login expired.", code="credentials_expired")
    assert world.run(missing, "ok") == "ok by b"
    assert world.record.attempts == 1
    assert raised(world, missing, missing) is missing
    busy = failure(Scope.REQUEST, retry=False, elsewhere=False)
    assert raised(world, missing, busy) is busy


def test_the_preferred_accounts_error_is_told() -> None:
    world = World("a", "b", "c")
    mine = failure(Scope.ACCOUNT_MODEL, retry=False, cause="plan_window_spent", wait_s=99)
    others = failure(Scope.ACCOUNT_MODEL, retry=False, cause="model_not_found", wait_s=99)
    assert raised(world, mine, others, others) is mine


def test_hosts_that_keep_failing_are_left_alone_then_probed_by_one_call() -> None:
    world = World("a", QWEN_PROXY_RETRY_BUDGET=1)
    for _ in range(BREAKS_AT):
        with pytest.raises(ApiError):
            world.run(*[failure(cause="timeout")] * 3)
    assert raised(world).status in (502, 503, 504)
    assert world.asked == []
    world.clock.advance(60)
    seen = []

    def probe() -> None:
        seen.append(world.router.choose(world.plan(), set()))

    def ask(route: Route, slot: Slot) -> str:
        probe()
        return "ok"

    assert world.retrier.run(world.plan(), ask, CallRecord()) == "ok"
    (during,) = seen
    assert during is not None
    assert during.cooldown_s > 0, "others keep away while one asks"
    after = world.router.choose(world.plan(), set())
    assert after is not None
    assert after.cooldown_s == 0


def test_a_conversation_stays_with_who_answered_it() -> None:
    world = World("a", "b")
    world.run(throttled(5), "ok", plan=world.plan("talk"))
    world.clock.advance(10)
    assert world.run("ok", plan=world.plan("talk")) == "ok by b"
    assert world.run("ok", plan=world.plan("another")) == "ok by a"


def test_a_client_that_goes_away_leaves_its_place() -> None:
    world = World("a")

    def ask(route: Route, slot: Slot) -> str:
        raise ClientGone

    with pytest.raises(ClientGone):
        world.retrier.run(world.plan(), ask, CallRecord())
    assert world.pool.limiter(world.plan().routes[0].account).in_flight == 0
    assert world.run("ok") == "ok by a", "which says nothing of the account"


def test_an_answer_keeps_its_place_until_it_is_closed() -> None:
    world = World("a", QWEN_PROXY_ACCOUNT_IN_FLIGHT=1, QWEN_PROXY_ACCOUNT_QUEUE=0)
    slot = world.retrier.run(world.plan(), lambda route, slot: slot.keep(), CallRecord())
    with pytest.raises(ApiError) as caught:
        world.retrier.run(world.plan(), lambda route, slot: slot, CallRecord())
    assert caught.value.status == 503
    slot.release()
    world.retrier.run(world.plan(), lambda route, slot: slot, CallRecord())
    assert world.run("ok") == "ok by a", "a slot that is not kept is free after the attempt"
