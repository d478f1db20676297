"""The ledger of a running server: its sums are the upstream's, and what was told survives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat
from tests.kit.servers import REPO, wait_until

pytestmark = pytest.mark.server

MODELS = ("qwen3.8-max", "qwen3.8-flash", "qwen3.7-plus")
SUMS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def usage(proxy: Proxy, *arguments: str) -> list[dict[str, Any]]:
    """What the command says, beside the running server."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "usage", "--json", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(proxy.home), "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def total(rows: list[dict[str, Any]], member: str) -> int:
    return int(sum(row[member] for row in rows))


def books(sandbox: Sandbox) -> Counter[str]:
    """What the sandbox has told of usage."""
    found: Counter[str] = Counter()
    for record in sandbox.settle():
        if told := record.usage:
            found["input_tokens"] += told["prompt_tokens"]
            found["output_tokens"] += told.get("completion_tokens", 0)
            details = told.get("prompt_tokens_details") or {}
            found["cached_tokens"] += details.get("cached_tokens", 0)
            details = told.get("completion_tokens_details") or {}
            found["reasoning_tokens"] += details.get("reasoning_tokens", 0)
    return found


def one_call(proxy: Proxy, number: int) -> str:
    """Make one of many kinds of calls; how it ended for its client."""
    chance = random.Random(number)
    spec, fields = chance.choice(
        [
            ("cached=32", {}),
            ("cached=8, chunks=5", {"stream": True}),
            ("think, chunks=3", {"stream": True}),
            ("error=data_inspection_failed", {}),
            ("cut-after=2, chunks=5", {"stream": True}),
            ("leave", {"stream": True}),
            ("no-usage", {}),
            ("embed", {}),
            ("bad", {}),
        ]
    )
    path, body = "/v1/chat/completions", chat(f"hello [[sandbox: {spec}]]", **fields)
    body["model"] = chance.choice(MODELS)
    if spec == "embed":
        path, body = "/v1/embeddings", {"model": "text-embedding-v4", "input": ["a", "b b"]}
    elif spec == "bad":
        body["messages"] = 5
    elif spec == "leave":
        body = chat("[[sandbox: chunks=999, interval=0.05]]", stream=True)
    with Exchange(proxy.port, body, path=path, key=CLIENT_KEY) as exchange:
        status, _ = exchange.head()
        if spec == "leave":
            assert status == 200, exchange.body()
            exchange.read_until(b"data:")
            return "left"
        if status != 200:
            return "refused" if spec == "bad" else "failed"
        if "cut-after" in spec:
            exchange.read_to_end()
            return "failed"
        exchange.body()
        return "unknown" if spec == "no-usage" else "complete"


def test_the_sums_are_the_upstream_s_and_the_log_s(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=CLIENT_KEY,
        QWEN_PROXY_WORKERS="2",
    )
    with ThreadPoolExecutor(8) as pool:
        ends = Counter(pool.map(lambda number: one_call(proxy, number), range(120)))
    # Calls that are under way when their worker is killed are nobody's; those before it stay.
    stalls = chat("[[sandbox: chunks=9, stall-after=2]]", stream=True)
    held = [Exchange(proxy.port, stalls, key=CLIENT_KEY) for _ in range(4)]
    for each in held:
        each.read_until(b"data:")
    victim = min(proxy.workers())
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in proxy.workers() and len(proxy.workers()) == 2, "a new worker")
    cut = 0
    for each in held:
        each.socket.settimeout(0.5)
        try:
            each.read_to_end()
            cut += 1  # with the worker that was killed
        except TimeoutError:
            pass
        except ConnectionError:
            cut += 1
        each.close()
    with ThreadPoolExecutor(8) as pool:
        ends += Counter(pool.map(lambda number: one_call(proxy, number), range(120, 150)))
    ends["left"] += len(held) - cut

    def lines() -> list[dict[str, Any]]:
        return proxy.call_lines()

    wait_until(lambda: len(lines()) == ends.total(), "the last lines of the log")
    rows = usage(proxy, "--by", "model")

    assert total(rows, "calls") + total(rows, "refused") == ends.total()
    assert total(rows, "refused") == ends["refused"]
    assert total(rows, "failed") == ends["failed"]
    told = books(sandbox)
    assert {name: total(rows, name) for name in SUMS} == {name: told[name] for name in SUMS}
    assert all(told[name] for name in SUMS)
    by_log = {
        "input_tokens": "prompt_tokens",
        "cached_tokens": "cached_tokens",
        "output_tokens": "completion_tokens",
        "reasoning_tokens": "reasoning_tokens",
    }
    for name, of_log in by_log.items():
        assert total(rows, name) == sum(line.get(of_log, 0) for line in lines())
    # Each question has the same sums.
    for by in ("client", "endpoint", "hour"):
        others = usage(proxy, "--by", by)
        assert [total(others, name) for name in ("calls", "refused", *SUMS)] == [
            total(rows, name) for name in ("calls", "refused", *SUMS)
        ]
    assert proxy.stop() == 0
    assert usage(proxy, "--by", "model") == rows


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_whose_answer_has_come_survives_the_death_of_its_worker(
    start_proxy: StartProxy, sandbox: Sandbox, stream: bool
) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=CLIENT_KEY,
    )
    (worker,) = proxy.workers()
    with Exchange(
        proxy.port, chat("[[sandbox: chunks=5, interval=0.02]]", stream=stream), key=CLIENT_KEY
    ) as exchange:
        exchange.read_until(b"[DONE]" if stream else b'"usage"')
        os.kill(worker, signal.SIGKILL)

    (row,) = usage(proxy)
    assert (row["calls"], row["failed"], row["unknown_usage"]) == (1, 0, 0)
    assert row["input_tokens"] == books(sandbox)["input_tokens"] > 0


def test_a_price_file_that_cannot_be_used_is_told_at_the_start(
    start_proxy: StartProxy, sandbox: Sandbox, tmp_path: Path
) -> None:
    own = tmp_path / "prices.json"
    own.write_text("{}x")
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_PRICES=str(own),
    )

    wait_until(lambda: "are not used, and the built-in ones are" in proxy.log.read_text(), "it")
