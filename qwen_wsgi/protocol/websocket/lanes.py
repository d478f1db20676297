"""Says which response of a connection is created when.

A `stream_id` names a lane. Within a lane one response comes after the other, in the order of the
requests; lanes run beside each other. The limits are OpenAI's, but for the length of the queue,
which has none there that is known.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

from qwen_wsgi.errors import ApiError, BadRequest

MOST_ACTIVE: Final = 16
MOST_NAMED: Final = 32
MOST_WAITING: Final = 64

T = TypeVar("T")


class Lanes(Generic[T]):
    """The requests of one connection: those that run, and those that wait."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._running: set[str | None] = set()
        self._waiting: deque[tuple[str | None, T]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a response is being created."""
        return bool(self._running)

    def add(self, stream_id: str | None, request: T) -> None:
        """Queue a request.

        Raises:
            BadRequest: a name too many.
            ApiError: 429: too many requests wait.
        """
        if stream_id is not None and stream_id not in self._named:
            if len(self._named) >= MOST_NAMED:
                raise BadRequest(
                    "This WebSocket connection has reached its maximum number of distinct stream "
                    f"IDs ({MOST_NAMED}). Reuse an existing stream_id or open a new WebSocket "
                    "connection.",
                    param="stream_id",
                    code="websocket_stream_limit_reached",
                )
            self._named.add(stream_id)
        if len(self._waiting) >= MOST_WAITING:
            raise full(f"{MOST_WAITING} requests")
        self._waiting.append((stream_id, request))

    def next(self) -> tuple[str | None, T] | None:
        """Take the request that may run now, if there is one; `done` ends it."""
        if len(self._running) >= MOST_ACTIVE:
            return None
        for index, (stream_id, request) in enumerate(self._waiting):
            if stream_id not in self._running:
                del self._waiting[index]
                self._running.add(stream_id)
                return stream_id, request
        return None

    def done(self, stream_id: str | None) -> None:
        """End the request of a lane."""
        self._running.discard(stream_id)

    def clear(self) -> list[tuple[str | None, T]]:
        """Take out all requests that wait."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting


def full(what: str) -> ApiError:
    """The refusal of a request because `what` wait already."""
    return ApiError(
        f"{what} of this WebSocket connection wait already. Wait for a response to complete, or "
        "open another connection.",
        status=429,
        type="rate_limit_error",
        code="too_many_queued_requests",
    )
