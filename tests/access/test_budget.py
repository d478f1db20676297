"""What one call takes of its client's limits, and what the client is told."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from qwen_wsgi.access.budget import Budget, Budgets, duration, refusal
from qwen_wsgi.access.guard import Client
from qwen_wsgi.access.limits import Calendar, Limits, Refused
from qwen_wsgi.errors import LimitReached
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.state.limits.counters import LimitCounters
from tests.fakes.clock import FakeClock

CLIENT = Client("id", "name")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def counters(clock: FakeClock) -> Iterator[LimitCounters]:
    counters = LimitCounters(None, clock, Calendar("UTC"))
    yield counters
    counters.close()


def budget_of(counters: LimitCounters, **limits: float) -> Budget:
    found = Budgets(lambda client: Limits(**limits), counters).of(CLIENT)  # type: ignore[arg-type]  # their names
    assert found is not None
    return found


def left(counters: LimitCounters) -> tuple[float, float, float]:
    """What is left of ten requests, a thousand tokens and three places."""
    rooms = counters.of(CLIENT.id).remaining(Limits(rpm=10, tpm=1000, concurrency=3))
    return rooms["rpm"].left, rooms["tpm"].left, rooms["concurrency"].left


def test_a_client_without_limits_has_no_budget(counters: LimitCounters) -> None:
    budgets = Budgets(lambda client: None, counters)

    assert budgets.of(CLIENT) is None
    assert budgets.remaining(CLIENT) == {}


def test_prompt_and_maximum_are_reserved_and_the_usage_is_settled(counters: LimitCounters) -> None:
    budget = budget_of(counters, tpm=1000)
    budget.expect(100, 300)
    budget.reserve()
    budget.sent()
    assert left(counters) == (9, 600, 2)

    budget.close(Usage(prompt=90, completion=20, total=110), money=5_000_000)
    budget.close(None)

    assert left(counters) == (9, 890, 3)
    rooms = Budgets(lambda client: Limits(money_per_month=9.0), counters).remaining(CLIENT)
    assert rooms["money_per_month"].left == 4.0


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (Usage(prompt=90, completion=20), 110),
        (Usage(prompt=90), 90),
        (Usage(total=77), 77),
        (Usage(prompt=-5), 0),
        (Usage(), 100),  # nothing is known: what was seen of it
        (None, 100),
    ],
)
def test_what_is_settled_is_what_was_said(
    counters: LimitCounters, usage: Usage | None, tokens: int
) -> None:
    budget = budget_of(counters, tpm=1000)
    budget.expect(100, 300)
    budget.reserve()
    budget.sent()

    budget.close(usage)

    assert left(counters)[1] == 1000 - tokens


def test_without_a_maximum_a_bounded_guess_is_reserved(counters: LimitCounters) -> None:
    budget = budget_of(counters, tpm=10_000)
    budget.expect(100, None)
    budget.reserve()

    assert counters.of(CLIENT.id).remaining(Limits(tpm=10_000))["tpm"].left == 10_000 - 2_100


@pytest.mark.parametrize("maximum", [-5, 10**30])
def test_a_maximum_may_be_any_number(counters: LimitCounters, maximum: int) -> None:
    budget = budget_of(counters, rpm=9)
    budget.expect(100, maximum)
    budget.reserve()
    budget.sent()
    budget.close(Usage(total=10**30))

    assert left(counters)[0] == 9


def test_what_was_streamed_of_an_aborted_call_is_charged(counters: LimitCounters) -> None:
    budget = budget_of(counters, tpm=1000)
    budget.expect(100, 300)
    budget.reserve()
    budget.sent()
    texts = ["a", "b", "a text of some forty characters or so...", "c"]
    events = [b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % t.encode() for t in texts]
    budget.streamed(events[0], 1)
    budget.streamed(b"".join(events[1:]), 3)

    budget.close(None)

    assert left(counters)[1] == 1000 - 100 - 4 - 9


def test_a_call_that_reached_no_upstream_costs_nothing(counters: LimitCounters) -> None:
    budget = budget_of(counters, rpm=10)
    budget.expect(100, 300)
    budget.reserve()
    budget.sent()
    budget.unsent()

    budget.close(None)

    assert left(counters) == (10, 1000, 3)


def test_attempts_beyond_the_first_count_and_are_never_refused(counters: LimitCounters) -> None:
    budget = budget_of(counters, rpm=1)
    budget.reserve()
    for _ in range(3):
        budget.sent()
    assert left(counters)[0] == 7
    budget.unsent()
    budget.sent()
    budget.close(None)

    assert left(counters) == (7, 1000, 3)


def test_an_attempt_that_took_another_ones_place_counts_once(counters: LimitCounters) -> None:
    budget = budget_of(counters, rpm=10)
    budget.reserve()
    budget.sent()
    budget.unsent()
    budget.sent()
    budget.close(None)

    assert left(counters)[0] == 9


def test_a_call_of_several_requests_reserves_for_all_and_has_one_place(
    counters: LimitCounters,
) -> None:
    budget = budget_of(counters, rpm=10)
    budget.expect(10, 20)
    budget.reserve(4)
    for _ in range(4):
        budget.reserve()
    assert left(counters) == (6, 880, 2)
    budget.sent(3)  # the last one is not sent, because one of them failed

    budget.close(None)

    assert left(counters) == (7, 970, 3)


def test_several_prompts_are_told_one_after_the_other(counters: LimitCounters) -> None:
    budget = budget_of(counters, tpm=1000)
    for prompt in (10, 20, 30):
        budget.expect(prompt, 100)
    budget.reserve(3)

    assert left(counters) == (7, 640, 2)


def test_what_shows_to_be_several_before_anything_is_sent_is_reserved_for_or_refused(
    counters: LimitCounters,
) -> None:
    budget = budget_of(counters, rpm=4)
    budget.reserve()
    budget.sent()
    budget.reserve(3)
    budget.sent(2)
    assert left(counters)[0] == 7
    other = budget_of(counters, rpm=4)
    other.reserve()
    other.sent()
    with pytest.raises(LimitReached):
        other.reserve(2)
    other.unsent()
    other.close(None)
    budget.reserve(3)  # of a further attempt: counted when they are sent
    budget.sent(3)
    budget.close(None)

    assert left(counters) == (4, 1000, 3)


def test_after_its_end_nothing_is_booked_any_more(counters: LimitCounters) -> None:
    budget = budget_of(counters, rpm=4)
    budget.close(None)
    budget.reserve()
    budget.sent()

    assert left(counters) == (10, 1000, 3)


# --- headers -------------------------------------------------------------------------------------


def test_headers_tell_of_the_limits_that_there_are(
    counters: LimitCounters, clock: FakeClock
) -> None:
    budget = budget_of(counters, rpm=10)
    assert budget.headers(anthropic=False, now=clock.now()) == [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "10"),
        ("x-ratelimit-reset-requests", "0s"),
    ]
    budget.reserve()
    clock.advance(12.25)

    found = dict(budget.headers(anthropic=True, now=clock.now()))

    assert found == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "48s",
        "anthropic-ratelimit-requests-limit": "10",
        "anthropic-ratelimit-requests-remaining": "9",
        "anthropic-ratelimit-requests-reset": "2026-11-20T12:01:00Z",
    }


@pytest.mark.parametrize(
    ("per_day", "limit", "rest", "reset"),
    [(5000, "1000", "600", "1m0s"), (700, "700", "300", "12h0m0s")],
)
def test_of_two_limits_of_tokens_the_headers_tell_the_one_with_less_left(
    counters: LimitCounters, clock: FakeClock, per_day: int, limit: str, rest: str, reset: str
) -> None:
    budget = budget_of(counters, tpm=1000, tokens_per_day=per_day)
    budget.expect(100, 300)
    budget.reserve()

    assert [value for _, value in budget.headers(anthropic=False, now=clock.now())] == [
        limit,
        rest,
        reset,
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.2, "200ms"),
        (0.9999, "1000ms"),
        (1, "1s"),
        (1.01, "2s"),
        (59.5, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86_399, "23h59m59s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "said", "kind", "code"),
    [
        (
            Refused("rpm", 100, 100, 1, 12.2),
            "Rate limit reached for your key: the limit is 100 requests in 60 seconds (rpm), 100 "
            "are used, this call needs 1. Please try again in 13s.",
            "requests",
            "rate_limit_exceeded",
        ),
        (
            Refused("tokens_per_day", 5_000_000, 4_999_000, 2_100, 3600.0),
            "Rate limit reached for your key: the limit is 5000000 tokens per day "
            "(tokens_per_day), 4999000 are used, this call needs 2100. Please try again in 1h0m0s.",
            "tokens",
            "rate_limit_exceeded",
        ),
        (
            Refused("money_per_month", 20.5, 20.75, 0.0, 86_400.0),
            "Rate limit reached for your key: the limit is 20.5 of money per month "
            "(money_per_month), 20.75 are used. Please try again in 24h0m0s.",
            "insufficient_quota",
            "insufficient_quota",
        ),
        (
            Refused("concurrency", 2, 2, 1, 1.0),
            "Rate limit reached for your key: the limit is 2 calls at the same time (concurrency), "
            "2 are used, this call needs 1. Please try again in 1s.",
            "requests",
            "rate_limit_exceeded",
        ),
    ],
)
def test_a_refusal_names_the_limit_and_when_it_is_free(
    refused: Refused, said: str, kind: str, code: str
) -> None:
    error = refusal(refused)

    assert (error.status, error.message) == (429, said)
    assert (error.type, error.code) == (kind, code)
    assert error.retry_after_s == refused.retry_after_s
    # A client's library would try again within seconds.
    assert error.should_retry is (False if refused.retry_after_s > 60 else None)  # type: ignore[operator]  # a number
    assert json.loads(json.dumps(error.body()))["error"]["code"] == code


@pytest.mark.parametrize(
    ("name", "hint"), [("rpm", "Each choice"), ("tpm", "max_tokens"), ("concurrency", "")]
)
def test_what_can_never_be_allowed_is_said_to_be_so(name: str, hint: str) -> None:
    error = refusal(Refused(name, 3, 0, 5, None))

    assert error.message.startswith("Request too large for your key: it needs 5")
    assert hint in error.message
    assert (error.status, error.retry_after_s, error.should_retry) == (429, None, False)
