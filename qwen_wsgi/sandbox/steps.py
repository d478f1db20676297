"""An answer as a script of steps (status line, bytes, waits, cuts), and the player of scripts.

Scripts are generators that are run lazily: a side effect in one, such as the rotation of a refresh
token, happens when the steps before it have been performed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, Protocol

from qwen_wsgi.sandbox.wire import Connection

FOREVER_S: Final = 1e9
JSON_TYPE: Final = "application/json"
SSE_TYPE: Final = "text/event-stream;charset=UTF-8"


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers. `length` None means chunked, or with `until_close` ended by EOF."""

    status: int
    content_type: str | None
    length: int | None = None
    until_close: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the body; `event` marks a whole server-sent event (it is counted)."""

    payload: bytes
    event: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes sent unchanged, outside the HTTP framing."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this many seconds, watching the client."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection now, without the end that the HTTP framing requires."""

    reset: bool = False
    silent: bool = False  # the answer was complete; only keep-alive is violated


Step = Head | Data | Raw | Pause | Close


class Meter(Protocol):
    """Counts what was sent; other threads may read it meanwhile."""

    status: int
    events: int
    sent_bytes: int


@dataclass(slots=True)
class Uncounted:
    """A meter that nobody reads."""

    status: int = 0
    events: int = 0
    sent_bytes: int = 0


def whole(
    status: int,
    body: bytes,
    content_type: str | None = JSON_TYPE,
    headers: tuple[tuple[str, str], ...] = (),
) -> Iterator[Step]:
    """Answer with a complete body of known length."""
    yield Head(status, content_type, len(body), headers=headers)
    if body:
        yield Data(body)


def whole_json(
    status: int, body: object, headers: tuple[tuple[str, str], ...] = ()
) -> Iterator[Step]:
    """Answer with a JSON document."""
    return whole(status, encode_json(body), headers=headers)


def encode_json(body: Any) -> bytes:
    """Encode compactly and as UTF-8 (not ASCII escapes), as DashScope does."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def gzipped(steps: Iterable[Step]) -> Iterator[Step]:
    """Compress a script, flushed after each step, so that events still arrive one by one."""
    packer = zlib.compressobj(wbits=31)
    for step in steps:
        if isinstance(step, Head):
            # The compressed length is unknown yet, so a body with a length becomes chunked.
            headers = (*step.headers, ("content-encoding", "gzip"))
            yield replace(step, length=None, headers=headers)
        elif isinstance(step, Data):
            packed = packer.compress(step.payload) + packer.flush(zlib.Z_SYNC_FLUSH)
            yield Data(packed, step.event)
        else:
            yield step
    yield Data(packer.flush())


class Player:
    """Performs one script on one connection.

    Afterwards `outcome` is a value of `Record.outcome`, and `keep_alive` says whether the
    connection can be used for another request.
    """

    def __init__(
        self,
        connection: Connection,
        meter: Meter,
        *,
        http10: bool = False,
        close_after: bool = False,
        split_bytes: int = 0,
        headers: tuple[tuple[str, str], ...] = (),
        on_head: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._meter = meter
        self._http10 = http10
        self._close_after = close_after
        self._split_bytes = split_bytes
        self._headers = headers
        self._on_head = on_head
        self._chunked = False
        self.outcome = "open"
        self.keep_alive = True

    def play(self, steps: Iterable[Step]) -> None:
        """Perform all steps.

        Raises:
            PeerGone: the client disconnected before the end.
        """
        for step in steps:
            if isinstance(step, Close):
                self._close(step)
                return
            self._perform(step)
        if self._chunked:
            self._connection.send(b"0\r\n\r\n")
        self.outcome = "error" if self._meter.status >= 400 else "complete"

    def _perform(self, step: Head | Data | Raw | Pause) -> None:
        if isinstance(step, Pause):
            self._connection.wait(step.seconds)
        elif isinstance(step, Head):
            self._start(step)
        elif isinstance(step, Raw):
            self._connection.send(step.payload)
            self.keep_alive = False
        else:
            self._body(step)

    def _start(self, head: Head) -> None:
        self._chunked = head.length is None and not head.until_close and not self._http10
        lines = [
            f"HTTP/1.1 {head.status} {_reason(head.status)}",
            f"date: {formatdate(usegmt=True)}",
        ]
        if head.content_type is not None:
            lines.append(f"content-type: {head.content_type}")
        if self._chunked:
            lines.append("transfer-encoding: chunked")
        elif head.length is not None:
            lines.append(f"content-length: {head.length}")
        if self._close_after or (not self._chunked and head.length is None):
            lines.append("connection: close")
            self.keep_alive = False
        lines += [f"{name}: {value}" for name, value in (*self._headers, *head.headers)]
        self._meter.status = head.status
        self._connection.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))
        if self._on_head is not None:
            self._on_head()

    def _body(self, step: Data) -> None:
        if step.event:
            # The first send to a closed connection succeeds, so check first.
            self._connection.check_peer()
        size = self._split_bytes or len(step.payload) or 1
        for start in range(0, len(step.payload), size):
            piece = step.payload[start : start + size]
            self._connection.send(b"%x\r\n%s\r\n" % (len(piece), piece) if self._chunked else piece)
        self._meter.sent_bytes += len(step.payload)
        self._meter.events += step.event

    def _close(self, step: Close) -> None:
        self.keep_alive = False
        if step.silent and self._chunked:
            self._connection.send(b"0\r\n\r\n")
        self.outcome = "complete" if step.silent else "reset" if step.reset else "cut"
        if step.reset:
            self._connection.reset()
        else:
            self._connection.close()


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
