"""How many tokens upstreams counted for conversations, shared by all workers.

Only for clients that count tokens themselves: for the others nothing is looked at or written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, NamedTuple

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_files import SharedFiles, Table, key_of

_VERSION: Final = "1"
#: Conversation (or client), its tokens, when they were counted.
_ROW: Final = Struct("=8sQd")
_ROWS: Final = 4096
#: After this time a client counts as one that does not count tokens.
_WANTED_S: Final = 86_400.0


class Counted(NamedTuple):
    """A beginning of a conversation that an upstream counted.

    Attributes:
        messages: how many of the conversation's messages were in it.
    """

    messages: int
    tokens: int


class TokenCounts:
    """Remembers the exact counts of conversations.

    Args:
        files, boottime: as for `cooldown.Cooldowns`.
    """

    def __init__(
        self, files: SharedFiles | None, *, boottime: Callable[[], float] = boottime
    ) -> None:
        self._now = boottime
        self._table = Table(files, "tokens", _ROW, version=_VERSION, rows=_ROWS, age=2)

    def want(self, client: str) -> None:
        """Note that a client counts tokens: its next calls are remembered."""
        self.remember(key_of("wants", client), 0)

    def wanted(self, client: str) -> bool:
        """Whether a client counted tokens lately."""
        row = self._table.get(key_of("wants", client))
        return row is not None and 0 <= self._now() - row[2] < _WANTED_S

    def remember(self, conversation: bytes, tokens: int) -> None:
        """Record what an upstream counted."""
        self._table.put(conversation, tokens, self._now())

    def longest(self, beginnings: Sequence[bytes]) -> Counted | None:
        """The longest beginning of a conversation that was counted.

        Args:
            beginnings: the keys of its first message, its first two, and so on.
        """
        for messages in range(len(beginnings), 0, -1):
            if (row := self._table.get(beginnings[messages - 1])) is not None:
                return Counted(messages, row[1])
        return None
