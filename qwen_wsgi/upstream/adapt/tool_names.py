"""Renames tools whose names the host refuses, in the tools, the history and the choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.translation.tool_names import fits, fitting
from qwen_wsgi.upstream.adapt.draft import Draft

Message = dict[str, Any]

#: Model Studio: `Tool names are not allowed to be [search]` (its page of error codes).
_RESERVED: Final = frozenset({"search"})


def adapt(draft: Draft) -> None:
    """Rename what a Qwen host refuses; the draft keeps the names, to turn the answer's calls back.

    Names of MCP tools are long: Anthropic's API takes 128 characters, chat 64.
    """
    _rename(draft, _RESERVED)


def adapt_translated(draft: Draft) -> None:
    """Rename only what no chat host takes, in a request that its client did not send as chat."""
    if draft.translated:
        _rename(draft, frozenset())


def _rename(draft: Draft, reserved: frozenset[str]) -> None:
    messages = draft.get("messages")
    named = {*_offered(draft.get("tools")), *_called(messages)}
    new = {name: fitting(name, name) for name in named if name in reserved or not fits(name)}
    if not new:
        return
    draft.renamed = {sent: name for name, sent in new.items()}
    draft.customs = frozenset(new.get(name, name) for name in draft.customs)
    if isinstance(tools := draft.get("tools"), list):
        changed = [_with_name(tool, new) for tool in tools]
        if changed != tools:
            draft.put("tools", changed, "renamed")
    history = [_in_message(message, new) for message in messages]
    if any(old is not each for old, each in zip(messages, history, strict=True)):
        draft.put("messages", history, "tools-renamed")
    choice = draft.get("tool_choice")
    if (forced := _with_name(choice, new)) is not choice:
        draft.put("tool_choice", forced, "renamed")


def _offered(tools: Any) -> Iterator[str]:
    for tool in json_access.objects(tools):
        if (name := _name_of(tool)) is not None:
            yield name


def _called(messages: list[Message]) -> Iterator[str]:
    for message in messages:
        if message.get("tool_calls"):
            yield from _offered(message["tool_calls"])


def _in_message(message: Message, new: Mapping[str, str]) -> Message:
    calls = message.get("tool_calls")
    if isinstance(calls, list) and any(_name_of(call) in new for call in calls):
        return {**message, "tool_calls": [_with_name(call, new) for call in calls]}
    if message["role"] == "tool" and (name := message.get("name")).__class__ is str and name in new:
        return {**message, "name": new[name]}
    return message


def _name_of(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _with_name(tool: Any, new: Mapping[str, str]) -> Any:
    name = _name_of(tool)
    if name is None or name not in new:
        return tool
    return {**tool, "function": {**tool["function"], "name": new[name]}}
