"""Reads the events that clients send over a WebSocket, and renders those that they get.

The facts are from OpenAI's guide "WebSocket mode", the types of the `openai` package (3.54), and
what Codex 0.171 was seen to send.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol import sse, validation
from qwen_wsgi.protocol.json_object import JsonObject, compact

CREATE: Final = "response.create"
STEER: Final = "response.steer"
#: Codex may send this after each response; it wants no answer.
PROCESSED: Final = "response.processed"

_STREAM_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,256}")

#: Members that `POST /v1/responses` does not have.
_ENVELOPE: Final = ("type", "stream_id", "generate")


@dataclass(frozen=True)
class ClientEvent:
    """An event of a client.

    Attributes:
        type: as the client names it.
        stream_id: the lane that it is for; None for the one without a name.
        body: the whole event.
    """

    type: str
    stream_id: str | None
    body: JsonObject


def read(body: JsonObject) -> ClientEvent:
    """Read an event.

    Raises:
        BadRequest: it has no type, or an invalid `stream_id`.
    """
    kind = validation.required_text(body, "type")
    stream_id = body.get("stream_id")
    if stream_id is not None and not (
        isinstance(stream_id, str) and _STREAM_ID.fullmatch(stream_id)
    ):
        raise BadRequest(
            "The 'stream_id' field must be a non-empty string with at most 256 characters and may "
            "only contain letters, numbers, underscores, hyphens, and periods.",
            param="stream_id",
            code="invalid_stream_id",
        )
    return ClientEvent(kind, stream_id, body)


def generates(body: JsonObject) -> bool:
    """Whether the model is to answer; else the request is only kept, to be continued.

    Raises:
        BadRequest: a switch has a wrong type.
    """
    cache = validation.mapping(body, "prompt_cache_options") or {}
    return validation.flag(body, "generate") is not False and cache.get("prewarm") is not True


def request_of(event: ClientEvent) -> JsonObject:
    """The request of a `response.create`, as `POST /v1/responses` takes it; it always streams."""
    changes: dict[str, Any] = {"stream": True}
    if event.body.get("input") is None and not generates(event.body):
        changes["input"] = []
    return JsonObject(event.body.render(changes, drop=_ENVELOPE))


def unknown(kind: str) -> BadRequest:
    """The refusal of an event that is not served."""
    return validation.bad_value("type", kind, (CREATE,))


# --- what clients get -----------------------------------------------------------------------------


def messages(events: bytes, stream_id: str | None) -> list[bytes]:
    """Turn whole server-sent events into messages; comments are left out."""
    found = [data for event in sse.events(events) if (data := sse.data(event)) is not None]
    if stream_id is None:
        return found
    end = f',"stream_id":"{stream_id}"}}'.encode()
    return [data[:-1] + end for data in found]


def error(failure: ApiError, stream_id: str | None, headers: Mapping[str, str]) -> bytes:
    """Render a refusal: `{"type": "error", "status", "error", "headers", "stream_id"?}`.

    Args:
        headers: what an HTTP answer would have said in headers. Codex reads them at the top, the
            SDKs in the error.
    """
    shown = dict(headers)
    if failure.retry_after_s is not None:
        shown["retry-after"] = str(max(1, math.ceil(failure.retry_after_s)))
    event: dict[str, Any] = {
        "type": "error",
        "status": failure.status,
        "error": {**failure.body()["error"], "headers": shown},
        "headers": shown,
    }
    if stream_id is not None:
        event["stream_id"] = stream_id
    return compact(event).encode()


def steer_failed(event: ClientEvent) -> bytes:
    """Render the refusal of a `response.steer`, with its input, which the client may send anew.

    Raises:
        BadRequest: it has no `previous_response_id` or no `input`.
    """
    before = validation.required_text(event.body, "previous_response_id")
    given = event.body.get("input")
    if given is None:
        raise validation.missing("input")
    return compact(
        {
            "type": "response.steer.failed",
            "sequence_number": 0,
            "error": {
                "type": "invalid_request_error",
                "code": "steering_not_supported",
                "message": "Qwen's models cannot be steered while they answer. Send the input with "
                "a 'response.create' after this response.",
            },
            "steer": {"previous_response_id": before, "input": given},
        }
    ).encode()
