"""gunicorn's own request, environ and answer are what ours are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.exchange import Answer, ClientParser, Surroundings
from qwen_wsgi.heads import Heads, Key
from qwen_wsgi.protocol.sse import PASSAGE, LastPiece

PEER = ("203.0.113.9", 4711)
LISTENER = ("127.0.0.1", 8080)

REQUESTS = {
    "plain": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    "query": b"GET /v1/models?limit=2&after=%41 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    "percent": b"GET /v1/files/%C3%A4%2Fb HTTP/1.1\r\nHost: a\r\n\r\n",
    "repeated": b"GET / HTTP/1.1\r\nHost: a\r\nAccept: x\r\nAccept: y\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    "old": b"GET / HTTP/1.0\r\nContent-Type: text/plain\r\n\r\n",
    "chunked": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "scheme": b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n",
    "whole": b"GET http://b/path HTTP/1.1\r\nHost: b\r\n\r\n",
}

#: Ours have none, or an own one.
NOT_COMPARED = {"wsgi.errors", "wsgi.input", "wsgi.file_wrapper", "wsgi.early_hints"}
NOT_COMPARED |= {"gunicorn.socket", "wsgi.multithread"}


class Source:
    """A client's socket: what it sends, and what it was sent."""

    def __init__(self, sent: bytes) -> None:
        self._left = sent
        self.got = b""

    def recv(self, size: int) -> bytes:
        data, self._left = self._left[:size], self._left[size:]
        return data

    def recv_into(self, memory: memoryview) -> int:
        data = self.recv(len(memory))
        memory[: len(data)] = data
        return len(data)

    def await_request(self) -> None:
        """There is always something."""

    def sendall(self, data: bytes) -> None:
        self.got += data

    send = send_whole = sendall


def parser(kind: Any, sent: bytes, peer: Any = PEER) -> Any:
    own = [Heads()] if kind is ClientParser else []
    return kind(config(), Source(sent), peer, *own)


def config(**changed: Any) -> Any:
    made: Any = Config()
    for name, value in changed.items():
        made.set(name, value)
    return made


@pytest.mark.parametrize("trusted", ["203.0.113.0/24", ""])
@pytest.mark.parametrize("request_of", REQUESTS)
def test_the_environ_is_gunicorns(request_of: str, trusted: str) -> None:
    cfg = config(forwarded_allow_ips=trusted, workers=2)
    source: Any = Source(REQUESTS[request_of])
    theirs: Any = next(RequestParser(cfg, source, PEER))
    theirs.proxy_protocol_info = {}
    source = Source(REQUESTS[request_of])
    ours: Any = next(ClientParser(cfg, source, PEER, Heads()))

    _, expected = wsgi.create(theirs, source, PEER, LISTENER, cfg)
    found = Surroundings(source, PEER, LISTENER, workers=2).of(ours)

    for name in NOT_COMPARED:
        expected.pop(name, None)
        found.pop(name, None)
    assert found == expected
    assert ours.body.read() == theirs.body.read()


@pytest.mark.parametrize("host", [b"", b"Host: box\r\n", b"Host: box:81\r\n"])
def test_a_socket_that_is_a_file_has_the_name_that_its_client_says(host: bytes) -> None:
    request = next(parser(ClientParser, b"GET / HTTP/1.1\r\n" + host + b"\r\n", ""))
    request.proxy_protocol_info = {}
    source: Any = Source(b"")

    _, expected = wsgi.create(request, source, "", "/run/x.sock", config())
    found = Surroundings(source, "", "/run/x.sock", workers=1).of(request)

    assert found["SERVER_PORT"] == expected["SERVER_PORT"]
    assert found["REMOTE_ADDR"] == expected["REMOTE_ADDR"]
    if host:
        assert found["SERVER_NAME"] == expected["SERVER_NAME"]


HEADERS = {
    "plain": [("content-type", "text/plain"), ("x-a", "b c")],
    "length": [("Content-Length", "5"), ("x-a", "b")],
    "hops": [("Connection", "close"), ("Server", "mine"), ("Date", "never"), ("x-a", "b")],
    "odd values": [("x-empty", ""), ("x-spaces", " b "), ("x-latin", "\xe4")],
}


@pytest.mark.parametrize("request_of", ["plain", "old"])
@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "503 Service Unavailable"])
@pytest.mark.parametrize("headers", HEADERS)
def test_the_answer_is_gunicorns(headers: str, status: str, request_of: str) -> None:
    sent = []
    for kind in (wsgi.Response, Answer):
        source: Any = Source(REQUESTS[request_of])
        request: Any = next(RequestParser(config(), source, PEER))
        answer: Any = kind(request, source, config())
        answer.start_response(status, HEADERS[headers])
        for piece in (b"hello", b"", b"x" * 20):
            answer.write(piece)
        answer.close()
        head, _, body = source.got.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Date: ")]
        sent.append((lines, body, answer.should_close()))
    assert sent[0] == sent[1]


@pytest.mark.parametrize("header", [("x a", "b"), ("x-a", "b\r\nc: d"), ("x-a\n", "b"), ("", "b")])
def test_headers_that_are_none_are_refused(header: tuple[str, str]) -> None:
    source: Any = Source(REQUESTS["plain"])
    request: Any = next(RequestParser(config(), source, PEER))
    with pytest.raises(Exception, match="."):
        Answer(request, source, config()).start_response("200 OK", [header])
    assert source.got == b""


class FullSocket(Source):
    """A client's socket that takes so many bytes at a time."""

    takes = 1000

    def sends_at_once(self) -> Callable[[bytes], int]:
        def send(data: bytes) -> int:
            if not self.takes:
                raise BlockingIOError
            self.got += data[: self.takes]
            return min(len(data), self.takes)

        return send


def begun(request_of: str = "plain") -> tuple[FullSocket, Any, dict[str, Any]]:
    source: Any = FullSocket(REQUESTS[request_of])
    answer = Answer(next(RequestParser(config(), source, PEER)), source, config())
    environ: dict[str, Any] = {}
    answer.offer_passage(environ)
    answer.start_response("200 OK", [("content-type", "text/event-stream")])
    return source, answer, environ


def test_a_piece_that_is_passed_is_a_chunk_like_those_that_are_written() -> None:
    source, answer, environ = begun()
    assert environ[PASSAGE]() is None, "the head comes first"
    answer.write(b"one")

    send = environ[PASSAGE]()
    assert send(b"two") is True
    answer.write(LastPiece(b"three"))
    assert send(b"four") is False, "it would be read as the next answer"

    assert source.got.partition(b"\r\n\r\n")[2] == (
        b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"
    )
    assert environ[PASSAGE]() is None, "after the end there is nothing to pass"


def test_an_answer_without_chunks_has_no_passage() -> None:
    source, answer, environ = begun("old")
    answer.write(b"one")
    assert environ[PASSAGE]() is None


def test_a_client_that_takes_nothing_is_passed_nothing() -> None:
    source, answer, environ = begun()
    answer.write(b"one")
    before, source.takes = source.got, 0

    assert environ[PASSAGE]()(b"two") is False
    assert source.got == before


@pytest.mark.parametrize("next_piece", [b"", b"end"])
def test_a_piece_that_was_passed_in_part_is_completed_by_the_next_write(next_piece: bytes) -> None:
    source, answer, environ = begun()
    answer.write(b"one")
    source.takes = 4
    send = environ[PASSAGE]()

    with pytest.raises(TimeoutError):
        send(b"two")
    assert send(b"three") is False, "nothing may come between"
    answer.write(next_piece)

    told = b"3\r\nend\r\n" if next_piece else b""
    assert source.got.endswith(b"3\r\none\r\n3\r\ntwo\r\n" + told)


def test_a_body_that_was_not_read_is_read_before_the_next_request() -> None:
    first, second = REQUESTS["plain"], REQUESTS["query"]
    requests = parser(ClientParser, first + second)
    next(requests)

    assert next(requests).uri == "/v1/models?limit=2&after=%41"


def test_the_end_of_a_body_is_sent_with_its_last_piece() -> None:
    source: Any = Source(REQUESTS["plain"])
    request: Any = next(RequestParser(config(), source, PEER))
    answer: Any = Answer(request, source, config())
    writes: list[bytes] = []
    source.sendall = writes.append
    answer.start_response("200 OK", [])
    answer.write(b"first")
    answer.write(LastPiece(b"last"))
    answer.write(b"nothing may follow")
    answer.close()

    assert writes[1:] == [b"5\r\nfirst\r\n", b"4\r\nlast\r\n0\r\n\r\n"]
    assert not answer.should_close()


def test_a_last_piece_of_a_body_with_a_length_is_a_piece() -> None:
    source: Any = Source(REQUESTS["plain"])
    request: Any = next(RequestParser(config(), source, PEER))
    answer: Any = Answer(request, source, config())
    answer.start_response("200 OK", [("content-length", "4")])
    answer.write(LastPiece(b"last"))
    answer.close()

    assert source.got.endswith(b"\r\n\r\nlast")


class InPieces(Source):
    """A client whose bytes come in pieces of these sizes, the last size again and again."""

    def __init__(self, sent: bytes, sizes: list[int]) -> None:
        super().__init__(sent)
        self._sizes = sizes

    def recv(self, size: int) -> bytes:
        piece = self._sizes.pop(0) if len(self._sizes) > 1 else self._sizes[0]
        return super().recv(min(size, piece))


def post(body: bytes, length: int | None = None) -> bytes:
    head = f"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


@given(
    size=st.integers(0, 300),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    begun=st.integers(0, 40),
)
def test_a_body_that_is_read_as_a_whole_is_the_one_that_gunicorn_reads(
    size: int, sizes: list[int], begun: int
) -> None:
    """However it comes, with the next request behind it, and where some of it was read before."""
    body = bytes(each % 251 for each in range(size))
    sent = post(body) + REQUESTS["query"]
    requests: Any = ClientParser(config(), cast(Any, InPieces(sent, list(sizes))), PEER, Heads())
    request: Any = next(requests)
    start = request.body.read(begun)
    rest = request.body.read_whole()

    assert start + rest == body
    assert (type(rest), request.body.reader.length, request.body.read()) == (bytes, 0, b"")
    assert next(requests).uri == "/v1/models?limit=2&after=%41"


@pytest.mark.parametrize("come", [0, 5, 20_000])
def test_a_body_that_ends_early_is_what_came_of_it(come: int) -> None:
    requests: Any = parser(ClientParser, post(b"x" * come, 30_000))
    request: Any = next(requests)

    assert request.body.read_whole() == b"x" * come
    assert request.body.reader.length == 30_000 - come
    with pytest.raises(StopIteration):
        next(requests)


def test_after_a_read_that_failed_nothing_is_read_of_the_connection() -> None:
    class Silent(Source):
        def recv_into(self, memory: memoryview) -> int:
            raise TimeoutError

    requests: Any = ClientParser(config(), cast(Any, Silent(post(b"x", 9))), PEER, Heads())
    request: Any = next(requests)

    with pytest.raises(TimeoutError):
        request.body.read_whole()
    assert request.body.failed
    with pytest.raises(StopIteration):
        next(requests)


@pytest.mark.parametrize("fails", [False, True])
def test_nobody_can_reach_the_memory_of_a_body_by_what_it_was_read_into(fails: bool) -> None:
    """A failure's traceback keeps what was read into, and the memory is freed or a body by then."""
    views: list[memoryview] = []

    class Keeping(Source):
        def recv_into(self, memory: memoryview) -> int:
            views.append(memory)
            if fails and len(views) == 2:
                raise ConnectionResetError
            return super().recv_into(memory[:10_000])

    requests: Any = ClientParser(config(), cast(Any, Keeping(post(b"x" * 30_000))), PEER, Heads())
    request: Any = next(requests)

    with pytest.raises(ConnectionResetError) if fails else contextlib.nullcontext():
        assert request.body.read_whole() == b"x" * 30_000
    assert len(views) > 1
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)


def test_a_chunked_body_has_no_whole() -> None:
    request: Any = next(parser(ClientParser, REQUESTS["chunked"]))

    assert not hasattr(request.body, "read_whole")


class Forgetful(Heads):
    """Remembers nothing: gunicorn reads each head."""

    def wants(self, key: Key) -> bool:
        return False


def told(request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the application is told of a request, and what gunicorn keeps of it."""
    environ = Surroundings(None, PEER, LISTENER, workers=2).of(request)
    for name in NOT_COMPARED:
        environ.pop(name, None)
    kept = {name: value for name, value in vars(request).items() if name not in OF_ONE_PARSER}
    return environ, {**kept, "read": request.body.read(), "closes": request.should_close()}


#: What is another object for each parser, and what only ours has.
OF_ONE_PARSER = {"unreader", "body", "cfg", "head", "closes", "req_number"}

#: Lines with a length: `%d` is the right one.
LENGTHS = st.sampled_from(
    [b"Content-Length: %d"] * 8
    + [b"content-length: %d", b"Content-Length:%d", b"CONTENT-LENGTH: %d", b"Content-Length: 0%d"]
    + [b"Content-Length: +%d", b"Content_Length: %d", b"Content-Length: %d\r\nContent-Length: 0"]
    + [b"Transfer-Encoding: chunked\r\nX: %d", b"X: %d"]
)
LINES = st.sampled_from(
    [b"Host: a", b"host: b", b"X-Forwarded-Proto: https", b"X-A: 1", b"X-Latin: \xe4"] * 4
    + [b"Connection: close", b"Connection: keep-alive", b"Expect: 100-continue", b"X_A: 2"]
    + [b" folded", b"Authorization: Bearer k", b"Content_Length: 9", b"no colon"]
)
FIRST = st.sampled_from(
    [b"POST /v1/a?b=%41 HTTP/1.1", b"POST / HTTP/1.1"] * 3
    + [b"POST /%C3%A4 HTTP/1.0", b"GET / HTTP/1.1"]
)
#: A head with the place of its body's length.
SENT_HEADS = st.builds(
    lambda first, before, length, after: (first, [*before, length, *after]),
    FIRST,
    st.lists(LINES, max_size=2, unique=True),
    LENGTHS,
    st.lists(LINES, max_size=2, unique=True),
)
PEERS = st.sampled_from([PEER, PEER, ("203.0.113.10", 1), ""])


def message(head: tuple[bytes, list[bytes]], body: bytes) -> bytes:
    first, lines = head
    told = [line % len(body) if b"%d" in line else line for line in lines]
    return b"\r\n".join([first, *told, b"", body])


@given(
    sent_heads=st.lists(SENT_HEADS, min_size=1, max_size=2),
    connections=st.lists(
        st.tuples(PEERS, st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=9)))),
        min_size=3,
        max_size=5,
    ),
    sizes=st.sampled_from([[1000], [1000], [7], [90, 3]]),
    trusted=st.sampled_from(["", "203.0.113.9", "*"]),
)
def test_a_head_that_came_before_is_what_gunicorn_reads_in_it(
    sent_heads: list[tuple[bytes, list[bytes]]],
    connections: list[tuple[Any, list[tuple[int, bytes]]]],
    sizes: list[int],
    trusted: str,
) -> None:
    """Over several connections of a worker, whatever came before."""
    cfg = config(forwarded_allow_ips=trusted, workers=2)
    known = Heads()
    for peer, asked in connections:
        sent = b"".join(message(sent_heads[at % len(sent_heads)], body) for at, body in asked)
        parsers: list[Any] = [
            ClientParser(cfg, cast(Any, InPieces(sent, list(sizes))), peer, heads)
            for heads in (Forgetful(), known)
        ]
        while True:
            expected, found = map(what_comes, parsers)
            assert found == expected
            if not isinstance(found, tuple):
                break


def what_comes(requests: Any) -> Any:
    """The next request of a connection, or the kind of its end."""
    try:
        return told(next(requests))
    except Exception as error:
        return type(error)


def known_head(head: bytes, times: int) -> tuple[Heads, list[Any]]:
    """What a worker remembers after so many requests with a head, and these."""
    known, cfg = Heads(), config()
    requests: Any = ClientParser(cfg, cast(Any, Source(head * times)), PEER, known)
    found = []
    for _ in range(times):
        found.append(next(requests))
        found[-1].body.read()
    return known, found


def test_a_head_is_read_by_gunicorn_until_it_came_twice() -> None:
    _, found = known_head(b"POST /v1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 5)

    assert [request.head is not None for request in found] == [False, False, True, True, True]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nContent-Length: 0\r\nX-A: " + b"a" * 4096 + b"\r\n\r\n",
    ],
    ids=["no POST", "no length", "long"],
)
def test_other_heads_are_not_remembered(head: bytes) -> None:
    _, found = known_head(head, 5)

    assert [request.head for request in found] == [None] * 5


def test_so_many_heads_are_remembered_and_not_more() -> None:
    known = Heads()
    for number in range(1000):
        head = b"POST /%d HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % number
        requests: Any = ClientParser(config(), cast(Any, Source(head * 4)), PEER, known)
        for _ in range(4):
            next(requests)

    assert 0 < len(known) <= 128


def test_the_request_of_a_remembered_head_is_its_own() -> None:
    """What is done to one request is not seen by the next."""
    head = b"POST /v1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
    known, _ = known_head(head, 4)
    requests: Any = ClientParser(config(), cast(Any, Source(head * 4)), PEER, known)
    next(requests)
    first = next(requests)
    environ = Surroundings(None, PEER, LISTENER, workers=2).of(first)
    environ["HTTP_X"] = "1"
    first.headers.append(("X", "1"))
    second = next(requests)

    assert "HTTP_X" not in Surroundings(None, PEER, LISTENER, workers=2).of(second)
    assert ("X", "1") not in second.headers
