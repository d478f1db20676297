"""Reads and renders server-sent events as bytes (WHATWG HTML §9.2.6), parsing only on demand.

Upstream bytes arrive cut anywhere. `EventBlocks` returns blocks of *whole* events, so that an error
event can end a stream at any moment, and a keep-alive can be sent between two events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from qwen_wsgi.protocol.json_object import encoded, loads

#: Ends a stream in OpenAI's dialect.
DONE: Final = b"data: [DONE]\n\n"

#: An event may hold an image or a sound; an upstream that sends a larger one is broken.
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024


#: A UTF-8 byte order mark, which may stand before the first event.
_MARK: Final = b"\xef\xbb\xbf"


#: The server's key in a request's environ for a way to send events that need not be yielded
#: (`exchange.Answer`).
PASSAGE: Final = "qwen_wsgi.passage"


class EventTooLarge(ValueError):
    """The upstream sent an event beyond `MAX_EVENT_BYTES`."""


class LastPiece(bytes):
    """The last bytes of a body that is sent as it comes: its end may be sent with them."""

    __slots__ = ()


class EventBlocks:
    """Cuts a byte stream into blocks of whole events with LF line ends.

    Not thread safe; one per stream. A block that ends where an event ends, as nearly all do, is
    returned without a copy.
    """

    __slots__ = ("_after_cr", "_head", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_cr = False
        #: The first bytes while they may be part of a byte order mark; None afterwards.
        self._head: bytes | None = b""

    def push(self, data: bytes) -> bytes:
        """Take received bytes; return the events that are complete now, or `b""`.

        Raises:
            EventTooLarge: an event passed `MAX_EVENT_BYTES`.
        """
        if self._head is not None:
            data = self._without_mark(self._head + data)
        if self._after_cr or b"\r" in data:
            data = self._with_lf(data)
        if not self._rest:
            end = data.rfind(b"\n\n")
            if end < 0:
                self._rest += data
                return b""
            if end + 2 == len(data):
                return data
            self._rest += data[end + 2 :]
            return data[: end + 2]
        rest = self._rest
        # Only the last byte held back can be half of a blank line.
        seam = len(rest) - 1
        rest += data
        end = rest.rfind(b"\n\n", seam)
        if end < 0:
            if len(rest) > MAX_EVENT_BYTES:
                raise EventTooLarge(f"an event of the upstream passed {MAX_EVENT_BYTES} bytes")
            return b""
        block = bytes(rest[: end + 2])
        del rest[: end + 2]
        return block

    @property
    def is_between(self) -> bool:
        """Whether the next byte is the first one of an event."""
        return not (self._rest or self._after_cr) and self._head is None

    def rest(self) -> bytes:
        """The bytes held back: the beginning of an incomplete event."""
        return bytes(self._rest)

    def _without_mark(self, data: bytes) -> bytes:
        if len(data) < len(_MARK) and _MARK.startswith(data):
            self._head = data
            return b""
        self._head = None
        return data.removeprefix(_MARK)

    def _with_lf(self, data: bytes) -> bytes:
        # A CR at the end of one read and a LF at the start of the next are one line end.
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def events(block: bytes) -> Iterator[bytes]:
    """Split a block into its events, each without its blank line."""
    for event in block.split(b"\n\n"):
        if stripped := event.strip(b"\n"):
            yield stripped


def data(event: bytes) -> bytes | None:
    """The payload of an event: its `data` lines joined by LF, or None if it has none."""
    if event.startswith(b"data:") and b"\n" not in event:
        return event[6:] if event.startswith(b"data: ") else event[5:]
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in event.split(b"\n")
        if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None


def parse(event: bytes) -> Any:
    """Parse an event's payload as JSON; None if it has none or it is not JSON (`[DONE]`)."""
    is_plain = event.startswith(b"data: ") and b"\n" not in event
    payload = event[6:] if is_plain else data(event)
    if payload is None:
        return None
    try:
        return loads(payload)
    except (ValueError, RecursionError):
        return None


def is_done(event: bytes) -> bool:
    """Whether an event is OpenAI's end of a stream."""
    return b"[DONE]" in event and (data(event) or b"").strip() == b"[DONE]"


def render(value: Any) -> bytes:
    """Render one event whose payload is `value` as compact JSON."""
    return b"".join((b"data: ", encoded(value), b"\n\n"))
