"""Adapts tool calls in the history: the legacy form, and arguments that hosts refuse.

As in `messages`, a step returns the same list object if there is nothing to change.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeGuard

from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.translation import arguments

Message = dict[str, Any]


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


def custom_as_functions(messages: list[Message]) -> list[Message]:
    """Convert OpenAI's calls with a plain text (`custom`) into calls of functions."""
    return _with_calls(messages, _is_custom, _as_function)


def _is_custom(call: Any) -> bool:
    return (
        isinstance(call, dict)
        and call.get("type") == "custom"
        and isinstance(custom := call.get("custom"), dict)
        and isinstance(custom.get("name"), str)
    )


def _as_function(call: dict[str, Any]) -> dict[str, Any]:
    custom = call["custom"]
    function = {"name": custom["name"], "arguments": compact({"input": custom.get("input")})}
    return {**_without(call, "custom"), "type": "function", "function": function}


# --- content ------------------------------------------------------------------------------------


def with_content(messages: list[Message]) -> list[Message]:
    """Add the content that hosts require of the assistant's messages.

    OpenAI's clients may leave it out beside tool calls or a refusal. Parts with a refusal, which
    hosts do not know, become text.
    """
    changed = [_complete(message) for message in messages]
    return changed if any(map(operator.is_not, changed, messages)) else messages


def _complete(message: Message) -> Message:
    if message["role"] != "assistant":
        return message
    content, refusal = message.get("content"), message.get("refusal")
    if content is None and isinstance(refusal, str):
        return {**_without(message, "refusal"), "content": refusal}
    if "content" not in message:
        return {**message, "content": ""}
    if isinstance(content, list) and any(map(_is_refusal, content)):
        parts = [
            {"type": "text", "text": part["refusal"]} if _is_refusal(part) else part
            for part in content
        ]
        return {**message, "content": parts}
    return message


def _is_refusal(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") == "refusal"
        and isinstance(part.get("refusal"), str)
    )


# --- arguments ----------------------------------------------------------------------------------


def with_json_arguments(messages: list[Message]) -> list[Message]:
    """Unwrap or wrap arguments that are not a JSON object (a truncated or malformed call).

    Model Studio refuses every request with such a call (`The "function.arguments" parameter of the
    code model must be in JSON format`, as users of several clients reported in 2025 and 2026), so
    the conversation could not go on. The text is kept, so that the model sees what it wrote.
    """
    return _with_calls(messages, _has_no_object, _with_object)


def _with_calls(
    messages: list[Message], wrong: Callable[[Any], bool], mended: Callable[[Any], Any]
) -> list[Message]:
    """Replace the wrong calls among those of the assistant."""
    changed = messages
    for at in [at for at, message in enumerate(messages) if message.get("tool_calls")]:
        message = messages[at]
        calls = message["tool_calls"]
        if message["role"] != "assistant" or not isinstance(calls, list):
            continue
        if any(map(wrong, calls)):
            if changed is messages:
                changed = list(messages)
            changed[at] = {
                **message,
                "tool_calls": [mended(call) if wrong(call) else call for call in calls],
            }
    return changed


def _has_no_object(call: Any) -> bool:
    """Whether a function call's arguments are missing or not the text of a JSON object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return False
    given = function.get("arguments")
    return not (isinstance(given, str) and arguments.is_object_text(given))


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    text = arguments.as_object_text(function.get("arguments"))
    return {**call, "function": {**function, "arguments": text}}
