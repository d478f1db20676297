"""The request of the next turn, after the proxy has run tools: a chat that has grown."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.json_object import JsonObject

#: Members that make no sense without tools.
_OF_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls")


def next_request(
    chat: ChatRequest, said: list[dict[str, Any]], own: Collection[str], *, last: bool
) -> ChatRequest:
    """The request of the next turn. What `tool_choice` forced is done: the model is free now.

    Args:
        chat: of the first turn.
        said: messages of the turns before.
        own: the names in chat of the proxy's tools.
        last: without the tools of the proxy.
    """
    body = chat.body
    changed: dict[str, Any] = {"messages": [*body["messages"], *said]}
    drop = {"tool_choice"} if body.get("tool_choice") != "none" else set()
    if last:
        tools = [tool for tool in body["tools"] if _name_of(tool) not in own]
        if tools:
            changed["tools"] = tools
        else:
            drop |= set(_OF_TOOLS)
    drop &= set(body.names())
    return replace(chat, body=JsonObject(body.render(changed, drop=drop)))


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
