"""A key holder who means harm: no worker dies, and nobody else waits.

Two workers, a real server, requests that once killed a worker or stalled it, and beside them a
client that asks for /health all the time.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import Proxy, start
from tests.kit.raw_client import Exchange
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

KEY, OTHER_KEY = secret("hostile"), secret("friendly")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Sandbox() as upstream:
        running = start(
            tmp_path_factory.mktemp("hostile"),
            {
                "QWEN_UPSTREAM_BASE_URL": upstream.base_url,
                "QWEN_UPSTREAM_API_KEY": secret("upstream-of-hostile"),
                "QWEN_PROXY_API_KEYS": f"{KEY},{OTHER_KEY}",
                "QWEN_PROXY_WORKERS": "2",
                "QWEN_PROXY_MAX_IN_FLIGHT": "8",
            },
        )
        yield running
        running.stop()


class Bystander:
    """Another client, which notes how long its requests take at most; a context manager."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.longest_s = 0.0
        self.count = 0

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            health(self._proxy)
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            self.count += 1
            time.sleep(0.02)


def health(proxy: Proxy) -> dict[str, Any]:
    request = urllib.request.Request(
        proxy.origin + "/health", headers={"Authorization": f"Bearer {OTHER_KEY}"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.load(response)
        return found


def workers(proxy: Proxy) -> list[str]:
    path = f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children"
    with open(path) as children:
        return sorted(children.read().split())


def dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


MEMBERS = {f"member_{index}": 1 for index in range(60_000)}
TOOL_USES = [
    {"type": "tool_use", "id": f"t{index}", "name": "f", "input": {}} for index in range(19_000)
]
RESULTS = [{"type": "tool_result", "tool_use_id": f"t{index}"} for index in range(19_000)]
NOTHING = b"[" + b",".join([b"[]"] * 10_000_000) + b"]"
SMALL = b",".join([b'{"role":"user","content":"a"}'] * 1_500_000)

#: Path, body, and the statuses that are right.
ATTACKS: dict[str, tuple[str, bytes, tuple[int, ...]]] = {
    "unknown members of Responses": (
        "/v1/responses",
        dumped({"model": "qwen3.7-plus", "input": "hi", **MEMBERS}),
        (400,),
    ),
    "unknown members of Messages": (
        "/v1/messages",
        dumped({"model": "qwen3.7-plus", "max_tokens": 9, "messages": [user("hi")], **MEMBERS}),
        (400,),
    ),
    "many tool_use blocks": (
        "/v1/messages",
        dumped(
            {
                "model": "qwen3.7-plus",
                "max_tokens": 9,
                "messages": [
                    user("hi"),
                    {"role": "assistant", "content": TOOL_USES},
                    user(RESULTS),
                ],
            }
        ),
        (200, 400),
    ),
    "sixty MB of []": (
        "/v1/chat/completions",
        b'{"model":"qwen3.7-plus","messages":[{"role":"user","content":"a"}],"x":' + NOTHING + b"}",
        (400,),
    ),
    "forty MB of short messages": (
        "/v1/chat/completions",
        b'{"model":"qwen3.7-plus","messages":[' + SMALL + b"]}",
        (400,),
    ),
    "twenty thousand messages": (
        "/v1/chat/completions",
        dumped({"model": "qwen3.7-plus", "messages": [user("a")] * 20_000}),
        (200,),
    ),
    "twenty thousand items": (
        "/v1/responses",
        dumped({"model": "qwen3.7-plus", "input": [user("a")] * 20_000, "store": False}),
        (200,),
    ),
    "deep JSON": (
        "/v1/chat/completions",
        b'{"model":"qwen3.7-plus","messages":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
        (400,),
    ),
    "a long number": (
        "/v1/chat/completions",
        b'{"model":"qwen3.7-plus","messages":[{"role":"user","content":"a"}],"seed":'
        + b"9" * 5_000_000
        + b"}",
        (200, 400),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_request_kills_a_worker_or_holds_up_others(proxy: Proxy, name: str) -> None:
    path, body, statuses = ATTACKS[name]
    before = workers(proxy)

    with Bystander(proxy) as bystander:
        for _ in range(2):
            with Exchange(proxy.port, body, path=path, key=KEY, timeout_s=55) as exchange:
                status, headers = exchange.head()
                assert status in statuses, exchange.body()[:300]
                assert sum(map(len, headers.values())) < 4000

    assert workers(proxy) == before
    assert health(proxy)["status"] == "ok"
    assert bystander.count
    # The goal is half a second; this machine may be busy with other tests, but not for so long.
    assert bystander.longest_s < 5


def test_nothing_of_a_refused_body_is_in_the_log(proxy: Proxy) -> None:
    """Long bodies are checked in a thread, whose failures gevent printed with all that was sent."""
    words = "words that nobody else may read"
    asked = {"model": "qwen3.7-plus", "input": words * 50_000, **MEMBERS}
    with Exchange(proxy.port, dumped(asked), path="/v1/responses", key=KEY) as exchange:
        status, headers = exchange.head()
    assert status == 400
    assert proxy.wait_for_call(headers["x-request-id"])["status"] == 400

    log = proxy.log.read_text()
    assert words not in log
    assert "Traceback" not in log


def test_one_key_never_takes_all_places(proxy: Proxy) -> None:
    """Bodies that never come, of one key: the other key is served."""
    half = [
        Exchange(proxy.port, b"{", key=KEY, headers={"Content-Length": "1000"}, path="/v1/messages")
        for _ in range(2 * 8 + 8)
    ]
    try:
        body = dumped({"model": "qwen3.7-plus", "messages": [user("hi")]})
        for _ in range(6):  # of both workers
            with Exchange(proxy.port, body, key=OTHER_KEY) as exchange:
                assert exchange.head()[0] == 200
    finally:
        for exchange in half:
            exchange.close()


def test_refused_callers_are_named_by_their_address(proxy: Proxy) -> None:
    with Exchange(proxy.port, b"{}", key="wrong") as exchange:
        status, headers = exchange.head()
    assert status == 401
    line = proxy.wait_for_call(headers["x-request-id"])
    assert line["address"] == "127.0.0.1"
