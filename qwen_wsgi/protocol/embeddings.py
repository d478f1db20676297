"""Translates embeddings: OpenAI's request into Model Studio's calls, and their answers into one.

Model Studio's text-embedding models take strings only, 10 rows a call (25 for v1 and v2), and
answer floats only (vendor's synchronous embedding API). Both official SDKs request base64 by
default, and some clients send token ids.
"""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import BadRequest, UpstreamError
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.validation import bad_value, missing, model_of, wrong_type

#: OpenAI's own limit for one request.
MAX_ROWS: Final = 2048

_ROWS_A_CALL: Final = 10
_ROWS_A_CALL_OLD: Final = {"text-embedding-v1": 25, "text-embedding-v2": 25}


@dataclass(frozen=True)
class EmbeddingRequest:
    """A checked request; `rows` is its input as strings."""

    body: JsonObject
    model: str
    rows: tuple[str, ...]
    base64: bool


def parse_request(body: JsonObject) -> EmbeddingRequest:
    """Check a request for a Model Studio host.

    Raises:
        BadRequest: `input` is missing, empty, too long, or of another type (token ids have their
            own message); `encoding_format` is unknown.
    """
    rows = _rows(body)
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise bad_value("encoding_format", encoding, ("float", "base64"))
    return EmbeddingRequest(body, model_of(body), rows, encoding == "base64")


def _rows(body: JsonObject) -> tuple[str, ...]:
    given = body.get("input")
    if given is None:
        raise missing("input")
    rows = [given] if isinstance(given, str) else given
    if not isinstance(rows, list) or not rows:
        raise wrong_type("input", "a string or a non-empty array of strings", rows)
    if any(isinstance(row, int | list) for row in rows):
        raise BadRequest(
            "Invalid 'input': token ids are not supported, because Qwen's embedding models take "
            "text only and their tokens differ from OpenAI's. Send strings; with LangChain's "
            "OpenAIEmbeddings set check_embedding_ctx_length=False.",
            param="input",
            code="token_input_unsupported",
        )
    for row in rows:
        if not isinstance(row, str):
            raise wrong_type("input", "an array of strings", row)
        if not row:
            raise BadRequest(
                "Invalid 'input': every row must be a non-empty string.",
                param="input",
                code="empty_string",
            )
    if len(rows) > MAX_ROWS:
        raise BadRequest(
            f"Invalid 'input': at most {MAX_ROWS} rows are allowed, {len(rows)} were sent.",
            param="input",
            code="array_above_max_length",
        )
    return tuple(rows)


def upstream_bodies(request: EmbeddingRequest, *, model: str) -> list[bytes]:
    """Render one body for each call that the rows need, in order."""
    return [
        request.body.render({"model": model, "input": rows, "encoding_format": "float"})
        for rows in _batches(request, model)
    ]


def _batches(request: EmbeddingRequest, model: str) -> list[list[str]]:
    size = _ROWS_A_CALL_OLD.get(model, _ROWS_A_CALL)
    return [list(request.rows[at : at + size]) for at in range(0, len(request.rows), size)]


def combine(
    request: EmbeddingRequest, answers: Sequence[Mapping[str, Any]], *, model: str | None = None
) -> dict[str, Any]:
    """Combine the answers of all calls: rows in the order of the request, usage summed.

    Args:
        answers: one for each of `upstream_bodies(request, model=model)`.
        model: the upstream's name for it; None if it is the request's own.

    Shape: `{"object": "list", "data": [{"object": "embedding", "index", "embedding"}], "model",
    "usage": {"prompt_tokens", "total_tokens"}}`.

    Raises:
        UpstreamError: the upstream left rows out, or sent something other than vectors.
    """
    vectors: list[tuple[list[Any], array.array[float]]] = []
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    batches = _batches(request, model or request.model)
    if len(batches) != len(answers):
        raise _bad_answer()
    for rows, answer in zip(batches, answers, strict=True):
        found = _vectors(answer)
        if len(found) != len(rows):
            raise _bad_answer()
        vectors += found
        counts = answer.get("usage")
        for name in usage:
            count = counts.get(name) if isinstance(counts, Mapping) else None
            usage[name] += count if isinstance(count, int) else 0
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
        "usage": usage,
    }


def _vectors(answer: Mapping[str, Any]) -> list[tuple[list[Any], array.array[float]]]:
    """The vectors of one answer in order: the numbers as they came, and as float32."""
    data = answer.get("data")
    if not isinstance(data, list):
        raise _bad_answer()
    try:
        rows = sorted(data, key=lambda row: row.get("index", 0))
        vectors = [row["embedding"] for row in rows]
        if not all(isinstance(vector, list) for vector in vectors):
            raise _bad_answer()
        return [(vector, array.array("f", vector)) for vector in vectors]
    except (AttributeError, KeyError, TypeError, OverflowError):
        raise _bad_answer() from None


def _base64(floats: array.array[float]) -> str:
    if sys.byteorder == "big":
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode("ascii")


def _bad_answer() -> UpstreamError:
    return UpstreamError(
        "The upstream's embeddings do not match the rows that were sent.",
        code="upstream_bad_answer",
    )
