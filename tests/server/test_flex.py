"""Calls at half price (`service_tier: "flex"`) wait at Batch Chat, where the account has it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, start

pytestmark = pytest.mark.server

MODEL = "qwen-plus"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


def environment(sandbox: Sandbox, **more: str) -> dict[str, str]:
    return {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": CLIENT_KEY,
        **more,
    }


@pytest.fixture(scope="module")
def proxy(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start(
        tmp_path_factory.mktemp("flex"),
        environment(
            upstream,
            QWEN_PROXY_BATCH_HOST=upstream.origin + "/batch/compatible-mode/v1",
            QWEN_PROXY_FIRST_BYTE_TIMEOUT="0.5",
            QWEN_PROXY_FLEX_TIMEOUT="3",
            QWEN_PROXY_KEEPALIVE_INTERVAL="0.3",
        ),
    )
    yield running
    running.stop()


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> openai.OpenAI:
    proxy.forget_troubles()
    return openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=20)


def routes(sandbox: Sandbox) -> list[str]:
    return [each.route for each in sandbox.requests if "chat" in each.route]


@pytest.mark.parametrize("how", ["chat", "responses"])
def test_a_call_waits_at_batch_chat(client: openai.OpenAI, sandbox: Sandbox, how: str) -> None:
    """Longer than another call may."""
    sandbox.control(faults={"batch-chat": "slow-headers=1.2"})
    began = time.monotonic()

    raw: Any
    if how == "chat":
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, service_tier="flex"
        )
    else:
        raw = client.responses.with_raw_response.create(
            model=MODEL, input="Hello", service_tier="flex"
        )

    assert time.monotonic() - began > 1.2
    assert raw.headers["x-qwen-proxy-account"] == "dashscope-flex"
    assert "service_tier:batch-chat" in raw.headers["x-qwen-proxy-changed"]
    assert routes(sandbox) == ["batch-chat"]
    (sent,) = (each for each in sandbox.requests if each.route == "batch-chat")
    assert sent.body and b"service_tier" not in sent.body
    assert sent.headers["authorization"].endswith(UPSTREAM_KEY[-4:])


def test_a_stream_is_kept_open_meanwhile(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(faults={"batch-chat": "slow-headers=1.2"})

    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=MESSAGES, service_tier="flex", stream=True
    ) as response:
        lines = list(response.iter_lines())

    assert sum(line.startswith(":") for line in lines) >= 3
    assert lines[-2] == "data: [DONE]" or lines[-1] == "data: [DONE]"
    assert routes(sandbox) == ["batch-chat"]


def test_the_wait_has_an_end(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(faults={"batch-chat": "hang"})

    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, service_tier="flex")

    assert told.value.status_code == 504
    assert "QWEN_PROXY_FLEX_TIMEOUT" in told.value.message


@pytest.mark.parametrize("tier", ["auto", "default", None])
def test_other_tiers_run_as_ever(client: openai.OpenAI, sandbox: Sandbox, tier: Any) -> None:
    client.chat.completions.create(model=MODEL, messages=MESSAGES, service_tier=tier)

    assert routes(sandbox) == ["chat"]


def test_a_model_that_it_has_not_runs_as_usual(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(faults={"batch-chat": "model-not-found"})

    def ask() -> Any:
        return client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, service_tier="flex"
        )

    raw = ask()
    assert raw.headers["x-qwen-proxy-account"] == "dashscope"
    assert "service_tier:dropped" in raw.headers["x-qwen-proxy-changed"]
    ask()
    # It is remembered for a while, and what it refuses is no refusal of the ordinary host.
    assert routes(sandbox) == ["batch-chat", "chat", "chat"]
    client.chat.completions.create(model=MODEL, messages=MESSAGES)


@pytest.mark.parametrize(("fault", "status"), [("throttle", 429), ("overload", 503)])
def test_a_full_queue_never_leads_to_the_full_price(
    client: openai.OpenAI, sandbox: Sandbox, fault: str, status: int
) -> None:
    sandbox.control(faults={"batch-chat": fault})

    for _ in range(2):
        with pytest.raises(openai.APIStatusError) as told:
            client.chat.completions.create(model=MODEL, messages=MESSAGES, service_tier="flex")
        assert told.value.status_code == status
    assert "chat" not in routes(sandbox)
    # Nor does it keep ordinary calls away.
    client.chat.completions.create(model=MODEL, messages=MESSAGES)


def test_without_batch_chat_a_call_runs_as_usual_and_says_so(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    running = start(tmp_path, environment(sandbox))
    try:
        with openai.OpenAI(base_url=running.base_url, api_key=CLIENT_KEY, max_retries=0) as plain:
            raw = plain.chat.completions.with_raw_response.create(
                model=MODEL, messages=MESSAGES, service_tier="flex"
            )
    finally:
        running.stop()

    assert raw.headers["x-qwen-proxy-account"] == "dashscope"
    assert raw.headers["x-qwen-proxy-changed"] == "service_tier:dropped"
    assert routes(sandbox) == ["chat"]
