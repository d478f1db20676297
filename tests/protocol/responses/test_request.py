"""Parameters of a request: translated, listed as lost, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError
from qwen_wsgi.protocol.responses import parse_request, previous_of, whole
from tests.protocol.responses.support import ID, MODEL, body, chat, request

COMPLETION = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}


def refusal(**members: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        request(**{"input": "hi", **members})
    return caught.value


def test_a_plain_request() -> None:
    its = request("hi", model="qwen3.7-plus")
    assert chat("hi", model="qwen3.7-plus") == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "qwen3.7-plus",
    }
    assert (its.model, its.stream, its.store, its.changed) == ("qwen3.7-plus", False, True, ())
    assert its.previous_response_id is None


def test_without_a_model_there_is_the_default_one() -> None:
    its = request("hi")
    assert its.model == its.chat.model == ""
    assert refusal(model=5).param == "model"


def test_a_stream_asks_for_usage() -> None:
    its = request("hi", stream=True, stream_options={"include_obfuscation": False})
    assert its.chat.stream and its.chat.wants_usage
    assert its.chat.body["stream_options"] == {"include_usage": True}


def test_thinking_in_the_words_of_chat_and_of_other_servers() -> None:
    result = chat("hi", reasoning_effort="low", think=False, thinking={"type": "disabled"})
    del result["messages"]
    assert result == {
        "reasoning_effort": "low",
        "think": False,
        "thinking": {"type": "disabled"},
    }
    both = chat("hi", reasoning={"effort": "high"}, reasoning_effort="low")
    assert both["reasoning_effort"] == "high"


def test_parameters_by_chats_names() -> None:
    result = chat(
        "hi",
        max_output_tokens=100,
        temperature=0.5,
        top_p=1,
        metadata={"a": "b"},
        user="u",
        prompt_cache_key="k",
        safety_identifier="s",
        service_tier="auto",
        reasoning={"effort": "high", "summary": "auto"},
        text={"verbosity": "low", "format": {"type": "text"}},
        parallel_tool_calls=False,
        truncation="disabled",
        background=False,
        store=False,
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
        top_logprobs=2,
        enable_thinking=True,
        seed=5,
    )
    del result["messages"]
    assert result == {
        "max_completion_tokens": 100,
        "temperature": 0.5,
        "top_p": 1,
        "metadata": {"a": "b"},
        "user": "u",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "service_tier": "auto",
        "reasoning_effort": "high",
        "verbosity": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "enable_thinking": True,
        "seed": 5,
    }


def test_formats() -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    assert chat("hi", text={"format": form})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    assert chat("hi", text={"format": {"type": "json_object"}})["response_format"] == {
        "type": "json_object"
    }
    assert "response_format" not in chat("hi", text={"format": {"type": "text"}})
    assert refusal(text={"format": {"type": "xml"}}).param == "text.format.type"
    assert refusal(text={"format": {"type": "json_schema", "name": "n"}}).param == (
        "text.format.schema"
    )


@pytest.mark.parametrize(
    ("members", "changed"),
    [
        ({"truncation": "auto"}, ("truncation:not-done",)),
        ({"max_tool_calls": 3}, ("max_tool_calls:no-built-in-tools",)),
        ({"context_management": [{"type": "compaction"}]}, ("context_management:dropped",)),
        ({"moderation": {"model": "m"}}, ("moderation:dropped",)),
        ({"client_metadata": {"a": "b"}}, ("client_metadata:dropped",)),
        ({"a,b\r\nx: y": 1}, ("a_b_x_y:dropped",)),
        ({"moderation": None, "context_management": None, "truncation": None}, ()),
        ({"top_logprobs": 3}, ()),
    ],
)
def test_what_is_noted(members: dict[str, Any], changed: tuple[str, ...]) -> None:
    assert request("hi", **members).changed == changed


def test_a_strict_operator_has_losses_refused() -> None:
    assert refusal(strict=True, moderation={"model": "m"}).code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"background": True, "stream": True}, "stream", "unsupported_parameter"),
        ({"background": True, "store": False}, "store", "invalid_value"),
        (
            {"background": True, "background_options": {"completion_window": "3h"}},
            "background_options.completion_window",
            "invalid_value",
        ),
        (
            {"background_options": {"completion_window": "8h"}},
            "background_options.completion_window",
            "invalid_value",
        ),
        (
            {
                "background": True,
                "background_options": {"completion_window": "8h"},
                "service_tier": "flex",
            },
            "service_tier",
            "invalid_value",
        ),
        ({"background_options": 5}, "background_options", "invalid_type"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"background": "yes"}, "background", "invalid_type"),
        ({"instructions": ["x"]}, "instructions", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"store": 1}, "store", "invalid_type"),
        ({"previous_response_id": 1}, "previous_response_id", "invalid_type"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"max_output_tokens": 1.5}, "max_output_tokens", "invalid_type"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"truncation": "some"}, "truncation", "invalid_value"),
        ({"reasoning": "high"}, "reasoning", "invalid_type"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "string_above_max_length"),
        ({"metadata": {"a" * 65: "x"}}, "metadata", "string_above_max_length"),
        (
            {"metadata": {str(n): "x" for n in range(17)}},
            "metadata",
            "object_above_max_properties",
        ),
        ({"include": "all"}, "include", "invalid_type"),
        ({"include": ["all", 1]}, "include[1]", "invalid_type"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"tools": [1]}, "tools[0]", "invalid_type"),
        ({"user": 5}, "user", "invalid_type"),
    ],
)
def test_what_is_refused(members: dict[str, Any], param: str, code: str) -> None:
    error = refusal(**members)
    assert (error.status, error.param, error.code) == (400, param, code)


def test_a_wrong_type_is_told_in_openais_words() -> None:
    assert refusal(temperature="hot").message == (
        "Invalid type for 'temperature': expected a number, but got a string instead."
    )


def test_the_way_out_of_conversations_is_told() -> None:
    assert "previous_response_id" in refusal(conversation="conv_1").message


@pytest.mark.parametrize("depth", [300, 900, 980, 5000])
def test_what_is_nested_too_deep_is_refused_or_can_be_answered(depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    for raw in (
        b'{"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": %s}]}' % deep,
        b'{"input": [{"type": "shell_call", "call_id": "a", "action": %s}]}' % deep,
        b'{"input": [{"role": "user", "content": "x", "more": %s}]}' % deep,
        b'{"input": "hi", "more": %s}' % deep,
    ):
        try:
            its = parse_request(JsonObject(raw))
        except (BadRequest, JsonObjectError):
            assert depth > 300
            continue
        assert whole(its, COMPLETION, id=ID, created=7, model=MODEL)["status"] == "completed"


def test_a_number_that_json_cannot_write_again_is_refused() -> None:
    for raw in (
        b'{"input": "hi", "temperature": 1e999}',
        b'{"input": [{"role": "user", "content": "x", "more": 1e999}]}',
        b'{"input": "hi", "tools": [{"type": "file_search", "x": 1e999}]}',
    ):
        with pytest.raises(BadRequest):
            parse_request(JsonObject(raw))


def test_what_has_to_be_looked_up_first() -> None:
    its = previous_of(body(input=[{"id": "m1"}, {"type": "item_reference", "id": "m2"}, 5]))
    assert its == (None, True, ("m1", "m2"))
    assert previous_of(body(input="x", previous_response_id="resp_1", store=False)) == (
        "resp_1",
        False,
        (),
    )
    assert previous_of(body(store=None)).store is True
    with pytest.raises(BadRequest):
        previous_of(body(previous_response_id=5))


def test_a_response_repeats_the_request() -> None:
    tools = [
        {"type": "function", "name": "f", "parameters": None, "strict": True},
        {"type": "custom", "name": "g"},
        {"type": "code_interpreter", "container": {"type": "auto"}},
    ]
    members: dict[str, Any] = {
        "instructions": "Be brief.",
        "tools": tools,
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "temperature": 0.5,
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "user": "u",
        "store": False,
        "previous_response_id": "resp_0",
    }
    result = whole(request("hi", **members), COMPLETION, id=ID, created=7, model=MODEL)
    Response.model_validate(result, strict=True)
    assert result["text"] == {"verbosity": "low", "format": {"type": "text"}}
    assert result["truncation"] == "disabled"
    assert {name: result[name] for name in members if name != "text"} == {
        name: value for name, value in members.items() if name != "text"
    }


def test_a_response_has_openais_defaults() -> None:
    result = whole(request("hi"), COMPLETION, id=ID, created=7, model=MODEL)
    Response.model_validate(result, strict=True)
    required = {
        *("id", "object", "created_at", "access_programs", "error", "incomplete_details"),
        *("instructions", "metadata", "model", "output", "parallel_tool_calls", "temperature"),
        *("tool_choice", "tools", "top_p"),
    }
    assert required <= set(result)
    assert (result["tool_choice"], result["parallel_tool_calls"], result["tools"]) == (
        "auto",
        True,
        [],
    )


def test_a_response_shows_what_openai_requires_of_functions() -> None:
    its = request("hi", tools=[{"type": "function", "name": "f"}, {"type": "web_search"}])
    assert its.echo["tools"] == [
        {"type": "function", "name": "f", "parameters": None, "strict": None},
        {"type": "web_search"},
    ]
