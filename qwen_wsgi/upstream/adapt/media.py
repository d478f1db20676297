"""Replaces pictures, sound and video by a text where the model is known not to read them."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Container
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.translation import documents
from qwen_wsgi.upstream.adapt.draft import Draft
from qwen_wsgi.upstream.routing.model_profiles import facts_of

Message = dict[str, Any]

#: Chat's types of parts, the input they need (`ModelFacts.inputs`), and a word for it.
_KINDS: Final = {
    "image_url": ("image", "picture"),
    "video_url": ("video", "video"),
    "video": ("video", "video"),
    "input_audio": ("audio", "sound"),
}

#: How a refusal names an input.
_NAMED: Final = {
    "image": re.compile(r"image|picture|vision|visual|图", re.IGNORECASE),
    "audio": re.compile(r"audio|sound|speech|音频", re.IGNORECASE),
    "video": re.compile(r"video|视频", re.IGNORECASE),
}

#: What a snapshot or a region adds to the name of a model, which does not change its inputs.
_SUFFIX: Final = re.compile(r"-(?:20\d\d-\d\d-\d\d|latest|us)$")


def adapt(draft: Draft) -> None:
    """Replace the parts that the model does not read, as its profile or a refusal says.

    A host answers each request with such a part by 400, so a conversation in which a tool showed a
    picture (Claude Code's Read, for one) could not go on.
    """
    _files(draft)
    inputs = _inputs_of(draft.target.model)
    if inputs is not None:  # of an unknown model the host decides, once
        _leave_out(draft, {needed for needed, _ in _KINDS.values()}.difference(inputs))
    leave_out_refused(draft)


def leave_out_refused(draft: Draft) -> None:
    """Replace the parts that this model refused before; of any host."""
    if draft.target.refused:
        draft.left_out = _leave_out(draft, draft.target.refused)


def inputs_in(messages: Any) -> frozenset[str]:
    """Which inputs besides text a request's messages have: of `image`, `audio`, `video`."""
    return frozenset(
        _KINDS[part["type"]][0]
        for message in json_access.objects(messages)
        for part in json_access.objects(message.get("content"))
        if _is_unread(part, _KINDS)
    )


def refused_by(text: str, inputs: Collection[str]) -> frozenset[str]:
    """Which of a request's inputs the host's refusal speaks of: all, if it names none of them."""
    named = frozenset(kind for kind in inputs if _NAMED[kind].search(text))
    return named or frozenset(inputs)


def _leave_out(draft: Draft, inputs: Collection[str]) -> frozenset[str]:
    """Replace the parts of these inputs; returns which of them there were."""
    messages = draft.get("messages")
    unread = {kind for kind, (needed, _) in _KINDS.items() if needed in inputs}
    changed = [_without(message, unread, draft.target.model) for message in messages]
    lost = sorted(
        {
            _KINDS[part["type"]][0]
            for old, new in zip(messages, changed, strict=True)
            if new is not old
            for part in old["content"]
            if _is_unread(part, unread)
        }
    )
    for kind in lost:
        draft.lose("messages", f"reads no {kind}")
    if lost:
        draft.put("messages", changed, "-".join([*lost, "left-out"]))
    return frozenset(lost)


def _files(draft: Draft) -> None:
    """Replace files, OpenAI's `{"type": "file", "file": {"filename", "file_data"}}`: hosts of Qwen
    take none in chat."""
    messages = draft.get("messages")
    changed = [_with_texts(draft, message) for message in messages]
    if any(new is not old for new, old in zip(changed, messages, strict=True)):
        draft.put("messages", changed, "file-as-text")


def _with_texts(draft: Draft, message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, list) or not any(map(_is_file, content)):
        return message
    parts = [_text_of(draft, part) if _is_file(part) else part for part in content]
    return {**message, "content": parts}


def _text_of(draft: Draft, part: dict[str, Any]) -> dict[str, Any]:
    file = part["file"]
    name, data = json_access.text(file.get("filename")), json_access.text(file.get("file_data"))
    text = documents.text_of_url(data)
    if text is None:
        text = draft.documents.get(data.removeprefix(documents.PDF_URL))
    if text is None:
        draft.lose("messages", "reads no files")
        text = documents.placeholder(name, "a file")
    return {"type": "text", "text": text}


def _is_file(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "file" and isinstance(part.get("file"), dict)
    )


@functools.lru_cache(maxsize=1024)
def _inputs_of(model: str) -> tuple[str, ...] | None:
    known = facts_of(model) or facts_of(_SUFFIX.sub("", model))
    return None if known is None else known.inputs


def _without(message: Message, unread: Container[str], model: str) -> Message:
    content = message.get("content")
    if not isinstance(content, list) or not any(_is_unread(part, unread) for part in content):
        return message
    parts = [_placeholder(part, model) if _is_unread(part, unread) else part for part in content]
    return {**message, "content": parts}


def _is_unread(part: Any, unread: Container[str]) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in unread


def _placeholder(part: dict[str, Any], model: str) -> dict[str, Any]:
    word = _KINDS[part["type"]][1]
    article = "Sound" if word == "sound" else f"A {word}"
    text = f"[{article} was left out here, because the model {model} cannot read it.]"
    mark = {"cache_control": part["cache_control"]} if "cache_control" in part else {}
    return {"type": "text", "text": text, **mark}
