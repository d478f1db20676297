"""One completion out of several: how `n` choices come from a model that gives one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def combined(completions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The choices of all completions, numbered anew; usage is summed, as it is billed.

    Shape: OpenAI's `chat.completion`, whose other members are those of the first.
    """
    choices = [choice for each in completions for choice in each.get("choices") or ()]
    whole = {
        **completions[0],
        "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
    }
    used = [each["usage"] for each in completions if isinstance(each.get("usage"), Mapping)]
    if used:
        whole["usage"] = _sum(used)
    return whole


def _sum(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers summed, objects member by member; of anything else the last counts."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            known = total.get(name)
            if isinstance(known, Mapping) and isinstance(value, Mapping):
                total[name] = _sum([known, value])
            elif isinstance(known, int | float) and isinstance(value, int | float):
                total[name] = known + value
            elif value is not None or name not in total:
                total[name] = value
    return total
