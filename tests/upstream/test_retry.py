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
from qwen_wsgi.upstream.routing.cooldown import BREAKS_AT, BROKEN
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Route
from tests.upstream.retry_world import World, failure, throttled


def raised(
    world: World,
    *outcomes: ApiError | str,
    takes_s: float = 0.0,
    evidence: bytes | None = None,
) -> ApiError:
    with pytest.raises(ApiError) as caught:
        world.run(*outcomes, takes_s=takes_s, plan=world.plan(evidence=evidence))
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


def test_requests_are_counted_at_the_account_that_they_reached() -> None:
    world = World("a", "b", "c")
    unreached = failure(cause="unreachable")
    assert world.run(unreached, failure(Scope.ACCOUNT), "ok") == "ok by c"
    assert world.record.attempts == 3
    assert world.record.requests == {"a": 0, "b": 1, "c": 1}


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


class TestIncidents:
    """One incident costs one pause, and calls go on as soon as it is over."""

    def test_what_was_under_way_when_the_pause_was_set_does_not_lengthen_it(self) -> None:
        world = World("a")
        (route,) = world.plan().routes
        began = world.cooldowns.now()
        world.clock.advance(0.5)
        for _ in range(12):
            world.retrier.failed_late(world.plan(), route, began, throttled())
        assert world.run("ok") == "ok by a"
        assert world.pauses == [1.5], "one second, and not 59"

    def test_a_call_that_waited_for_a_place_meanwhile_waits_for_the_pause_as_well(self) -> None:
        world = World("a", QWEN_PROXY_ACCOUNT_IN_FLIGHT=1)
        (route,) = world.plan().routes
        limiter = world.pool.limiter(route.account)
        acquire = limiter.acquire

        def throttled_meanwhile(client: str, timeout_s: float) -> Slot:
            limiter.acquire = acquire  # type: ignore[method-assign]  # once
            del limiter.take
            world.retrier.failed_late(world.plan(), route, world.cooldowns.now(), throttled(2))
            return acquire(client, timeout_s)

        limiter.acquire = throttled_meanwhile  # type: ignore[method-assign]  # see above
        limiter.take = lambda: None  # type: ignore[method-assign]  # the place is taken
        assert world.run("ok") == "ok by a"
        assert (world.asked, world.pauses) == (["a"], [2.5])
        assert world.record.attempts == 1

    def test_a_call_waits_for_a_probe_as_long_as_it_may(self) -> None:
        """It is not refused because the probe might take longer than the call has time."""
        world = open_circuit(QWEN_PROXY_RETRY_BUDGET=3)
        (route,) = world.plan().routes
        host = world.pool.keys(route.account).host
        assert world.cooldowns.begin_probe(host)
        world.on_wait = lambda: world.cooldowns.clear(host)
        assert world.run("ok") == "ok by a"
        assert world.pauses == [3.0], "the probe's answer ends it"

        world = open_circuit(QWEN_PROXY_RETRY_BUDGET=3)
        assert world.cooldowns.begin_probe(host)
        assert raised(world).code == "upstream_unavailable"
        assert world.asked == []

    @pytest.mark.parametrize(
        "ends",
        [
            failure(Scope.REQUEST, retry=False, elsewhere=False),
            AccountUnavailable("The login expired.", code="credentials_expired"),
            ApiError("Our own fault."),
            ClientGone(),
        ],
        ids=["refused", "no credential", "own", "client gone"],
    )
    def test_a_probe_that_tells_nothing_leaves_it_to_the_next_call(
        self, ends: BaseException
    ) -> None:
        world = open_circuit()

        def ask(route: Route, slot: Slot) -> str:
            assert slot.probed
            raise ends

        with pytest.raises(type(ends)):
            world.retrier.run(world.plan(), ask, CallRecord())
        assert world.run("ok") == "ok by a"
        assert world.pauses == []

    def test_a_client_that_is_refused_is_told_when_to_come_back(self) -> None:
        world = World("a", QWEN_PROXY_RETRY_BUDGET=2)
        for _ in range(5):
            with pytest.raises(ApiError):
                world.run(*3 * [throttled()])
            world.clock.advance(60)
        error = raised(world, *3 * [throttled()])
        left_s = world.pool.cooldown_s(world.plan().routes[0].account, "m")
        assert left_s > 5
        assert error.retry_after_s == pytest.approx(left_s)
        assert raised(world).retry_after_s == pytest.approx(left_s)
        world.clock.advance(left_s)
        assert world.run("ok") == "ok by a"

    def test_the_account_that_is_free_first_counts(self) -> None:
        world = World("a", "b")
        spent = failure(Scope.ACCOUNT, retry=False, wait_s=3600)
        assert raised(world, spent, throttled(40)).retry_after_s == pytest.approx(40)


class TestDoubt:
    """What may be the fault of one request keeps nobody away."""

    def test_a_request_that_always_fails_closes_no_host(self) -> None:
        world = World("a")
        for _ in range(20):
            with pytest.raises(ApiError):
                world.run(*3 * [doubtful()], plan=world.plan(evidence=b"talkodd1"))
        world.pauses.clear()
        assert world.run("ok") == "ok by a"
        assert world.pauses == []

    def test_a_refusal_of_one_request_closes_no_model(self) -> None:
        world = World("a")
        denied = failure(Scope.ACCOUNT_MODEL, retry=False, cause="denied", doubtful=True)
        for _ in range(20):
            assert raised(world, denied, evidence=b"talkodd1") is denied
        assert world.run("ok") == "ok by a"
        assert raised(world, denied, evidence=b"talkodd1") is denied
        assert raised(world, denied, evidence=b"tal2odd2") is denied
        assert 0 < world.pool.cooldown_s(world.plan().routes[0].account, "m") < 30

    def test_different_conversations_close_a_host(self) -> None:
        world = World("a", QWEN_PROXY_RETRY_BUDGET=0)
        for number in range(BREAKS_AT):
            assert world.pool.cooldown_s(world.plan().routes[0].account, "m") == 0
            raised(world, doubtful(), evidence=b"tal%d" % number + b"req%d" % number)
        assert world.pool.cooldown_s(world.plan().routes[0].account, "m") == BROKEN.first_s

    def test_an_answer_of_any_kind_shows_that_the_host_is_up(self) -> None:
        world = World("a", QWEN_PROXY_RETRY_BUDGET=0)
        for number in range(3 * BREAKS_AT):
            raised(world, failure() if number % 2 else failure(Scope.ACCOUNT_MODEL, wait_s=0))
        assert world.run("ok") == "ok by a"


def test_a_lost_connection_is_replaced_at_once_and_counts_as_an_attempt() -> None:
    world = World("a", "b", QWEN_PROXY_RETRY_BUDGET=0)
    lost = failure(Scope.REQUEST, cause="closed", at_once=True)
    assert world.run(lost, lost, "ok") == "ok by a"
    assert (world.record.attempts, world.pauses) == (3, [])
    assert raised(world, lost, lost, lost) is lost
    assert world.run("ok") == "ok by a", "nobody is left alone for it"
    host = world.pool.keys(world.plan().routes[0].account).host
    world.cooldowns.record_failure(host, "timeout")
    raised(world, lost, lost, lost)
    assert world.cooldowns.failures(host) == 1, "and it is no answer of the host"


def open_circuit(**environ: object) -> World:
    """One account whose host failed, and may be probed now."""
    world = World("a", **environ)
    host = world.pool.keys(world.plan().routes[0].account).host
    for _ in range(BREAKS_AT):
        world.cooldowns.record_failure(host, "timeout")
    world.clock.advance(BROKEN.first_s)
    return world


def doubtful() -> ApiError:
    return failure(cause="internal_error", doubtful=True)
