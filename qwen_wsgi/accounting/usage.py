"""What was used: the ledger's calls summed up for a question, in the shape that scripts rely on.

`{"since", "until", "by", "rows": [{"key", "calls", "refused", "failed", "input_tokens",
"cached_tokens", "output_tokens", "reasoning_tokens", "unknown_usage", "cache_hits", "money",
"saved_by_cache", "currency"}]}`, and with other boxes `"boxes": {"counted", "others_unknown"}`: how
many boxes the numbers are of, and whether they are of this box alone because the others' are
unknown now. Pure.

`calls` are those that were not refused; `failed`, `unknown_usage` and `cache_hits` (those that the
response cache has answered, with nothing used) are among them. Tokens are the
sums of what is known; `unknown_usage` says of how many calls nothing is. Each currency has a row of
its own, and so has what was used without a known price: its `money` is None, never zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from types import MappingProxyType
from typing import Any, Final, NamedTuple, get_args

from qwen_wsgi.state.database.calls import QUARTER_S, By, FirstBytes, Quarter, Totals

#: What calls can be summed up by.
BY: Final[tuple[By, ...]] = get_args(By)

#: The members of a row, in their order.
COLUMNS: Final = (
    "key",
    "calls",
    "refused",
    "failed",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "unknown_usage",
    "cache_hits",
    "money",
    "saved_by_cache",
    "currency",
)

_AGO: Final = re.compile(r"(\d{1,6})\s*(min|[smhdw])")
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SECONDS: Final = re.compile(r"\d{9,11}(\.\d+)?")
_MICRO: Final = 1e6

#: Where the counts begin in `Totals`.
_COUNTS: Final = Totals._fields.index("calls")


class Span(NamedTuple):
    """A time: from `since`, before `until`; seconds since 1970."""

    since: float
    until: float


# --- times ---------------------------------------------------------------------------------------


def moment(text: str, *, now: float, zone: tzinfo | None = None, end: bool = False) -> float:
    """Read a time: `7d` (ago), `2026-11-01`, `2026-11-01T12:30`, `today`, `month`, `now`, or a
    number of seconds since 1970.

    Args:
        zone: of dates without one; None is the machine's.
        end: a date means its end, so that a span until it has that day in it.

    Raises:
        ValueError: it is none of these; the text says what may be given.
    """
    word = text.strip().lower()
    if word == "now":
        return now + end  # with what ends in this moment
    if found := _AGO.fullmatch(word):
        return now - int(found[1]) * _UNITS[found[2]]
    if _SECONDS.fullmatch(word):
        return float(word)
    if word in ("today", "month"):
        day = midnight(now, zone)
        return day if word == "today" else midnight(now, zone, day=1)
    try:
        given = datetime.fromisoformat(text.strip())
        if given.tzinfo is None and zone is not None:
            given = given.replace(tzinfo=zone)
        if end and len(word) <= len("2026-11-01"):
            given += timedelta(days=1)
        return given.timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            "must be a time such as 7d, 12h, 2026-11-01, 2026-11-01T12:30, today or month"
        ) from None


def span(since: str, until: str, *, now: float, zone: tzinfo | None = None) -> Span:
    """The time between two texts, as `moment` reads them.

    Raises:
        ValueError: it is none; the text begins with the name of the one that is wrong.
    """
    read = {}
    for name, text, end in (("since", since, False), ("until", until, True)):
        try:
            read[name] = moment(text, now=now, zone=zone, end=end)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    if read["since"] >= read["until"]:
        raise ValueError("since must be before until")
    return Span(**read)


def midnight(at: float, zone: tzinfo | None = None, *, day: int | None = None) -> float:
    """When the day of a time began, or a day of its month."""
    begin = _local(at, zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=zone)
    return (begin if day is None else begin.replace(day=day)).timestamp()


def _local(at: float, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(at, zone) if zone else datetime.fromtimestamp(at).astimezone()


# --- the report ----------------------------------------------------------------------------------


def report(
    totals: Iterable[Totals], by: By, asked: Span, zone: tzinfo | None = None
) -> dict[str, Any]:
    """The answer to a question, as JSON."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for each in totals:
        _add(groups, (key_of(each.key, by, zone), each.priced), each[_COUNTS:])
    for key, counts in [(k, c) for (k, priced), c in groups.items() if priced is None]:
        # What has used nothing stands with what has.
        others = [(c[0], p) for (k, p), c in groups.items() if k == key and p is not None]
        if others:
            del groups[key, None]
            _add(groups, (key, max(others)[1]), counts)
    rows = [_row(key, priced, counts) for (key, priced), counts in groups.items()]
    if by in ("day", "hour"):
        rows.sort(key=lambda row: (row["key"], row["currency"] or ""))
    else:
        rows.sort(key=lambda row: (-row["calls"], -row["refused"], row["key"], str(row)))
    return {"since": int(asked.since), "until": int(asked.until), "by": by, "rows": rows}


def keys(by: By, asked: Span, zone: tzinfo | None = None) -> list[str]:
    """The days or hours of a time, in order, as `report` names them: those without calls, too."""
    quarters = range(int(asked.since // QUARTER_S), math.ceil(asked.until / QUARTER_S))
    return list(dict.fromkeys(key_of(number, by, zone) for number in quarters))


def totals_of(
    quarters: Iterable[Quarter],
    by: By,
    *,
    client_id: str | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> list[Totals]:
    """What other boxes have used, in the form of this box's own numbers.

    Args:
        client_id: only that of this client; None for all.
        names: the latest names of clients, by their ids: a client is one also after a new name.
    """
    found = [each for each in quarters if client_id is None or each.client_id == client_id]
    if by in ("day", "hour"):
        keys: list[str | int] = [each.number for each in found]
    elif by == "client":
        latest = {each.client_id: each.client for each in sorted(found, key=_number)} | dict(names)
        keys = [latest[each.client_id] for each in found]
    else:
        keys = [getattr(each, by) for each in found]
    return [
        Totals._make((key, each.priced, *each.counts))
        for key, each in zip(keys, found, strict=True)
    ]


def added(known: FirstBytes | None, more: FirstBytes) -> FirstBytes:
    """The times to the first byte of two kinds of calls as those of one, the second one's."""
    if known is None:
        return more
    return FirstBytes(
        more.key,
        known.calls + more.calls,
        known.sum_ms + more.sum_ms,
        max(known.most_ms, more.most_ms),
        tuple(map(int.__add__, known.classes, more.classes)),
    )


def _number(quarter: Quarter) -> int:
    return quarter.number


def _add(
    groups: dict[tuple[str, str | None], list[int]],
    group: tuple[str, str | None],
    counts: Sequence[Any],
) -> None:
    known = groups.setdefault(group, [0] * len(counts))
    known[:] = map(int.__add__, known, counts)


def key_of(key: str | int, by: By, zone: tzinfo | None) -> str:
    """The key of a report's row: a name, or the day or hour of a quarter of an hour."""
    if isinstance(key, str):
        return key
    at = _local(key * QUARTER_S, zone)
    # With its distance from UTC: in autumn there is an hour twice.
    return f"{at:%Y-%m-%d}" if by == "day" else at.replace(minute=0).isoformat(timespec="minutes")


def _row(key: str, currency: str | None, counts: Sequence[int]) -> dict[str, Any]:
    named = dict(zip(Totals._fields[_COUNTS:], counts, strict=True))
    money, saved = named.pop("money_micro"), named.pop("saved_micro")
    named["calls"] -= named["refused"]
    return {
        "key": key,
        **named,
        "money": round(money / _MICRO, 6) if currency else None,
        "saved_by_cache": round(saved / _MICRO, 6) if currency else None,
        "currency": currency or None,
    }


class Receipt(NamedTuple):
    """What caches have spared.

    Attributes:
        input_tokens, cached_tokens: of all prompts, and those of them that were read from a cache.
        money: by currency: what was paid, and what was saved.
    """

    input_tokens: int
    cached_tokens: int
    money: Mapping[str, tuple[float, float]]

    @property
    def share(self) -> float:
        """The part of the prompts' tokens that was read from a cache."""
        return self.cached_tokens / self.input_tokens if self.input_tokens else 0.0


def receipt(rows: Sequence[Mapping[str, Any]]) -> Receipt:
    """The cache receipt of a report's rows."""
    money: dict[str, tuple[float, float]] = {}
    for row in rows:
        if name := row["currency"]:
            paid, saved = money.get(name, (0.0, 0.0))
            money[name] = (paid + row["money"], saved + row["saved_by_cache"])
    return Receipt(
        sum(row["input_tokens"] for row in rows),
        sum(row["cached_tokens"] for row in rows),
        dict(sorted(money.items())),
    )
