"""The calls of this worker that have ended lately, kept while somebody watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from qwen_wsgi.state.database.calls import CallRow

#: How long it goes on after a question: a page asks each second.
WATCHED_S: Final = 5.0
#: Of one worker between two questions; of more the last ones are told.
MOST: Final = 200


class Recent:
    """Rows of the ledger, for pages that show them at once: without a question nothing is kept.

    Args:
        monotonic: the same clock in all processes.

    Attributes:
        until_s: how long somebody watches; 0.0: nobody does.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.until_s = 0.0
        self._rows: deque[tuple[float, CallRow]] = deque(maxlen=MOST)

    @property
    def is_watched(self) -> bool:
        """Whether somebody has asked within the last seconds."""
        if not self.until_s:
            return False
        if self._monotonic() < self.until_s:
            return True
        self.until_s = 0.0
        self._rows.clear()
        return False

    def add(self, row: CallRow) -> None:
        """A call has ended."""
        self._rows.append((self._monotonic(), row))

    def between(self, since: float, until: float) -> list[CallRow]:
        """The calls that have ended from the first time on, before the second one. From now on
        calls are kept for the next question."""
        self.until_s = self._monotonic() + WATCHED_S
        while self._rows and self._rows[0][0] <= since - WATCHED_S:
            self._rows.popleft()
        return [row for at, row in self._rows if since <= at < until]
