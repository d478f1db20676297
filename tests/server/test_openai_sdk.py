"""The official OpenAI package against the running server: it must not notice a difference."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from qwen_wsgi.sandbox import Sandbox
from tests.fakes.scripted_model import NOISE_TEXT, amid_noise, says
from tests.kit.client_programs import ServeScript
from tests.kit.proxy import CLIENT_KEY, Proxy
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA"
    "60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=10
    ) as made:
        yield made


def user(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_chat(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=user("Hello"))

    choice = completion.choices[0]
    assert choice.message.content and choice.message.content.startswith("[sandbox]")
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert completion.usage and completion.usage.total_tokens > 0
    assert completion._request_id


def test_a_whole_answer_has_every_field_that_openais_schema_requires(
    client: openai.OpenAI,
) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user("Hello"))
    value = json.loads(raw.content)

    assert {"id", "object", "created", "model", "choices", "usage"} <= set(value)
    assert {"index", "message", "finish_reason", "logprobs"} <= set(value["choices"][0])
    assert {"role", "content", "refusal"} <= set(value["choices"][0]["message"])
    assert value["choices"][0]["logprobs"] is None
    assert value["choices"][0]["message"]["refusal"] is None


def test_a_whole_answer_was_streamed_from_the_upstream(
    client: openai.OpenAI, sandbox: Sandbox
) -> None:
    client.chat.completions.create(model=MODEL, messages=user("Hello"))
    sandbox.settle()

    sent = json.loads(sandbox.chats[-1].body or b"")
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}


def test_thinking_is_kept_apart_from_the_answer(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=user("Hello"), extra_body={"enable_thinking": True}
    )

    message = completion.choices[0].message
    assert message.reasoning_content  # type: ignore[attr-defined]  # not in OpenAI's schema
    assert message.content and message.content.startswith("[sandbox]")
    assert completion.usage and completion.usage.completion_tokens_details
    assert completion.usage.completion_tokens_details.reasoning_tokens


def test_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model=MODEL, messages=user("Hello"), stream=True) as stream:
        chunks = list(stream)

    assert "".join(c.choices[0].delta.content or "" for c in chunks).startswith("[sandbox]")
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=user("Hello"),
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)

    assert chunks[-1].choices == []
    assert chunks[-1].usage and chunks[-1].usage.total_tokens > 0
    assert chunks[-1].usage.prompt_tokens_details is not None


@pytest.mark.parametrize("count", [1, 2])
def test_tools(client: openai.OpenAI, count: int) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=user(f"Weather? [[sandbox: tools={count}]]"),
        tools=[WEATHER],
    )

    calls = completion.choices[0].message.tool_calls
    assert calls and len(calls) == count
    assert completion.choices[0].finish_reason == "tool_calls"
    assert len({call.id for call in calls}) == count
    for call in calls:
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert isinstance(json.loads(call.function.arguments)["city"], str)

    # As clients do: what came back, as it came.
    history: list[Any] = [
        *user("Weather?"),
        completion.choices[0].message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": c.id, "content": "sunny"} for c in calls),
    ]
    answered = client.chat.completions.create(model=MODEL, tools=[WEATHER], messages=history)
    assert answered.choices[0].finish_reason == "stop"


def test_tools_streamed(client: openai.OpenAI) -> None:
    arguments = ""
    with client.chat.completions.create(
        model=MODEL, messages=user("Weather?"), tools=[WEATHER], stream=True
    ) as stream:
        for chunk in stream:
            for call in chunk.choices[0].delta.tool_calls or ():
                arguments += (call.function and call.function.arguments) or ""

    assert isinstance(json.loads(arguments)["city"], str)


def test_vision(client: openai.OpenAI, sandbox: Sandbox) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": PIXEL}},
                ],
            }
        ],
    )
    sandbox.settle()

    assert "1 image" in (completion.choices[0].message.content or "")
    assert PIXEL.encode() in (sandbox.chats[-1].body or b"")


def test_embeddings_are_base64_by_default_and_equal_to_floats(
    client: openai.OpenAI, sandbox: Sandbox
) -> None:
    rows = [f"row {number}" for number in range(23)]
    decoded = client.embeddings.create(model="text-embedding-v4", input=rows, dimensions=64)
    floats = client.embeddings.create(
        model="text-embedding-v4", input=rows, dimensions=64, encoding_format="float"
    )
    sandbox.settle()

    assert [row.index for row in decoded.data] == list(range(23))
    for left, right in zip(decoded.data, floats.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-6)
    assert decoded.usage.total_tokens == floats.usage.total_tokens > 0
    sent = [json.loads(r.body or b"") for r in sandbox.requests if r.route == "embeddings"]
    assert sorted(len(body["input"]) for body in sent) == [3, 3, 10, 10, 10, 10]
    assert all(body["encoding_format"] == "float" for body in sent)


def test_base64_embeddings_are_little_endian_float32(client: openai.OpenAI) -> None:
    asked = {"model": "text-embedding-v4", "input": "one", "dimensions": 64}
    packed = client.post("/embeddings", body={**asked, "encoding_format": "base64"}, cast_to=object)
    plain = client.post("/embeddings", body={**asked, "encoding_format": "float"}, cast_to=object)

    raw = base64.b64decode(packed["data"][0]["embedding"])  # type: ignore[index]  # JSON
    expected = plain["data"][0]["embedding"]  # type: ignore[index]  # JSON
    assert struct.unpack("<64f", raw) == pytest.approx(expected, abs=1e-6)


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    one = client.models.retrieve(MODEL)

    assert MODEL in [model.id for model in models]
    assert one.id == MODEL and one.object == "model"
    assert one.context_length == 1_000_000  # type: ignore[attr-defined]  # an addition of ours

    old = client.models.retrieve("qwen-turbo-latest")
    assert old.id in [model.id for model in models]
    assert old.alias_of == "qwen-flash"  # type: ignore[attr-defined]  # an addition of ours
    answer = client.chat.completions.create(model=old.id, messages=user("x"))
    assert answer.model == old.id


def test_a_wrong_key_is_an_authentication_error(proxy: Proxy) -> None:
    with (
        openai.OpenAI(base_url=proxy.base_url, api_key=secret("wrong"), max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        wrong.models.list()

    assert caught.value.code == "invalid_api_key"


def test_a_bad_request_is_a_bad_request_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[])

    assert caught.value.param == "messages"
    assert caught.value.request_id


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.chat.completions.create(model="no-such-model", messages=user("x")),
        lambda: client.models.retrieve("no/such-model"),
        lambda: client.embeddings.create(model="no-such-model", input="x"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"


def test_throttling_is_a_rate_limit_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=MODEL, messages=user("[[sandbox: throttle]]"))


def test_the_proxys_own_account_failing_is_not_the_clients_key_failing(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=MODEL, messages=user("[[sandbox: invalid-key]]"))

    assert caught.value.code == "upstream_account_refused"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_stream_that_breaks_raises(client: openai.OpenAI) -> None:
    with (
        pytest.raises(openai.APIError) as caught,
        client.chat.completions.create(
            model=MODEL,
            messages=user("[[sandbox: chunks=9, interval=0.02, cut-after=3]]"),
            stream=True,
        ) as stream,
    ):
        for _ in stream:
            pass

    assert caught.value.code == "upstream_broken"


def test_cancelling_a_stream_stops_the_upstream(client: openai.OpenAI, sandbox: Sandbox) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=user("[[sandbox: chunks=999, interval=0.02]]"), stream=True
    ) as stream:
        next(iter(stream))

    assert sandbox.wait_until(lambda: sandbox.chats[-1].outcome == "client_gone", 2)


def test_token_ids_are_refused_with_the_way_out(client: openai.OpenAI) -> None:
    for ids in ([1, 2, 3], [[1, 2], [3]]):
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length"):
            client.embeddings.create(model="text-embedding-v4", input=ids)


def test_keep_alives_and_slow_answers_do_not_disturb(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=user("[[sandbox: slow-first=1.2, text=late]]"), stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert text == "late"


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_noise_between_chunks_is_not_seen(serve_script: ServeScript, dialect: str) -> None:
    proxy, model = serve_script(lambda chat: amid_noise(says("All is well.", finish=None)))

    with openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        if dialect == "chat":
            with client.chat.completions.stream(model=MODEL, messages=user("Hi")) as stream:
                (choice,) = stream.get_final_completion().choices
            text, end = choice.message.content or "", str(choice.finish_reason)
        else:
            with client.responses.stream(model=MODEL, input="Hi") as events:
                response = events.get_final_response()
            text, end = response.output_text, str(response.status)

    assert text.replace(NOISE_TEXT, "") == "All is well."
    assert end == ("stop" if dialect == "chat" else "completed")
    assert len(model.chats) == 1
