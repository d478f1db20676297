"""`/console/live`: the calls in flight and those that ended lately, and the end of one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import tzinfo
from functools import partial
from typing import Any, Final, NamedTuple

from flask import Response, request

from qwen_wsgi.accounting.books import Books, BooksUnavailable
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.console import page
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.box_calls import BoxAway
from qwen_wsgi.clock import sleep
from qwen_wsgi.console import live, timeline
from qwen_wsgi.console.live import LiveRow
from qwen_wsgi.errors import ApiError, NotFound
from qwen_wsgi.greenlets import apart, watch_client
from qwen_wsgi.in_flight import CallsInFlight, Watched
from qwen_wsgi.protocol.json_object import encoded
from qwen_wsgi.services import Services
from qwen_wsgi.state.database.calls import CallRow
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable

log = logging.getLogger(__name__)

blueprint = page.blueprint("live")

#: Calls that have ended, in a page.
_MOST_ENDED: Final = 200
#: Whose positions a page tells.
_MOST_BOXES: Final = 64
#: How often the page is told what is new.
_TICK_S: Final = 1.0
#: How often it is looked whether the session goes on, and how long a stream may say nothing.
_SESSION_S: Final = 4.0
_SILENT_S: Final = 15.0


@blueprint.get("/console/live")
def shown() -> Response:
    """The page."""
    services = lifecycle.live().services
    now_s = services.clock.monotonic()
    # Before the record is read: what ends from now on is told to the page by its events.
    found = services.in_flight.watch(now_s, now_s)
    seen = _Seen(services, found, Position(now_s, {}))
    rows, problem = _ended(services.books)
    return page.render(
        "live",
        title="Live",
        since=str(seen.position),
        calls=seen.live_rows(),
        note=seen.note,
        ended=seen.ended_rows(rows, services.settings.zone),
        problem=problem,
        stages=timeline.KINDS,
        several=services.box_calls.are_several,
    )


def _ended(books: Books | None) -> tuple[list[CallRow], str]:
    """The calls of this box that ended last, and why there are none."""
    if books is None:
        return [], (
            "This server keeps no record of calls (QWEN_PROXY_LEDGER_DAYS=0): only those that end "
            "while this page is open are shown."
        )
    try:
        return apart(partial(books.latest, _MOST_ENDED)), ""
    except BooksUnavailable as error:
        log.error("console: calls cannot be shown: %s", error)
        return [], "The record of calls cannot be read now; the server's log says why."


class Position(NamedTuple):
    """What a page has seen of the calls that ended.

    Attributes:
        own_s: those of this box until then, by its monotonic clock.
        others: those of each other box up to a number (`box_calls.BoxTold`).
    """

    own_s: float
    others: Mapping[str, int]

    def __str__(self) -> str:
        others = (f";{box}={number}" for box, number in self.others.items())
        return f"{self.own_s!r}{''.join(others)}"


def position_of(text: str, now_s: float) -> Position:
    """The position that a text says; without one: now."""
    own, *others = text.split(";")[:_MOST_BOXES]
    try:
        own_s = min(max(now_s - 10, float(own)), now_s)  # beside NaN `max` keeps the first
    except ValueError:
        return Position(now_s, {})
    parts = [each.partition("=") for each in others]
    return Position(own_s, {box: int(n) for box, _, n in parts if n.isdecimal() and len(n) < 20})


class _Seen:
    """The calls of all boxes at a moment, and what of them is new to a page.

    Attributes:
        position: after it.
        note: what a person has to know beside it.
    """

    def __init__(self, services: Services, own: Watched, position: Position) -> None:
        box_calls, self._now = services.box_calls, services.clock.now()
        self._own = own
        others = box_calls.others()
        self._boxes = others.boxes
        names = live.places(box_calls.name, {id: box.name for id, box in self._boxes.items()})
        #: The names of boxes, by their ids; none where there is one alone.
        self._places = names if box_calls.are_several else {}
        ended = [(row, self._places.get("")) for row in own.ended]
        for id, box in self._boxes.items():
            ended += [(row, names[id]) for row in box.since(position.others.get(id))]
        self._ended = ended
        # A box that is silent for a moment goes on where it was.
        numbers = {id: box.number for id, box in self._boxes.items()}
        self.position = position._replace(others={**position.others, **numbers})
        silent = own.calls.silent + sum(box.silent for box in self._boxes.values())
        more = own.calls.has_more or any(box.has_more for box in self._boxes.values())
        self.note = live.told_of(silent, more)
        if box_calls.are_several:
            told = live.told_of_boxes([*names.values()], others.unread, others.is_away)
            self.note = f"{told} {self.note}".strip()

    def live_rows(self) -> list[LiveRow]:
        """The calls in flight, the oldest first; those of other boxes at the end."""
        rows = [live.live_row(told, "", self._places.get("")) for told in self._own.calls.rows]
        for id, box in self._boxes.items():
            rows += [live.live_row(told, id, self._places[id]) for told in box.calls]
        return rows

    def ended_rows(self, rows: Iterable[CallRow], zone: tzinfo | None) -> str:
        """The calls that are new to the page, the newest first, in HTML.

        Args:
            rows: further ones of this box.
        """
        found = [*self._ended, *((row, self._places.get("")) for row in rows)]
        found.sort(key=_ended_at, reverse=True)
        shown = found[:_MOST_ENDED]
        return "\n".join(live.ended_row(row, zone, place, now=self._now) for row, place in shown)


@blueprint.get("/console/live/call")
def one() -> Response:
    """The details of the calls with an id, in flight or not, or of those that ended at a time.

    Raises:
        NotFound: there is none.
    """
    services = lifecycle.live().services
    zone = services.settings.zone
    id, at = request.args.get("id", "")[:200], request.args.get("at", "")[:30]
    boxes = services.box_calls.others().boxes
    found = []
    if id:
        own = [told for told in services.in_flight.all().rows if told["id"] == id]
        found += [_running(told) for told in own]
        for box, told_box in boxes.items():
            found += [_running(t, box, told_box.name) for t in told_box.calls if t["id"] == id]
    found += [_of_row(row, zone) for row in rows_of(id, at)]
    for told_box in boxes.values():
        rows = [row for row in told_box.ended if id == row.request_id or at == repr(row.at)]
        found += [_of_row(row, zone, told_box.name) for row in rows]
    if not found:
        raise NotFound(
            f"No call '{id}' is in flight, and none of the last thousands has this id. The log of "
            "the server may know it."
            if id
            else "The record of calls does not have this call any more.",
            code="call_not_found",
        )
    return page.render("call", title="Call", spoken=timeline.spoken, found=found)


def rows_of(id: str, at: str = "") -> list[CallRow]:
    """The calls of the ledger with an id, or without one those that ended at a time; none where it
    cannot be read, or is not kept."""
    books = lifecycle.live().services.books
    if books is None:
        return []
    try:
        find = partial(books.find, id) if id else partial(books.at, float(at))
    except ValueError:
        return []  # no time
    try:
        return apart(find)
    except BooksUnavailable as error:
        log.error("console: a call cannot be shown: %s", error)
        return []


def _running(told: Mapping[str, Any], box: str = "", place: str = "") -> dict[str, Any]:
    line = timeline.of_call(told)
    return {
        "running": True,
        "id": told["id"],
        "box": box,
        "address": live.address(told["id"]),
        "timeline": line,
        "bar": timeline.drawn(line, large=True),
        "facts": live.facts_in_flight(told) + live.fact_of_box(place),
    }


#: Of outcomes that are no failures.
_MOODS: Final = {"complete": "good", "client_gone": "waiting", "cancelled": "waiting"}


def _of_row(row: CallRow, zone: tzinfo | None, place: str = "") -> dict[str, Any]:
    line = timeline.of_row(row)
    return {
        "running": False,
        "id": row.request_id,
        "mood": _MOODS.get(row.outcome, "bad"),
        "why": timeline.why(row.outcome, row.error),
        "timeline": line,
        "bar": timeline.drawn(line, large=True),
        "facts": live.facts(row, zone) + live.fact_of_box(place),
    }


@blueprint.post("/console/live/cancel")
def cancel() -> Response:
    """End a call, and tell its client so. A script gets a sentence, a form the page."""
    call = lifecycle.live()
    id, person = page.form().get("id", ""), page.signed_in().session.person
    if box := page.form().get("box", ""):
        try:
            ended, silent = call.services.box_calls.cancel(box, id, person.client)
        except BoxAway as error:
            raise ApiError(
                f"{error} Whether the call has ended is not known. Please try again, or end it on "
                "its own box.",
                status=503,
                code="box_does_not_answer",
                retry_after_s=1,
            ) from None
    else:
        ended, silent = call.services.in_flight.cancel(id, person.client)
    log.info("console: %s has cancelled %d calls with the id %s", person.client, ended, id[:128])
    if not ended and silent:
        raise ApiError(
            f"{silent} of the workers did not answer in time, and no other one has this call. "
            "Please try again.",
            status=503,
            code="workers_silent",
            retry_after_s=1,
        )
    if request.headers.get("accept") == "text/plain":
        told = "The call has ended, and its client was told." if ended else "It has ended already."
        return http.text(told, "text/plain; charset=utf-8")
    return page.redirect("/console/live")


@blueprint.get("/console/live/events")
def events() -> Response:
    """What changes, as server-sent events: `calls`, `end`.

    Raises:
        ApiError: 503: too many pages are open.
    """
    call = lifecycle.live()
    in_flight = call.services.in_flight
    if not in_flight.begin_watch():
        raise ApiError(
            "Too many of these pages are open. Close some, and open this one again.",
            status=503,
            retry_after_s=10,
        )
    told = request.headers.get("last-event-id") or request.args.get("since", "")
    since = position_of(told, call.services.clock.monotonic())
    carrier = call.relay = _Events(call, in_flight, since)
    call.watch = watch_client(call.environ)
    response = http.event_stream(carrier)
    response.headers.extend(page.HEADERS)
    return response


class _Events:
    """The events of one page; holds its place until `close`.

    Args:
        since: what the page, or the connection before, has shown.
    """

    def __init__(self, call: LiveCall, in_flight: CallsInFlight, since: Position) -> None:
        self._services = call.services
        self._is_signed_in: Callable[[], bool] = page.session_of(call)
        self._in_flight = in_flight
        self._since = since
        self._open = True

    def close(self) -> None:
        """Give the place back. Harmless when repeated."""
        if self._open:
            self._open = False
            self._in_flight.end_watch()

    def __iter__(self) -> Iterator[bytes]:
        clock, zone = self._services.clock, self._services.settings.zone
        last, sent_s, looked_s = b"", clock.monotonic(), clock.monotonic()
        yield b"retry: 2000\n\n"
        while not self._services.admission.draining:  # the browser goes on with another worker
            now_s = clock.monotonic()
            found = self._in_flight.watch(self._since.own_s, now_s)
            seen = _Seen(self._services, found, self._since._replace(own_s=now_s))
            self._since, told = seen.position, _told(seen, zone)
            if told != last:
                yield b"event: calls\nid: %s\ndata: %s\n\n" % (str(seen.position).encode(), told)
                last, sent_s = told, now_s
            elif now_s - sent_s >= _SILENT_S:
                yield b": nothing new\n\n"
                sent_s = now_s
            if now_s - looked_s >= _SESSION_S:
                looked_s = now_s
                try:
                    goes_on = self._is_signed_in()
                except DatabaseUnavailable as error:
                    log.error("console: a page of live calls ends: %s", error)
                    return  # the browser asks again, and is told why
                if not goes_on:
                    yield b"event: end\ndata: your session has ended: sign in again\n\n"
                    return
            sleep(_TICK_S)


def _told(seen: _Seen, zone: tzinfo | None) -> bytes:
    return encoded(
        {
            "calls": [(row.key, row.id, row.box, *row.cells) for row in seen.live_rows()],
            "ended": seen.ended_rows([], zone),
            "note": seen.note,
        }
    )


def _ended_at(found: tuple[CallRow, str | None]) -> float:
    return found[0].at
