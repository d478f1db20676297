"""Adapts tool calls in the history: the legacy form, and arguments that hosts refuse.

As in `messages`, a step returns the same list object if there is nothing to change.
"""

from __future__ import annotations

import operator
from typing import Any, Final, TypeGuard

from qwen_wsgi.protocol.json_object import compact, loads

Message = dict[str, Any]

#: The member that holds arguments which are not a JSON object. The model reads this name.
UNPARSED: Final = "arguments_that_are_no_json_object"


# --- the legacy form of tool calls --------------------------------------------------------------


def as_tool_calls(messages: list[Message]) -> list[Message]:
    """Convert `function_call` and its answers, which have no ids, into tool calls with ids.

    The same history gets the same ids, so that the host's prompt cache still matches.
    """
    changed = []
    waiting: dict[str, str] = {}
    count = 0
    for message in messages:
        role, name = message["role"], message.get("name")
        call = message.get("function_call")
        if role == "assistant" and _is_call(call) and not message.get("tool_calls"):
            count += 1
            waiting[call["name"]] = identity = f"call_function_{count}"
            tool_call = {"id": identity, "type": "function", "function": call}
            message = {**_without(message, "function_call"), "tool_calls": [tool_call]}
        elif role == "function" and isinstance(name, str) and name in waiting:
            answer = {"role": "tool", "tool_call_id": waiting.pop(name)}
            message = {**_without(message, "name"), **answer}
        changed.append(message)
    return changed if any(map(operator.is_not, changed, messages)) else messages


def _is_call(call: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(call, dict) and isinstance(call.get("name"), str)


def _without(message: Message, name: str) -> Message:
    return {key: value for key, value in message.items() if key != name}


# --- arguments ----------------------------------------------------------------------------------


def with_json_arguments(messages: list[Message]) -> list[Message]:
    """Wrap arguments that are not a JSON object (a truncated or malformed call) into one.

    Model Studio refuses every request with such a call (`The "function.arguments" parameter of the
    code model must be in JSON format`, as users of several clients reported in 2025 and 2026), so
    the conversation could not go on. The text is kept, so that the model sees what it wrote.
    """
    changed = messages
    for at in [at for at, message in enumerate(messages) if message.get("tool_calls")]:
        message = messages[at]
        calls = message["tool_calls"]
        if message["role"] != "assistant" or not isinstance(calls, list):
            continue
        if any(map(_has_no_object, calls)):
            if changed is messages:
                changed = list(messages)
            wrapped = [_with_object(call) if _has_no_object(call) else call for call in calls]
            changed[at] = {**message, "tool_calls": wrapped}
    return changed


def _has_no_object(call: Any) -> bool:
    """Whether a function call's arguments are missing or not a JSON object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return False
    arguments = function.get("arguments")
    return arguments is None or (isinstance(arguments, str) and not _is_object(arguments))


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    text = function.get("arguments") or ""
    arguments = compact({UNPARSED: text}) if text.strip() else "{}"
    return {**call, "function": {**function, "arguments": arguments}}


def _is_object(text: str) -> bool:
    try:
        return isinstance(loads(text.encode()), dict)
    except (ValueError, RecursionError):
        return False
