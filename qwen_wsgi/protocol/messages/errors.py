"""Errors in Anthropic's form: `{"type": "error", "error": {"type", "message"}, "request_id"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.errors import ApiError

#: Anthropic's types by status. Other 4xx are `invalid_request_error`, other 5xx `api_error`.
_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

#: What Claude Code knows a full context by, and compacts the conversation.
_TOO_LONG: Final = "prompt is too long: "
_CONTEXT_CODE: Final = "context_length_exceeded"

#: What the code, type and text of an error inside a stream, which has no status, say it is.
_SIGNS: Final = (
    (re.compile(r"throttl|rate.?limit|limit_(requests|burst)|quota|too many"), "rate_limit_error"),
    (re.compile(r"overload|unavailable|capacity|proxy_stopping"), "overloaded_error"),
    (re.compile(r"timeout|timed out"), "timeout_error"),
    (re.compile(r"inspection|content_filter|invalid|context_length"), "invalid_request_error"),
)


def type_of(error: ApiError) -> str:
    """Anthropic's type of an error."""
    known = _TYPES.get(error.status)
    if known is not None:
        return known
    return "invalid_request_error" if error.status < 500 else "api_error"


def body(error: ApiError, *, request_id: str) -> dict[str, Any]:
    """The envelope of an error."""
    message = error.message
    if error.code == _CONTEXT_CODE and not message.startswith(_TOO_LONG):
        message = _TOO_LONG + message
    return _envelope(type_of(error), message, request_id)


def body_in_stream(error: Any, *, request_id: str) -> dict[str, Any]:
    """The envelope of what stands as `error` in a chunk: an object of OpenAI's form, or anything.

    Shape: `{"message", "type", "param", "code"}`, each of them perhaps missing or of another type.
    """
    fields = error if isinstance(error, dict) else {"message": error}
    message = fields.get("message")
    if not isinstance(message, str) or not message:
        message = "The upstream failed, and did not say why."
    words = " ".join(str(fields.get(name, "")) for name in ("code", "type")).lower()
    kind = _kind(words) or _kind(message.lower()) or "api_error"
    return _envelope(kind, message, request_id)


def _kind(words: str) -> str | None:
    return next((kind for sign, kind in _SIGNS if sign.search(words)), None)


def _envelope(kind: str, message: str, request_id: str) -> dict[str, Any]:
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": request_id,
    }
