"""Limits of clients on a real server of several workers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.processes import tree
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.raw_client import Exchange, chat
from tests.kit.secrets import secret
from tests.kit.servers import wait_until
from tests.kit.websocket_client import MODEL, Socket

pytestmark = pytest.mark.server

CROWD, PAIR, FEW, FREE = (secret(f"limits-{name}") for name in ("crowd", "pair", "few", "free"))
LIMITS = {
    CROWD: {"rpm": 100, "tpm": 10**9, "tokens_per_day": 10**9},
    PAIR: {"concurrency": 2, "tpm": 25_000},
    FEW: {"rpm": 1},
}


@pytest.fixture(scope="module")
def limited(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start(
        tmp_path_factory.mktemp("limited"),
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": ",".join((CROWD, PAIR, FEW, FREE)),
            "QWEN_PROXY_WORKERS": "3",
            "TEST_LIMITS": json.dumps(LIMITS),
        },
        application="tests.kit.limited_app:application",
    )
    yield running
    running.stop()


@pytest.fixture
def fresh(limited: Proxy) -> Proxy:
    """With nothing taken by the tests before."""
    for file in (limited.home / ".local/state/qwen-proxy/limits").glob("*"):
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))
    return limited


def ask(proxy: Proxy, key: str, text: str = "[[sandbox: chunks=2]]") -> tuple[int, dict[str, str]]:
    with Exchange(proxy.port, chat(text), key=key, timeout_s=30) as exchange:
        status, headers = exchange.head()
        exchange.body()
        return status, headers


def test_of_400_at_once_exactly_100_pass(fresh: Proxy, sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda _: ask(fresh, CROWD), range(400)))

    statuses = [status for status, _ in found]
    assert (statuses.count(200), statuses.count(429)) == (100, 300)
    sandbox.settle()
    assert len(sandbox.chats) == 100
    for status, headers in found:
        assert headers["x-ratelimit-limit-requests"] == "100"
        if status == 429:
            assert 1 <= int(headers["retry-after"]) <= 60
            assert headers["x-ratelimit-remaining-requests"] == "0"


def test_the_official_package_understands_the_refusal(fresh: Proxy, sandbox: Sandbox) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "[[sandbox: chunks=2]]"}],
    }
    with openai.OpenAI(base_url=fresh.base_url, api_key=FEW, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(**asked, stream=True)
        list(raw.parse())
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(**asked)
        client.models.list()

    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    assert raw.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert "x-ratelimit-limit-tokens" not in raw.headers
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60


def test_a_client_without_limits_is_told_nothing(fresh: Proxy, sandbox: Sandbox) -> None:
    status, headers = ask(fresh, FREE)

    assert status == 200
    assert not [name for name in headers if "ratelimit" in name]


def test_each_turn_of_a_websocket_is_a_call_of_its_own(fresh: Proxy, sandbox: Sandbox) -> None:
    ended = []
    with Socket(fresh.port, FEW) as connection:
        for _ in range(2):
            connection.create("Hello", store=False)
            ended.append(connection.last())

    first, second = ended
    assert first["type"] == "response.completed"
    assert second["type"] == "response.failed"
    assert second["response"]["error"]["code"] == "rate_limit_exceeded"
    assert "(rpm)" in second["response"]["error"]["message"]


def test_a_client_that_leaves_gives_its_place_back_and_pays_what_it_saw(
    fresh: Proxy, sandbox: Sandbox
) -> None:
    body = {**chat("[[sandbox: chunks=1000,interval=0.05]]", stream=True), "max_tokens": 10_000}
    with Exchange(fresh.port, body, key=PAIR) as exchange:
        _, headers = exchange.head()
        exchange.read_until(b"word-3")
    before = 25_000 - int(headers["x-ratelimit-remaining-tokens"])
    assert before > 10_000

    def after() -> int:
        with Exchange(fresh.port, method="GET", path="/v1/models", key=PAIR) as looking:
            return 25_000 - int(looking.head()[1]["x-ratelimit-remaining-tokens"])

    wait_until(lambda: after() < before, "the call is settled", within_s=5)
    assert 3 < after() < 1000


def test_what_killed_workers_held_returns_within_five_seconds(
    fresh: Proxy, sandbox: Sandbox
) -> None:
    body = {**chat("[[sandbox: chunks=1000,interval=0.05]]", stream=True), "max_tokens": 10_000}

    def left() -> tuple[int, int]:
        try:
            status, headers = ask(fresh, PAIR)
        except (OSError, AssertionError):
            return 0, 0  # its worker has not begun yet
        return status, int(headers["x-ratelimit-remaining-tokens"])

    with ExitStack() as stack:
        for _ in range(2):
            exchange = stack.enter_context(Exchange(fresh.port, body, key=PAIR))
            assert exchange.head()[0] == 200
        status, tokens = left()
        assert status == 429
        assert tokens < 5_000
        for worker in tree(fresh.process.pid)[1:]:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: left()[0] == 200, "a place is free", within_s=15)
        wait_until(lambda: left()[1] > 20_000, "the tokens are free", within_s=6)


def test_the_files_are_small_and_private(fresh: Proxy, sandbox: Sandbox) -> None:
    ask(fresh, PAIR)
    directory: Path = fresh.home / ".local/state/qwen-proxy/limits"

    assert directory.stat().st_mode & 0o777 == 0o700
    for file in directory.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.stat().st_size < 40_000
