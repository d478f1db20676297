"""Combines the answers of all calls of an embeddings request into OpenAI's one."""

from __future__ import annotations

import array
import base64
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol.embeddings import multimodal, text
from qwen_wsgi.protocol.embeddings.calls import batches
from qwen_wsgi.protocol.embeddings.request import EmbeddingRequest


def combine(
    request: EmbeddingRequest, answers: Sequence[Mapping[str, Any]], *, model: str | None = None
) -> dict[str, Any]:
    """Combine the answers of all calls: rows in the order of the request, usage summed.

    Args:
        answers: one for each of `calls_for(request, model=model)`.
        model: the upstream's name for it; None if it is the request's own.

    Shape: `{"object": "list", "data": [{"object": "embedding", "index", "embedding"}], "model",
    "usage": {"prompt_tokens", "total_tokens"}}`.

    Raises:
        UpstreamError: the upstream left rows out, or sent something other than vectors.
    """
    kind = multimodal if multimodal.takes_media(model or request.model) else text
    vectors: list[tuple[list[Any], array.array[float]]] = []
    prompt = total = 0
    called = batches(request, model or request.model)
    if len(called) != len(answers):
        raise _bad_answer()
    for rows, answer in zip(called, answers, strict=True):
        vectors += _vectors(kind.vectors(answer), len(rows))
        told = kind.usage(answer)
        prompt, total = prompt + told[0], total + told[1]
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(floats) if request.base64 else vector,
            }
            for index, (vector, floats) in enumerate(vectors)
        ],
        # The upstream's name only if it is the client's, else it looks like another model.
        "model": (answers[0].get("model") if model in (None, request.model) else None)
        or request.model
        or model,
        "usage": {"prompt_tokens": prompt, "total_tokens": total},
    }


def _vectors(data: Any, count: int) -> list[tuple[list[Any], array.array[float]]]:
    """The vectors of one answer in order: the numbers as they came, and as float32.

    Raises:
        UpstreamError: they are not `count`, not numbers, or not one for each index.
    """
    if not isinstance(data, list) or len(data) != count:
        raise _bad_answer()
    try:
        if any("index" in row for row in data):
            data = sorted(data, key=lambda row: row["index"])
            if [row["index"] for row in data] != list(range(count)):
                raise _bad_answer()
        vectors = [row["embedding"] for row in data]
        if not all(isinstance(vector, list) and vector for vector in vectors):
            raise _bad_answer()
        found = [(vector, array.array("f", vector)) for vector in vectors]
    except (AttributeError, KeyError, TypeError, OverflowError):
        raise _bad_answer() from None
    # As float32 a number that is too large is infinite, which no JSON can carry either.
    if not all(all(map(math.isfinite, floats)) for _, floats in found):
        raise _bad_answer()
    return found


def _base64(floats: array.array[float]) -> str:
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode("ascii")


def _bad_answer() -> UpstreamError:
    return UpstreamError(
        "The upstream's embeddings do not match the rows that were sent.",
        code="upstream_bad_answer",
    )
