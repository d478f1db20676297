"""A bounded number of calls at an account at a time, and a fair queue in front of it."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Final

from qwen_wsgi.errors import Overloaded

#: What a client is told to wait when the queue is full. Seconds.
_RETRY_AFTER_S: Final = 2.0


class Limiter:
    """The places at one account in this worker.

    Clients that wait take turns: who has sent a hundred calls gets one place, then the next client
    gets one. Not locked: greenlets switch at I/O only.

    Args:
        places: calls at a time; 0 is no limit.
        queue: calls that may wait for a place.

    Attributes:
        in_flight: places that are taken.
        waiting: calls in the queue.
    """

    def __init__(self, places: int, queue: int) -> None:
        self._places = places
        self._queue = queue
        self._turns: OrderedDict[str, deque[threading.Event]] = OrderedDict()
        self.in_flight = 0
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether a call that comes now has to wait."""
        return bool(self._places) and self.in_flight >= self._places

    def enter(self, client: str, timeout_s: float) -> Slot:
        """Take a place, after a wait of at most `timeout_s` if there is none.

        Raises:
            Overloaded: the queue is full, or no place came free in time.
        """
        if not self.is_full:
            self.in_flight += 1
            return Slot(self)
        if self.waiting >= self._queue:
            raise _full(f"and {self.waiting} calls wait for it already")
        turn = threading.Event()
        self._turns.setdefault(client, deque()).append(turn)
        self.waiting += 1
        try:
            if not turn.wait(timeout_s):
                raise _full(f"and none of them ended within {timeout_s:.0f} s")
        except BaseException:  # also the client's going away
            if turn.is_set():
                self.leave()  # the place came in the same moment
            else:
                self._give_up(client, turn)
            raise
        return Slot(self)

    def leave(self) -> None:
        """Give a place back, or to whoever's turn it is."""
        if not self._turns:
            self.in_flight -= 1
            return
        client, turns = next(iter(self._turns.items()))
        turn = turns.popleft()
        self.waiting -= 1
        if turns:
            self._turns.move_to_end(client)
        else:
            del self._turns[client]
        turn.set()

    def _give_up(self, client: str, turn: threading.Event) -> None:
        turns = self._turns[client]
        turns.remove(turn)
        self.waiting -= 1
        if not turns:
            del self._turns[client]


class Slot:
    """One place at an account, until it is left."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Limiter) -> None:
        self._gate: Limiter | None = gate

    def leave(self) -> None:
        """Give it back; harmless when repeated."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave()


def _full(why: str) -> Overloaded:
    return Overloaded(
        "The upstream account has as many calls in flight as it may have "
        f"(QWEN_PROXY_ACCOUNT_IN_FLIGHT), {why}. Please try again shortly.",
        type="overloaded_error",
        code="overloaded",
        retry_after_s=_RETRY_AFTER_S,
    )
