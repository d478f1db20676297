"""Adapts messages: the place of system messages, parts, cache marks, tool calls.

Each step returns the same list object if there is nothing to change, else a new list that shares
the unchanged messages.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any, Final

from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.adapt import tool_history
from qwen_wsgi.upstream.adapt.draft import Draft

Message = dict[str, Any]
#: What a user says in a chat that has only texts of the assistant.
_GO_ON: Final = "Continue."

_Step = Callable[[list[Message]], list[Message]]


class _Roles:
    """The roles of all messages, found in one pass: a conversation may have thousands."""

    __slots__ = ("all", "late")

    def __init__(self, messages: list[Message]) -> None:
        self.late = {message["role"] for message in messages[1:]}
        self.all = {messages[0]["role"], *self.late}


def adapt(draft: Draft) -> None:
    """Change the messages to what a Qwen host takes."""
    _apply(draft, _steps(draft, _Roles(draft.body["messages"])))


def systems_first(draft: Draft) -> None:
    """Change only what the chat templates of Qwen models need on any server."""
    _apply(draft, _system_steps(draft, _Roles(draft.body["messages"])))


def _apply(draft: Draft, steps: Iterator[tuple[_Step, str]]) -> None:
    for step, what in steps:
        messages = draft.get("messages")
        if (changed := step(messages)) is not messages:
            draft.put("messages", changed, what)


def _steps(draft: Draft, roles: _Roles) -> Iterator[tuple[_Step, str]]:
    """The steps that may change something, and their names in the header."""
    if "function" in roles.all or "functions" in draft.names:
        yield tool_history.as_tool_calls, "function_call-as-tool_calls"
    if "assistant" in roles.all:
        yield tool_history.custom_as_functions, "custom-as-function"
        yield tool_history.with_json_arguments, "arguments-made-json"
        yield tool_history.with_content, "content-added"
        yield _without_pages, "annotations-dropped"
    yield from _system_steps(draft, roles)
    if roles.all.isdisjoint(("user", "tool", "function")):
        yield _with_user, "user-added"
    if draft.notes:
        yield functools.partial(_add_to_system, "\n\n".join(draft.notes)), "json-asked-for"
    arrays_are_lost = _loses_arrays(draft, roles)
    if arrays_are_lost:
        yield functools.partial(_flatten, draft), "parts-joined"
    if draft.target.family is Family.PORTAL:
        yield _mark_for_portal, "system-part"
    if draft.options.cache_control and not arrays_are_lost and _wants_marks(draft):
        yield functools.partial(_mark, stream=draft.stream), "cache-marked"
        if draft.stream:
            _mark_tools(draft)


# --- system messages ----------------------------------------------------------------------------


def _system_steps(draft: Draft, roles: _Roles) -> Iterator[tuple[_Step, str]]:
    if "developer" in roles.all:
        yield _rename_developer, "developer-as-system"
    many = draft.profile is not None and draft.profile.many_systems
    if not many and not roles.late.isdisjoint(("system", "developer")):
        yield _merge_systems, "system-merged"


def _rename_developer(messages: list[Message]) -> list[Message]:
    return [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]


def _merge_systems(messages: list[Message]) -> list[Message]:
    """Merge all into the first message: templates of Qwen3.5 and later take no other place."""
    systems = [message for message in messages if message["role"] == "system"]
    contents = [message.get("content") for message in systems]
    if not all(isinstance(content, str | list | None) for content in contents):
        return messages  # invalid: left to the host
    rest = [message for message in messages if message["role"] != "system"]
    return [{**systems[0], "content": _joined(contents)}, *rest]


#: Members of an answer with the pages of its web search: for people, and unknown to hosts.
_PAGES: Final = ("annotations", "search_info")


def _without_pages(messages: list[Message]) -> list[Message]:
    """Drop what a client sends back of an answer's web search."""
    with_pages = [bool(each.get("annotations") or "search_info" in each) for each in messages]
    if True not in with_pages:
        return messages
    return [
        {name: value for name, value in each.items() if name not in _PAGES} if found else each
        for each, found in zip(messages, with_pages, strict=True)
    ]


def _joined(contents: list[Any]) -> Any:
    """Join texts to one text; if one of them is a list of parts, to a list."""
    kept = [content for content in contents if content]
    if len(kept) < 2:
        return kept[0] if kept else contents[0]
    if all(isinstance(content, str) for content in kept):
        return "\n\n".join(kept)
    return [
        part
        for content in kept
        for part in ([_text(content)] if isinstance(content, str) else content)
    ]


def _with_user(messages: list[Message]) -> list[Message]:
    """Make the last system message the user's, or add a message of the user.

    OpenAI answers a chat without a user, hosts of Qwen do not (`The input messages do not contain
    elements with the role of user`).
    """
    last = max((at for at, each in enumerate(messages) if each["role"] == "system"), default=None)
    if last is not None and not isinstance(messages[last].get("content"), str | list | None):
        return messages  # invalid: left to the host
    if last is None:
        return [{"role": "user", "content": _GO_ON}, *messages]
    return [*messages[:last], {**messages[last], "role": "user"}, *messages[last + 1 :]]


def _add_to_system(text: str, messages: list[Message]) -> list[Message]:
    first = messages[0]
    content = first.get("content")
    if first["role"] != "system" or not isinstance(content, str | list | None):
        return [{"role": "system", "content": text}, *messages]
    if isinstance(content, list):
        return [{**first, "content": [*content, _text(text)]}, *messages[1:]]
    return [{**first, "content": f"{content}\n\n{text}" if content else text}, *messages[1:]]


# --- parts --------------------------------------------------------------------------------------


def _loses_arrays(draft: Draft, roles: _Roles) -> bool:
    """Whether the host drops arrays of parts: Model Studio does for GLM without tools.

    Source: qwen-code 0.24.4.
    """
    glm = draft.target.model.rsplit("/", 1)[-1].lower().startswith("glm-")
    if not glm or draft.target.family is Family.PORTAL:
        return False
    if draft.get("tools") or not roles.all.isdisjoint(("tool", "function")):
        return False
    return not any(message.get("tool_calls") for message in draft.body["messages"])


def _flatten(draft: Draft, messages: list[Message]) -> list[Message]:
    changed = [_flat(message) for message in messages]
    lost = [old for new, old in zip(changed, messages, strict=True) if new is not old]
    if _has_marks(lost):
        draft.lose("messages", "takes no cache_control without tools")
    return changed if lost else messages


def _flat(message: Message) -> Message:
    content = message.get("content")
    if not content or not isinstance(content, list) or not all(map(_is_text, content)):
        return message
    return {**message, "content": "\n\n".join(part["text"] for part in content)}


def _mark_for_portal(messages: list[Message]) -> list[Message]:
    """Add what the portal requires: a first system message with a marked text part."""
    first = messages[0]
    if first["role"] != "system":
        blank = {"role": "system", "content": [_marked(_text(""))]}
        return [blank, *messages]
    content = first.get("content")
    if isinstance(content, str | None):
        parts = [_marked(_text(content or ""))]
    elif not isinstance(content, list) or any(map(_is_marked_text, content)):
        return messages
    else:
        last = max((at for at, part in enumerate(content) if _is_text(part)), default=None)
        if last is None:
            parts = [*content, _marked(_text(""))]
        else:
            parts = [*content[:last], _marked(content[last]), *content[last + 1 :]]
    return [{**first, "content": parts}, *messages[1:]]


# --- marks for the host's cache -----------------------------------------------------------------


def _wants_marks(draft: Draft) -> bool:
    """Whether the model has a cache, and the client set no marks itself."""
    if draft.profile is not None and not draft.profile.cache:
        return False
    tools = draft.get("tools")
    if isinstance(tools, list) and any(map(_is_marked, tools)):
        return False
    return not _has_marks(draft.body["messages"])


def _mark(messages: list[Message], *, stream: bool) -> list[Message]:
    """Mark what qwen-code 0.24.4 marks: the system message, and for a stream the last message."""
    places = [0] if messages[0]["role"] == "system" else []
    if stream and len(messages) - 1 not in places:
        places.append(len(messages) - 1)
    changed = list(messages)
    for place in places:
        changed[place] = _mark_last_part(changed[place])
    return changed if any(map(operator.is_not, changed, messages)) else messages


def _mark_last_part(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, str) and content:
        return {**message, "content": [_marked(_text(content))]}
    if not content or not isinstance(content, list) or any(map(_is_marked, content)):
        return message
    if not isinstance(content[-1], dict):
        return message
    return {**message, "content": [*content[:-1], _marked(content[-1])]}


def _mark_tools(draft: Draft) -> None:
    tools = draft.get("tools")
    if isinstance(tools, list) and tools and isinstance(tools[-1], dict):
        draft.put("tools", [*tools[:-1], _marked(tools[-1])], "cache-marked")


def _has_marks(messages: list[Message]) -> bool:
    return any(
        _is_marked(part)
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
    )


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _marked(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "cache_control": {"type": "ephemeral"}}


def _is_marked(part: Any) -> bool:
    return isinstance(part, dict) and "cache_control" in part


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _is_marked_text(part: Any) -> bool:
    mark = part.get("cache_control") if _is_text(part) else None
    return isinstance(mark, dict) and mark.get("type") == "ephemeral"
