"""Chat requests: what is read, what is refused, and the body for the upstream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.chat import ChatRequest, parse_request, upstream_body
from qwen_wsgi.protocol.json_object import JsonObject
from tests.kit.properties import examples

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def request_of(**members: Any) -> ChatRequest:
    return parse_request(JsonObject(json.dumps({"messages": HELLO, **members}).encode()))


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": {"role": "user"}}, "messages", "invalid_type"),
        ({"messages": 5}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": ["hello"]}, "messages[0]", "invalid_type"),
        ({"messages": [*HELLO, None]}, "messages[1]", "invalid_type"),
        ({"messages": [{}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": None}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [*HELLO, {"role": 1}]}, "messages[1].role", "invalid_type"),
        ({"model": 5}, "model", "invalid_type"),
        ({"model": ["qwen"]}, "model", "invalid_type"),
        ({"model": True}, "model", "invalid_type"),
        ({"stream": "true"}, "stream", "invalid_type"),
        ({"stream": 1}, "stream", "invalid_type"),
        ({"stream": {}}, "stream", "invalid_type"),
        ({"stream": True, "stream_options": True}, "stream_options", "invalid_type"),
        ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"stream": False, "stream_options": {}}, "stream_options", None),
        ({"stream": None, "stream_options": {}}, "stream_options", None),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_as_openai_refuses_it(
    members: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(BadRequest) as caught:
        request_of(**members)

    error = caught.value
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert (error.param, error.code) == (param, code)
    assert param.split("[")[0] in error.message


def test_missing_messages_are_named() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(JsonObject(b'{"model":"x"}'))

    assert caught.value.body() == {
        "error": {
            "message": "Missing required parameter: 'messages'.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "missing_required_parameter",
        }
    }


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "null"),
        (True, "a boolean"),
        (1, "an integer"),
        (1.5, "a decimal"),
        ("x", "a string"),
        ({}, "an object"),
    ],
)
def test_a_wrong_type_is_called_by_its_json_name(value: Any, word: str) -> None:
    with pytest.raises(BadRequest, match=f"expected an array of objects, but got {word} instead"):
        request_of(messages=value)


@pytest.mark.parametrize(
    ("members", "model", "stream", "wants_usage"),
    [
        ({}, "", False, False),
        ({"model": None, "stream": None, "stream_options": None}, "", False, False),
        ({"model": "qwen3.7-plus"}, "qwen3.7-plus", False, False),
        ({"model": "Qwen/Qwen3-8B", "stream": False}, "Qwen/Qwen3-8B", False, False),
        ({"stream": True}, "", True, False),
        ({"stream": True, "stream_options": {}}, "", True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, "", True, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, "", True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, "", True, True),
        ({"stream": False, "stream_options": None}, "", False, False),
    ],
    ids=str,
)
def test_what_must_be_understood_is_understood(
    members: dict[str, Any], model: str, stream: bool, wants_usage: bool
) -> None:
    request = request_of(**members)

    assert (request.model, request.stream, request.wants_usage) == (model, stream, wants_usage)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "x"},
        {"role": "tool", "tool_call_id": "a", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "of the future"},
    ],
    ids=str,
)
def test_what_the_upstream_may_understand_is_left_to_it(message: dict[str, Any]) -> None:
    assert request_of(messages=[message]).body["messages"] == [message]


RICH = (
    '{ "model" : "m", "messages":[{"role":"user","content":[{"type":"text","text":"é\\u00e9"},'
    '{"type":"image_url","image_url":{"url":"data:image/png;base64,AA/+=="}}]},'
    '{"role":"assistant","content":"","reasoning_content":"1.0\\n"}],'
    ' "temperature": 0, "top_p":1.0, "seed":12345678901234567890, "x_unknown":{"a":[1e5,null]},'
    '"tools":[{"type":"function","function":{"name":"f","parameters":{"minimum":1.00}}}]%s}'
)


def test_a_request_that_needs_no_change_goes_up_to_the_letter() -> None:
    asks_usage = RICH % ',"stream":true, "stream_options": {"include_usage":true,"x":1.0}'
    whole = RICH % ',"stream":false'
    plain = RICH % ""

    for text, stream in ((asks_usage, True), (whole, False), (plain, False)):
        request = parse_request(JsonObject(text.encode()))
        assert upstream_body(request, model="m", stream=stream) == text.encode()


@pytest.mark.parametrize(
    ("members", "stream", "model", "changed"),
    [
        ("", True, "m", {"stream": True, "stream_options": {"include_usage": True}}),
        (',"stream":false', True, "m", {"stream": True, "stream_options": {"include_usage": True}}),
        (',"stream":null', True, "m", {"stream": True, "stream_options": {"include_usage": True}}),
        (',"stream":true', True, "m", {"stream_options": {"include_usage": True}}),
        (
            ',"stream":true,"stream_options":{"include_usage":false,"include_obfuscation":false}',
            True,
            "m",
            {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        ),
        (
            ',"stream":true,"stream_options":null',
            True,
            "m",
            {"stream_options": {"include_usage": True}},
        ),
        ("", False, "other", {"model": "other"}),
        (',"stream_options":null', False, "m", {}),
    ],
)
def test_only_what_must_change_is_changed(
    members: str, stream: bool, model: str, changed: dict[str, Any]
) -> None:
    text = RICH % members
    request = parse_request(JsonObject(text.encode()))

    sent = upstream_body(request, model=model, stream=stream)

    expected = json.loads(text) | changed
    if not stream:
        expected.pop("stream_options", None)
    assert json.loads(sent) == expected
    for kept in ('"temperature":0', '"top_p":1.0', '"seed":12345678901234567890', "[1e5,null]"):
        assert kept.encode() in sent
    assert '"content":[{"type":"text","text":"é\\u00e9"}'.encode() in sent


def test_a_request_without_a_model_gets_the_one_that_was_chosen() -> None:
    request = parse_request(JsonObject(b'{"messages":[{"role":"user"}]}'))

    assert upstream_body(request, model="qwen-plus", stream=False) == (
        b'{"messages":[{"role":"user"}],"model":"qwen-plus"}'
    )


def test_half_a_surrogate_pair_in_a_changed_member_does_no_harm() -> None:
    request = parse_request(
        JsonObject(b'{"messages":[{"role":"user"}],"stream":true,"stream_options":{"x":"\\ud83d"}}')
    )

    assert json.loads(upstream_body(request, model="m", stream=True))["stream"] is True


EXTRA_NAMES = st.text(max_size=10).filter(
    lambda name: name not in ("model", "messages", "stream", "stream_options")
)
EXTRA = st.dictionaries(
    EXTRA_NAMES, st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=4)
)


@examples(100)
@given(extra=EXTRA, stream=st.booleans(), ask_stream=st.booleans())
def test_unknown_fields_survive_whatever_they_are(
    extra: dict[str, Any], stream: bool, ask_stream: bool
) -> None:
    members = {"model": "m", "messages": HELLO, "stream": stream, **extra}
    request = parse_request(JsonObject(json.dumps(members).encode()))

    sent = json.loads(upstream_body(request, model="n", stream=stream or ask_stream))

    assert {name: sent[name] for name in extra} == extra
    assert sent["messages"] == HELLO
    assert sent["model"] == "n"
