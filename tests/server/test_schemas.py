"""What the running proxy answers obeys OpenAI's published schema (tests/schemas)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, Proxy
from tests.kit.raw_client import Exchange, events
from tests.kit.secrets import secret
from tests.schemas import check, check_but_for_nulls, check_event

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
FUNCTION = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": FUNCTION}]
USAGE = {"stream_options": {"include_usage": True}}


@dataclass
class Caller:
    """Asks the shared proxy, with its key."""

    port: int

    def ask(
        self, path: str, body: Any = None, *, method: str = "POST", key: str = CLIENT_KEY
    ) -> tuple[int, Any]:
        """Status and JSON of a whole answer."""
        with Exchange(self.port, body, method=method, path=path, key=key) as exchange:
            return exchange.head()[0], json.loads(exchange.body())

    def stream(self, path: str, body: Any) -> list[Any]:
        """The payloads of a stream that ends as it should."""
        with Exchange(self.port, {**body, "stream": True}, path=path, key=CLIENT_KEY) as exchange:
            status, headers = exchange.head()
            assert status == 200, exchange.body()
            assert headers["content-type"].startswith("text/event-stream")
            return events(exchange.body())

    def broken_stream(self, path: str, body: Any) -> list[Any]:
        """The payloads of a stream whose connection is closed without the last chunk."""
        with Exchange(self.port, {**body, "stream": True}, path=path, key=CLIENT_KEY) as exchange:
            assert exchange.head()[0] == 200
            assert not exchange.read_to_end().endswith(b"0\r\n\r\n")
            return events(b"".join(exchange.chunks()))


@pytest.fixture
def caller(proxy: Proxy, sandbox: Sandbox) -> Caller:
    return Caller(proxy.port)


def chat(text: str = "Hello there", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def told(spec: str, **fields: Any) -> dict[str, Any]:
    """A chat request that tells the sandbox what to do."""
    return chat(f"Hello there [[sandbox: {spec}]]", **fields)


#: Requests whose answers differ in shape.
CHATS = {
    "text": chat(),
    "thinking": chat(enable_thinking=True),
    "reasoning under the other name": told("think, reasoning-field"),
    "a tool call": told("tools=1", tools=TOOLS),
    "two tool calls": told("tools=2", tools=TOOLS),
    "thinking and a tool call": told("tools=1", tools=TOOLS, enable_thinking=True),
    "calls without id and index": told("tools=2, tool-no-id, tool-no-index", tools=TOOLS),
    "null arguments": told("tools=1, null-args", tools=TOOLS),
    "legacy functions": told("tools=1", functions=[FUNCTION]),
    "two choices": chat(n=2),
    "cut at the limit": told("finish=length"),
    "cut by the filter": told("finish=content_filter"),
    "an unknown finish": told("finish=tired"),
    "an empty finish": told("finish="),
    "cached tokens": told("prompt-tokens=100, completion-tokens=10, cached=64"),
    "cached tokens at the top": told("cached=64, cached-top-level"),
    "usage without details": told("details-null"),
    "totals only": told("usage-totals-only"),
    "no usage": told("no-usage"),
    "usage in each chunk": told("usage-each"),
    "the whole where a stream was asked": told("non-stream-json"),
    "no space after data:": told("no-space"),
    "lines in the middle": told("multi-data, comments"),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_completion(caller: Caller, name: str) -> None:
    status, completion = caller.ask("/v1/chat/completions", CHATS[name])

    assert status == 200
    check_but_for_nulls("chat#completion", completion)
    assert completion["choices"] and completion["model"] == MODEL


@pytest.mark.parametrize("usage", [{}, USAGE], ids=["without usage", "with usage"])
@pytest.mark.parametrize("name", CHATS)
def test_a_streamed_chat_completion(caller: Caller, name: str, usage: dict[str, Any]) -> None:
    *chunks, done = caller.stream("/v1/chat/completions", {**CHATS[name], **usage})

    assert done == "[DONE]"
    assert chunks
    for chunk in chunks:
        check_but_for_nulls("chat#chunk", chunk)
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    counted = [chunk for chunk in chunks if chunk.get("usage")]
    assert counted == ([chunks[-1]] if usage and name != "no usage" else [])
    assert all(chunk["choices"] == [] for chunk in counted)


@pytest.mark.parametrize(
    "spec",
    ["cut-after=3", "error-frame-after=3", "inspection-mid-stream=3", "stall-after=3", "no-finish"],
)
def test_a_stream_that_breaks_ends_with_an_error(caller: Caller, spec: str) -> None:
    *chunks, last = caller.broken_stream(
        "/v1/chat/completions", told(f"chunks=9, interval=0.01, {spec}")
    )

    assert chunks
    for chunk in chunks:
        check_but_for_nulls("chat#chunk", chunk)
    check("error#envelope", last)


@pytest.mark.parametrize(
    "status_and_spec",
    [
        (429, "throttle"),
        (429, "plan-quota"),
        (400, "inspection"),
        (400, "context-length"),
        (503, "overload"),
        (502, "html-502"),
        (502, "not-json"),
        (502, "drop"),
        (502, "empty-stream"),
    ],
    ids=lambda pair: str(pair[1]),
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_failure_upstream(caller: Caller, status_and_spec: tuple[int, str], stream: bool) -> None:
    expected, spec = status_and_spec
    status, answer = caller.ask("/v1/chat/completions", told(spec, stream=stream))

    check("error#envelope", answer)
    assert status == expected


@pytest.mark.parametrize(
    ("status", "path", "body"),
    [
        (400, "/v1/chat/completions", chat(messages=[])),
        (400, "/v1/chat/completions", chat(messages="Hello")),
        (400, "/v1/chat/completions", chat(stream="yes")),
        (400, "/v1/chat/completions", chat(model=7)),
        (400, "/v1/chat/completions", b"{"),
        (400, "/v1/chat/completions", b"[]"),
        (404, "/v1/chat/completions", chat(model="no-such-model")),
        (400, "/v1/embeddings", {"model": "text-embedding-v4", "input": 7}),
        (404, "/v1/embeddings", {"model": "no-such-model", "input": "x"}),
        (404, "/v1/no-such-route", {}),
    ],
)
def test_a_request_that_is_refused(caller: Caller, status: int, path: str, body: Any) -> None:
    found, answer = caller.ask(path, body)

    check("error#envelope", answer)
    assert found == status


@pytest.mark.parametrize(
    ("status", "method", "path"),
    [
        (404, "GET", "/v1/no-such-route"),
        (404, "GET", "/v1/models/no-such-model"),
        (404, "GET", "/v1/models/no%2Fsuch-model"),
        (405, "GET", "/v1/chat/completions"),
        (405, "DELETE", "/v1/models"),
    ],
)
def test_a_way_that_there_is_not(caller: Caller, status: int, method: str, path: str) -> None:
    found, answer = caller.ask(path, method=method)

    check("error#envelope", answer)
    assert found == status


def test_a_key_that_is_not_known(caller: Caller) -> None:
    status, answer = caller.ask("/v1/chat/completions", chat(), key=secret("wrong"))

    check("error#envelope", answer)
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("rows", ["one", [f"row {number}" for number in range(23)]])
def test_embeddings(caller: Caller, rows: Any) -> None:
    asked = {"model": "text-embedding-v4", "input": rows, "dimensions": 64}
    _, floats = caller.ask("/v1/embeddings", {**asked, "encoding_format": "float"})
    _, default = caller.ask("/v1/embeddings", asked)
    _, packed = caller.ask("/v1/embeddings", {**asked, "encoding_format": "base64"})

    check("embeddings#response", floats)
    check("embeddings#response", default)
    check("embeddings#base64_response", packed)
    count = 1 if isinstance(rows, str) else len(rows)
    assert len(floats["data"]) == len(packed["data"]) == count


def test_models(caller: Caller) -> None:
    _, models = caller.ask("/v1/models", method="GET")

    check("models#list", models)
    assert MODEL in [model["id"] for model in models["data"]]


def test_a_model(caller: Caller) -> None:
    _, models = caller.ask("/v1/models", method="GET")
    for model in models["data"]:
        status, one = caller.ask("/v1/models/" + model["id"].replace("/", "%2F"), method="GET")
        check("models#model", one)
        assert (status, one["id"]) == (200, model["id"])


# --- completions ----------------------------------------------------------------------------------


def completion(spec: str = "", **fields: Any) -> dict[str, Any]:
    """A request of the legacy completions."""
    prompt = f"Once upon [[sandbox: {spec}]]" if spec else "Once upon a time"
    return {"model": MODEL, "prompt": prompt, **fields}


COMPLETIONS = {
    "text": completion(),
    "thinking": completion("think"),
    "two choices": completion(n=2),
    "cut at the limit": completion("finish=length", max_tokens=5),
    "cut by the filter": completion("finish=content_filter"),
    "an unknown finish": completion("finish=tired"),
    "no usage": completion("no-usage"),
    "usage without details": completion("details-null"),
    "cached tokens": completion("cached=64"),
}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_completion(caller: Caller, name: str) -> None:
    status, answer = caller.ask("/v1/completions", COMPLETIONS[name])

    assert status == 200, answer
    check_but_for_nulls("completions#completion", answer)
    assert answer["choices"] and answer["model"] == MODEL


@pytest.mark.parametrize("usage", [{}, USAGE], ids=["without usage", "with usage"])
@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_streamed_completion(caller: Caller, name: str, usage: dict[str, Any]) -> None:
    *chunks, done = caller.stream("/v1/completions", {**COMPLETIONS[name], **usage})

    assert done == "[DONE]"
    assert chunks
    for chunk in chunks:
        check_but_for_nulls("completions#chunk", chunk)
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    assert [bool(chunk.get("usage")) for chunk in chunks].count(True) == bool(
        usage and name != "no usage"
    )


def test_a_streamed_completion_that_breaks_ends_with_an_error(caller: Caller) -> None:
    *chunks, last = caller.broken_stream(
        "/v1/completions", completion("chunks=9, interval=0.01, cut-after=3")
    )

    for chunk in chunks:
        check_but_for_nulls("completions#chunk", chunk)
    check("error#envelope", last)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"model": MODEL}),
        (400, completion() | {"prompt": {"a": 1}}),
        (400, completion() | {"prompt": []}),
        (400, b"[]"),
        (404, completion() | {"model": "no-such-model"}),
        (429, completion("throttle")),
        (503, completion("overload")),
    ],
)
def test_a_completion_that_is_refused(caller: Caller, status: int, body: Any) -> None:
    found, answer = caller.ask("/v1/completions", body)

    check("error#envelope", answer)
    assert found == status


# --- responses ------------------------------------------------------------------------------------

FLAT_TOOL = {"type": "function", **FUNCTION}
PATCH_TOOL = {"type": "custom", "name": "apply_patch", "description": "Change files."}
IMAGE = "data:image/png;base64,AAAA"


def response(spec: str = "", **fields: Any) -> dict[str, Any]:
    """A request of the Responses API."""
    text = f"Hello there [[sandbox: {spec}]]" if spec else "Hello there"
    return {"model": MODEL, "input": text, **fields}


RESPONSES = {
    "text": response(),
    "items": response()
    | {
        "input": [
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
        ],
        "tools": [FLAT_TOOL],
    },
    "instructions and metadata": response(instructions="Be brief.", metadata={"a": "b"}),
    "all settings": response(
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=50,
        max_tool_calls=3,
        parallel_tool_calls=False,
        truncation="disabled",
        user="me",
        safety_identifier="me",
        prompt_cache_key="key",
        service_tier="auto",
    ),
    "thinking": response("think", reasoning={"effort": "high", "summary": "auto"}),
    "thinking for the client to keep": response(
        "think", store=False, include=["reasoning.encrypted_content"]
    ),
    "a function call": response("tools=1", tools=[FLAT_TOOL]),
    "two function calls": response("tools=2", tools=[FLAT_TOOL], tool_choice="auto"),
    "a forced call": response(
        tools=[FLAT_TOOL], tool_choice={"type": "function", "name": "get_weather"}
    ),
    "a custom tool call": response("tools=1", tools=[PATCH_TOOL]),
    "a web search": response(tools=[{"type": "web_search"}]),
    "json": response(
        text={"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}
    ),
    "cut at the limit": response("finish=length"),
    "cut by the filter": response("finish=content_filter"),
    "no usage": response("no-usage"),
    "usage without details": response("details-null"),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response(caller: Caller, name: str) -> None:
    status, answer = caller.ask("/v1/responses", RESPONSES[name])

    assert status == 200, answer
    check("responses#response", answer)
    assert answer["model"] == MODEL and answer["output"]


@pytest.mark.parametrize("name", RESPONSES)
def test_the_events_of_a_response(caller: Caller, name: str) -> None:
    told = [e for e in caller.stream("/v1/responses", RESPONSES[name]) if e != "[DONE]"]

    for event in told:
        check_event(event)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]
    assert told[-1]["type"] == (
        "response.incomplete" if name.startswith("cut") else "response.completed"
    )
    items = [e["item"] for e in told if e["type"] == "response.output_item.done"]
    assert told[-1]["response"]["output"] == items and items


@pytest.mark.parametrize(
    "spec", ["cut-after=3", "error-frame-after=3", "inspection-mid-stream=3", "no-finish"]
)
def test_a_response_that_breaks(caller: Caller, spec: str) -> None:
    body = response(f"chunks=9, interval=0.01, {spec}")
    told = [e for e in caller.stream("/v1/responses", body) if e != "[DONE]"]

    for event in told:
        check_event(event)
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["status"] == "failed" and told[-1]["response"]["error"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"model": MODEL}),
        (400, response() | {"input": 7}),
        (400, response(tools="all")),
        (400, response(stream="yes")),
        (400, b"[]"),
        (404, response() | {"model": "no-such-model"}),
        (429, response("throttle")),
        (429, response("throttle", stream=True)),
        (503, response("overload")),
    ],
)
def test_a_response_that_is_refused(caller: Caller, status: int, body: Any) -> None:
    found, answer = caller.ask("/v1/responses", body)

    check("error#envelope", answer)
    assert found == status


def test_a_stored_response(caller: Caller) -> None:
    _, created = caller.ask("/v1/responses", RESPONSES["items"])
    path = f"/v1/responses/{created['id']}"
    status, again = caller.ask(path, method="GET")
    assert status == 200
    check("responses#response", again)
    assert again == created

    _, deleted = caller.ask(path, method="DELETE")
    check("responses#deleted", deleted)
    assert deleted["id"] == created["id"]
    status, gone = caller.ask(path, method="GET")
    check("error#envelope", gone)
    assert status == 404


@pytest.mark.parametrize(
    "given",
    [
        "Hello",
        [{"role": "user", "content": "Hello"}],
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": IMAGE},
                ],
            }
        ],
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Let me see."},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        [
            {"role": "user", "content": "Patch it."},
            {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        ],
    ],
    ids=["text", "a message", "an image", "a function call", "a custom tool call"],
)
def test_the_input_items_of_a_stored_response(caller: Caller, given: Any) -> None:
    tools = [FLAT_TOOL, PATCH_TOOL]
    _, created = caller.ask("/v1/responses", response() | {"input": given, "tools": tools})
    status, items = caller.ask(f"/v1/responses/{created['id']}/input_items", method="GET")

    assert status == 200
    check("responses#input_items", items)
    assert len(items["data"]) == (1 if isinstance(given, str) else len(given))


def test_an_empty_page_of_input_items(caller: Caller) -> None:
    _, created = caller.ask("/v1/responses", response())
    path = f"/v1/responses/{created['id']}/input_items"
    _, page = caller.ask(path, method="GET")
    status, rest = caller.ask(f"{path}?after={page['last_id']}", method="GET")

    assert status == 200
    check("responses#input_items", rest)
    assert (rest["data"], rest["first_id"], rest["has_more"]) == ([], "", False)


def test_the_count_of_input_tokens(caller: Caller) -> None:
    status, count = caller.ask("/v1/responses/input_tokens", response())

    assert status == 200
    check("responses#input_tokens", count)
    assert count["input_tokens"] > 0
