"""Brings the values of a chunk to OpenAI's types.

Strictly typed clients end the answer at a value that they do not expect, so the measure are the
AI SDK's schemas (`@ai-sdk/openai-compatible`: `role` is "assistant" or null, texts are strings or
null, `index` and `created` are numbers) and the types of the openai package. What is missing stays
missing: both accept that.
"""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol.json_access import integer, objects, text
from qwen_wsgi.protocol.json_object import compact

#: Members of a delta that are a text or null.
_TEXTS: Final = ("content", "reasoning_content", "reasoning", "refusal")
#: The same of a chunk, where null is the empty text.
_HEAD_TEXTS: Final = ("id", "object", "model")
_OTHERS: Final = (("tool_calls", list), ("function_call", dict), ("annotations", list))

#: Members that a chunk without choices may have and still say nothing.
_SAY_NOTHING: Final = frozenset(
    {"id", "object", "created", "model", "system_fingerprint", "service_tier", "choices", "usage"}
)


def typed(chunk: dict[str, Any]) -> dict[str, Any] | None:
    """Bring a chunk's values to their types: itself if all have them, None if it says nothing.

    Some servers send empty objects, pings and the like between chunks.
    """
    choices, usage = chunk.get("choices"), chunk.get("usage")
    changes: dict[str, Any] = {}
    if usage is not None and (fit := _usage(usage)) is not usage:
        changes["usage"] = usage = fit
    if choices.__class__ is not list or not choices:
        if usage is None and (choices is None or not _says_more(chunk)):
            return None
        if choices.__class__ is not list:
            changes["choices"] = []
    else:
        fitting, same = [], True
        for choice in choices:
            each = _choice(choice)
            same = same and each is choice
            if each is not None:
                fitting.append(each)
        if not fitting and usage is None:
            return None
        if not same:
            changes["choices"] = fitting
    for name in _HEAD_TEXTS:
        if chunk.get(name, "").__class__ is not str:
            changes[name] = ""
    created = chunk.get("created", 0)
    if created.__class__ is not int:
        changes["created"] = _count(created) or 0
    return {**chunk, **changes} if changes else chunk


def _says_more(chunk: dict[str, Any]) -> bool:
    return any(value for name, value in chunk.items() if name not in _SAY_NOTHING)


def _choice(choice: Any) -> dict[str, Any] | None:
    """One choice; None if it says nothing."""
    if choice.__class__ is not dict:
        return None
    delta = choice.get("delta")
    changes: dict[str, Any] = {}
    if delta.__class__ is not dict:
        if not choice.get("finish_reason"):
            return None
        changes["delta"] = {}
    elif delta and (fit := _delta(delta)) is not delta:
        changes["delta"] = fit
    index = choice.get("index", 0)
    if index.__class__ is not int:
        changes["index"] = _count(index) or 0
    finish, logprobs = choice.get("finish_reason"), choice.get("logprobs")
    if finish is not None and finish.__class__ is not str:
        changes["finish_reason"] = None
    if logprobs is not None and logprobs.__class__ is not dict:
        changes["logprobs"] = None
    return {**choice, **changes} if changes else choice


def _delta(delta: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name in _TEXTS:
        value = delta.get(name)
        if value is not None and value.__class__ is not str:
            changes[name] = _text(value)
            thought = "".join(
                text(each.get("thinking")) or _text(each.get("thinking")) or ""
                for each in objects(value)
            )
            if thought and not delta.get("reasoning_content"):
                changes["reasoning_content"] = thought
    role = delta.get("role")
    if role is not None and role != "assistant":
        changes["role"] = "assistant" if role else None
    for name, kind in _OTHERS:
        value = delta.get(name)
        if value is not None and value.__class__ is not kind:
            changes[name] = None
    return {**delta, **changes} if changes else delta


def _text(value: Any) -> str | None:
    """The text of a value: of a list of parts (Mistral), or of a number; None for others."""
    if isinstance(value, list):
        parts = (each if isinstance(each, str) else _part(each) for each in value)
        return "".join(parts) or None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return compact(value) if number else None


def _part(part: Any) -> str:
    return text(part.get("text")) if isinstance(part, dict) else ""


def _usage(usage: Any) -> dict[str, Any] | None:
    """Usage as an object whose counts are integers; None if it has none."""
    if usage.__class__ is not dict:
        return None
    counted, changes = False, {}
    for name, value in usage.items():
        if name.endswith("_tokens"):
            counted = counted or value is not None
            if value is not None and value.__class__ is not int:
                changes[name] = _count(value)
        elif name.endswith("_tokens_details") and not isinstance(value, dict | None):
            changes[name] = None
    if not counted:
        return None
    return {**usage, **changes} if changes else usage


def _count(value: Any) -> int | None:
    """A whole number, also if it came as a float or in quotes."""
    try:
        return integer(value) if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
