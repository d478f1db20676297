"""POST /v1/completions against the running server, with the official OpenAI package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import App, error_of, in_front_of
from tests.fakes.raw_server import RawServer, whole
from tests.fakes.raw_server import stream as streamed
from tests.server.conftest import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
CODER = "qwen2.5-coder-7b-instruct"


def client_of(proxy: Proxy) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=10)


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with client_of(proxy) as made:
        yield made


def sent(sandbox: Sandbox, route: str = "chat") -> list[dict[str, Any]]:
    """What the upstream was asked by that route."""
    return [json.loads(each.body or b"") for each in sandbox.settle() if each.route == route]


# --- by way of chat ------------------------------------------------------------------------------


def test_a_completion(client: openai.OpenAI, sandbox: Sandbox) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt="Once upon a time", max_tokens=20, temperature=0.5, stop=["\n"]
    )

    made = raw.parse()
    (choice,) = made.choices
    assert choice.text == "[sandbox] You said: Once upon a time"
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (made.object, made.model) == ("text_completion", MODEL)
    assert made.id.startswith("cmpl-")
    assert made.usage and made.usage.total_tokens > 0
    assert raw.headers["x-qwen-proxy-changed"] == "thinking:off"
    (asked,) = sent(sandbox)
    assert asked["messages"] == [{"role": "user", "content": "Once upon a time"}]
    assert asked["enable_thinking"] is False
    assert (asked["temperature"], asked["stop"], asked["max_tokens"]) == (0.5, ["\n"], 20)
    assert not {"prompt", "logprobs", "echo"} & asked.keys()


def test_thinking_is_asked_for_and_is_no_text(client: openai.OpenAI, sandbox: Sandbox) -> None:
    made = client.completions.create(
        model=MODEL, prompt="Hello", extra_body={"enable_thinking": True}
    )

    assert made.choices[0].text == "[sandbox] You said: Hello"
    assert made.usage and made.usage.completion_tokens_details
    assert made.usage.completion_tokens_details.reasoning_tokens
    assert sent(sandbox)[0]["enable_thinking"] is True


def test_a_stream(client: openai.OpenAI) -> None:
    with client.completions.create(model=MODEL, prompt="one two three", stream=True) as stream:
        chunks = list(stream)

    assert "".join(each.choices[0].text for each in chunks) == "[sandbox] You said: one two three"
    assert len(chunks) > 3
    assert [each.choices[0].finish_reason for each in chunks] == [None] * (len(chunks) - 1) + [
        "stop"
    ]
    assert {each.object for each in chunks} == {"text_completion"}
    assert {each.model for each in chunks} == {MODEL}
    assert len({each.id for each in chunks}) == 1
    assert all(each.usage is None for each in chunks)


def test_a_stream_with_usage_and_thinking(client: openai.OpenAI) -> None:
    with client.completions.create(
        model=MODEL,
        prompt="Hello",
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"enable_thinking": True},
    ) as stream:
        chunks = list(stream)

    *others, last = chunks
    assert "".join(each.choices[0].text for each in others) == "[sandbox] You said: Hello"
    assert all(each.usage is None for each in others)
    assert last.choices == []
    assert last.usage and last.usage.total_tokens > 0


def test_a_list_of_prompts_is_answered_in_its_order(
    client: openai.OpenAI, sandbox: Sandbox
) -> None:
    prompts = [f"number {number}" for number in range(9)]

    raw = client.completions.with_raw_response.create(model=MODEL, prompt=prompts, n=2)

    made = raw.parse()
    assert [each.index for each in made.choices] == list(range(18))
    assert [each.text for each in made.choices] == [
        f"[sandbox] You said: {prompt}" for prompt in prompts for _ in range(2)
    ]
    assert len(sent(sandbox)) in (9, 18)
    one = client.completions.create(model=MODEL, prompt=prompts[0], n=2)
    assert made.usage and one.usage
    assert made.usage.total_tokens == 9 * one.usage.total_tokens
    assert raw.headers["x-qwen-proxy-account"] == "dashscope"
    assert int(raw.headers["x-qwen-proxy-attempts"]) >= 9


def test_one_that_fails_fails_them_all(client: openai.OpenAI, sandbox: Sandbox) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(
            model=MODEL, prompt=["one", "[[sandbox:error=internal_error]] two", "three"]
        )

    assert caught.value.status_code >= 500
    assert all(each.outcome != "open" for each in sandbox.settle())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 2}, "logprobs"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_and_nobody_is_asked(
    client: openai.OpenAI, sandbox: Sandbox, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, **fields)

    assert caught.value.param == param
    assert sent(sandbox) == []


def test_a_model_that_nobody_has_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gone", prompt="x")

    assert caught.value.code == "model_not_found"


def test_without_a_key_nobody_is_served(proxy: Proxy) -> None:
    with (
        openai.OpenAI(base_url=proxy.base_url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.completions.create(model=MODEL, prompt="x")


def test_an_error_in_the_stream_is_raised(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(next=[{"route": "chat", "spec": "inspection-mid-stream=2"}])
    with (
        client.completions.create(model=MODEL, prompt="a b c d e f", stream=True) as stream,
        pytest.raises(openai.APIError),
    ):
        list(stream)


# --- models that fill gaps -----------------------------------------------------------------------


@pytest.fixture
def coder(sandbox: Sandbox, start_proxy: StartProxy) -> Iterator[openai.OpenAI]:
    """A client of a proxy whose upstream has a model that fills gaps."""
    sandbox.control(models=[MODEL, CODER])
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=CLIENT_KEY,
        QWEN_PROXY_MODEL_ALIASES=f"filler={CODER}",
    )
    with client_of(proxy) as made:
        yield made


def test_a_gap_is_filled_natively(coder: openai.OpenAI, sandbox: Sandbox) -> None:
    raw = coder.completions.with_raw_response.create(
        model=CODER, prompt="def f():\n", suffix="return 1", max_tokens=50
    )

    made = raw.parse()
    assert made.choices[0].text == "[sandbox] 9 before, 8 behind"
    assert made.usage and made.usage.total_tokens > 0
    assert raw.headers["x-qwen-proxy-changed"] == "suffix:in-template"
    assert raw.headers["x-qwen-proxy-account"] == "dashscope"
    assert sent(sandbox) == []
    assert sent(sandbox, "completions") == [
        {
            "model": CODER,
            "prompt": "<|fim_prefix|>def f():\n<|fim_suffix|>return 1<|fim_middle|>",
            "max_tokens": 50,
            "stream": False,
        }
    ]


def test_a_gap_is_filled_in_a_stream_under_the_clients_name(coder: openai.OpenAI) -> None:
    with coder.completions.create(
        model="filler",
        prompt="<|fim_prefix|>ab<|fim_suffix|>c<|fim_middle|>",
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)

    assert [each.choices[0].text for each in chunks[:-1]] == ["[sandbox] 2 before, 1 behind", ""]
    assert chunks[1].choices[0].finish_reason == "stop"
    assert {each.model for each in chunks} == {"filler"}
    assert chunks[-1].usage and chunks[-1].usage.total_tokens > 0


def test_such_a_model_chats_about_other_prompts(coder: openai.OpenAI, sandbox: Sandbox) -> None:
    made = coder.completions.create(model=CODER, prompt="Hello")

    assert made.choices[0].text == "[sandbox] You said: Hello"
    assert sent(sandbox, "completions") == []


def test_a_region_without_such_models_says_so_and_chats_go_on(
    coder: openai.OpenAI, sandbox: Sandbox
) -> None:
    sandbox.control(next=[{"route": "completions", "spec": "empty-404"}])

    with pytest.raises(openai.BadRequestError) as caught:
        coder.completions.create(model=CODER, prompt="a", suffix="b")

    assert caught.value.param == "suffix"
    assert "Beijing" in caught.value.message
    # The account is not left alone for it.
    assert coder.completions.create(model=CODER, prompt="Hello").choices[0].text


# --- an upstream that knows completions itself ---------------------------------------------------

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
