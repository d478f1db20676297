"""Reads documents that clients attach; what has no text becomes a sentence that says so."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: Media types of plain text besides `text/*`.
_TEXTS: Final = ("application/json", "application/xml", "application/yaml", "application/x-yaml")

_LONGEST_NAME: Final = 200


def text_of(media: str, data: str) -> str | None:
    """The text of a document.

    Args:
        media: its media type.
        data: base64.

    Returns:
        None if it is no plain text, or cannot be decoded.
    """
    kind = media.partition(";")[0].strip().lower()
    if not kind.startswith("text/") and kind not in _TEXTS:
        return None
    try:
        return base64.b64decode(data, validate=True).decode()
    except ValueError:
        return None


def text_of_url(url: str) -> str | None:
    """The text of a document in a data URL (`data:text/plain;base64,…`); None as for `text_of`."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    return text_of(head[len("data:") :], data)


def placeholder(name: str, kind: str) -> str:
    """The sentence that stands for a document which cannot be read.

    Args:
        name: of the document, or "".
        kind: its media type, or how it was sent.
    """
    which = f" '{name[:_LONGEST_NAME]}'" if name else ""
    return (
        f"[A document{which} ({kind[:_LONGEST_NAME]}) was left out here, because it cannot be "
        "read. Ask for its text, or for its pages as pictures.]"
    )


# --- PDFs: found here, read elsewhere -----------------------------------------------------------

PDF: Final = "application/pdf"
PDF_URL: Final = f"data:{PDF};base64,"

#: How deep in a request a document may be: in the content of a result in a message's content.
_DEEPEST: Final = 10


def pdfs_in(value: Any, depth: int = 0) -> Iterator[str]:
    """The base64 of the PDFs in a request's member, in the forms of all dialects.

    Those are `{"type": "base64", "media_type": "application/pdf", "data"}` (Messages) and
    `{"file_data": "data:application/pdf;base64,…"}` (Responses, chat).
    """
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        if (document := _pdf(value)) is not None:
            yield document
            return
        value = value.values()
    elif not isinstance(value, list):
        return
    for each in value:
        if isinstance(each, dict | list):
            yield from pdfs_in(each, depth + 1)


def with_texts(value: Any, texts: Mapping[str, str], depth: int = 0) -> Any:
    """The member with texts in the place of PDFs, in the dialect's form for a document of text.

    Args:
        texts: by base64; a PDF that is missing here stays.
    """
    if depth > _DEEPEST:
        return value
    if isinstance(value, list):
        return [with_texts(each, texts, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    document = _pdf(value)
    if document is None:
        return {name: with_texts(each, texts, depth + 1) for name, each in value.items()}
    if (text := texts.get(document)) is None:
        return value
    if "file_data" in value:
        data = base64.b64encode(text.encode(errors="replace")).decode()
        return {**value, "file_data": f"data:text/plain;base64,{data}"}
    return {"type": "text", "media_type": "text/plain", "data": text}


def _pdf(value: dict[str, Any]) -> str | None:
    """The base64 of a PDF, if this object holds one."""
    url = value.get("file_data")
    if isinstance(url, str) and url.startswith(PDF_URL):
        return url[len(PDF_URL) :]
    if value.get("media_type") == PDF and isinstance(data := value.get("data"), str):
        return data
    return None
