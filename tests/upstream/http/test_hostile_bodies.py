"""Whatever an upstream sends as a body, reading it ends, in bounded memory and time."""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from collections.abc import Callable

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.upstream.http.body import (
    BodyBroken,
    BodyReader,
    BodyTooLarge,
    ChunkedDecoder,
    ReadTimeout,
)
from qwen_wsgi.upstream.http.http1 import Head
from tests.fakes.raw_server import Peer, RawServer, chunked, head
from tests.kit import given_answer
from tests.kit.feeding import random_cuts
from tests.kit.given_answer import Connection, reads_of, whole_body
from tests.kit.properties import examples
from tests.kit.servers import wait_until

PIECES = [b"one, ", b"two and ", b"three"]
PLAIN = b"".join(PIECES)
MEMBERS = b"".join(gzip.compress(piece) for piece in PIECES)


def reader_of(pieces: list[bytes], **headers: str) -> tuple[BodyReader, Connection]:
    """A reader of a body that comes in these pieces, and its connection."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return given_answer.reader_of(reads_of(pieces), Head(200, "OK", named, True))


def body_of(pieces: list[bytes], **headers: str) -> bytes:
    return whole_body(reader_of(pieces, **headers)[0])


# --- compressed bodies ---------------------------------------------------------------------------


@given(random_cuts(MEMBERS))
def test_the_members_of_a_gzip_are_decoded_one_after_the_other(pieces: list[bytes]) -> None:
    assert body_of(pieces, content_encoding="gzip") == PLAIN


@given(random_cuts(chunked(MEMBERS[:20], MEMBERS[20:])))
def test_so_they_are_in_chunks(pieces: list[bytes]) -> None:
    assert body_of(pieces, content_encoding="gzip", transfer_encoding="chunked") == PLAIN


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("surplus", [b"x", b"\0" * 8, b"\x1f", b"garbage" * 100_000])
def test_anything_else_behind_a_member_is_a_broken_body(surplus: bytes, coding: str) -> None:
    """One such answer blocked a worker until it was killed."""
    body = gzip.compress(PLAIN) if coding == "gzip" else zlib.compress(PLAIN)

    with pytest.raises(BodyBroken):
        body_of([body + surplus], content_encoding=coding)
    with pytest.raises(BodyBroken):
        body_of([body, surplus], content_encoding=coding)


def test_a_second_body_behind_zlib_is_a_broken_body() -> None:
    with pytest.raises(BodyBroken):
        body_of([zlib.compress(b"a") + zlib.compress(b"b")], content_encoding="deflate")


@pytest.mark.parametrize("cut", range(1, len(MEMBERS)))
def test_every_truncation_of_a_gzip_is_broken_or_the_end_of_a_member(cut: int) -> None:
    ends = [
        len(b"".join(gzip.compress(piece) for piece in PIECES[:count])) for count in range(1, 4)
    ]
    if cut in ends:
        assert PLAIN.startswith(body_of([MEMBERS[:cut]], content_encoding="gzip"))
    else:
        with pytest.raises(BodyBroken):
            body_of([MEMBERS[:cut]], content_encoding="gzip")


def test_members_that_hold_nothing_do_not_go_on_for_ever() -> None:
    with pytest.raises(BodyBroken):
        body_of([gzip.compress(b"") * 1000], content_encoding="gzip")


def test_a_bomb_is_a_broken_body_long_before_its_end() -> None:
    bomb = gzip.compress(bytes(500_000_000 // 4), compresslevel=9)
    reader, _ = reader_of([bomb], content_encoding="gzip")
    got = 0

    with pytest.raises(BodyBroken, match="200 times"):
        while data := reader.read(5):
            assert len(data) <= 256 * 1024
            got += len(data)

    assert got < 40_000_000


def test_what_people_and_models_write_is_no_bomb() -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
    plain = b"".join(event % number for number in range(100_000))

    assert body_of([gzip.compress(plain)], content_encoding="gzip") == plain


# --- framing -------------------------------------------------------------------------------------

CHUNKED = chunked(*PIECES, end=False) + b"0\r\nX-Trailer: 1\r\n\r\n"


@given(random_cuts(CHUNKED))
def test_chunks_are_the_same_however_they_are_cut(pieces: list[bytes]) -> None:
    assert body_of(pieces, transfer_encoding="chunked") == PLAIN


@pytest.mark.parametrize("cut", range(len(CHUNKED)))
def test_every_truncation_of_chunks_is_a_broken_body(cut: int) -> None:
    with pytest.raises(BodyBroken):
        body_of([CHUNKED[:cut]], transfer_encoding="chunked")


@pytest.mark.parametrize("cut", range(len(PLAIN)))
def test_every_truncation_of_a_length_is_a_broken_body(cut: int) -> None:
    with pytest.raises(BodyBroken):
        body_of([PLAIN[:cut]], content_length=str(len(PLAIN)))


@examples(300)
@given(st.binary(max_size=200), st.integers(1, 7))
def test_any_bytes_are_chunks_or_a_broken_body(data: bytes, step: int) -> None:
    pieces = [data[i : i + step] for i in range(0, len(data), step)]
    whole, parts = (
        outcome(lambda: body_of([data], transfer_encoding="chunked")),
        outcome(lambda: body_of(pieces, transfer_encoding="chunked")),
    )
    assert whole == parts


def outcome(read: Callable[[], bytes]) -> bytes | None:
    try:
        return read()
    except BodyBroken:
        return None


@pytest.mark.parametrize(
    "trailers", [b"A: 1\r\n" * 65, b"A: " + b"x" * 4000 + b"\r\n", b"A: " + b"x" * 5000]
)
def test_trailers_are_bounded_in_number_and_size(trailers: bytes) -> None:
    """The body before them is complete, but its connection is not used again."""
    decoder = ChunkedDecoder()
    assert decoder.feed(b"3\r\none\r\n0\r\n" + trailers * 5) == b"one"
    assert (decoder.ended, decoder.surplus) == (True, True)


@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_a_complete_body_with_endless_trailers_is_an_answer(pause_s: float) -> None:
    def answer(peer: Peer) -> None:
        peer.send(head(transfer_encoding="chunked") + b"3\r\none\r\n0\r\n")
        stop = threading.Event()
        while not stop.wait(pause_s):
            peer.send(b"A: 1\r\n")  # until the client goes

    with RawServer(answer) as server, requests.Session() as session:
        session.trust_env = False
        reader = BodyReader(session.get(server.url, stream=True, timeout=5))
        started_s = time.monotonic()
        assert reader.read_all(60, limit=100) == b"one"
        reader.close()
        assert time.monotonic() - started_s < 10
        wait_until(lambda: server._peers[0].closed, "a closed connection")


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (chunked(b"one") + b"HTTP/1.1 200 OK", {"transfer_encoding": "chunked"}),
        (b"one" + b"HTTP/1.1 200 OK", {"content_length": "3"}),
    ],
    ids=["chunked", "with its length"],
)
def test_a_connection_with_bytes_behind_the_body_is_not_used_again(
    data: bytes, headers: dict[str, str]
) -> None:
    reader, connection = reader_of([data], **headers)
    assert reader.read(5) == b"one"
    assert reader.read(5) == b""
    reader.close()

    assert connection.closed


def test_nor_is_one_with_bytes_behind_an_answer_without_a_body() -> None:
    empty = Head(200, "OK", {"content-length": "0"}, True)
    for first, closed in ((b"", False), (b"HTTP/1.1 200 OK", True)):
        reader, connection = given_answer.reader_of(reads_of([]), empty, first)
        assert reader.read(5) == b""
        reader.close()
        assert connection.closed is closed


# --- time and size -------------------------------------------------------------------------------


def trickle(before: bytes, piece: bytes) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        peer.send(before)
        stop = threading.Event()
        while not stop.wait(0.02):
            peer.send(piece)  # until the client goes

    return answer


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        (head(transfer_encoding="chunked"), b"1;"),
        (head(content_encoding="gzip"), gzip.compress(b"")[:10]),
    ],
    ids=["an extension", "a head of gzip"],
)
def test_bytes_that_are_nothing_of_the_body_do_not_extend_a_read(
    before: bytes, piece: bytes
) -> None:
    with RawServer(trickle(before, piece)) as server, requests.Session() as session:
        session.trust_env = False
        reader = BodyReader(session.get(server.url, stream=True, timeout=5))
        started_s = time.monotonic()
        with pytest.raises((ReadTimeout, BodyBroken)):
            reader.read(0.5)
        took_s = time.monotonic() - started_s
        reader.close()

    assert took_s < 5


def test_a_whole_body_has_one_time_for_all_its_pieces() -> None:
    with (
        RawServer(trickle(head(content_length="100000"), b"x")) as server,
        requests.Session() as session,
    ):
        session.trust_env = False
        reader = BodyReader(session.get(server.url, stream=True, timeout=5))
        started_s = time.monotonic()
        with pytest.raises(ReadTimeout):
            reader.read_all(0.5, limit=1_000_000)
        took_s = time.monotonic() - started_s
        reader.close()

    assert 0.4 < took_s < 5


def test_a_body_above_the_limit_is_not_read_to_its_end() -> None:
    reader, connection = reader_of([b"x" * 1000] * 1000, transfer_encoding="", connection="close")
    with pytest.raises(BodyTooLarge):
        reader.read_all(5, limit=10_000)
    reader.close()
    assert connection.closed


def test_a_body_whose_length_is_above_the_limit_is_not_read_at_all() -> None:
    reader, _ = reader_of([], content_length="10001")
    with pytest.raises(BodyTooLarge):
        reader.read_all(5, limit=10_000)
