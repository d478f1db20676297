"""How many WebSockets one worker keeps open, and of each client; and how a stop ends them."""

from __future__ import annotations

from typing import Protocol

from qwen_wsgi.errors import ApiError, Overloaded
from qwen_wsgi.protocol.websocket import handshake


class Connection(Protocol):
    """An open WebSocket."""

    def stop(self) -> None:
        """End it when its responses are complete; does not wait for that."""


class Connections:
    """The open WebSockets of this worker. Not locked: greenlets switch at I/O only.

    A WebSocket holds a connection of the worker for up to an hour, mostly idle; a call in it takes
    its own place (`Admission`).

    Args:
        limit: of all; 0 allows none.
        per_client: of one client key.
    """

    def __init__(self, limit: int, per_client: int) -> None:
        self._limit = limit
        self._per_client = per_client
        self._open: dict[Connection, str] = {}
        #: Set while the worker stops.
        self.stopping = False

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: Connection, client: str) -> None:
        """Take a place, which `leave` gives back.

        Args:
            client: the id of the client that opens it.

        Raises:
            ApiError: 426: none is left, and the client can use HTTP.
            Overloaded: the worker stops.
        """
        if self._limit == 0:
            raise handshake.refused("WebSockets are not supported here.")
        if self.stopping:
            raise stopping()
        if len(self._open) >= self._limit:
            raise _reached(f"{self._limit} WebSockets (QWEN_PROXY_WEBSOCKETS)")
        if sum(each == client for each in self._open.values()) >= self._per_client:
            raise _reached(
                f"{self._per_client} WebSockets of one client key (QWEN_PROXY_WEBSOCKETS_PER_KEY)"
            )
        self._open[connection] = client

    def leave(self, connection: Connection) -> None:
        """Give a place back; harmless when repeated."""
        self._open.pop(connection, None)

    def stop(self) -> None:
        """End all of them, each when its responses are complete, and allow no more."""
        self.stopping = True
        for connection in list(self._open):
            connection.stop()


def stopping() -> Overloaded:
    """The refusal of a request to a worker that stops."""
    return Overloaded(
        "The proxy is being stopped or restarted. Please try again.",
        code="proxy_stopping",
        retry_after_s=1,
    )


def _reached(limit: str) -> ApiError:
    return handshake.refused(
        f"One process of this server keeps at most {limit} open.", code="websocket_limit_reached"
    )
