"""Downloads of results, from real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.upstream.http import download
from qwen_wsgi.upstream.http.download import Downloads
from qwen_wsgi.upstream.http.transport import Transport
from tests.fakes.raw_server import Answer, Gone, Peer, RawServer, whole
from tests.fakes.upstream import settings_of
from tests.kit.processes import free_port

PLAIN = "http://account.example/v1"
PRIVATE = {"account.example": "127.0.0.1"}


def downloads(names: dict[str, str] = PRIVATE, **env: str) -> Downloads:
    """With names of the test's own instead of DNS; a server's port is in the URL."""
    settings = settings_of(**env)

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        if host not in names:
            raise socket.gaierror("unknown")
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (each, port)) for each in names[host].split()]

    return Downloads(settings, Transport(settings), resolve=resolve)


def port_of(server: RawServer) -> int:
    return int(server.url.rsplit(":", 1)[1].split("/")[0])


def fetched(answer: Answer, *, max_bytes: int = 1000, **options: Any) -> bytes:
    with RawServer(answer) as server:
        names = {**PRIVATE, "x.aliyuncs.com": "127.0.0.1"}
        url = f"http://x.aliyuncs.com:{port_of(server)}/a.png?b=c"
        return downloads(names).open(url, PLAIN, max_bytes=max_bytes, **options).read()


def failure(answer: Answer, **options: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        fetched(answer, **options)
    return raised.value


def test_a_result_is_fetched_with_no_credential() -> None:
    with RawServer(whole(b"picture")) as server:
        names = {**PRIVATE, "x.aliyuncs.com": "127.0.0.1"}
        url = f"http://x.aliyuncs.com:{port_of(server)}/a.png?b=c"
        got = downloads(names).open(url, PLAIN, max_bytes=1000, headers={"Range": "bytes=0-"})
        assert got.read() == b"picture"
        assert (got.status, got.length) == (200, 7)
        request = server.requests[0].decode()

    assert request.startswith("GET /a.png?b=c HTTP/1.1\r\n")
    assert f"Host: x.aliyuncs.com:{port_of(server)}\r\n" in request
    assert "Range: bytes=0-\r\n" in request
    assert "authorization" not in request.lower()


@pytest.mark.parametrize(
    ("names", "host", "fine"),
    [
        # A public host of the account: results are not behind private addresses.
        ({"account.example": "8.8.8.8", "x.aliyuncs.com": "127.0.0.1"}, "x.aliyuncs.com", False),
        (
            {"account.example": "8.8.8.8 10.0.0.1", "x.aliyuncs.com": "10.0.0.1"},
            "x.aliyuncs.com",
            False,
        ),
        ({"account.example": "127.0.0.1", "x.aliyuncs.com": "127.0.0.1"}, "x.aliyuncs.com", True),
        ({"account.example": "127.0.0.1"}, "account.example", True),
    ],
)
def test_private_addresses_only_where_the_accounts_own_host_is_private(
    names: dict[str, str], host: str, fine: bool
) -> None:
    with RawServer(whole(b"x")) as server:
        port = port_of(server)
        base_url = f"http://account.example:{port}/v1"
        open_ = downloads(names).open
        if fine:
            assert open_(f"http://{host}:{port}/a", base_url, max_bytes=9).read() == b"x"
            return
        with pytest.raises(UpstreamError) as raised:
            open_(f"http://{host}:{port}/a", base_url, max_bytes=9)
        assert server.requests == []
    assert raised.value.code == "upstream_result_refused"
    assert "private network" in raised.value.message


def test_a_name_is_looked_up_once_and_that_address_is_used() -> None:
    asked = []

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        # As a name that changes between the check and the connection.
        address = "127.0.0.1" if asked.count(host) == 1 else "127.0.0.99"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    settings = settings_of()
    with RawServer(whole(b"x")) as server:
        base_url = f"http://account.example:{port_of(server)}/v1"
        url = f"http://account.example:{port_of(server)}/a"
        got = Downloads(settings, Transport(settings), resolve=resolve).open(
            url, base_url, max_bytes=9
        )
        assert got.read() == b"x"
    assert asked.count("account.example") <= 2  # once for the result, once as the account's


def moved(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def test_redirects_are_followed_by_the_same_rules() -> None:
    with RawServer(moved("/b"), whole(b"there")) as server:
        names = {**PRIVATE, "x.aliyuncs.com": "127.0.0.1"}
        url = f"http://x.aliyuncs.com:{port_of(server)}/a"
        assert downloads(names).open(url, PLAIN, max_bytes=9).read() == b"there"
    refused = failure(moved("http://169.254.169.254/latest"))
    endless = failure(moved("/again"))

    assert refused.code == endless.code == "upstream_result_refused"
    assert "redirected too often" in endless.message


@pytest.mark.parametrize("length", [b"Content-Length: 2000\r\n", b"Connection: close\r\n"])
def test_a_result_that_is_too_large_is_not_held(length: bytes) -> None:
    def answer(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        try:
            for _ in range(1000):
                peer.send(b"x" * 1000)
        except Gone:
            return
        peer.close()

    assert failure(answer).code == "upstream_too_large"


def test_a_result_that_breaks_off_is_no_result() -> None:
    def answer(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf")
        peer.close()

    assert failure(answer).code == "upstream_broken"


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(download, "_SLOW_S", 0.2)
    monkeypatch.setattr(download, "_SLOW_BYTES", 200)
    yield


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("pause_s", [0.02, 5.0])
def test_a_result_that_trickles_or_stops_is_given_up(pause_s: float) -> None:
    import time

    def answer(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        end_s = time.monotonic() + 5
        try:
            while time.monotonic() < end_s:
                peer.send(b"x")
                if pause_s > 1:
                    peer.wait_until_closed()
                    return
                time.sleep(pause_s)
        except Gone:
            return

    error = failure(answer)
    assert error.code == "upstream_timeout"
    assert "1 kB/s" in error.message


def test_a_host_that_says_no_or_nothing() -> None:
    gone = failure(whole(b"", "404 Not Found"))
    with pytest.raises(UpstreamError) as silent:
        downloads().open(
            f"http://account.example:{free_port()}/a",
            "http://account.example:1/v1",
            max_bytes=9,
        )

    assert (gone.code, gone.should_retry) == ("upstream_result_missing", False)
    assert "24 hours" in gone.message
    assert silent.value.code == "upstream_result_refused"  # another port is another host


def test_a_host_without_an_address_is_told() -> None:
    with pytest.raises(UpstreamError) as raised:
        downloads({"account.example": "127.0.0.1"}).open(
            "http://nowhere.aliyuncs.com/a", PLAIN, max_bytes=9
        )
    assert raised.value.code == "upstream_unreachable"
