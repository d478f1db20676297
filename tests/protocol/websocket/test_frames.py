"""Frames: messages however they are cut and divided, their bound, and what breaks the rules."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import events
from wsproto.connection import Connection, ConnectionType

from qwen_wsgi.protocol.websocket.frames import Close, Frames, Ping, Text
from tests.kit.feeding import random_cuts, ways_to_cut

MAX = 1000


class Client:
    """The other side."""

    def __init__(self) -> None:
        self._connection = Connection(ConnectionType.CLIENT)

    def text(self, *fragments: str) -> bytes:
        """A message, divided into so many frames."""
        last = len(fragments) - 1
        return b"".join(
            self._connection.send(events.TextMessage(data=text, message_finished=at == last))
            for at, text in enumerate(fragments)
        )

    def send(self, event: events.Event) -> bytes:
        return bytes(self._connection.send(event))

    def reads(self, data: bytes) -> list[events.Event]:
        self._connection.receive_data(data)
        return list(self._connection.events())


def raw(
    opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, rsv1: bool = False
) -> bytes:
    """A frame by its bits; its mask changes nothing."""
    first = opcode | (0x80 if fin else 0) | (0x40 if rsv1 else 0)
    mask = b"\0\0\0\0" if masked else b""
    length = len(payload)
    if length < 126:
        size = bytes([length | (0x80 if masked else 0)])
    else:
        size = bytes([126 | (0x80 if masked else 0)]) + struct.pack("!H", length)
    return bytes([first]) + size + mask + payload


def received(data: bytes, *, max_bytes: int = MAX) -> list[Text | Ping | Close]:
    return list(Frames(max_bytes).receive(data))


def test_messages_arrive_whole_however_they_are_cut() -> None:
    client = Client()
    data = client.text("grüß ", "dich ✓") + client.send(events.Ping(b"?")) + client.text("{}")
    for name, pieces in ways_to_cut(data):
        frames = Frames(MAX)
        found = [event for piece in pieces for event in frames.receive(piece)]
        assert found == [Text("grüß dich ✓".encode()), Ping(b"?"), Text(b"{}")], name
        assert frames.held == 0


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.data())
def test_a_message_is_its_fragments_put_together(fragments: list[str], draw: st.DataObject) -> None:
    data = Client().text(*fragments)
    frames = Frames(100_000)

    pieces = draw.draw(random_cuts(data))

    found = [event for piece in pieces for event in frames.receive(piece)]
    assert found == [Text("".join(fragments).encode())]


def test_control_frames_may_come_between_fragments() -> None:
    data = raw(1, b"a", fin=False) + raw(9, b"now") + raw(0, b"b")

    assert received(data) == [Ping(b"now"), Text(b"ab")]


def test_a_message_of_the_largest_size_is_taken() -> None:
    assert received(Client().text("x" * MAX)) == [Text(b"x" * MAX)]


@pytest.mark.parametrize("fragments", [("x" * (MAX + 1),), ("x" * 600, "x" * 600), ("✓" * 400,)])
def test_a_larger_one_ends_the_connection(fragments: tuple[str, ...]) -> None:
    (close,) = received(Client().text(*fragments))

    assert close == Close(1009, "at most 1000 bytes in a message")


def test_a_message_too_large_is_noticed_before_it_is_there() -> None:
    frames = Frames(MAX)
    head = bytes([0x81, 0x80 | 127]) + struct.pack("!Q", 1 << 40) + b"\0\0\0\0"

    assert list(frames.receive(head + b"x" * 900)) == []
    assert frames.held == 900
    (close,) = frames.receive(b"x" * 900)

    assert isinstance(close, Close)
    assert close.code == 1009
    assert frames.held == 0


def test_many_empty_fragments_are_held_as_nothing() -> None:
    frames = Frames(MAX)
    assert list(frames.receive(raw(1, b"", fin=False))) == []
    for _ in range(1000):
        assert list(frames.receive(raw(0, b"", fin=False))) == []

    assert frames.held == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (raw(2, b"\x00\x01"), 1003),
        (raw(1, b"\xff\xfe"), 1007),
        (raw(1, b"\xc3", fin=False) + raw(0, b"("), 1007),
        (raw(1, b"a", masked=False), 1002),
        (raw(3, b"a"), 1002),
        (raw(0, b"a"), 1002),
        (raw(1, b"a", fin=False) + raw(1, b"b"), 1002),
        (raw(9, b"x" * 126), 1002),
        (raw(9, b"x", fin=False), 1002),
        (raw(8, b"x"), 1002),
        (raw(1, zlib.compress(b"a"), rsv1=True), 1002),
    ],
)
def test_what_breaks_the_rules_ends_the_connection(data: bytes, code: int) -> None:
    close = received(data)[-1]

    assert isinstance(close, Close)
    assert close.code == code


def test_nothing_is_read_behind_a_close() -> None:
    assert received(raw(8, struct.pack("!H", 1000) + b"bye") + raw(1, b"more")) == [
        Close(1000, "bye")
    ]


@pytest.mark.parametrize("payload", [b"", struct.pack("!H", 1000) + b"bye"])
def test_the_clients_close_is_answered_by_the_same(payload: bytes) -> None:
    frames = Frames(MAX)
    (close,) = frames.receive(raw(8, payload))
    assert isinstance(close, Close)

    assert frames.close(close) == bytes([0x88, len(payload)]) + payload
    assert not frames.is_open
    assert frames.close(close) == b""


def test_what_is_sent_is_read_by_a_client() -> None:
    frames, client = Frames(MAX), Client()

    found = client.reads(
        frames.text('{"ü": 1}'.encode())
        + frames.ping()
        + frames.pong(Ping(b"?"))
        + frames.close(Close(1001, "stop"))
    )

    assert found == [
        events.TextMessage(data='{"ü": 1}'),
        events.Ping(),
        events.Pong(payload=b"?"),
        events.CloseConnection(code=1001, reason="stop"),
    ]
    assert not frames.is_open
