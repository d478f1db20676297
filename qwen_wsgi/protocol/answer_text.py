"""What is kept of an answer: its texts as they grow, and how much of it there may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol.json_object import compact

#: Text and items of one answer. The longest answers of 2026 have about a megabyte.
MOST_BYTES: Final = 32 * 1024 * 1024

#: What a content block, an output item or a part of one takes in memory besides its text.
ITEM_BYTES: Final = 1024
#: The same for an object or array that is kept as JSON, and as Python's.
_AS_JSON_BYTES: Final = 32
_AS_OBJECT_BYTES: Final = 256


class AnswerSize:
    """Counts the text and the items of one answer, in bytes of memory.

    Args:
        most: how many there may be.
    """

    __slots__ = ("_left", "_most")

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._left = self._most = most

    def add(self, count: int) -> None:
        """Count so many bytes more.

        Raises:
            AnswerTooLarge: these are too many.
        """
        self._left -= count
        if self._left < 0:
            raise AnswerTooLarge(f"has more than {self._most >> 20} MiB of text and items")

    def has_room(self, count: int) -> bool:
        """Whether so many bytes more can be counted."""
        return count <= self._left

    def add_text(self, text: str) -> None:
        """Count a text."""
        self.add(len(text) if text.isascii() else len(_utf8(text)))

    def add_json(self, value: Any) -> bytes:
        """Count a value; return it as JSON, which takes a fraction of its memory."""
        return self._add_value(value, _AS_JSON_BYTES)

    def add_objects(self, value: Any) -> None:
        """Count a value that is kept as it is."""
        self._add_value(value, _AS_OBJECT_BYTES)

    def _add_value(self, value: Any, container_bytes: int) -> bytes:
        data = compact(value).encode()
        self.add(len(data) + container_bytes * (data.count(b"[") + data.count(b"{")))
        return data


class Text:
    """A text that comes in pieces, kept in one piece: each string would take 50 bytes besides.

    Args:
        size: the text counts against it.
    """

    __slots__ = ("_data", "_size")

    def __init__(self, size: AnswerSize) -> None:
        self._size = size
        self._data = bytearray()

    def add(self, piece: str) -> None:
        """Add a piece.

        Raises:
            AnswerTooLarge: the answer has too much text.
        """
        data = _utf8(piece)
        self._size.add(len(data))
        self._data += data

    def clear(self) -> None:
        """Begin anew; what was counted stays counted."""
        self._data.clear()

    def __bool__(self) -> bool:
        return bool(self._data)

    def __str__(self) -> str:
        return joined_text((self._data.decode("utf-8", "surrogatepass"),))


def joined_text(pieces: Iterable[str]) -> str:
    """Join pieces of a text; the two halves of a surrogate pair become one character."""
    text = "".join(pieces)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Each half came as an escape of its own; an unpaired one is replaced.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
