"""Chat requests as the web API takes them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol.chat import parse_request
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.web.models import named
from qwen_wsgi.protocol.web.request import MOST_CHARACTERS, WebRequest, web_request


def made(name: str = "qwen-max", strict: bool = False, **members: Any) -> WebRequest:
    body = {"model": name, "messages": [{"role": "user", "content": "hi"}], **members}
    request = parse_request(JsonObject(json.dumps(body).encode()))
    return web_request(request, named(name), strict=strict)


def test_the_bodies_have_what_the_web_api_needs() -> None:
    ids = map(str, itertools.count())
    wanted = made()
    body = wanted.completion("chat-1", 12.5, lambda: next(ids))

    assert wanted.new_chat(12.5)["timestamp"] == 12500
    assert (body["chat_id"], body["stream"], body["incremental_output"]) == ("chat-1", True, True)
    (message,) = body["messages"]
    assert (message["fid"], message["childrenIds"]) == ("0", ["1"])
    assert message["feature_config"]["output_schema"] == "phase"
    assert message["chat_type"] == message["sub_chat_type"] == "t2t"


@pytest.mark.parametrize(
    ("members", "thinks"),
    [
        ({}, False),
        ({"enable_thinking": True}, True),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"name": "qwen-max-thinking"}, True),
        ({"name": "qwen-max-thinking", "enable_thinking": False}, False),
    ],
)
def test_thinking_follows_the_request_then_the_name(members: dict[str, Any], thinks: bool) -> None:
    assert made(**members).features["thinking_enabled"] is thinks


def test_a_budget_goes_with_thinking_alone() -> None:
    assert made(enable_thinking=True, thinking_budget=99).features["thinking_budget"] == 99
    assert "thinking_budget" not in made(thinking_budget=99).features


@pytest.mark.parametrize(
    ("members", "chat_type"),
    [
        ({}, "t2t"),
        ({"enable_search": True}, "search"),
        ({"web_search_options": {}}, "search"),
        ({"tools": [{"type": "web_search_preview"}]}, "search"),
        ({"name": "qwen-max-search"}, "search"),
        ({"name": "qwen-deep-research", "enable_search": True}, "deep_research"),
    ],
)
def test_what_kind_of_chat_it_is(members: dict[str, Any], chat_type: str) -> None:
    assert made(**members).chat_type == chat_type


def test_what_is_dropped_is_told_or_refused_in_strict_mode() -> None:
    assert made(temperature=1, seed=None).changed == ("-temperature",)
    with pytest.raises(BadRequest) as raised:
        made(strict=True, temperature=1)
    assert raised.value.param == "temperature"


def test_a_history_of_tools_stays_readable() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    assert made(messages=messages).content == "user:go\n\nassistant:[called f({})]\n\ntool:done"


def test_functions_that_may_not_be_called_are_no_harm() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert made(tools=tools, tool_choice="none").content == "hi"
    with pytest.raises(BadRequest, match="calls no functions"):
        made(tools=tools)


@pytest.mark.parametrize("kind", ["input_audio", "file", "video_url", None])
def test_other_parts_are_refused(kind: str | None) -> None:
    with pytest.raises(BadRequest, match="takes texts and pictures"):
        made(messages=[{"role": "user", "content": [{"type": kind}]}])


def test_a_text_of_128_k_goes_and_one_more_does_not() -> None:
    assert made(messages=[{"role": "user", "content": "x" * MOST_CHARACTERS}]).content
    with pytest.raises(ApiError) as raised:
        made(messages=[{"role": "user", "content": "x" * (MOST_CHARACTERS + 1)}])
    assert raised.value.status == 413


def test_nothing_said_is_refused() -> None:
    with pytest.raises(BadRequest, match="no text"):
        made(messages=[{"role": "user", "content": ""}])
