"""A server that finds itself among its accounts says so, instead of calling itself for ever."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import StartProxy

pytestmark = pytest.mark.server


MODEL = "qwen3.7-plus"


def ask(port: int) -> tuple[int, str]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_server_that_is_its_own_upstream_ends_the_circle(start_proxy: StartProxy) -> None:
    """qwen-code on the server's own machine was set up to use the server."""
    proxy = start_proxy(QWEN_PROXY_RETRY_BUDGET="0")
    provider = {"id": MODEL, "baseUrl": proxy.base_url, "envKey": "SOME_KEY"}
    settings = {"env": {"SOME_KEY": "x"}, "modelProviders": {"openai": [provider]}}
    (proxy.home / ".qwen").mkdir()
    (proxy.home / ".qwen/settings.json").write_text(json.dumps(settings))

    deadline = time.monotonic() + 20
    while (answer := ask(proxy.port))[1].find("no_account") >= 0 and time.monotonic() < deadline:
        time.sleep(0.1)

    assert answer[0] >= 500
    assert "gone through qwen-proxy 3 times" in proxy.log.read_text() + answer[1]
    calls = [line for line in proxy.call_lines() if line["path"] == "/v1/chat/completions"]
    assert [call["error"] for call in calls[-4:]] == ["loop_detected"] * 4


def test_one_behind_another_is_all_right(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    inner = start_proxy(QWEN_UPSTREAM_BASE_URL=sandbox.base_url, QWEN_UPSTREAM_API_KEY="x")
    outer = start_proxy(QWEN_UPSTREAM_BASE_URL=inner.base_url)

    assert ask(outer.port)[0] == 200
