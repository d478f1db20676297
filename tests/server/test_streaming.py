"""Streams through a real gunicorn: what arrives, when, and how it ends."""

from __future__ import annotations

import json
import time

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.fakes.canned_upstream import STREAM_HEAD, CannedUpstream
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat, events, text_of

pytestmark = pytest.mark.server


def ask(proxy: Proxy, spec: str = "", **fields: object) -> Exchange:
    text = f"Hello there [[sandbox: {spec}]]" if spec else "Hello there"
    return Exchange(proxy.port, chat(text, **{"stream": True, **fields}), key=CLIENT_KEY)


def test_a_stream_arrives_whole_with_the_headers_that_proxies_need(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with ask(proxy) as exchange:
        status, headers = exchange.head()
        chunks = events(exchange.body())

    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-qwen-proxy-account"] == "dashscope"
    assert headers["x-upstream-request-id"]
    assert "set-cookie" not in headers
    assert text_of(chunks).startswith("[sandbox]")
    assert chunks[-1] == "[DONE]"


def test_usage_is_always_asked_upstream_and_shown_only_to_who_asked(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with ask(proxy) as exchange:
        without = events(exchange.body())
        request_id = exchange.head()[1]["x-request-id"]
    with ask(proxy, stream_options={"include_usage": True}) as exchange:
        shown = events(exchange.body())
    sandbox.settle()

    assert all(chunk["choices"] for chunk in without[:-1])
    assert shown[-2]["choices"] == [] and shown[-2]["usage"]["total_tokens"] > 0
    for record in sandbox.chats:
        assert json.loads(record.body or b"")["stream_options"] == {"include_usage": True}
    line = proxy.wait_for_call(request_id)
    assert line["prompt_tokens"] + line["completion_tokens"] == shown[-2]["usage"]["total_tokens"]
    assert line["outcome"] == "complete"


def test_each_read_of_the_upstream_is_one_write_to_the_client(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with ask(proxy, "chunks=5, interval=0.05") as exchange:
        exchange.body()
        writes = exchange.chunks()

    # A role chunk, five deltas and an end, paced: none is held back to be sent with the next.
    assert len(writes) >= 6
    assert all(write.endswith(b"\n\n") for write in writes)


def test_a_burst_goes_out_in_few_writes(
    start_proxy: StartProxy, canned_upstream: CannedUpstream
) -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    framed = b"%x\r\n%b\r\n" % (len(chunk), chunk)
    canned_upstream.answer = (
        STREAM_HEAD
        + framed * 2000
        + b"%x\r\n%b\r\n0\r\n\r\n"
        % (
            len(end),
            end,
        )
    )
    proxy = start_proxy(QWEN_UPSTREAM_BASE_URL=canned_upstream.base_url)
    with ask(proxy) as exchange:
        body = exchange.body()
        writes = exchange.chunks()

    assert len(events(body)) == 2002
    assert len(writes) < 100, "an upstream chunk must not cost a write of its own"


@pytest.mark.parametrize(
    "spec", ["split=1, chunks=3", "split=7, crlf", "crlf", "comments", "ids", "close", "gzip"]
)
def test_any_framing_of_the_upstream_becomes_clean_events(
    proxy: Proxy, sandbox: Sandbox, spec: str
) -> None:
    with ask(proxy, spec + ", text=Gr%C3%BC%C3%9Fe %F0%9F%A6%8A") as exchange:
        body = exchange.body()

    assert text_of(events(body)) == "Grüße 🦊"
    assert events(body)[-1] == "[DONE]"
    assert b"\r" not in body
    lines = [line for line in body.split(b"\n") if line and line != b": keep-alive"]
    assert all(line.startswith(b"data: ") for line in lines)
    assert body.endswith(b"\n\n")


@pytest.mark.parametrize("spec", ["cut-after=3", "reset-after=3", "cut-mid-event"])
def test_a_broken_stream_ends_with_an_error_event_and_a_closed_connection(
    proxy: Proxy, sandbox: Sandbox, spec: str
) -> None:
    with ask(proxy, f"interval=0.02, chunks=20, {spec}") as exchange:
        status, headers = exchange.head()
        received = exchange.read_to_end()
        found = events(b"".join(exchange.chunks()))

    assert status == 200
    assert found[-1]["error"]["code"] == "upstream_broken"
    assert "[DONE]" not in found
    assert not received.endswith(b"\r\n0\r\n\r\n"), "the body must look cut to HTTP, too"
    assert proxy.wait_for_call(headers["x-request-id"])["outcome"] == "upstream_error"


def test_an_error_frame_of_the_upstream_has_openais_code(proxy: Proxy, sandbox: Sandbox) -> None:
    with ask(proxy, "interval=0.02, chunks=20, inspection-mid-stream") as exchange:
        exchange.read_to_end()
        found = events(b"".join(exchange.chunks()))

    error = found[-1]["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "content_filter")
    assert "[DONE]" not in found


def test_a_stall_ends_with_a_timeout_event_after_keep_alives(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with ask(proxy, "interval=0.01, chunks=20, stall-after=3") as exchange:
        received = exchange.read_to_end()
        found = events(b"".join(exchange.chunks()))

    assert received.count(b": keep-alive\n\n") >= 2
    assert found[-1]["error"]["code"] == "upstream_timeout"


def test_keep_alives_flow_before_a_late_first_event(proxy: Proxy, sandbox: Sandbox) -> None:
    for spec in ("slow-first=1.3", "slow-headers=1.3"):
        with ask(proxy, spec) as exchange:
            before = time.monotonic()
            exchange.read_until(b": keep-alive\n\n")
            waited = time.monotonic() - before
            body = exchange.body()

        assert waited < 1.2
        assert body.count(b": keep-alive\n\n") >= 2
        assert events(body)[-1] == "[DONE]"


def test_upstream_comments_do_not_keep_a_client_waiting(proxy: Proxy, sandbox: Sandbox) -> None:
    with ask(proxy, "slow-first=1.5, heartbeat=0.1") as exchange:
        body = exchange.body()

    assert b": keep-alive\n\n" in body
    assert events(body)[-1] == "[DONE]"


def test_a_failure_after_the_200_is_an_error_event(proxy: Proxy, sandbox: Sandbox) -> None:
    with ask(proxy, "slow-headers=1, throttle") as exchange:
        status, _ = exchange.head()
        exchange.read_to_end()
        found = events(b"".join(exchange.chunks()))

    assert status == 200
    assert found[-1]["error"]["code"] == "rate_limit_exceeded"


def test_a_first_event_that_never_comes_is_a_timeout(proxy: Proxy, sandbox: Sandbox) -> None:
    with ask(proxy, "hang") as exchange:
        exchange.read_to_end()
        found = events(b"".join(exchange.chunks()))

    assert found[-1]["error"]["code"] == "upstream_timeout"


def test_a_stream_may_end_without_done_if_it_finished(proxy: Proxy, sandbox: Sandbox) -> None:
    with ask(proxy, "no-done") as exchange:
        found = events(exchange.body())

    assert found[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("spec", "status", "code"),
    [
        ("throttle", 429, "rate_limit_exceeded"),
        ("sse-400", 400, None),
        ("html-502", 502, "upstream_http_502"),
        ("empty-503", 503, "upstream_http_503"),
        ("html-200", 502, "upstream_challenge"),
        ("json-error-200", 502, None),
        ("empty-stream", 502, "upstream_empty"),
        ("error-frame-after=0", 502, None),
        ("drop", 502, "upstream_closed"),
        ("denied", 403, None),
        ("model-not-found", 404, "model_not_found"),
        ("invalid-key", 502, "upstream_account_refused"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_event_keeps_its_status(
    proxy: Proxy, sandbox: Sandbox, spec: str, status: int, code: str | None, stream: bool
) -> None:
    with ask(proxy, spec, stream=stream) as exchange:
        got, headers = exchange.head()
        error = json.loads(exchange.body())["error"]

    assert got == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    if code is not None:
        assert error["code"] == code
    assert headers["x-request-id"]
    assert headers["content-type"] == "application/json"


def test_an_upstream_that_does_not_stream_is_streamed_all_the_same(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with ask(proxy, "non-stream-json") as exchange:
        found = events(exchange.body())

    assert text_of(found).startswith("[sandbox]")
    assert found[-1] == "[DONE]"


def test_keep_alive_chunks_can_replace_comments(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_KEEPALIVE="chunk",
        QWEN_PROXY_KEEPALIVE_INTERVAL="0.3",
    )
    with ask(proxy, "slow-first=0.8") as exchange:
        body = exchange.body()
    found = events(body)

    assert b": " not in body.replace(b'": ', b"").replace(b"data: ", b"")[:200]
    assert found[0]["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    assert found[0]["object"] == "chat.completion.chunk"
    assert found[-1] == "[DONE]"


def test_keep_alives_can_be_switched_off(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_KEEPALIVE="off",
        QWEN_PROXY_KEEPALIVE_INTERVAL="0.1",
    )
    with ask(proxy, "slow-headers=0.5, throttle") as exchange:
        status, _ = exchange.head()

    assert status == 429, "without keep-alives the status waits for the upstream"


@pytest.mark.parametrize("stream", [True, False])
def test_an_upstream_that_only_gives_signs_of_life_is_given_up(
    proxy: Proxy, sandbox: Sandbox, stream: bool
) -> None:
    """Its heartbeats keep the idle timeout (2 s) from ending it; the first byte's (3 s) does."""
    body = {
        "model": "qwen3.7-plus",
        "stream": stream,
        "messages": [{"role": "user", "content": "[[sandbox: stall-after=2, heartbeat=0.1]]"}],
    }
    with Exchange(proxy.port, json.dumps(body).encode(), key=CLIENT_KEY) as exchange:
        assert exchange.head()[0] == (200 if stream else 504)
        exchange.read_until(b"upstream_timeout")
    sandbox.settle()
