"""Errors of the Messages API from outside, whatever went wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import (
    Message,
    ServerToolUseBlock,
    WebSearchToolResultBlock,
    WebSearchToolResultError,
)
from anthropic.types.shared import ErrorResponse
from werkzeug.test import TestResponse

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.messages import errors
from tests.api.apps import App, in_front_of, running
from tests.fakes.raw_server import stream, whole
from tests.fakes.raw_server import stream as streamed
from tests.kit.secrets import secret

KEY = secret("client-of-messages")
BODY = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
MODELS = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
ANSWER = {
    "id": "c1",
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
}


def post(app: App, body: Any = BODY, path: str = "/v1/messages", **options: Any) -> TestResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return app.client.post(path, data=data, **options)


def error_of(response: TestResponse) -> dict[str, Any]:
    """The error of an answer in Anthropic's envelope, which is checked."""
    assert response.content_type == "application/json"
    value = json.loads(response.data)
    assert value.keys() == {"type", "error", "request_id"}
    assert value["error"].keys() == {"type", "message"}
    assert value["request_id"] == response.headers["request-id"]
    assert value["request_id"] == response.headers["x-request-id"]
    error: dict[str, Any] = value["error"]
    return error


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "invalid_request_error", 400),
        (b"{", "invalid_request_error", 400),
        (b"[]", "invalid_request_error", 400),
        (b'{"messages":"' + b"x" * 3000 + b'"}', "request_too_large", 413),
    ],
)
def test_bodies_that_are_no_request(path: str, body: bytes, kind: str, status: int) -> None:
    with running(QWEN_PROXY_MAX_BODY="2000") as app:
        response = post(app, body, path)

    assert response.status_code == status
    assert error_of(response)["type"] == kind


def test_routes_that_are_not_there() -> None:
    with running() as app:
        wrong = app.client.get("/v1/messages")
        unknown = app.client.post("/v1/nothing", headers={"anthropic-version": "2023-06-01"})

        assert wrong.status_code == 405
        assert "POST" in wrong.headers["allow"]
        assert error_of(wrong)["type"] == "invalid_request_error"
        assert unknown.status_code == 404
        assert error_of(unknown)["type"] == "not_found_error"


def test_a_missing_key() -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        response = post(app)

    assert response.status_code == 401
    assert error_of(response)["type"] == "authentication_error"


@pytest.mark.parametrize("headers", [{"x-api-key": KEY}, {"Authorization": f"Bearer {KEY}"}])
def test_both_ways_to_send_a_key(headers: dict[str, str]) -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        response = post(app, path="/v1/messages/count_tokens?beta=true", headers=headers)

    assert response.status_code == 200
    assert json.loads(response.data)["input_tokens"] > 0


def test_too_many_calls_at_a_time() -> None:
    with running(QWEN_PROXY_MAX_IN_FLIGHT="1") as app:
        app.services.admission.enter("somebody")
        response = post(app)

    assert response.status_code == 503
    assert error_of(response)["type"] == "overloaded_error"
    assert response.headers["retry-after"]


def test_an_answer() -> None:
    with in_front_of(MODELS, whole(json.dumps(ANSWER).encode())) as (app, _):
        response = post(app)

    assert response.status_code == 200
    message = Message.model_validate(json.loads(response.data))
    assert message.content[0].to_dict() == {"type": "text", "text": "hi"}
    assert response.headers["request-id"].removeprefix("req_") == message.id.removeprefix("msg_")


FORCED = {
    **BODY,
    "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    "tool_choice": {"type": "tool", "name": "web_search"},
}


def check_failed_search(message: Message) -> None:
    use, result = message.content
    assert use.type == "server_tool_use"
    assert result.type == "web_search_tool_result"
    assert result.tool_use_id == use.id
    assert result.content == WebSearchToolResultError(
        type="web_search_tool_result_error", error_code="unavailable"
    )
    assert message.stop_reason == "end_turn"


def test_a_forced_search_that_nobody_can_make_is_no_invented_answer() -> None:
    with in_front_of(MODELS) as (app, upstream):
        response = post(app, FORCED)

    assert response.status_code == 200
    check_failed_search(Message.model_validate(json.loads(response.data)))
    assert all(b"chat/completions" not in each for each in upstream.requests)


def test_nor_is_it_in_a_stream() -> None:
    with in_front_of(MODELS) as (app, _):
        response = post(app, {**FORCED, "stream": True})

    assert response.content_type.startswith("text/event-stream")
    message: Any = None
    for event in sse.events(response.data):
        value = sse.parse(event)
        if value["type"] == "message_start":
            message = value["message"]
        elif value["type"] == "content_block_start":
            message["content"].append(value["content_block"])
        elif value["type"] == "message_delta":
            message.update(value["delta"])
    check_failed_search(Message.model_validate(message))


def test_a_fault_of_ours_is_told_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as app:
        monkeypatch.setattr("qwen_wsgi.protocol.tokens.estimate", lambda body: 1 // 0)
        response = post(app, path="/v1/messages/count_tokens")
        log, calls = app.log, app.calls

    error = error_of(response)
    assert response.status_code == 500
    assert error["type"] == "api_error"
    assert response.headers["request-id"] in error["message"]
    assert "ZeroDivision" in log
    assert (calls[0]["outcome"], calls[0]["error"]) == ("failed", "internal_error")


def test_a_refused_call_is_recorded_as_one() -> None:
    with running() as app:
        post(app, {**BODY, "max_tokens": "many"})
        calls = app.calls

    assert [(c["outcome"], c["status"]) for c in calls] == [("refused", 400)]


def test_a_refusal_to_stream_is_no_stream() -> None:
    refusal = whole(
        b'{"error":{"message":"no","code":"invalid_parameter_error"}}', status="400 Bad Request"
    )
    with in_front_of(MODELS, refusal) as (app, _):
        response = post(app, {**BODY, "stream": True})

    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_types_by_status(status: int, kind: str) -> None:
    body = errors.body(ApiError("no", status=status), request_id="req_1")

    assert body["error"] == {"type": kind, "message": "no"}
    if kind != "request_too_large":  # it is in the API reference, and not in the SDK's types
        ErrorResponse.model_validate(body)


def test_strict_operators_refuse_what_would_be_lost() -> None:
    body = {**BODY, "mcp_servers": [{"type": "url"}]}
    with running(QWEN_PROXY_STRICT="1") as app:
        response = post(app, body)

    assert response.status_code == 400
    assert "mcp_servers" in error_of(response)["message"]


def test_what_the_user_is_called_stays_here() -> None:
    chat = sse.render({"choices": [{"index": 0, "delta": {"content": "hi"}}]})
    end = sse.render({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    answer = stream(chat, end, sse.DONE)
    with in_front_of(MODELS, answer) as (app, server):
        with post(
            app, {**BODY, "stream": True, "metadata": {"user_id": "user_secret"}}
        ) as response:
            assert b"message_stop" in response.data
        bodies = list(server.requests)

    assert bodies
    assert all(b"user_secret" not in body for body in bodies)


def test_counts_begin_at_what_the_upstream_counted() -> None:
    """Claude Code counts the next prompt after each turn."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 1, "total_tokens": 1001}
    said: list[Any] = [{"role": "user", "content": "hello"}]
    answered = {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}
    with in_front_of(MODELS, whole(json.dumps({**ANSWER, "usage": usage}).encode())) as (app, _):
        found = []
        for messages in (said, None, said, [*said, answered, *said]):
            if messages is None:
                assert post(app).status_code == 200
                continue
            response = post(app, {**BODY, "messages": messages}, "/v1/messages/count_tokens")
            count = json.loads(response.data)["input_tokens"]
            found.append((response.headers["x-qwen-proxy-tokens"], count))

    assert found[0][0] == "estimated"
    assert found[1] == ("exact", 1000)
    assert found[2][0] == "calibrated"
    assert 1000 < found[2][1] < 1030


FOUND = {"search_results": [{"index": 1, "title": "A", "url": "https://a.example/"}, {"url": 5}, 6]}
SEARCH_TOOL = {"type": "web_search_20250305", "name": "web_search"}


def searched(found: Any, *, stream: bool) -> bytes:
    """An upstream's answer with what its search found."""
    if not stream:
        return whole(json.dumps({**ANSWER, "search_info": found}).encode())
    chunks = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    chunks += [
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        for text in ("h", "i")
    ]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    events = [sse.render({**each, "search_info": found}) for each in chunks]
    return streamed(*events, sse.DONE)


def content_of(response: TestResponse, *, stream: bool) -> tuple[list[Any], dict[str, Any]]:
    """The blocks and the usage."""
    with response:
        if not stream:
            body = json.loads(response.data)
            Message.model_validate(body)
            return body["content"], body["usage"]
        blocks: list[Any] = []
        for event in map(sse.parse, sse.events(response.data)):
            assert isinstance(event, dict)
            if event["type"] == "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
            if event["type"] == "content_block_delta":
                blocks[event["index"]]["text"] += event["delta"]["text"]
            if event["type"] == "message_delta":
                used = event["usage"]
        return blocks, used


@pytest.mark.parametrize("stream", [False, True])
def test_a_search_of_the_host_is_shown_with_its_pages(stream: bool) -> None:
    body = {**BODY, "stream": stream, "tools": [SEARCH_TOOL]}
    with in_front_of(MODELS, searched(FOUND, stream=stream)) as (app, _):
        (use, result, text), used = content_of(post(app, body), stream=stream)

    ServerToolUseBlock.model_validate(use)
    WebSearchToolResultBlock.model_validate(result)
    assert (use["name"], result["tool_use_id"]) == ("web_search", use["id"])
    assert [(each["url"], each["title"]) for each in result["content"]] == [
        ("https://a.example/", "A")
    ]
    assert text["text"] == "hi"
    assert used["server_tool_use"]["web_search_requests"] == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("found", "tools"),
    [(FOUND, []), ({"search_results": []}, [SEARCH_TOOL]), (None, [SEARCH_TOOL])],
    ids=["no tool", "nothing found", "nothing said"],
)
def test_no_search_is_made_up(found: Any, tools: list[Any], stream: bool) -> None:
    body = {**BODY, "stream": stream, "tools": tools}
    with in_front_of(MODELS, searched(found, stream=stream)) as (app, _):
        blocks, used = content_of(post(app, body), stream=stream)

    assert [each["type"] for each in blocks] == ["text"]
    assert "server_tool_use" not in used
