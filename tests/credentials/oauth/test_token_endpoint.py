"""What every outcome of a request for tokens proves, against real servers."""

from __future__ import annotations

import email.utils
import json
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests

from qwen_wsgi import __version__
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.oauth import token_endpoint, wire
from qwen_wsgi.credentials.oauth.errors import (
    Ambiguous,
    Denied,
    Expired,
    NotSent,
    OAuthFailure,
    Refused,
    Rejected,
    Throttled,
)
from qwen_wsgi.credentials.oauth.token_endpoint import (
    Pending,
    SlowDown,
    TokenAnswer,
    TokenEndpoint,
)
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.clock import NOON_S, FakeClock
from tests.fakes.raw_server import Answer, Peer, RawServer, chunked, head, whole
from tests.kit.certificates import self_signed
from tests.kit.processes import free_port

REFRESH = "refresh-0123456789-abcdefghij-secret"
TOKENS = {"access_token": "access-0123456789-abcdefghij", "token_type": "Bearer"}
WALL = b"<!doctype html><title>verify</title><script src='/captcha.js'></script>"
HTML = "text/html; charset=utf-8"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running
        state = running.state()
    assert state["internal_errors"] == 0, state["last_failure"]


def at(origin: str, **more: Any) -> TokenEndpoint:
    return TokenEndpoint(origin, **{"clock": SystemClock(), **more})


def as_json(value: Any, status: str = "200 OK", **headers: str) -> bytes:
    return whole(json.dumps(value).encode(), status, **headers)


def refresh(*answers: Answer, clock: Any = None, **more: Any) -> TokenAnswer:
    """Refresh at a server that gives these answers."""
    with RawServer(*answers) as server:
        return at(server.url, clock=clock or SystemClock()).refresh(REFRESH, **more)


def failure(kind: type[OAuthFailure], *answers: Answer, **more: Any) -> OAuthFailure:
    """The failure of a refresh, which is of this very kind."""
    with pytest.raises(OAuthFailure) as caught:
        refresh(*answers, **more)
    assert type(caught.value) is kind, caught.value
    return caught.value


# --- what is sent --------------------------------------------------------------------------------


def test_a_refresh_is_one_plain_form_on_a_connection_of_its_own(home: Any) -> None:
    """Neither netrc nor cookies of an earlier answer get into it."""
    netrc = home.path / ".netrc"
    netrc.write_text("default login somebody password hunter2-hunter2")
    netrc.chmod(0o600)
    answer = as_json(TOKENS, set_cookie="acw_tc=1; path=/")

    with RawServer(answer) as server:
        endpoint = at(server.url + "/")
        endpoint.refresh(REFRESH)
        endpoint.refresh(REFRESH)

    assert server.connections == 2
    assert (
        server.requests[0].partition(b"x-request-id")[0]
        == (server.requests[1].partition(b"x-request-id")[0])
    )
    top, _, body = server.requests[1].decode().partition("\r\n\r\n")
    line, *headers = top.split("\r\n")
    assert line == "POST /api/v1/oauth2/token HTTP/1.1"
    assert parse_qs(body) == {
        "grant_type": ["refresh_token"],
        "refresh_token": [REFRESH],
        "client_id": ["f0304373b74a44d2b584a3fb70ca9e56"],
    }
    fields = {name.lower(): value for name, value in (h.split(": ") for h in headers)}
    assert fields["content-type"] == "application/x-www-form-urlencoded"
    assert fields["accept"] == "application/json"
    assert fields["user-agent"] == f"qwen-proxy/{__version__}"
    assert not {"authorization", "cookie"}.intersection(fields)


def test_the_device_request_carries_scope_and_challenge() -> None:
    code = {"device_code": "d", "user_code": "AB-CD", "verification_uri": "https://x/y"}
    with RawServer(as_json(code)) as server:
        at(server.url).device_code("the-challenge")

    assert server.requests[0].startswith(b"POST /api/v1/oauth2/device/code ")
    assert parse_qs(server.requests[0].rpartition(b"\r\n\r\n")[2].decode()) == {
        "client_id": ["f0304373b74a44d2b584a3fb70ca9e56"],
        "scope": ["openid profile email model.completion"],
        "code_challenge": ["the-challenge"],
        "code_challenge_method": ["S256"],
    }


def test_a_redirect_is_not_followed(sandbox: Sandbox) -> None:
    """The token would go to wherever it points."""
    sandbox.control(next={"spec": "redirect", "route": "token"})

    with pytest.raises(Refused):
        at(sandbox.origin).refresh(sandbox.issue()["refresh_token"])
    assert [record.route for record in sandbox.settle()] == ["token"]


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        ("ftp://chat.qwen.ai", "does not begin with"),
        ("https://", "does not begin with"),
        ("https://user:word@chat.qwen.ai", "user name or password"),
        ("http://chat.qwen.ai", "plain http to another machine"),
    ],
)
def test_an_origin_that_cannot_be_used_is_refused_at_once(origin: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        at(origin)


# --- a success -----------------------------------------------------------------------------------


def test_a_refresh_gives_the_whole_answer(sandbox: Sandbox) -> None:
    before_s = time.time()

    answer = at(sandbox.origin).refresh(sandbox.issue()["refresh_token"])

    assert answer.access_token.startswith("sandbox-at-")
    assert (answer.refresh_token or "").startswith("sandbox-rt-")
    assert answer.token_type == "Bearer"
    assert answer.resource_url == sandbox.origin
    assert answer.expires_in_s == 21600
    assert before_s * 1000 - 1 <= answer.sent_wall_ms <= answer.received_wall_ms
    assert answer.received_wall_ms <= time.time() * 1000
    assert answer.expires_at_ms == answer.sent_wall_ms + 21600_000


def test_its_times_are_those_before_it_was_sent() -> None:
    """So that a slow answer makes a token expire early, not late."""
    clock = FakeClock()

    def slowly(peer: Peer) -> None:
        clock.advance(14)
        peer.send(as_json(TOKENS))

    with RawServer(slowly) as server:
        endpoint = at(server.url, clock=clock, boottime=clock.monotonic)
        answer = endpoint.refresh(REFRESH)

    assert answer.sent_wall_ms == NOON_S * 1000
    assert answer.sent_boottime_s == 1000
    assert answer.received_wall_ms == (NOON_S + 14) * 1000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (21600, 21600),
        (0.5, 0.5),
        ("3600", 3600),
        (" 3600.5 ", 3600.5),
        ("1e3", 1000),
        (0, None),
        (-5, None),
        (None, None),
        (True, None),
        ("soon", None),
        ("-5", None),
        ("1_000", None),
        ("nan", None),
        (float("nan"), None),
        (float("inf"), None),
        ("1e999", None),
        (10**400, None),
        ([3600], None),
    ],
)
def test_expires_in_is_a_positive_number_or_nothing(value: Any, seconds: float | None) -> None:
    answer = refresh(as_json({**TOKENS, "expires_in": value}))

    assert answer.expires_in_s == seconds
    assert answer.life_s == (seconds or 1800)


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [("expires-in", None), ("expires-in=string", 21600), ("expires-in=zero", None)],
)
def test_odd_lives_from_the_service(sandbox: Sandbox, spec: str, seconds: float | None) -> None:
    sandbox.control(next={"spec": spec, "route": "token"})

    answer = at(sandbox.origin).refresh(sandbox.issue()["refresh_token"])
    assert answer.expires_in_s == seconds


def test_what_may_be_missing_may_be_missing(sandbox: Sandbox) -> None:
    sandbox.control(next={"spec": "no-refresh-token, no-resource-url", "route": "token"})

    answer = at(sandbox.origin).refresh(sandbox.issue()["refresh_token"])
    assert (answer.refresh_token, answer.resource_url) == (None, None)

    bare = refresh(as_json({"access_token": "a" * 30, "refresh_token": "", "resource_url": 7}))
    assert (bare.token_type, bare.refresh_token, bare.resource_url) == ("Bearer", None, None)


@pytest.mark.parametrize("spec", ["gzip", "close", "split=1"])
def test_odd_transports_of_a_good_answer(sandbox: Sandbox, spec: str) -> None:
    sandbox.control(next={"spec": spec, "route": "token"})

    assert at(sandbox.origin).refresh(sandbox.issue()["refresh_token"]).refresh_token


def test_a_date_without_end_is_cut_off() -> None:
    assert refresh(as_json({**TOKENS, "expires_in": 1e300})).expires_at_ms == 8.64e15


@pytest.mark.parametrize(
    ("off_s", "skew_s"), [(0, None), (59, None), (-59, None), (3600, 3600), (-86400, -86400)]
)
def test_a_wrong_clock_is_noticed(clock: FakeClock, off_s: float, skew_s: float | None) -> None:
    date = email.utils.formatdate(NOON_S + off_s, usegmt=True)

    assert refresh(as_json(TOKENS, date=date), clock=clock).clock_skew_s == skew_s


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Nov 2026 12:00:00 GMT", "1"])
def test_a_date_that_is_none_says_nothing(clock: FakeClock, date: str) -> None:
    assert refresh(as_json(TOKENS, date=date), clock=clock).clock_skew_s is None


def test_a_slow_answer_is_no_wrong_clock(clock: FakeClock) -> None:
    """The date was written while we waited."""

    def slowly(peer: Peer) -> None:
        clock.advance(200)
        peer.send(as_json(TOKENS, date=email.utils.formatdate(NOON_S + 100, usegmt=True)))

    assert refresh(slowly, clock=clock).clock_skew_s is None


# --- answers that are failures -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("token-error", Rejected),
        ("token-error=invalid_grant", Rejected),
        ("status=401", Rejected),
        ("token-error=temporarily_unavailable", Ambiguous),
        ("status=429", Throttled),
        ("status=500", Ambiguous),
        ("token-error=access_denied, status=403", Refused),
        ("token-error=slow_down", Throttled),
        ("html-502", Ambiguous),
        ("empty-503", Ambiguous),
        ("html-200", Ambiguous),
        ("empty-200", Ambiguous),
        ("not-json", Ambiguous),
        ("json-error-200", Ambiguous),
        ("no-access-token", Ambiguous),
        ("empty-404", Refused),
        ("redirect", Refused),
        ("drop", Ambiguous),
        ("reset", Ambiguous),
        ("garbage", Ambiguous),
        ("half-headers", Ambiguous),
        ("hang", Ambiguous),
        ("slow-headers=2", Ambiguous),
        ("slow-before=2", Ambiguous),
        ("slow-after=2", Ambiguous),
        ("cut-after-rotation", Ambiguous),
        ("after-rotation, reset", Ambiguous),
        ("after-rotation, html-502", Ambiguous),
    ],
)
def test_each_failure_of_the_service(sandbox: Sandbox, spec: str, kind: type[OAuthFailure]) -> None:
    sandbox.control(next={"spec": spec, "route": "token"})
    token = sandbox.issue()["refresh_token"]

    with pytest.raises(OAuthFailure) as caught:
        at(sandbox.origin).refresh(token, timeout_s=(1, 0.4))

    assert type(caught.value) is kind, caught.value
    assert len(sandbox.requests) == 1, "it was sent twice"
    assert token not in str(caught.value)


def at_works(sandbox: Sandbox, token: str) -> bool:
    """Whether a refresh token is good for a refresh now."""
    try:
        at(sandbox.origin).refresh(token)
    except Rejected:
        return False
    return True


def test_a_token_is_rejected_the_second_time(sandbox: Sandbox) -> None:
    token = sandbox.issue()["refresh_token"]

    assert at_works(sandbox, token)
    assert not at_works(sandbox, token)
    assert not at_works(sandbox, "unknown")


@pytest.mark.parametrize("spec", ["slow-after=2", "cut-after-rotation", "after-rotation, reset"])
def test_ambiguous_may_well_mean_spent(sandbox: Sandbox, spec: str) -> None:
    sandbox.control(next={"spec": spec, "route": "token"})
    token = sandbox.issue()["refresh_token"]

    with pytest.raises(Ambiguous):
        at(sandbox.origin).refresh(token, timeout_s=(1, 0.4))
    assert not at_works(sandbox, token)


@pytest.mark.parametrize(
    "answer",
    [
        whole(WALL, "400 Bad Request", HTML),
        whole(WALL, "401 Unauthorized", HTML),
        whole(WALL, "400 Bad Request", "application/json"),
        whole(b"", "400 Bad Request"),
        whole(b"", "401 Unauthorized"),
        whole(b"Bad Request", "400 Bad Request", "text/plain"),
        whole(WALL, "403 Forbidden", HTML),
        whole(WALL, "405 Method Not Allowed", HTML),
        as_json({"code": "InvalidParameter", "message": "x"}, "400 Bad Request"),
        as_json({"error": {"code": "x"}}, "400 Bad Request"),
        as_json(["invalid_grant"], "400 Bad Request"),
        as_json("invalid_grant", "401 Unauthorized"),
        as_json({"error": "access_denied"}, "403 Forbidden"),
        b"HTTP/1.1 401 Unautho",
        b"HTTP/1.1 400 Bad Request\r\ncontent-ty",
    ],
)
def test_only_the_endpoint_itself_can_reject_a_token(answer: bytes) -> None:
    """A good token that is taken for a bad one is a lost login."""

    def and_close(peer: Peer) -> None:
        peer.send(answer)
        peer.close()

    failure(Refused, and_close)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"error": "invalid_grant"}, "400 Bad Request", "invalid_grant"),
        ({"error": "invalid_request", "error_description": "x"}, "400 x", "invalid_request"),
        ({"error": "some_new_word"}, "400 Bad Request", ""),
        ({"error": "invalid_client"}, "401 Unauthorized", "invalid_client"),
        ({"code": "x"}, "401 Unauthorized", ""),
    ],
)
def test_the_endpoints_own_errors_are_rejections(
    body: dict[str, str], status: str, word: str
) -> None:
    rejected = failure(Rejected, as_json(body, status))

    assert isinstance(rejected, Rejected)
    assert rejected.word == word
    assert rejected.status == int(status[:3])


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "200 OK"])
def test_an_answer_that_is_cut_is_ambiguous_whatever_its_status(status: str) -> None:
    body = json.dumps({"error": "invalid_grant", **TOKENS}).encode()

    def by_length(peer: Peer) -> None:
        peer.send(head(status, content_length=str(len(body) + 1)) + body)
        peer.close()

    def by_chunks(peer: Peer) -> None:
        peer.send(head(status, transfer_encoding="chunked") + chunked(body, end=False))
        peer.reset()

    failure(Ambiguous, by_length)
    failure(Ambiguous, by_chunks)


def test_deep_json_is_no_json() -> None:
    failure(Ambiguous, whole(b"[" * 200_000))


def test_an_endless_answer_is_read_up_to_a_limit() -> None:
    sent = 0

    def endless(peer: Peer) -> None:
        nonlocal sent
        peer.send(head("400 Bad Request", content_type=HTML))
        with suppress(Exception):
            while sent < 1 << 30:
                peer.send(b"x" * 65_536)
                sent += 65_536

    failure(Refused, endless)
    # What the sockets between us hold comes on top.
    assert sent < 32 << 20


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("1.5", 1.5),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("Fri, 20 Nov 2026 12:01:30 GMT", 90),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_retry_after(clock: FakeClock, value: str, seconds: float | None) -> None:
    answer = as_json({"error": "slow"}, "429 Too Many Requests", retry_after=value)

    throttled = failure(Throttled, answer, clock=clock)
    assert isinstance(throttled, Throttled)
    assert throttled.retry_after_s == seconds


def test_a_date_to_retry_after_is_counted_by_the_servers_clock() -> None:
    """Here ours is wrong by weeks."""
    answer = as_json(
        {},
        "429 Too Many Requests",
        date="Thu, 01 Oct 2026 12:00:00 GMT",
        retry_after="Thu, 01 Oct 2026 12:00:20 GMT",
    )
    throttled = failure(Throttled, answer, clock=FakeClock())
    assert isinstance(throttled, Throttled)
    assert throttled.retry_after_s == 20


# --- sent or not sent ----------------------------------------------------------------------------


@contextmanager
def listening(script: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port whose connections are driven by a script; they are closed when it returns."""
    failures: list[BaseException] = []

    def serve() -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                if stopping.is_set():
                    return
                sock.settimeout(10)
                try:
                    script(sock)
                except OSError:
                    pass
                except BaseException as error:
                    failures.append(error)

    stopping = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield port
        finally:
            stopping.set()
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            thread.join(10)
    assert not failures


def until_closed(sock: socket.socket) -> None:
    while sock.recv(65_536):
        pass


def unsent(origin: str, **more: Any) -> str:
    with pytest.raises(OAuthFailure) as caught:
        at(origin).refresh(REFRESH, **more)
    assert type(caught.value) is NotSent, caught.value
    return str(caught.value)


def test_a_closed_port_is_not_sent() -> None:
    assert unsent(f"http://127.0.0.1:{free_port()}").endswith("Connection refused")


def test_an_unknown_name_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: Any, **_more: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert unsent("https://chat.qwen.invalid").endswith("its name does not resolve")


def test_a_connect_timeout_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_args: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", silent)
    assert unsent("http://127.0.0.1:9").endswith("no connection in time")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(lambda sock: sock.recv(1), id="closes in the handshake"),
        pytest.param(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad\r\n\r\n"), id="no TLS"),
        pytest.param(until_closed, id="silent in the handshake"),
    ],
)
def test_a_failed_tls_handshake_is_not_sent(script: Callable[[socket.socket], None]) -> None:
    """A handshake that times out is a ReadTimeout to `requests`: its exceptions cannot tell."""
    with listening(script) as port:
        unsent(f"https://127.0.0.1:{port}", timeout_s=(0.3, 5))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    return self_signed(tmp_path_factory.mktemp("tls") / "both.pem", "IP:127.0.0.1")


@contextmanager
def tls(certificate: Path, script: Callable[[socket.socket], None]) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def secured(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as inner:
            script(inner)

    with listening(secured) as port:
        yield f"https://127.0.0.1:{port}"


def test_an_unknown_certificate_is_not_sent(certificate: Path) -> None:
    seen = bytearray()
    with tls(certificate, lambda sock: seen.extend(sock.recv(65_536))) as origin:
        assert "certificate" in unsent(origin).lower()
    assert not seen


@pytest.mark.parametrize("place", ["environment", "session"])
def test_tls_with_a_ca_bundle(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def serve(sock: socket.socket) -> None:
        seen = b""
        while REFRESH.encode() not in seen:
            seen += sock.recv(65_536)
        sock.sendall(as_json(TOKENS))

    def session() -> requests.Session:
        made = requests.Session()
        if place == "session":
            made.verify = str(certificate)
        return made

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    if place == "environment":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with tls(certificate, serve) as origin:
        endpoint = at(origin, session_factory=session)
        assert endpoint.refresh(REFRESH).access_token == TOKENS["access_token"]


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_what_fails_in_tls_after_it_was_sent_is_ambiguous(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """To `requests` the one is an SSLError, as is a failed handshake."""

    def cut(sock: socket.socket) -> None:
        sock.recv(65_536)
        if seconds:
            until_closed(sock)
        sock.shutdown(socket.SHUT_RDWR)

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with tls(certificate, cut) as origin, pytest.raises(Ambiguous):
        at(origin).refresh(REFRESH, timeout_s=(1, 0.3))


def trickle(sock: socket.socket) -> None:
    """One byte now and then, each of them within every time-out of a socket."""
    sock.recv(65_536)
    sock.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while True:
        sock.sendall(b"x")
        time.sleep(0.05)


def test_a_trickling_answer_ends_in_time(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold the login's locks for ever."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))

    with listening(trickle) as port, tls(certificate, trickle) as secure:
        for origin in (f"http://127.0.0.1:{port}", secure):
            before_s = time.monotonic()
            with pytest.raises(Ambiguous):
                at(origin).refresh(REFRESH, timeout_s=(0.5, 0.3))
            assert time.monotonic() - before_s < 3


def test_a_connection_that_comes_too_late_is_not_used() -> None:
    """Name resolution has no time-out: what is sent after it would be sent without locks."""
    with RawServer(as_json(TOKENS)) as server:
        unsent(server.url, timeout_s=(0.1, 0.1), before_send=lambda: time.sleep(0.5))
    assert server.connections == 1
    assert not server.requests


def test_the_caller_can_stop_it_before_the_first_byte() -> None:
    def stop() -> None:
        raise NotSent("the worker is shutting down")

    with RawServer(as_json(TOKENS)) as server:
        assert unsent(server.url, before_send=stop) == "the worker is shutting down"
    assert not server.requests


def test_without_a_watched_connection_nothing_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a `requests` that makes its connections in another way, such as 2.32.1."""
    monkeypatch.delattr(wire.Adapter, "get_connection_with_tls_context")

    with pytest.raises(Ambiguous):
        at(f"http://127.0.0.1:{free_port()}").refresh(REFRESH)
    assert refresh(as_json(TOKENS), clock=FakeClock()).sent_wall_ms == NOON_S * 1000


def test_a_reset_while_the_request_is_read_is_ambiguous() -> None:
    def reset(sock: socket.socket) -> None:
        sock.recv(10)

    with listening(reset) as port, pytest.raises(Ambiguous):
        at(f"http://127.0.0.1:{port}").refresh(REFRESH)


def test_a_proxy_that_refuses_or_is_gone_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it got is CONNECT, not the token."""
    with RawServer(head("407 Proxy Authentication Required", content_length="0")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://someone:proxy-password@127.0.0.1:{proxy.port}")
        assert unsent("https://127.0.0.1:9").endswith("the HTTP proxy on the way failed")
    assert proxy.requests[0].startswith(b"CONNECT 127.0.0.1:9 ")
    assert REFRESH.encode() not in b"".join(proxy.requests)

    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    assert unsent("https://127.0.0.1:9").endswith("the HTTP proxy on the way failed")


def test_a_proxy_lets_the_tls_connection_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def tunnel(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        sock.recv(65_536)

    with listening(tunnel) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        unsent("https://127.0.0.1:9")


def test_a_proxy_for_plain_http_may_have_passed_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(whole(WALL, "502 Bad Gateway", HTML)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(Ambiguous):
            at("http://127.0.0.1:9").refresh(REFRESH)
    assert proxy.requests[0].startswith(b"POST http://127.0.0.1:9/api/")


@pytest.mark.server
def test_the_same_under_gevent(sandbox: Sandbox) -> None:
    """Threads are greenlets there, and the end of a slow exchange must still come."""
    code = f"""
        from gevent import monkey
        monkey.patch_all()
        import gevent
        from qwen_wsgi.clock import SystemClock
        from qwen_wsgi.credentials.oauth.errors import Ambiguous
        from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
        endpoint = TokenEndpoint({sandbox.origin!r}, clock=SystemClock())
        def one(token):
            try:
                return endpoint.refresh(token, timeout_s=(1, 0.3)).life_s
            except Ambiguous as failure:
                return str(failure)
        jobs = [gevent.spawn(one, token) for token in {[sandbox.issue()["refresh_token"]] * 2!r}]
        print([job.get() for job in jobs])
    """
    sandbox.control(next={"spec": "hang", "route": "token"})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    assert "no answer in time" in done.stdout
    assert "21600.0" in done.stdout


# --- secrets -------------------------------------------------------------------------------------


def test_no_secret_is_shown(sandbox: Sandbox) -> None:
    echo = (
        f"<p>refresh_token={REFRESH} eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc_def</p>"
    )
    pages = (
        whole(echo.encode(), "403 Forbidden", HTML),
        whole(echo.encode(), "200 OK", HTML),
        as_json({"error": REFRESH, "error_description": REFRESH}, "400 Bad Request"),
        lambda peer: peer.reset(),
    )
    for page in pages:
        try:
            refresh(page)
        except OAuthFailure as caught:
            shown = [repr(caught), str(caught), *traceback.format_exception(caught)]
            assert caught.__cause__ is None
            # The exceptions of `requests` carry the request, and it the token.
            assert caught.__context__ is None
        assert not any(part in "".join(shown) for part in (REFRESH, REFRESH[:16], "eyJ"))

    answer = refresh(as_json({**TOKENS, "refresh_token": REFRESH}))
    code = token_endpoint.DeviceCode("device-secret", "AB-CD", "https://x", 1, None)
    for value in (answer, code):
        assert not any(
            secret in f"{value!r}{value}"
            for secret in (REFRESH, TOKENS["access_token"], "device-secret")
        )


def test_a_page_is_shown_in_part_and_in_one_line() -> None:
    text = "<p>Access \x1b[31mdenied\x1b[0m\r\n" + "by the wall " * 1000
    shown = str(failure(Refused, whole(text.encode(), "403 Forbidden", HTML)))

    assert shown.startswith("status 403 (text/html; charset=utf-8: '<p>Access [31mdenied")
    assert shown.isprintable()
    assert len(shown) < 256 + 60


@pytest.mark.parametrize(
    ("status", "content_type", "page"),
    [("403 x", HTML, True), ("403 x", "text/plain", True), ("502 x", HTML, True)],
)
def test_a_page_is_told_from_other_failures(status: str, content_type: str, page: bool) -> None:
    kind = Ambiguous if status.startswith("5") else Refused
    assert failure(kind, whole(WALL, status, content_type)).page is page
    assert not failure(kind, as_json({"message": "<html>"}, status)).page


# --- the device flow -----------------------------------------------------------------------------


def begin(sandbox: Sandbox) -> token_endpoint.DeviceCode:
    return at(sandbox.origin).device_code("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")


#: Belongs to the challenge above: RFC 7636 appendix B.
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"


def test_a_device_code(sandbox: Sandbox) -> None:
    code = begin(sandbox)

    assert code.user_code in code.url
    assert code.url.startswith(sandbox.origin)
    assert (code.expires_in_s, code.interval_s) == (900, None)


def test_polls(sandbox: Sandbox) -> None:
    code = begin(sandbox)
    endpoint = at(sandbox.origin)

    def poll() -> object:
        return endpoint.poll(code.device_code, VERIFIER)

    sandbox.control(slow_down_polls=1)
    assert poll() == SlowDown()
    assert poll() == Pending()
    sandbox.control(pending_as_200=True)
    assert poll() == Pending()
    sandbox.control(approve=code.user_code)
    assert isinstance(poll(), TokenAnswer)
    with pytest.raises(Expired):
        poll()


@pytest.mark.parametrize(("verdict", "kind"), [("deny", Denied), ("expire", Expired)])
def test_the_end_of_a_code(sandbox: Sandbox, verdict: str, kind: type[Rejected]) -> None:
    code = begin(sandbox)
    sandbox.control({verdict: "*"})

    with pytest.raises(kind):
        at(sandbox.origin).poll(code.device_code, VERIFIER)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (as_json({"error": "slow_down"}, "400 x"), SlowDown),
        (as_json({"error": "slow_down"}, "429 x"), SlowDown),
        (as_json({"error": "rate_limit_exceeded"}, "429 x"), Throttled),
        (as_json({"error": "access_denied"}, "403 x"), Denied),
        (as_json({"error": "expired_token"}, "400 x"), Expired),
        (as_json({"error": "invalid_grant"}, "400 x"), Rejected),
        (as_json({"error": "anything"}, "401 x"), Expired),
        (whole(WALL, "401 x", HTML), Refused),
        (whole(b"", "401 x"), Refused),
        (whole(WALL, "200 OK", HTML), Ambiguous),
        (as_json({"error": "server_error"}, "500 x"), Ambiguous),
        (as_json({"error": "authorization_pending"}, "500 x"), Ambiguous),
        (as_json({"status": "pending"}), Pending),
        (as_json({"status": "done"}), Ambiguous),
    ],
)
def test_each_answer_to_a_poll(answer: bytes, outcome: type) -> None:
    with RawServer(answer) as server:
        try:
            got: object = at(server.url).poll("code", VERIFIER)
        except OAuthFailure as caught:
            got = caught
    assert type(got) is outcome, got


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": ""},
        {"user_code": None},
        {"user_code": "AB\x1b[2J"},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "https://x/\x1b[2J"},
        {"verification_uri": "https://x/a b"},
        {"verification_uri": None},
    ],
)
def test_a_device_code_that_cannot_be_shown_is_none(changes: dict[str, Any]) -> None:
    code = {"device_code": "d", "user_code": "AB", "verification_uri": "https://x/", **changes}
    with RawServer(as_json(code)) as server, pytest.raises(Ambiguous):
        at(server.url).device_code("c")


def test_a_bare_device_code_and_one_with_an_interval() -> None:
    bare = {"device_code": "d", "user_code": "AB", "verification_uri": "https://x/"}
    with RawServer(as_json(bare), as_json({**bare, "interval": "5", "expires_in": 60})) as server:
        first, second = (at(server.url).device_code("c") for _ in range(2))

    assert (first.url, first.expires_in_s, first.interval_s) == ("https://x/", 900, None)
    assert (second.expires_in_s, second.interval_s) == (60, 5)
