"""The socket of a WebSocket: reads messages, and writes them whole, one after the other."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from qwen_wsgi import greenlets
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ClientGone
from qwen_wsgi.protocol.websocket.frames import Close, Frames, Ping, Text

#: Read at a time. Small frames cost 15 µs each, and 2700 of them fit into this.
_RECV_BYTES: Final = 16 * 1024

#: A client that takes no byte for this long is given up.
WRITE_S: Final = 60.0
#: How long the client's own close frame is waited for.
CLOSE_S: Final = 2.0


class Channel:
    """Messages over one client's socket.

    One greenlet reads, any may write. A write that was broken off leaves a part of a frame behind,
    so nothing can follow it.

    Args:
        sock: after the handshake.
        max_bytes: of a message.
        tick_s: how long `receive` waits at most.

    Attributes:
        heard_at: when something of the client came last; monotonic.
        told_at: when a message was written last.
    """

    def __init__(
        self,
        sock: socket.socket,
        clock: Clock,
        *,
        max_bytes: int,
        tick_s: float,
        write_s: float = WRITE_S,
    ) -> None:
        self._sock = sock
        self._clock = clock
        self._frames = Frames(max_bytes)
        self._write_s = write_s
        self._lock = greenlets.lock()
        self._broken = False
        # For reads and writes alike: a write counts how often it ran out.
        sock.settimeout(min(tick_s, write_s))
        self._listener = greenlets.Listener(sock)
        self.heard_at = self.told_at = clock.monotonic()

    @property
    def held(self) -> int:
        """The bytes of the message that is not complete yet."""
        return self._frames.held

    @property
    def is_broken(self) -> bool:
        """Whether the client cannot be told anything any more."""
        return self._broken

    def receive(self) -> Iterator[Text | Ping | Close]:
        """Wait for something of the client: nothing, if nothing came in time or `wake` was called.

        Raises:
            ClientGone: the connection is closed, or a write to it was broken off.
        """
        try:
            data = self._listener.recv(_RECV_BYTES)
        except OSError:
            data = b""
        if data == b"":
            self._broken = True
        if self._broken:
            raise ClientGone("the client closed the connection")
        # A client that sends faster than it is read would keep all others from running.
        greenlets.let_others_run()
        if data is None:
            return iter(())
        self.heard_at = self._clock.monotonic()
        return self._frames.receive(data)

    def wake(self) -> None:
        """Have a `receive` that waits return at once."""
        self._listener.wake()

    def send(self, messages: Iterable[bytes]) -> None:
        """Write messages.

        Raises:
            ClientGone: the connection is closed, or the client takes nothing.
        """
        with self._lock:
            self._check()
            self._write(b"".join(map(self._frames.text, messages)))
        self.told_at = self._clock.monotonic()

    def ping(self) -> None:
        """Ask the client for a sign of life; raises as `send`."""
        with self._lock:
            self._check()
            self._write(self._frames.ping())

    def pong(self, ping: Ping) -> None:
        """Answer a ping; raises as `send`."""
        with self._lock:
            self._check()
            self._write(self._frames.pong(ping))

    def raw(self, data: bytes) -> None:
        """Write bytes that are no frame: the answer to the handshake; raises as `send`."""
        with self._lock:
            self._write(data)

    def close(self, close: Close) -> None:
        """Send the close frame, and wait a moment for the client's; harmless when closed."""
        with suppress(ClientGone, OSError):
            with self._lock:
                if self._broken:
                    return
                self._write(self._frames.close(close))
                self._sock.shutdown(socket.SHUT_WR)
            self._drain()

    def _drain(self) -> None:
        """Read to the end: closing with bytes unread would reset the connection, and the client
        might lose the close frame."""
        self._sock.settimeout(CLOSE_S)
        until = self._clock.monotonic() + CLOSE_S
        while self._clock.monotonic() < until and self._listener.recv(_RECV_BYTES):
            pass

    def _check(self) -> None:
        if self._broken or not self._frames.is_open:
            raise ClientGone("the connection is closed")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        waited_s = 0.0
        try:
            while view:
                try:
                    sent = self._sock.send(view)
                except TimeoutError:
                    waited_s += self._sock.gettimeout() or self._write_s
                    if waited_s >= self._write_s:
                        raise
                else:
                    view, waited_s = view[sent:], 0.0
        except OSError as error:
            self._break()
            raise ClientGone("the client cannot be written to") from error
        except BaseException:
            self._break()
            raise

    def _break(self) -> None:
        self._broken = True
        # The reader may not see the end of the connection for a while: a client can close one
        # direction only, or take nothing and stay.
        self.wake()
