"""Times that upstreams name: for how long to wait, from headers and from the text of an error.

Pure: the current time is an argument, in seconds since 1970.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_DAY_S: Final = 86_400.0
#: The end of a plan's month is not further away, and no zone makes more of it.
LONGEST_S: Final = 32 * _DAY_S

#: The vendors' clock, where they name no zone.
_BEIJING_S: Final = 8 * 3600.0

_UNITS_S: Final = {"ms": 0.001, "mi": 60.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY_S}
_UNIT: Final = (
    r"(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)(?![a-z])"
)
_PART: Final = re.compile(rf"(\d{{1,6}}(?:\.\d{{1,9}})?) ?({_UNIT})", re.IGNORECASE)

#: A date is not longer; the parser's time grows with the text.
_DATE_CHARS: Final = 64

#: "Please try again in 6m0s." (OpenAI), "Resets in 9h22m20s.", "will reset after 161h39m41s."
_IN: Final = re.compile(
    rf"\b(?:retry|try again|resets?) (?:in|after) "
    rf"((?:\d{{1,6}}(?:\.\d{{1,9}})? ?{_UNIT} ?){{1,4}})",
    re.IGNORECASE,
)

#: "The quota will reset at 07-28 14:20:00 UTC." (Token Plan), "It will reset at 2026-08-29 23:59:59
#: +0800 CST.", "reset at 2026-04-12T00:00:00Z", "您的限额将在 2026-09-07 18:01:51 重置" (GLM).
_AT: Final = re.compile(
    r"(?:\bresets? (?:at|on):? ?|将在 ?)"
    r"(?:(\d{4})-)?(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d))?(?:\.\d{1,9})?"
    r" ?(?:(Z\b|UTC|GMT)|([+-])(\d\d):?(\d\d))?",
    re.IGNORECASE,
)


def retry_after_s(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """`Retry-After` in seconds, below a day.

    Args:
        now: for a header that names a date; without it the answer's own `Date` counts.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return _below_a_day(milliseconds / 1000)
    value = headers.get("retry-after", "")
    seconds = _number(value)
    if seconds is None:
        at, now = _date(value), _date(headers.get("date", "")) if now is None else now
        if at is None or now is None:
            return None
        seconds = max(0.0, at - now)
    return _below_a_day(seconds)


def named_s(text: str, *, now: float | None, most_s: float = _DAY_S) -> float | None:
    """For how long a text says to wait; None if it does not say.

    Args:
        text: with single spaces only.
        now: for a text that names a time of day.
        most_s: a longer time becomes this one.
    """
    if found := _IN.search(text):
        parts = _PART.findall(found[1])
        seconds = sum(float(number) * _unit_s(unit) for number, unit in parts)
        return min(seconds, most_s) if parts else None
    found = _AT.search(text)
    return None if found is None or now is None else _until_s(found, now, most_s)


def reset_s(text: str, *, now: float | None) -> float | None:
    """In how long a text says that a window ends; None if it does not say, or what it says is too
    far away: a date without a year that has just passed would be that of the next year."""
    found = named_s(text, now=now, most_s=math.inf)
    return found if found is not None and found <= LONGEST_S else None


def date_of(headers: Mapping[str, str]) -> float | None:
    """When an answer was made, by its own word."""
    return _date(headers.get("date", ""))


def _until_s(found: re.Match[str], now: float, most_s: float) -> float | None:
    """The seconds until a time of day.

    Without a zone it is the vendor's or UTC: the earlier one that is still to come counts, because
    a wait that is too short costs one refused call, and one that is too long the account.
    """
    year, month, day, hour, minute, second, utc, sign, hours, minutes = found.groups()
    zones: tuple[float, ...] = (_BEIJING_S, 0.0)
    if utc:
        zones = (0.0,)
    elif sign:
        zones = (float(sign + "1") * (int(hours) * 3600 + int(minutes) * 60),)
    this_year = datetime.fromtimestamp(now, UTC).year
    waits = []
    for each in (int(year),) if year else (this_year, this_year + 1):
        try:
            at = datetime(
                each, int(month), int(day), int(hour), int(minute), int(second or 0), tzinfo=UTC
            )
        except ValueError:
            continue
        waits += [at.timestamp() - zone - now for zone in zones]
    to_come = [wait for wait in waits if wait > 0]
    return min(*to_come, most_s) if to_come else None


def _unit_s(unit: str) -> float:
    unit = unit.lower()
    return _UNITS_S["ms" if unit.startswith(("ms", "milli")) else unit[0]]


def _number(text: str) -> float | None:
    try:
        return float(text[:_DATE_CHARS])
    except ValueError:
        return None


def _below_a_day(seconds: float) -> float | None:
    return seconds if 0 <= seconds < _DAY_S else None


def _date(text: str) -> float | None:
    """An HTTP date."""
    try:
        return parsedate_to_datetime(text[:_DATE_CHARS]).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
