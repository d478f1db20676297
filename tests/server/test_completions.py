"""POST /v1/completions against the running server, with the official OpenAI package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

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
