"""Why a response failed, in the words that clients of the Responses API act on.

OpenAI's list of codes is short (openai.types.responses.response_error). Codex tries again after
most of them; not after `context_length_exceeded`, `insufficient_quota` and `invalid_prompt`, and
after `rate_limit_exceeded` when the text says "try again in 5s" it waits that long.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from qwen_wsgi.errors import ApiError

_CONTEXT: Final = "context_length_exceeded"
_QUOTA: Final = "insufficient_quota"
_RATE: Final = "rate_limit_exceeded"
_PROMPT: Final = "invalid_prompt"
_SERVER: Final = "server_error"

#: Signs in a host's own codes and texts, the first that is found counts (Model Studio's page of
#: errors). Its `insufficient_quota` is a throttle of a minute, unless the text tells of a plan.
_SIGNS: Final = (
    (_CONTEXT, r"range of input length should be|context_length_exceeded|maximum context length"),
    (_QUOTA, r"(hour|week|month) allocated quota|FreeTierOnly|Arrearage|NotPurchased|BillOverdue"),
    (
        _RATE,
        r"throttling|limit_requests|limit_burst_rate|rate_limit|LimitRequests|insufficient_quota"
        r"|exceeded your current (quota|requests)",
    ),
    (_PROMPT, r"data_?inspection|content_filter|inappropriate content|invalid_?parameter"),
)
_PATTERNS: Final = tuple((code, re.compile(sign, re.IGNORECASE)) for code, sign in _SIGNS)

_HINT: Final = re.compile(r"try again in\s*\d", re.IGNORECASE)

_SILENT: Final = "The upstream failed, and did not say why."


def of_api_error(error: ApiError) -> dict[str, Any]:
    """`{"code", "message"}` for a failure of ours, or of a host as it was understood."""
    if error.code in (_CONTEXT, _QUOTA, _RATE):
        code = error.code
    elif error.type == _QUOTA:
        code = _QUOTA
    elif error.status == 429:
        code = _RATE
    elif error.code == "content_filter" or error.status in (400, 404, 413, 422):
        code = _PROMPT
    else:
        code = _SERVER
    message = error.message
    if error.retry_after_s is not None and not _HINT.search(message):
        message += f" Please try again in {max(1, math.ceil(error.retry_after_s))}s."
    return {"code": code, "message": message}


def of_upstream_error(error: Any) -> dict[str, Any]:
    """`{"code", "message"}` for an error that a host told in a stream, in whatever form."""
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else ""}
    told = error.get("message")
    message = told if isinstance(told, str) and told.strip() else _SILENT
    words = " ".join(str(error.get(name) or "") for name in ("code", "type"))
    for code, sign in _PATTERNS:
        if sign.search(words) or sign.search(message):
            return {"code": code, "message": message}
    return {"code": _SERVER, "message": message}
