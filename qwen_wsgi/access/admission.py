"""How many calls one worker serves at a time, and how many bytes of bodies it holds for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from qwen_wsgi.errors import Overloaded

#: Seconds after which a client may try again.
_RETRY_AFTER_S: Final = 1


@dataclass
class Admission:
    """Counts the calls in flight in this worker, and says no above the limits.

    gunicorn would let clients queue in silence instead. Not locked: greenlets switch at I/O only.

    Attributes:
        limit: calls.
        share: calls of one client, so that one key never takes all places; another number when
            keys come or go.
        limit_bytes: bytes of their bodies together; a body that is alone always has room. It is
            held until its call ends, since another account may have to be asked.
        draining: the worker stops; /health then says that it takes no more.
    """

    limit: int
    limit_bytes: int
    share: int
    in_flight: int = 0
    bytes_in_flight: int = 0
    draining: bool = False
    _by_client: dict[str, int] = field(default_factory=dict)

    def enter(self, client: str, body_bytes: int = 0) -> None:
        """Take a place, and room for a body of the declared length.

        Args:
            client: the id of the caller.

        Raises:
            Overloaded: there is none.
        """
        own = self._by_client.get(client, 0)
        if own >= self.share:
            raise _overloaded(
                f"Your key has {own} calls in flight, which is the share of one client."
            )
        if self.in_flight >= self.limit:
            raise _overloaded(
                f"The proxy is serving {self.in_flight} calls, which is its limit "
                "(QWEN_PROXY_MAX_IN_FLIGHT)."
            )
        if self.bytes_in_flight + body_bytes > self.limit_bytes:  # rarely, so without a call
            self._check_room(body_bytes)
        self.bytes_in_flight += body_bytes
        self.in_flight += 1
        self._by_client[client] = own + 1

    def take(self, count: int) -> None:
        """Take room for so many more bytes of a body.

        Raises:
            Overloaded: there is not as much.
        """
        self._check_room(count)
        self.bytes_in_flight += count

    def _check_room(self, count: int) -> None:
        if self.bytes_in_flight and self.bytes_in_flight + count > self.limit_bytes:
            raise _overloaded(
                f"The proxy holds {self.bytes_in_flight} bytes of request bodies and has no room "
                f"for {count} more (QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT)."
            )

    def leave(self, client: str, count: int = 0) -> None:
        """Give the place back, and the room of a body."""
        self.in_flight -= 1
        left = self._by_client[client] - 1
        if left:
            self._by_client[client] = left
        else:
            del self._by_client[client]
        self.bytes_in_flight -= count


def _overloaded(why: str) -> Overloaded:
    return Overloaded(
        f"{why} Please try again shortly.",
        type="overloaded_error",
        code="overloaded",
        retry_after_s=_RETRY_AFTER_S,
    )
