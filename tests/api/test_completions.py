"""POST /v1/completions: answered natively, or by way of chat where the upstream has none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.api.apps import UPSTREAM_KEY, App, error_of, in_front_of, running
from tests.fakes.raw_server import Answer, RawServer, whole
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


# --- Model Studio --------------------------------------------------------------------------------

CODER = "qwen2.5-coder-7b-instruct"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@contextmanager
def model_studio(*answers: Answer) -> Iterator[tuple[App, RawServer]]:
    """The application with an account at Model Studio, which is asked in streams."""
    listed = whole(json.dumps({"object": "list", "data": [{"id": CODER}, {"id": "m"}]}).encode())
    with (
        RawServer(listed, *answers) as server,
        running(
            DASHSCOPE_BASE_URL=server.url + "/compatible-mode/v1", DASHSCOPE_API_KEY=UPSTREAM_KEY
        ) as app,
    ):
        yield app, server


def chat_stream(*texts: str) -> bytes:
    """A streamed chat completion."""
    deltas = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    chunks = [*deltas, end, {"choices": [], "usage": USAGE}]
    return streamed(*(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks))


def test_by_chat_where_the_host_has_chats_only() -> None:
    with model_studio(chat_stream("upon ", "a time")) as (app, server):
        answer = post(app)
        assert answer.status_code == 200, answer.data
        assert answer.json["object"] == "text_completion"
        assert answer.json["id"].startswith("cmpl-")
        (choice,) = answer.json["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("upon a time", "stop")
        assert answer.json["usage"]["total_tokens"] == 5
        ((path, body),) = lines_and_bodies(server)
        (line,) = app.calls
    assert path.endswith("/chat/completions")
    assert body["messages"] == [{"role": "user", "content": "Once"}]
    assert (line["outcome"], line["completion_tokens"]) == ("complete", 2)


@pytest.mark.parametrize("with_usage", [False, True])
def test_by_chat_as_a_stream(with_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    with (
        model_studio(chat_stream("upon ", "a time")) as (app, _),
        post(app, stream=True, **options) as answer,
    ):
        blocks = answer.data.decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]
    texts = [each["text"] for chunk in chunks for each in chunk["choices"]]
    assert "".join(texts) == "upon a time"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["usage"]["total_tokens"] for chunk in chunks if chunk.get("usage")] == (
        [5] if with_usage else []
    )


def test_several_prompts_are_answered_together() -> None:
    with model_studio(chat_stream("upon")) as (app, server):
        answer = post(app, prompt=["One", "Two", "Three"])
        assert answer.status_code == 200, answer.data
        assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
        assert answer.json["usage"]["total_tokens"] == 15
        (line,) = app.calls
    sent = {body["messages"][-1]["content"] for _, body in lines_and_bodies(server)}
    assert sent == {"One", "Two", "Three"}
    assert (line["attempts"], line["account"]) == (3, "dashscope")


def test_one_prompt_that_fails_fails_them_all() -> None:
    body = json.dumps({"error": {"message": "it is full", "code": "Throttling"}}).encode()
    with model_studio(whole(body, "429 Too Many Requests")) as (app, _):
        answer = post(app, prompt=["One", "Two"])
        assert answer.status_code == 429
        assert error_of(answer)["code"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_gap_is_filled_natively(stream: bool) -> None:
    filled = {**NATIVE, "model": CODER}
    with model_studio(whole(json.dumps(filled).encode())) as (app, server):
        answer = post(app, model=CODER, prompt="def f():", suffix="return x", stream=stream)
        assert answer.status_code == 200, answer.data
        assert b"Once upon" in answer.data
        assert "suffix:in-template" in answer.headers["x-qwen-proxy-changed"]
        ((path, body),) = lines_and_bodies(server)
    assert path.endswith("/completions") and "chat" not in path
    assert "<|fim_suffix|>return x<|fim_middle|>" in body["prompt"]
    assert not body.get("stream")


def test_a_region_that_cannot_fill_a_gap_says_so() -> None:
    with model_studio(whole(b"{}", "404 Not Found")) as (app, _):
        answer = post(app, model=CODER, prompt="def f():", suffix="return x")
        assert answer.status_code == 400
        error = error_of(answer)
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")


def test_a_gap_for_a_model_that_only_chats() -> None:
    with model_studio(chat_stream("no")) as (app, server):
        answer = post(app, suffix="the end")
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "suffix"
        assert lines_and_bodies(server) == []


def test_a_failure_that_is_not_about_the_path_is_told() -> None:
    no = whole(b'{"error":{"message":"busy"}}', "503 Service Unavailable")
    with in_front_of(MODELS, no) as (app, server):
        answer = post(app)
        assert answer.status_code in (502, 503)
        assert [path for path, _ in lines_and_bodies(server)] == ["/v1/completions"]
