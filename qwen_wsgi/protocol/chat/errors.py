"""Reads errors that Qwen's hosts send in place of a chunk or a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.protocol.json_access import objects

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


def error_finish_of(chunk: Mapping[str, Any]) -> str | None:
    """The text of an error that a chunk reports by its finish reason, or None.

    `{"choices": [{"delta": {"content": "Throttling…"}, "finish_reason": "error_finish"}]}`: so
    throttling is reported in a stream that has begun (qwen-code reads it so).
    """
    for choice in objects(chunk.get("choices")):
        if choice.get("finish_reason") == ERROR_FINISH:
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else None
            return text if isinstance(text, str) else ""
    return None
