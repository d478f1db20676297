"""Numbers and renders the events of a response's stream."""

from __future__ import annotations

from typing import Any

from qwen_wsgi.protocol.json_object import compact


class Events:
    """Renders events; each one gets the next number."""

    def __init__(self) -> None:
        self._number = -1

    def next_number(self) -> int:
        """Take the number for the next event."""
        self._number += 1
        return self._number

    def render(self, type: str, **members: Any) -> bytes:
        """Render an event. SDKs read `type` in the data, some other parsers the `event:` line."""
        return self.render_json(type, compact(members)[1:-1])

    def render_json(self, type: str, members: str) -> bytes:
        """Render an event whose members are JSON already, without braces."""
        number = self.next_number()
        data = f'{{"type":"{type}",{members},"sequence_number":{number}}}'
        return f"event: {type}\ndata: {data}\n\n".encode()


class Deltas:
    """Renders the events that add to one text: they differ only in the piece and the number.

    Args:
        type: for example `response.output_text.delta`.
        places: the place of the text: its item's id and index and so on.
    """

    __slots__ = ("_after", "_around", "_before", "_events")

    def __init__(self, events: Events, type: str, places: dict[str, Any], after: str = "") -> None:
        self._events = events
        self._before = f'event: {type}\ndata: {{"type":"{type}",{compact(places)[1:-1]},"delta":'
        self._after = after + ',"sequence_number":'
        #: The bytes around a piece that is JSON already.
        self._around = (self._before + '"').encode(), ('"' + self._after).encode()

    def render(self, piece: str) -> bytes:
        """Render the event that adds a piece."""
        number = self._events.next_number()
        return f"{self._before}{compact(piece)}{self._after}{number}}}\n\n".encode()

    def render_json(self, piece: bytes) -> bytes:
        """The same for the inside of a JSON string."""
        before, after = self._around
        return b"%b%b%b%d}\n\n" % (before, piece, after, self._events.next_number())
