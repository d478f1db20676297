"""A hostile upstream: answers with whatever does most harm, as the request's text asks.

`[[attack: NAME]]` in a request's body chooses a row of `ANSWERS`. In a process of its own: prints
its port, and serves until its standard input ends. No answer goes on for longer than `_LONGEST_S`.
"""

from __future__ import annotations

import gzip
import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tests.fakes.raw_server import Answer, Gone, Peer, chunked, head, stream, whole

_LONGEST_S: Final = 20.0
_WAIT_S: Final = 10.0

_CHUNKED: Final = head(content_type="text/event-stream", transfer_encoding="chunked")
_CHUNK: Final = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
_FINISH: Final = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
_MEBIBYTE: Final = bytes(1 << 20)
_BOMB: Final = gzip.compress(bytes(200_000_000), compresslevel=1)
_PACKED: Final = gzip.compress(_CHUNK + _FINISH)


def _again(before: bytes, piece: bytes, pause_s: float = 0.0) -> Callable[[Peer], None]:
    """The same piece again and again, until the proxy goes or the time is over."""

    def answer(peer: Peer) -> None:
        end_s = time.monotonic() + _LONGEST_S
        peer.send(before)
        while time.monotonic() < end_s:
            peer.send(piece)
            time.sleep(pause_s)
        peer.close()

    return answer


def _then(data: bytes, how: Callable[[Peer], None]) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        peer.send(data)
        how(peer)

    return answer


def _calls(count: int) -> bytes:
    call = b'{"index":%d,"id":"t%d","type":"function","function":{"name":"f","arguments":"{}"}}'
    calls = b",".join(call % (number, number) for number in range(count))
    return b'data: {"choices":[{"index":0,"delta":{"tool_calls":[' + calls + b"]}}]}\n\n"


def _large(size: int) -> Callable[[Peer], None]:
    """A whole answer of so many bytes, as far as anybody takes it."""

    def answer(peer: Peer) -> None:
        peer.send(head(content_type="application/json", content_length=str(size)))
        for _ in range(size >> 20):
            peer.send(_MEBIBYTE)

    return answer


def _whole(content: bytes, more: bytes = b"") -> bytes:
    """A whole answer with a content, which is written as JSON, and more choices."""
    choice = b'{"index":0,"message":{"role":"assistant","content":%b},"finish_reason":"stop"}'
    return whole(b'{"id":"c","choices":[' + more + choice % content + b"]}")


#: What is answered: bytes, or a script.
ANSWERS: dict[str, Answer] = {
    # Framing.
    "bytes behind a gzip": head(content_encoding="gzip", content_length="9999")
    + _PACKED
    + b"x" * (9999 - len(_PACKED)),
    "a gzip bomb": whole(_BOMB, content_encoding="gzip"),
    "a gzip bomb as events": whole(
        _BOMB, content_type="text/event-stream", content_encoding="gzip"
    ),
    "half a gzip": whole(_PACKED[:30], content_encoding="gzip"),
    "empty gzips": whole(gzip.compress(b"") * 5000, content_encoding="gzip"),
    "no chunks": _CHUNKED + b"zz\r\nhello\r\n",
    "a chunk too long": _CHUNKED + b"5\r\nhello world\r\n0\r\n\r\n",
    "a negative chunk": _CHUNKED + b"-5\r\nhello\r\n",
    "an endless size": _again(_CHUNKED + b"5;", b"x" * 1000),
    "endless trailers": _again(_CHUNKED + b"0\r\n", b"X-Trailer: x\r\n"),
    "two lengths": head(content_length="5, 6") + b"hello",
    "an answer behind the answer": whole(b"{}") * 2,
    # Heads.
    "a head that trickles": _again(b"", b"H", 0.05),
    "a header that trickles": _again(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
    "an endless head": _again(b"HTTP/1.1 200 OK\r\n", b"X-Header: x\r\n"),
    "endless interim answers": _again(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a NUL in a header": head(x_request_id="a\0b", content_length="2") + b"{}",
    "a forged header": head(x_request_id="a\nX: b", content_length="2") + b"{}",
    "no HTTP": b"<html>no</html>\r\n\r\n",
    "a status of zero": b"HTTP/1.1 000 No\r\ncontent-length: 0\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 9999 + b"\r\n",
    "a long id": head(x_request_id="x" * 9000, content_length="2") + b"{}",
    # Time and size.
    "a body that trickles": _again(head(content_length="100000"), b"x", 0.05),
    "a stream that trickles": _again(_CHUNKED, b"1\r\nd\r\n", 0.05),
    "comments without an end": _again(_CHUNKED, chunked(b": x\n\n", end=False), 0.01),
    "a stream without an end": _again(_CHUNKED, chunked(_CHUNK * 20, end=False), 0.002),
    "500 MB": _large(500_000_000),
    "500 MB without a length": _again(head(connection="close"), _MEBIBYTE),
    "a long whole text": _whole(b'"' + b"x" * 15_000_000 + b'"'),
    "a long text that one character makes wide": _whole(
        b'"' + b"x" * 15_000_000 + "\N{GRINNING FACE}".encode() + b'"'
    ),
    "millions of small values": _whole(b"[" + b"[]," * 5_000_000 + b"0]"),
    "many long choices": _whole(b'"a"', b'{"index":0},' * 1_000_000),
    "a refusal of 500 MB": _again(
        head("400 Bad Request", content_type="application/json", connection="close"), _MEBIBYTE
    ),
    "a huge event": _again(_CHUNKED, chunked(b"data: " + b"x" * 500_000, end=False)),
    "a huge text": stream(
        b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 3_000_000 + b'"}}]}\n\n'
    ),
    # Events.
    "many calls": stream(_calls(5000), _FINISH),
    "many choices": stream(*(_CHUNK.replace(b":0", b":%d" % n) for n in range(2000))),
    "deep JSON": stream(b'data: {"choices":' + b"[" * 200_000 + b"\n\n"),
    "a long number": stream(b'data: {"choices":[{"index":' + b"9" * 100_000 + b"}]}\n\n"),
    "other types": stream(b'data: {"choices":{"a":1},"usage":[1],"error":0}\n\n', b"data: 5\n\n"),
    "no UTF-8": stream(b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n'),
    "no events": stream(b"\0\1\2\3" * 20_000),
    "no JSON": whole(b"{" * 100_000),
    "an error of megabytes": whole(b"x" * 5_000_000, "502 Bad Gateway"),
    # Ends.
    "closed at once": lambda peer: peer.close(),
    "reset at once": lambda peer: peer.reset(),
    "closed within a stream": _then(_CHUNKED + chunked(_CHUNK, end=False), Peer.close),
    "reset within a stream": _then(_CHUNKED + chunked(_CHUNK, end=False), Peer.reset),
    "no end of a stream": stream(_CHUNK),
}

_CHOSEN: Final = re.compile(rb"\[\[attack: ([^\]]+)\]\]")
_MODELS: Final = whole(b'{"object":"list","data":[{"id":"qwen3.7-plus","object":"model"}]}')


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.settimeout(_WAIT_S)
        peer = Peer(self.request, 0)
        with suppress(Gone, OSError):
            while not peer.closed and (request := peer.read_request()):
                chosen = _CHOSEN.findall(request)
                answer = ANSWERS[chosen[-1].decode()] if chosen else _MODELS
                if isinstance(answer, bytes):
                    peer.send(answer)
                else:
                    answer(peer)
        if not peer.closed:
            peer.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


def main() -> None:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
