"""Reads an upstream's answer from given pieces of bytes, with the product's code and no socket."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from qwen_wsgi.greenlets import TimedReads
from qwen_wsgi.upstream.http.body import BodyReader
from qwen_wsgi.upstream.http.http1 import Head, PooledResponse, _receive_head

#: Pieces come at once; a reader that waits longer than this waits for ever.
_READ_S = 5.0


class Pieces:
    """A socket that gives these pieces, then its end."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self._pieces.reverse()

    def settimeout(self, timeout_s: float | None) -> None:
        assert timeout_s is None or timeout_s > 0

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop()
        if len(piece) > size:
            self._pieces.append(piece[size:])
        return piece[:size]


class _NoPool:
    generation = 0

    def keep(self, connection: object) -> None:
        return None


class Connection:
    """Notes whether it was closed, and so not kept for others."""

    closed = False
    generation = 0

    def close(self) -> None:
        self.closed = True


def reads_of(pieces: Iterable[bytes]) -> TimedReads:
    """The reads of a connection on which these pieces come."""
    source: socket.socket = Pieces(pieces)  # type: ignore[assignment]  # what is used of it
    return TimedReads(source, _READ_S)


def head_of(pieces: Iterable[bytes]) -> tuple[Head, bytes]:
    """The head of an answer, and what came behind it. Raises as `http1` does."""
    return _receive_head(reads_of(pieces))


def reader_of(reads: TimedReads, head: Head, first: bytes = b"") -> tuple[BodyReader, Connection]:
    """A reader of the body behind a head, and its connection. Raises as `http1` does."""
    connection = Connection()
    return BodyReader(PooledResponse(_NoPool(), connection, reads, head, first, 0.0)), connection


def whole_body(reader: BodyReader) -> bytes:
    """The body to its end, closed on every way out. Raises as `BodyReader` does."""
    try:
        return b"".join(iter(lambda: reader.read(_READ_S), b""))
    finally:
        reader.close()


def answer_of(pieces: Iterable[bytes]) -> tuple[Head, bytes]:
    """Head and body of an answer. Raises as `http1` and `BodyReader` do."""
    reads = reads_of(pieces)
    head, first = _receive_head(reads)
    reader, _ = reader_of(reads, head, first)
    return head, whole_body(reader)
