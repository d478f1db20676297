"""What a worker has reserved of a client's limits and not settled, and how it is written down.

So that others can give it back when the worker is dead.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from qwen_wsgi.access.limits import BUCKET_MS, SPAN, Granted, Moment, Owed

#: Name of the worker, when it wrote (`boottime`), the latest span, the day, its open tokens of that
#: day, and those of the last spans, which cover the window.
_SPANS: Final = 16
NAME_BYTES: Final = 88
_ROW: Final = Struct(f"={NAME_BYTES}sdqqq{_SPANS * 8}s")
_CHECKSUM: Final = Struct("<I")
#: What is read and written, and the room for it.
WRITTEN_BYTES: Final = _ROW.size + _CHECKSUM.size
ROW_BYTES: Final = 256


class Row(NamedTuple):
    """The row of a worker.

    Attributes:
        worker: its name.
        at: when it wrote.
        spans: its open tokens, by the span in which they were reserved.
        day, tokens: its open tokens of one day.
    """

    worker: bytes
    at: float
    spans: dict[int, int]
    day: int
    tokens: int


class Open:
    """The tokens that this worker has reserved and not settled."""

    __slots__ = ("_day", "_latest", "_spans", "_tokens")

    def __init__(self) -> None:
        #: Those of span `s` are at `s % _SPANS`.
        self._spans = array("q", bytes(8 * _SPANS))
        self._latest = 0
        self._day = self._tokens = 0

    def note(self, granted: Granted, tokens: int) -> None:
        """Note that tokens are reserved, or with a negative number that they are settled."""
        if not tokens:
            return
        span = granted.bucket // SPAN
        if span > self._latest:
            self._go_on(span)
        if span > self._latest - _SPANS:
            at = span % _SPANS
            self._spans[at] = max(0, self._spans[at] + tokens)
        if granted.day > self._day:
            self._day, self._tokens = granted.day, 0
        if granted.day == self._day:
            self._tokens = max(0, self._tokens + tokens)

    def owed(self) -> Owed:
        """All of it, to be booked once more."""
        return Owed.of_spans(_by_span(self._spans, self._latest), self._day, self._tokens)

    def packed(self, worker: bytes, at: float, now: Moment) -> bytes:
        """The row that says so.

        Args:
            worker: its name; at most `NAME_BYTES`.
            at: now, by `boottime`.
        """
        span = now.at_ms // BUCKET_MS // SPAN
        if span > self._latest:
            self._go_on(span)
        row = _ROW.pack(worker, at, self._latest, self._day, self._tokens, self._spans.tobytes())
        return row + _CHECKSUM.pack(crc32(row))

    def _go_on(self, span: int) -> None:
        """Go on to a later span: what is open of those before the window has left it."""
        for passed in range(max(self._latest, span - _SPANS) + 1, span + 1):
            self._spans[passed % _SPANS] = 0
        self._latest = span


def read(data: bytes) -> Row | None:
    """Read a row; None if it is damaged, or none."""
    if len(data) != WRITTEN_BYTES:
        return None
    if crc32(data[: _ROW.size]) != _CHECKSUM.unpack_from(data, _ROW.size)[0]:
        return None
    name, at, latest, day, tokens, spans = _ROW.unpack_from(data)
    return Row(name.rstrip(b"\0"), at, _by_span(array("q", spans), latest), day, tokens)


def _by_span(ring: array[int], latest: int) -> dict[int, int]:
    spans = range(latest - _SPANS + 1, latest + 1)
    return {span: ring[span % _SPANS] for span in spans if ring[span % _SPANS]}
