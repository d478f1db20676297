"""The socket of a WebSocket: whole messages, clients that read slowly, and its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from wsproto import events
from wsproto.connection import Connection, ConnectionType

from qwen_wsgi.api.websocket.channel import Channel
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.errors import ClientGone
from qwen_wsgi.protocol.websocket.frames import Close, Ping, Text

PATIENCE_S = 10


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """The server's socket and the client's."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.settimeout(PATIENCE_S)
    yield ours, theirs
    ours.close()
    theirs.close()


def channel_of(ours: Any, *, tick_s: float = PATIENCE_S, write_s: float = PATIENCE_S) -> Channel:
    return Channel(ours, SystemClock(), max_bytes=1000, tick_s=tick_s, write_s=write_s)


def client_frame(event: events.Event) -> bytes:
    return bytes(Connection(ConnectionType.CLIENT).send(event))


def test_what_was_received() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = channel_of(ours, tick_s=0.05)
        assert list(channel.receive()) == []
        theirs.sendall(client_frame(events.TextMessage(data="hello")))
        theirs.sendall(client_frame(events.Ping(b"?")))
        assert list(channel.receive()) == [Text(b"hello"), Ping(b"?")]
        theirs.close()
        with pytest.raises(ClientGone):
            channel.receive()


def test_a_read_that_waits_can_be_woken(pair: tuple[Any, Any]) -> None:
    channel = channel_of(pair[0])
    found: list[list[Any]] = []
    reader = gevent.spawn(lambda: found.append(list(channel.receive())))
    gevent.sleep(0.05)
    assert found == []

    channel.wake()
    reader.join(PATIENCE_S)

    assert found == [[]]
    # Nobody reads: nothing happens.
    channel.wake()
    gevent.sleep(0.01)


def test_messages_of_many_greenlets_are_not_mixed(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    channel = channel_of(ours)
    texts = [str(number) * 30_000 for number in range(5)]
    writers = [gevent.spawn(channel.send, [text.encode()]) for text in texts]
    reader = Connection(ConnectionType.CLIENT)
    found: list[str] = []
    piece = ""
    while len(found) < len(texts):
        reader.receive_data(theirs.recv(1000))
        for event in reader.events():
            assert isinstance(event, events.TextMessage)
            piece += event.data
            if event.message_finished:
                found.append(piece)
                piece = ""

    gevent.joinall(writers, timeout=PATIENCE_S, raise_error=True)
    assert sorted(found) == texts


def test_a_client_that_takes_nothing_is_given_up(pair: tuple[Any, Any]) -> None:
    channel = channel_of(pair[0], tick_s=0.05, write_s=0.2)

    with pytest.raises(ClientGone), gevent.Timeout(PATIENCE_S):
        channel.send([b"x" * 1_000_000])
    # A part of a frame is out: nothing may follow it.
    with pytest.raises(ClientGone):
        channel.send([b"more"])
    with pytest.raises(ClientGone):
        channel.ping()
    with pytest.raises(ClientGone):
        channel.pong(Ping(b""))
    channel.close(Close(1001, "stop"))


def test_a_client_that_reads_slowly_is_not(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    channel = channel_of(ours, tick_s=0.05, write_s=0.2)
    writer = gevent.spawn(channel.send, [b"x" * 100_000])
    received = 0
    while received < 100_000:
        gevent.sleep(0.03)
        received += len(theirs.recv(20_000))

    writer.join(PATIENCE_S)
    assert writer.successful()


def test_a_write_that_is_broken_off_leaves_the_connection_unusable(pair: tuple[Any, Any]) -> None:
    channel = channel_of(pair[0])
    writer = gevent.spawn(channel.send, [b"x" * 1_000_000])
    gevent.sleep(0.05)

    writer.kill()

    with pytest.raises(ClientGone):
        channel.send([b"more"])


def test_the_end_is_told_and_waits_for_the_clients(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    channel = channel_of(ours)
    closer = gevent.spawn(channel.close, Close(1001, "stop"))
    reader = Connection(ConnectionType.CLIENT)
    data = theirs.recv(1000)
    reader.receive_data(data)
    (event,) = reader.events()
    assert event == events.CloseConnection(code=1001, reason="stop")
    assert not closer.dead
    theirs.sendall(reader.send(event.response()))
    theirs.close()
    closer.join(PATIENCE_S)

    assert closer.successful()
    with pytest.raises(ClientGone):
        channel.send([b"more"])
