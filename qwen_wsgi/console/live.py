"""What the page of live calls shows of each call, as cells of a table. Pure.

A page of two hundred calls must stay small: a row has what tells calls apart, and a link to the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from functools import lru_cache
from html import escape
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from qwen_wsgi.console import timeline
from qwen_wsgi.console.usage.charts import readable, shortened
from qwen_wsgi.state.database.calls import CallRow

#: Bytes that a name in a row may take, so that a page of 200 rows stays small: letters of other
#: scripts take up to four, and what is escaped up to five. And those of the name of a box.
_ROOM: Final = 26
_PLACE: Final = 16

#: From here on a row tells tokens in millions; all digits are on the call's page.
_MILLIONS: Final = 10_000_000

_STATES: Final = {"waiting": "waits", "queued": "queues", "streaming": "streams"}


class LiveRow(NamedTuple):
    """A call in flight.

    Attributes:
        key: tells calls apart while they run: clients may give several calls one id.
        id: of the call.
        box: where it runs; "" for this one.
        cells: client, model, account, state, tokens so far, time; and the box, where there are
            several.
    """

    key: str
    id: str
    box: str
    cells: tuple[str, ...]

    @property
    def address(self) -> str:
        """Where its details are."""
        return address(self.id)


def live_row(told: Mapping[str, Any], box: str = "", place: str | None = None) -> LiveRow:
    """A call in flight, as `in_flight.CallsInFlight` tells it.

    Args:
        box: the id of another box.
        place: the name of the box; None where there is one alone.
    """
    tokens = told["streamed_tokens"]
    cells: tuple[str, ...] = (
        _name(told["client"]),
        _name(told["model"] or told["endpoint"]),
        _name(told["account"] or ""),
        _STATES.get(told["state"], told["state"]),
        f"≈ {tokens:,}" if tokens else "–",
        timeline.spoken(round(told["seconds"]) * 1000),
    )
    if place is not None:
        cells += (_name(place, _PLACE),)
    key = f"{box}{told['worker']}-{told['started_at']}-{told['id']}"
    return LiveRow(key, told["id"], box, cells)


def ended_row(
    row: CallRow,
    zone: tzinfo | None = None,
    place: str | None = None,
    *,
    now: float | None = None,
) -> str:
    """A call that has ended, as a row of a table in HTML. Its link leads to the calls of its
    moment: ids are the clients', and may be long.

    Args:
        place: the name of its box; None where there is one alone.
        now: the time of calls of other days has their date; None leaves it out.
    """
    names = (row.client, row.model or row.endpoint, row.account)
    plain = "".join([f"<td>{_cell(name)}" for name in names])
    bad = "" if row.outcome == "complete" else " class=bad"
    end = "" if place is None else f"<td>{_cell(place, _PLACE)}"
    return (
        f"<tr><td>{_moment(int(row.at), zone, None if now is None else int(now))}{plain}"
        f"<td{bad}><a href=live/call?at={row.at!r}>{_cell(ending(row))}</a>"
        f"<td>{tokens(row)}<td>{timeline.spoken(row.total_ms)}"
        f"<td>{timeline.drawn(timeline.of_row(row))}{end}"
    )


def address(request_id: str) -> str:
    """Where the details of a call are. Ids are the clients': they may hold slashes."""
    return f"/console/live/call?id={quote(request_id, safe='')}"


def ending(row: CallRow) -> str:
    """How a call ended, in a word or two."""
    if row.outcome == "complete" and row.cache_hits:
        return "from the cache"
    return readable(row.error or row.outcome.replace("_", " "))


def tokens(row: CallRow) -> str:
    """The tokens of a call: `in / out`; what is unknown stays so."""
    if row.input_tokens is None and row.output_tokens is None:
        return "unknown" if row.unknown_usage else "–"
    return f"{_count(row.input_tokens)} / {_count(row.output_tokens)}"


def _count(value: int | None) -> str:
    if value is None:
        return "?"
    return f"{value:,}" if value < _MILLIONS else f"{value / 1e6:,.0f} M"


def money(row: CallRow) -> str:
    """What a call cost; unknown where its price is."""
    if row.cache_hits:
        return "nothing: the response cache has answered"
    if row.money_micro is None or row.currency is None:
        return "unknown"
    return f"{row.money_micro / 1e6:,.6f} {row.currency}"


def facts(row: CallRow, zone: tzinfo | None = None) -> list[tuple[str, str]]:
    """All that the ledger knows of a call, as names and values."""
    found = [
        ("ended", f"{datetime.fromtimestamp(row.at, zone):%Y-%m-%d %H:%M:%S}"),
        ("client", row.client),
        ("endpoint", row.endpoint),
        ("model", row.model),
        ("account", row.account),
        ("status", str(row.status or "–")),
        ("outcome", row.outcome),
        ("error", row.error),
        ("attempts", str(row.attempts)),
        ("input tokens", _known(row.input_tokens)),
        ("of them cached", _known(row.cached_tokens)),
        ("output tokens", _known(row.output_tokens)),
        ("of them reasoning", _known(row.reasoning_tokens)),
        ("money", money(row)),
    ]
    return [(name, readable(value) or "–") for name, value in found]


def fact_of_box(place: str) -> list[tuple[str, str]]:
    """The box of a call, among its facts; "" for this one."""
    return [("box", readable(place))] if place else []


def _known(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def facts_in_flight(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All that is told of a call in flight, as names and values."""
    found = [
        ("client", told["client"]),
        ("from", told["address"]),
        ("endpoint", told["endpoint"]),
        ("model", told["model"]),
        ("model at the account", told["upstream_model"]),
        ("account", told["account"]),
        ("stage", _STATES.get(told["state"], told["state"])),
        ("attempts", str(told["attempts"])),
        ("tokens so far", f"≈ {told['streamed_tokens']:,}"),
        ("worker", str(told["worker"])),
    ]
    return [(name, readable(value or "") or "–") for name, value in found]


def places(own: str, others: Mapping[str, str]) -> dict[str, str]:
    """The names of boxes for people, by their ids, this one's as "": several of one name are told
    apart."""
    named = {"": own, **others}
    return {
        box: f"{name} {box[:4]}" if box and [*named.values()].count(name) > 1 else name
        for box, name in named.items()
    }


def told_of_boxes(names: Sequence[str], unread: int, is_away: bool) -> str:
    """Whose calls are shown, where there are several boxes.

    Args:
        names: of this box and of those that tell their calls.
        unread: how many tell what cannot be read here.
        is_away: Redis is.
    """
    own, *others = [readable(name) for name in names]
    if is_away:
        return f"Redis is away, so only the calls of this box ({own}) are shown."
    told = (
        f"Calls of {len(names)} boxes: {', '.join([own, *others])}."
        if others
        else f"Calls of this box ({own}); no other one tells any."
    )
    if unread:
        told += (
            f" {unread} more cannot be read: another QWEN_PROXY_STATE_KEY, or another version of "
            "qwen-proxy."
        )
    return told


def told_of(silent: int, has_more: bool) -> str:
    """What the list of calls in flight leaves out; "" if nothing."""
    notes = []
    if has_more:
        notes.append("Only the newest calls are shown.")
    if silent:
        notes.append(f"{silent} of the workers did not answer in time: their calls are missing.")
    return " ".join(notes)


# What follows is asked fifty times a second for a page that is open, mostly for the same few names.


@lru_cache(maxsize=1024)
def _name(text: str, room: int = _ROOM) -> str:
    """A name that has room in a row, and whose bytes have room in a page of many rows."""
    text, most = readable(text), room
    while len(_text(fit := shortened(text, most)).encode()) > room:
        most -= 1
    return fit or "–"


@lru_cache(maxsize=1024)
def _cell(text: str, room: int = _ROOM) -> str:
    """The same in HTML."""
    return _text(_name(text, room))


@lru_cache(maxsize=1024)
def _moment(at: int, zone: tzinfo | None, now: int | None) -> str:
    """When a call ended: the time, and for another day than today the date."""
    moment = datetime.fromtimestamp(at, zone)
    is_old = now is not None and moment.date() != datetime.fromtimestamp(now, zone).date()
    return f"{moment:%m-%d %H:%M}" if is_old else f"{moment:%H:%M:%S}"


def _text(text: str) -> str:
    """A text in HTML, outside of tags."""
    return escape(text, quote=False)
