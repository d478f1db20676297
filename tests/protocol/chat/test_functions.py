"""A client of the legacy `functions` gets its answer in the legacy form."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.protocol.chat.functions import LegacyChunkStream, completion


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def call(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments}, **more}]}


def test_a_streamed_call_is_a_function_call() -> None:
    first = {"id": "x", "type": "function", "function": {"name": "f", "arguments": ""}}
    stream = LegacyChunkStream(hide_usage=True)
    chunks = [
        chunk({"role": "assistant", "content": None, "tool_calls": [{"index": 0, **first}]}),
        chunk(call('{"a":')),
        chunk(call("1}")),
        chunk({}, "tool_calls"),
    ]
    sent = b"".join(stream.feed(sse.render(each)) for each in chunks)
    sent += stream.feed(sse.DONE) + stream.end()

    seen = [ChatCompletionChunk.model_validate(sse.parse(event)) for event in sse.events(sent)]
    calls = [each.choices[0].delta.function_call for each in seen]
    assert "".join(each.arguments or "" for each in calls if each) == '{"a":1}'
    assert [each.name for each in calls if each and each.name] == ["f"]
    assert all(each.choices[0].delta.tool_calls is None for each in seen)
    assert seen[-1].choices[0].finish_reason == "function_call"
    assert stream.complete


@pytest.mark.parametrize("arguments", ["", None])
@pytest.mark.parametrize("last", [chunk({}, "stop"), chunk({"content": ""}, "tool_calls"), None])
def test_a_streamed_call_without_arguments_has_an_empty_object(
    arguments: Any, last: dict[str, Any] | None
) -> None:
    stream = LegacyChunkStream(hide_usage=True)
    first = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    chunks = [chunk({"content": None, "tool_calls": [{"index": 0, **first}]}), last]
    sent = b"".join(stream.feed(sse.render(each)) for each in chunks if each)
    sent += stream.feed(sse.DONE)

    seen = [ChatCompletionChunk.model_validate(sse.parse(event)) for event in sse.events(sent)]
    calls = [each.choices[0].delta.function_call for each in seen]
    assert "".join(each.arguments or "" for each in calls if each) == "{}"
    assert [each.choices[0].finish_reason for each in seen] == [None, "function_call"]


def test_another_hosts_own_function_call_without_arguments_has_an_empty_object() -> None:
    stream = ChunkStream(hide_usage=True, normalize=False)
    chunks = [chunk({"function_call": {"name": "f", "arguments": ""}}), chunk({}, "function_call")]
    sent = b"".join(stream.feed(sse.render(each)) for each in chunks)

    values = [sse.parse(event)["choices"][0] for event in sse.events(sent)]
    assert values[1]["delta"]["function_call"] == {"arguments": "{}"}
    assert values[1]["finish_reason"] == "function_call"


def test_text_that_speaks_of_tool_calls_is_left_alone() -> None:
    stream = LegacyChunkStream(hide_usage=True, normalize=False)
    value = chunk({"content": 'he said "tool_calls"'})
    sent = stream.feed(sse.render(value))
    assert [sse.parse(event) for event in sse.events(sent)] == [value]


def test_a_whole_call_is_a_function_call() -> None:
    function = {"name": "f", "arguments": "{}"}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x", "type": "function", "function": function}],
    }
    value = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
    }
    seen = ChatCompletion.model_validate(completion(value))
    assert seen.choices[0].message.function_call is not None
    assert seen.choices[0].message.function_call.name == "f"
    assert seen.choices[0].finish_reason == "function_call"
    assert seen.choices[0].message.tool_calls is None


def test_answers_without_a_call_stay_as_they_are() -> None:
    value = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}
    assert completion(value) == value
    assert completion({"choices": None}) == {"choices": None}
