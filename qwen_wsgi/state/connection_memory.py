"""What the WebSockets of one worker keep in memory: conversations, and requests that wait.

A client may continue the latest response of its connection, also where nothing is stored
(`store: false`). All connections together have one limit: what was not used for the longest is
forgotten first, and its client sends the whole conversation anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_wsgi.protocol.json_object import compact, loads


@dataclass(frozen=True)
class Conversation:
    """A conversation up to a response.

    Attributes:
        parts: its items, as JSON arrays, oldest first. Those that branch off share their parts.
        stored: the response can be found in the store of responses, too.
    """

    parts: tuple[bytes, ...] = ()
    stored: bool = True

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(map(len, self.parts))

    def items(self) -> list[dict[str, Any]]:
        """Its items; a new copy each time."""
        return [item for part in self.parts for item in loads(part)]

    def plus(self, items: Iterable[Mapping[str, Any]], *, stored: bool) -> Conversation:
        """The conversation with what came next."""
        return Conversation((*self.parts, compact(list(items)).encode()), stored)


def conversation_of(items: Sequence[Mapping[str, Any]]) -> Conversation:
    """A conversation that was found in the store."""
    return Conversation((compact(list(items)).encode(),)) if items else Conversation()


class ConnectionMemory:
    """Counts what all connections hold. Not locked: greenlets switch at I/O only.

    Args:
        limit: bytes, of conversations and of requests that wait or arrive.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._kept: OrderedDict[tuple[Hashable, str], Conversation] = OrderedDict()
        self._kept_bytes = 0

    @property
    def held(self) -> int:
        """All bytes that are held now."""
        return self._taken + self._kept_bytes

    def take(self, size: int) -> bool:
        """Take room for a request, which `give` gives back; whether there is room.

        Conversations make room.
        """
        if self._taken + size > self._limit:
            return False
        self._taken += size
        self._make_room()
        return True

    def give(self, size: int) -> None:
        """Give room back."""
        self._taken -= size

    def keep(self, connection: Hashable, id: str, conversation: Conversation) -> None:
        """Keep the conversation up to a response, if there is room.

        Args:
            connection: something of its own for each open connection.
        """
        self.forget(connection, id)
        self._kept[connection, id] = conversation
        self._kept_bytes += conversation.size
        self._make_room()

    def recall(self, connection: Hashable, id: str) -> Conversation | None:
        """The conversation up to a response of this connection, or None."""
        found = self._kept.get((connection, id))
        if found is not None:
            self._kept.move_to_end((connection, id))
        return found

    def forget(self, connection: Hashable, id: str) -> None:
        """Forget it; harmless when repeated."""
        found = self._kept.pop((connection, id), None)
        if found is not None:
            self._kept_bytes -= found.size

    def _make_room(self) -> None:
        while self._kept and self.held > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.size
