"""From a result or an error to a response, in OpenAI's form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from flask import Response

from qwen_wsgi.api.flask_app import FinishedResponse
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.json_object import encoded

#: Of a stream of events: nobody is to keep it, or to wait for its end.
_AS_IT_COMES: Final = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)


def json_bytes(body: bytes, status: int = 200) -> Response:
    """JSON that is already rendered."""
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return FinishedResponse.of([body], headers, status=status)


def json_value(value: Any, status: int = 200) -> Response:
    """Any value as JSON."""
    return json_bytes(encoded(value), status)


def json_pieces(pieces: Sequence[bytes]) -> Response:
    """JSON that is rendered in pieces, which are too large to be copied into one."""
    response = FinishedResponse(pieces, content_type="application/json")
    response.headers.add("content-length", str(sum(map(len, pieces))))
    return response


def text(body: str, content_type: str) -> Response:
    """A text."""
    return FinishedResponse(body.encode(), content_type=content_type)


def event_stream(events: Iterable[bytes]) -> Response:
    """A stream of server-sent events; a header keeps nginx from buffering it."""
    return FinishedResponse.of(events, [*_AS_IT_COMES])


def carried(
    body: Iterable[bytes], content_type: str, *, status: int = 200, length: int | None = None
) -> Response:
    """A body of another kind that is sent as it comes. Browsers do not guess what it is."""
    response = FinishedResponse(body, status=status, content_type=content_type)
    response.headers.add("x-content-type-options", "nosniff")
    response.headers.add("x-accel-buffering", "no")
    if length is not None:
        response.headers.add("content-length", str(length))
    return response


def retry_after(seconds: float) -> str:
    """The value of the header: whole seconds (RFC 9110 §10.2.3), and none too few."""
    return str(max(1, math.ceil(seconds)))


def error(failure: ApiError, body: Any = None) -> Response:
    """An error with the headers that the official SDKs obey.

    Args:
        body: the envelope of a dialect; None for OpenAI's.
    """
    response = json_value(failure.body() if body is None else body, failure.status)
    if failure.retry_after_s is not None:
        # OpenAI's Node SDK ignores values above 60, its Python SDK does not retry at all above 120:
        # both are better than a time at which the client would be refused again.
        response.headers["retry-after"] = retry_after(failure.retry_after_s)
    if failure.should_retry is not None:
        response.headers["x-should-retry"] = "true" if failure.should_retry else "false"
    return response
