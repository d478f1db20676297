"""Events of a response's stream, numbered and rendered."""

from __future__ import annotations

from typing import Any

from qwen_wsgi.protocol.json_object import compact


class Events:
    """Renders events; each gets the next number."""

    def __init__(self) -> None:
        self._number = -1

    def next_number(self) -> int:
        """The number of the event that is being rendered."""
        self._number += 1
        return self._number

    def render(self, type: str, **members: Any) -> bytes:
        """One event. The SDKs go by `type` in the data, some other parsers by the `event:` line."""
        return self.render_json(type, compact(members)[1:-1])

    def render_json(self, type: str, members: str) -> bytes:
        """One event whose members are JSON already, without braces."""
        number = self.next_number()
        data = f'{{"type":"{type}",{members},"sequence_number":{number}}}'
        return f"event: {type}\ndata: {data}\n\n".encode()


class Deltas:
    """The events by which one text grows: all the same but for the piece and the number.

    Args:
        type: `response.output_text.delta`.
        places: where the text stands, e.g. its item's id and index.
    """

    __slots__ = ("_after", "_around", "_before", "_events")

    def __init__(self, events: Events, type: str, places: dict[str, Any], after: str = "") -> None:
        self._events = events
        self._before = f'event: {type}\ndata: {{"type":"{type}",{compact(places)[1:-1]},"delta":'
        self._after = after + ',"sequence_number":'
        #: The same around a piece that is JSON already.
        self._around = (self._before + '"').encode(), ('"' + self._after).encode()

    def render(self, piece: str) -> bytes:
        """The event that adds a piece."""
        number = self._events.next_number()
        return f"{self._before}{compact(piece)}{self._after}{number}}}\n\n".encode()

    def render_json(self, piece: bytes) -> bytes:
        """The same for a piece as it stands in JSON, without its quotes."""
        before, after = self._around
        return b"%b%b%b%d}\n\n" % (before, piece, after, self._events.next_number())
