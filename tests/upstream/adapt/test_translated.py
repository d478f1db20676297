"""Requests of Messages and Responses: plain chat for other servers, and changes in their words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import messages, responses
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.upstream.adapt import Adapted, Options, adapt
from tests.upstream.adapt.support import LAX, STRICT, Json, target_of

OTHER = target_of("llama-4", Family.OTHER)
MARK: Json = {"cache_control": {"type": "ephemeral"}}
LONG = "mcp__" + "x" * 100


def body_of(value: Json) -> JsonObject:
    return JsonObject(json.dumps(value).encode())


def of_messages(**members: Any) -> ChatRequest:
    value = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    return messages.parse_request(body_of({**value, **members})).chat


def of_responses(**members: Any) -> ChatRequest:
    return responses.parse_request(body_of({"model": "m", "input": "a", **members})).chat


def made_of(
    request: ChatRequest, target: Any = OTHER, options: Options = LAX
) -> tuple[Json, Adapted]:
    made = adapt(request, target, options, stream=True)
    value: Json = json.loads(request.body.render(made.changes, drop=made.drop))
    return value, made


def test_a_plain_request_has_nothing_of_qwens_for_another_server() -> None:
    body, made = made_of(of_messages(), options=STRICT)

    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "max_completion_tokens": 9,
    }
    assert made.changed == ("thinking:dropped",)


def test_marks_for_the_cache_and_a_begun_answer_are_plain_chat() -> None:
    tool = {"name": "look", "input_schema": {"type": "object"}, **MARK}
    given = [
        {"role": "user", "content": [{"type": "text", "text": "a", **MARK}]},
        {"role": "assistant", "content": "The answer is"},
    ]
    system = [{"type": "text", "text": "s", **MARK}]
    body, made = made_of(of_messages(messages=given, tools=[tool], system=system), options=STRICT)

    assert "cache_control" not in json.dumps(body)
    assert body["messages"][2] == {"role": "assistant", "content": "The answer is"}
    assert [each["function"]["name"] for each in body["tools"]] == ["look"]
    assert "tools:cache_control-dropped" in made.changed


@pytest.mark.parametrize(
    "request_",
    [
        of_messages(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
        of_responses(tools=[{"type": "web_search"}], tool_choice="auto", parallel_tool_calls=True),
    ],
)
def test_a_built_in_tool_is_no_tool_of_chat(request_: ChatRequest) -> None:
    body, made = made_of(request_)

    assert body.keys() & {"tools", "tool_choice", "parallel_tool_calls"} == set()
    assert "tools:built-in-dropped" in made.changed
    with pytest.raises(BadRequest):
        made_of(request_, options=STRICT)


@pytest.mark.parametrize(
    "request_",
    [
        of_messages(
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
            tool_choice={"type": "tool", "name": "web_search"},
        ),
        of_responses(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}),
        of_responses(tools=[{"type": "web_search"}], tool_choice="required"),
    ],
)
@pytest.mark.parametrize("target", [OTHER, target_of("qwen3-coder-plus")])
def test_a_search_that_is_forced_and_not_there_is_refused(
    request_: ChatRequest, target: Any
) -> None:
    with pytest.raises(BadRequest) as caught:
        made_of(request_, target)
    assert caught.value.code == "web_search_unavailable"


def test_other_tools_stay_beside_one_that_is_dropped() -> None:
    function = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    body, _ = made_of(of_responses(tools=[{"type": "web_search"}, function]))

    assert [each["function"]["name"] for each in body["tools"]] == ["look"]


def test_thinking_is_dropped_in_the_clients_words() -> None:
    request = of_messages(thinking={"type": "enabled", "budget_tokens": 2000})

    body, made = made_of(request)

    assert body.keys() == {"model", "messages", "max_completion_tokens"}
    assert made.changed == ("thinking:dropped", "thinking.budget_tokens:dropped")
    with pytest.raises(BadRequest) as caught:
        made_of(request, options=STRICT)
    assert caught.value.param == "thinking"


def test_what_the_client_itself_sent_of_qwens_stays() -> None:
    assert made_of(of_messages(enable_thinking=True))[0]["enable_thinking"] is True
    assert made_of(of_responses(enable_thinking=True))[0]["enable_thinking"] is True


def test_names_of_tools_that_no_chat_takes_are_cut() -> None:
    tool = {"name": LONG, "input_schema": {"type": "object"}}
    body, made = made_of(of_messages(tools=[tool]))

    (name,) = made.renamed
    assert len(name) == 64
    assert body["tools"][0]["function"]["name"] == name


def test_a_model_that_does_not_think_gets_nothing_of_it() -> None:
    request = of_messages(thinking={"type": "enabled", "budget_tokens": 2000})

    body, made = made_of(request, target_of("qwen3-coder-plus"))

    assert body.keys() == {"model", "messages", "max_tokens"}
    assert set(made.changed) == {"thinking:dropped", "thinking.budget_tokens:dropped"}


def test_changes_for_a_qwen_host_are_told_in_the_words_of_responses() -> None:
    request = of_responses(max_output_tokens=99, reasoning={"effort": "high"})

    _, made = made_of(request, target_of("qwen3-coder-plus"))

    assert made.changed == ("reasoning.effort:dropped", "max_output_tokens:as-max_tokens")
    with pytest.raises(BadRequest) as caught:
        made_of(request, target_of("qwen3-coder-plus"), STRICT)
    assert caught.value.param == "reasoning.effort"
