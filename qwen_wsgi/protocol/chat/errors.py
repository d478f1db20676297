"""Reads errors that Qwen's hosts send in place of a chunk or a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.protocol.json_access import text

#: The finish reason of a stream that failed; the delta's content is the error's text.
ERROR_FINISH: Final = "error_finish"


def error_of(chunk: Mapping[str, Any]) -> Any:
    """The error that a host sent in place of a chunk or a completion, or None.

    Both forms of DashScope: `{"error": {...}}`, and natively `{"code", "message", "request_id"}`.
    """
    if (error := chunk.get("error")) is not None:
        return error
    if "choices" not in chunk and chunk.get("code") and isinstance(chunk.get("message"), str):
        return {"code": chunk["code"], "message": chunk["message"]}
    return None


def error_finish_of(answer: Mapping[str, Any]) -> str | None:
    """The text of an error that a chunk or a whole answer reports by a finish reason, or None.

    `{"choices": [{"delta": {"content": "Throttling…"}, "finish_reason": "error_finish"}]}`: so
    throttling is reported in a stream that has begun (qwen-code reads it so). A whole answer has a
    message instead of a delta, a native completion a text.
    """
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else ():  # `objects` would be a generator
        if isinstance(choice, dict) and choice.get("finish_reason") == ERROR_FINISH:
            part = choice.get("delta") or choice.get("message")
            return text(part.get("content") if isinstance(part, dict) else choice.get("text"))
    return None
