"""Server-sent events as bytes (WHATWG HTML §9.2.6), without parsing what nobody asks for.

Upstream bytes arrive cut anywhere. `EventBlocks` hands on runs of *whole* events, so that a stream
can be ended by an error event at any moment, and an event of ours can stand between two of theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

#: Ends a stream in OpenAI's dialect.
DONE: Final = b"data: [DONE]\n\n"

#: One event may hold a picture or a sound, hardly more: past this the upstream is broken.
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024


class EventTooLarge(ValueError):
    """The upstream sends an event that does not end."""


class EventBlocks:
    """Cuts a byte stream into blocks of whole events with LF line ends.

    Not thread safe; one per stream. A block that already ends where an event ends, as nearly all
    do, passes without a copy.
    """

    __slots__ = ("_after_cr", "_rest", "_started")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._after_cr = False
        self._started = False

    def push(self, data: bytes) -> bytes:
        """Take what arrived; return the whole events that are complete now, or `b""`.

        Raises:
            EventTooLarge: an event passed `MAX_EVENT_BYTES`.
        """
        if not self._started and data:
            self._started = True
            data = data.removeprefix(b"\xef\xbb\xbf")
        if self._after_cr or b"\r" in data:
            data = self._normalise(data)
        if not self._rest:
            end = data.rfind(b"\n\n") + 2
            if end == len(data):
                return data
            if end == 1:  # not found
                self._rest += data
                return b""
            self._rest += data[end:]
            return data[:end]
        rest = self._rest
        # Only the last byte of what is held can be half of a blank line.
        seam = len(rest) - 1
        rest += data
        end = rest.rfind(b"\n\n", seam) + 2
        if end == 1:
            if len(rest) > MAX_EVENT_BYTES:
                raise EventTooLarge(f"an event of the upstream passed {MAX_EVENT_BYTES} bytes")
            return b""
        block = bytes(rest[:end])
        del rest[:end]
        return block

    def rest(self) -> bytes:
        """What is held back: the beginning of an event whose end has not come."""
        return bytes(self._rest)

    def _normalise(self, data: bytes) -> bytes:
        # A CR at the end of one read and a LF at the start of the next are one line end.
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def events(block: bytes) -> Iterator[bytes]:
    """The events of a block, each without its blank line."""
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
    """The JSON value of an event's payload; None if it has none or is no JSON (`[DONE]`)."""
    payload = data(event)
    if payload is None:
        return None
    try:
        return json.loads(payload)
    except ValueError:
        return None


def render(value: Any) -> bytes:
    """One event whose payload is `value` as compact JSON."""
    payload = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + payload.encode() + b"\n\n"


def only_data(block: bytes) -> bytes:
    """The block without comments and without `id:`, `retry:` and `event:` lines.

    The official Python SDK takes an `id:` or `retry:` line, or a comment after an `id:`, as an
    event with empty data and fails to parse it; comments upset simple parsers, and keep-alives are
    ours to send. OpenAI's chat streams name no events. Costs five searches when there is nothing
    to remove.
    """
    if not (
        b"\n:" in block
        or b"\nid" in block
        or b"\nretry" in block
        or b"\nevent" in block
        or block.startswith((b":", b"id", b"retry", b"event"))
    ):
        return block
    kept = []
    for event in events(block):
        lines = [line for line in event.split(b"\n") if line.startswith(b"data")]
        # An event without data is dispatched by nobody (§9.2.6) and trips the Python SDK.
        if lines:
            kept.append(b"\n".join(lines) + b"\n\n")
    return b"".join(kept)
