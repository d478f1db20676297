"""Incidents at an upstream of a server with two workers: how long calls wait, who is asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.fakes.raw_server import Peer, RawServer, stream, whole
from tests.kit.proxy import Proxy, start
from tests.kit.raw_client import Exchange, chat
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

CHUNK = (
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[%b]}\n\n'
)
ANSWER = stream(
    CHUNK % b'{"index":0,"delta":{"role":"assistant","content":"hi"},"finish_reason":null}',
    CHUNK % b'{"index":0,"delta":{},"finish_reason":"stop"}',
    b"data: [DONE]\n\n",
)
THROTTLED = whole(
    b'{"error":{"message":"Too many requests.","code":"limit_requests"}}', "429 Too Many Requests"
)
SERVER_ERROR = whole(b'{"error":{"message":"Something broke."}}', "500 Internal Server Error")
FORBIDDEN = whole(b'{"error":{"message":"Not this.","code":"odd_one"}}', "403 Forbidden")


class Gate:
    """Holds calls until it is opened, and answers them then; None resets the connection."""

    def __init__(self, reply: bytes | None) -> None:
        self.reply = reply
        self.opened = threading.Event()


class Host(RawServer):
    """An upstream whose answers a test changes while calls are under way."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.reset()

    def reset(self) -> None:
        """Answer as at the beginning, and forget the calls."""
        #: When each call came.
        self.chats: list[float] = []
        self.reply: bytes | None = ANSWER
        #: By a text in the request, in place of `reply`.
        self.replies: dict[str, bytes] = {}
        self._gate: Gate | None = None

    def _answer(self, peer: Peer) -> None:
        request = peer.request
        if not request.startswith(b"POST"):
            return peer.send(whole(b"{}", "404 Not Found"))
        body = request.split(b"\r\n\r\n", 1)[1].decode()
        gate, reply = self._gate, self.reply
        reply = next((told for text, told in self.replies.items() if text in body), reply)
        self.chats.append(time.monotonic())
        if gate is not None:
            assert gate.opened.wait(30)
            reply = gate.reply
        return peer.reset() if reply is None else peer.send(reply)

    def hold(self, reply: bytes | None) -> None:
        """Hold what comes from now on, until `let_go` answers it so."""
        self._gate = Gate(reply)

    def let_go(self, then_hold: bytes | None = b"") -> float:
        """Answer what was held, and hold what comes from now on if an answer is given for it."""
        gate, self._gate = self._gate, None
        if then_hold != b"":
            self.hold(then_hold)
        assert gate is not None
        gate.opened.set()
        return time.monotonic()

    def wait_for(self, count: int) -> None:
        end = time.monotonic() + 20
        while len(self.chats) < count:
            assert time.monotonic() < end, f"{len(self.chats)} of {count} calls came"
            time.sleep(0.01)


@pytest.fixture(scope="module")
def _host() -> Iterator[Host]:
    with Host() as server:
        yield server


@pytest.fixture
def host(_host: Host) -> Host:
    assert not _host.failures
    _host.reset()
    return _host


@pytest.fixture(scope="module")
def _proxy(_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start(
        tmp_path_factory.mktemp("pauses"),
        {
            "DASHSCOPE_BASE_URL": f"{_host.url}/v1",
            "DASHSCOPE_API_KEY": secret("host"),
            "QWEN_PROXY_WORKERS": "2",
            "QWEN_PROXY_RETRY_BUDGET": "30",
        },
    )
    yield running
    running.stop()


@pytest.fixture
def proxy(_proxy: Proxy) -> Proxy:
    """With workers that know of no trouble, neither by themselves nor by what they share."""
    _proxy.renew()
    return _proxy


def ask(proxy: Proxy, text: str) -> tuple[int, dict[str, str], Any]:
    with Exchange(proxy.port, chat(text), timeout_s=45) as exchange:
        status, headers = exchange.head()
        return status, headers, json.loads(exchange.body())


def asked_together(proxy: Proxy, count: int, pool: ThreadPoolExecutor) -> list[Any]:
    return [pool.submit(ask, proxy, f"talk number {number}") for number in range(count)]


def test_twelve_throttles_at_a_time_cost_a_second(host: Host, proxy: Proxy) -> None:
    host.hold(THROTTLED)
    with ThreadPoolExecutor(12) as pool:
        calls = asked_together(proxy, 12, pool)
        host.wait_for(12)
        begun = host.let_go()
        answers = [call.result() for call in calls]
    assert [status for status, _, _ in answers] == 12 * [200]
    assert time.monotonic() - begun < 12, "and not a minute"
    assert len(host.chats) == 24
    assert ask(proxy, "afterwards")[0] == 200


def test_twenty_calls_that_a_blip_cuts_wait_for_one_pause(host: Host, proxy: Proxy) -> None:
    host.hold(None)
    with ThreadPoolExecutor(20) as pool:
        calls = asked_together(proxy, 20, pool)
        host.wait_for(20)
        host.reply = None
        begun = host.let_go()
        time.sleep(1.0)
        host.reply = ANSWER
        answers = [call.result() for call in calls]
    assert [status for status, _, _ in answers] == 20 * [200]
    assert time.monotonic() - begun < 15, "and not two minutes"
    assert len(host.chats) < 20 + 20 + 10, "a few probes found it down"
    begun = time.monotonic()
    assert ask(proxy, "afterwards")[0] == 200
    assert time.monotonic() - begun < 5


def test_who_waits_for_a_probe_is_woken_by_its_success(host: Host, proxy: Proxy) -> None:
    host.hold(None)
    with ThreadPoolExecutor(20) as pool:
        calls = asked_together(proxy, 20, pool)
        host.wait_for(20)
        host.let_go(then_hold=ANSWER)
        host.wait_for(21)
        probed_at = time.monotonic()
        time.sleep(1.0)
        assert len(host.chats) == 21, "the others wait for its answer, in both workers"
        assert time.monotonic() - probed_at < 4, "this machine is too slow for this test"
        told_at = host.let_go()
        answers = [call.result() for call in calls]
    assert [status for status, _, _ in answers] == 20 * [200]
    assert max(host.chats) - told_at < 3, "and not half a minute"


@pytest.mark.parametrize("reply", [SERVER_ERROR, FORBIDDEN], ids=["500", "403"])
def test_one_odd_request_locks_out_nobody(host: Host, proxy: Proxy, reply: bytes) -> None:
    host.replies["odd request"] = reply
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            odd = [pool.submit(ask, proxy, "the odd request") for _ in range(4)]
            assert {call.result()[0] for call in odd} <= {500, 403}
            begun = time.monotonic()
            assert ask(proxy, "another talk")[0] == 200
            assert time.monotonic() - begun < 2, "it waits for nobody"


def test_a_client_that_is_refused_hears_when_to_come_back(host: Host, proxy: Proxy) -> None:
    host.reply = whole(
        b'{"error":{"message":"Too many requests.","code":"limit_requests"}}',
        "429 Too Many Requests",
        retry_after="90",
    )
    for _ in range(2):
        status, headers, told = ask(proxy, "hello")
        assert (status, told["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 60 < int(headers["retry-after"]) <= 90
    assert len(host.chats) == 1
