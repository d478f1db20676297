"""The usage of a call, as the upstream reported it; never estimated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: The members of a usage without details, as every second one is.
_PLAIN: Final = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})


@dataclass(slots=True)  # a frozen one would take a call for each member, with each request
class Usage:
    """Token counts of one call, which nobody changes; one that the upstream did not send is None.

    Attributes:
        cached: prompt tokens that were read from a cache.
        cache_written: prompt tokens that were written to one, which costs more.
        explicit_cache: the client had marked what was to be cached: other prices than those of a
            cache that works by itself.
    """

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    cached: int | None = None
    reasoning: int | None = None
    cache_written: int | None = None
    explicit_cache: bool = False


def parse(usage: Any) -> Usage | None:
    """Parse OpenAI's `usage` object, as DashScope fills it; None for any other value.

    Shape: `{"prompt_tokens", "completion_tokens", "total_tokens",
    "prompt_tokens_details": {"cached_tokens", "cache_write_tokens", "cache_type"}|null,
    "completion_tokens_details": {"reasoning_tokens"}|null}`. Counts in other places:
    see `normalized`.
    """
    if not isinstance(usage, dict):  # as JSON has it; Mapping would cost ten times as much
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    total = usage.get("total_tokens")
    prompt = prompt if type(prompt) is int else None
    completion = completion if type(completion) is int else None
    total = total if type(total) is int else None
    if total and prompt == completion == 0:
        prompt = completion = None  # only the total was sent (qwen-code reads it so, too)
    if usage.keys() <= _PLAIN:
        return Usage(prompt, completion, total)
    details = usage.get("prompt_tokens_details")
    return Usage(
        prompt=prompt,
        completion=completion,
        total=total,
        cached=_cached(usage),
        reasoning=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
        cache_written=_cache_written(usage),
        explicit_cache=isinstance(details, dict) and details.get("cache_type") == "ephemeral",
    )


def total(used: Sequence[Usage | None]) -> Usage | None:
    """The sum of several calls; a count, or all of it, that is unknown of one is unknown.

    A detail that only some hosts send (`cached`, `reasoning`, `cache_written`) is the sum of those
    that were sent.
    """
    known = [each for each in used if each is not None]
    if not known or len(known) < len(used):
        return None
    return Usage(
        prompt=_sum([each.prompt for each in known]),
        completion=_sum([each.completion for each in known]),
        total=_sum([each.total for each in known]),
        cached=_sum_of_sent(each.cached for each in known),
        reasoning=_sum_of_sent(each.reasoning for each in known),
        cache_written=_sum_of_sent(each.cache_written for each in known),
        explicit_cache=any(each.explicit_cache for each in known),
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    sent = [count for count in counts if count is not None]
    return sum(sent) if len(sent) == len(counts) else None


def _sum_of_sent(counts: Iterable[int | None]) -> int | None:
    sent = [count for count in counts if count is not None]
    return sum(sent) if sent else None


def normalized(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the cache's counts to a `usage` object where OpenAI has them.

    Returns the same object if there is nothing to add. DashScope sends
    `cache_creation_input_tokens` or `cache_creation: {"ephemeral_5m_input_tokens"}` inside
    `prompt_tokens_details`; some of its models send `cached_tokens` at the top.
    """
    details = usage.get("prompt_tokens_details")
    known = details if isinstance(details, dict) else {}
    found = {"cached_tokens": _cached(usage), "cache_write_tokens": _cache_written(usage)}
    missing = {
        name: count
        for name, count in found.items()
        if count is not None and known.get(name) is None
    }
    return {**usage, "prompt_tokens_details": {**known, **missing}} if missing else usage


def _cached(usage: Mapping[str, Any]) -> int | None:
    return _first(
        _count(usage.get("prompt_tokens_details"), "cached_tokens"), _count(usage, "cached_tokens")
    )


def _cache_written(usage: Mapping[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    return _first(
        _count(details, "cache_write_tokens"),
        _count(details, "cache_creation_input_tokens"),
        _count(details.get("cache_creation"), "ephemeral_5m_input_tokens"),
        _count(usage, "cache_creation_input_tokens"),
    )


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)


def _count(holder: Any, name: str) -> int | None:
    count = holder.get(name) if isinstance(holder, dict) else None
    return count if type(count) is int else None  # a boolean is an int in Python, too
