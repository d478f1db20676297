"""Decodes the bodies of requests that come with a content coding: gzip or zstd, within bounds."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Final

import zstandard

from qwen_wsgi.errors import ApiError, BadRequest

#: The names of gzip (RFC 9110 §8.4.1.3) and of Zstandard (RFC 8878), and zlib's number for gzip.
_NAMES: Final = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
_GZIP_WINDOW: Final = 31

#: How many times its size a body may grow: texts of people stay below 20, a bomb is at 1000.
RATIO: Final = 100
#: Any body may grow to this.
_FREE_BYTES: Final = 64 * 1024

#: The largest window that HTTP's zstd may have (RFC 9659): what a decoder keeps of its output.
_ZSTD_WINDOW: Final = 8 * 1024 * 1024
#: zstandard cannot be told how much to give. A block of four bytes becomes 128 kB at most, so that
#: a slice of this size becomes 8 MB at most.
_SLICE_BYTES: Final = 256


def coding_of(environ: Mapping[str, Any]) -> str | None:
    """The content coding of a body, `gzip` or `zstd`; None for none.

    Raises:
        ApiError: 415: it is another one.
    """
    given: str = environ["HTTP_CONTENT_ENCODING"].strip().lower()
    if given in ("", "identity"):
        return None
    if given in _NAMES:
        return _NAMES[given]
    raise ApiError(
        f"The Content-Encoding '{given[:64]}' is not supported. Send the body as it is, or with "
        "gzip or zstd.",
        status=415,
        type="invalid_request_error",
        code="unsupported_content_encoding",
    )


def decoded(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Decode a body, within the limit of a body and a ratio that no text of people has.

    Raises:
        ApiError: 413 above those; 400 if it is not what its coding says, incomplete, or followed by
            something.
    """
    most = min(max_bytes, max(RATIO * len(body), _FREE_BYTES))
    text, ended = (_gzip if coding == "gzip" else _zstd)(body, most)
    if len(text) > most:
        raise too_large(max_bytes) if most == max_bytes else _too_dense()
    if not ended:
        raise BadRequest(f"The {coding} of the request body is incomplete, or more than one.")
    return text


def _gzip(body: bytes, most: int) -> tuple[bytes, bool]:
    """At most one byte more than `most`; and whether it ends where the body does."""
    decoder = zlib.decompressobj(wbits=_GZIP_WINDOW)
    try:
        text = decoder.decompress(body, most + 1)
    except zlib.error as error:
        raise _other("gzip") from error
    return text, decoder.eof and not decoder.unused_data


def _zstd(body: bytes, most: int) -> tuple[bytes, bool]:
    """As `_gzip`, but for a slice more."""
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
    text = bytearray()
    place = 0
    try:
        while place < len(body) and len(text) <= most and not decoder.eof:
            text += decoder.decompress(body[place : place + _SLICE_BYTES])
            place += _SLICE_BYTES
    except zstandard.ZstdError as error:
        raise _other("zstd") from error
    whole = decoder.eof and not decoder.unused_data and place >= len(body)
    return bytes(text), whole


def _other(coding: str) -> BadRequest:
    return BadRequest(f"The request body is not what its Content-Encoding says: {coding}.")


def _too_dense() -> ApiError:
    return ApiError(
        f"The request body grows to more than {RATIO} times its size when decoded.",
        status=413,
        type="invalid_request_error",
        code="request_too_large",
    )


def too_large(max_bytes: int, setting: str = "QWEN_PROXY_MAX_BODY") -> ApiError:
    """The refusal of a body above a limit, and the setting that says it, if one does."""
    where = f" ({setting} on the server)" if setting else ""
    return ApiError(
        f"The request body is larger than the limit of {max_bytes} bytes{where}.",
        status=413,
        type="invalid_request_error",
        code="request_too_large",
    )
