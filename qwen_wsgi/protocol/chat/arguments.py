"""Follows a tool call's arguments while they grow, without keeping them."""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Final

#: So much waits to be read: most calls are shorter, and nobody asks.
_WAITING_BYTES: Final = 64 * 1024
#: What a short piece takes in memory.
_PIECE_BYTES: Final = 64

_OUTSIDE_STRING: Final = re.compile(r'[^"]*')
#: Up to the end of a string, or to a backslash whose character is in the next piece.
_INSIDE_STRING: Final = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")


class _State(enum.Enum):
    EMPTY = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()
    #: Whatever follows, it will be no object.
    NO_OBJECT = enum.auto()


class Arguments:
    """Tells of arguments whether they are complete, reading each piece once.

    An object is taken for complete when its brackets are closed; the JSON is not parsed.
    """

    __slots__ = (
        *("_depth", "_digest", "_escaped", "_in_string", "_state", "_waiting"),
        "_waiting_bytes",
    )

    def __init__(self) -> None:
        self._state = _State.EMPTY
        self._depth = 0
        self._in_string = self._escaped = False
        #: Of all but the white space between tokens.
        self._digest = hashlib.blake2b(digest_size=16)
        self._waiting: list[str | bytes] = []
        self._waiting_bytes = 0

    def add(self, piece: str) -> None:
        """Add a piece."""
        self.extend((piece,))

    def extend(self, pieces: Sequence[str | bytes]) -> None:
        """Add some pieces; bytes are the inside of a JSON string."""
        if self._state is _State.NO_OBJECT:
            return
        self._waiting += pieces
        self._waiting_bytes += sum(map(len, pieces)) + _PIECE_BYTES * len(pieces)
        if self._waiting_bytes > _WAITING_BYTES:
            self._read()

    @property
    def empty(self) -> bool:
        """Whether there is nothing so far, not even an empty object."""
        self._read()
        return self._state is _State.EMPTY

    @property
    def complete(self) -> bool:
        """Whether they are a complete object so far."""
        self._read()
        return self._state is _State.CLOSED

    def equal(self, arguments: str) -> bool:
        """Whether these complete arguments are the same, but for white space."""
        other = Arguments()
        other.add(arguments)
        return other.complete and other._digest.digest() == self._digest.digest()

    def _read(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for piece in waiting:
            if self._state is _State.NO_OBJECT:
                return
            self._take(_decoded(piece))

    def _take(self, text: str) -> None:
        at = 0
        while at < len(text) and self._state is not _State.NO_OBJECT:
            begin = at
            if self._in_string:
                at = self._end_in_string(text, at)
                self._digest.update(text[begin:at].encode("utf-8", "surrogatepass"))
                continue
            at = _OUTSIDE_STRING.match(text, at).end()  # type: ignore[union-attr]  # it always matches
            self._take_outside(text[begin:at])
            if at < len(text):
                self._in_string = True
                at += 1
                self._take_outside('"')

    def _end_in_string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        at = _INSIDE_STRING.match(text, at).end()  # type: ignore[union-attr]  # it always matches
        if at == len(text):
            return at
        self._escaped = text[at] == "\\"
        self._in_string = self._escaped
        return at + 1

    def _take_outside(self, text: str) -> None:
        """Take what is outside of strings, or a quote that begins one."""
        solid = "".join(text.split())
        if not solid:
            return
        if self._state is _State.EMPTY:
            self._state = _State.OPEN if solid[0] == "{" else _State.NO_OBJECT
        elif self._state is _State.CLOSED:
            self._state = _State.NO_OBJECT
        if self._state is not _State.OPEN:
            return
        self._digest.update(solid.encode("utf-8", "surrogatepass"))
        closing = solid.count("}") + solid.count("]")
        if closing < self._depth:  # it cannot end here
            self._depth += solid.count("{") + solid.count("[") - closing
            return
        for found in _BRACKET.finditer(solid):
            self._depth += 1 if found[0] in "{[" else -1
            if not self._depth:
                whole = found.end() == len(solid)
                self._state = _State.CLOSED if whole else _State.NO_OBJECT
                return


def _decoded(piece: str | bytes) -> str:
    if isinstance(piece, str):
        return piece
    try:
        return str(json.loads(b'"' + piece + b'"'))
    except ValueError:
        return piece.decode(errors="replace")  # not JSON; it was not parsed before
