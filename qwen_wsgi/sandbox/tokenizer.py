"""`/api/v1/tokenizer` as in Model Studio: how many tokens a text has. Pure, no I/O."""

from __future__ import annotations

import uuid
from typing import Any

from qwen_wsgi.sandbox.chat import estimate_tokens
from qwen_wsgi.sandbox.errors import Refusal

Json = dict[str, Any]


def count(body: Json) -> Json | Refusal:
    """Return the answer to a request, or a refusal: four tokens for a message, and its text's."""
    given = body.get("input")
    given = given if isinstance(given, dict) else {}
    messages, prompt = given.get("messages"), given.get("prompt")
    if isinstance(prompt, str):
        texts = [prompt]
    elif isinstance(messages, list) and all(map(_is_text, messages)) and messages:
        texts = [message["content"] for message in messages]
    else:
        text = "Either prompt or messages must be set, with texts."
        return Refusal(400, "InvalidParameter", text, form="native")
    tokens = sum(4 + estimate_tokens(text) for text in texts)
    return {
        "request_id": str(uuid.uuid4()),
        "output": {"token_ids": [0] * tokens, "tokens": ["x"] * tokens},
        "usage": {"input_tokens": tokens},
    }


def _is_text(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant", "tool")
        and isinstance(message.get("content"), str)
    )
