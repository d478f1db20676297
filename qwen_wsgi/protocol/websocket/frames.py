"""Turns the bytes of a WebSocket into messages, and messages into bytes (RFC 6455, section 5).

wsproto does it; here are the bound of a message, and the close codes for what is not served.
Compression (`permessage-deflate`) is not offered, so that no message can grow after it arrived.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from wsproto import events
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.frame_protocol import CloseReason

GOING_AWAY: Final = int(CloseReason.GOING_AWAY)
INTERNAL_ERROR: Final = int(CloseReason.INTERNAL_ERROR)
TRY_AGAIN_LATER: Final = int(CloseReason.TRY_AGAIN_LATER)


class Text(NamedTuple):
    """A whole text message."""

    data: bytes


class Ping(NamedTuple):
    """A ping, which is to be answered by a pong with the same payload."""

    payload: bytes


class Close(NamedTuple):
    """The close frame with which the connection is to end: the client sent one, or broke a rule."""

    code: int
    reason: str


class Frames:
    """Reads and renders the frames of one connection, as its server.

    Args:
        max_bytes: of a message, however it is divided into frames.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._connection = Connection(ConnectionType.SERVER)
        self._message = bytearray()

    @property
    def held(self) -> int:
        """The bytes of the message that is not complete yet."""
        return len(self._message)

    def receive(self, data: bytes) -> Iterator[Text | Ping | Close]:
        """Take what was received; nothing is returned after a `Close`."""
        self._connection.receive_data(data)
        for event in self._connection.events():
            found = self._event(event)
            if found is not None:
                yield found
            if isinstance(found, Close):
                return

    def _event(self, event: events.Event) -> Text | Ping | Close | None:
        if isinstance(event, events.TextMessage):
            return self._text(event)
        if isinstance(event, events.BytesMessage):
            return Close(int(CloseReason.UNSUPPORTED_DATA), "only text messages are served")
        if isinstance(event, events.Ping):
            return Ping(bytes(event.payload))
        if isinstance(event, events.CloseConnection):
            # wsproto reports what breaks a rule the same way, with the code for it.
            return Close(int(event.code), event.reason or "")
        return None

    def _text(self, event: events.TextMessage) -> Text | Close | None:
        self._message += event.data.encode()
        if len(self._message) > self._max_bytes:
            self._message.clear()
            return Close(
                int(CloseReason.MESSAGE_TOO_BIG), f"at most {self._max_bytes} bytes in a message"
            )
        if not event.message_finished:
            return None
        message = bytes(self._message)
        self._message.clear()
        return Text(message)

    # --- rendering; nothing may follow a close frame --------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        return self._connection.state is ConnectionState.OPEN

    def text(self, payload: bytes) -> bytes:
        """Render a text message; the payload is UTF-8."""
        return bytes(self._connection.send(events.TextMessage(data=payload.decode())))

    def ping(self) -> bytes:
        """Render a ping."""
        return bytes(self._connection.send(events.Ping()))

    def pong(self, ping: Ping) -> bytes:
        """Render the answer to a ping."""
        return bytes(self._connection.send(events.Pong(payload=ping.payload)))

    def close(self, close: Close) -> bytes:
        """Render the close frame; nothing if there was one."""
        if self._connection.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return b""
        if close.code == CloseReason.NO_STATUS_RCVD:
            # The client sent no code, so its answer has none; wsproto asks for its own name of it.
            event = events.CloseConnection(code=CloseReason.NO_STATUS_RCVD)
        else:
            event = events.CloseConnection(code=close.code, reason=close.reason or None)
        return bytes(self._connection.send(event))
