"""Plans behind a running server with two workers: they agree on what is used, the fallback answers
when it is spent, and what the vendor says outlasts the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import Proxy, StartProxy, start
from tests.kit.raw_client import Exchange
from tests.kit.secrets import secret
from tests.kit.servers import REPO, wait_until

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
PLAN, PAY = "dashscope", "modelstudio"
PLAN_KEY, PAY_KEY = secret("of-the-plan"), secret("of-the-bill")


def environment(sandbox: Sandbox, plan: str) -> dict[str, str]:
    return {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": PLAN_KEY,
        "MODELSTUDIO_BASE_URL": sandbox.base_url,
        "MODELSTUDIO_API_KEY": PAY_KEY,
        "QWEN_PROXY_WORKERS": "2",
        "QWEN_PROXY_RETRY_BUDGET": "4",
        "QWEN_PROXY_PLANS": f"{PLAN}={plan}",
        "QWEN_PROXY_PLAN_FALLBACK": PAY,
    }


def ask(proxy: Proxy) -> tuple[str, str]:
    """Who answered a call on a connection of its own, and after how many attempts."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    with Exchange(proxy.port, body) as exchange:
        status, headers = exchange.head()
        assert status == 200, exchange.body()
        exchange.body()
    return headers["x-qwen-proxy-account"], headers["x-qwen-proxy-attempts"]


def window(proxy: Proxy) -> dict[str, Any]:
    """What one of the workers knows."""
    with Exchange(proxy.port, None, path="/health", method="GET") as exchange:
        rows = json.loads(exchange.body())["accounts"]
    for row in rows:
        if row["name"] == PLAN and "plan" in row:
            found: dict[str, Any] = row["plan"]["windows"][0]
            return found
    return {"spent": False}


def test_two_workers_agree_and_the_fallback_answers(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(**environment(sandbox, "3/5h"))
    wait_until(lambda: all("used" in window(proxy) for _ in range(4)), "the first looks")

    answers = [ask(proxy) for _ in range(3)]
    assert answers == [(PLAN, "1")] * 3
    wait_until(
        lambda: all(window(proxy)["spent"] and window(proxy)["used"] == 3 for _ in range(4)),
        "both workers know",
    )
    assert [ask(proxy) for _ in range(6)] == [(PAY, "1")] * 6

    client = openai.OpenAI(base_url=proxy.base_url, api_key="unused", max_retries=0)
    with client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={"x-qwen-account": PLAN},
        )
    assert "its window of 5h (3 calls)" in caught.value.message
    assert 5 * 3600 - 120 < float(caught.value.response.headers["retry-after"]) <= 5 * 3600
    shown = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "usage", "--plans", "--json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(proxy.home),
            "PORT": str(proxy.port),
            "PYTHONPATH": str(REPO),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    (account,) = json.loads(shown.stdout)["accounts"]
    assert (account["account"], account["windows"][0]["used"]) == (PLAN, 3)


def test_what_the_vendor_says_outlasts_the_server(sandbox: Sandbox, tmp_path: Path) -> None:
    rule = {"spec": "plan-quota=hour, reset-in=3600", "key_ends": PLAN_KEY, "count": None}
    sandbox.control(next=[rule])
    proxy = start(tmp_path, environment(sandbox, "50/5h"))
    try:
        wait_until(lambda: all("used" in window(proxy) for _ in range(4)), "the first looks")
        assert ask(proxy) == (PAY, "2")
        assert [ask(proxy) for _ in range(4)] == [(PAY, "1")] * 4
    finally:
        proxy.stop()
    proxy.forget_troubles()
    proxy = start(tmp_path, environment(sandbox, "50/5h"))
    try:
        wait_until(
            lambda: all(window(proxy)["spent"] for _ in range(4)), "the first looks", within_s=3
        )
        assert ask(proxy) == (PAY, "1")
    finally:
        proxy.stop()
