"""Calls of text-embedding models, by the compatible route `/embeddings`.

They take strings only, 10 rows a call (25 for v1 and v2), and answer floats only (vendor's
synchronous embedding API).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.content_parts import TEXT
from qwen_wsgi.protocol.embeddings.request import EmbeddingRequest, Row
from qwen_wsgi.protocol.json_access import integer, mapping

_ROWS_A_CALL: Final = 10
_ROWS_A_CALL_OLD: Final = {"text-embedding-v1": 25, "text-embedding-v2": 25}


def batches(request: EmbeddingRequest, model: str) -> list[tuple[Row, ...]]:
    """The rows of each call, in order.

    Raises:
        BadRequest: a row has something else than one text.
    """
    for index, row in enumerate(request.rows):
        if len(row) > 1 or row[0].kind != TEXT:
            raise _not_a_text(row, index, model)
    size = _ROWS_A_CALL_OLD.get(model, _ROWS_A_CALL)
    return [request.rows[at : at + size] for at in range(0, len(request.rows), size)]


def body(request: EmbeddingRequest, model: str, rows: Sequence[Row]) -> bytes:
    """The body of one call: the client's, with these rows."""
    texts = [row[0].value for row in rows]
    return request.body.render({"model": model, "input": texts, "encoding_format": "float"})


def vectors(answer: Mapping[str, Any]) -> Any:
    """Where the vectors of an answer are."""
    return answer.get("data")


def usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and all tokens; 0 where they are not told."""
    told = mapping(answer.get("usage"))
    return integer(told.get("prompt_tokens")) or 0, integer(told.get("total_tokens")) or 0


def _not_a_text(row: Row, index: int, model: str) -> BadRequest:
    media = next((part.kind for part in row if part.kind != TEXT), None)
    what = f"no {media}s" if media else "one text a row"
    return BadRequest(
        f"Invalid 'input[{index}]': the model `{model}` takes {what}. Pictures, videos, and rows "
        "of several parts can be embedded by `qwen3-vl-embedding`.",
        param="input",
        code="unsupported_content",
    )
