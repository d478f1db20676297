"""Adapts what OpenAI's chat has for tools besides functions: custom tools, and `allowed_tools`.

Hosts of Qwen know only functions. A custom tool takes one free text; it becomes a function with one
text argument, and its calls are turned back (`protocol.chat.renamed_tools`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import json_access, validation
from qwen_wsgi.protocol.translation import free_text, search
from qwen_wsgi.protocol.translation.tool_names import LONGEST
from qwen_wsgi.upstream.adapt.draft import Draft

_CUSTOM: Final = "custom"
_ALLOWED: Final = "allowed_tools"
_MODES: Final = ("auto", "required")


def adapt(draft: Draft) -> None:
    """Keep the tools that are allowed, and turn custom ones into functions.

    Raises:
        BadRequest: a custom tool or the choice is invalid, or names no tool of the request.
    """
    choice = draft.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == _ALLOWED:
        _keep_allowed(draft, choice)
    tools = json_access.items(draft.get("tools"))
    if any([isinstance(tool, dict) and tool.get("type") == _CUSTOM for tool in tools]):
        _as_functions(draft, tools)
    if isinstance(choice, dict) and choice.get("type") == _CUSTOM:
        name = _name_of(choice)
        if name not in draft.customs:
            raise _unknown(name)
        draft.put("tool_choice", {"type": "function", "function": {"name": name}}, "function")


def _keep_allowed(draft: Draft, choice: dict[str, Any]) -> None:
    """Apply `{"type": "allowed_tools", "allowed_tools": {"mode", "tools": [{"type", …}]}}`.

    The Responses API has the members of the inner object in the outer one, and the names of tools
    beside their types; clients confuse the two.
    """
    path = f"tool_choice.{_ALLOWED}."
    allowed = validation.mapping(choice, _ALLOWED, "tool_choice.") or choice
    mode = validation.required_text(allowed, "mode", path)
    if mode not in _MODES:
        raise validation.bad_value(path + "mode", mode, _MODES)
    tools = json_access.items(draft.get("tools"))
    wanted = {_key_of(each) for each in validation.objects(allowed, "tools", path)}
    for kind, name in wanted - set(map(_key_of, tools)):
        raise _unknown(name or kind)
    kept = [tool for tool in tools if _key_of(tool) in wanted]
    if not kept:
        raise BadRequest(
            f"'{path}tools' allows no tool. Choose 'none' to have no tool called.",
            param="tool_choice",
            code="invalid_value",
        )
    if len(kept) < len(tools):
        draft.put("tools", kept, "only-allowed")
    draft.put("tool_choice", mode, mode)


def _as_functions(draft: Draft, tools: list[Any]) -> None:
    functions = [
        _function(draft, tool, f"tools[{place}].")
        if isinstance(tool, dict) and tool.get("type") == _CUSTOM
        else tool
        for place, tool in enumerate(tools)
    ]
    draft.put("tools", functions, "custom-as-function")


def _function(draft: Draft, tool: dict[str, Any], path: str) -> dict[str, Any]:
    custom = validation.mapping(tool, _CUSTOM, path)
    if custom is None:
        raise validation.missing(path + _CUSTOM)
    path += "custom."
    name = validation.required_name(custom, path)
    described = [validation.text(custom, "description", path) or "", *_grammar(draft, custom, path)]
    draft.customs |= {name}
    function: dict[str, Any] = {"name": name}
    if description := "\n\n".join(each for each in described if each):
        function["description"] = description
    function["parameters"] = free_text.parameters()
    others = {name: value for name, value in tool.items() if name != _CUSTOM}
    return {**others, "type": "function", "function": function}


def _grammar(draft: Draft, custom: dict[str, Any], path: str) -> Iterator[str]:
    """What is said of a format: `{"type": "grammar", "grammar": {"definition", "syntax"}}`."""
    form = validation.mapping(custom, "format", path) or {}
    grammar = validation.mapping(form, "grammar", path + "format.") or {}
    path += "format.grammar."
    if definition := validation.text(grammar, "definition", path):
        draft.note("tools", "grammar-as-text")
        syntax = validation.text(grammar, "syntax", path) or ""
        yield free_text.grammar_note(definition, syntax)


def _key_of(tool: Any) -> tuple[str, str]:
    """A tool's type and name; searches of all versions are one."""
    if search.is_tool(tool):
        return "web_search", ""
    kind = json_access.text(tool.get("type")) if isinstance(tool, dict) else ""
    return kind, _name_of(tool) if kind else ""


def _name_of(tool: dict[str, Any]) -> str:
    inner = json_access.mapping(tool.get(json_access.text(tool.get("type"))))
    return json_access.text(inner.get("name")) or json_access.text(tool.get("name"))


def _unknown(name: str) -> BadRequest:
    return BadRequest(
        f"Tool choice '{name[:LONGEST]}' not found in 'tools' parameter.",
        param="tool_choice",
        code="invalid_value",
    )
