"""What a call used, as the upstream said it; never estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Usage:
    """Token counts of one call; a part that the upstream did not tell is None."""

    prompt: int | None = None
    completion: int | None = None
    total: int | None = None
    cached: int | None = None
    reasoning: int | None = None


def parse(usage: Any) -> Usage | None:
    """Read OpenAI's `usage` object, as DashScope fills it; None if it is none.

    Shape: `{"prompt_tokens", "completion_tokens", "total_tokens",
    "prompt_tokens_details": {"cached_tokens"}|null,
    "completion_tokens_details": {"reasoning_tokens"}|null}`.
    """
    if not isinstance(usage, Mapping):
        return None
    return Usage(
        prompt=_count(usage, "prompt_tokens"),
        completion=_count(usage, "completion_tokens"),
        total=_count(usage, "total_tokens"),
        cached=_first(
            _count(usage.get("prompt_tokens_details"), "cached_tokens"),
            _count(usage, "cached_tokens"),  # where some of the models behind DashScope put it
        ),
        reasoning=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)


def _count(holder: Any, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
