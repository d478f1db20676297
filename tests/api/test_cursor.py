"""Bodies of the Responses API that Cursor posts to chat completions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.apps import in_front_of
from tests.fakes.raw_server import whole

MODELS = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
MESSAGE = {"role": "assistant", "content": "hi"}
ANSWER: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
}
FLAT = {"type": "function", "name": "look", "description": "d", "parameters": {"type": "object"}}
NESTED = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object"}},
}


def sent_for(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the upstream got, and the answer."""
    with in_front_of(MODELS, whole(json.dumps(ANSWER).encode())) as (app, upstream):
        response = app.chat(body)
        sent = json.loads(upstream.requests[-1].partition(b"\r\n\r\n")[2])
    assert response.status_code == 200
    return sent, json.loads(response.data)


def test_input_without_messages_is_understood() -> None:
    parts = [{"type": "input_text", "text": "hello"}]
    given = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
    ]
    sent, answer = sent_for({"model": "m", "input": given, "tools": [FLAT], "store": False})

    assert [each["role"] for each in sent["messages"]] == ["system", "user", "assistant", "tool"]
    assert sent["messages"][1] == {"role": "user", "content": "hello"}
    assert sent["tools"] == [NESTED]
    assert answer["choices"][0]["message"] == MESSAGE


def test_flat_tools_beside_messages_are_understood() -> None:
    messages = [{"role": "user", "content": "hello"}]
    choice = {"type": "function", "name": "look"}
    sent, _ = sent_for({"model": "m", "messages": messages, "tools": [FLAT], "tool_choice": choice})

    assert sent["tools"] == [NESTED]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m"}, "messages"),
        ({"model": "m", "input": None}, "messages"),
        ({"model": "m", "input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_what_cannot_be_understood_is_refused(body: dict[str, Any], param: str) -> None:
    with in_front_of(MODELS) as (app, _):
        response = app.chat(body)

    assert response.status_code == 400
    assert json.loads(response.data)["error"]["param"] == param
