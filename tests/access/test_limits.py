"""The arithmetic of limits, against a model that keeps a list of what was taken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.access import limits as arithmetic
from qwen_wsgi.access.limits import (
    BUCKET_MS,
    MICROS,
    WINDOW_MS,
    Calendar,
    Granted,
    Limits,
    Moment,
    Refused,
    State,
)
from tests.kit.properties import examples

DAY_S = 86_400.0
START_MS = 10_000_000


def at(ms: int, *, wall_s: int = 1_000_000, day: int = 10, month: int = 3) -> Moment:
    return Moment(ms, wall_s, day, month, 3600.0, 20 * DAY_S)


def granted(found: Granted | Refused) -> Granted:
    assert isinstance(found, Granted), found
    return found


def refused(found: Granted | Refused) -> Refused:
    assert isinstance(found, Refused), found
    return found


# --- the window ----------------------------------------------------------------------------------


def test_exactly_as_many_pass_as_the_limit_says() -> None:
    state, limits = State(), Limits(rpm=100)

    found = [arithmetic.reserve(state, limits, at(START_MS)) for _ in range(400)]

    assert sum(isinstance(each, Granted) for each in found) == 100
    assert refused(found[-1]) == Refused("rpm", 100, 100, 1, 60.0)


@dataclass
class Model:
    """What one client took: a list of times with what was taken at them."""

    taken: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, ms: int, requests: int, tokens: int) -> None:
        self.taken.append((ms, requests, tokens))

    def within(self, now_ms: int, window_ms: int) -> tuple[int, int]:
        recent = [each for each in self.taken if each[0] > now_ms - window_ms]
        return sum(each[1] for each in recent), sum(each[2] for each in recent)


STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 2000), st.integers(0, 90_000)),
        st.integers(1, 3),
        st.integers(0, 40),
    ),
    max_size=60,
)


@examples(100)
@given(STEPS, st.integers(1, 8), st.integers(1, 100))
def test_a_window_lets_pass_what_a_list_of_times_would(
    steps: list[tuple[int, int, int]], rpm: int, tpm: int
) -> None:
    """Never more than the limit in any 60 s; and refused is only what would be too much in a window
    that is one bucket longer."""
    state, model, limits, now = State(), Model(), Limits(rpm=rpm, tpm=tpm), START_MS
    for pause_ms, requests, tokens in steps:
        now += pause_ms
        found = arithmetic.reserve(state, limits, at(now), requests=requests, tokens=tokens)
        if isinstance(found, Granted):
            model.add(now, requests, tokens)
            used = model.within(now, WINDOW_MS)
            assert used[0] <= rpm
            assert used[1] <= tpm
            continue
        used = model.within(now, WINDOW_MS + BUCKET_MS)
        assert used[0] + requests > rpm or used[1] + (tokens or 1) > tpm
        if found.retry_after_s is None:
            assert requests > rpm or (tokens or 1) > tpm
            continue
        # It is told the truth: not a millisecond before, and then at once.
        free_ms = now + round(found.retry_after_s * 1000)
        copy = state.copy()
        early = arithmetic.reserve(copy, limits, at(free_ms - 1), requests=requests, tokens=tokens)
        assert isinstance(early, Refused)
        copy = state.copy()
        granted(arithmetic.reserve(copy, limits, at(free_ms), requests=requests, tokens=tokens))


@examples(60)
@given(
    st.lists(
        st.tuples(st.integers(0, 20_000), st.integers(0, 50), st.integers(0, 80), st.booleans()),
        max_size=40,
    )
)
def test_the_sums_are_those_of_what_was_settled(steps: list[tuple[int, int, int, bool]]) -> None:
    """Calls end in another order than they began, some were never sent; the state may be packed and
    read again at any moment, as a restart does."""
    state, model, now = State(), Model(), START_MS
    limits = Limits(rpm=1000, tpm=100_000, tokens_per_day=100_000)
    under_way: list[tuple[int, Granted, int]] = []
    day = 0
    for pause_ms, tokens, used, ends in steps:
        now += pause_ms
        state = state.copy()
        reserved = arithmetic.reserve(state, limits, at(now), tokens=tokens)
        under_way.append((now, granted(reserved), used))
        if ends and len(under_way) > 1:
            began, first, used_by_first = under_way.pop(0)
            if used_by_first % 7 == 0:
                arithmetic.settle(state, first, 0, 0, at(now), requests=first.requests)
            else:
                arithmetic.settle(state, first, used_by_first, 0, at(now))
                model.add(began, 1, used_by_first)
                day += used_by_first
    for began, last, used in under_way:
        arithmetic.settle(state, last, used, 0, at(now))
        model.add(began, 1, used)
        day += used

    left = arithmetic.remaining(state, limits, at(now))
    assert left["tokens_per_day"].left == 100_000 - day
    low, high = model.within(now, WINDOW_MS), model.within(now, WINDOW_MS + BUCKET_MS)
    assert 1000 - high[0] <= left["rpm"].left <= 1000 - low[0]
    assert 100_000 - high[1] <= left["tpm"].left <= 100_000 - low[1]
    reset_ms = now + round(left["tpm"].reset_s * 1000)
    assert arithmetic.remaining(state, limits, at(reset_ms))["tpm"].left == 100_000


def test_further_attempts_count_and_are_never_refused() -> None:
    state, limits = State(), Limits(rpm=2)
    granted(arithmetic.reserve(state, limits, at(START_MS), requests=2))

    arithmetic.count(state, at(START_MS), 3)

    found = refused(arithmetic.reserve(state, limits, at(START_MS)))
    assert (found.used, found.value) == (5, 2)


def test_a_correction_goes_to_the_bucket_of_the_reservation() -> None:
    state, limits = State(), Limits(tpm=100)
    call = granted(arithmetic.reserve(state, limits, at(START_MS), tokens=80))

    arithmetic.settle(state, call, 30, 0, at(START_MS + 50_000))

    assert arithmetic.remaining(state, limits, at(START_MS + 50_000))["tpm"].left == 70
    assert arithmetic.remaining(state, limits, at(START_MS + 60_000))["tpm"].left == 100


def test_a_correction_that_comes_when_the_window_is_over_changes_the_day_alone() -> None:
    state, limits = State(), Limits(tpm=100, tokens_per_day=1000)
    call = granted(arithmetic.reserve(state, limits, at(START_MS), tokens=80))
    later = at(START_MS + 70_000)

    arithmetic.settle(state, call, 90, 0, later)

    left = arithmetic.remaining(state, limits, later)
    assert (left["tpm"].left, left["tokens_per_day"].left) == (100, 910)


def test_a_call_without_known_tokens_is_refused_where_none_are_left() -> None:
    state, limits = State(), Limits(tpm=100)
    granted(arithmetic.reserve(state, limits, at(START_MS), tokens=100))

    assert refused(arithmetic.reserve(state, limits, at(START_MS))).limit == "tpm"


def test_limits_that_are_lowered_or_raised_while_in_use_hold_at_once() -> None:
    state = State()
    for _ in range(10):
        granted(arithmetic.reserve(state, Limits(rpm=10), at(START_MS)))

    assert arithmetic.remaining(state, Limits(rpm=5), at(START_MS))["rpm"].left == 0
    assert refused(arithmetic.reserve(state, Limits(rpm=5), at(START_MS))).used == 10
    granted(arithmetic.reserve(state, Limits(rpm=11), at(START_MS)))
    granted(arithmetic.reserve(state, Limits(), at(START_MS)))


def test_the_limit_that_lasts_longest_is_named() -> None:
    state, limits = State(), Limits(rpm=1, tokens_per_day=10, concurrency=1)
    granted(arithmetic.reserve(state, limits, at(START_MS), tokens=10))

    found = refused(arithmetic.reserve(state, limits, at(START_MS), tokens=5))

    assert (found.limit, found.retry_after_s) == ("tokens_per_day", 3600.0)


def test_what_is_larger_than_a_limit_is_never_allowed() -> None:
    found = arithmetic.reserve(State(), Limits(rpm=3), at(START_MS), requests=4)

    assert refused(found) == Refused("rpm", 3, 0, 4, None)


# --- at the same time ----------------------------------------------------------------------------


def test_places_are_counted_over_all_workers_and_given_back() -> None:
    state, limits, now = State(), Limits(concurrency=2), at(START_MS)
    granted(arithmetic.reserve(state, limits, now, row=3))
    granted(arithmetic.reserve(state, limits, now, row=7))

    found = refused(arithmetic.reserve(state, limits, now, row=7))
    granted(arithmetic.reserve(state, limits, now, row=7, places=0))
    arithmetic.forget_worker(state, 3, {}, 0, 0)

    assert (found.limit, found.retry_after_s) == ("concurrency", 1.0)
    assert arithmetic.remaining(state, limits, now)["concurrency"].left == 1
    granted(arithmetic.reserve(state, limits, now, row=7))


def test_what_a_dead_worker_had_open_is_given_back() -> None:
    state, limits, now = State(), Limits(rpm=9, tpm=500, tokens_per_day=500), at(START_MS)
    granted(arithmetic.reserve(state, limits, now, tokens=100, row=1))
    lost = granted(arithmetic.reserve(state, limits, now, tokens=300, row=2))

    span = lost.bucket // arithmetic.SPAN
    arithmetic.forget_worker(state, 2, {span: 300, span - 99: 50}, lost.day, 300)

    left = arithmetic.remaining(state, limits, now)
    assert (left["tpm"].left, left["tokens_per_day"].left) == (400, 400)
    assert left["rpm"].left == 7  # its request was sent
    assert state.in_flight == 1


# --- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [-7200, -10, 10, 7200])
def test_steps_of_the_wall_clock_within_a_day_change_nothing(step_s: int) -> None:
    state, limits = State(), Limits(rpm=5, tokens_per_day=100)
    granted(arithmetic.reserve(state, limits, at(START_MS, wall_s=1_000_000), tokens=60))

    left = arithmetic.remaining(state, limits, at(START_MS + 10, wall_s=1_000_000 + step_s))

    assert (left["rpm"].left, left["tokens_per_day"].left) == (4, 40)


def test_a_wall_clock_that_is_set_back_over_midnight_gives_no_second_day() -> None:
    state, limits, night = State(), Limits(tokens_per_day=100), 1_000_000
    before = at(START_MS, wall_s=night - 1, day=10, month=3)
    after = at(START_MS, wall_s=night, day=11, month=4)
    granted(arithmetic.reserve(state, limits, before, tokens=100))
    granted(arithmetic.reserve(state, limits, after, tokens=100))

    back = refused(arithmetic.reserve(state, limits, before._replace(day_left_s=1.0)))
    assert back.retry_after_s == DAY_S + 1.0
    assert refused(arithmetic.reserve(state, limits, after)).limit == "tokens_per_day"


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3000), st.sampled_from([0, 0, 0, -600, 600, -3500]), st.booleans()
        ),
        min_size=20,
        max_size=120,
    ),
    st.integers(1, 120),
)
def test_small_steps_of_the_wall_clock_give_no_day_more_than_its_tokens(
    steps: list[tuple[int, int, bool]], limit: int
) -> None:
    """And the minute does not go by it; a restart in between changes nothing."""
    state, model, limits = State(), Model(), Limits(rpm=3, tokens_per_day=limit)
    calendar, steady_s, wall_s = Calendar("UTC"), 5000, 1_795_176_000
    latest = 0
    by_day: dict[int, int] = {}
    for pause_s, step_s, restarts in steps:
        steady_s += pause_s
        wall_s += pause_s + step_s
        now = calendar.moment(steady_s, wall_s)
        latest = max(latest, now.day)
        state = state.copy() if restarts else state
        found = arithmetic.reserve(state, limits, now, tokens=7)
        if isinstance(found, Granted):
            model.add(now.at_ms, 1, 7)
            by_day[latest] = by_day.get(latest, 0) + 7
            assert by_day[latest] <= limit
            assert model.within(now.at_ms, WINDOW_MS)[0] <= 3
        elif found.limit == "tokens_per_day":
            assert by_day.get(latest, 0) + 7 > limit
        else:
            assert model.within(now.at_ms, WINDOW_MS + BUCKET_MS)[0] == 3


def test_a_wall_clock_that_was_a_day_ahead_is_not_believed_when_it_is_mended() -> None:
    state, limits = State(), Limits(tokens_per_day=100, money_per_month=1.0)
    wrong = at(START_MS, wall_s=1_000_000 + 86_400, day=11, month=4)
    call = granted(arithmetic.reserve(state, limits, wrong, tokens=100))
    arithmetic.settle(state, call, 100, MICROS, wrong)
    assert refused(arithmetic.reserve(state, limits, wrong)).limit == "money_per_month"

    granted(arithmetic.reserve(state, limits, at(START_MS), tokens=100))


def test_a_steady_clock_that_begins_anew_begins_the_window_anew() -> None:
    state, limits = State(), Limits(rpm=1)
    granted(arithmetic.reserve(state, limits, at(START_MS)))

    granted(arithmetic.reserve(state, limits, at(5)))
    assert refused(arithmetic.reserve(state, limits, at(10))).limit == "rpm"


def test_a_steady_clock_that_goes_back_a_little_gives_nothing_away() -> None:
    state, limits = State(), Limits(rpm=1)
    call = granted(arithmetic.reserve(state, limits, at(START_MS), tokens=5))

    found = refused(arithmetic.reserve(state, limits, at(START_MS - 30_000)))
    arithmetic.settle(state, call, 4, 0, at(START_MS - 30_000))

    assert found.retry_after_s == 90.0


# --- days and months -----------------------------------------------------------------------------


def test_a_call_over_midnight_is_yesterdays() -> None:
    state, limits = State(), Limits(tokens_per_day=100, money_per_month=1.0)
    evening, night = at(START_MS), at(START_MS + 500, wall_s=1_000_001, day=11, month=4)
    call = granted(arithmetic.reserve(state, limits, evening, tokens=90))
    granted(arithmetic.reserve(state, limits, night, tokens=20))

    arithmetic.settle(state, call, 100, MICROS // 2, night)

    left = arithmetic.remaining(state, limits, night)
    assert (left["tokens_per_day"].left, left["money_per_month"].left) == (80, 1.0)


def test_money_is_settled_in_its_month_and_refused_when_it_is_spent() -> None:
    state, limits, now = State(), Limits(money_per_month=0.5), at(START_MS)
    call = granted(arithmetic.reserve(state, limits, now))
    arithmetic.settle(state, call, 10, 600_000, now)

    found = refused(arithmetic.reserve(state, limits, now))

    assert found == Refused("money_per_month", 0.5, 0.6, 0.0, 20 * DAY_S)
    assert arithmetic.remaining(state, limits, now)["money_per_month"] == (0.5, 0.0, 20 * DAY_S)
    assert refused(arithmetic.reserve(State(), Limits(money_per_month=0.0), now)) == Refused(
        "money_per_month", 0.0, 0.0, 0.0, None
    )


def moment_of(zone: str, *when: int) -> Moment:
    wall_s = datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[misc, arg-type]  # a date's parts
    return Calendar(zone).moment(5.0, wall_s)


@pytest.mark.parametrize(
    ("zone", "when", "hours_left"),
    [
        ("UTC", (2026, 5, 3, 12), 12),
        ("Europe/Berlin", (2026, 3, 29, 1), 22),  # the night with an hour less
        ("Europe/Berlin", (2026, 10, 25, 1), 24),  # and with one more
        ("America/Havana", (2026, 3, 7, 23), 1),  # midnight is skipped
        ("Africa/Cairo", (2026, 4, 23, 23), 1),
    ],
)
def test_a_day_ends_at_local_midnight(zone: str, when: tuple[int, ...], hours_left: int) -> None:
    assert moment_of(zone, *when).day_left_s == hours_left * 3600


def test_the_month_ends_at_local_midnight() -> None:
    last = moment_of("Asia/Shanghai", 2026, 12, 31, 23)
    first = moment_of("Asia/Shanghai", 2027, 1, 1, 0)

    assert last.month_left_s == 3600
    assert first.month == last.month + 1
    assert first.month_left_s == 31 * DAY_S


def test_a_calendar_goes_on_and_back() -> None:
    calendar = Calendar("UTC")
    noon = datetime(2026, 5, 3, 12, tzinfo=ZoneInfo("UTC")).timestamp()
    days = [calendar.moment(0.0, noon + step * 3600).day for step in (0, 11, 12, 36, -13, 0)]

    assert [day - days[0] for day in days] == [0, 0, 1, 2, -1, 0]


@pytest.fixture
def in_tokyo() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_without_a_name_it_is_the_zone_of_the_machine() -> None:
    noon_utc = datetime(2026, 5, 3, 12, tzinfo=ZoneInfo("UTC")).timestamp()

    assert Calendar().moment(0.0, noon_utc).day_left_s == 3 * 3600


# --- copies --------------------------------------------------------------------------------------


def test_what_was_booked_in_a_copy_can_be_booked_in_the_original() -> None:
    state, limits, now = State(), Limits(rpm=99, tpm=999, tokens_per_day=999), at(START_MS)
    granted(arithmetic.reserve(state, limits, now, tokens=10))
    copy = state.copy()
    owed = None
    for ms, tokens in ((START_MS, 20), (START_MS + 300, 30), (START_MS + 300, 40)):
        arithmetic.advance(copy, at(ms))
        before = copy.copy()
        granted(arithmetic.reserve(copy, limits, at(ms), tokens=tokens))
        more = arithmetic.difference(before, copy)
        owed = more if owed is None else arithmetic.together(owed, more)

    assert owed is not None
    arithmetic.book_owed(state, owed, at(START_MS + 300))

    left = arithmetic.remaining(state, limits, at(START_MS + 300))
    assert (left["rpm"].left, left["tpm"].left, left["tokens_per_day"].left) == (95, 899, 899)
    assert state.requests == copy.requests


def test_what_was_owed_of_the_day_before_is_dropped() -> None:
    first = arithmetic.Owed({1: (1, 5)}, day=10, tokens=5, month=3, money=7)
    second = arithmetic.Owed({1000: (1, 6)}, day=11, tokens=6, month=3, money=8)

    assert arithmetic.together(first, second) == ({1000: (1, 6)}, 11, 6, 3, 15)


def test_a_state_of_another_version_is_none() -> None:
    state = State()
    state.head[0] = 99

    assert State.unpack(state.pack()) is None
