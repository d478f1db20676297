"""What somebody asks of the usage page: which sums, of which time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import tzinfo
from typing import Final, NamedTuple

from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.state.database.calls import By

_HOUR_S: Final = 3600
_DAY_S: Final = 86_400

#: What can be asked, in the order of the page, and for how long: a page with more bars, and all
#: their numbers, would become large.
CHOICES: Final[Mapping[By, tuple[str, ...]]] = {
    "day": ("30d", "7d", "60d"),
    "hour": ("24h", "12h", "48h"),
    "client": ("30d", "24h", "7d", "90d", "365d"),
    "model": ("30d", "24h", "7d", "90d", "365d"),
    "account": ("30d", "24h", "7d", "90d", "365d"),
}


class Question(NamedTuple):
    """A question.

    Attributes:
        last: of which time, as a choice of `CHOICES`.
    """

    by: By
    last: str
    span: Span


def read(arguments: Mapping[str, str], *, now: float, zone: tzinfo | None) -> Question:
    """The question of an address; what it does not say, or what cannot be asked, is the first
    choice."""
    by: By = next((each for each in CHOICES if each == arguments.get("by")), "day")
    choices = CHOICES[by]
    last = arguments.get("last", "")
    last = last if last in choices else choices[0]
    return Question(by, last, _span(by, last, now, zone))


def _span(by: By, last: str, now: float, zone: tzinfo | None) -> Span:
    """Whole days and hours, so that the first one is no smaller than it was."""
    until, count = now + 1, int(last[:-1])
    if by == "day":
        # From noon to noon: a day may have an hour more or less.
        noon = usage.midnight(now, zone) + _DAY_S / 2
        return Span(usage.midnight(noon - (count - 1) * _DAY_S, zone), until)
    if by == "hour":
        return Span(now // _HOUR_S * _HOUR_S - (count - 1) * _HOUR_S, until)
    return Span(now - count * (_HOUR_S if last[-1] == "h" else _DAY_S), until)


def words_of(last: str) -> str:
    """A time as people say it: `the last 30 days`."""
    unit = "hours" if last[-1] == "h" else "days"
    return f"the last {last[:-1]} {unit}"
