"""Translates tools and the choice of a tool to chat."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.json_access import Members, text
from qwen_wsgi.protocol.messages.blocks import mark
from qwen_wsgi.protocol.messages.server_tools import ServerTools, chosen, is_one
from qwen_wsgi.protocol.messages.validation import below, invalid, need, want, wrong

#: Options of a web search, which Qwen's hosts do not have.
_SEARCH_OPTIONS: Final = ("allowed_domains", "blocked_domains", "user_location")

SEARCH: Final = "web_search"

#: The whole prompt of Claude Code's tool WebSearch is this and the query. It means to force the
#: search, but says `auto` where it sets an effort: for each model that it does not know (2.1.332).
_ASKS_FOR_SEARCH: Final = "Perform a web search for the query: "

#: A tool that Claude Code sends only for a feature of Anthropic's; models must not call it.
_PLACEHOLDER: Final = "DeferredToolPlaceholder"


def tools_of(body: Members, own: ServerTools, changes: Changes) -> dict[str, Any]:
    """Translate to the members `tools`, `tool_choice` and `parallel_tool_calls` of chat.

    Anthropic's own tools (`bash_…`, `text_editor_…`) have no schema, because only its models know
    them; they are dropped.

    Args:
        own: the operator's tools that the request selects.

    Raises:
        BadRequest: a tool is invalid, or a tool that was dropped is chosen.
    """
    tools = []
    for index, tool in enumerate(want(body, "tools", list) or ()):
        if not isinstance(tool, dict):
            raise wrong(f"tools.{index}", "an object")
        if is_one(text(tool.get("type"))):
            continue
        translated = _tool(tool, below("tools", index), changes)
        if translated is not None and (translated["type"] != SEARCH or translated not in tools):
            tools.append(translated)
    tools += own.functions.in_chat()
    members: dict[str, Any] = {"tools": tools} if tools else {}
    choice = want(body, "tool_choice", dict)
    if tools == [{"type": SEARCH}] and _asks_for_search(body.get("messages")):
        choice = {"type": "tool", "name": SEARCH}
        changes.note("tool_choice", "forced-search")
    return {**members, **_choice(choice, tools, own)} if choice is not None else members


def _tool(tool: dict[str, Any], path: str, changes: Changes) -> dict[str, Any] | None:
    kind = want(tool, "type", str, path) or "custom"
    if kind == "custom":
        function = _function(tool, path)
        if tool.get("defer_loading") is True and function["function"]["name"] == _PLACEHOLDER:
            changes.note("tools", "placeholder-dropped")
            return None
        # Other deferred tools are sent at once: there is no search for tools here.
        return function
    if kind.startswith(SEARCH):
        for option in _SEARCH_OPTIONS:
            if tool.get(option):
                changes.lose(f"tools.{option}", "limits a search in a way that Qwen's hosts cannot")
        return {"type": SEARCH}
    changes.lose("tools", f"have '{header_token(kind)}', which only Anthropic's models know")
    return None


def _function(tool: dict[str, Any], path: str) -> dict[str, Any]:
    function: dict[str, Any] = {"name": need(tool, "name", str, path)}
    if description := want(tool, "description", str, path):
        function["description"] = description
    function["parameters"] = need(tool, "input_schema", dict, path)
    return {"type": "function", "function": function, **mark(tool)}


def _asks_for_search(messages: Any) -> bool:
    """Whether a conversation is nothing but a search that Claude Code wants to have made."""
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        return False
    content = messages[0].get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("text")
    return isinstance(content, str) and content.startswith(_ASKS_FOR_SEARCH)


def _choice(
    choice: dict[str, Any], tools: list[dict[str, Any]], own: ServerTools
) -> dict[str, Any]:
    kind = need(choice, "type", str, "tool_choice")
    if kind not in ("auto", "any", "tool", "none"):
        raise wrong("tool_choice.type", "'auto', 'any', 'tool' or 'none'")
    name = need(choice, "name", str, "tool_choice") if kind == "tool" else ""
    single = want(choice, "disable_parallel_tool_use", bool, "tool_choice")
    names = [tool["function"]["name"] for tool in tools if tool["type"] == "function"]
    if kind == "tool" and name not in names:
        name = chosen(own, name) or name
    members: dict[str, Any] = {}
    searches = {"type": SEARCH} in tools
    if searches and (name == SEARCH not in names or (kind == "any" and not names)):
        # The host searches while it answers, without a call.
        members["tool_choice"] = {"type": SEARCH}
    elif kind == "any" and not names:
        raise invalid("tool_choice", "there is no tool that can be called")
    elif kind == "tool" and name not in names:
        raise invalid("tool_choice.name", f"there is no tool '{name[:128]}' that can be called")
    elif kind == "tool":
        members["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif names:
        members["tool_choice"] = "required" if kind == "any" else kind
    if single and names:
        members["parallel_tool_calls"] = False
    return members
