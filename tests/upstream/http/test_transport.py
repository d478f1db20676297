"""One exchange with an upstream: what is sent, and what each failure on the way is called."""

from __future__ import annotations

import errno
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import requests
import responses
import urllib3

from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import ApiError, Scope, UpstreamError, UpstreamTimeout
from qwen_wsgi.upstream.http import http1
from qwen_wsgi.upstream.http.body import BodyReader
from qwen_wsgi.upstream.http.transport import USER_AGENT, Transport
from tests.fakes.raw_server import Peer, RawServer, chunked, head, whole
from tests.fakes.upstream import SECRET, settings_of
from tests.kit.certificates import self_signed
from tests.kit.processes import free_port


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(settings_of(QWEN_PROXY_CONNECT_TIMEOUT=0.3))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own proxy is not part of these tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def token_for(url: str, secret: str = SECRET) -> AccessToken:
    return AccessToken(secret, url + "/v1", None)


def posted(
    transport: Transport,
    url: str,
    *,
    body: bytes = b"{}",
    headers: dict[str, str] | None = None,
    secret: str = SECRET,
) -> bytes:
    """The body of the answer to a POST."""
    response = transport.send(
        "POST", token_for(url, secret), "/chat", body, headers=headers or {}, read_timeout_s=5
    )
    reader = BodyReader(response)
    try:
        return transport.read_all(reader, 5, timeout_s=5)
    finally:
        reader.close()


def lost(transport: Transport, url: str) -> bytes | None:
    """The body of the answer; None if the connection was lost with the request."""
    try:
        return posted(transport, url)
    except UpstreamError as error:
        assert error.code == "upstream_closed"
        assert error.failure is not None
        assert (error.failure.scope, error.failure.at_once) == (Scope.REQUEST, True)
        return None


def failure(transport: Transport, url: str, *, read_timeout_s: float = 5) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        transport.send(
            "POST", token_for(url), "/chat", b"{}", headers={}, read_timeout_s=read_timeout_s
        )
    error = caught.value
    assert SECRET not in str(error)
    assert "127.0.0.1" not in str(error), "clients need not know the operator's hosts"
    return error


def test_a_request_is_sent_as_it_is_and_with_no_more_headers_than_needed(
    transport: Transport,
) -> None:
    body = '{"a":1.0, "é":null}'.encode()
    with RawServer(whole(b"{}")) as server:
        posted(transport, server.url, body=body, headers={"X-DashScope-SSE": "enable"})

        (sent,) = server.requests
    sent_head, _, sent_body = sent.partition(b"\r\n\r\n")
    lines = sent_head.decode().split("\r\n")
    assert lines[0] == "POST /v1/chat HTTP/1.1"
    assert sorted(line.lower() for line in lines[1:]) == sorted(
        [
            f"host: 127.0.0.1:{server.port}",
            f"content-length: {len(body)}",
            "content-type: application/json",
            "accept-encoding: identity",
            f"user-agent: {USER_AGENT.lower()}",
            f"authorization: bearer {SECRET}",
            "x-dashscope-sse: enable",
        ]
    )
    assert sent_body == body


@pytest.mark.parametrize("size", [http1._JOINED_BYTES, http1._JOINED_BYTES + 1, 12_000_000])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_large_body_arrives_whole_also_at_an_upstream_that_is_slow_to_read(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, size: int, in_pieces: bool
) -> None:
    if in_pieces:  # the kernel has hardly any room
        part = lambda sock, buffers: sock.send(b"".join(buffers)[:100])  # noqa: E731
        monkeypatch.setattr(socket.socket, "sendmsg", part)
    body = bytes(range(250)) * (size // 250) + b"x" * (size % 250)

    with RawServer(whole(b"read")) as server:
        assert posted(transport, server.url, body=body) == b"read"

        assert server.requests[0].partition(b"\r\n\r\n")[2] == body


def test_the_clients_user_agent_goes_on_instead_of_ours(transport: Transport) -> None:
    with RawServer(whole(b"{}")) as server:
        posted(transport, server.url, headers={"User-Agent": "QwenCode/0.24.4 (linux; x64)"})

        assert b"\r\nUser-Agent: QwenCode/0.24.4 (linux; x64)\r\n" in server.requests[0]
        assert USER_AGENT.encode() not in server.requests[0]


def test_an_empty_key_sends_no_authorization(transport: Transport) -> None:
    with RawServer(whole(b"{}")) as server:
        posted(transport, server.url, secret="")

        assert b"authorization" not in server.requests[0].lower()


def test_cookies_of_an_upstream_are_not_kept(transport: Transport) -> None:
    with RawServer(whole(b"{}", set_cookie="acw_tc=1; path=/")) as server:
        posted(transport, server.url)
        posted(transport, server.url)

        assert b"cookie" not in server.requests[1].lower()


def test_a_redirect_is_not_followed(transport: Transport) -> None:
    """It would carry the key to wherever the answer says."""
    with RawServer(whole(b"", "302 Found", location="http://127.0.0.1:9/")) as server:
        response = transport.send(
            "POST", token_for(server.url), "/chat", b"{}", headers={}, read_timeout_s=5
        )
        response.close()

        assert response.status_code == 302


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500, 503])
def test_any_status_is_an_answer(transport: Transport, status: int) -> None:
    with RawServer(whole(b"said", f"{status} X")) as server:
        response = transport.send(
            "POST", token_for(server.url), "/chat", b"{}", headers={}, read_timeout_s=5
        )
        assert response.status_code == status
        assert transport.read_all(BodyReader(response), 5, timeout_s=5) == b"said"
        response.close()


def test_a_connection_is_used_again(transport: Transport) -> None:
    two = head(transfer_encoding="chunked") + chunked(b"two")
    with RawServer(whole(b"one"), two, whole(b"3")) as server:
        assert [posted(transport, server.url) for _ in range(3)] == [b"one", b"two", b"3"]
        assert server.connections == 1


def test_a_kept_connection_that_the_server_closed_is_replaced(transport: Transport) -> None:
    """The server promised to keep it: that is no failure of the call."""
    closed = threading.Event()

    def promise_and_close(peer: Peer) -> None:
        peer.send(whole(b"one"))
        peer.close()
        closed.set()

    with RawServer(promise_and_close, whole(b"two")) as server:
        assert posted(transport, server.url) == b"one"
        assert closed.wait(5)
        assert posted(transport, server.url) == b"two"
        assert server.connections == 2


def test_a_kept_connection_whose_end_was_not_seen_in_time_is_replaced(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is written before the end of the connection is seen, and read by nobody."""
    closed = threading.Event()

    def promise_and_close(peer: Peer) -> None:
        peer.send(whole(b"one"))
        peer.close()
        closed.set()

    monkeypatch.setattr(http1, "look_at", lambda sock: lambda: False)
    with RawServer(promise_and_close, whole(b"two")) as server:
        assert posted(transport, server.url) == b"one"
        assert closed.wait(5)
        assert posted(transport, server.url) == b"two"
        assert len(server.requests) == 2


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_request_that_may_have_been_read_is_not_sent_again_in_silence(
    transport: Transport, how: str
) -> None:
    """The connection was lost with it, and nobody is left alone: but it counts as an attempt."""

    def read_and_end(peer: Peer) -> None:
        peer.send(whole(b"one"))
        peer.read_request()
        getattr(peer, how)()

    with RawServer(read_and_end, whole(b"two")) as server:
        assert posted(transport, server.url) == b"one"
        assert lost(transport, server.url) is None
        assert posted(transport, server.url) == b"two"


def test_after_a_lost_connection_those_that_were_idle_with_it_are_not_used(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gave up one of them most likely gave up all of them."""
    both, ended = threading.Barrier(2), threading.Event()

    def answer_together(peer: Peer) -> None:
        if peer.connection > 2:
            return peer.send(whole(b"new"))
        both.wait(5)
        peer.send(whole(b"old"))
        peer.read_request()
        ended.set()
        return peer.close()

    monkeypatch.setattr(http1, "look_at", lambda sock: lambda: False)
    with RawServer(answer_together) as server:
        firsts = [threading.Thread(target=posted, args=(transport, server.url)) for _ in range(2)]
        for first in firsts:
            first.start()
        for first in firsts:
            first.join(10)
        assert server.connections == 2
        assert lost(transport, server.url) is None
        assert ended.wait(5)
        assert posted(transport, server.url) == b"new"
        assert server.connections == 3


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_without_an_answer_is_told_as_such(transport: Transport, how: str) -> None:
    with RawServer(lambda peer: getattr(peer, how)()) as server:
        error = failure(transport, server.url)

    assert (error.status, error.code) == (502, "upstream_closed")


def test_a_request_on_a_new_connection_is_sent_only_once(transport: Transport) -> None:
    """Only a kept connection may be stale. On a new one the upstream has read the request, and
    perhaps done (and billed) the work."""
    with RawServer(lambda peer: peer.close()) as server:
        failure(transport, server.url)

        assert len(server.requests) == 1


def test_a_refused_connection_is_told_as_such(transport: Transport) -> None:
    port = free_port()

    error = failure(transport, f"http://127.0.0.1:{port}")

    assert (error.status, error.code) == (502, "upstream_unreachable")
    assert "Connection refused" in error.message


def test_an_upstream_that_accepts_no_connection_is_given_up_in_time(transport: Transport) -> None:
    """A listener whose queue is full drops further connections, as a dead host does."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    try:
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        started = time.monotonic()

        error = failure(transport, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        for each in (*fillers, listener):
            each.close()

    assert isinstance(error, UpstreamTimeout)
    assert (error.status, error.code) == (504, "upstream_connect_timeout")
    assert "within 0.3 s" in error.message
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"HTT"])
def test_an_upstream_without_a_head_is_given_up_in_time(transport: Transport, said: bytes) -> None:
    def answer(peer: Peer) -> None:
        peer.send(said)
        peer.wait_until_closed()

    with RawServer(answer) as server:
        error = failure(transport, server.url, read_timeout_s=0.5)
        # A request that may have been read is never sent again.
        assert len(server.requests) == 1

    assert isinstance(error, UpstreamTimeout)
    assert (error.status, error.code) == (504, "upstream_timeout")


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.7\r\n", b"\x15\x03\x01\x00", b"\r\n\r\n"])
def test_an_upstream_that_does_not_speak_http_is_a_bad_gateway(
    transport: Transport, said: bytes
) -> None:
    def answer(peer: Peer) -> None:
        peer.send(said)
        peer.close()

    with RawServer(answer) as server:
        assert failure(transport, server.url).status == 502


def test_a_tls_failure_is_called_one(transport: Transport) -> None:
    """As when a base URL says https:// and the server speaks plain HTTP."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def answer_in_plain() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer_in_plain)
        thread.start()
        error = failure(transport, f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()

    assert (error.status, error.code) == (502, "upstream_tls")
    assert "TLS" in error.message


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_tls_connection_is_checked_and_used_again(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate = str(self_signed(tmp_path / "both.pem", "IP:127.0.0.1"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    served: list[int] = []

    def serve() -> None:
        for number in range(2):
            connection, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                while tls.recv(10_000):
                    served.append(number)
                    # In records of their own, as a server writes them.
                    tls.sendall(head(content_length="3"))
                    tls.sendall(b"yes")

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert failure(transport, url).code == "upstream_tls", "nobody vouches for it"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
        with closing(Transport(settings_of())) as trusting:
            assert [posted(trusting, url) for _ in range(3)] == [b"yes"] * 3
        thread.join(10)

    assert served == [1, 1, 1]


def test_a_failing_proxy_is_called_one(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("http_proxy", f"http://user:proxypassword@127.0.0.1:{port}")

    error = failure(transport, "http://up.example")

    assert (error.status, error.code) == (502, "upstream_proxy")
    assert "proxypassword" not in error.message


def test_requests_go_through_the_proxy_of_the_environment(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(whole(b"proxied")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert posted(transport, "http://up.example") == b"proxied"
        assert proxy.requests[0].startswith(b"POST http://up.example/v1/chat HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999",
        *(url for url in ("http://" + "a" * 64 + ".invalid", "http://a..b.invalid")),
    ],
)
def test_a_base_url_that_cannot_be_used_is_told_as_such(transport: Transport, url: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        posted(transport, url)

    assert caught.value.status == 502
    assert url not in caught.value.message


def test_a_missing_ca_bundle_is_an_error_for_the_operator_and_no_fault_of_ours(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")

    assert failure(transport, "https://127.0.0.1:9").status == 502


def name_error() -> requests.ConnectionError:
    pool = urllib3.HTTPConnectionPool("up.example")
    connection = urllib3.connection.HTTPConnection("up.example")
    reason = urllib3.exceptions.NameResolutionError(
        "up.example", connection, socket.gaierror(-2, "Name or service not known")
    )
    return requests.ConnectionError(urllib3.exceptions.MaxRetryError(pool, "/v1/chat", reason))


@pytest.mark.parametrize(
    ("raised", "status", "code", "words"),
    [
        (name_error(), 502, "upstream_unreachable", "its name does not resolve"),
        (requests.ConnectTimeout("x"), 504, "upstream_connect_timeout", "did not accept"),
        (requests.ReadTimeout("x"), 504, "upstream_timeout", "did not answer within 5 s"),
        (requests.exceptions.SSLError("x"), 502, "upstream_tls", "TLS"),
        (requests.exceptions.ProxyError("x"), 502, "upstream_proxy", "proxy"),
        (requests.ConnectionError("x"), 502, "upstream_unreachable", "cannot be reached"),
        (requests.exceptions.InvalidURL("x"), 502, "upstream_bad_url", "base URL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_transport_failure_has_a_name(
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    status: int,
    code: str,
    words: str,
) -> None:
    """As requests tells them, which carries out what goes through an HTTP proxy."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with responses.RequestsMock() as fake:
        fake.add("POST", "https://up.example/v1/chat", body=raised)

        error = failure(transport, "https://up.example")

    assert (error.status, error.code) == (status, code)
    assert words in error.message
    assert "up.example" not in error.message


def refused() -> Exception:
    connection = urllib3.connection.HTTPConnection("up.example")
    return urllib3.exceptions.NewConnectionError(connection, "Connection refused")


def unknown() -> Exception:
    connection = urllib3.connection.HTTPConnection("up.example")
    return urllib3.exceptions.NameResolutionError(
        "up.example", connection, socket.gaierror(-2, "Name or service not known")
    )


@pytest.mark.parametrize(
    ("raised", "status", "code", "words"),
    [
        (unknown(), 502, "upstream_unreachable", "its name does not resolve"),
        (refused(), 502, "upstream_unreachable", "cannot be reached"),
        (TimeoutError(), 504, "upstream_connect_timeout", "did not accept"),
        (ssl.SSLCertVerificationError("x"), 502, "upstream_tls", "TLS"),
        (urllib3.exceptions.SSLError("x"), 502, "upstream_tls", "TLS"),
        (ConnectionResetError(), 502, "upstream_closed", "without an answer"),
        (OSError(errno.EMFILE, "Too many"), 503, "proxy_out_of_files", "file descriptor"),
        (OSError(errno.EHOSTUNREACH, "No route"), 502, "upstream_unreachable", "No route"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_failure_to_connect_has_a_name(
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    status: int,
    code: str,
    words: str,
) -> None:
    def connect(connection: object) -> None:
        raise raised

    monkeypatch.setattr(urllib3.connection.HTTPSConnection, "connect", connect)

    with pytest.raises(ApiError) as caught:
        posted(transport, "https://up.example")

    assert (caught.value.status, caught.value.code) == (status, code)
    assert words in caught.value.message
    assert "up.example" not in caught.value.message


def test_connections_beyond_the_pools_size_are_closed_after_use() -> None:
    transport = Transport(settings_of(QWEN_PROXY_MAX_IN_FLIGHT=1))
    both = threading.Barrier(2)

    def answer_together(peer: Peer) -> None:
        both.wait(5)
        peer.send(whole(b"x"))
        peer.read_request()
        peer.send(whole(b"y"))

    with closing(transport), RawServer(answer_together) as server:
        threads = [threading.Thread(target=posted, args=(transport, server.url)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        both.abort()
        assert server.connections == 2
        assert posted(transport, server.url) == b"y", "one of them was kept"
        assert server.connections == 2


def test_a_get_returns_status_and_body(transport: Transport) -> None:
    with RawServer(whole(b'{"data":[]}', "404 Not Found")) as server:
        assert transport.get(token_for(server.url), "/models", timeout_s=5) == (404, b'{"data":[]}')
        (sent,) = server.requests

    assert sent.startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert f"Authorization: Bearer {SECRET}".encode() in sent


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (head(content_length="10") + b"12345", "upstream_broken"),
        (head(transfer_encoding="chunked") + b"5\r\n123", "upstream_broken"),
        (b"", "upstream_closed"),
    ],
)
def test_a_get_that_breaks_off_is_an_error(transport: Transport, said: bytes, code: str) -> None:
    def answer(peer: Peer) -> None:
        peer.send(said)
        peer.close()

    with RawServer(answer) as server, pytest.raises(UpstreamError) as caught:
        transport.get(token_for(server.url), "/models", timeout_s=5)

    assert (caught.value.status, caught.value.code) == (502, code)


@pytest.mark.parametrize("said", [b"", head(content_length="10") + b"12345"])
def test_a_get_that_stalls_is_a_timeout(transport: Transport, said: bytes) -> None:
    def answer(peer: Peer) -> None:
        peer.send(said)
        peer.wait_until_closed()

    with RawServer(answer) as server, pytest.raises(UpstreamTimeout) as caught:
        transport.get(token_for(server.url), "/models", timeout_s=0.1)

    assert caught.value.status == 504


def test_a_get_on_a_connection_that_was_closed_in_the_very_moment_is_sent_again(
    transport: Transport,
) -> None:
    def close_at_the_next(peer: Peer) -> None:
        peer.send(whole(b"one"))
        peer.read_request()
        peer.close()

    with RawServer(close_at_the_next, whole(b"two")) as server:
        token = token_for(server.url)
        assert transport.get(token, "/models", timeout_s=5) == (200, b"one")
        assert transport.get(token, "/models", timeout_s=5) == (200, b"two")
