"""Hostile clients: what a stranger and a key holder can send, each as a function of one attack.

An attack returns the status that it got, or None if it left before one. It is bounded: what is slow
leaves after a second or two.
"""

from __future__ import annotations

import functools
import gzip
import json
import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from tests.attack.upstream import ANSWERS
from tests.kit import smuggling
from tests.kit.websocket_client import HANDSHAKE, frame

_MODEL: Final = "qwen3.7-plus"
#: How long an answer may take: longer than the proxy waits for an upstream.
_ANSWER_S: Final = 30.0
#: How long what is slow goes on.
_SLOW_S: Final = 1.5
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass(frozen=True)
class Aim:
    """Whom it is done to, and with which client key."""

    port: int
    key: str
    dice: random.Random


Attack = Callable[[Aim], int | None]


@contextmanager
def _connected(aim: Aim, *, small: bool = False) -> Iterator[socket.socket]:
    """A connection, which is reset at the end as often as it is closed."""
    with socket.socket() as sock:
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(_ANSWER_S)
        sock.connect(("127.0.0.1", aim.port))
        yield sock
        if aim.dice.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _head(aim: Aim, path: str, *lines: str, method: str = "POST") -> bytes:
    first = f"{method} {path} HTTP/1.1"
    own = ("Host: 127.0.0.1", f"Authorization: Bearer {aim.key}", "X-Qwen-Account: upstream")
    return "\r\n".join((first, *own, *lines, "", "")).encode("latin-1")


def _status(sock: socket.socket, *, to_the_end: bool = False) -> int | None:
    """The status of the answer; None if the connection ended without one.

    Raises:
        TimeoutError: there is none.
    """
    got = b""
    with suppress(ConnectionError):
        while data := sock.recv(65_536):
            got = (got + data)[-200_000:] if to_the_end else got + data
            if not to_the_end and b"\r\n\r\n" in got:
                break
    found = _STATUS.match(got)
    return int(found[1]) if found else None


def _send(sock: socket.socket, *pieces: bytes) -> None:
    """Send as much as is taken: who refuses a body need not read it."""
    with suppress(ConnectionError):
        for piece in pieces:
            sock.sendall(piece)


def _whole(aim: Aim, path: str, body: bytes, *lines: str) -> int | None:
    with _connected(aim) as sock:
        _send(sock, _head(aim, path, f"Content-Length: {len(body)}", *lines), body)
        return _status(sock)


# --- bodies --------------------------------------------------------------------------------------


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@functools.cache
def _bodies() -> tuple[tuple[str, bytes], ...]:
    """Paths and bodies that cost much in proportion to their size, or once did."""
    members = {f"member_{index}": 1 for index in range(60_000)}
    uses = [{"type": "tool_use", "id": f"t{n}", "name": "f", "input": {}} for n in range(19_000)]
    results = [{"type": "tool_result", "tool_use_id": f"t{n}"} for n in range(19_000)]
    chat = b'{"model":"%b","messages":[{"role":"user","content":"a"}],"x":' % _MODEL.encode()
    small = b",".join([b'{"role":"user","content":"a"}'] * 500_000)
    turns = [_user("hi"), {"role": "assistant", "content": uses}, _user(results)]
    return (
        ("/v1/responses", _dumped({"model": _MODEL, "input": "hi", **members})),
        ("/v1/messages", _dumped({"model": _MODEL, "messages": [_user("hi")], **members})),
        ("/v1/messages", _dumped({"model": _MODEL, "max_tokens": 9, "messages": turns})),
        ("/v1/messages/count_tokens", _dumped({"model": _MODEL, "messages": turns})),
        ("/v1/chat/completions", chat + b"[" + b",".join([b"[]"] * 5_000_000) + b"]}"),
        ("/v1/chat/completions", chat + b"[" * 400_000 + b"]" * 400_000 + b"}"),
        ("/v1/chat/completions", chat + b"9" * 4_000_000 + b"}"),
        ("/v1/chat/completions", chat + b'"' + b"\\u0061" * 3_000_000 + b'"}'),
        ("/v1/chat/completions", b'{"model":"m","messages":[' + small + b"]}"),
        ("/v1/chat/completions", _dumped({"model": _MODEL, "messages": [_user("a")] * 20_000})),
        ("/v1/responses", _dumped({"model": _MODEL, "input": [_user("a")] * 20_000})),
        ("/v1/completions", _dumped({"model": _MODEL, "prompt": ["a"] * 20_000, "n": 128})),
        ("/v1/embeddings", _dumped({"model": _MODEL, "input": ["a"] * 200_000})),
        ("/v1/embeddings", b'{"model":"m","input":"' + b"x" * 70_000_000 + b'"}'),
    )


def costly_bodies(aim: Aim) -> int | None:
    path, body = aim.dice.choice(_bodies())
    return _whole(aim, path, body)


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(b"[" * 100_000_000, compresslevel=1)


def compressed_bodies(aim: Aim) -> int | None:
    body = aim.dice.choice((_bomb(), _bomb()[:1000], b"\x1f\x8b" + b"x" * 100, gzip.compress(b"")))
    return _whole(aim, "/v1/chat/completions", body, "Content-Encoding: gzip")


def half_bodies(aim: Aim) -> int | None:
    """All the places that a key can have, with bodies that never come."""
    with ExitStack() as stack:
        for _ in range(24):
            sock = stack.enter_context(_connected(aim))
            _send(sock, _head(aim, "/v1/messages", "Content-Length: 1000"), b"{")
        time.sleep(_SLOW_S)
    return None


def trickling_bodies(aim: Aim) -> int | None:
    with _connected(aim) as sock:
        _send(sock, _head(aim, "/v1/responses", "Transfer-Encoding: chunked"))
        _trickle(sock, b"1\r\n{\r\n")
    return None


def _trickle(sock: socket.socket, piece: bytes) -> None:
    end_s = time.monotonic() + _SLOW_S
    with suppress(ConnectionError):
        while time.monotonic() < end_s:
            sock.sendall(piece)
            time.sleep(0.02)


def broken_chunks(aim: Aim) -> int | None:
    forms = (b"zz\r\n", b"-1\r\n\r\n", b"5\r\nhelloXX", b"f" * 20 + b"\r\n", b"1;" + b"x" * 99_999)
    with _connected(aim) as sock:
        start = _head(aim, "/v1/chat/completions", "Transfer-Encoding: chunked")
        _send(sock, start, aim.dice.choice(forms))
        sock.shutdown(socket.SHUT_WR)
        return _status(sock)


# --- heads ---------------------------------------------------------------------------------------


def smuggled_requests(aim: Aim) -> int | None:
    """The hidden request must not be answered."""
    with _connected(aim) as sock:
        _send(sock, smuggling.request(aim.dice.choice(list(smuggling.FORMS)), aim.key))
        got = b""
        with suppress(ConnectionError):
            while data := sock.recv(65_536):
                got += data
    assert got.count(b"HTTP/1.1 ") <= 1, got
    found = _STATUS.match(got)
    return int(found[1]) if found else None


def floods_of_headers(aim: Aim) -> int | None:
    flood = aim.dice.choice((b"X: y\r\n" * 50_000, b"X: " + b"y" * 500_000, b"\r\n" * 100_000))
    with _connected(aim) as sock:
        _send(sock, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", flood)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            return _status(sock)
    return None


def slow_heads(aim: Aim) -> int | None:
    with ExitStack() as stack:
        socks = [stack.enter_context(_connected(aim)) for _ in range(20)]
        for sock in socks[1:]:
            _send(sock, b"POST /v1/messages HT")
        _trickle(socks[0], b"G")
    return None


def random_bytes(aim: Aim) -> int | None:
    data = aim.dice.randbytes(aim.dice.randrange(5000))
    if aim.dice.random() < 0.7:
        good = bytearray(_head(aim, "/v1/chat/completions", "Content-Length: 2") + b"{}")
        for _ in range(aim.dice.randrange(1, 4)):
            good[aim.dice.randrange(len(good))] = aim.dice.randrange(256)
        data = bytes(good)
    with _connected(aim) as sock:
        _send(sock, data)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            return _status(sock)
    return None


def many_requests_at_once(aim: Aim) -> int | None:
    """One behind the other on a connection, none of which waits for an answer."""
    requests = _head(aim, "/v1/models", method="GET") * 100
    with _connected(aim, small=True) as sock:
        _send(sock, requests)
        time.sleep(aim.dice.random())
    return None


def odd_requests(aim: Aim) -> int | None:
    method = aim.dice.choice(("TRACE", "CONNECT", "OPTIONS", "PUT", "HEAD", "DELETE", "X" * 30))
    path = aim.dice.choice(
        ("/v1/responses/" + "x" * 3000, "*", "http://x/", "//", "/%00", "/v1/../status", "/?" * 999)
    )
    with _connected(aim) as sock:
        _send(sock, _head(aim, path, "Content-Length: 0", method=method))
        return _status(sock)


def callers_without_a_key(aim: Aim) -> int | None:
    with _connected(aim) as sock:
        stranger = Aim(aim.port, "x" * aim.dice.randrange(1, 5000), aim.dice)
        length = f"Content-Length: {aim.dice.choice((2, 60_000_000))}"
        _send(sock, _head(stranger, "/v1/responses", length), b"{}")
        return _status(sock)


# --- answers -------------------------------------------------------------------------------------


def _generation(aim: Aim, text: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """A path of one of the dialects, and a request."""
    both = {"model": _MODEL, "stream": stream}
    forms: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/chat/completions", {"messages": [_user(text)]}),
        ("/v1/messages", {"messages": [_user(text)], "max_tokens": 99}),
        ("/v1/responses", {"input": text}),
        ("/v1/completions", {"prompt": text}),
    )
    path, members = aim.dice.choice(forms)
    return path, {**both, **members}


def hostile_upstreams(aim: Aim) -> int | None:
    """Any dialect, streamed or whole, of an upstream that means harm."""
    name = aim.dice.choice(list(ANSWERS))
    stream = aim.dice.random() < 0.7
    path, members = _generation(aim, f"[[attack: {name}]]", stream=stream)
    body = _dumped(members)
    with _connected(aim) as sock:
        _send(sock, _head(aim, path, f"Content-Length: {len(body)}", "Connection: close"), body)
        if "without an end" not in name:
            return _status(sock, to_the_end=True)
        found = _status(sock)
        time.sleep(aim.dice.random())
        return found


def answers_that_nobody_reads(aim: Aim) -> int | None:
    path, members = _generation(aim, "[[attack: a stream without an end]]", stream=True)
    body = _dumped(members)
    with _connected(aim, small=True) as sock:
        _send(sock, _head(aim, path, f"Content-Length: {len(body)}"), body)
        time.sleep(_SLOW_S + aim.dice.random())
    return None


# --- WebSockets ----------------------------------------------------------------------------------


def _frames(dice: random.Random) -> bytes:
    create = {"type": "response.create", "model": _MODEL, "input": "[[attack: no JSON]]"}
    return dice.choice(
        (
            dice.randbytes(2000),
            b"\x89\x84\0\0\0\0ping" * 2000,
            b"\x81\xff" + struct.pack("!Q", 1 << 62) + bytes(4),
            b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 20_000,
            b"\x81\x05hello",
            frame(create) * 200,
            frame({"type": "response.create"}),
            frame([[]] * 100),
            b"\x88\x82\0\0\0\0\x03\xe8" * 100,
        )
    )


def floods_of_frames(aim: Aim) -> int | None:
    with ExitStack() as stack:
        socks = [stack.enter_context(_connected(aim)) for _ in range(4)]
        start = HANDSHAKE + f"Authorization: Bearer {aim.key}\r\n\r\n".encode()
        for sock in socks:
            _send(sock, start)
        found = [_status(sock) for sock in socks]
        for sock in socks:
            sock.settimeout(1.0)
            with suppress(OSError):  # it need not be read once it broke the rules
                sock.sendall(_frames(aim.dice))
                sock.recv(65_536)
        return max((each or 0 for each in found), default=None)


#: Each with how often it is made.
ATTACKS: Final[dict[Attack, int]] = {
    costly_bodies: 3,
    compressed_bodies: 1,
    half_bodies: 1,
    trickling_bodies: 1,
    broken_chunks: 2,
    smuggled_requests: 3,
    floods_of_headers: 2,
    slow_heads: 1,
    random_bytes: 4,
    many_requests_at_once: 1,
    odd_requests: 3,
    callers_without_a_key: 2,
    hostile_upstreams: 12,
    answers_that_nobody_reads: 1,
    floods_of_frames: 2,
}


def prepare() -> None:
    """Make the large bodies, which takes a second that is none of the proxy's."""
    _bodies()
    _bomb()
