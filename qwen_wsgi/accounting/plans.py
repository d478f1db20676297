"""How much of a plan's windows is used, when they end, and when they will be spent. Pure arithmetic
on what the ledger says; times are seconds since 1970.

The vendor counts by its own clock and knows calls that did not come through us: these numbers are
ours, and what it says itself wins (`State.told_until`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from qwen_wsgi.plan_limits import Credit, Limit, PlanLimits, Window

#: The vendor's clock, which knows no summer time.
BEIJING: Final = timezone(timedelta(hours=8))

#: The last stretch, by whose rate a forecast is made: a tenth of the window, within these bounds.
_STRETCH_S: Final = (600.0, 86_400.0)


class Use(NamedTuple):
    """What was used from a time on, until the next one: calls to the upstream, and their tokens."""

    at: float
    calls: int
    tokens: int


class State(NamedTuple):
    """How things are with one limit.

    Attributes:
        calls, tokens: what we know was used within the window.
        used: the same in the limit's unit; None where it is not known what a credit is worth.
        begins_at: of the window; None for one that the next call begins.
        ends_at: when it ends; of a rolling one when the first of its calls leaves it; None where
            nothing was used.
        free_at: if it is spent, when a call is possible again; else None.
        forecast_at: when it will be spent by the rate of the last stretch; None if not before it
            ends, or if that is not known.
        told_until: until when the vendor says that it is spent; None if it does not.
    """

    limit: Limit
    calls: int
    tokens: int
    used: float | None
    begins_at: float | None
    ends_at: float | None
    free_at: float | None
    forecast_at: float | None
    told_until: float | None

    @property
    def is_spent(self) -> bool:
        """Whether no call is possible in it now."""
        return self.free_at is not None

    @property
    def share(self) -> float | None:
        """The part of the limit that is used; 1.0 at least if the vendor says that it is spent."""
        counted = None
        if self.used is not None and self.limit.amount is not None:
            counted = self.used / self.limit.amount
        return max(counted or 0.0, 1.0) if self.told_until is not None else counted

    def as_json(self) -> dict[str, Any]:
        """For scripts: times are whole seconds; null is "not known"."""
        return {
            "window": self.limit.window.name,
            "kind": self.limit.window.kind,
            "unit": self.limit.unit,
            "used": None if self.used is None else round(self.used, 3),
            "limit": self.limit.amount,
            "share": None if self.share is None else round(self.share, 4),
            "calls": self.calls,
            "tokens": self.tokens,
            "spent": self.is_spent,
            "begins_at": _whole(self.begins_at),
            "ends_at": _whole(self.ends_at),
            "free_at": _whole(self.free_at),
            "forecast_at": _whole(self.forecast_at),
            "told_by_vendor": self.told_until is not None,
        }


def _whole(at: float | None) -> int | None:
    return None if at is None else math.ceil(at)


# --- windows -------------------------------------------------------------------------------------


def calendar_span(window: Window, now: float) -> tuple[float, float]:
    """Begin and end of the week or month that now is in, in the vendor's time."""
    today = datetime.fromtimestamp(now, BEIJING).replace(hour=0, minute=0, second=0, microsecond=0)
    if window.kind == "week":
        begin = today - timedelta(days=today.weekday())
        return begin.timestamp(), (begin + timedelta(days=7)).timestamp()
    this = _day_of(today.year, today.month, window.day)
    if today < this:
        return _day_of(today.year, today.month - 1, window.day).timestamp(), this.timestamp()
    return this.timestamp(), _day_of(today.year, today.month + 1, window.day).timestamp()


def _day_of(year: int, month: int, day: int) -> datetime:
    """A day of a month, which may be 0 or 13; of a shorter month its last one."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=BEIJING)
    return following.replace(year=year, month=month, day=min(day, (following - _ONE).day))


_ONE: Final = timedelta(days=1)


def begin_of(
    window: Window, now: float, known: float | None, next_use: Callable[[float], float | None]
) -> float | None:
    """When a window that begins with a call has begun; None if the next call begins one.

    Args:
        known: when one of those before it began, if that is known.
        next_use: the first use from a time on.
    """
    begin = known if known is not None and known <= now else next_use(-math.inf)
    while begin is not None and begin + window.seconds <= now:
        begin = next_use(begin + window.seconds)
    return begin


def look_back_s(window: Window, now: float, begun: float | None) -> float:
    """From when on uses count in the window that is open now."""
    if window.kind == "rolling":
        return now - window.seconds
    if window.kind == "first":
        return now if begun is None else begun
    return calendar_span(window, now)[0]


# --- states --------------------------------------------------------------------------------------


def amount(limit: Limit, credit: Credit | None, use: Use) -> float | None:
    """What a use is in the unit of a limit; None where that is not known."""
    if limit.unit == "credits":
        if credit is None:
            return None
        return (use.calls if credit.unit == "calls" else use.tokens) / credit.amount
    return float(use.calls if limit.unit == "calls" else use.tokens)


def state(
    limit: Limit,
    uses: Sequence[Use],
    now: float,
    *,
    credit: Credit | None = None,
    begun: float | None = None,
    told_until: float | None = None,
) -> State:
    """How things are with a limit.

    Args:
        uses: from `look_back_s` on, the oldest first. Those of the future, after the clock was set
            back, count as well.
        begun: when a window that begins with a call has begun.
        told_until: until when the vendor says that it is spent, or said so.
    """
    window = limit.window
    begin: float | None = look_back_s(window, now, begun)
    end: float | None = None
    uses = [use for use in uses if begin is not None and use.at >= begin]
    if window.kind == "rolling":
        end = min(now, uses[0].at) + window.seconds if uses else None
    elif window.kind == "first":
        begin, end = begun, None if begun is None else begun + window.seconds
        uses = uses if begun is not None else []
    else:
        begin, end = calendar_span(window, now)
    amounts = [amount(limit, credit, use) for use in uses]
    counted = [(use.at, each) for use, each in zip(uses, amounts, strict=True) if each is not None]
    is_known = limit.unit != "credits" or credit is not None
    used = sum(each for _, each in counted) if is_known else None
    told = told_until if told_until is not None and told_until > now else None
    free = told or _free_at(limit, counted, used, now, end)
    return State(
        limit,
        sum(use.calls for use in uses),
        sum(use.tokens for use in uses),
        used,
        begin,
        end,
        free,
        None if free is not None else _forecast(limit, counted, used, now, begin, end),
        told,
    )


def _free_at(
    limit: Limit,
    counted: Sequence[tuple[float, float]],
    used: float | None,
    now: float,
    end: float | None,
) -> float | None:
    """When a spent window allows a call again; None if it is not spent."""
    if used is None or limit.amount is None or used < limit.amount:
        return None
    if limit.window.kind != "rolling":
        return end
    left = used
    for at, each in counted:
        left -= each
        if left < limit.amount:
            return min(at, now) + limit.window.seconds
    return now + limit.window.seconds


def _forecast(
    limit: Limit,
    counted: Sequence[tuple[float, float]],
    used: float | None,
    now: float,
    begin: float | None,
    end: float | None,
) -> float | None:
    """When a window will be spent if what was used lately goes on; None if it will not."""
    if used is None or limit.amount is None or begin is None:
        return None
    least, most = _STRETCH_S
    stretch_s = min(max(limit.window.seconds / 10, least), most, max(now - begin, 60.0))
    rate = sum(each for at, each in counted if at >= now - stretch_s) / stretch_s
    if rate <= 0:
        return None
    left = used
    if limit.window.kind == "rolling":
        # What was used leaves the window again: between two such moments the count rises evenly.
        for at, each in counted:
            spent_at = now + (limit.amount - left) / rate
            if spent_at <= min(at, now) + limit.window.seconds:
                return spent_at
            left -= each
        end = now + limit.window.seconds
    spent_at = now + (limit.amount - left) / rate
    return spent_at if end is not None and spent_at < end else None


# --- what a vendor says --------------------------------------------------------------------------


def told_window(plan: PlanLimits, text: str, seconds: float) -> Window | None:
    """Which window a refusal is of: the one that its text names, else the shortest one that is long
    enough for the time until its end.

    Args:
        text: the vendor's words: `Your 5-hour quota has been exhausted`, `week allocated quota
            exceeded`.
        seconds: until the end that it names.
    """
    windows = sorted({limit.window for limit in plan.limits}, key=lambda each: each.seconds)
    words = text.lower()
    for word, least, most in _NAMED:
        if word in words:
            for window in windows:
                if least <= window.seconds <= most and seconds <= window.seconds:
                    return window
    long_enough = (each for each in windows if seconds <= each.seconds)
    return next(long_enough, windows[-1] if windows else None)


_HOUR_S: Final = 3600.0
#: How vendors name a window, and how long such a one is.
_NAMED: Final = (
    ("month", 27 * 24 * _HOUR_S, math.inf),
    ("week", 5 * 24 * _HOUR_S, 8 * 24 * _HOUR_S),
    ("7-day", 5 * 24 * _HOUR_S, 8 * 24 * _HOUR_S),
    ("hour", 0.0, 24 * _HOUR_S),
)


def corrected_begin(window: Window, until: float, begun: float | None) -> float | None:
    """When a window that begins with a call has begun, if the vendor says when it ends."""
    return until - window.seconds if window.kind == "first" else begun


def utc_text(at: float) -> str:
    """A time for a message: people and programs of any time zone read it."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
