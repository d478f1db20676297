"""What is kept of an answer: its texts as they grow, and how much of it there may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol.json_object import encoded, reading_bytes

#: Text and items of one answer. The longest answers of 2026 have about a megabyte.
MOST_BYTES: Final = 32 * 1024 * 1024

#: What came in one piece and is turned into events is bounded lower: at the end of a stream of
#: Responses all of it is there some twenty times.
MOST_AS_EVENTS: Final = 4 * 1024 * 1024

#: The values of a whole JSON answer may take so many times its limit while they are read: its
#: bytes, and a text of as many, and what belongs to them.
_TIMES, _PER = 14, 5
#: They may take this however low the limit is.
_READING_BYTES: Final = 16 * 1024 * 1024

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
            most, unit = self._most, "bytes"
            if most >= 1 << 20:
                most, unit = most >> 20, "MiB"
            raise AnswerTooLarge(f"has more than {most} {unit} of text and items")

    def add_values(self, data: bytes) -> None:
        """Count what the values of a JSON text take besides its bytes, which are counted: what is
        beyond 2.8 times as much.

        Raises:
            AnswerTooLarge: these are too many.
        """
        self.add(max(0, reading_bytes(data, most=0) * _PER // _TIMES - len(data)))

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
        data = encoded(value)
        self.add(len(data) + container_bytes * (data.count(b"[") + data.count(b"{")))
        return data


def check_values(data: bytes, *, limit: int) -> None:
    """Refuse a JSON text whose values would take a multiple of it, before it is parsed.

    Args:
        limit: the most bytes that such a text may have (`QWEN_PROXY_MAX_ANSWER`).

    Raises:
        AnswerTooLarge: they may take more than 2.8 times the limit.
    """
    most = max(limit * _TIMES // _PER, _READING_BYTES)
    if reading_bytes(data, most=most) > most:
        raise AnswerTooLarge(
            f"may take more than {most >> 20} MiB of memory while it is read, which is "
            f"{_TIMES / _PER} times QWEN_PROXY_MAX_ANSWER on the server"
        )


def as_events(values: Iterable[Any]) -> list[bytes]:
    """Render what came in one piece as server-sent events.

    Raises:
        AnswerTooLarge: they would be too large together.
    """
    events, left = [], MOST_AS_EVENTS
    for value in values:
        data = encoded(value)
        left -= len(data)
        if left < 0:  # before it is copied
            raise AnswerTooLarge(
                f"came in one piece of more than {MOST_AS_EVENTS >> 20} MiB, which is too much to "
                "be turned into the events of a stream or into a response"
            )
        events.append(b"data: %b\n\n" % data)
    return events


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
