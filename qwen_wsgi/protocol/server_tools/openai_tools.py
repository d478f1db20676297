"""OpenAI's tools `mcp` and `code_interpreter`, as requests of chat and of Responses have them."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.validation import wrong_type

MCP: Final = "mcp"
CODE: Final = "code_interpreter"
TYPES: Final = (MCP, CODE)
_ALLOWED: Final = "allowed_tools"


def is_requested(body: JsonObject) -> bool:
    """Whether a request has one of these tools itself, for whoever knows which there are."""
    return any(tool.get("type") in TYPES for tool in json_access.objects(body.get("tools")))


def allowed_in(choice: Any) -> list[Any] | None:
    """The tools that a `tool_choice` of chat allows; None if it is no list of such.

    Its members are in an inner object; clients that confuse it with Responses' leave that out.
    """
    if json_access.mapping(choice).get("type") != _ALLOWED:
        return None
    tools = (json_access.mapping(choice.get(_ALLOWED)) or choice).get("tools")
    return tools if isinstance(tools, list) else None


def with_allowed(choice: dict[str, Any], **members: Any) -> dict[str, Any]:
    """Such a choice with other members: `tools`, `mode`."""
    inner = json_access.mapping(choice.get(_ALLOWED)) or choice
    return {"type": _ALLOWED, _ALLOWED: {**inner, **members}}


def names_in(given: Any, param: str, changes: Changes) -> list[str] | None:
    """The names in a list, or in a filter with `tool_names`; None for all.

    Raises:
        BadRequest: they are no names; in strict mode, also if the filter has `read_only`.
    """
    if isinstance(given, dict):
        if given.get("read_only") is not None:
            changes.lose(
                "tools", "cannot be chosen by 'read_only'", what=f"{header_token(param)}-read_only"
            )
        given = given.get("tool_names")
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise wrong_type(param, "an array of strings", given)
    return given
