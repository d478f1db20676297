"""A body is handed on as it arrives, over real sockets, whatever its framing and its end."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import requests

from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, ReadTimeout
from tests.fakes.raw_server import Answer, Peer, RawServer, chunked, head, whole

CHUNKED = head(content_type="text/plain", transfer_encoding="chunked")
UNTIL_CLOSE = head(content_type="text/plain", connection="close")
OTHER = whole(b"other")


@contextmanager
def reading(*answers: Answer) -> Iterator[tuple[BodyReader, requests.Session, RawServer]]:
    """A reader of the first answer, and what is needed to ask again."""
    with RawServer(*answers) as server, requests.Session() as session:
        session.trust_env = False
        response = session.get(server.url, stream=True, timeout=5)
        reader = BodyReader(response)
        try:
            yield reader, session, server
        finally:
            reader.close()


class Offering:
    """A source of reads that notes to whom each of them was offered."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.passing: Callable[[bytes], bool] | None = None
        self.offered: list[object] = []

    def limit(self, timeout_s: float) -> None:
        pass

    def recv(self, size: int) -> bytes:
        self.offered.append(self.passing)
        return self._pieces.pop(0)

    def stop(self) -> None:
        pass


def test_what_arrives_may_be_passed_on_only_between_chunks_and_as_long_as_it_is_wanted() -> None:
    with reading(CHUNKED) as (reader, _, _):
        reads = Offering(b"1\r\na\r\n", b"2\r\nb", b"c\r\n", b"1\r\nd\r\n", b"1\r\ne\r\n")
        reader._reads = reads  # type: ignore[assignment]  # in the place of the socket's

        def passing(data: bytes) -> bool:
            return False

        reader.pass_chunks(passing)
        assert [reader.read(1) for _ in range(4)] == [b"a", b"b", b"c", b"d"]
        reader.pass_chunks(None)
        assert reader.read(1) == b"e"
        assert reads.offered == [passing, passing, None, passing, None]


def rest(reader: BodyReader) -> bytes:
    return b"".join(iter(lambda: reader.read(5), b""))


def then_close(data: bytes) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        peer.send(data)
        peer.close()

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + chunked(b"hello ", b"wor", b"ld"),
        CHUNKED + b"b;x=y\r\nhello world\r\n0\r\nX-Trailer: 1\r\n\r\n",
        head(content_length="11") + b"hello world",
        then_close(UNTIL_CLOSE + b"hello world"),
        then_close(b"HTTP/1.0 200 OK\r\n\r\nhello world"),
    ],
    ids=["chunked", "chunked with extras", "with its length", "until close", "HTTP/1.0"],
)
def test_a_body_is_read_to_its_end_whatever_its_framing(answer: Answer) -> None:
    with reading(answer) as (reader, _, _):
        assert rest(reader) == b"hello world"
        assert reader.read(5) == b""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (CHUNKED + chunked(b"one", end=False), chunked(b"two")),
        (head(content_length="6") + b"one", b"two"),
        (UNTIL_CLOSE + b"one", b"two"),
        (CHUNKED, chunked(b"one", b"two")),
    ],
    ids=["chunked", "with its length", "until close", "nothing with the head"],
)
def test_what_arrived_is_handed_on_before_the_rest_is_there(first: bytes, second: bytes) -> None:
    """A timeout is no end: the reader may be asked again, as often as one likes."""
    go_on = threading.Event()

    def answer(peer: Peer) -> None:
        peer.send(first)
        go_on.wait(10)
        peer.send(second)
        peer.close()

    with reading(answer) as (reader, _, _):
        got = b""
        if b"one" in first:
            got = reader.read(5)
            assert got == b"one"
        for _ in range(3):
            with pytest.raises(ReadTimeout):
                reader.read(0.01)
        go_on.set()

        assert got + rest(reader) == b"onetwo"


def test_a_timeout_is_kept_to() -> None:
    def answer(peer: Peer) -> None:
        peer.send(CHUNKED)
        peer.wait_until_closed()

    with reading(answer) as (reader, _, _):
        for timeout_s in (0.05, 0.2):
            started = time.monotonic()
            with pytest.raises(ReadTimeout):
                reader.read(timeout_s)
            assert timeout_s <= time.monotonic() - started < timeout_s + 1


def test_every_piece_is_handed_on_when_it_comes() -> None:
    """No read waits for more than there is: that is what makes streaming visible."""
    asked = threading.Semaphore(0)

    def answer(peer: Peer) -> None:
        peer.send(CHUNKED)
        for number in range(5):
            asked.acquire(timeout=10)
            peer.send(chunked(b"piece %d" % number, end=False))
        peer.send(b"0\r\n\r\n")

    with reading(answer) as (reader, _, _):
        for number in range(5):
            asked.release()
            assert reader.read(5) == b"piece %d" % number
        assert reader.read(5) == b""


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 300_000])
def test_bodies_of_any_size_come_whole(size: int, framing: str) -> None:
    """Sizes around the buffer into which the head is read."""
    body = bytes(i % 251 for i in range(size))
    pieces = (body[i : i + 70_000] for i in range(0, size, 70_000))
    answer = CHUNKED + chunked(*pieces) if framing == "chunked" else whole(body)

    with reading(answer) as (reader, _, _):
        assert rest(reader) == body


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5",
        CHUNKED,
        head(content_length="11") + b"hello",
        head(content_length="11"),
    ],
    ids=["in a chunk", "between chunks", "in the end", "in a size", "no chunk", "short", "nothing"],
)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_body_that_is_cut_short_is_broken(data: bytes, how: str) -> None:
    seen = threading.Event()

    def answer(peer: Peer) -> None:
        peer.send(data)
        seen.wait(10)
        peer.close() if how == "close" else peer.reset()

    with reading(answer) as (reader, _, _):
        seen.set()
        with pytest.raises(BodyBroken):
            rest(reader)


def test_a_body_with_broken_framing_is_broken() -> None:
    answer = CHUNKED + chunked(b"hello", end=False) + b"zz\r\nno\r\n"

    with reading(answer) as (reader, _, _), pytest.raises(BodyBroken, match="no hexadecimal"):
        rest(reader)


@pytest.mark.parametrize(
    "complete",
    [CHUNKED + chunked(b"hello"), head(content_length="5") + b"hello"],
    ids=["chunked", "with its length"],
)
def test_a_connection_serves_again_after_a_complete_body(complete: bytes) -> None:
    with reading(complete, OTHER) as (reader, session, server):
        assert rest(reader) == b"hello"
        reader.close()

        assert session.get(server.url, timeout=5).content == b"other"
        assert server.connections == 1
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "incomplete",
    [
        CHUNKED + chunked(b"hello", end=False),
        head(content_length="11") + b"hello",
    ],
    ids=["chunked", "with its length"],
)
def test_a_connection_is_closed_after_an_incomplete_body(incomplete: bytes) -> None:
    """Its rest would be taken for the next answer."""
    closed = threading.Event()

    def answer(peer: Peer) -> None:
        peer.send(incomplete)
        if peer.wait_until_closed():
            closed.set()
        peer.close()

    with reading(answer, OTHER) as (reader, session, server):
        assert reader.read(5) == b"hello"
        reader.close()

        assert closed.wait(5)
        assert session.get(server.url, timeout=5).content == b"other"
        assert server.connections == 2


def test_a_connection_is_closed_when_nobody_read_its_body() -> None:
    with reading(CHUNKED + chunked(b"hello"), OTHER) as (reader, session, server):
        reader.close()

        assert session.get(server.url, timeout=5).content == b"other"
        assert server.connections == 2


def test_bytes_beyond_the_length_are_not_the_bodys() -> None:
    with reading(head(content_length="5") + b"helloEXTRA") as (reader, _, _):
        assert rest(reader) == b"hello"


def test_a_close_may_be_repeated() -> None:
    with reading(CHUNKED + chunked(b"hello")) as (reader, _, _):
        assert rest(reader) == b"hello"
        reader.close()
        reader.close()


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_read_all_stops_at_its_limit(limit: int) -> None:
    with reading(CHUNKED + chunked(b"hello ", b"world")) as (reader, _, _):
        assert reader.read_all(5, limit=limit, cut=True) == b"hello world"[:limit]


@pytest.mark.parametrize(
    "framed",
    [
        lambda body: (
            CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
            + chunked(body[:9], body[9:])
        ),
        lambda body: whole(body, content_encoding="gzip"),
    ],
    ids=["chunked", "with its length"],
)
def test_a_compressed_body_is_unpacked(framed: Callable[[bytes], bytes]) -> None:
    """We ask for none, but some gateways compress all the same."""
    body = b"data: hello\n\n" * 5000

    with reading(framed(gzip.compress(body))) as (reader, _, _):
        assert rest(reader) == body


def test_a_compressed_body_that_is_cut_short_is_broken() -> None:
    packed = gzip.compress(bytes(range(256)) * 50)
    coded = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")

    with (
        reading(then_close(coded + chunked(packed[: len(packed) // 2], end=False))) as (
            reader,
            _,
            _,
        ),
        pytest.raises(BodyBroken),
    ):
        rest(reader)


def test_a_compressed_body_that_stalls_times_out_and_never_ends_well() -> None:
    packed = gzip.compress(bytes(range(256)) * 50)
    coded = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    done = threading.Event()

    def answer(peer: Peer) -> None:
        peer.send(coded + chunked(packed[: len(packed) // 2], end=False))
        done.wait(10)
        peer.close()

    with RawServer(answer) as server, requests.Session() as session:
        reader = BodyReader(session.get(server.url, stream=True, timeout=5))
        try:
            with pytest.raises(ReadTimeout):
                while reader.read(0.1):
                    pass
            with pytest.raises((ReadTimeout, BodyBroken)):
                reader.read(0.1)
        finally:
            reader.close()
            done.set()


def test_a_body_that_is_not_what_its_header_says_is_broken() -> None:
    with (
        reading(whole(b"no gzip at all", content_encoding="gzip")) as (reader, _, _),
        pytest.raises(BodyBroken),
    ):
        rest(reader)


def test_an_empty_body_is_at_its_end_at_once() -> None:
    for answer in (whole(b""), head("204 No Content"), CHUNKED + b"0\r\n\r\n"):
        with reading(answer) as (reader, _, _):
            assert reader.read(5) == b""
