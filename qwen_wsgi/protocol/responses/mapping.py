"""What chunks tell beside text and calls, in the form that a response has: sources and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.usage import Usage

#: The logarithm of no probability at all, which JSON cannot write; the number that vLLM writes.
_NEVER: Final = -9999.0


def usage(used: Usage | None) -> dict[str, Any] | None:
    """The `usage` of a response; None if its main numbers are not known.

    OpenAI's schema requires every part. What a host does not mention (its details may be null) did
    not happen: 0.
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


def sources(given: Any) -> Iterator[dict[str, Any]]:
    """Sources of a text.

    Chat has `{"type": "url_citation", "url_citation": {"start_index", "end_index", "title",
    "url"}}`, a response the same without the inner object.
    """
    for each in json_access.objects(given):
        if each.get("type") != "url_citation":
            continue
        inner = each.get("url_citation")
        told = inner if isinstance(inner, dict) else each
        start, end, title = (told.get(name) for name in ("start_index", "end_index", "title"))
        if isinstance(url := told.get("url"), str) and url:
            yield {
                "type": "url_citation",
                "start_index": start if type(start) is int else 0,
                "end_index": end if type(end) is int else 0,
                "title": title if isinstance(title, str) else url,
                "url": url,
            }


def found_urls(chunk: Mapping[str, Any], delta: Mapping[str, Any]) -> list[str] | None:
    """The pages that a search found; None if none is told.

    DashScope's form: `search_info: {"search_results": [{"index", "title", "url", …}]}`.
    """
    info = chunk.get("search_info") or delta.get("search_info")
    results = info.get("search_results") if isinstance(info, dict) else None
    if not isinstance(results, list) or not results:
        return None
    urls = (each.get("url") for each in results if isinstance(each, dict))
    return [url for url in urls if isinstance(url, str)]


def logprobs(given: Any) -> list[dict[str, Any]]:
    """Log probabilities of a choice's text: chat's list, with bytes where chat may have null."""
    content = given.get("content") if isinstance(given, dict) else None
    told = []
    for each in json_access.items(content):
        if (entry := _logprob(each)) is not None:
            others = map(_logprob, json_access.items(each.get("top_logprobs")))
            told.append({**entry, "top_logprobs": [other for other in others if other]})
    return told


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
