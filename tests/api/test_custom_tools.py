"""Custom tools of chat at a Qwen host: there and back, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from tests.api.behind import events_of, post, sandboxed

MODEL = "qwen3-coder-plus"
PATCH = {"type": "custom", "custom": {"name": "patch"}}
HELLO = [{"role": "user", "content": "hi"}]
PATH = "/v1/chat/completions"
#: What the sandbox writes where a text is required.
TEXT = "sandbox input"


def message_of(body: dict[str, Any], *, stream: bool) -> tuple[dict[str, Any], Any]:
    """The assistant's message, and the last body that the sandbox got."""
    with sandboxed() as (app, sandbox):
        response = post(app, PATH, {"model": MODEL, "stream": stream, **body})
        if not stream:
            value = json.loads(response.data)
            ChatCompletion.model_validate(value)
            message = value["choices"][0]["message"]
        else:
            message = {"role": "assistant", "content": None, "tool_calls": []}
            for event in events_of(response):
                for piece in event["choices"][0]["delta"].get("tool_calls") or ():
                    if "id" in piece:
                        message["tool_calls"].append(
                            {k: piece[k] for k in ("id", "type", "custom")}
                        )
                    else:
                        inner = message["tool_calls"][piece["index"]]["custom"]
                        inner["input"] += piece["custom"]["input"]
        last = sandbox.settle()[-1]
        return message, last.body


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_comes_back_as_custom_and_is_input_of_the_next_turn(stream: bool) -> None:
    message, sent = message_of({"messages": HELLO, "tools": [PATCH]}, stream=stream)

    assert b'"custom"' not in sent
    (call,) = message["tool_calls"]
    assert call["type"] == "custom"
    assert call["custom"] == {"name": "patch", "input": TEXT}

    result = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
    turn = {"messages": [*HELLO, message, result], "tools": [PATCH]}
    with sandboxed() as (app, _):
        response = post(app, PATH, {"model": MODEL, **turn})
        assert response.status_code == 200, response.data


@pytest.mark.parametrize("stream", [False, True])
def test_so_does_one_of_a_body_of_the_responses_api(stream: bool) -> None:
    """Cursor's."""
    tool = {"type": "custom", "name": "patch", "format": {"type": "text"}}
    message, _ = message_of({"input": "hi", "tools": [tool]}, stream=stream)
    flat, _ = message_of({"messages": HELLO, "tools": [tool]}, stream=stream)

    for each in (message, flat):
        (call,) = each["tool_calls"]
        assert call["custom"] == {"name": "patch", "input": TEXT}


def test_only_what_is_allowed_is_offered() -> None:
    other = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    allowed = {"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "patch"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    body = {"messages": HELLO, "tools": [other, PATCH], "tool_choice": choice}

    _, sent = message_of(body, stream=False)

    tools = json.loads(sent)["tools"]
    assert [each["function"]["name"] for each in tools] == ["patch"]
