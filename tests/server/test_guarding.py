"""Who is let in, what is refused and in which words, and what the log says of it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat
from tests.kit.secrets import secret

pytestmark = pytest.mark.server


def error_of(exchange: Exchange) -> tuple[int, dict[str, Any], dict[str, str]]:
    status, headers = exchange.head()
    error = json.loads(exchange.body())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]
    return status, error, headers


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"", 400, None, None),
        (b"{", 400, None, None),
        (b"[1]", 400, None, None),
        (b'{"model": "qwen-plus", "messages": NaN}', 400, None, None),
        (b"\xff\xfe", 400, None, None),
        (b"[" * 100_000, 400, None, None),
        (b'{"model": "qwen-plus"}', 400, "messages", "missing_required_parameter"),
        (b'{"model": "qwen-plus", "messages": "hi"}', 400, "messages", "invalid_type"),
        (b'{"model": "qwen-plus", "messages": []}', 400, "messages", "empty_array"),
        (b'{"model": "qwen-plus", "messages": [1]}', 400, "messages[0]", "invalid_type"),
        (
            b'{"model": "qwen-plus", "messages": [{"content": "x"}]}',
            400,
            "messages[0].role",
            "missing_required_parameter",
        ),
        (
            b'{"model": 7, "messages": [{"role": "user", "content": "x"}]}',
            400,
            "model",
            "invalid_type",
        ),
        (
            b'{"messages": [{"role": "user", "content": "x"}]}',
            400,
            "model",
            "missing_required_parameter",
        ),
        (
            b'{"model": "nope", "messages": [{"role": "user", "content": "x"}]}',
            404,
            "model",
            "model_not_found",
        ),
    ],
)
def test_bad_requests_are_told_as_openai_tells_them(
    proxy: Proxy, sandbox: Sandbox, body: bytes, status: int, param: str | None, code: str | None
) -> None:
    with Exchange(proxy.port, body, key=CLIENT_KEY) as exchange:
        got, error, _ = error_of(exchange)

    assert (got, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert sandbox.chats == ()


def test_a_body_over_the_limit_is_413(start_proxy: StartProxy) -> None:
    proxy = start_proxy(QWEN_PROXY_SANDBOX="1", QWEN_PROXY_MAX_BODY="2048")
    with Exchange(proxy.port, chat("x" * 3000)) as exchange:
        status, error, _ = error_of(exchange)

    assert status == 413
    assert error["code"] == "request_too_large"

    with Exchange(proxy.port, headers={"Transfer-Encoding": "chunked"}, body=None) as exchange:
        pass  # only to see that the server lives on
    with Exchange(proxy.port, chat("x")) as exchange:
        assert exchange.head()[0] == 200


def test_unknown_routes_and_wrong_methods(proxy: Proxy) -> None:
    with Exchange(proxy.port, path="/v1/nope", key=CLIENT_KEY) as exchange:
        status, error, _ = error_of(exchange)
    assert (status, error["code"]) == (404, "unknown_url")

    with Exchange(
        proxy.port, method="GET", path="/v1/chat/completions", key=CLIENT_KEY
    ) as exchange:
        status, error, headers = error_of(exchange)
    assert (status, error["code"]) == (405, "method_not_allowed")
    assert "POST" in headers["allow"]


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_client_key_is_taken_from_either_header(proxy: Proxy, header: str) -> None:
    for value, expected in ((CLIENT_KEY, 200), (secret("guess"), 401), ("", 401)):
        sent = f"Bearer {value}" if header == "Authorization" else value
        with Exchange(
            proxy.port, method="GET", path="/v1/models", headers={header: sent}
        ) as exchange:
            assert exchange.head()[0] == expected


def test_openai_api_key_is_one_more_client_key_and_never_goes_upstream(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    key = secret("openai")
    proxy = start_proxy(
        OPENAI_API_KEY=key,
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
    )
    with Exchange(proxy.port, chat()) as exchange:
        assert exchange.head()[0] == 401
    with Exchange(proxy.port, chat(), key=key) as exchange:
        assert exchange.head()[0] == 200
    sandbox.settle()

    assert {record.key_ends for record in sandbox.requests} == {UPSTREAM_KEY[-4:]}


def test_without_keys_only_this_machine_is_served(start_proxy: StartProxy) -> None:
    proxy = start_proxy(QWEN_PROXY_SANDBOX="1")
    cases = [
        ({}, 200),
        ({"Host": "localhost:80"}, 200),
        ({"X-Forwarded-For": "192.168.1.7"}, 401),
        ({"X-Forwarded-For": "127.0.0.1, 192.168.1.7"}, 401),
        ({"X-Forwarded-For": "127.0.0.1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
    ]
    for headers, expected in cases:
        with Exchange(proxy.port, method="GET", path="/v1/models", headers=headers) as exchange:
            status, answered = exchange.head()
            body = exchange.body()
        assert status == expected, headers
        assert "access-control-allow-origin" not in answered
        if status == 401:
            assert b"QWEN_PROXY_API_KEYS" in body


def test_preflights_are_answered_without_a_key(proxy: Proxy) -> None:
    with Exchange(
        proxy.port,
        method="OPTIONS",
        path="/v1/chat/completions",
        headers={
            "Origin": "https://chat.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    ) as exchange:
        status, headers = exchange.head()

    assert status == 204
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-allow-headers"] == "authorization, content-type"


def test_every_call_has_one_line_in_the_log(proxy: Proxy, sandbox: Sandbox) -> None:
    ids: list[str] = []
    for body in (chat(), chat(stream=True), chat("[[sandbox: throttle]]"), {"model": "x"}):
        with Exchange(
            proxy.port, body, key=CLIENT_KEY, headers={"X-Request-Id": f"line-{len(ids)}"}
        ) as exchange:
            _, headers = exchange.head()
            exchange.body()
            ids.append(headers["x-request-id"])
    lines = [proxy.wait_for_call(id) for id in ids]

    assert ids == ["line-0", "line-1", "line-2", "line-3"]
    assert [line["outcome"] for line in lines] == [
        "complete",
        "complete",
        "upstream_error",
        "refused",
    ]
    assert [line["status"] for line in lines] == [200, 200, 429, 400]
    for line in lines[:2]:
        assert line["account"] == "dashscope" and line["model"] == "qwen3.7-plus"
        assert line["prompt_tokens"] > 0 and line["completion_tokens"] > 0
        assert line["total_ms"] > 0
        assert line["client"] == "env-1"
    assert lines[1]["first_byte_ms"] <= lines[1]["total_ms"]
    time.sleep(0.1)
    assert len([line for line in proxy.call_lines() if line["request_id"] == "line-0"]) == 1


def test_bodies_and_keys_are_not_in_the_log(proxy: Proxy, sandbox: Sandbox) -> None:
    said = "a-word-that-only-the-body-has"
    with Exchange(
        proxy.port, chat(said), key=CLIENT_KEY, headers={"X-Request-Id": "bodies"}
    ) as exchange:
        exchange.body()
    proxy.wait_for_call("bodies")

    log = proxy.log.read_text()
    assert said not in log
    assert CLIENT_KEY[:-4] not in log and UPSTREAM_KEY[:-4] not in log


def test_health_tells_states_without_secrets(proxy: Proxy) -> None:
    with Exchange(proxy.port, method="GET", path="/health") as exchange:
        status, _ = exchange.head()
        body = exchange.body()

    health = json.loads(body)
    assert status == 200
    assert health["ready"] is True and health["sandbox"] is False
    assert health["accounts"] == [{"name": "dashscope", "kind": "key", "state": "fresh"}]
    assert UPSTREAM_KEY.encode()[-8:] not in body
