"""A bounded number of calls to an account at the same time, and a fair queue in front of it."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from types import TracebackType
from typing import Final

from qwen_wsgi.errors import Overloaded

#: `Retry-After` when the queue is full. Seconds.
_RETRY_AFTER_S: Final = 2.0


class Limiter:
    """The slots of one account in this worker.

    Clients that wait take turns: however many calls of one client wait, the next client gets the
    next slot. Not locked: greenlets switch at I/O only.

    Args:
        slots: calls at a time; 0 is no limit.
        queue: calls that may wait for a slot.

    Attributes:
        in_flight: slots that are taken.
        waiting: calls in the queue.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self._slots = slots
        self._queue = queue
        self._turns: OrderedDict[str, deque[threading.Event]] = OrderedDict()
        self.in_flight = 0
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether a call that comes now has to wait."""
        return bool(self._slots) and self.in_flight >= self._slots

    def take(self) -> Slot | None:
        """Take a slot; None if a call that comes now has to wait."""
        if self._slots and self.in_flight >= self._slots:
            return None
        slot = Slot(self)
        self.in_flight += 1
        return slot

    def acquire(self, client: str, timeout_s: float) -> Slot:
        """Take a slot, after a wait of at most `timeout_s` if none is free.

        Raises:
            Overloaded: the queue is full, or no slot came free in time.
        """
        if (slot := self.take()) is not None:
            return slot
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
                self.release()  # the slot came in the same moment
            else:
                self._leave_queue(client, turn)
            raise
        return Slot(self)

    def release(self) -> None:
        """Free a slot, or hand it to the call whose turn it is."""
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

    def _leave_queue(self, client: str, turn: threading.Event) -> None:
        turns = self._turns[client]
        turns.remove(turn)
        self.waiting -= 1
        if not turns:
            del self._turns[client]


class Slot:
    """One slot of an account; released at the end of its `with` block, unless it was kept.

    A stream keeps its slot beyond the block in which it was opened, and releases it when it closes.

    Attributes:
        began: when its attempt began, by `Cooldowns.now`.
        probed: the key of the host that the attempt probes, or empty.
    """

    __slots__ = ("_limiter", "began", "kept", "probed")

    def __init__(self, limiter: Limiter) -> None:
        self._limiter: Limiter | None = limiter
        self.kept = False
        self.began = 0.0
        self.probed = b""

    def keep(self) -> Slot:
        """Leave it to the caller to `release` the slot."""
        self.kept = True
        return self

    def release(self) -> None:
        """Free it; harmless when repeated."""
        limiter, self._limiter = self._limiter, None
        if limiter is None:
            return
        if limiter.waiting:
            limiter.release()
        else:
            limiter.in_flight -= 1

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None or not self.kept:
            self.release()


def _full(why: str) -> Overloaded:
    return Overloaded(
        "The upstream account has as many calls in flight as it may have "
        f"(QWEN_PROXY_ACCOUNT_IN_FLIGHT), {why}. Please try again shortly.",
        type="overloaded_error",
        code="overloaded",
        retry_after_s=_RETRY_AFTER_S,
    )
