"""Checks an embeddings request for a Model Studio host.

Both official SDKs request base64 by default, and some clients send token ids. Besides OpenAI's
strings, rows may be content parts or lists of them: a row is what gets one vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.content_parts import TEXT, Part, parts_of
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.validation import bad_value, count, missing, model_of, wrong_type

#: OpenAI's own limit for one request.
MAX_ROWS: Final = 2048
#: What one row may have; no model takes more.
_MAX_PARTS: Final = 100

#: What gets one vector.
Row = tuple[Part, ...]


@dataclass(frozen=True)
class EmbeddingRequest:
    """A checked request.

    Attributes:
        dimensions: how many numbers a vector shall have; None leaves it to the model.
    """

    body: JsonObject
    model: str
    rows: tuple[Row, ...]
    base64: bool
    dimensions: int | None = None


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
    return EmbeddingRequest(body, model_of(body), rows, encoding == "base64", _dimensions(body))


def _dimensions(body: JsonObject) -> int | None:
    value = body.get("dimensions")
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 256.0, as some JSON writers have it
    return count(body, "dimensions", least=1)


def _rows(body: JsonObject) -> tuple[Row, ...]:
    given = body.get("input")
    if given is None:
        raise missing("input")
    rows = [given] if isinstance(given, str) else given
    if not isinstance(rows, list) or not rows:
        raise wrong_type("input", "a string or a non-empty array of strings", rows)
    if len(rows) > MAX_ROWS:
        raise BadRequest(
            f"Invalid 'input': at most {MAX_ROWS} rows are allowed, {len(rows)} were sent.",
            param="input",
            code="array_above_max_length",
        )
    return tuple(_row(row, f"input[{index}]") for index, row in enumerate(rows))


def _row(row: Any, path: str) -> Row:
    if isinstance(row, str):  # as mostly
        parts: Row = (Part(TEXT, row),)
    elif isinstance(row, dict):
        parts = parts_of(row, path)
    elif isinstance(row, list) and row and all(isinstance(each, dict) for each in row):
        parts = tuple(
            part
            for index, each in enumerate(row[: _MAX_PARTS + 1])
            for part in parts_of(each, f"{path}[{index}]")
        )
    elif isinstance(row, int | list):
        raise BadRequest(
            "Invalid 'input': token ids are not supported, because Qwen's embedding models take "
            "text only and their tokens differ from OpenAI's. Send strings; with LangChain's "
            "OpenAIEmbeddings set check_embedding_ctx_length=False.",
            param="input",
            code="token_input_unsupported",
        )
    else:
        raise wrong_type("input", "an array of strings", row)
    if not all(part.value for part in parts):
        raise BadRequest(
            "Invalid 'input': every row must be a non-empty string.",
            param="input",
            code="empty_string",
        )
    if len(parts) > _MAX_PARTS:
        raise BadRequest(
            f"Invalid '{path}': at most {_MAX_PARTS} parts are allowed in a row.",
            param=path,
            code="array_above_max_length",
        )
    return parts
