"""Reads request bodies: bounded, in pieces, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError

#: A body is read in pieces of this size, which stay in the processor's cache.
_PIECE_BYTES: Final = 64 * 1024


def read_json(environ: Mapping[str, Any], max_bytes: int) -> JsonObject:
    """Read and parse the body of a request.

    Raises:
        ApiError: 413 above the limit; 400 if it is incomplete or no JSON object.
    """
    declared = environ.get("CONTENT_LENGTH")
    if declared and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    # One byte more than allowed shows that a chunked body is too long.
    try:
        body = _read(environ["wsgi.input"], int(declared) if declared else max_bytes + 1)
    except OSError as error:  # what gunicorn raises for chunked coding that breaks off
        raise BadRequest("The request body could not be read to its end.") from error
    if declared and len(body) < int(declared):
        raise BadRequest("The request body ended before its Content-Length.")
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    try:
        return JsonObject(body)
    except JsonObjectError as error:
        raise BadRequest(
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly. The API expects a JSON payload, but "
            f"what was sent was not valid JSON: {error}.)"
        ) from None


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        f"The request body is larger than the limit of {max_bytes} bytes "
        "(QWEN_PROXY_MAX_BODY on the server).",
        status=413,
        type="invalid_request_error",
        code="request_too_large",
    )


def _read(source: Any, size: int) -> bytes:
    """At most `size` bytes, piece by piece: gunicorn copies what it has three times over."""
    if size <= _PIECE_BYTES:
        return bytes(source.read(size))
    pieces = []
    while size > 0 and (piece := source.read(min(size, _PIECE_BYTES))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
