"""Looks at JSON that others wrote, which may hold anything anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class Members(Protocol):
    """An object of JSON: a dict, or a `JsonObject`."""

    def get(self, name: str, /) -> Any:
        """The value of a member, or None."""


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of what should be a list of them."""
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict):
            yield each


def items(value: Any) -> list[Any]:
    """What should be a list; an empty one for anything else."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """What should be a string; "" for anything else."""
    return value if isinstance(value, str) else ""


def integer(value: Any) -> int | None:
    """What should be an integer; None for anything else, such as true, which Python takes for 1."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
