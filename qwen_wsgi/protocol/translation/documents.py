"""Reads documents that clients attach; what has no text becomes a sentence that says so."""

from __future__ import annotations

import base64
from typing import Final

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
