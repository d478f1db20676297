"""Errors that stand where a chunk or a completion should be, as Qwen's hosts tell them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

#: The finish reason of a stream that failed; the delta's content is the error's text.
ERROR_FINISH: Final = "error_finish"

#: `Throttling.RateQuota: …`, the way that DashScope begins a text with its code.
_CODE: Final = re.compile(r"\s*([A-Za-z][\w.]*):")


def error_of(chunk: Mapping[str, Any]) -> Any:
    """The error that stands where a chunk or a completion should be, or None.

    Both forms of DashScope: `{"error": {...}}`, and natively `{"code", "message", "request_id"}`.
    """
    if (error := chunk.get("error")) is not None:
        return error
    if "choices" not in chunk and chunk.get("code") and isinstance(chunk.get("message"), str):
        return {"code": chunk["code"], "message": chunk["message"]}
    return None


def error_finish_of(chunk: Mapping[str, Any]) -> str | None:
    """The text of an error that a chunk tells by its finish reason; None if it tells none.

    `{"choices": [{"delta": {"content": "Throttling…"}, "finish_reason": "error_finish"}]}`: the way
    throttling reaches a stream that has begun (qwen-code reads it so).
    """
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("finish_reason") == ERROR_FINISH:
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else None
            return text if isinstance(text, str) else ""
    return None


def error_in(text: str) -> dict[str, Any]:
    """An error that was told as text, in OpenAI's form: `{"message", "type", "param", "code"}`.

    The code is that of JSON inside the text, else the word that the text begins with.
    """
    inner = _object_in(text)
    found = inner.get("code") or inner.get("type")
    if not found and (word := _CODE.match(text)) is not None:
        found = word[1]
    return {
        "message": text.strip() or "The upstream failed, and did not say why.",
        "type": "upstream_error",
        "param": None,
        "code": str(found or ERROR_FINISH),
    }


def _object_in(text: str) -> dict[str, Any]:
    """The error object inside a text, or an empty one."""
    start = text.find("{")
    if start < 0:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return {}
    error = error_of(value) if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}
