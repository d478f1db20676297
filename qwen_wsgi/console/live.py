"""What the page of live calls shows of each call, as cells of a table. Pure.

A page of two hundred calls must stay small: a row has what tells calls apart, and a link to the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo
from html import escape
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from qwen_wsgi.console import timeline
from qwen_wsgi.console.usage.charts import readable, shortened
from qwen_wsgi.state.database.calls import CallRow

#: Characters of a name in a row.
_LONGEST: Final = 32

_STATES: Final = {"waiting": "waits", "queued": "queues", "streaming": "streams"}


class LiveRow(NamedTuple):
    """A call in flight.

    Attributes:
        key: tells calls apart while they run: clients may give several calls one id.
        id: of the call.
        cells: client, model, account, state, tokens so far, time.
    """

    key: str
    id: str
    cells: tuple[str, ...]

    @property
    def address(self) -> str:
        """Where its details are."""
        return address(self.id)


def live_row(told: Mapping[str, Any]) -> LiveRow:
    """A call in flight, as `in_flight.CallsInFlight` tells it."""
    tokens = told["streamed_tokens"]
    cells = (
        _name(told["client"]),
        _name(told["model"] or told["endpoint"]),
        _name(told["account"] or ""),
        _STATES.get(told["state"], told["state"]),
        f"≈ {tokens:,}" if tokens else "–",
        timeline.spoken(round(told["seconds"]) * 1000),
    )
    return LiveRow(f"{told['worker']}-{told['started_at']}-{told['id']}", told["id"], cells)


def ended_row(row: CallRow, zone: tzinfo | None = None) -> str:
    """A call that has ended, as a row of a table in HTML."""
    cells = (
        f"{datetime.fromtimestamp(row.at, zone):%H:%M:%S}",
        _name(row.client),
        _name(row.model or row.endpoint),
        _name(row.account),
    )
    plain = "".join(f"<td>{escape(cell)}" for cell in cells)
    bad = "" if row.outcome == "complete" else ' class="bad"'
    link = address(row.request_id).removeprefix("/console/")
    return (
        f'<tr>{plain}<td{bad}><a href="{link}">{escape(ending(row))}</a>'
        f"<td>{tokens(row)}<td>{timeline.spoken(row.total_ms)}"
        f"<td>{timeline.drawn(timeline.of_row(row))}"
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
    return "?" if value is None else f"{value:,}"


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


def told_of(silent: int, has_more: bool) -> str:
    """What the list of calls in flight leaves out; "" if nothing."""
    notes = []
    if has_more:
        notes.append("Only the newest calls are shown.")
    if silent:
        notes.append(f"{silent} of the workers did not answer in time: their calls are missing.")
    return " ".join(notes)


def _name(text: str) -> str:
    return shortened(readable(text), _LONGEST) or "–"
