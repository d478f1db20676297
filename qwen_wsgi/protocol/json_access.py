"""Reads values of JSON from outside, which may have any type anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from qwen_wsgi.protocol.json_object import loads


class Members(Protocol):
    """A JSON object: a dict or a `JsonObject`."""

    def get(self, name: str, /) -> Any:
        """The value of a member, or None."""


def read(data: bytes, *, most_slowly: int | None = None) -> Any:
    """The value of a JSON text; None if it is none, or nested too deep.

    Args:
        most_slowly: as for `loads`.
    """
    try:
        return loads(data, most_slowly=most_slowly)
    except (ValueError, RecursionError):
        return None


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects in a list; nothing for other values."""
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict):
            yield each


def items(value: Any) -> list[Any]:
    """A list; an empty one for other values."""
    return value if isinstance(value, list) else []


def mapping(value: Any) -> dict[str, Any]:
    """An object; an empty one for other values."""
    return value if isinstance(value, dict) else {}


def text(value: Any) -> str:
    """A string; "" for other values."""
    return value if isinstance(value, str) else ""


def integer(value: Any) -> int | None:
    """An integer; None for other values, also for a boolean, which is an int in Python."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def choice_number(choice: Mapping[str, Any]) -> int:
    """The `index` of a choice; 0, the only one's, where it is none."""
    index = choice.get("index")
    return index if isinstance(index, int) else 0
