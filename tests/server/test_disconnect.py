"""A client that goes away stops the upstream at once, wherever its call is."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy, has_chats
from tests.kit.raw_client import Exchange, chat

pytestmark = pytest.mark.server

#: The goal is 50 ms; the bound of a test on a busy machine is looser, the benchmark measures.
BOUND_S = 0.5


def leave(proxy: Proxy, sandbox: Sandbox, exchange: Exchange) -> float:
    """Close the client; seconds until the upstream saw its own connection closed."""
    left_at = exchange.close()
    assert sandbox.wait_until(lambda: sandbox.chats[-1].outcome != "open", 5)
    record = sandbox.chats[-1]
    assert record.outcome == "client_gone"
    assert record.gone_s is not None
    return record.gone_s - left_at


@pytest.mark.parametrize(
    ("spec", "fields", "wait_for"),
    [
        pytest.param("slow-headers=8", {"stream": True}, b"", id="before-the-headers"),
        pytest.param("slow-first=8", {"stream": True}, b"", id="before-the-first-event"),
        pytest.param(
            "slow-first=8", {"stream": True}, b": keep-alive", id="after-keep-alives-began"
        ),
        pytest.param(
            "chunks=9, interval=0.02, stall-after=3", {"stream": True}, b"data:", id="in-a-stall"
        ),
        pytest.param(
            "chunks=999, interval=0.02", {"stream": True}, b"data:", id="in-the-middle-of-a-stream"
        ),
        pytest.param("slow-headers=8", {}, b"", id="not-streamed-before-the-headers"),
        pytest.param("chunks=999, interval=0.02", {}, b"", id="not-streamed-while-generating"),
    ],
)
def test_the_upstream_is_closed_when_the_client_leaves(
    proxy: Proxy, sandbox: Sandbox, spec: str, fields: dict[str, bool], wait_for: bytes
) -> None:
    exchange = Exchange(
        proxy.port,
        chat(f"[[sandbox: {spec}]]", **fields),
        key=CLIENT_KEY,
        headers={"X-Request-Id": "leaves"},
    )
    assert sandbox.wait_until(lambda: bool(sandbox.chats), 5)
    if wait_for:
        exchange.read_until(wait_for)
    else:
        time.sleep(0.15)

    assert leave(proxy, sandbox, exchange) < BOUND_S

    time.sleep(0.1)
    assert proxy.call_lines()[-1]["outcome"] == "client_gone"
    assert proxy.call_lines()[-1]["request_id"] == "leaves"


RESPONSES = ("/v1/responses", {"store": False}, "input")
MESSAGES = ("/v1/messages", {"max_tokens": 5000}, "messages")
COMPLETIONS = ("/v1/completions", {"max_tokens": 5000}, "prompt")


@pytest.mark.parametrize("dialect", [RESPONSES, MESSAGES, COMPLETIONS], ids=lambda each: each[0])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("spec", ["slow-first=8", "chunks=999, interval=0.02"])
def test_so_it_is_in_every_dialect(
    proxy: Proxy,
    sandbox: Sandbox,
    dialect: tuple[str, dict[str, Any], str],
    stream: bool,
    spec: str,
) -> None:
    path, members, prompt = dialect
    text = f"[[sandbox: {spec}]]"
    asked: Any = [{"role": "user", "content": text}] if prompt == "messages" else text
    body = {"model": "qwen3.7-plus", "stream": stream, prompt: asked, **members}
    exchange = Exchange(
        proxy.port, body, path=path, key=CLIENT_KEY, headers={"X-Request-Id": "leaves"}
    )
    assert sandbox.wait_until(lambda: bool(sandbox.chats), 5)
    if stream and "chunks" in spec:
        exchange.read_until(b"data:")
    else:
        time.sleep(0.15)

    assert leave(proxy, sandbox, exchange) < BOUND_S

    time.sleep(0.1)
    assert proxy.call_lines()[-1]["outcome"] == "client_gone"
    assert proxy.call_lines()[-1]["path"] == path


def test_an_explicit_upstream_that_is_asked_as_asked_is_closed_too(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(QWEN_UPSTREAM_BASE_URL=sandbox.base_url, QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY)
    exchange = Exchange(proxy.port, chat("[[sandbox: slow-headers=8]]"))
    assert sandbox.wait_until(lambda: bool(sandbox.chats), 5)
    time.sleep(0.15)

    assert leave(proxy, sandbox, exchange) < BOUND_S


def test_a_place_is_free_again_after_a_client_left(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_MAX_IN_FLIGHT="1",
    )
    for stream in (True, False):
        exchange = Exchange(proxy.port, chat("[[sandbox: slow-headers=8]]", stream=stream))
        wanted = max(len(sandbox.chats), 1)
        assert sandbox.wait_until(partial(has_chats, sandbox, wanted), 5)
        time.sleep(0.15)
        with Exchange(proxy.port, chat()) as refused:
            status, headers = refused.head()
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        leave(proxy, sandbox, exchange)

    with Exchange(proxy.port, chat()) as accepted:
        assert accepted.head()[0] == 200


def test_a_pipelined_request_is_not_taken_for_a_goodbye(proxy: Proxy, sandbox: Sandbox) -> None:
    with Exchange(
        proxy.port, chat("[[sandbox: slow-first=0.4]]", stream=True), key=CLIENT_KEY
    ) as exchange:
        time.sleep(0.1)
        exchange.socket.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = exchange.read_until(b'"status"')

    assert b"[DONE]" in answer
    assert answer.count(b"HTTP/1.1 200 OK") == 2
