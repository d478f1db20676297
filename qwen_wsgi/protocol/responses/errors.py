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

_HINT: Final = re.compile(r"try again in\s*\d", re.IGNORECASE)


def told(error: ApiError) -> dict[str, Any]:
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
