"""The request of the next turn, after the proxy has run tools: a chat that has grown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.server_tools.openai_tools import allowed_in, with_allowed

#: Members that make no sense without tools.
_OF_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls")


def next_request(
    chat: ChatRequest,
    said: list[dict[str, Any]],
    own: Collection[str],
    *,
    last: bool,
    tools: Sequence[dict[str, Any]] | None = None,
) -> ChatRequest:
    """The request of the next turn. What `tool_choice` forced is done: the model is free now, but
    for what may be called at all.

    Args:
        chat: of the first turn.
        said: messages of the turns before.
        own: the names in chat of the proxy's tools.
        last: without the tools of the proxy.
        tools: all of the request's, where `tool_choice` left some of them out of the first turn.
    """
    body = chat.body
    gone = own if last else ()
    kept = [tool for tool in tools or body["tools"] if _name_of(tool) not in gone]
    changed: dict[str, Any] = {"messages": [*body["messages"], *said]}
    if kept:
        changed["tools"] = kept
        choice = _later_choice(body.get("tool_choice"), gone)
        drop = {"tool_choice"} if choice is None else set()
        changed |= {} if choice is None else {"tool_choice": choice}
    else:
        drop = set(_OF_TOOLS)
    return replace(chat, body=JsonObject(body.render(changed, drop=drop & set(body.names()))))


def _later_choice(choice: Any, gone: Collection[str]) -> Any:
    """The `tool_choice` of a later turn; None for none.

    Args:
        gone: names in chat of tools that this turn does not have.
    """
    if choice == "none":
        return choice
    if (allowed := allowed_in(choice)) is None:
        return None
    left = [tool for tool in allowed if _name_of(tool) not in gone]
    return with_allowed(choice, tools=left, mode="auto") if left else "none"


def with_results(chat: ChatRequest, results: Mapping[str, str]) -> ChatRequest:
    """A request with the results of calls that had none.

    Args:
        results: by the ids of the calls.
    """
    messages = []
    for each in chat.body["messages"]:
        result = results.get(str(each.get("tool_call_id")))
        messages.append(each if result is None else {**each, "content": result})
    return replace(chat, body=JsonObject(chat.body.render({"messages": messages})))


def _name_of(tool: Any) -> Any:
    return json_access.mapping(json_access.mapping(tool).get("function")).get("name")
