"""`/console/live`: the calls in flight and those that ended lately, and the end of one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import tzinfo
from functools import partial
from typing import Any, Final

from flask import Response, request

from qwen_wsgi.accounting.books import BooksUnavailable
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.console import page
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.clock import sleep
from qwen_wsgi.console import live, timeline
from qwen_wsgi.errors import ApiError, NotFound
from qwen_wsgi.greenlets import apart, watch_client
from qwen_wsgi.in_flight import CallsInFlight, Watched
from qwen_wsgi.protocol.json_object import encoded
from qwen_wsgi.state.database.calls import CallRow
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable

log = logging.getLogger(__name__)

blueprint = page.blueprint("live")

#: Calls that have ended, in a page.
_MOST_ENDED: Final = 200
#: How often the page is told what is new.
_TICK_S: Final = 1.0
#: How often it is looked whether the session goes on, and how long a stream may say nothing.
_SESSION_S: Final = 4.0
_SILENT_S: Final = 15.0


@blueprint.get("/console/live")
def shown() -> Response:
    """The page."""
    services = lifecycle.live().services
    since = services.clock.monotonic()
    found = services.in_flight.watch(since, since)
    ended, problem = _ended(services.settings.zone)
    return page.render(
        "live",
        title="Live",
        since=repr(since),
        calls=[live.live_row(told) for told in found.calls.rows],
        note=live.told_of(found.calls.silent, found.calls.has_more),
        ended=ended,
        problem=problem,
        stages=timeline.KINDS,
    )


def _ended(zone: tzinfo | None) -> tuple[str, str]:
    """The rows of the calls that ended last, and why there are none."""
    books = lifecycle.live().services.books
    if books is None:
        return "", (
            "This server keeps no record of calls (QWEN_PROXY_LEDGER_DAYS=0): only those that end "
            "while this page is open are shown."
        )
    try:
        rows = apart(partial(books.latest, _MOST_ENDED))
    except BooksUnavailable as error:
        log.error("console: calls cannot be shown: %s", error)
        return "", "The record of calls cannot be read now; the server's log says why."
    return "\n".join(live.ended_row(row, zone) for row in rows), ""


@blueprint.get("/console/live/call")
def one() -> Response:
    """The details of the calls with an id.

    Raises:
        NotFound: there is none.
    """
    services, id = lifecycle.live().services, request.args.get("id", "")[:200]
    running = [told for told in services.in_flight.all().rows if told["id"] == id]
    rows = rows_of(id)
    if not running and not rows:
        raise NotFound(
            f"No call '{id}' is in flight, and none of the last thousands has this id. The log of "
            "the server may know it.",
            code="call_not_found",
        )
    zone = services.settings.zone
    return page.render(
        "call",
        title="Call",
        id=id,
        spoken=timeline.spoken,
        found=[*map(_running, running), *(_of_row(row, zone) for row in rows)],
    )


def rows_of(id: str) -> list[CallRow]:
    """The calls with an id that the ledger knows; none where it cannot be read, or is not kept."""
    books = lifecycle.live().services.books
    if books is None:
        return []
    try:
        return apart(partial(books.find, id))
    except BooksUnavailable as error:
        log.error("console: a call cannot be shown: %s", error)
        return []


def _running(told: dict[str, Any]) -> dict[str, Any]:
    line = timeline.of_call(told)
    return {
        "running": True,
        "address": live.address(told["id"]),
        "timeline": line,
        "bar": timeline.drawn(line, large=True),
        "facts": live.facts_in_flight(told),
    }


def _of_row(row: CallRow, zone: tzinfo | None) -> dict[str, Any]:
    line = timeline.of_row(row)
    return {
        "running": False,
        "good": row.outcome == "complete",
        "why": timeline.why(row.outcome, row.error),
        "timeline": line,
        "bar": timeline.drawn(line, large=True),
        "facts": live.facts(row, zone),
    }


@blueprint.post("/console/live/cancel")
def cancel() -> Response:
    """End a call, and tell its client so. A script gets a sentence, a form the page."""
    call = lifecycle.live()
    id, person = page.form().get("id", ""), page.signed_in().session.person
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
    carrier = call.relay = _Events(call, in_flight, _since(call))
    call.watch = watch_client(call.environ)
    response = http.event_stream(carrier)
    response.headers.extend(page.HEADERS)
    return response


def _since(call: LiveCall) -> float:
    """From when on ended calls are told: after those that the page, or the connection before, has
    shown."""
    now = call.services.clock.monotonic()
    told = request.headers.get("last-event-id") or request.args.get("since", "")
    try:
        return min(max(float(told), now - 10), now)
    except ValueError:
        return now


class _Events:
    """The events of one page; holds its place until `close`."""

    def __init__(self, call: LiveCall, in_flight: CallsInFlight, since: float) -> None:
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
            found, self._since = self._in_flight.watch(self._since, now_s), now_s
            told = _told(found, zone)
            if told != last:
                yield b"event: calls\nid: %r\ndata: %s\n\n" % (now_s, told)
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


def _told(found: Watched, zone: tzinfo | None) -> bytes:
    calls = found.calls
    ended = sorted(found.ended, key=_ended_at, reverse=True)
    return encoded(
        {
            "calls": [(row.key, row.id, *row.cells) for row in map(live.live_row, calls.rows)],
            "ended": "".join(live.ended_row(row, zone) for row in ended[:_MOST_ENDED]),
            "note": live.told_of(calls.silent, calls.has_more),
        }
    )


def _ended_at(row: CallRow) -> float:
    return row.at
