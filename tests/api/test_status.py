"""GET /status: for programs on this machine, with a key if there are any."""

from __future__ import annotations

import json

import pytest

from tests.api.apps import UPSTREAM_KEY, error_of, in_front_of, running
from tests.fakes.raw_server import whole
from tests.kit.secrets import core, secret

KEY = secret("status-client")
ANSWER = json.dumps(
    {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x"},
                "finish_reason": "stop",
            }
        ]
    }
).encode()


def test_it_tells_the_accounts_and_the_latest_call_of_each() -> None:
    with in_front_of(whole(ANSWER), DASHSCOPE_API_KEY=UPSTREAM_KEY) as (app, server):
        before = json.loads(app.get("/status").data)
        assert app.chat().status_code == 200
        after = json.loads(app.get("/status").data)

    assert [row["last_call"] for row in before["accounts"]] == [None, None]
    upstream, dashscope = after["accounts"]
    assert upstream["name"] == "upstream"
    assert upstream["endpoint"] == server.url + "/v1"
    assert upstream["last_call"]["cause"] == ""
    assert upstream["last_call"]["age_s"] >= 0
    assert dashscope["last_call"] is None
    assert core(UPSTREAM_KEY) not in json.dumps(after)
    assert (after["problems"], after["notes"]) == ([], [])


def test_a_refusal_is_told_by_its_cause() -> None:
    refusal = b'{"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}}'
    with in_front_of(whole(refusal, "401 Unauthorized")) as (app, _):
        app.chat()
        (row,) = json.loads(app.get("/status").data)["accounts"]

    assert row["last_call"]["cause"]
    assert row["last_call"]["answered_s"] is None
    assert row["left_alone_s"] > 0


def test_other_machines_may_not_ask_even_with_a_key() -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        allowed = app.get("/status", headers={"Authorization": f"Bearer {KEY}"})
        far = app.get(
            "/status",
            headers={"Authorization": f"Bearer {KEY}"},
            environ_overrides={"REMOTE_ADDR": "192.168.1.7"},
        )
        through_nginx = app.get(
            "/status",
            headers={"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "192.168.1.7"},
            environ_overrides={"REMOTE_ADDR": ""},
        )
        keyless = app.get("/status")

    assert allowed.status_code == 200
    for answer in (far, through_nginx):
        assert (answer.status_code, error_of(answer)["code"]) == (403, "local_only")
    assert (keyless.status_code, error_of(keyless)["code"]) == (401, "missing_api_key")


def test_the_name_of_the_public_address_is_served_without_keys() -> None:
    with running(QWEN_PROXY_PUBLIC_URL="https://qwen.lan") as app:
        named = app.get("/v1/models", headers={"Host": "qwen.lan"})
        other = app.get("/v1/models", headers={"Host": "evil.example"})

    assert (named.status_code, other.status_code) == (200, 403)


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_at_debug_each_attempt_is_a_line_without_secrets(level: str) -> None:
    with in_front_of(whole(ANSWER), LOG_LEVEL=level) as (app, server):
        app.chat(headers={"X-Request-Id": "asked-1"})
        lines = [json.loads(line) for line in app.log.splitlines()]

    found = [line for line in lines if line["event"] == "upstream request"]
    if level == "INFO":
        assert found == []
        return
    (line,) = found
    assert line["request_id"] == "asked-1"
    assert line["account"] == "upstream"
    assert line["token_from"] == "environment QWEN_UPSTREAM_BASE_URL"
    assert line["base_url"] == server.url + "/v1"
    assert line["request"] == "POST /chat/completions"
    assert line["bytes"] > 20
    assert "hello" not in json.dumps(line)
