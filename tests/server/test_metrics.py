"""The metrics of two workers: added up, through their deaths, reloads and restarts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.prometheus_text import Exposition, parse
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat
from tests.kit.servers import wait_until

pytestmark = pytest.mark.server

CALLS = "qwen_proxy_calls_total"
COMPLETE = {"endpoint": "chat_completions", "outcome": "complete", "status": "2xx"}


def scrape(proxy: Proxy) -> Exposition:
    with Exchange(proxy.port, method="GET", path="/metrics") as exchange:
        assert exchange.head()[0] == 200
        return parse(exchange.body().decode())


def ask(proxy: Proxy, content: str = "hello", id: str = "asked", **fields: object) -> bytes:
    with Exchange(
        proxy.port, chat(content, **fields), key=CLIENT_KEY, headers={"X-Request-Id": id}
    ) as exchange:
        assert exchange.head()[0] == 200
        return exchange.body()


def never_less(before: Exposition, after: Exposition) -> None:
    """Every counter and every part of a histogram is at least what it was."""
    gauges = {name for name, kind in after.types.items() if kind == "gauge"}
    less = {
        key: (value, after.samples.get(key))
        for key, value in before.samples.items()
        if key[0] not in gauges and after.samples.get(key, -1) < value
    }
    assert less == {}


@pytest.fixture
def begin(start_proxy: StartProxy, sandbox: Sandbox) -> Callable[..., Proxy]:
    def started(**environment: str) -> Proxy:
        proxy = start_proxy(
            DASHSCOPE_BASE_URL=sandbox.base_url,
            DASHSCOPE_API_KEY=UPSTREAM_KEY,
            QWEN_PROXY_API_KEYS=CLIENT_KEY,
            QWEN_PROXY_WORKERS="2",
            QWEN_PROXY_KEEPALIVE_INTERVAL="0.5",
            **environment,
        )
        wait_until(lambda: scrape(proxy).value("qwen_proxy_workers") == 2, "both workers")
        return proxy

    return started


def test_they_are_the_sums_of_all_workers_and_never_go_back(proxy: Proxy, sandbox: Sandbox) -> None:
    seen = [scrape(proxy)]
    for number in range(20):
        ask(proxy, id=f"sum-{number}")
    lines = [proxy.wait_for_call(f"sum-{number}") for number in range(20)]

    def rise(name: str, **labels: str) -> float:
        return seen[-1].value(name, **labels) - seen[0].value(name, **labels)

    def has_all() -> bool:
        seen.append(scrape(proxy))
        return rise(CALLS, **COMPLETE) == 20

    wait_until(has_all, "20 calls")
    for before, after in zip(seen, seen[1:], strict=False):
        never_less(before, after)
    for kind, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        assert rise("qwen_proxy_tokens_total", kind=kind) == sum(line[name] for line in lines)
    assert rise("qwen_proxy_attempts_total", account="dashscope") == 20
    found = seen[-1]
    wait_until(lambda: scrape(proxy).value("qwen_proxy_workers") == 2, "both have begun")
    assert "env-1" in found.values_of("client") <= {"env-1", "none"}
    assert abs(found.value("qwen_proxy_start_time_seconds") - time.time()) < 3600
    wait_until(lambda: scrape(proxy).value("qwen_proxy_loop_lag_seconds_count") > 2, "the lag")


def test_a_killed_worker_takes_nothing_with_it(
    begin: Callable[..., Proxy], sandbox: Sandbox
) -> None:
    proxy = begin()
    for _ in range(10):
        ask(proxy)
    wait_until(lambda: scrape(proxy).value(CALLS, **COMPLETE) == 10, "10 calls")
    # Longer than the second that a killed worker may lose.
    time.sleep(1.1)
    before = scrape(proxy)
    hanging = Exchange(proxy.port, chat("[[sandbox: slow-first=30]]", stream=True), key=CLIENT_KEY)
    wait_until(lambda: scrape(proxy).value("qwen_proxy_in_flight_calls") == 1, "in flight")
    victims = proxy.workers()
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
        after = scrape(proxy)
        never_less(before, after)
    hanging.close()
    wait_until(lambda: not victims & proxy.workers(), "new workers")
    wait_until(lambda: scrape(proxy).value("qwen_proxy_workers") == 2, "both are known")
    after = scrape(proxy)
    never_less(before, after)
    assert after.value(CALLS, **COMPLETE) == 10
    assert after.value("qwen_proxy_in_flight_calls") == 0
    blocks = proxy.home / ".local/state/qwen-proxy/metrics"
    wait_until(lambda: len(list(blocks.iterdir())) == 2, "theirs were taken over", within_s=12)
    assert scrape(proxy).value(CALLS, **COMPLETE) == 10


def test_a_reload_and_a_restart_lose_nothing(begin: Callable[..., Proxy]) -> None:
    proxy = begin()
    for _ in range(5):
        ask(proxy)
    before = scrape(proxy)
    old = proxy.workers()
    proxy.process.send_signal(signal.SIGHUP)

    def old_are_gone() -> bool:
        never_less(before, scrape(proxy))
        return not old & proxy.workers()

    wait_until(old_are_gone, "the old workers are gone")
    assert scrape(proxy).value(CALLS, **COMPLETE) == 5
    assert proxy.stop() == 0

    again = begin()
    never_less(before, scrape(again))
    ask(again)
    wait_until(lambda: scrape(again).value(CALLS, **COMPLETE) == 6, "counted on")


def test_clients_that_leave_and_keepalives(proxy: Proxy, sandbox: Sandbox) -> None:
    before = scrape(proxy)
    body = ask(proxy, "[[sandbox: slow-first=1.3]]", stream=True)
    sent = body.count(b": keep-alive")
    assert sent >= 2
    for spec, mark in (("slow-first=9", b""), ("chunks=99, interval=0.05", b"data:")):
        exchange = Exchange(
            proxy.port,
            chat(f"[[sandbox: {spec}]]", stream=True),
            key=CLIENT_KEY,
            headers={"X-Request-Id": f"left-{spec[:4]}"},
        )
        assert sandbox.wait_until(lambda: sandbox.chats[-1].outcome == "open", 5)
        if mark:
            exchange.read_until(mark)
        exchange.close()
        proxy.wait_for_call(f"left-{spec[:4]}")

    def rises(name: str, by: float, **labels: str) -> None:
        was = before.value(name, **labels)
        wait_until(lambda: scrape(proxy).value(name, **labels) == was + by, name)

    for phase in ("before_first_byte", "after_first_byte"):
        rises("qwen_proxy_client_aborts_total", 1, phase=phase)
    rises("qwen_proxy_keepalives_total", sent)
