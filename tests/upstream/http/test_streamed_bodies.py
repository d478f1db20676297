"""Bodies that are made while they are sent: framing, early answers, and ends on both sides."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import BadRequest, UpstreamError, UpstreamTimeout
from qwen_wsgi.upstream.http.body import BodyReader
from qwen_wsgi.upstream.http.transport import Response, Transport
from tests.fakes.raw_server import Peer, RawServer, whole
from tests.fakes.upstream import settings_of

PIECE = b"x" * 65_536


class Body:
    """Pieces, counted as they are taken."""

    content_type = "multipart/form-data; boundary=b"

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            self.taken += 1
            yield piece
        if self.error is not None:
            raise self.error


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = Transport(settings_of())
    yield made
    made.close()


def send(transport: Transport, url: str, body: Body | bytes, timeout_s: float = 5) -> Response:
    token = AccessToken("", url, None)
    return transport.send("POST", token, "/files", body, headers={}, read_timeout_s=timeout_s)


def answer(transport: Transport, response: Response) -> bytes:
    reader = BodyReader(response)
    try:
        return transport.read_all(reader, 5, timeout_s=5)
    finally:
        reader.close()


def test_pieces_are_chunks(transport: Transport) -> None:
    got: list[bytes] = []

    def serve(peer: Peer) -> None:
        got.append(peer.whole_request())
        peer.send(whole(b"done"))

    with RawServer(serve) as server:
        assert answer(transport, send(transport, server.url, Body(b"one", b"two" * 6))) == b"done"

    head, _, body = got[0].partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head and b"Content-Length" not in head
    assert b"Content-Type: multipart/form-data; boundary=b" in head
    assert body == b"3\r\none\r\n12\r\n" + b"two" * 6 + b"\r\n0\r\n\r\n"


def test_it_never_goes_out_on_a_kept_connection(transport: Transport) -> None:
    """That may be dead, which shows when the first pieces are gone."""
    seen: list[int] = []

    def serve(peer: Peer) -> None:
        seen.append(peer.connection)
        peer.whole_request() if b"chunked" in peer.request else None
        peer.send(whole(b"done"))

    with RawServer(serve) as server:
        for body in (b"{}", Body(b"x"), b"{}"):
            answer(transport, send(transport, server.url, body))

    assert seen == [1, 2, 2]


def test_an_answer_before_the_end_ends_the_body(transport: Transport) -> None:
    def serve(peer: Peer) -> None:
        peer.send(whole(b"too large", "413 Content Too Large"))
        while peer._receive():
            pass

    body = Body(*[PIECE] * 2000)
    with RawServer(serve) as server:
        response = send(transport, server.url, body)
        assert response.status_code == 413
        assert answer(transport, response) == b"too large"

    assert body.taken < 2000


def test_an_answer_of_a_server_that_reads_no_more_is_seen(transport: Transport) -> None:
    def serve(peer: Peer) -> None:
        peer.send(whole(b"no", "429 Too Many Requests"))
        closed.wait(10)

    closed = threading.Event()
    with RawServer(serve) as server:
        response = send(transport, server.url, Body(*[PIECE] * 2000), timeout_s=20)
        assert (response.status_code, answer(transport, response)) == (429, b"no")
        closed.set()


def test_a_server_that_takes_nothing_is_given_up(transport: Transport) -> None:
    closed = threading.Event()

    def serve(peer: Peer) -> None:
        closed.wait(10)

    with RawServer(serve) as server:
        with pytest.raises(UpstreamTimeout):
            send(transport, server.url, Body(*[PIECE] * 2000), timeout_s=0.5)
        closed.set()


@pytest.mark.parametrize("reset", [False, True])
def test_a_server_that_closes_in_the_middle_is_an_error(transport: Transport, reset: bool) -> None:
    with (
        RawServer(lambda peer: peer.reset() if reset else peer.close()) as server,
        pytest.raises(UpstreamError) as told,
    ):
        send(transport, server.url, Body(*[PIECE] * 2000))

    assert told.value.code in ("upstream_closed", "upstream_unreachable")


def test_a_body_that_fails_has_no_last_chunk(transport: Transport) -> None:
    got: queue.Queue[bytes] = queue.Queue()
    with RawServer(lambda peer: got.put(peer.whole_request())) as server:
        with pytest.raises(BadRequest, match="gone"):
            send(transport, server.url, Body(b"one", error=BadRequest("gone")))

        assert got.get(timeout=5).endswith(b"3\r\none\r\n")
