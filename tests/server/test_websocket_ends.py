"""WebSockets that end, or never begin: refusals, limits, clients that leave, silence, and stops."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from qwen_wsgi.sandbox import Sandbox
from tests.kit import servers
from tests.kit.processes import tree
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy, has_chats, start
from tests.kit.raw_client import Exchange, chat
from tests.kit.secrets import secret
from tests.kit.websocket_client import HANDSHAKE, MODEL, Socket, frame

pytestmark = pytest.mark.server

#: As in test_disconnect: the goal is 50 ms, the bound of a test on a busy machine is looser.
BOUND_S = 0.5


def refusal(port: int, key: str = CLIENT_KEY, **options: Any) -> tuple[Response, Any]:
    """How a handshake is refused, and the error."""
    with pytest.raises(InvalidStatus) as caught:
        Socket(port, key, **options)
    response = caught.value.response
    return response, json.loads(response.body or b"")["error"]


@pytest.fixture
def open_proxy(start_proxy: StartProxy, sandbox: Sandbox) -> Any:
    """Starts proxies that need no key, in front of the sandbox."""
    return partial(
        start_proxy,
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
    )


@pytest.fixture(scope="module")
def _open_one(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start(
        tmp_path_factory.mktemp("open"),
        {"QWEN_UPSTREAM_BASE_URL": upstream.base_url, "QWEN_UPSTREAM_API_KEY": UPSTREAM_KEY},
    )
    yield running
    running.stop()


@pytest.fixture
def open_one(_open_one: Proxy, sandbox: Sandbox) -> Proxy:
    """A proxy that needs no key, with one worker and the default limits, of several tests."""
    _open_one.forget_troubles()
    return _open_one


def is_idle(proxy: Proxy) -> bool:
    """Whether no call is in flight."""
    with Exchange(proxy.port, method="GET", path="/health") as exchange:
        found: bool = json.loads(exchange.body())["in_flight"] == 0
    return found


# --- handshakes -----------------------------------------------------------------------------------


def test_other_versions_are_refused_so_that_http_is_used(proxy: Proxy) -> None:
    old = {"OpenAI-Beta": "responses_websockets=2026-02-04"}
    response, error = refusal(proxy.port, headers=old)
    assert (response.status_code, error["code"]) == (426, "websocket_not_supported")
    assert "2026-02-06" in error["message"]

    head = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "8"}
    with Exchange(
        proxy.port, method="GET", path="/v1/responses", key=CLIENT_KEY, headers=head
    ) as exchange:
        status, headers = exchange.head()
    assert (status, headers["sec-websocket-version"]) == (426, "13")


def test_a_handshake_that_is_none(proxy: Proxy) -> None:
    for headers, expected in (
        ({}, 405),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}, 426),
        ({"Upgrade": "websocket"}, 426),
        ({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}, 400),
    ):
        with Exchange(
            proxy.port, method="GET", path="/v1/responses", key=CLIENT_KEY, headers=headers
        ) as exchange:
            assert exchange.head()[0] == expected, headers


def test_a_path_without_v1_works_too(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY, path="/responses") as client:
        assert client.ask("Hello", store=False)


def test_web_pages_need_to_be_allowed(open_proxy: StartProxy, open_one: Proxy) -> None:
    origin = "https://page.example"
    response, error = refusal(open_one.port, "", origin=origin)
    assert (response.status_code, error["code"]) == (403, "origin_not_allowed")

    proxy = open_proxy(QWEN_PROXY_CORS_ORIGINS=origin, QWEN_PROXY_API_KEYS=CLIENT_KEY)
    Socket(proxy.port, CLIENT_KEY, origin=origin).connection.close()
    response, error = refusal(proxy.port, origin="https://other.example")
    assert (response.status_code, error["code"]) == (403, "origin_not_allowed")


def test_an_unknown_host_name_is_refused(open_one: Proxy) -> None:
    head = HANDSHAKE.replace(b"Host: 127.0.0.1", b"Host: evil.example") + b"\r\n"
    with socket.create_connection(("127.0.0.1", open_one.port), timeout=10) as client:
        client.sendall(head)
        assert client.recv(65536).startswith(b"HTTP/1.1 403 ")


def test_they_can_be_switched_off(open_proxy: StartProxy) -> None:
    response, error = refusal(open_proxy(QWEN_PROXY_WEBSOCKETS="0").port, "")

    assert (response.status_code, error["code"]) == (426, "websocket_not_supported")


# --- limits ---------------------------------------------------------------------------------------


def test_no_more_than_so_many_are_open(open_proxy: StartProxy) -> None:
    ada, bob = secret("limit-ada"), secret("limit-bob")
    proxy = open_proxy(
        QWEN_PROXY_WEBSOCKETS="3",
        QWEN_PROXY_WEBSOCKETS_PER_KEY="2",
        QWEN_PROXY_API_KEYS=f"{ada},{bob}",
    )
    with Socket(proxy.port, ada), Socket(proxy.port, ada) as second:
        response, error = refusal(proxy.port, ada)
        assert (response.status_code, error["code"]) == (426, "websocket_limit_reached")
        with Socket(proxy.port, bob):
            assert refusal(proxy.port, bob)[1]["code"] == "websocket_limit_reached"
        second.vanish()
        servers.wait_until(partial(_opens, proxy, ada), "a place is free again")


def _opens(proxy: Proxy, key: str) -> bool:
    try:
        Socket(proxy.port, key).connection.close()
    except InvalidStatus:
        return False
    return True


def test_a_place_counts_for_a_turn_and_not_for_a_connection(
    open_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = open_proxy(QWEN_PROXY_MAX_IN_FLIGHT="1")
    with Socket(proxy.port) as client, Socket(proxy.port) as other:
        assert client.ask("Hello", store=False)
        client.create("[[sandbox: slow-first=8]]")
        assert sandbox.wait_until(partial(has_chats, sandbox, 2), 5)

        with Exchange(proxy.port, chat()) as refused:
            assert refused.head()[0] == 503
        other.create("Hello")
        event = other.last()
        assert (event["type"], event["status"]) == ("error", 503)
        assert event["error"]["code"] == "overloaded"
        assert event["headers"]["retry-after"] == "1"

        client.vanish()
        servers.wait_until(partial(is_idle, proxy), "the place is given back")
        assert other.ask("Hello", store=False)
        with Exchange(proxy.port, chat()) as accepted:
            assert accepted.head()[0] == 200


def test_a_message_has_the_limit_of_a_body(open_proxy: StartProxy, sandbox: Sandbox) -> None:
    proxy = open_proxy(QWEN_PROXY_MAX_BODY="20000")
    with Socket(proxy.port) as client:
        assert client.ask("x" * 10_000, store=False)
        client.create("x" * 20_001)
        close = client.closed()
        assert close is not None
        assert (close.code, close.reason) == (1009, "at most 20000 bytes in a message")
    with Socket(proxy.port) as client:
        client.connection.send(iter(["x" * 1000] * 30))
        close = client.closed()
        assert close is not None
        assert close.code == 1009


def test_a_turns_request_counts_among_the_bodies_in_flight(
    open_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = open_proxy(QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT="1048576")
    long = "x" * 600_000
    with Socket(proxy.port) as client, Socket(proxy.port) as other:
        client.create(f"{long} [[sandbox: slow-first=8]]", store=False)
        assert sandbox.wait_until(partial(has_chats, sandbox, 1), 5)
        other.create(long, store=False)
        refused = other.last()
        assert (refused["status"], refused["error"]["code"]) == (503, "overloaded")
        assert "QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT" in refused["error"]["message"]
        client.vanish()
        servers.wait_until(partial(is_idle, proxy), "the room is given back")
        assert other.ask(long, store=False)


def test_requests_that_wait_are_limited(open_one: Proxy) -> None:
    with Socket(open_one.port) as client:
        client.create("[[sandbox: slow-first=8]]")
        for _ in range(65):
            client.create("Hello")
        refused = client.until("error")

    assert (refused["status"], refused["error"]["code"]) == (429, "too_many_queued_requests")


def test_all_connections_share_a_memory(open_proxy: StartProxy, sandbox: Sandbox) -> None:
    """What does not fit is forgotten, as if it were too old; requests that wait count, too."""
    proxy = open_proxy(QWEN_PROXY_MAX_BODY="700000", QWEN_PROXY_WEBSOCKET_MEMORY="1048576")
    long = "x" * 600_000
    with Socket(proxy.port) as client, Socket(proxy.port) as other:
        first = client.ask(long, store=False)
        assert client.ask("short", store=False, previous_response_id=first["id"])
        second = other.ask(long, store=False)
        stored = client.ask(long)
        other.create("short", store=False, previous_response_id=second["id"])
        assert other.last()["error"]["code"] == "previous_response_not_found"
        assert client.ask("short", previous_response_id=stored["id"])

        client.create("[[sandbox: slow-first=8]]")
        client.create(long)
        client.create(long)
        close = client.closed()
        assert close is not None
        assert close.code == 1013
        assert other.ask(long, store=False)


# --- what ends a connection -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param(b"\x82\x82\0\0\0\0ab", 1003, id="binary"),
        pytest.param(b"\x81\x82\0\0\0\0\xff\xfe", 1007, id="no-utf-8"),
        pytest.param(b"\x81\x02ab", 1002, id="unmasked"),
        pytest.param(b"\x83\x80\0\0\0\0", 1002, id="unknown-opcode"),
    ],
)
def test_what_breaks_the_rules_is_answered_by_its_code(
    proxy: Proxy, sandbox: Sandbox, frame: bytes, code: int
) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.create("[[sandbox: slow-first=8]]")
        assert sandbox.wait_until(partial(has_chats, sandbox, 1), 5)
        client.raw.sendall(frame)
        close = client.closed()

    assert close is not None
    assert close.code == code
    assert sandbox.wait_until(lambda: sandbox.chats[0].outcome == "client_gone", 5)


@pytest.mark.parametrize("goodbye", ["close", "vanish", "reset"])
@pytest.mark.parametrize(
    "spec",
    [
        "slow-headers=8",
        "slow-first=8",
        "chunks=9, interval=0.02, stall-after=3",
        "chunks=999, interval=0.02",
    ],
)
def test_the_upstream_is_closed_when_the_client_leaves(
    proxy: Proxy, sandbox: Sandbox, spec: str, goodbye: str
) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.create(f"[[sandbox: {spec}]]", store=False)
        client.create("never begun", store=False)
        client.create(f"[[sandbox: {spec}]]", store=False, stream_id="other")
        assert sandbox.wait_until(partial(has_chats, sandbox, 2), 5)
        if "chunks" in spec:
            client.until("response.output_text.delta")
        left_at = time.monotonic()
        if goodbye == "close":
            client.raw.sendall(b"\x88\x80\0\0\0\0")
        elif goodbye == "vanish":
            client.vanish()
        else:
            client.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.raw.shutdown(socket.SHUT_RDWR)
        sandbox.wait_until(lambda: all(each.outcome != "open" for each in sandbox.chats), 5)
        assert [each.outcome for each in sandbox.chats] == ["client_gone"] * 2
        for each in sandbox.chats:
            assert each.gone_s is not None
            assert each.gone_s - left_at < BOUND_S
        for number in (1, 2):
            line = proxy.wait_for_call(f"{client.request_id}-{number}")
            assert line["outcome"] == "client_gone"
    assert len(sandbox.chats) == 2


def test_an_idle_connection_is_closed(open_proxy: StartProxy, sandbox: Sandbox) -> None:
    proxy = open_proxy(QWEN_PROXY_WEBSOCKET_IDLE="1")
    with Socket(proxy.port) as client:
        began = time.monotonic()
        client.create("[[sandbox: slow-first=1.5]]", store=False)
        assert client.last()["type"] == "response.completed"
        # What is no request keeps nothing open.
        client.send({"type": "response.processed"})
        close = client.closed()

    assert close is not None
    assert close.code == 1001
    assert time.monotonic() - began >= 2.5


def test_a_client_that_answers_pings_stays(open_proxy: StartProxy, sandbox: Sandbox) -> None:
    proxy = open_proxy(QWEN_PROXY_KEEPALIVE_INTERVAL="0.5")
    with Socket(proxy.port, ping_interval=None) as client:
        time.sleep(4)
        assert client.ask("Hello", store=False)


def test_a_client_that_answers_no_ping_is_given_up(
    open_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = open_proxy(QWEN_PROXY_KEEPALIVE_INTERVAL="0.2", QWEN_PROXY_WEBSOCKETS="1")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(HANDSHAKE + b"\r\n")
        received = b""
        while data := client.recv(65536):
            received += data
    head, _, frames = received.partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 101 ")
    assert frames == b"\x89\x00"
    servers.wait_until(partial(_opens, proxy, ""), "its place is free again")


def test_a_client_that_does_not_read_holds_up_nobody(open_one: Proxy, sandbox: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", open_one.port), timeout=10) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(HANDSHAKE + b"\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 101 ")
        body = {"type": "response.create", "model": MODEL, "store": False}
        slow.sendall(frame({**body, "input": "[[sandbox: long=30000000, interval=0]]"}))
        assert sandbox.wait_until(partial(has_chats, sandbox, 1), 5)
        with Socket(open_one.port) as client:
            for _ in range(3):
                assert client.ask("Hello", store=False)
        # The upstream waits for the client, too.
        assert sandbox.chats[0].outcome == "open"
    assert sandbox.wait_until(lambda: sandbox.chats[0].outcome == "client_gone", 5)


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(b"\x89\x80\0\0\0\0" * 2000, id="pings"),
        pytest.param(b"\x81\x80\0\0\0\0" * 2000, id="empty-messages"),
        pytest.param(b"\x01\x80\0\0\0\0" + b"\0\x80\0\0\0\0" * 2000, id="empty-fragments"),
    ],
)
def test_a_client_that_floods_holds_up_nobody(open_one: Proxy, flood: bytes) -> None:
    over = threading.Event()

    def pour(client: socket.socket) -> None:
        while not over.is_set():
            try:
                client.sendall(flood)
                # What comes back is taken, so that it does not end by itself.
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while client.recv(1 << 20):
                        pass
                client.settimeout(5)
            except OSError:
                return

    with socket.create_connection(("127.0.0.1", open_one.port), timeout=10) as client:
        client.sendall(HANDSHAKE + b"\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 101 ")
        pourer = threading.Thread(target=pour, args=(client,))
        pourer.start()
        try:
            time.sleep(0.3)
            for _ in range(3):
                with Exchange(open_one.port, chat(), timeout_s=20) as exchange:
                    assert exchange.head()[0] == 200
        finally:
            over.set()
            pourer.join()


# --- stops ----------------------------------------------------------------------------------------


@pytest.fixture
def stopped(open_proxy: StartProxy) -> Iterator[Proxy]:
    """A proxy that the test stops."""
    yield open_proxy(QWEN_PROXY_GRACEFUL_TIMEOUT="2")


def test_a_stop_closes_idle_connections_at_once(stopped: Proxy, sandbox: Sandbox) -> None:
    with Socket(stopped.port) as fresh, Socket(stopped.port) as used:
        assert used.ask("Hello", store=False)
        began = time.monotonic()
        stopped.process.send_signal(signal.SIGTERM)
        closes = [client.closed() for client in (fresh, used)]
        assert stopped.process.wait(15) == 0

    assert [close and close.code for close in closes] == [1001, 1001]
    # Neither the idle time nor the grace time is waited for; gunicorn looks every second.
    assert time.monotonic() - began < 8
    assert "Worker graceful timeout" not in stopped.log.read_text()


def test_a_stop_lets_a_running_response_complete(stopped: Proxy, sandbox: Sandbox) -> None:
    with Socket(stopped.port) as client:
        client.create("[[sandbox: slow-first=1, text=to the end]]", store=False)
        client.create("waits", store=False)
        assert sandbox.wait_until(partial(has_chats, sandbox, 1), 5)
        stopped.process.send_signal(signal.SIGTERM)
        refused = client.until("error")
        completed = client.until("response.completed")
        close = client.closed()
        assert stopped.process.wait(15) == 0

    assert (refused["status"], refused["error"]["code"]) == (503, "proxy_stopping")
    assert completed["response"]["status"] == "completed"
    assert close is not None
    assert close.code == 1001
    assert len(sandbox.chats) == 1
    outcomes = [line["outcome"] for line in stopped.call_lines() if line["method"] == "WS"]
    assert outcomes == ["refused", "complete"]


@pytest.mark.parametrize("spec", ["slow-first=30", "chunks=99, interval=0.02, stall-after=5"])
def test_a_response_is_cut_when_the_time_for_a_stop_is_over(
    stopped: Proxy, sandbox: Sandbox, spec: str
) -> None:
    with Socket(stopped.port) as client:
        client.create(f"[[sandbox: {spec}]]", store=False)
        assert sandbox.wait_until(partial(has_chats, sandbox, 1), 5)
        if "chunks" in spec:
            client.until("response.output_text.delta")
        stopped.process.send_signal(signal.SIGTERM)
        events = client.events()
        close = client.closed()
        assert stopped.process.wait(20) == 0

    last = events[-1]
    told = last["response"]["error"] if last["type"] == "response.failed" else last["error"]
    assert "stopped or restarted" in told["message"]
    assert close is not None
    assert close.code == 1001
    (line,) = [line for line in stopped.call_lines() if line["method"] == "WS"]
    assert line["outcome"] == "cut_by_stop"
    assert sandbox.wait_until(lambda: sandbox.chats[0].outcome == "client_gone", 5)


def test_a_killed_worker_takes_its_connections_along(open_one: Proxy, sandbox: Sandbox) -> None:
    with Socket(open_one.port) as client:
        client.create("[[sandbox: slow-first=8]]")
        assert sandbox.wait_until(partial(has_chats, sandbox, 1), 5)
        (worker,) = [pid for pid in tree(open_one.process.pid) if pid != open_one.process.pid]
        os.kill(worker, signal.SIGKILL)
        assert client.closed() is None
    assert sandbox.wait_until(lambda: sandbox.chats[0].outcome == "client_gone", 5)
    servers.wait_until(partial(_answers, open_one), "a new worker")


def _answers(proxy: Proxy) -> bool:
    try:
        with Socket(proxy.port, timeout_s=5) as client:
            client.create("Hello", store=False)
            return bool(client.last()["type"] == "response.completed")
    except (OSError, EOFError, InvalidStatus, TimeoutError):
        return False


def test_a_reload_closes_connections_and_serves_new_ones(open_one: Proxy) -> None:
    with Socket(open_one.port) as client:
        assert client.ask("Hello", store=False)
        open_one.process.send_signal(signal.SIGHUP)
        close = client.closed()
    assert close is not None
    assert close.code == 1001
    servers.wait_until(partial(_answers, open_one), "the new worker")


def test_many_connections_at_a_time(proxy: Proxy, sandbox: Sandbox) -> None:
    texts: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        with Socket(proxy.port, CLIENT_KEY, timeout_s=30) as client:
            before = None
            for turn in range(3):
                wanted = f"{number} of {turn}"
                response = client.ask(
                    f"[[sandbox: text={wanted}]]", store=False, previous_response_id=before
                )
                before = response["id"]
                texts.setdefault(number, []).append(response["output"][-1]["content"][0]["text"])

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert texts == {n: [f"{n} of {turn}" for turn in range(3)] for n in range(30)}
