"""`/completions` as in Model Studio: old coder models that fill a gap. Pure, no I/O."""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

from qwen_wsgi.sandbox.chat import estimate_tokens
from qwen_wsgi.sandbox.errors import Refusal, find

Json = dict[str, Any]

_MODELS: Final = re.compile(r"qwen2\.5-coder-(?:7|14|32)b-instruct$|qwen-coder-turbo")
_TEMPLATE: Final = re.compile(
    r"<\|fim_prefix\|>(.*)<\|fim_suffix\|>(.*)<\|fim_middle\|>$", re.DOTALL
)


def complete(body: Json, *, now_s: float) -> Json | Refusal:
    """Return the answer to a request, or a refusal.

    The answer's text is the length of the code around the gap, in characters.
    """
    model, prompt = str(body.get("model")), body.get("prompt")
    if not _MODELS.match(model.partition("/sandbox/")[0]):
        row = find("model_not_found")
        return Refusal(row.status, row.code, row.message.replace("{model}", model), row.type)
    if not isinstance(prompt, str) or body.get("suffix") is not None or body.get("stream"):
        text = "prompt should be a string; the sandbox supports neither suffix nor stream here."
        return Refusal(400, "InvalidParameter", text, "InvalidParameter")
    gap = _TEMPLATE.match(prompt)
    around = f"{len(gap[1])} before, {len(gap[2])} behind" if gap else f"{len(prompt)} before"
    text = f"[sandbox] {around}"
    read, written = estimate_tokens(prompt), estimate_tokens(text)
    return {
        "id": f"cmpl-{uuid.uuid4()}",
        "object": "text_completion",
        "created": int(now_s),
        "model": model,
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }
