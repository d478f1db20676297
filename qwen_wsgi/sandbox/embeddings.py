"""Embeddings as in DashScope's OpenAI-compatible mode. Pure, no I/O.

A vector is derived from a hash of the text: equal texts have equal vectors in every run, different
ones are almost orthogonal.
"""

from __future__ import annotations

import hashlib
import math
import struct
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from qwen_wsgi.sandbox.chat import estimate_tokens
from qwen_wsgi.sandbox.errors import Refusal, find

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Limits:
    dimensions: tuple[int, ...]  # the first one is the default
    rows: int
    tokens: int


_V3: Final = (1024, 768, 512, 256, 128, 64)
_MODELS: Final = {
    "qwen3.7-text-embedding": _Limits((1024, 2048, 1536, 768, 512, 256, 128, 64), 10, 8192),
    "qwen3.7-text-embedding-flash": _Limits((1024, 768, 512, 256, 128, 64), 10, 8192),
    "text-embedding-v4": _Limits((1024, 2048, 1536, 768, 512, 256, 128, 64), 10, 8192),
    "text-embedding-v3": _Limits(_V3, 10, 8192),
    "text-embedding-v2": _Limits((1536,), 25, 2048),
    "text-embedding-v1": _Limits((1536,), 25, 2048),
}


def embed(body: Json) -> Json | Refusal:
    """Return the answer to an embeddings request, or a refusal."""
    model = str(body.get("model"))
    limits = _MODELS.get(model.partition("/sandbox/")[0])
    if limits is None:
        row = find("model_not_found")
        return Refusal(row.status, row.code, row.message.replace("{model}", model), row.type)
    rows = body.get("input")
    texts = [rows] if isinstance(rows, str) else rows
    dimensions = body.get("dimensions", limits.dimensions[0])
    complaint = _complaint(body, texts, dimensions, limits)
    if complaint is not None or not isinstance(texts, list):
        return Refusal(400, "InvalidParameter", str(complaint), "InvalidParameter")
    tokens = sum(estimate_tokens(text) for text in texts)
    return {
        "data": [
            {"embedding": list(vector(text, dimensions)), "index": i, "object": "embedding"}
            for i, text in enumerate(texts)
        ],
        "model": model,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "id": str(uuid.uuid4()),
    }


def _complaint(body: Json, texts: object, dimensions: object, limits: _Limits) -> str | None:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return "contents is neither str nor list of str."
    if len(texts) > limits.rows:
        return f"batch size is invalid, it should not be larger than {limits.rows}."
    if not texts:
        return "batch size is invalid, it should not be less than 1."
    if not all(text and estimate_tokens(text) <= limits.tokens for text in texts):
        return f"Range of input length should be [1, {limits.tokens}]"
    if body.get("encoding_format") not in (None, "float"):
        return "encoding_format only support float."
    if dimensions not in limits.dimensions:
        return f"dimensions should be one of {sorted(limits.dimensions)}."
    return None


@lru_cache(maxsize=1024)
def vector(text: str, dimensions: int) -> tuple[float, ...]:
    """Return a vector of length 1 that depends only on the arguments."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * dimensions)
    raw = [number / 2**31 for number in struct.unpack(f"<{dimensions}i", digest)]
    norm = math.sqrt(math.fsum(number * number for number in raw)) or 1.0
    return tuple(number / norm for number in raw)
