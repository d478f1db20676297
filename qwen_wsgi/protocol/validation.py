"""Reads members of a request; what is wrong is refused in OpenAI's words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.json_access import Members

#: Characters of a client's word that a refusal quotes.
_QUOTED_CHARS: Final = 60

_JSON_TYPES: Final = {
    bool: "a boolean",
    str: "a string",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def wrong_type(param: str, expected: str, value: object) -> BadRequest:
    """The refusal of a value that is not `expected`, for example `a string`."""
    got = "an empty array" if value == [] else _JSON_TYPES.get(type(value), "something else")
    return BadRequest(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        param=param,
        code="invalid_type",
    )


def missing(param: str) -> BadRequest:
    """The refusal of a request without a required member."""
    return BadRequest(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def bad_value(param: str, value: object, supported: Collection[str]) -> BadRequest:
    """The refusal of a word that is not one of the supported ones."""
    return BadRequest(
        f"Invalid value: '{str(value)[:_QUOTED_CHARS]}'. Supported values are: "
        + ", ".join(f"'{word}'" for word in supported)
        + ".",
        param=param,
        code="invalid_value",
    )


def unsupported(param: str, message: str) -> BadRequest:
    """The refusal of a parameter that OpenAI has and this proxy does not."""
    return BadRequest(message, param=param, code="unsupported_parameter")


def text(holder: Members, name: str, path: str = "") -> str | None:
    """A string; None if it is missing or null. A refusal puts `path` before the name."""
    value = holder.get(name)
    if not isinstance(value, str | None):
        raise wrong_type(path + name, "a string", value)
    return value


def model_of(body: Members) -> str:
    """The model that a request names; "" if it names none."""
    return text(body, "model") or ""


def required_text(holder: Members, name: str, path: str = "") -> str:
    """A required string."""
    value = text(holder, name, path)
    if value is None:
        raise missing(path + name)
    return value


def required_name(holder: Members, path: str) -> str:
    """A required `name` that is not empty."""
    name = required_text(holder, "name", path)
    if not name:
        raise BadRequest(
            f"Invalid '{path}name': empty string.", param=path + "name", code="empty_string"
        )
    return name


def flag(holder: Members, name: str) -> bool | None:
    """A boolean; None if it is missing or null."""
    value = holder.get(name)
    if not isinstance(value, bool | None):
        raise wrong_type(name, "a boolean", value)
    return value


def number(holder: Members, name: str) -> float | None:
    """A number, of any range; None if it is missing or null."""
    value = holder.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise wrong_type(name, "a number", value)
    return value


def count(holder: Members, name: str, *, least: int) -> int | None:
    """An integer of at least `least`; None if it is missing or null."""
    value = holder.get(name)
    if isinstance(value, bool) or not isinstance(value, int | None):
        raise wrong_type(name, "an integer", value)
    if value is not None and value < least:
        raise BadRequest(
            f"Invalid '{name}': integer below minimum value. Expected a value >= {least}.",
            param=name,
            code="integer_below_min_value",
        )
    return value


def mapping(holder: Members, name: str, path: str = "") -> dict[str, Any] | None:
    """An object; None if it is missing or null."""
    value = holder.get(name)
    if not isinstance(value, dict | None):
        raise wrong_type(path + name, "an object", value)
    return value


def objects(holder: Members, name: str, path: str = "") -> list[dict[str, Any]]:
    """An array of objects; empty if it is missing or null."""
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_type(path + name, "an array of objects", value)
    for index, each in enumerate(value):
        if not isinstance(each, dict):
            raise wrong_type(f"{path}{name}[{index}]", "an object", each)
    return value
