"""Whole answers rendered as messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given, settings

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.completion import Completion
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.messages import MessagesRequest, parse_request, whole
from tests.kit.messages_sdk import Chunk, accumulated, call, chunk, encode, usage
from tests.protocol.messages.strategies import JUNK, answers


def request(**members: Any) -> MessagesRequest:
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "a"}],
        **members,
    }
    return parse_request(JsonObject(json.dumps(body).encode()))


def encoded(message: Any, finish: Any = "stop", **rest: Any) -> dict[str, Any]:
    completion = {"model": "up", "choices": [{"message": message, "finish_reason": finish}], **rest}
    value = whole(request(), completion, id="msg_1")
    Message.model_validate(value)
    return value


def test_a_text() -> None:
    details = {"cached_tokens": 3}
    used = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": details}

    assert encoded({"role": "assistant", "content": "hi"}, usage=used) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": 2,
        },
    }


def test_without_a_model_in_the_request_the_answers_own_is_told() -> None:
    completion = {"model": "up", "choices": []}

    assert whole(request(model=None), completion, id="x")["model"] == "up"


@pytest.mark.parametrize(
    ("arguments", "input"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        (" ", {}),
        (None, {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": ', {"arguments": '{"a": '}),
        ("[1]", {"arguments": "[1]"}),
        ('{"a": NaN}', {"arguments": '{"a": NaN}'}),
    ],
)
def test_arguments_are_an_object_whatever_came(arguments: Any, input: Any) -> None:
    function = {"name": "f", "arguments": arguments}
    (block,) = encoded({"tool_calls": [{"id": "c", "function": function}]}, "tool_calls")["content"]

    assert block == {"type": "tool_use", "id": "c", "name": "f", "input": input}


@pytest.mark.parametrize("depth", range(900, 1000, 3))
def test_arguments_of_any_depth_can_be_told(depth: int) -> None:
    text = '{"a":' * depth + "1" + "}" * depth
    function = {"name": "f", "arguments": text}
    completion = {"choices": [{"message": {"tool_calls": [{"id": "c", "function": function}]}}]}

    assert compact(whole(request(), completion, id="x"))


@pytest.mark.parametrize("completion", [{}, {"choices": None}, {"choices": []}, {"choices": [1]}])
def test_an_answer_without_an_answer_is_empty(completion: dict[str, Any]) -> None:
    value = whole(request(), completion, id="x")

    Message.model_validate(value)
    assert value["content"] == []
    assert value["stop_reason"] == "end_turn"
    assert value["usage"]["output_tokens"] == 0


def test_the_stop_sequence() -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "stop_reason": "END"}
    value = whole(request(stop_sequences=["END"]), {"choices": [choice]}, id="x")

    assert (value["stop_reason"], value["stop_sequence"]) == ("stop_sequence", "END")


@settings(deadline=None)
@given(answers())
def test_whole_and_streamed_are_the_same_message(chunks: list[Chunk]) -> None:
    """As far as chat tells it: a whole answer does not know what came between two texts."""
    completion = Completion()
    for each in chunks:
        completion.add(each)
    rendered = completion.render(id="c1", model="m", created=1)
    value = whole(request(), rendered, id="msg_1")
    streamed = accumulated(encode([chunks], model="m"))

    assert value["stop_reason"] == streamed["stop_reason"]
    assert value["usage"] == streamed["usage"]
    for kind in ("text", "thinking"):
        answers = [
            "".join(b[kind] for b in each["content"] if b["type"] == kind)
            for each in (value, streamed)
        ]
        assert answers[0] == answers[1]
    calls = [
        {b["id"]: b["input"] for b in each["content"] if b["type"] == "tool_use"}
        for each in (value, streamed)
    ]
    assert calls[0] == calls[1]


def test_a_stream_and_a_whole_answer_are_the_same_to_the_letter() -> None:
    chunks = [
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Now."}),
        call(0, '{"a": "ü"}', "call_a", "f"),
        chunk({}, "tool_calls"),
        usage(20, 5, cached_tokens=4),
    ]
    completion = Completion()
    for each in chunks:
        completion.add(json.loads(sse.render(each)[6:]))
    rendered = completion.render(id="c1", model="m", created=1)

    streamed = accumulated(encode([chunks], model="m"))
    del streamed["stop_details"]  # the SDK's own
    assert whole(request(), rendered, id="msg_1") == streamed


@settings(deadline=None)
@given(JUNK)
def test_no_completion_makes_a_fault(value: Any) -> None:
    message = whole(request(), value if isinstance(value, dict) else {"choices": value}, id="x")

    assert message["type"] == "message"
    compact(message)
