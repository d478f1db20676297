"""Events: those of clients as they are read, and those for clients as they are rendered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter

from qwen_wsgi.errors import ApiError, BadRequest, Overloaded
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.websocket import events


def event(**members: Any) -> JsonObject:
    return JsonObject(json.dumps({"type": "response.create"} | members).encode())


def parsed(rendered: bytes) -> Any:
    """An event as the official package reads it, which must know it."""
    found: Any = TypeAdapter(ResponsesServerEvent).validate_json(rendered)
    return found


def test_a_request_is_that_of_a_post_and_always_streams() -> None:
    read = events.read(
        event(model="m", input=[{"role": "user", "content": "x"}], stream_id="a.b_c-1", store=False)
    )
    body = events.request_of(read)

    assert (read.type, read.stream_id) == ("response.create", "a.b_c-1")
    assert body.names() == ("model", "input", "store", "stream")
    assert body["stream"] is True
    assert events.generates(read.body)


@pytest.mark.parametrize("members", [{"stream": True}, {"stream": False}, {"stream": None}])
def test_the_clients_word_on_streaming_does_not_count(members: dict[str, Any]) -> None:
    assert events.request_of(events.read(event(**members)))["stream"] is True


@pytest.mark.parametrize(
    ("members", "generates"),
    [
        ({"generate": False}, False),
        ({"prompt_cache_options": {"prewarm": True}}, False),
        ({"generate": True, "prompt_cache_options": {"prewarm": True}}, False),
        ({"generate": True}, True),
        ({"generate": None, "prompt_cache_options": {"mode": "implicit"}}, True),
    ],
)
def test_a_request_may_be_made_to_be_kept_only(members: dict[str, Any], generates: bool) -> None:
    read = events.read(event(model="m", **members))

    assert events.generates(read.body) is generates
    # Then it needs no input.
    assert events.request_of(read).get("input") == (None if generates else [])


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (JsonObject(b"{}"), "missing_required_parameter"),
        (JsonObject(b'{"type": 7}'), "invalid_type"),
        (event(stream_id=""), "invalid_stream_id"),
        (event(stream_id="a b"), "invalid_stream_id"),
        (event(stream_id="x" * 257), "invalid_stream_id"),
        (event(stream_id=7), "invalid_stream_id"),
        (event(stream_id="a\n"), "invalid_stream_id"),
    ],
)
def test_an_event_that_cannot_be_read_is_refused(message: JsonObject, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        events.read(message)

    assert caught.value.code == code


def test_server_sent_events_become_messages() -> None:
    block = (
        b'event: response.created\ndata: {"type":"response.created"}\n\n'
        b": keep-alive\n\n"
        b'event: x\ndata: {"type":"x","nested":{"a":1}}\n\n'
    )

    assert events.messages(block, None) == [
        b'{"type":"response.created"}',
        b'{"type":"x","nested":{"a":1}}',
    ]
    assert [json.loads(each) for each in events.messages(block, "lane-1")] == [
        {"type": "response.created", "stream_id": "lane-1"},
        {"type": "x", "nested": {"a": 1}, "stream_id": "lane-1"},
    ]
    assert events.messages(b": keep-alive\n\n", "lane-1") == []


def test_a_refusal_is_an_event_that_the_official_package_knows() -> None:
    refusal = BadRequest("No.", param="previous_response_id", code="previous_response_not_found")

    rendered = events.error(refusal, "main", {"x-request-id": "r-1"})

    assert json.loads(rendered) == {
        "type": "error",
        "status": 400,
        "error": {
            "message": "No.",
            "type": "invalid_request_error",
            "param": "previous_response_id",
            "code": "previous_response_not_found",
            "headers": {"x-request-id": "r-1"},
        },
        "headers": {"x-request-id": "r-1"},
        "stream_id": "main",
    }
    found = parsed(rendered)
    assert (found.status, found.error.code, found.stream_id) == (
        400,
        "previous_response_not_found",
        "main",
    )


def test_a_refusal_says_when_to_try_again() -> None:
    rendered = json.loads(events.error(Overloaded("Full.", retry_after_s=0.2), None, {}))

    assert rendered["headers"] == {"retry-after": "1"}
    assert "stream_id" not in rendered


def test_steering_is_refused_with_what_was_to_be_added() -> None:
    steer = events.read(
        event(type="response.steer", previous_response_id="resp_1", input="Faster!")
    )

    found = parsed(events.steer_failed(steer))

    assert found.type == "response.steer.failed"
    assert found.error.code == "steering_not_supported"
    assert (found.steer.previous_response_id, found.steer.input) == ("resp_1", "Faster!")


@pytest.mark.parametrize("members", [{"input": "x"}, {"previous_response_id": "resp_1"}])
def test_steering_that_is_incomplete_is_a_bad_request(members: dict[str, Any]) -> None:
    steer = events.read(event(type="response.steer", **members))

    with pytest.raises(BadRequest):
        events.steer_failed(steer)


def test_other_events_are_unknown() -> None:
    refusal: ApiError = events.unknown("response.append")

    assert (refusal.status, refusal.code, refusal.param) == (400, "invalid_value", "type")
