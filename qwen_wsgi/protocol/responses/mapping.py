"""Translates usage, pages, log probabilities and errors of chat to the form of a response."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.translation import search
from qwen_wsgi.protocol.usage import Usage

#: Stands for the logarithm of probability 0, which JSON cannot write, as in vLLM.
_NEVER: Final = -9999.0

_CONTEXT: Final = "context_length_exceeded"
_QUOTA: Final = "insufficient_quota"
_RATE: Final = "rate_limit_exceeded"
_PROMPT: Final = "invalid_prompt"
_SERVER: Final = "server_error"

_HINT: Final = re.compile(r"try again in\s*\d", re.IGNORECASE)


def usage(used: Usage | None) -> dict[str, Any] | None:
    """Render the `usage` of a response; None if its main counts are unknown.

    OpenAI's schema requires every count; details that a host does not send are 0.
    """
    if used is None or used.prompt is None or used.completion is None:
        return None
    return {
        "input_tokens": used.prompt,
        "input_tokens_details": {
            "cached_tokens": used.cached or 0,
            "cache_write_tokens": used.cache_written or 0,
        },
        "output_tokens": used.completion,
        "output_tokens_details": {"reasoning_tokens": used.reasoning or 0},
        "total_tokens": used.prompt + used.completion if used.total is None else used.total,
    }


def found_urls(chunk: Mapping[str, Any], delta: Mapping[str, Any]) -> list[str] | None:
    """The URLs that a web search found; None if the chunk reports no search."""
    pages = search.pages_of(chunk, delta)
    return None if pages is None else [page.url for page in pages]


def logprobs(given: Any) -> list[dict[str, Any]]:
    """Translate a choice's log probabilities: chat's list, with bytes where chat has null."""
    content = given.get("content") if isinstance(given, dict) else None
    entries = []
    for each in json_access.items(content):
        if (entry := _logprob(each)) is not None:
            others = map(_logprob, json_access.items(each.get("top_logprobs")))
            entries.append({**entry, "top_logprobs": [other for other in others if other]})
    return entries


def _logprob(each: Any) -> dict[str, Any] | None:
    if not isinstance(each, dict):
        return None
    token, logprob, octets = each.get("token"), each.get("logprob"), each.get("bytes")
    if not isinstance(token, str) or not isinstance(logprob, int | float):
        return None
    if not math.isfinite(logprob):
        logprob = _NEVER
    if not isinstance(octets, list) or not all(type(octet) is int for octet in octets):
        octets = list(token.encode(errors="replace"))
    return {"token": token, "logprob": logprob, "bytes": octets}


def response(
    head: Mapping[str, Any],
    echo: Mapping[str, Any],
    *,
    model: str,
    status: str,
    output: Sequence[Mapping[str, Any]] = (),
    error: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    used: Usage | None = None,
) -> dict[str, Any]:
    """OpenAI's response object.

    Args:
        head: of `head`.
        echo: what is told of the request.
        details: why it is incomplete.
    """
    return {
        **head,
        "status": status,
        "error": error,
        "incomplete_details": details,
        "access_programs": None,
        "model": model,
        "output": list(output),
        **echo,
        "usage": usage(used),
    }


def head(id: str, created: int) -> dict[str, Any]:
    """The first members of a response object: `{"id", "object", "created_at"}`."""
    return {"id": id, "object": "response", "created_at": created}


def error(failure: ApiError) -> dict[str, Any]:
    """Render why a response failed: `{"code", "message"}`.

    OpenAI's list of codes is short (openai.types.responses.response_error). Codex retries after
    most of them; not after `context_length_exceeded`, `insufficient_quota` and `invalid_prompt`,
    and after `rate_limit_exceeded` it waits as long as a text "try again in 5s" says.
    """
    if failure.code in (_CONTEXT, _QUOTA, _RATE):
        code = failure.code
    elif failure.type == _QUOTA:
        code = _QUOTA
    elif failure.status == 429:
        code = _RATE
    elif failure.code == "content_filter" or failure.status in (400, 404, 413, 422):
        code = _PROMPT
    else:
        code = _SERVER
    message = failure.message
    if failure.retry_after_s is not None and not _HINT.search(message):
        message += f" Please try again in {max(1, math.ceil(failure.retry_after_s))}s."
    return {"code": code, "message": message}
