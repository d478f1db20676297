"""Messages requests translated to chat: parameters, thinking, tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.messages import MessagesRequest, errors, parse_prompt, parse_request
from qwen_wsgi.protocol.translation import thinking as thinking_names

USER = {"role": "user", "content": "Hello"}
WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
BASH = {"type": "bash_20250124", "name": "bash"}


def parse(*, strict: bool = False, **members: Any) -> MessagesRequest:
    body = {"model": "qwen3.7-plus", "max_tokens": 100, "messages": [USER], **members}
    kept = {name: value for name, value in body.items() if value is not ...}
    return parse_request(JsonObject(json.dumps(kept).encode()), strict=strict)


def chat(**members: Any) -> dict[str, Any]:
    """The chat request, without what every one has."""
    value: dict[str, Any] = json.loads(parse(**members).chat.body.render())
    for name in ("model", "messages", "max_completion_tokens"):
        value.pop(name, None)
    return value


def refused(**members: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(**members)
    return caught.value


def test_the_smallest_request() -> None:
    request = parse()

    assert json.loads(request.chat.body.render()) == {
        "model": "qwen3.7-plus",
        "messages": [USER],
        "max_completion_tokens": 100,
        "enable_thinking": False,
    }
    assert request.changed == ("thinking:off-by-default",)
    assert (request.chat.model, request.chat.stream, request.stops) == ("qwen3.7-plus", False, ())


def test_a_stream_asks_for_usage() -> None:
    request = parse(stream=True)

    assert request.chat.stream
    assert request.chat.wants_usage


def test_without_a_model_the_router_decides() -> None:
    assert parse(model=...).chat.model == ""
    assert parse(model="").chat.model == ""


def test_parameters_get_their_names_of_chat() -> None:
    request = parse(stop_sequences=["END", "STOP"], temperature=0.5, top_p=0.9, top_k=40)
    value = json.loads(request.chat.body.render())

    assert value["stop"] == ["END", "STOP"]
    assert (value["temperature"], value["top_p"], value["top_k"]) == (0.5, 0.9, 40)
    assert request.stops == ("END", "STOP")


@pytest.mark.parametrize(
    ("thinking", "sent"),
    [
        ({"type": "disabled"}, {"enable_thinking": False}),
        ({"type": "adaptive"}, {"enable_thinking": True}),
        ({"type": "between_tools"}, {"enable_thinking": True}),
        (
            {"type": "enabled", "budget_tokens": 2048},
            {"enable_thinking": True, "thinking_budget": 2048},
        ),
    ],
)
def test_thinking_in_qwens_words(thinking: Any, sent: Any) -> None:
    assert chat(thinking=thinking) == sent


@pytest.mark.parametrize(
    ("thinking", "sent"),
    [
        (None, {"reasoning_effort": "high"}),
        ({"type": "adaptive"}, {"enable_thinking": True, "reasoning_effort": "high"}),
        ({"type": "disabled"}, {"enable_thinking": False}),
        (
            {"type": "enabled", "budget_tokens": 2048},
            {"enable_thinking": True, "thinking_budget": 2048},
        ),
    ],
)
def test_effort_and_thinking(thinking: Any, sent: Any) -> None:
    assert chat(thinking=thinking, output_config={"effort": "high"}) == sent


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_every_effort_of_qwens_models(effort: str) -> None:
    assert chat(output_config={"effort": effort}) == {"reasoning_effort": effort}


@pytest.mark.parametrize("name", sorted(thinking_names.ALL - {"thinking", "enable_thinking"}))
def test_who_speaks_of_thinking_in_another_servers_words_is_not_overruled(name: str) -> None:
    assert "enable_thinking" not in chat(**{name: "x"})


GEMINIS: dict[str, Any] = {"google": {"thinking_config": {"thinking_budget": 800}}}


def test_nor_who_speaks_in_geminis() -> None:
    for members in ({"extra_body": GEMINIS}, GEMINIS, {"extra_body": {"enable_thinking": True}}):
        assert "enable_thinking" not in chat(**members)
        assert members.items() <= chat(**members).items()
    assert chat(extra_body={"other": 1})["enable_thinking"] is False


def test_who_speaks_of_thinking_in_qwens_words_is_heard() -> None:
    assert chat(enable_thinking=True, thinking_budget=99) == {
        "enable_thinking": True,
        "thinking_budget": 99,
    }
    assert chat(reasoning_effort="low") == {"reasoning_effort": "low"}


@pytest.mark.parametrize("at", ["output_config", "output_format"])
def test_a_schema_for_the_answer(at: str) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    sent = chat(**{at: wanted if at == "output_format" else {"format": wanted}})

    assert sent["response_format"]["type"] == "json_schema"
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert sent["response_format"]["json_schema"]["name"]


def test_metadata_is_not_passed_on() -> None:
    assert chat(metadata={"user_id": "user_1"}) == {"enable_thinking": False}


def test_what_concerns_anthropics_servers_is_left_out_and_noted() -> None:
    members: dict[str, Any] = {
        "service_tier": "auto",
        "context_management": {"edits": []},
        "betas": ["x"],
        "anthropic_version": "vertex-2023-10-16",
        "speed": None,
    }

    assert chat(**members) == {"enable_thinking": False}
    assert set(parse(strict=True, **members).changed) == {
        "thinking:off-by-default",
        "service_tier:dropped",
        "context_management:dropped",
        "betas:dropped",
        "anthropic_version:dropped",
    }


@pytest.mark.parametrize("name", ["inference_geo", "mcp_servers", "n", "logprobs"])
def test_what_would_be_missed_is_refused_by_the_strict(name: str) -> None:
    members: dict[str, Any] = {name: 2}
    assert name not in chat(**members)
    assert f"{name}:dropped" in parse(**members).changed
    error = refused(strict=True, **members)
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", ["container", "conversation", "previous_response_id", "suffix"])
def test_what_changes_the_meaning_of_an_answer_is_refused(name: str) -> None:
    assert refused(**{name: "x"}).param == name
    assert name not in chat(**{name: None})


@pytest.mark.parametrize(
    "thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}]
)
def test_a_thread_is_refused_so_that_the_sdk_sends_the_whole_history(thread: Any) -> None:
    error = errors.body(refused(thread=thread), request_id="req_1")["error"]

    assert error["type"] == "invalid_request_error"
    assert error["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


def test_what_nobody_here_knows_goes_on_untouched() -> None:
    assert chat(enable_search=True, seed=7) == {
        "enable_search": True,
        "seed": 7,
        "enable_thinking": False,
    }


# --- tools --------------------------------------------------------------------------------------


def test_tools() -> None:
    marked = {**WEATHER, "name": "b", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    sent = chat(tools=[WEATHER, {**marked, "type": "custom", "description": None}])

    assert sent["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Tells the weather.",
                "parameters": WEATHER["input_schema"],
            },
        },
        {
            "type": "function",
            "function": {"name": "b", "parameters": WEATHER["input_schema"]},
            "cache_control": {"type": "ephemeral"},
        },
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        (
            {"type": "tool", "name": "get_weather"},
            {"type": "function", "function": {"name": "get_weather"}},
        ),
    ],
)
@pytest.mark.parametrize("single", [None, False, True])
def test_tool_choice(choice: dict[str, Any], sent: Any, single: bool | None) -> None:
    translated = chat(tools=[WEATHER], tool_choice={**choice, "disable_parallel_tool_use": single})

    assert translated["tool_choice"] == sent
    assert translated.get("parallel_tool_calls") == (False if single else None)


def test_a_web_search_is_told_as_one() -> None:
    assert chat(tools=[SEARCH, SEARCH])["tools"] == [{"type": "web_search"}]


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([SEARCH], {"type": "tool", "name": "web_search"}),
        ([SEARCH], {"type": "any"}),
        ([SEARCH, WEATHER], {"type": "tool", "name": "web_search"}),
    ],
)
def test_a_forced_web_search_stays_forced(tools: list[Any], choice: Any) -> None:
    assert chat(tools=tools, tool_choice=choice)["tool_choice"] == {"type": "web_search"}


ASKED = "Perform a web search for the query: news"


@pytest.mark.parametrize("choice", [None, {"type": "auto"}])
@pytest.mark.parametrize("content", [ASKED, [{"type": "text", "text": ASKED}]])
def test_a_conversation_that_is_only_a_search_forces_it(content: Any, choice: Any) -> None:
    request = parse(
        messages=[{"role": "user", "content": content}], tools=[SEARCH], tool_choice=choice
    )

    assert request.forces_search
    assert request.chat.body["tool_choice"] == {"type": "web_search"}
    assert "tool_choice:forced-search" in request.changed


@pytest.mark.parametrize(
    ("tools", "contents"),
    [
        ([SEARCH], ["What is the news?"]),
        ([SEARCH, WEATHER], [ASKED]),
        ([WEATHER], [ASKED]),
        ([SEARCH], ["Hello", ASKED]),
        ([SEARCH], [[{"type": "text", "text": ASKED}, {"type": "text", "text": "Or not."}]]),
    ],
)
def test_another_one_only_offers_it(tools: list[Any], contents: list[Any]) -> None:
    history = [{"role": "user", "content": content} for content in contents]

    assert not parse(messages=history, tools=tools).forces_search


def test_limits_of_a_search_are_lost() -> None:
    limited = {**SEARCH, "allowed_domains": ["example.com"]}

    assert "tools.allowed_domains:dropped" in parse(tools=[limited]).changed
    assert refused(strict=True, tools=[limited]).param == "tools.allowed_domains"


@pytest.mark.parametrize(
    "kind", ["bash_20250124", "text_editor_20250728", "code_execution_20250825", "memory_20250818"]
)
def test_tools_that_only_anthropics_models_know_are_left_out(kind: str) -> None:
    tool = {"type": kind, "name": "it"}

    assert "tools" not in chat(tools=[tool], tool_choice={"type": "auto"})
    assert "tool_choice" not in chat(tools=[tool], tool_choice={"type": "auto"})
    assert "tools:dropped" in parse(tools=[tool]).changed
    assert refused(strict=True, tools=[tool]).param == "tools"
    assert refused(tools=[tool], tool_choice={"type": "any"}).param == "tool_choice"
    chosen = {"type": "tool", "name": "it"}
    assert refused(tools=[tool, WEATHER], tool_choice=chosen).param == "tool_choice.name"


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "param", "message"),
    [
        ({"max_tokens": ...}, "max_tokens", "max_tokens: Field required"),
        ({"messages": ...}, "messages", "messages: Field required"),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_tokens": "9"}, "max_tokens", "max_tokens: Input should be a valid integer"),
        ({"max_tokens": True}, "max_tokens", None),
        ({"messages": {}}, "messages", None),
        ({"messages": []}, "messages", None),
        ({"messages": ["x"]}, "messages.0", None),
        ({"model": 1}, "model", None),
        ({"stream": "yes"}, "stream", None),
        ({"temperature": "hot"}, "temperature", None),
        ({"temperature": True}, "temperature", None),
        ({"top_k": 1.5}, "top_k", None),
        ({"stop_sequences": "END"}, "stop_sequences", None),
        ({"stop_sequences": ["a", 1]}, "stop_sequences.1", None),
        ({"system": 1}, "system", None),
        ({"system": [1]}, "system.0", None),
        ({"system": [{"type": "image"}]}, "system.0", None),
        ({"system": [{"type": "text"}]}, "system.0.text", None),
        ({"thinking": True}, "thinking", None),
        ({"thinking": {}}, "thinking.type", None),
        ({"thinking": {"type": "deep"}}, "thinking.type", None),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", None),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 0}},
            "thinking.budget_tokens",
            None,
        ),
        ({"output_config": {"effort": "huge"}}, "output_config.effort", None),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type", None),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema", None),
        ({"tools": {}}, "tools", None),
        ({"tools": ["x"]}, "tools.0", None),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name", None),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema", None),
        ({"tool_choice": "auto"}, "tool_choice", None),
        ({"tool_choice": {"type": "must"}}, "tool_choice.type", None),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name", None),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "b"}},
            "tool_choice.name",
            None,
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice", None),
    ],
)
def test_what_cannot_be_understood_is_refused_with_its_place(
    members: dict[str, Any], param: str, message: str | None
) -> None:
    error = refused(**members)

    assert (error.status, error.param) == (400, param)
    assert error.code
    assert error.message == message if message else error.message.startswith(param + ": ")


def test_a_prompt_to_be_counted_needs_nothing_but_messages() -> None:
    translated = parse_prompt({"messages": [USER], "system": "Be brief.", "tools": [WEATHER]})

    assert translated["messages"] == [{"role": "system", "content": "Be brief."}, USER]
    assert [tool["function"]["name"] for tool in translated["tools"]] == ["get_weather"]
    with pytest.raises(BadRequest):
        parse_prompt({})


@pytest.mark.parametrize("depth", range(880, 1000, 3))
def test_deep_values_are_taken_or_refused(depth: int) -> None:
    deep: Any = {}
    for _ in range(depth):
        deep = {"a": deep}
    body = {"max_tokens": 1, "messages": [USER], "tools": [{"name": "a", "input_schema": deep}]}
    try:
        parse_request(JsonObject(_rendered(body)))
    except (BadRequest, ValueError) as error:
        assert "deep" in str(error)


def _rendered(value: Any) -> bytes:
    """JSON of any depth, by hand."""
    if isinstance(value, dict):
        text, closing = b"", b""
        while isinstance(value, dict) and len(value) == 1:
            ((name, value),) = value.items()
            text, closing = text + b'{"%s":' % name.encode(), b"}" + closing
        if isinstance(value, dict):
            inner = b",".join(b'"%s":%s' % (k.encode(), _rendered(v)) for k, v in value.items())
            return text + b"{" + inner + b"}" + closing
        return text + _rendered(value) + closing
    if isinstance(value, list):
        return b"[" + b",".join(map(_rendered, value)) + b"]"
    return json.dumps(value).encode()


def test_a_tool_that_is_no_tool_is_left_out_and_deferred_ones_are_offered() -> None:
    """Claude Code sends one that must never be called, and defers those of its MCP servers."""
    placeholder = {
        "name": "DeferredToolPlaceholder",
        "description": "Never call it.",
        "input_schema": {"type": "object", "properties": {}},
        "defer_loading": True,
    }
    request = parse(tools=[placeholder, {**WEATHER, "defer_loading": True}])

    tools = request.chat.body["tools"]
    assert [tool["function"]["name"] for tool in tools] == ["get_weather"]
    assert "tools:placeholder-dropped" in request.changed
    assert "tools" not in parse(tools=[placeholder]).chat.body
