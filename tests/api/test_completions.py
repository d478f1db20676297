"""POST /v1/completions: answered natively, or by way of chat where the upstream has none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.apps import App, error_of, in_front_of
from tests.fakes.raw_server import RawServer, whole
from tests.fakes.raw_server import stream as streamed

MODELS = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
NATIVE = {
    "id": "cmpl-of-the-upstream",
    "object": "text_completion",
    "created": 7,
    "model": "m",
    "choices": [
        {"text": "Once upon", "index": 0, "logprobs": {"tokens": ["x"]}, "finish_reason": "length"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 7,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "by chat"},
            "finish_reason": "stop",
        }
    ],
}


def post(app: App, **members: Any) -> Any:
    return app.client.post("/v1/completions", json={"model": "m", "prompt": "Once", **members})


def lines_and_bodies(server: RawServer) -> list[tuple[str, Any]]:
    """Path and body of the POSTs that a server got."""
    return [
        (request.split(b" ")[1].decode(), json.loads(request.partition(b"\r\n\r\n")[2]))
        for request in server.requests
        if request.startswith(b"POST")
    ]


def test_an_explicit_upstream_is_asked_natively_with_all_that_it_may_know() -> None:
    members = {"prompt": [1, 2], "echo": True, "logprobs": 1, "best_of": 2, "suffix": "end"}
    with in_front_of(MODELS, whole(json.dumps(NATIVE).encode(), x_request_id="up-1")) as (
        app,
        server,
    ):
        answer = post(app, **members)
        assert answer.status_code == 200
        assert answer.json == NATIVE
        assert lines_and_bodies(server) == [("/v1/completions", {"model": "m", **members})]
        (line,) = app.calls
    assert (line["account"], line["upstream_request_id"]) == ("upstream", "up-1")


def test_its_answer_as_a_stream() -> None:
    with in_front_of(MODELS, whole(json.dumps(NATIVE).encode())) as (app, server):
        answer = post(app, stream=True)
        events = answer.data.decode().split("\n\n")
        assert answer.content_type.startswith("text/event-stream")
        assert answer.headers["x-qwen-proxy-changed"] == "stream:whole"
        assert lines_and_bodies(server)[0][1]["stream"] is False
    first, last = (json.loads(event.removeprefix("data: ")) for event in events[:2])
    assert first["choices"][0]["text"] == "Once upon"
    assert first["choices"][0]["logprobs"] == {"tokens": ["x"]}
    assert last["choices"][0]["finish_reason"] == "length"
    assert "usage" not in last
    assert events[2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed"])
def test_a_server_without_completions_is_asked_to_chat(status: str) -> None:
    no = whole(b'{"detail":"Not Found"}', status)
    with in_front_of(MODELS, no, whole(json.dumps(CHAT).encode())) as (app, server):
        answer = post(app, temperature=0.5)
        assert answer.status_code == 200, answer.data
        assert answer.json["choices"][0]["text"] == "by chat"
        paths, bodies = zip(*lines_and_bodies(server), strict=True)
        assert paths == ("/v1/completions", "/v1/chat/completions")
        assert bodies[1] == {
            "model": "m",
            "temperature": 0.5,
            "messages": [{"role": "user", "content": "Once"}],
        }


def test_and_its_stream_is_one() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "by chat"}, "finish_reason": "stop"}]}
    event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    no = whole(b'{"detail":"Not Found"}', "404 Not Found")
    with (
        in_front_of(MODELS, no, streamed(event, b"data: [DONE]\n\n")) as (app, _),
        post(app, stream=True) as answer,
    ):
        assert b'"text":"by chat"' in answer.data
        assert answer.data.endswith(b"data: [DONE]\n\n")


def test_what_it_refuses_is_the_clients_to_know() -> None:
    said = {"error": {"message": "suffix is not supported", "type": "x", "param": None, "code": 1}}
    no = whole(json.dumps(said).encode(), "400 Bad Request")
    with in_front_of(MODELS, no) as (app, _):
        answer = post(app, suffix="end")
        assert answer.status_code == 400
        assert "suffix is not supported" in error_of(answer)["message"]


@pytest.mark.parametrize("body", [b"{}", b'{"choices": 1}', b"[]", b"no json", b""])
def test_an_answer_that_is_none_is_the_upstreams_fault(body: bytes) -> None:
    with in_front_of(MODELS, whole(body)) as (app, _):
        answer = post(app)
        assert answer.status_code == 502
        assert error_of(answer)["code"]
