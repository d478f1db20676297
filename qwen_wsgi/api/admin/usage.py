"""What was used: of the caller (`/v1/usage`), and of all (`/admin/v1/usage`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from flask import Blueprint, Response, request

from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.books import Books, BooksUnavailable
from qwen_wsgi.accounting.usage import BY, Span
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError, BadRequest, NotFound
from qwen_wsgi.greenlets import apart
from qwen_wsgi.state.redis.totals import OfOthers

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Of a question that names no time; as of `qwen-proxy usage`.
_SINCE: Final = "30d"

#: Each route checks its caller itself: one is for all clients, the other one for admins.
blueprint = Blueprint("usage", __name__)


@blueprint.get("/v1/usage")
def own() -> Response:
    """The caller's own numbers: `{"object": "usage", "client", "today", "month", "limits"}`; today
    and this month by model, each in the shape of `accounting.usage`; of each limit
    `{"limit", "remaining", "resets_in_s"}`, or null for a key without limits."""
    lifecycle.check_caller()
    call = lifecycle.live()
    books = books_of(call)
    now, zone = call.services.clock.now(), call.services.settings.zone
    until = now + 1
    spans = [Span(usage.midnight(now, zone), until), Span(usage.midnight(now, zone, day=1), until)]
    others = [of_others(call, each) for each in spans]
    reports = partial(books.reports, "model", spans, zone=zone, client_id=call.owner, others=others)
    today, month = asked(call, reports)
    return http.json_value(
        {
            "object": "usage",
            "client": call.record.client,
            "today": today,
            "month": month,
            "limits": _limits(call),
        }
    )


def _limits(call: LiveCall) -> dict[str, Any] | None:
    """What is left of each limit of the caller; None for one without limits."""
    assert call.client is not None, "check_caller comes first"
    return {
        name: {"limit": room.limit, "remaining": room.left, "resets_in_s": math.ceil(room.reset_s)}
        for name, room in call.services.budgets.remaining(call.client).items()
    } or None


@blueprint.get("/admin/v1/usage")
def of_all() -> Response:
    """The numbers of all clients, as `qwen-proxy usage --json` has them. Its options are query
    parameters: `by`, `since`, `until`.

    Raises:
        ApiError: 403: the caller is no admin; 400: a parameter is wrong.
    """
    lifecycle.check_caller(admin=True)
    call = lifecycle.live()
    books, arguments, zone = books_of(call), request.args, call.services.settings.zone
    by = next((each for each in BY if each == arguments.get("by", BY[0])), None)
    if by is None:
        raise BadRequest(f"'by' must be one of {', '.join(BY)}.", param="by")
    try:
        span = usage.span(
            arguments.get("since", _SINCE),
            arguments.get("until", "now"),
            now=call.services.clock.now(),
            zone=zone,
        )
    except ValueError as error:
        raise BadRequest(f"{error}.", param=str(error).split(" ", 1)[0]) from None
    others = of_others(call, span)
    return http.json_value(asked(call, partial(books.report, by, span, zone=zone, others=others)))


def of_others(call: LiveCall, asked: Span) -> OfOthers | None:
    """What other boxes have used. Asked in the loop: Redis's connections are its own."""
    totals = call.services.usage_totals
    return None if totals is None else totals.of_others(asked.since, asked.until)


def books_of(call: LiveCall) -> Books:
    """The ledger.

    Raises:
        NotFound: there is none.
    """
    books = call.services.books
    if books is None:
        raise NotFound(
            "This server keeps no record of calls (QWEN_PROXY_LEDGER_DAYS=0).", code="no_ledger"
        )
    return books


def asked(call: LiveCall, ask: Callable[[], T]) -> T:
    """What the ledger says, asked beside the loop. The question itself is not in it.

    Raises:
        ApiError: 503: it cannot be read now.
    """
    call.admit()
    try:
        found = apart(ask)
    except BooksUnavailable as error:
        log.error("usage cannot be told: %s", error)
        raise ApiError(
            "The proxy cannot read its record of calls now; its log says why.",
            status=503,
            code="ledger_unavailable",
        ) from error
    call.record.quiet = True
    return found
