"""Adapts `response_format`: a schema if the model takes one, else JSON mode and a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.upstream.adapt import thinking
from qwen_wsgi.upstream.adapt.draft import Draft, ThinkingRequest

_FORMAT: Final = "response_format"
_WORD: Final = re.compile("json", re.IGNORECASE)


def adapt(draft: Draft) -> None:
    """Change the format to what the model takes.

    From Model Studio's structured output page (2026-11): only some models take a schema, and none
    does with images, sound or video. `json_object` needs the word "json" in the prompt, and older
    models answer without JSON, or refuse, while they think.
    """
    wanted = draft.body.get(_FORMAT)
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema" and not _takes_schema(draft):
        draft.lose(_FORMAT, "takes no json_schema for this request")
        draft.put(_FORMAT, {"type": "json_object"}, "json_object")
        draft.notes.append(_schema_prompt(wanted.get("json_schema")))
    elif kind != "json_object":
        return
    elif not _mentions_json(draft.body["messages"]):
        draft.notes.append("Answer in JSON.")
    _without_thinking(draft)


def _takes_schema(draft: Draft) -> bool:
    if draft.profile is None:
        return True  # unknown model: the host decides
    return draft.profile.json_schema and not _has_media(draft.get("messages"))


def _schema_prompt(described: Any) -> str:
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        return "Answer in JSON."
    return "Answer with one JSON value that matches this JSON schema:\n" + compact(schema)


def _without_thinking(draft: Draft) -> None:
    """Switch thinking off if the model cannot write JSON while it thinks.

    This is the remedy of Model Studio's error page.
    """
    profile = draft.profile
    if profile is None or profile.json_thinking or not profile.switch or not thinking.thinks(draft):
        return
    if draft.thinking.wants_thinking:
        draft.lose(_FORMAT, "answers no JSON while it thinks")
    draft.thinking = ThinkingRequest(on=False)


def _mentions_json(messages: list[dict[str, Any]]) -> bool:
    return any(
        _WORD.search(text)
        for message in messages
        if message["role"] in ("system", "developer", "user")
        for text in _texts(message.get("content"))
    )


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in objects(content):
        if isinstance(text := part.get("text"), str):
            yield text


def _has_media(messages: list[dict[str, Any]]) -> bool:
    return any(
        isinstance(part, dict) and part.get("type", "text") != "text"
        for message in messages
        if isinstance(content := message.get("content"), list)
        for part in content
    )
