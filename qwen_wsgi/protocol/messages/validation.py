"""Reads members of a request; what is wrong is refused in the words of Anthropic's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.json_access import Members

_T = TypeVar("_T", str, int, bool, dict[str, Any], list[Any])

_KINDS: Final[Mapping[type, str]] = {
    str: "a valid string",
    int: "a valid integer",
    bool: "a valid boolean",
    dict: "an object",
    list: "a valid list",
}


def wrong(path: str, expected: str) -> BadRequest:
    """The refusal of a value that is not `expected`, for example `a valid string`."""
    return BadRequest(f"{path}: Input should be {expected}", param=path, code="invalid_type")


def invalid(path: str, why: str) -> BadRequest:
    """The refusal of an invalid value; `why` is a sentence without a full stop."""
    return BadRequest(f"{path}: {why}", param=path, code="invalid_value")


def need(holder: Members, name: str, kind: type[_T], path: str = "") -> _T:
    """A required member.

    Args:
        path: of the holder, as in `messages.0.content`; "" for the request itself.

    Raises:
        BadRequest: it is missing, null, or of a wrong type.
    """
    value = want(holder, name, kind, path)
    if value is None:
        where = below(path, name)
        raise BadRequest(f"{where}: Field required", param=where, code="missing_required_parameter")
    return value


def want(holder: Members, name: str, kind: type[_T], path: str = "") -> _T | None:
    """An optional member; None if it is missing or null.

    Raises:
        BadRequest: it is of another type.
    """
    value = holder.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong(below(path, name), _KINDS[kind])
    return value


def number(holder: Members, name: str) -> float | None:
    """An optional number; None if it is missing or null.

    Raises:
        BadRequest: it is something else.
    """
    value = holder.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, "a valid number")
    return value


def below(path: str, name: str | int) -> str:
    """The path of a member or an item."""
    return f"{path}.{name}" if path else str(name)
