"""Translates content blocks of users and tools to parts of chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.messages.validation import below, invalid, need, want, wrong
from qwen_wsgi.protocol.translation import documents

#: A part of a chat message: `{"type": "text", "text"}` or `{"type": "image_url", "image_url"}`.
Part = dict[str, Any]

#: Blocks of Anthropic's server tools, in answers that come back as history.
_PAST: Final = frozenset({"server_tool_use", "mcp_tool_use", "tool_addition", "tool_removal"})
#: Blocks that refer to something on Anthropic's servers.
_ELSEWHERE: Final = frozenset({"container_upload", "compaction"})


class Block(NamedTuple):
    """A content block and its path in the request: `messages.0.content.2`."""

    path: str
    kind: str
    value: dict[str, Any]


def blocks_of(content: Any, path: str) -> list[Block]:
    """Split content into blocks; a string is one block of text, null is none.

    Raises:
        BadRequest: it is neither a string nor a list of blocks.
    """
    if isinstance(content, str):
        return [Block(path, "text", {"type": "text", "text": content})]
    if content is None:
        return []
    if not isinstance(content, list):
        raise wrong(path, "a valid string or a valid list")
    blocks = []
    for index, value in enumerate(content):
        where = below(path, index)
        if not isinstance(value, dict):
            raise wrong(where, "an object")
        blocks.append(Block(where, need(value, "type", str, where), value))
    return blocks


def parts_of(blocks: Iterable[Block], changes: Changes) -> Iterator[Part]:
    """Translate the blocks of a user or a tool to parts; cache marks keep their places.

    Raises:
        BadRequest: a block is invalid, or Qwen's models cannot read it.
    """
    for block in blocks:
        path, kind, value = block
        if kind == "text":
            yield from _text(need(value, "text", str, path), value)
        elif kind == "image":
            yield {
                "type": "image_url",
                "image_url": {"url": _image_url(value, path)},
                **mark(value),
            }
        elif kind == "document":
            yield from _document(value, path, changes)
        elif kind == "search_result":
            yield from _search_result(value, path)
        elif kind == "tool_reference":
            yield from _text(f"Tool: {need(value, 'tool_name', str, path)}", value)
        else:
            drop_block(block, changes)


def drop_block(block: Block, changes: Changes) -> None:
    """Drop a block that only Anthropic's servers understand, and list it.

    Raises:
        BadRequest: it is another block, which is not allowed here.
    """
    kind = block.kind
    if kind in _PAST or (kind.endswith("_tool_result") and kind != "tool_result"):
        changes.note("messages", "server-tools-dropped")
    elif kind in _ELSEWHERE:
        changes.lose("messages", f"have a block '{kind}', which only Anthropic's servers can read")
    else:
        raise invalid(below(block.path, "type"), f"'{kind[:64]}' is not allowed or not known here")


def mark(block: dict[str, Any]) -> dict[str, Any]:
    """The member `cache_control` in the form that Qwen's hosts take, or nothing."""
    return {"cache_control": {"type": "ephemeral"}} if block.get("cache_control") else {}


def text_of(parts: Iterable[Part], between: str) -> str:
    """Join the texts among parts."""
    return between.join(part["text"] for part in parts if part["type"] == "text")


def is_marked(parts: Iterable[Part]) -> bool:
    """Whether one of the parts has a cache mark."""
    return any("cache_control" in part for part in parts)


def _text(text: str, block: dict[str, Any]) -> Iterator[Part]:
    if text:
        yield {"type": "text", "text": text, **mark(block)}


def _image_url(block: dict[str, Any], path: str) -> str:
    source = need(block, "source", dict, path)
    path = below(path, "source")
    kind = need(source, "type", str, path)
    if kind == "base64":
        media = need(source, "media_type", str, path)
        return f"data:{media};base64,{need(source, 'data', str, path)}"
    if kind == "url":
        return need(source, "url", str, path)
    raise invalid(path, f"images of the type '{kind[:64]}' are not stored here: send base64 or url")


def _document(block: dict[str, Any], path: str, changes: Changes) -> Iterator[Part]:
    """Translate a document to text: Qwen's chat models do not take files."""
    source = need(block, "source", dict, path)
    kind = need(source, "type", str, below(path, "source"))
    head = [text for name in ("title", "context") if (text := want(block, name, str, path))]
    if kind == "text":
        text = need(source, "data", str, below(path, "source"))
        yield from _text("\n\n".join([*head, text]), block)
    elif kind == "content":
        yield from _text("\n\n".join(head), {})
        # One level: Anthropic has no documents inside documents.
        inner = blocks_of(source.get("content"), below(path, "source.content"))
        for each in inner:
            if each.kind not in ("text", "image"):
                raise invalid(each.path, "Input should be a text or an image")
        yield from parts_of(inner, changes)
    else:
        media = want(source, "media_type", str, below(path, "source")) or kind
        data = want(source, "data", str, below(path, "source"))
        text = documents.text_of(media, data) if kind == "base64" and data else None
        if text is None:
            changes.lose(
                "messages", "have a document that cannot be read", what="document-left-out"
            )
            text = documents.placeholder(want(block, "title", str, path) or "", media)
        yield from _text("\n\n".join([*head, text]), block)


def _search_result(block: dict[str, Any], path: str) -> Iterator[Part]:
    head = [need(block, name, str, path) for name in ("title", "source")]
    texts = [
        need(each.value, "text", str, each.path)
        for each in blocks_of(block.get("content"), below(path, "content"))
        if each.kind == "text"
    ]
    yield from _text("\n".join([*head, *texts]), block)
