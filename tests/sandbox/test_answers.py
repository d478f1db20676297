"""What the look-alike answers when nothing goes wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.schema import instance_of
from tests.sandbox.support import KEY, TOOL, ask, call, post, request_body, stream


def test_a_completion_is_complete_and_marked(sandbox: Sandbox) -> None:
    answer = ask(sandbox, text="hello 世界")

    body = answer.json()
    assert answer.status == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "qwen-plus"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "[sandbox] You said: hello 世界"}
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0


def test_answers_carry_the_headers_of_the_gateway(sandbox: Sandbox) -> None:
    headers = ask(sandbox).headers

    assert len(headers["x-request-id"]) == 36
    assert headers["x-dashscope-call-gateway"] == "true"
    assert headers["set-cookie"].startswith("acw_tc=")
    assert "retry-after" not in headers


def test_a_stream_has_the_shape_of_dashscope(sandbox: Sandbox) -> None:
    answer = stream(sandbox, text="one two")

    assert answer.headers["content-type"] == "text/event-stream;charset=UTF-8"
    assert answer.deltas[0] == {"content": "", "role": "assistant"}
    assert answer.deltas[1]["role"] is None
    assert answer.deltas[1]["tool_calls"] is None
    assert answer.text == "[sandbox] You said: one two"
    assert answer.finish == ["stop"]
    assert answer.payloads[-1] == "[DONE]"
    *others, last = answer.chunks
    assert all(chunk["usage"] is None and chunk["system_fingerprint"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] > 0


def test_a_stream_has_usage_only_when_asked(sandbox: Sandbox) -> None:
    answer = stream(sandbox, stream_options=None)

    assert all("usage" not in chunk and chunk["choices"] for chunk in answer.chunks)


def test_the_other_prefix_works_alike(sandbox: Sandbox) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = json.dumps(request_body()).encode()

    assert call(sandbox, "POST", "/v1/chat/completions", body, headers).status == 200
    assert call(sandbox, "GET", "/v1/models", None, headers).json()["object"] == "list"


def test_thinking_comes_before_content_and_is_counted(sandbox: Sandbox) -> None:
    answer = stream(sandbox, enable_thinking=True)

    kinds = ["reasoning" if d.get("reasoning_content") else "content" for d in answer.deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True)
    assert {"reasoning", "content"} == set(kinds)
    assert answer.chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert ask(sandbox, enable_thinking=True).json()["choices"][0]["message"]["reasoning_content"]


def test_tool_calls_come_in_fragments(sandbox: Sandbox) -> None:
    answer = stream(sandbox, tools=[TOOL])

    first, *later = answer.fragments
    assert first["function"] == {"name": "get_weather", "arguments": ""}
    assert first["id"].startswith("call_")
    assert {fragment["id"] for fragment in later} == {""}
    arguments = "".join(fragment["function"]["arguments"] for fragment in later)
    assert json.loads(arguments) == {"city": "sandbox city"}
    assert answer.finish == ["tool_calls"]


def test_a_tool_call_of_a_completion_is_whole(sandbox: Sandbox) -> None:
    message = ask(sandbox, "tools=3", tools=[TOOL]).json()["choices"][0]["message"]

    assert [entry["index"] for entry in message["tool_calls"]] == [0, 1, 2]
    assert len({entry["id"] for entry in message["tool_calls"]}) == 3


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"tool_choice": "none"}, id="none chosen"),
        pytest.param(
            {
                "messages": [
                    {"role": "user", "content": "weather?"},
                    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
                ]
            },
            id="after a tool result",
        ),
    ],
)
def test_no_tool_call_when_text_is_due(sandbox: Sandbox, fields: dict[str, Any]) -> None:
    message = ask(sandbox, tools=[TOOL], **fields).json()["choices"][0]["message"]

    assert message["content"].startswith("[sandbox]")
    assert "tool_calls" not in message


def test_images_are_seen(sandbox: Sandbox) -> None:
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    body = {"model": "qwen3-vl-plus", "messages": [{"role": "user", "content": parts}]}

    text = post(sandbox, "chat/completions", body).json()["choices"][0]["message"]["content"]
    assert text == "[sandbox] You said: what is this I see 1 image."


def test_several_choices(sandbox: Sandbox) -> None:
    assert [c["index"] for c in ask(sandbox, n=3).json()["choices"]] == [0, 1, 2]
    indexes = {c["choices"][0]["index"] for c in stream(sandbox, n=2).chunks if c["choices"]}
    assert indexes == {0, 1}


def test_json_answers(sandbox: Sandbox) -> None:
    plain = ask(sandbox, text="as json", response_format={"type": "json_object"})
    schema = {
        "type": "object",
        "properties": {"kind": {"$ref": "#/$defs/Kind"}, "n": {"type": "integer", "minimum": 4}},
        "required": ["kind", "n"],
        "$defs": {"Kind": {"type": "string", "enum": ["a", "b"]}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = ask(sandbox, response_format=wanted)

    assert json.loads(plain.json()["choices"][0]["message"]["content"])["you_said"] == "as json"
    content = shaped.json()["choices"][0]["message"]["content"]
    assert json.loads(content) == {"kind": "a", "n": 5}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 7}, 7),
        ({"default": "d"}, "d"),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"type": ["null", "boolean"]}, True),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2}, [1, 1]),
        ({"properties": {"when": {"type": "string", "format": "date"}}}, {"when": "2026-01-31"}),
        ({"type": "object"}, {}),
        ({"type": "string", "maxLength": 4}, "sand"),
        ({"type": "string", "maxLength": "x"}, "sandbox value"),
        ({"$ref": "#/nowhere"}, "sandbox value"),
        ({"$ref": "#"}, "sandbox value"),
        ({"$ref": "#/$ref"}, "sandbox value"),
        ("no schema", "sandbox value"),
    ],
)
def test_made_up_values_fit_the_schema(schema: object, value: object) -> None:
    assert instance_of(schema) == value


def test_a_schema_that_contains_itself_ends() -> None:
    schema = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "$defs": {}}
    schema["$defs"] = {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}}

    assert "sandbox next" in json.dumps(instance_of(schema))


def test_limits_and_stops_shorten_the_answer(sandbox: Sandbox) -> None:
    short = ask(sandbox, text="word " * 50, max_tokens=5).json()["choices"][0]
    stopped = ask(sandbox, text="one STOP two", stop=["STOP"]).json()["choices"][0]

    assert short["finish_reason"] == "length"
    assert len(short["message"]["content"]) == 20
    assert stopped["message"]["content"] == "[sandbox] You said: one "


def test_long_prompts_report_cached_tokens(sandbox: Sandbox) -> None:
    usage = ask(sandbox, text="word " * 400).json()["usage"]
    marked = [{"type": "text", "text": "word " * 1000, "cache_control": {"type": "ephemeral"}}]
    explicit = ask(sandbox, messages=[{"role": "user", "content": marked}]).json()["usage"]

    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < usage["prompt_tokens"]
    assert cached % 64 == 0
    assert explicit["prompt_tokens_details"]["cache_creation_input_tokens"] > 0


def called(arguments: str) -> list[dict[str, Any]]:
    """A conversation with a call of a tool."""
    function = {"name": "get_weather", "arguments": arguments}
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]


def test_a_history_with_a_call_is_taken(sandbox: Sandbox) -> None:
    assert ask(sandbox, messages=called('{"city": "Rome"}')).status == 200


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 2}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 5}, "Range of n should be [1, 4]"),
        ({"n": 2, "tools": [TOOL]}, "n should be 1"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 10**6}, "Range of max_tokens should be [1, 32768]"),
        ({"seed": -1}, "seed"),
        ({"top_logprobs": 20}, "top_logprobs"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"tools": []}, "too short"),
        ({"tools": "x"}, "array"),
        ({"tools": [{"type": "function", "function": {"name": "search"}}]}, "[search]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "function name"),
        ({"tools": [TOOL], "tool_choice": "required"}, '["none", "auto"]'),
        ({"tool_choice": {"type": "function"}, "enable_thinking": True}, "thinking mode"),
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"model": "qwen3-32b", "enable_thinking": True}, "non-streaming"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"thinking_budget": 0}, "thinking_budget"),
        ({"thinking_budget": 5, "reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": []}, "too short"),
        ({"messages": ["x"]}, "object"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "developer is not one of"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role of user"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": called('{"path": "a.p')}, '"function.arguments" parameter'),
        ({"messages": called("")}, "must be in JSON format"),
        ({"model": ""}, "model"),
        (
            {
                "model": "qwen3.7-plus",
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "system", "content": "y"},
                ],
            },
            "System message must be at the beginning",
        ),
    ],
)
def test_parameters_are_refused_as_dashscope_does(
    sandbox: Sandbox, fields: dict[str, Any], words: str
) -> None:
    answer = ask(sandbox, **fields)

    assert answer.status == 400
    assert answer.code == "invalid_parameter_error"
    assert words in answer.message
    assert ask(sandbox, "lax", **fields).status == 200


def test_a_body_that_is_no_json_is_refused(sandbox: Sandbox) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    for body in (b"{", b"[]", b"\xff", b"[" * 100_000):
        answer = call(sandbox, "POST", "/v1/chat/completions", body, headers)
        assert answer.status == 400
        assert "Required body invalid" in answer.message


def test_models_are_listed(sandbox: Sandbox) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    ids = [m["id"] for m in call(sandbox, "GET", "/v1/models", None, headers).json()["data"]]

    assert "qwen-plus" in ids
    assert call(sandbox, "GET", "/v1/models/qwen-plus", None, headers).json()["id"] == "qwen-plus"
    missing = call(sandbox, "GET", "/v1/models/nope", None, headers)
    assert (missing.status, missing.code) == (404, "model_not_found")
    sandbox.control(models=["a"], strict_models=True)
    assert ask(sandbox).code == "model_not_found"
    assert ask(sandbox, model="a").status == 200
    assert ask(sandbox, model="sandbox/think").status == 200


def test_keys(sandbox: Sandbox) -> None:
    body = json.dumps(request_body()).encode()
    sandbox.control(invalid_keys=["sk-bad"])

    def status(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return call(sandbox, "POST", "/v1/chat/completions", body, headers).status

    assert call(sandbox, "POST", "/v1/chat/completions", body).code == "invalid_api_key"
    assert call(sandbox, "GET", "/v1/models").status == 401
    assert post(sandbox, "embeddings", {}, authorization="Basic eDp5").status == 401
    assert (status("sk-bad"), status("anything")) == (401, 200)
    sandbox.control(valid_keys=["sk-good"])
    assert (status("anything"), status("sk-good")) == (401, 200)


def embed(
    sandbox: Sandbox, rows: object, model: str = "text-embedding-v4", **fields: object
) -> object:
    answer = post(sandbox, "embeddings", {"model": model, "input": rows, **fields})
    return answer.json() if answer.status == 200 else (answer.status, answer.message)


def test_embeddings_are_unit_vectors_of_the_text(sandbox: Sandbox) -> None:
    body = embed(sandbox, ["one", "two", "one"])

    assert isinstance(body, dict)
    first, second, third = (entry["embedding"] for entry in body["data"])
    assert len(first) == 1024
    assert first == third != second
    assert math.isclose(math.fsum(x * x for x in first), 1.0)
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_embeddings_have_the_dimensions_asked_for(sandbox: Sandbox) -> None:
    body = embed(sandbox, "one", dimensions=64)

    assert isinstance(body, dict)
    assert len(body["data"][0]["embedding"]) == 64
    refused = (400, "dimensions should be one of [1536].")
    assert embed(sandbox, "one", "text-embedding-v2", dimensions=64) == refused


def test_embeddings_refuse_what_dashscope_refuses(sandbox: Sandbox) -> None:
    too_many = "batch size is invalid, it should not be larger than"
    assert embed(sandbox, ["x"] * 11) == (400, f"{too_many} 10.")
    assert embed(sandbox, ["x"] * 26, "text-embedding-v1") == (400, f"{too_many} 25.")
    assert isinstance(embed(sandbox, ["x"] * 25, "text-embedding-v1"), dict)
    assert embed(sandbox, [1, 2]) == (400, "contents is neither str nor list of str.")
    assert embed(sandbox, [[1, 2]]) == (400, "contents is neither str nor list of str.")
    assert embed(sandbox, "x", encoding_format="base64") == (
        400,
        "encoding_format only support float.",
    )
    assert embed(sandbox, [])[0] == 400  # type: ignore[index]  # a refusal is a pair
    assert embed(sandbox, [""])[0] == 400  # type: ignore[index]  # JSON
    assert embed(sandbox, "x", "text-embedding-ada-002")[0] == 404  # type: ignore[index]  # JSON
