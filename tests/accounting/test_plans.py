"""The arithmetic of plans' windows, against simple models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.accounting import plans
from qwen_wsgi.accounting.plans import BEIJING, State, Use, begin_of, calendar_span, state
from qwen_wsgi.plan_limits import Credit, Limit, PlanLimits, Window, parse
from tests.fakes.clock import NOON_S
from tests.kit.properties import examples

HOUR = 3600.0
DAY = 24 * HOUR
NOW = NOON_S


def limit_of(text: str) -> Limit:
    return parse(f"x={text}").entries[0][1].limits[0]


def uses_of(*pairs: tuple[float, int], tokens: int = 0) -> list[Use]:
    """Calls, so long ago each; the oldest first."""
    return [Use(NOW - ago, calls, tokens) for ago, calls in pairs]


def seen(text: str, *pairs: tuple[float, int], begun: float | None = None) -> State:
    return state(limit_of(text), uses_of(*pairs), NOW, begun=begun)


def at(year: int, month: int, day: int, hour: int = 0) -> float:
    return datetime(year, month, day, hour, tzinfo=BEIJING).timestamp()


class TestRolling:
    def test_what_is_older_does_not_count(self) -> None:
        found = seen("10/5h", (6 * HOUR, 5), (4 * HOUR, 3), (60, 2))

        assert (found.calls, found.used, found.share) == (5, 5, 0.5)
        assert (found.begins_at, found.ends_at) == (NOW - 5 * HOUR, NOW + HOUR)
        assert not found.is_spent

    def test_a_spent_one_is_free_when_enough_has_left(self) -> None:
        found = seen("5/5h", (4 * HOUR, 1), (3 * HOUR, 2), (HOUR, 4))

        assert found.is_spent
        assert found.free_at == NOW - 3 * HOUR + 5 * HOUR, "then four are left"
        assert found.forecast_at is None

    def test_none_was_used(self) -> None:
        found = seen("5/5h")

        assert (found.used, found.ends_at, found.free_at, found.forecast_at) == (
            0,
            None,
            None,
            None,
        )

    def test_it_will_be_spent_before_the_first_leave(self) -> None:
        # 60 within the last half hour, of 100 of which 20 are gone already.
        found = seen("100/5h", (2 * HOUR, 20), (20 * 60, 60))

        assert found.forecast_at == pytest.approx(NOW + 20 / (60 / 1800))

    def test_what_leaves_meanwhile_makes_room(self) -> None:
        found = seen("100/5h", (4.9 * HOUR, 80), (20 * 60, 10))

        # Without the 80 it lasts for hours: 10 an half hour.
        assert found.forecast_at == pytest.approx(NOW + 90 / (10 / 1800))

    def test_a_slow_rate_never_spends_it(self) -> None:
        assert seen("100/5h", (20 * 60, 5)).forecast_at is None

    def test_a_clock_that_was_set_back_forgets_nothing(self) -> None:
        found = seen("5/5h", (-HOUR, 5))

        assert found.is_spent
        assert found.free_at == NOW + 5 * HOUR


class TestCalendar:
    @pytest.mark.parametrize(
        ("now", "begin", "end"),
        [
            (at(2026, 11, 30), at(2026, 11, 30), at(2026, 12, 7)),
            (at(2026, 11, 30) - 1, at(2026, 11, 23), at(2026, 11, 30)),
            (at(2026, 12, 31, 23), at(2026, 12, 28), at(2027, 1, 4)),
        ],
    )
    def test_a_week_begins_on_monday_of_the_vendor_s_time(
        self, now: float, begin: float, end: float
    ) -> None:
        assert calendar_span(limit_of("1/week").window, now) == (begin, end)

    @pytest.mark.parametrize(
        ("day", "now", "begin", "end"),
        [
            (17, at(2026, 11, 17), at(2026, 11, 17), at(2026, 12, 17)),
            (17, at(2026, 11, 17) - 1, at(2026, 10, 17), at(2026, 11, 17)),
            (31, at(2026, 2, 28), at(2026, 2, 28), at(2026, 3, 31)),
            (31, at(2028, 2, 28, 23), at(2028, 1, 31), at(2028, 2, 29)),
            (30, at(2026, 12, 31), at(2026, 12, 30), at(2027, 1, 30)),
            (5, at(2027, 1, 1), at(2026, 12, 5), at(2027, 1, 5)),
            (1, at(2026, 12, 1), at(2026, 12, 1), at(2027, 1, 1)),
        ],
    )
    def test_a_month_begins_on_the_day_of_the_subscription(
        self, day: int, now: float, begin: float, end: float
    ) -> None:
        assert calendar_span(limit_of(f"1/month@{day}").window, now) == (begin, end)

    @examples(60)
    @given(
        moment=st.integers(1_700_000_000, 2_000_000_000),
        day=st.integers(1, 31),
        kind=st.sampled_from(["week", "month"]),
    )
    def test_windows_follow_one_another_without_a_gap(
        self, moment: int, day: int, kind: str
    ) -> None:
        window = limit_of("1/week" if kind == "week" else f"1/month@{day}").window
        begin, end = calendar_span(window, moment)

        assert begin <= moment < end
        assert 27.9 * DAY <= end - begin <= 31 * DAY if kind == "month" else end - begin == 7 * DAY
        assert calendar_span(window, end)[0] == end
        assert calendar_span(window, begin - 1)[1] == begin

    def test_what_was_used_and_when_it_is_free(self) -> None:
        begin, end = calendar_span(limit_of("5/week").window, NOW)
        ago = NOW - begin
        found = seen("5/week", (ago + 60, 9), (ago, 2), (HOUR, 3))

        assert (found.used, found.begins_at, found.ends_at, found.free_at) == (5, begin, end, end)

    def test_a_forecast_ends_with_the_window(self) -> None:
        _, end = calendar_span(limit_of("5/week").window, NOW)

        assert seen("1000/week", (HOUR, 100)).forecast_at is None
        soon = seen("110/week", (HOUR, 100))
        assert soon.forecast_at is not None
        assert NOW < soon.forecast_at < end


class TestFromTheFirstCall:
    @examples(60)
    @given(
        times=st.lists(st.integers(0, 500), max_size=30).map(sorted),
        seconds=st.integers(1, 60),
        later=st.integers(0, 80),
        known=st.booleans(),
    )
    def test_it_begins_with_the_first_call_after_the_last_one(
        self, times: list[int], seconds: int, later: int, known: bool
    ) -> None:
        now = (times[-1] if times else 0) + later
        window = Window("x", "first", seconds)
        # The model: one call after the other.
        begins: list[int] = []
        for moment in times:
            if not begins or moment >= begins[-1] + seconds:
                begins.append(moment)
        expected = begins[-1] if begins and now < begins[-1] + seconds else None

        def next_use(since: float) -> float | None:
            return next((float(moment) for moment in times if moment >= since), None)

        before = begins[len(begins) // 2] if known and begins else None
        assert begin_of(window, now, before, next_use) == expected

    def test_a_begin_in_the_future_is_not_believed(self) -> None:
        window = limit_of("1/5h@first").window
        assert begin_of(window, NOW, NOW + 60, lambda since: None) is None

    def test_what_was_used_in_it(self) -> None:
        found = seen("5/5h@first", (2 * HOUR, 3), (HOUR, 3), begun=NOW - 2 * HOUR)

        assert (found.used, found.ends_at, found.free_at) == (6, NOW + 3 * HOUR, NOW + 3 * HOUR)

    def test_one_that_has_not_begun(self) -> None:
        found = seen("5/5h@first", (9 * HOUR, 7))

        assert (found.used, found.begins_at, found.ends_at, found.free_at) == (0, None, None, None)


class TestUnits:
    def test_tokens(self) -> None:
        found = state(limit_of("1000tokens/5h"), uses_of((60, 2), tokens=600), NOW)

        assert (found.calls, found.tokens, found.used, found.share) == (2, 600, 600, 0.6)

    def test_credits_whose_worth_nobody_knows(self) -> None:
        found = state(limit_of("10credits/5h"), uses_of((60, 2), tokens=600), NOW)

        assert (found.calls, found.tokens) == (2, 600)
        assert (found.used, found.share, found.forecast_at) == (None, None, None)
        assert not found.is_spent
        assert found.as_json()["used"] is None

    @pytest.mark.parametrize(
        ("credit", "used"), [(Credit(100, "tokens"), 6), (Credit(0.5, "calls"), 4)]
    )
    def test_credits_by_the_operator_s_word(self, credit: Credit, used: float) -> None:
        uses = uses_of((60, 2), tokens=600)
        assert state(limit_of("10credits/5h"), uses, NOW, credit=credit).used == used

    def test_an_unknown_limit_is_never_spent(self) -> None:
        found = seen("?/5h", (60, 10**6))

        assert (found.used, found.share, found.is_spent) == (10**6, None, False)


class TestToldByTheVendor:
    def test_it_is_spent_until_then_whatever_was_counted(self) -> None:
        found = state(limit_of("10/5h"), uses_of((60, 1)), NOW, told_until=NOW + HOUR)

        assert (found.used, found.free_at, found.share) == (1, NOW + HOUR, 1.0)
        assert found.as_json()["told_by_vendor"] is True

    def test_what_it_said_earlier_is_over(self) -> None:
        found = state(limit_of("10/5h"), uses_of((60, 1)), NOW, told_until=NOW - 1)

        assert (found.is_spent, found.told_until) == (False, None)

    @pytest.mark.parametrize(
        ("text", "seconds", "window"),
        [
            ("hour allocated quota exceeded", HOUR, "5h"),
            ("Your token-plan 5-hour quota has been exhausted.", 4 * HOUR, "5h"),
            ("week allocated quota exceeded", HOUR, "week"),
            ("month allocated quota exceeded", HOUR, "month"),
            ("Your 7-day quota is exhausted", DAY, "week"),
            ("quota exceeded", HOUR, "5h"),
            ("quota exceeded", 2 * DAY, "week"),
            ("quota exceeded", 20 * DAY, "month"),
            ("quota exceeded", 40 * DAY, "month"),
            ("hour allocated quota exceeded", 2 * DAY, "week"),
        ],
    )
    def test_which_window_is_meant(self, text: str, seconds: float, window: str) -> None:
        plan = parse("x=1/5h,1/week,1/month").entries[0][1]

        found = plans.told_window(plan, text, seconds)

        assert found is not None
        assert found.name == window

    def test_a_plan_without_windows(self) -> None:
        assert plans.told_window(PlanLimits(), "week", HOUR) is None

    def test_it_corrects_when_a_window_began(self) -> None:
        first, rolling = limit_of("1/5h@first").window, limit_of("1/5h").window

        assert plans.corrected_begin(first, NOW + HOUR, None) == NOW - 4 * HOUR
        assert plans.corrected_begin(rolling, NOW + HOUR, None) is None


@examples(60)
@given(
    data=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 9)), max_size=25),
    amount=st.integers(1, 60),
    hours=st.sampled_from([1, 3, 5]),
)
def test_a_rolling_window_against_a_model(
    data: list[tuple[int, int]], amount: int, hours: int
) -> None:
    """Minute by minute: when it is spent, when free, and when spent by the last stretch's rate."""
    span = hours * 60
    uses = [Use(NOW - ago * 60, calls, 0) for ago, calls in sorted(data, reverse=True)]
    found = state(Limit(Window("x", "rolling", span * 60), amount), uses, NOW)

    def used_at(minute: float) -> int:
        """What of it is within the window, so many minutes from now."""
        return sum(each.calls for each in uses if NOW - span * 60 <= each.at - minute * 60)

    now_used = used_at(0)
    assert found.used == now_used
    assert found.is_spent == (now_used >= amount)
    if found.free_at is not None:
        minutes = (found.free_at - NOW) / 60
        assert used_at(minutes + 0.5) < amount <= used_at(minutes - 0.5)
        return
    stretch = max(span / 10, 10.0)
    rate = sum(each.calls for each in uses if each.at >= NOW - stretch * 60) / stretch
    steps = [minute / 8 for minute in range(1, span * 8 + 1)]
    reached = next((step for step in steps if used_at(step) + rate * step >= amount), None)
    if found.forecast_at is None:
        assert reached is None or reached >= span - 0.2
    else:
        assert reached == pytest.approx((found.forecast_at - NOW) / 60, abs=0.2)


@contextmanager
def zone(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", name)
    time.tzset()
    try:
        yield
    finally:
        monkeypatch.undo()
        time.tzset()


def test_summer_time_of_this_machine_moves_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    night = datetime(2026, 10, 25, 0, 30, tzinfo=BEIJING) + timedelta(hours=8)
    window = limit_of("1/week").window
    spans = set()
    for name in ("Europe/Berlin", "America/New_York", "UTC"):
        with zone(name, monkeypatch):
            spans.add(calendar_span(window, night.timestamp()))
    ((begin, end),) = spans
    assert end - begin == 7 * DAY


def test_times_are_told_in_utc() -> None:
    assert plans.utc_text(NOON_S) == "2026-11-20 12:00 UTC"
