"""The official Anthropic package against the running server: Claude's API, Qwen's models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, ModelInfo, RawMessageStreamEvent
from pydantic import TypeAdapter

from qwen_wsgi.sandbox import Sandbox
from tests.kit.messages_sdk import check_order
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy, start
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

CORPUS = sorted((Path(__file__).parents[1] / "corpus" / "messages").glob("*.json"))
MODEL = "qwen3.7-plus"
#: A name that is none of Anthropic's, so that the package has no opinion about it.
CLAUDE = "claude-test-9"
WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
PIXEL: Any = {
    "type": "image",
    "source": {
        "type": "base64",
        "media_type": "image/png",
        "data": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAA"
        "AABJRU5ErkJggg==",
    },
}


@pytest.fixture(scope="module")
def aliased(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that answers for Claude's models."""
    running = start(
        tmp_path_factory.mktemp("aliased"),
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_MODEL_ALIASES": "claude-*=qwen3.8-max",
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.3",
        },
    )
    yield running
    running.stop()


def client_of(proxy: Proxy, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        **{
            "base_url": proxy.origin,
            "api_key": CLIENT_KEY,
            "max_retries": 0,
            "timeout": 10,
            **options,
        }
    )


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[anthropic.Anthropic]:
    with client_of(proxy) as made:
        yield made


@pytest.fixture
def claude(aliased: Proxy, sandbox: Sandbox) -> Iterator[anthropic.Anthropic]:
    aliased.forget_troubles()
    with client_of(aliased) as made:
        yield made


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def text_of(message: Message) -> str:
    """The text of the first block."""
    block = message.content[0]
    assert block.type == "text"
    return block.text


def ask(client: anthropic.Anthropic, text: str, **members: Any) -> Message:
    message: Message = client.messages.create(
        **{"model": MODEL, "max_tokens": 1000, "messages": user(text), **members}
    )
    return message


def streamed(client: anthropic.Anthropic, text: str, **members: Any) -> Message:
    """The message of a stream; what it was made of is checked on the way."""
    told = []
    with client.messages.stream(
        **{"model": MODEL, "max_tokens": 5000, "messages": user(text), **members}
    ) as stream:
        for event in stream:
            if event.type in ("text", "thinking", "input_json", "signature"):
                continue
            told.append(event.to_dict())
        message = stream.get_final_message()
    check_order(told)
    return message


def sent(sandbox: Sandbox) -> dict[str, Any]:
    """The last chat request that the upstream got."""
    sandbox.settle()
    value: dict[str, Any] = json.loads(sandbox.chats[-1].body or b"")
    return value


def test_a_message(client: anthropic.Anthropic, sandbox: Sandbox) -> None:
    message = ask(client, "Hello", system="Be brief.", stop_sequences=["\n\n"])

    Message.model_validate(message.to_dict())
    assert message.content[0].type == "text"
    assert message.content[0].text == "[sandbox] You said: Hello"
    assert (message.stop_reason, message.model) == ("end_turn", MODEL)
    assert message.id.startswith("msg_")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message._request_id
    body = sent(sandbox)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["stop"] == ["\n\n"]
    assert body["enable_thinking"] is False


def test_the_headers_are_anthropics_and_ours(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(
        model=MODEL, max_tokens=9, messages=user("Hi"), extra_headers={"anthropic-beta": "x-1,y-2"}
    )

    assert raw.headers["request-id"] == raw.headers["x-request-id"]
    assert raw.headers["x-qwen-proxy-account"]
    assert "thinking:off-by-default" in raw.headers["x-qwen-proxy-changed"]


def test_the_beta_resource_is_the_same(client: anthropic.Anthropic) -> None:
    message = client.beta.messages.create(
        model=MODEL, max_tokens=100, messages=user("Hi"), betas=["context-1m-2025-08-07"]
    )

    assert message.content[0].type == "text"


def test_a_bearer_token_is_as_good_as_a_key(proxy: Proxy, sandbox: Sandbox) -> None:
    with client_of(proxy, api_key=None, auth_token=CLIENT_KEY) as client:
        assert ask(client, "Hello").content


def test_a_stream(client: anthropic.Anthropic) -> None:
    message = streamed(client, "Hello")

    assert message.content[0].to_dict()["text"] == "[sandbox] You said: Hello"
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0


def test_every_event_is_what_the_typed_models_take(proxy: Proxy, sandbox: Sandbox) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    names = []
    with client_of(proxy) as client:
        response = client.post(
            "/v1/messages?beta=true",
            body={
                "model": MODEL,
                "max_tokens": 5000,
                "stream": True,
                "thinking": {"type": "adaptive"},
                "tools": [WEATHER],
                "messages": user("Weather? [[sandbox: tools=2]]"),
            },
            cast_to=httpx2.Response,
        )
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        names.append(value["type"])
        if value["type"] != "ping":
            adapter.validate_python(value)
    assert names[:2] == ["message_start", "ping"]
    assert names[-1] == "message_stop"


@pytest.mark.parametrize("read", [ask, streamed])
def test_thinking(client: anthropic.Anthropic, sandbox: Sandbox, read: Any) -> None:
    message = read(
        client, "Hello", max_tokens=5000, thinking={"type": "enabled", "budget_tokens": 1024}
    )

    thinking, text = message.content
    assert (thinking.type, text.type) == ("thinking", "text")
    assert thinking.thinking
    assert thinking.signature == "qwen-proxy"
    assert message.usage.output_tokens_details.thinking_tokens > 0
    body = sent(sandbox)
    assert (body["enable_thinking"], body["thinking_budget"]) == (True, 1024)


@pytest.mark.parametrize("read", [ask, streamed])
@pytest.mark.parametrize("quirk", ["", "null-args", "tool-collide", "tool-no-id", "tool-late-id"])
def test_tools(client: anthropic.Anthropic, sandbox: Sandbox, read: Any, quirk: str) -> None:
    question = f"Weather? [[sandbox: tools=2, {quirk}]]"
    message = read(client, question, tools=[WEATHER])

    assert message.stop_reason == "tool_use"
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [call.name for call in calls] == ["get_weather"] * 2
    assert len({call.id for call in calls}) == 2
    assert all(isinstance(call.input["city"], str) for call in calls)

    results = [{"type": "tool_result", "tool_use_id": c.id, "content": "sunny"} for c in calls]
    history = [*user(question), message.to_param(), {"role": "user", "content": results}]
    answered = read(client, "", tools=[WEATHER], messages=history)

    assert answered.stop_reason == "end_turn"
    assert "sunny" in answered.content[-1].text
    told = sent(sandbox)["messages"]
    assert [each.get("tool_call_id") for each in told[-2:]] == [call.id for call in calls]


def test_the_sdks_loop_over_tools_sends_the_history_in_place_of_a_thread(
    client: anthropic.Anthropic, sandbox: Sandbox
) -> None:
    """It tries a thread first (anthropic 2.14), and a refusal tells it that there is none here."""

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Tell the weather of a city."""
        return f"Sun over {city or 'the sea'}."

    runner = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=5000, tools=[get_weather], messages=user("How is the weather?")
    )
    messages = list(runner)

    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert "Sun over" in messages[-1].to_json()
    roles = [message["role"] for message in sent(sandbox)["messages"]]
    assert roles == ["user", "assistant", "tool"]
    assert sent(sandbox)["messages"][0]["content"] == "How is the weather?"


def test_a_forced_tool(client: anthropic.Anthropic, sandbox: Sandbox) -> None:
    message = ask(
        client, "Hi", tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"}
    )

    assert message.stop_reason == "tool_use"
    assert sent(sandbox)["tool_choice"]["function"] == {"name": "get_weather"}


def test_a_web_search_is_the_hosts_own(client: anthropic.Anthropic, sandbox: Sandbox) -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    ask(client, "News?", tools=[search], tool_choice={"type": "tool", "name": "web_search"})

    body = sent(sandbox)
    assert body["enable_search"] is True
    assert "tools" not in body
    assert "tool_choice" not in body


def test_vision(client: anthropic.Anthropic) -> None:
    message = ask(
        client,
        "",
        messages=[{"role": "user", "content": [PIXEL, {"type": "text", "text": "What is it?"}]}],
    )

    assert "1 image" in text_of(message)


def test_an_answer_in_a_schema(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    message = ask(
        client, "Where?", output_config={"format": {"type": "json_schema", "schema": schema}}
    )

    assert isinstance(json.loads(text_of(message))["city"], str)


def test_an_answer_that_is_too_long_says_so(client: anthropic.Anthropic) -> None:
    assert streamed(client, "[[sandbox: chunks=90]]", max_tokens=5).stop_reason == "max_tokens"


def test_the_cache_is_told_in_anthropics_way(client: anthropic.Anthropic) -> None:
    message = streamed(client, "[[sandbox: prompt-tokens=900, cached=640]]")

    assert message.usage.input_tokens == 260
    assert message.usage.cache_read_input_tokens == 640


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_coding_agents_requests_are_answered(
    claude: anthropic.Anthropic, sandbox: Sandbox, path: Path
) -> None:
    request = json.loads(path.read_text())
    del request["stream"]
    beta = {"context_management": request.pop("context_management")}
    message = streamed(claude, "", **request, extra_body=beta)

    assert message.model == request["model"]
    assert message.content
    body = sent(sandbox)
    assert body["model"] == "qwen3.8-max"
    assert "metadata" not in body
    count = claude.messages.count_tokens(
        **{name: request[name] for name in ("model", "system", "messages", "tools")}
    )
    assert 7_000 < count.input_tokens < 17_000


def test_claudes_names_stand_for_a_model_of_qwen(
    claude: anthropic.Anthropic, sandbox: Sandbox
) -> None:
    assert ask(claude, "Hi", model=CLAUDE).model == CLAUDE
    assert streamed(claude, "Hi", model=CLAUDE).model == CLAUDE
    assert sent(sandbox)["model"] == "qwen3.8-max"


def test_without_that_the_error_says_what_to_set(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="QWEN_PROXY_MODEL_ALIASES") as caught:
        ask(client, "Hi", model=CLAUDE)

    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.NotFoundError) as other:
        ask(client, "Hi", model="no-such-model")
    assert "ALIASES" not in str(other.value)


def test_count_tokens(client: anthropic.Anthropic) -> None:
    small = client.messages.count_tokens(model=CLAUDE, messages=user("Hello"))
    large = client.messages.count_tokens(
        model=CLAUDE, messages=user("Hello " * 500), system="Be brief.", tools=[WEATHER]
    )

    assert 5 <= small.input_tokens <= 15
    assert 600 < large.input_tokens < 1000
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        client.messages.count_tokens(model=CLAUDE, messages=user(None))  # type: ignore[arg-type]  # what is wrong is the point


def test_models(client: anthropic.Anthropic) -> None:
    found = list(client.models.list(limit=3))

    assert len(found) > 3
    for each in found:
        ModelInfo.model_validate(each.to_dict())
    one = client.models.retrieve(MODEL)
    assert (one.id, one.type) == (MODEL, "model")
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("no/such-model")
    assert caught.value.request_id


# --- failures -----------------------------------------------------------------------------------


def test_a_wrong_key(proxy: Proxy) -> None:
    with (
        client_of(proxy, api_key=secret("wrong")) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        ask(client, "Hi")

    assert caught.value.type == "authentication_error"
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("spec", "error", "kind"),
    [
        ("throttle", anthropic.RateLimitError, "rate_limit_error"),
        ("overload", anthropic.APIStatusError, "overloaded_error"),
        ("inspection", anthropic.BadRequestError, "invalid_request_error"),
        ("invalid-key", anthropic.InternalServerError, "api_error"),
        ("arrearage", anthropic.RateLimitError, "rate_limit_error"),
    ],
)
@pytest.mark.parametrize("read", [ask, streamed])
def test_refusals_of_the_upstream(
    client: anthropic.Anthropic, spec: str, error: type[Exception], kind: str, read: Any
) -> None:
    with pytest.raises(error) as caught:
        read(client, f"[[sandbox: {spec}]]")

    assert isinstance(caught.value, anthropic.APIStatusError)
    assert caught.value.type == kind


def test_when_to_come_back_is_told(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.RateLimitError) as caught:
        ask(client, "[[sandbox: throttle, retry-after=7]]")
    assert caught.value.response.headers["retry-after"] == "7"


def test_and_whether(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.InternalServerError) as caught:
        ask(client, "[[sandbox: invalid-key]]")
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_full_context_is_told_in_the_words_that_agents_know(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, "[[sandbox: context-length]]")

    body: Any = caught.value.body
    assert body["error"]["message"].startswith("prompt is too long: ")


def test_a_request_that_is_none(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required") as caught:
        client.post(
            "/v1/messages", body={"model": MODEL, "messages": user("Hi")}, cast_to=httpx2.Response
        )
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("chunks=9, interval=0.02, cut-after=3", "api_error"),
        ("chunks=9, error-frame-after=4", "api_error"),
        ("chunks=9, inspection-mid-stream=4", "invalid_request_error"),
        ("chunks=9, stall-after=3", "timeout_error"),
    ],
)
def test_a_stream_that_fails_raises(client: anthropic.Anthropic, spec: str, kind: str) -> None:
    seen = []
    with (
        pytest.raises(anthropic.APIError) as caught,
        client.messages.stream(
            model=MODEL, max_tokens=1000, messages=user(f"[[sandbox: {spec}]]")
        ) as stream,
    ):
        seen += [event.type for event in stream]

    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
    assert body["request_id"]


def test_a_stream_that_fails_has_an_end_of_http(proxy: Proxy, sandbox: Sandbox) -> None:
    """The error event is the end; nobody has to guess by a broken connection."""
    with client_of(proxy) as client:
        response = client.post(
            "/v1/messages",
            body={
                "model": MODEL,
                "max_tokens": 99,
                "stream": True,
                "messages": user("[[sandbox: chunks=9, interval=0.02, cut-after=3]]"),
            },
            cast_to=httpx2.Response,
        )

    assert response.text.rstrip().split("\n\n")[-1].startswith("event: error\n")
    assert "message_stop" not in response.text


def test_pings_come_while_the_upstream_is_silent(aliased: Proxy, sandbox: Sandbox) -> None:
    with client_of(aliased) as client:
        response = client.post(
            "/v1/messages",
            body={
                "model": MODEL,
                "max_tokens": 99,
                "stream": True,
                "messages": user("[[sandbox: slow-first=1.0, text=late]]"),
            },
            cast_to=httpx2.Response,
        )
        message = streamed(client, "[[sandbox: slow-first=0.8, text=late]]")

    assert response.text.startswith("event: ping\n")
    assert message.content[0].to_dict()["text"] == "late"


def test_a_client_that_leaves_stops_the_upstream(
    client: anthropic.Anthropic, sandbox: Sandbox
) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=1000, messages=user("[[sandbox: chunks=999, interval=0.02]]")
    ) as stream:
        next(iter(stream))

    assert sandbox.wait_until(lambda: sandbox.chats[-1].outcome == "client_gone", 2)


def test_the_call_is_recorded_with_its_usage(proxy: Proxy, client: anthropic.Anthropic) -> None:
    message = ask(client, "Hello")
    assert message._request_id
    line = proxy.wait_for_call(message._request_id)

    assert (line["path"], line["outcome"]) == ("/v1/messages", "complete")
    assert line["model"] == MODEL


def test_a_server_that_is_no_qwen_host(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    """Its chunks are not normalized, and its requests are not adapted."""
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=CLIENT_KEY,
    )
    with client_of(proxy) as client:
        for quirk in ("null-args", "tool-no-index", "tool-collide", "reasoning-field, think"):
            for read in (ask, streamed):
                message = read(client, f"Weather? [[sandbox: tools=2, {quirk}]]", tools=[WEATHER])
                calls = [block for block in message.content if block.type == "tool_use"]
                assert len(calls) == 2, quirk
                assert all(isinstance(call.input["city"], str) for call in calls)
                assert message.stop_reason == "tool_use"


def test_models_are_listed_page_by_page_and_again_in_anthropics_namespace(proxy: Proxy) -> None:
    with anthropic.Anthropic(
        base_url=proxy.origin, api_key=CLIENT_KEY, max_retries=0, timeout=15
    ) as client:
        ids = [model.id for model in client.models.list(limit=3)]
        message = client.messages.create(
            model=f"anthropic/{MODEL}",
            max_tokens=50,
            messages=[{"role": "user", "content": "[[sandbox: text=found]]"}],
        )

    assert len(ids) == len(set(ids)) > 6
    assert {MODEL, f"anthropic/{MODEL}"} <= set(ids)
    assert message.model == f"anthropic/{MODEL}"
    assert "found" in str(message.content)
