"""What a plan allows: the vendors' limits as data, and the notation in which an operator states
others (QWEN_PROXY_PLANS). Pure.

    WHO=LIMIT,LIMIT,…; WHO=…

`WHO` is an account's name, or `coding` or `token` for every account of that plan. A `LIMIT` is

    6000/5h             calls within any five hours
    45000/week          from Monday, 00:00 in the vendor's time (UTC+8), to the next
    90000/month@17      from the 17th of a month, 00:00 UTC+8, to that of the next
    3000credits/5h@first   within five hours from the first call after the last such time
    2m tokens/7d        tokens of prompts and answers
    ?/7d@first          counted, but the limit is not known
    pro, standard@17    what the vendor sells by that name (`PRESETS`)
    credit=1200tokens   what a credit is worth; without it nobody knows how many were used
    off                 nothing is counted
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast

from qwen_wsgi.hosts import Family

Unit = Literal["calls", "tokens", "credits"]
Kind = Literal["rolling", "first", "week", "month"]

_DAY_S: Final = 86_400.0
_WEEK_S: Final = 7 * _DAY_S
#: No window is longer: what was used is remembered for little longer (`state.database.calls`).
LONGEST_S: Final = 31 * _DAY_S

_UNITS_S: Final = {"min": 60.0, "h": 3600.0, "d": _DAY_S, "w": _WEEK_S}
_MANY: Final = {"": 1.0, "k": 1e3, "m": 1e6}
_MOST: Final = 1e15

_LIMIT: Final = re.compile(
    r"(?:(?P<unknown>\?)|(?P<amount>\d+(?:\.\d+)?)(?P<many>[km]?)) ?"
    r"(?P<unit>calls|tokens|credits)?"
    r"/(?:(?P<count>\d{1,4})(?P<span>min|[hdw])|(?P<calendar>week|month))"
    r"(?:@(?P<at>first|\d{1,2}))?"
)
_CREDIT: Final = re.compile(r"credit=(\d+(?:\.\d+)?)([km]?) ?(calls|tokens)")
_WHO: Final = re.compile(r"[a-z0-9][a-z0-9-]*")
_FORM: Final = (
    "must be entries such as coding=6000/5h,45000/week,90000/month@17; token=3000credits/5h@first, "
    "separated by semicolons (docs/plans.md)"
)


class Window(NamedTuple):
    """A stretch of time for which a limit is.

    Attributes:
        name: as it was written: `5h`, `week`.
        kind: `rolling` ends now; `first` begins with the first call after the last one; `week` and
            `month` are the calendar's, in the vendor's time.
        seconds: its length; of a month the longest.
        day: of the month on which it begins; in a shorter month its last day.
    """

    name: str
    kind: Kind
    seconds: float
    day: int = 1


class Limit(NamedTuple):
    """What may be used within one window; an unknown amount is None."""

    window: Window
    amount: float | None
    unit: Unit = "calls"


class Credit(NamedTuple):
    """What a credit is worth: so many calls or tokens."""

    amount: float
    unit: Unit


@dataclass(frozen=True)
class PlanLimits:
    """The limits of one plan.

    Attributes:
        credit: None where it is not known what a credit is worth.
        stated: by the operator; else they are the vendor's for a plan that is only assumed.
    """

    limits: tuple[Limit, ...] = ()
    credit: Credit | None = None
    stated: bool = False


@dataclass(frozen=True)
class Plans:
    """What the operator states of plans: by account or kind, in the order of the text.

    Attributes:
        text: as it was written.
    """

    entries: tuple[tuple[str, PlanLimits], ...] = ()
    text: str = ""

    def __str__(self) -> str:
        return self.text

    def limits_of(self, account: str, family: Family) -> PlanLimits | None:
        """The limits of an account: of its own entry, else of its plan's; else the vendor's for the
        plan that is assumed. None where nothing is to be counted."""
        stated, kind = dict(self.entries), KINDS.get(family, "")
        found = stated.get(account) or stated.get(kind) or DEFAULTS.get(kind)
        return found if found is not None and found.limits else None

    @property
    def accounts(self) -> tuple[str, ...]:
        """The names of accounts that it has entries for."""
        return tuple(who for who, _ in self.entries if who not in KINDS.values())


#: The word for each kind of plan.
KINDS: Final = {Family.CODING_PLAN: "coding", Family.TOKEN_PLAN: "token"}

#: What the vendor sells, by name. Coding Plan: Model Studio's "Coding Plan" page of 2026-06. Token
#: Plan, personal: in windows by its Chinese FAQ of 2026-07, by the month by the newer English page;
#: nobody says what a call costs in credits.
PRESETS: Final = {
    "coding": {"pro": "6000/5h,45000/week,90000/month"},
    "token": {
        "lite": "700credits/5h@first,2500credits/7d@first",
        "standard": "3000credits/5h@first,10000credits/7d@first",
        "pro": "12000credits/5h@first,40000credits/7d@first",
        "lite-monthly": "11500credits/month",
        "essential-monthly": "25500credits/month",
        "standard-monthly": "45000credits/month",
        "pro-monthly": "180000credits/month",
    },
}


def parse(raw: str) -> Plans:
    """Read what an operator states.

    Raises:
        ValueError: it cannot be read; its text ends the sentence "NAME='text': …".
    """
    entries: dict[str, PlanLimits] = {}
    for entry in (each.strip() for each in raw.split(";")):
        if not entry:
            continue
        who, equals, rest = (part.strip() for part in entry.partition("="))
        if not equals or not _WHO.fullmatch(who):
            raise ValueError(_FORM)
        if who in entries:
            raise ValueError(f"{who} has two entries")
        entries[who] = _plan(who, rest)
    return Plans(tuple(entries.items()), raw)


def _plan(who: str, text: str, *, stated: bool = True) -> PlanLimits:
    limits: list[Limit] = []
    credit = None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["off"]:
        return PlanLimits(stated=stated)
    for word in words:
        if found := _CREDIT.fullmatch(word):
            credit = Credit(_positive(found[1], found[2], word), cast(Unit, found[3]))
        elif found := _LIMIT.fullmatch(word):
            limits.append(_limit(found, word))
        else:
            limits += _preset(who, word)
    if not limits:
        raise ValueError(f"{who} has no limit: {_FORM}")
    names = [(limit.window.name, limit.unit) for limit in limits]
    if len(set(names)) < len(names):
        raise ValueError(f"{who} has two limits for the same window")
    kinds = {limit.window.name: limit.window for limit in limits}
    if any(limit.window != kinds[limit.window.name] for limit in limits):
        raise ValueError(f"{who} has two windows with the same name that begin differently")
    return PlanLimits(tuple(limits), credit, stated)


def _preset(who: str, word: str) -> list[Limit]:
    name, at, day = word.partition("@")
    known = PRESETS.get(who) or {n: text for each in PRESETS.values() for n, text in each.items()}
    sold = [each for each in PRESETS.values() if name in each]
    if who not in PRESETS and len(sold) > 1:
        raise ValueError(f"{word!r} of {who} is the name of two plans: write its limits instead")
    if name not in known:
        raise ValueError(
            f"{word!r} is neither a limit such as 6000/5h, 45000/week, 90000/month@17, nor one of "
            f"{', '.join(known)}, off"
        )
    limits = list(_plan("", known[name]).limits)
    if not at:
        return limits
    if not any(limit.window.kind == "month" for limit in limits):
        raise ValueError(f"{word!r}: only months begin on a day")
    return [
        limit._replace(window=limit.window._replace(day=_day(day, word)))
        if limit.window.kind == "month"
        else limit
        for limit in limits
    ]


def _limit(found: re.Match[str], word: str) -> Limit:
    amount = None
    if not found["unknown"]:
        amount = _positive(found["amount"], found["many"], word)
    return Limit(_window(found, word), amount, cast(Unit, found["unit"] or "calls"))


def _window(found: re.Match[str], word: str) -> Window:
    at, calendar = found["at"], found["calendar"]
    if calendar == "month":
        return Window("month", "month", LONGEST_S, 1 if at is None else _day(at, word))
    if calendar == "week":
        if at is not None:
            raise ValueError(f"{word!r}: a week begins on Monday; 7d@first begins with a call")
        return Window("week", "week", _WEEK_S)
    seconds = int(found["count"]) * _UNITS_S[found["span"]]
    if not 60 <= seconds <= LONGEST_S:
        raise ValueError(f"{word!r}: a window has at least 1min and at most 31d")
    if at not in (None, "first"):
        raise ValueError(f"{word!r}: only a month begins on a day")
    return Window(found["count"] + found["span"], "first" if at else "rolling", seconds)


def _day(text: str, word: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 31:
        raise ValueError(f"{word!r}: a month begins on a day from 1 to 31")
    return int(text)


def _positive(number: str, many: str, word: str) -> float:
    value = float(number) * _MANY[many]
    if not 0 < value <= _MOST:
        raise ValueError(f"{word!r}: a limit must be above 0")
    return value


#: The limits that are assumed where nothing is stated.
DEFAULTS: Final = {
    "coding": _plan("coding", PRESETS["coding"]["pro"], stated=False),
    "token": _plan("token", "?/5h@first,?/7d@first", stated=False),
}
