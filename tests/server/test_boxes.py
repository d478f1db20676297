"""Two boxes (two state directories, two ports) with one Redis."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.state.database.tables import database_in
from qwen_wsgi.state.redis.client_keys import SharedClientKeys
from qwen_wsgi.state.redis.connection import SharedStore
from tests.kit.processes import tree
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.raw_client import Exchange, chat
from tests.kit.redis_server import RedisServer, needs_redis
from tests.kit.secrets import secret
from tests.kit.servers import wait_until

pytestmark = [pytest.mark.server, needs_redis]

CROWD, PAIR, MANY = (secret(f"boxes-{name}") for name in ("crowd", "pair", "many"))
LIMITS = {
    CROWD: {"rpm": 100, "tpm": 10**9, "tokens_per_day": 10**9},
    PAIR: {"concurrency": 2},
    MANY: {"rpm": 10**6, "tokens_per_day": 10**9, "concurrency": 100},
}


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        RedisServer(Path(directory)) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def boxes(
    upstream: Sandbox, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Proxy]]:
    running: list[Proxy] = []
    try:
        for name in ("a", "b"):
            running.append(
                start(
                    tmp_path_factory.mktemp(name),
                    {
                        "DASHSCOPE_BASE_URL": upstream.base_url,
                        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
                        "QWEN_PROXY_API_KEYS": ",".join((CROWD, PAIR, MANY)),
                        "QWEN_PROXY_WORKERS": "2",
                        "QWEN_PROXY_REDIS_URL": redis_server.url,
                        "TEST_LIMITS": json.dumps(LIMITS),
                        "TEST_PATIENCE": "1.0",
                    },
                    application="tests.kit.limited_app:application",
                )
            )
        yield running
    finally:
        for proxy in running:
            proxy.stop()


def ask(proxy: Proxy, key: str, text: str = "[[sandbox: chunks=2]]") -> tuple[int, dict[str, str]]:
    with Exchange(proxy.port, chat(text), key=key, timeout_s=30) as exchange:
        status, headers = exchange.head()
        exchange.body()
        return status, headers


def test_of_400_at_once_at_two_boxes_exactly_100_pass(boxes: list[Proxy], sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda n: ask(boxes[n % 2], CROWD), range(400)))

    statuses = [status for status, _ in found]
    assert (statuses.count(200), statuses.count(429)) == (100, 300)
    sandbox.settle()
    assert len(sandbox.chats) == 100


def test_places_are_shared_and_given_back(boxes: list[Proxy]) -> None:
    long = chat("[[sandbox: chunks=1000,interval=0.05]]", stream=True)
    with (
        Exchange(boxes[0].port, long, key=PAIR) as one,
        Exchange(boxes[1].port, long, key=PAIR) as other,
    ):
        assert [one.head()[0], other.head()[0]] == [200, 200]
        assert [ask(box, PAIR)[0] for box in boxes] == [429, 429]
    wait_until(lambda: ask(boxes[1], PAIR)[0] == 200, "the places are given back", within_s=5)
    # One after the other, without a pause, at any worker of any box.
    assert {ask(boxes[n % 2], PAIR)[0] for n in range(10)} == {200}


def test_what_a_killed_worker_held_is_free_at_the_other_box_within_seconds(
    boxes: list[Proxy],
) -> None:
    """The other worker of its box sees that it is gone; the box itself would have 15 s."""
    survivor, *others = tree(boxes[0].process.pid)[1:]
    long = chat("[[sandbox: chunks=1000,interval=0.05]]", stream=True)
    os.kill(survivor, signal.SIGSTOP)  # so that it gets none of the calls
    try:
        with (
            Exchange(boxes[0].port, long, key=PAIR) as one,
            Exchange(boxes[0].port, long, key=PAIR) as other,
        ):
            assert [one.head()[0], other.head()[0]] == [200, 200]
            assert ask(boxes[1], PAIR)[0] == 429
            for worker in others:
                os.kill(worker, signal.SIGKILL)
            os.kill(survivor, signal.SIGCONT)
            wait_until(lambda: ask(boxes[1], PAIR)[0] == 200, "both places are free", within_s=5)
    finally:
        os.kill(survivor, signal.SIGCONT)


def test_a_key_of_one_box_works_and_ends_on_the_other_within_two_seconds(
    boxes: list[Proxy], redis_server: RedisServer
) -> None:
    state = boxes[0].home / ".local/state/qwen-proxy"
    clock = SystemClock()
    store, database = SharedStore(redis_server.url, "a", clock), database_in(state, clock)
    try:
        keys = SharedClientKeys(store, database, clock, state)
        made = keys.add({"name": "anna", "rpm": 100})
        for box in boxes:
            wait_until(lambda box=box: ask(box, made.secret)[0] == 200, "it works", within_s=2)  # type: ignore[misc]  # its default
        assert keys.revoke("anna")
        for box in boxes:
            wait_until(lambda box=box: ask(box, made.secret)[0] == 401, "it ended", within_s=2)  # type: ignore[misc]  # its default
    finally:
        store.close()
        database.close()


class Load:
    """Calls at all boxes, one after the other in each of some threads, until `stop`."""

    def __init__(self, boxes: list[Proxy], key: str) -> None:
        self.statuses: list[int] = []
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(boxes[n % 2], key)) for n in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, box: Proxy, key: str) -> None:
        while not self._end.is_set():
            self.statuses.append(ask(box, key)[0])

    def more(self, count: int) -> None:
        """Wait for further calls."""
        wanted = len(self.statuses) + count
        wait_until(lambda: len(self.statuses) >= wanted, f"{count} more calls", within_s=10)

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)


def left(box: Proxy, key: str) -> int:
    return int(ask(box, key)[1]["x-ratelimit-remaining-requests"])


def test_no_call_fails_while_redis_is_stopped_flushed_killed_and_started(
    boxes: list[Proxy], redis_server: RedisServer
) -> None:
    begun = 10**6 - left(boxes[0], MANY)
    load = Load(boxes, MANY)
    try:
        load.more(10)
        redis_server.send(signal.SIGSTOP)
        load.more(20)
        redis_server.send(signal.SIGCONT)
        load.more(20)
        counted = len(load.statuses)
        redis_server.command("FLUSHALL")
        load.more(20)
        redis_server.kill()
        load.more(20)
        redis_server.start()
        load.more(20)
    finally:
        load.stop()
    assert set(load.statuses) == {200}
    assert counted
    assert begun == 1

    def agree() -> bool:
        one, other = left(boxes[0], MANY), left(boxes[1], MANY)
        return one - other == 1

    wait_until(agree, "both boxes count together again", within_s=5)
    for box in boxes:
        text = box.log.read_text()
        assert "Redis is away" in text
        assert "Redis is back" in text
