"""The Responses API of the running server, by the official OpenAI package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA"
    "60e6kgAAAABJRU5ErkJggg=="
)


def client_of(proxy: Proxy, key: str = CLIENT_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.base_url, api_key=key, max_retries=0, timeout=15)


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with client_of(proxy) as made:
        yield made


def last_chat(sandbox: Sandbox) -> Any:
    sandbox.settle()
    return json.loads(sandbox.chats[-1].body or b"")


def test_create(client: openai.OpenAI, sandbox: Sandbox) -> None:
    response = client.responses.create(
        model=MODEL, instructions="Be short.", input="Hello", max_output_tokens=500
    )

    assert response.status == "completed"
    assert response.output_text.startswith("[sandbox]")
    assert response.id.startswith("resp_")
    assert response.model == MODEL
    assert response.instructions == "Be short."
    assert response.usage and response.usage.total_tokens > 0
    assert response.usage.input_tokens_details.cached_tokens >= 0
    assert response.usage.output_tokens_details.reasoning_tokens >= 0
    assert response._request_id
    sent = last_chat(sandbox)
    assert sent["messages"][0] == {"role": "system", "content": "Be short."}
    assert sent["messages"][-1]["role"] == "user"


def test_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="Hello") as stream:
        events = list(stream)
        final = stream.get_final_response()

    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == final.output_text
    assert text.startswith("[sandbox]")
    assert final.usage and final.usage.output_tokens > 0


def test_thinking_is_told_as_a_summary(client: openai.OpenAI) -> None:
    with client.responses.create(
        model=MODEL, input="Hello", reasoning={"effort": "high", "summary": "auto"}, stream=True
    ) as stream:
        events = list(stream)

    thinking = "".join(e.delta for e in events if e.type == "response.reasoning_summary_text.delta")
    assert thinking
    final = events[-1]
    assert final.type == "response.completed"
    kinds = [item.type for item in final.response.output]
    assert kinds == ["reasoning", "message"]
    assert final.response.usage
    assert final.response.usage.output_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_with_two_tools(client: openai.OpenAI, sandbox: Sandbox, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": "Weather? [[sandbox: tools=2]]",
        "tools": [WEATHER],
        "parallel_tool_calls": True,
    }
    if stream:
        with client.responses.stream(**asked) as events:
            response = events.get_final_response()
    else:
        response = client.responses.create(**asked)

    calls = [item for item in response.output if item.type == "function_call"]
    assert len(calls) == len({call.call_id for call in calls}) == 2
    for call in calls:
        assert call.name == "get_weather"
        assert call.status == "completed"
        assert isinstance(json.loads(call.arguments)["city"], str)

    answered = client.responses.create(
        model=MODEL,
        previous_response_id=response.id,
        tools=[WEATHER],
        input=[
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
            for call in calls
        ],
    )
    assert answered.output_text
    assert answered.previous_response_id == response.id
    roles = [message["role"] for message in last_chat(sandbox)["messages"]]
    assert roles == ["user", "assistant", "tool", "tool"]


def test_a_custom_tool_gets_its_text_back(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        input="Patch it. [[sandbox: tools=1]]",
        tools=[{"type": "custom", "name": "apply_patch", "description": "Applies a patch."}],
    )

    call = next(item for item in response.output if item.type == "custom_tool_call")
    assert call.name == "apply_patch"
    assert isinstance(call.input, str)


def test_a_conversation_goes_on(client: openai.OpenAI, sandbox: Sandbox) -> None:
    first = client.responses.create(model=MODEL, instructions="One.", input="My name is Ada.")
    second = client.responses.create(
        model=MODEL, instructions="Two.", input="What is it?", previous_response_id=first.id
    )
    third = client.responses.create(model=MODEL, input="Thanks", previous_response_id=second.id)

    assert third.previous_response_id == second.id
    messages = last_chat(sandbox)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"] == "My name is Ada."
    # OpenAI does not carry instructions over either.
    assert all(m["role"] != "system" for m in messages)


def test_what_is_stored_can_be_read_and_deleted(client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="Hello", metadata={"a": "b"})

    found = client.responses.retrieve(made.id)
    assert found.model_dump() == made.model_dump()
    assert found.metadata == {"a": "b"}
    items = client.responses.input_items.list(made.id)
    assert [item.type for item in items.data] == ["message"]
    assert items.data[0].id
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve(made.id)
    assert made.id in missing.value.message
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)
    with pytest.raises(openai.BadRequestError) as gone:
        client.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    assert gone.value.param == "previous_response_id"
    assert gone.value.code == "previous_response_not_found"


def test_items_can_be_named_instead_of_repeated(client: openai.OpenAI, sandbox: Sandbox) -> None:
    made = client.responses.create(model=MODEL, input="My name is Ada.")
    sent = client.responses.input_items.list(made.id).data[0]

    named: list[Any] = [
        {"type": "item_reference", "id": sent.id},
        {"type": "item_reference", "id": made.output[-1].id},
        {"role": "user", "content": "What is it?"},
    ]
    client.responses.create(model=MODEL, input=named)

    messages = last_chat(sandbox)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"] == "My name is Ada."
    assert messages[1]["content"] == made.output_text


def test_a_streamed_response_can_be_read_as_soon_as_it_is_complete(client: openai.OpenAI) -> None:
    with client.responses.create(model=MODEL, input="Hello", stream=True) as stream:
        for event in stream:
            if event.type == "response.completed":
                assert client.responses.retrieve(event.response.id).output_text
                return
    raise AssertionError("it was not completed")


def test_pages_of_input_items(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": f"text {n}"} for n in range(5)]
    )

    forth = [item.id for item in client.responses.input_items.list(made.id, order="asc", limit=2)]
    back = [item.id for item in client.responses.input_items.list(made.id)]

    assert len(set(forth)) == 5
    assert back == forth[::-1]
    with pytest.raises(openai.BadRequestError):
        client.responses.input_items.list(made.id, limit=0)


def test_nothing_is_kept_for_who_does_not_want_it(client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="Hello", store=False)

    assert made.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_another_clients_response_is_not_there(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    """Also for a key that ends alike, and across a restart."""
    keys = [secret("first") + "0000", secret("other") + "0000"]
    environment = {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": ",".join(keys),
        "QWEN_PROXY_WORKERS": "2",
    }
    proxy = start_proxy(**environment)
    with client_of(proxy, keys[0]) as one, client_of(proxy, keys[1]) as other:
        made = one.responses.create(model=MODEL, input="Hello")
        for _ in range(4):  # whichever worker answers
            assert one.responses.retrieve(made.id).id == made.id
            with pytest.raises(openai.NotFoundError):
                other.responses.retrieve(made.id)
            with pytest.raises(openai.BadRequestError):
                other.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    proxy.stop()
    again = start_proxy(**environment)
    with client_of(again, keys[0]) as one:
        assert one.responses.retrieve(made.id).output_text == made.output_text


class City(pydantic.BaseModel):
    name: str


def test_parse(client: openai.OpenAI, sandbox: Sandbox) -> None:
    parsed = client.responses.parse(
        model=MODEL, input="Say it. [[sandbox: text=%7B%22name%22:%22Rome%22%7D]]", text_format=City
    )

    sent = last_chat(sandbox)
    assert sent["response_format"]["type"] == "json_schema"
    assert parsed.output_parsed == City(name="Rome")


def test_an_image(client: openai.OpenAI, sandbox: Sandbox) -> None:
    response = client.responses.create(
        model=MODEL,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
                ],
            }
        ],
    )

    assert "1 image" in response.output_text
    assert last_chat(sandbox)["messages"][0]["content"][1]["image_url"]["url"] == PIXEL


def test_tokens_are_counted_without_asking_anybody(client: openai.OpenAI, sandbox: Sandbox) -> None:
    few = client.responses.input_tokens.count(model=MODEL, input="Hello")
    many = client.responses.input_tokens.count(model=MODEL, input="Hello " * 1000)

    assert few.object == "response.input_tokens"
    assert 0 < few.input_tokens < 50 < many.input_tokens
    sandbox.settle()
    assert not sandbox.chats


def test_a_cut_by_length_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="Hello [[sandbox: chunks=50]]", max_output_tokens=3
    )

    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": None}, "input"),
        ({"input": "x", "background": True, "store": False}, "store"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "previous_response_id": "resp_nobody"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_nobody"}]}, "input"),
        ({"input": "x", "tools": [{"type": "file_search", "vector_store_ids": ["v"]}],
          "tool_choice": {"type": "file_search"}}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_and_named(
    client: openai.OpenAI, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, **asked)

    assert (refused.value.param or "").startswith(param)


def test_a_dropped_tool_is_named(client: openai.OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model=MODEL, input="x", tools=[{"type": "code_interpreter", "container": {"type": "auto"}}]
    )

    assert "code_interpreter" in raw.headers["x-qwen-proxy-changed"]


def test_an_upstreams_refusal_keeps_its_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as throttled:
        client.responses.create(model=MODEL, input="[[sandbox: throttle]]")

    assert throttled.value.response.headers["x-request-id"]


def test_a_failure_in_the_stream_is_told_as_response_failed(client: openai.OpenAI) -> None:
    with client.responses.create(
        model=MODEL, input="[[sandbox: chunks=5, cut-after=3]]", stream=True
    ) as stream:
        events = list(stream)

    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert events[-1].response.error
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(events[-1].response.id)


def test_keep_alives_flow_while_the_upstream_thinks(proxy: Proxy, sandbox: Sandbox) -> None:
    with (
        client_of(proxy) as client,
        client.responses.with_streaming_response.create(
            model=MODEL, input="[[sandbox: slow-first=1.3]]", stream=True
        ) as raw,
    ):
        text = "".join(raw.iter_text())

    assert text.count(": keep-alive") >= 1
    assert text.index(": keep-alive") < text.index("response.output_text.delta")
    assert text.rstrip().split("\n")[-2] == "event: response.completed"


def test_a_conversation_is_shortened_and_goes_on(client: openai.OpenAI) -> None:
    """By one more call of the model, whose summary the next turn reads."""
    told = "[[sandbox: text=the-summary]]"
    short = client.responses.compact(model=MODEL, input=[{"role": "user", "content": told}])
    # The package's type of the output has no messages of the user.
    items: Any = [item.model_dump(exclude_none=True, warnings=False) for item in short.output]
    after: Any = {"role": "user", "content": "[[sandbox: text=going-on]]"}
    answer = client.responses.create(model=MODEL, input=[*items, after], store=False)

    assert [item["type"] for item in items] == ["message", "compaction"]
    assert items[0]["content"][0]["text"] == told
    assert short.usage.total_tokens > 0
    assert answer.output_text == "going-on"


def test_a_base_url_without_v1_and_with_a_slash_works(proxy: Proxy, sandbox: Sandbox) -> None:
    for base_url in (proxy.origin, proxy.origin + "/", proxy.base_url + "/"):
        with openai.OpenAI(base_url=base_url, api_key=CLIENT_KEY, max_retries=0) as client:
            assert client.responses.create(model=MODEL, input="hi").status == "completed"
            assert MODEL in [model.id for model in client.models.list()]
