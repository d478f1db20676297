"""Whatever an upstream sends before a body, waiting for it ends, and it is read one way only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import ProtocolError

from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import AnswerTooLarge, UpstreamError
from qwen_wsgi.upstream.http.body import BodyReader
from qwen_wsgi.upstream.http.http1 import parse_head
from qwen_wsgi.upstream.http.transport import Transport
from tests.fakes.raw_server import Answer, Peer, RawServer, head, whole
from tests.fakes.upstream import settings_of
from tests.kit.feeding import random_cuts
from tests.kit.given_answer import answer_of, head_of
from tests.kit.properties import examples

INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nA: 1\r\nB: two\r\na: 3\r\n\r\n"


@given(random_cuts(INTERIM * 3 + FINAL + b"body"))
def test_a_head_is_the_same_however_it_is_cut(pieces: list[bytes]) -> None:
    got, body = head_of(pieces)

    assert got.headers == {"a": "1, 3", "b": "two"}
    assert b"body".startswith(body)


@pytest.mark.parametrize("cut", range(len(INTERIM + FINAL)))
def test_every_truncation_of_a_head_is_an_end_without_an_answer(cut: int) -> None:
    with pytest.raises(ConnectionResetError):
        head_of([(INTERIM + FINAL)[:cut]])


@examples(300)
@given(st.binary(max_size=120))
def test_any_bytes_are_a_head_or_none(data: bytes) -> None:
    for line in (b"", b"HTTP/1.1 200 OK\r\n"):
        with contextlib.suppress(ProtocolError):
            found = parse_head(line + data)
            assert not any(set("\0\r\n") & set(value) for value in found.headers.values())


@pytest.mark.parametrize(
    "value", [b"a\0b", b"a\nX-Other: b", b"a\rX-Other: b"], ids=["NUL", "LF", "CR"]
)
def test_a_value_that_is_dangerous_to_pass_on_is_no_answer(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        head_of([b"HTTP/1.1 200 OK\r\nX-Request-Id: " + value + b"\r\n\r\n"])


def test_header_lines_are_bounded() -> None:
    with pytest.raises(ProtocolError):
        head_of([b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 300 + b"\r\n"])


def test_a_length_of_thousands_of_digits_is_no_answer(transport: Transport) -> None:
    with RawServer(head(content_length="1" * 5000)) as server:
        assert failure(transport, server).code == "upstream_unreachable"


@pytest.mark.parametrize(
    "framing",
    [
        *(
            b"content-length: " + value
            for value in (b"5, 6", b"+5", b"-1", b"5;", b"0x5", b"5 5", b"")
        ),
        *(b"transfer-encoding: " + value for value in (b"gzip, chunked", b"xchunked", b"gzip")),
        b"content-length: 5\r\ncontent-length: 6",
    ],
)
def test_a_framing_that_can_be_read_in_two_ways_is_no_answer(framing: bytes) -> None:
    """It was read to the end of the connection: a part of it passed for the whole."""
    with pytest.raises(ProtocolError):
        answer_of([b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\nhello"])


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"content-length: 5", b"hello"),
        (b"content-length: 5, 5", b"hello"),
        (b"Transfer-Encoding: Chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"transfer-encoding: identity\r\ncontent-length: 5", b"hello"),
        (b"x: y", b"hello"),
    ],
)
def test_a_framing_that_is_clear_is_followed(framing: bytes, body: bytes) -> None:
    _, got = answer_of([b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n", body])
    assert got == b"hello"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("framing", [b"content-length: 9", b"transfer-encoding: chunked", b"x: y"])
def test_an_answer_that_has_no_body_is_not_waited_for(status: bytes, framing: bytes) -> None:
    assert answer_of([b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n\r\n"])[1] == b""


# --- time ----------------------------------------------------------------------------------------


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(settings_of(QWEN_PROXY_MAX_ANSWER=2000))) as made:
        yield made


def failure(
    transport: Transport, server: RawServer, *, read_timeout_s: float = 5.0
) -> UpstreamError:
    token = AccessToken("", server.url, None)
    with pytest.raises(UpstreamError) as caught:
        transport.send("POST", token, "/chat", b"{}", headers={}, read_timeout_s=read_timeout_s)
    return caught.value


def repeating(before: bytes, piece: bytes, pause_s: float) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        peer.send(before)
        stop = threading.Event()
        while not stop.wait(pause_s):
            peer.send(piece)  # until the client goes

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        repeating(b"", b"H", 0.05),
        repeating(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05),
        repeating(INTERIM, b"H", 0.05),
        repeating(b"", INTERIM, 0.2),
    ],
    ids=["a status line", "a header", "behind an interim response", "interim responses"],
)
def test_a_head_that_trickles_is_cut_at_the_settings_time(
    answer: Answer, transport: Transport
) -> None:
    with RawServer(answer) as server:
        started_s = time.monotonic()
        error = failure(transport, server, read_timeout_s=0.7)
        took_s = time.monotonic() - started_s

    assert error.code in ("upstream_timeout", "upstream_unreachable")
    assert took_s < 5
    if error.code == "upstream_timeout":
        assert "0.7 s (QWEN_PROXY_FIRST_BYTE_TIMEOUT" in error.message


def test_interim_responses_without_an_end_are_no_answer(transport: Transport) -> None:
    with RawServer(INTERIM * 11 + whole(b"{}")) as server:
        assert failure(transport, server).code == "upstream_unreachable"
    with RawServer(INTERIM * 10 + whole(b"{}")) as server:
        token = AccessToken("", server.url, None)
        transport.send("POST", token, "/chat", b"{}", headers={}, read_timeout_s=5).close()


def test_a_whole_answer_that_trickles_is_cut_at_the_settings_time(transport: Transport) -> None:
    with RawServer(repeating(head(content_length="1000"), b"x", 0.05)) as server:
        token = AccessToken("", server.url, None)
        response = transport.send("POST", token, "/chat", b"{}", headers={}, read_timeout_s=5)
        reader = BodyReader(response)
        with pytest.raises(UpstreamError, match=r"complete within 9 s \(QWEN_X of") as caught:
            transport.read_all(reader, 0.5, timeout_s=9, setting="QWEN_X")
        reader.close()

    assert caught.value.status == 504


def test_a_model_list_has_one_time_for_head_and_body(transport: Transport) -> None:
    with (
        RawServer(repeating(head(content_length="1000"), b"x", 0.05)) as server,
        pytest.raises(UpstreamError, match="complete within 0.6 s"),
    ):
        transport.get(AccessToken("", server.url, None), "/models", timeout_s=0.6)


@pytest.mark.parametrize("answer", [whole(b"x" * 2001), head(connection="close") + b"x" * 9000])
def test_an_answer_above_the_limit_is_told_as_such(answer: bytes, transport: Transport) -> None:
    with (
        RawServer(answer) as server,
        pytest.raises(AnswerTooLarge, match="2000 bytes .QWEN_PROXY_MAX_ANSWER") as caught,
    ):
        transport.get(AccessToken("", server.url, None), "/models", timeout_s=5)

    assert (caught.value.status, caught.value.code) == (502, "upstream_too_large")
