"""Adapts tools: legacy functions, the host's own web search, and the choice of a tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.translation import search
from qwen_wsgi.upstream.adapt import custom_tools, thinking
from qwen_wsgi.upstream.adapt.draft import Draft, ThinkingRequest

#: Asks for the pages that a search finds, and for marks in the text that name them, which
#: `protocol.translation.citations` reads (Model Studio's native web search page).
_SOURCES: Final[Mapping[str, Any]] = {
    "enable_source": True,
    "enable_citation": True,
    "citation_format": "[<number>]",
}

_FIELDS: Final = frozenset({"tools", "functions", "function_call", "web_search_options"})


def adapt(draft: Draft) -> None:
    """Change `functions`, an empty list and a web search to what the host takes as tools."""
    names = draft.names
    if names.isdisjoint(_FIELDS) and not draft.target.search:
        return
    if "tools" in names:
        custom_tools.adapt(draft)
    forced = _forces_search(draft)
    if forced:
        draft.leave_out("tool_choice", "as-forced_search")
    if "functions" in names or "function_call" in names:
        _from_functions(draft)
    searches = draft.target.search or draft.get("web_search_options") is not None
    tools = draft.get("tools")
    found: list[Any] = []
    if isinstance(tools, list):
        found = [tool for tool in tools if search.is_tool(tool)]
        if found:
            searches = True
            rest = [tool for tool in tools if not search.is_tool(tool)]
            if rest:
                draft.put("tools", rest, "web_search-taken-out")
            else:
                _no_tools(draft, "web_search-taken-out")
        elif not tools:
            _no_tools(draft, "empty")
    if searches or forced:
        sources = bool(found) or draft.get("web_search_options") is not None
        _search(draft, sources=sources, forced=forced)
    searched = draft.get("enable_search") is True
    draft.leave_out("web_search_options", "as-enable_search" if searched else "dropped")
    if json_access.items(draft.get("tools")) and not draft.has("parallel_tool_calls"):
        # OpenAI's default; Model Studio's is false.
        draft.put("parallel_tool_calls", True, "default")


def adapt_choice(draft: Draft) -> None:
    """Change a `tool_choice` that forces a call to what the host takes.

    Model Studio takes a named function only while the model does not think, and `required` for no
    Qwen model (chat completions page). So `required` becomes the name of the only tool, and
    thinking is switched off unless it was requested: then it stays, as in qwen-code 0.24.4.
    """
    choice = draft.get("tool_choice")
    required = choice == "required"
    if not (required or _is_named(choice)):
        return
    tools = json_access.items(draft.get("tools"))
    if not tools:
        return
    only = _name_of(tools[0]) if len(tools) == 1 else None
    thinks = thinking.thinks(draft)
    if (only is not None or not required) and thinks is not False and _may_stop(draft):
        draft.thinking = ThinkingRequest(on=False)
        thinks = False
    if required and only is not None and thinks is False:
        draft.put("tool_choice", {"type": "function", "function": {"name": only}}, "named")
    elif required or thinks:
        draft.lose(
            "tool_choice" if "tool_choice" in draft.names else "function_call",
            "cannot be made to call a tool while it thinks" if thinks else "takes no 'required'",
        )
        draft.put("tool_choice", "auto", "auto")


def _from_functions(draft: Draft) -> None:
    """Turn `functions` and `function_call`, which OpenAI replaced in 2023, into tools."""
    functions = json_access.items(draft.get("functions"))
    if functions and not draft.get("tools"):
        tools = [{"type": "function", "function": function} for function in functions]
        draft.put("tools", tools, "from-functions")
        draft.legacy_functions = True
        if not draft.has("parallel_tool_calls"):
            # The legacy form has room for one call only.
            draft.put("parallel_tool_calls", False, "from-functions")
    elif functions:
        draft.lose("functions", "takes tools, and no functions beside them")
    choice = draft.get("function_call")
    has_tools = bool(json_access.items(draft.get("tools")))
    if choice is not None and has_tools and not draft.has("tool_choice"):
        name = choice.get("name") if isinstance(choice, dict) else None
        draft.put(
            "tool_choice",
            choice if name is None else {"type": "function", "function": {"name": name}},
            "from-function_call",
        )
    draft.leave_out("functions", "as-tools" if draft.legacy_functions else "dropped")
    draft.leave_out("function_call", "as-tool_choice")


def _no_tools(draft: Draft, what: str) -> None:
    """Drop the list of tools, and the parameters that say how to use it."""
    draft.leave_out("tools", what)
    draft.leave_out("parallel_tool_calls", "no-tools")
    if draft.get("tool_choice") in ("auto", "none"):
        draft.leave_out("tool_choice", "no-tools")


def _forces_search(draft: Draft) -> bool:
    """Whether the choice forces the built-in web search."""
    choice = draft.get("tool_choice")
    if choice == "required":
        tools = json_access.items(draft.get("tools"))
        return bool(tools) and all(map(search.is_tool, tools))
    return search.is_tool(choice)


def refuse_forced_search(draft: Draft) -> None:
    """Refuse a forced search that cannot be made: an answer without it would be invented.

    Raises:
        BadRequest: the choice forces a built-in web search.
    """
    if _forces_search(draft):
        raise _unavailable(draft)


def _unavailable(draft: Draft) -> BadRequest:
    return BadRequest(
        f"{draft.target.model} on this host ({draft.target.family.value}) has no web search, and "
        "the request forces one. Choose a model with a search, or a tool of your own.",
        param="tool_choice",
        code="web_search_unavailable",
    )


def _search(draft: Draft, *, sources: bool, forced: bool) -> None:
    """Switch the host's own web search on; it needs no tool (Model Studio's web search page).

    Args:
        sources: the client can be shown the pages that it finds.
        forced: the model has to search.
    """
    profile = draft.profile
    strategy = "" if profile is None else profile.search
    if strategy is None and forced:
        raise _unavailable(draft)
    if strategy is None:
        draft.lose(_search_param(draft), "does not search the web")
        if not draft.target.search:
            return
    if draft.get("web_search_options"):
        draft.lose("web_search_options", "searches, but takes no such options")
    if draft.get("enable_search") is not True:
        draft.put("enable_search", True, "true")
    own = draft.get("search_options")
    options: dict[str, Any] = {"search_strategy": strategy} if strategy else {}
    if sources:
        options |= _SOURCES
    if forced:
        options |= own if isinstance(own, dict) else {}
        draft.put("search_options", {**options, "forced_search": True}, "forced_search")
    elif options and not draft.has("search_options"):
        draft.put("search_options", options, strategy or "enable_source")


def _search_param(draft: Draft) -> str:
    if draft.target.search:
        return "model"
    return "web_search_options" if "web_search_options" in draft.names else "tools"


def _may_stop(draft: Draft) -> bool:
    """Whether the thinking can be switched off, and the request leaves it open."""
    profile = draft.profile
    return draft.thinking == ThinkingRequest() and profile is not None and profile.switch


def _is_named(choice: Any) -> bool:
    return isinstance(choice, dict) and choice.get("type") == "function"


def _name_of(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
