"""What a tool has answered, in the form in which a worker gets it, within its bounds. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: What models can look at.
_PICTURES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
#: Pictures of one result, and the bytes of all of them.
_MOST_PICTURES: Final = 16
_PICTURE_BYTES: Final = 8 * 1024 * 1024
#: Bytes of `structuredContent` as JSON. A larger one is left out: the text says the same.
_STRUCTURED: Final = 8 * 1024 * 1024


@dataclass(frozen=True)
class Result:
    """A result. `pictures` are pairs of a media type and base64."""

    text: str
    is_error: bool = False
    pictures: tuple[tuple[str, str], ...] = ()
    structured: object = None

    def as_json(self) -> dict[str, Any]:
        """The members of an answer of `wire`."""
        return {
            "text": self.text,
            "is_error": self.is_error,
            "images": [{"media_type": kind, "data": data} for kind, data in self.pictures],
            "structured": self.structured,
        }


def failed(text: str) -> Result:
    """The result of a tool that failed, or of one that could not be run."""
    return Result(text, is_error=True)


def cut(text: str, most: int) -> str:
    """A text of at most so many bytes (UTF-8); one that was longer says so at its end."""
    if len(text) <= most // 4:
        return text
    data = text.encode(errors="replace")
    if len(data) <= most:
        return data.decode()
    kept = data[:most].decode(errors="ignore")
    return f"{kept}\n[cut: this is the first {most:,} of {len(data):,} bytes]"


def of_mcp(answer: Mapping[str, Any], most: int) -> Result:
    """The result of a call of an MCP server.

    Args:
        answer: a `CallToolResult` as JSON.
        most: bytes of the text.
    """
    texts: list[str] = []
    pictures = _Pictures()
    content = answer.get("content")
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict):
            texts += _block(block, pictures)
    texts += pictures.notes
    structured = _bounded(answer.get("structuredContent"))
    if not texts and structured is not None:
        texts = [json.dumps(structured, ensure_ascii=False)]
    return Result(
        cut("\n".join(texts), most),
        is_error=answer.get("isError") is True,
        pictures=tuple(pictures.kept),
        structured=structured,
    )


def pictures_of(found: Sequence[tuple[str, str]]) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """The pictures that may stay, and notes about the others."""
    pictures = _Pictures()
    for kind, data in found:
        pictures.add(kind, data)
    return tuple(pictures.kept), pictures.notes


class _Pictures:
    """Collects pictures within their bounds."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._room = _PICTURE_BYTES

    def add(self, kind: str, data: str) -> None:
        try:
            size = len(base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            self.notes.append("[a picture was left out: its base64 is damaged]")
            return
        if kind not in _PICTURES:
            self.notes.append(f"[a picture was left out: its kind is {kind[:80]}]")
        elif len(self.kept) >= _MOST_PICTURES or size > self._room:
            self.notes.append(
                f"[a picture was left out: the limit is {_MOST_PICTURES} pictures with "
                f"{_PICTURE_BYTES // 1024**2} MiB in all]"
            )
        else:
            self._room -= size
            self.kept.append((kind, data))


def _block(block: Mapping[str, Any], pictures: _Pictures) -> list[str]:
    """The texts of a block of MCP's content."""
    kind = block.get("type")
    if kind == "text":
        return [str(block.get("text", ""))]
    if kind == "image":
        pictures.add(str(block.get("mimeType", "")), str(block.get("data", "")))
        return []
    if kind == "resource_link":
        return [f"[{block.get('name', 'resource')}: {block.get('uri', '')}]"]
    resource = block.get("resource")
    if kind == "resource" and isinstance(resource, dict):
        if isinstance(resource.get("text"), str):
            return [resource["text"]]
        media_type, data = str(resource.get("mimeType", "")), str(resource.get("blob", ""))
        if media_type in _PICTURES:
            pictures.add(media_type, data)
            return []
        return [f"[{resource.get('uri', 'a file')}: {media_type or 'data'}, which is no text]"]
    return [f"[{kind}: it cannot be shown to a model]"]


def _bounded(structured: object) -> object:
    if structured is None or len(json.dumps(structured)) > _STRUCTURED:
        return None
    return structured
