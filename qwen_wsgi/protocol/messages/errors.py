"""Renders errors as Anthropic does: `{"type": "error", "error": {"type", "message"}, …}`."""

from __future__ import annotations

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

#: The words by which Claude Code recognizes a full context; it then compacts the conversation.
_TOO_LONG: Final = "prompt is too long: "
_CONTEXT_CODE: Final = "context_length_exceeded"


def type_of(error: ApiError) -> str:
    """Anthropic's type of an error."""
    known = _TYPES.get(error.status)
    if known is not None:
        return known
    return "invalid_request_error" if error.status < 500 else "api_error"


def body(error: ApiError, *, request_id: str) -> dict[str, Any]:
    """Render the body: `{"type": "error", "error": {"type", "message", "details"?},
    "request_id"}`."""
    message = error.message
    if error.code == _CONTEXT_CODE and not message.startswith(_TOO_LONG):
        message = _TOO_LONG + message
    described: dict[str, Any] = {"type": type_of(error), "message": message}
    if error.details is not None:
        described["details"] = dict(error.details)
    return {
        "type": "error",
        "error": described,
        "request_id": request_id,
    }
