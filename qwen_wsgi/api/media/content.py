"""Carries a result of an upstream to the client, as it comes: a video, a sound."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from flask import Response

from qwen_wsgi.api import http
from qwen_wsgi.api.late_answers import carried_download
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.upstream.http.download import Download

#: One part of a body (RFC 9110 §14.1.2). Of several ones the whole is sent, as a server may.
_RANGE: Final = re.compile(r"bytes=(?:\d{1,15}-\d{0,15}|-\d{1,15})")
_CONTENT_RANGE: Final = re.compile(r"bytes \d{1,15}-\d{1,15}/(?:\d{1,15}|\*)")
_NO_PART: Final = re.compile(r"bytes \*/\d{1,15}")

#: Types that hosts give to bytes of any kind.
_ANY_BYTES: Final = ("", "application/octet-stream", "binary/octet-stream")


def wanted_part(environ: Mapping[str, str]) -> dict[str, str]:
    """The header `Range` for the host of a result, if the client wants one part.

    A part on a condition is not asked for: our answers have nothing that it could name.
    """
    wanted = environ.get("HTTP_RANGE", "").replace(" ", "")
    if "HTTP_IF_RANGE" in environ or not _RANGE.fullmatch(wanted):
        return {}
    return {"Range": wanted}


def no_such_part(content_range: str) -> Response:
    """The answer where a result has no such part (RFC 9110 §15.5.17)."""
    error = ApiError(
        "The video has no such part.",
        status=416,
        type="invalid_request_error",
        code="range_not_satisfiable",
    )
    response = http.error(error)
    if _NO_PART.fullmatch(content_range):
        response.headers["content-range"] = content_range
    return response


def content(
    call: LiveCall, download: Download, *, part: bool, types: Mapping[str, str], name: str
) -> Response:
    """The answer whose body is a result, which the call holds from now on.

    Args:
        part: the client wants a part.
        types: content types that are passed on, each with the ending of a file name. The first one
            is taken for bytes of no type.
        name: of the file, without its ending: ours, never the upstream's or the client's.

    Raises:
        UpstreamError: the host sends something else than wanted.
    """
    call.relay = carried_download(call, download)
    kind = download.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _ANY_BYTES:
        kind = next(iter(types))
    content_range = download.headers.get("content-range", "")
    is_part = download.status == 206
    wrong = is_part and not (part and _CONTENT_RANGE.fullmatch(content_range))
    if wrong or kind not in types:
        call.relay = None
        download.close()
        raise UpstreamError(
            "The host of the result sent something else than the result.",
            code="upstream_bad_answer",
        )
    response = http.carried(call.relay, kind, status=download.status, length=download.length)
    headers = response.headers
    if is_part:
        headers["content-range"] = content_range
    headers["accept-ranges"] = "bytes"
    headers["cache-control"] = "private, no-cache"
    headers["content-disposition"] = f'attachment; filename="{name}.{types[kind]}"'
    if call.record.method == "HEAD":
        call.record.outcome = "complete"  # nobody takes the body
    return response
