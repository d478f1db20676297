"""`/admin/v1/calls`: the calls in flight of all workers, and the end of one of them."""

from __future__ import annotations

from flask import Blueprint, Response, request

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.admin.access import check_admin
from qwen_wsgi.api.paging import limit_of
from qwen_wsgi.errors import ApiError, NotFound
from qwen_wsgi.in_flight import MOST

blueprint = Blueprint("admin_calls", __name__)
blueprint.before_request(check_admin)


@blueprint.get("/admin/v1/calls")
def list_calls() -> Response:
    """The calls in flight, the newest last: `{"object": "list", "data", "has_more", "workers",
    "silent_workers"}`. A console asks every second, so this is neither logged nor recorded."""
    call = lifecycle.live()
    call.record.quiet = True
    found = call.services.in_flight.all(limit_of(request.args, default=MOST, largest=MOST))
    response = http.json_value(found.json())
    response.headers["cache-control"] = "no-store"
    return response


@blueprint.delete("/admin/v1/calls/<path:id>")
def cancel(id: str) -> Response:
    """End a call, and tell its client so: `{"object": "call", "id", "cancelled": 1}`. Clients may
    give several calls one id: all of them are ended."""
    call = lifecycle.live()
    cancelled, silent = call.services.in_flight.cancel(id, call.record.client)
    if cancelled:
        return http.json_value({"object": "call", "id": id, "cancelled": cancelled})
    if silent:
        raise ApiError(
            f"{silent} of the workers did not answer in time, and no other one has a call "
            f"'{id[:128]}'. Please try again.",
            status=503,
            code="workers_silent",
            retry_after_s=1,
        )
    raise NotFound(
        f"No call '{id[:128]}' is in flight: it has ended, or there was none. GET /admin/v1/calls "
        "lists all.",
        param="id",
        code="call_not_found",
    )
