"""Tools of all kinds become functions, and their calls are translated back."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from tests.protocol.responses.support import answered, call, chat, chunk, request

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin end"},
}
SEARCH = {"type": "web_search"}


def names(result: dict[str, Any]) -> list[str]:
    return [each["function"]["name"] for each in result.get("tools", ())]


def refusal(**members: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        request("hi", **members)
    return caught.value


def test_a_function() -> None:
    given = {**FUNCTION, "description": "d", "strict": False, "defer_loading": True}
    its = request("hi", tools=[given, {"type": "function", "name": "g"}])
    assert its.chat.body["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": FUNCTION["parameters"]},
        },
        {
            "type": "function",
            "function": {"name": "g", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    assert its.changed == ()
    assert request("hi", tools=[{**FUNCTION, "strict": True}]).changed == ("tools:strict-dropped",)


def test_a_custom_tool_is_a_function_with_one_text() -> None:
    its = request("hi", tools=[PATCH])
    function = its.chat.body["tools"][0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert function["parameters"]["properties"]["input"]["type"] == "string"
    assert function["description"].startswith("Edit files.")
    assert "start: begin end" in function["description"]
    assert its.changed == ("tools:grammar-as-text",)


def test_a_namespaces_tools_have_its_name_before_theirs() -> None:
    space = {
        "type": "namespace",
        "name": "mail",
        "description": "All of the mail.",
        "tools": [{**FUNCTION, "name": "send", "description": "Send."}, {**PATCH, "format": None}],
    }
    its = request("hi", tools=[space, FUNCTION])
    assert names(chat("hi", tools=[space, FUNCTION])) == ["mail__send", "mail__apply_patch", "f"]
    assert its.chat.body["tools"][0]["function"]["description"] == "Send.\n\nAll of the mail."
    _, response = answered(
        [
            chunk(call("{}", id="a", name="mail__send")),
            chunk(call('{"input":"x"}', 1, id="b", name="mail__apply_patch"), "tool_calls"),
        ],
        its,
    )
    first, second = response["output"]
    assert (first["type"], first["namespace"], first["name"]) == ("function_call", "mail", "send")
    assert (second["type"], second["namespace"]) == ("custom_tool_call", "mail")
    assert (second["name"], second["input"]) == ("apply_patch", "x")


def test_a_namespace_that_ends_in_underscores_gets_no_more_of_them() -> None:
    space = {"type": "namespace", "name": "mcp__db__", "description": "", "tools": [FUNCTION]}
    assert names(chat("hi", tools=[space])) == ["mcp__db__f"]


def test_names_that_chat_does_not_take_are_unique_and_come_back() -> None:
    long = {"type": "namespace", "name": "n" * 60, "tools": [FUNCTION, {**FUNCTION, "name": "g"}]}
    clash = {"type": "namespace", "name": "a", "tools": [{**FUNCTION, "name": "b__c"}]}
    again = {"type": "namespace", "name": "a__b", "tools": [{**FUNCTION, "name": "c"}]}
    plain = {**FUNCTION, "name": "a__b__c"}
    odd = {**FUNCTION, "name": "mail.send ü"}
    its = request("hi", tools=[long, clash, again, plain, odd])
    result = [each["function"]["name"] for each in its.chat.body["tools"]]
    assert len(set(result)) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in result)
    assert result[4] == "a__b__c"
    known = [its.names.tool_of(name) for name in result]
    assert [(tool.namespace, tool.name) for tool in known] == [
        ("n" * 60, "f"),
        ("n" * 60, "g"),
        ("a", "b__c"),
        ("a__b", "c"),
        (None, "a__b__c"),
        (None, "mail.send ü"),
    ]


def test_a_call_of_a_namespace_in_the_history_has_the_same_name() -> None:
    space = {"type": "namespace", "name": "mail", "tools": [{**FUNCTION, "name": "send"}]}
    item = {"type": "function_call", "call_id": "a", "arguments": "{}", "name": "send"}
    given = [{"role": "user", "content": "x"}, {**item, "namespace": "mail"}]
    for tools in ([space], []):
        result = chat(given, tools=tools)["messages"][1]["tool_calls"][0]
        assert result["function"]["name"] == "mail__send"


def test_a_name_that_nobody_gave_is_told_as_it_is() -> None:
    _, response = answered([chunk(call("{}", id="a", name="made_up"), "tool_calls")])
    assert response["output"][0]["name"] == "made_up"
    assert "namespace" not in response["output"][0]


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview", "web_search_2025_08_26"])
def test_a_web_search_stays_one(kind: str) -> None:
    its = request("hi", tools=[{"type": kind, "search_context_size": "low"}, FUNCTION])
    assert its.chat.body["tools"][1] == {"type": "web_search"}
    assert its.changed == ()


def test_a_web_search_that_must_not_read_the_web_is_dropped() -> None:
    its = request("hi", tools=[{**SEARCH, "external_web_access": False}])
    assert "tools" not in its.chat.body
    assert its.changed == ("tools:web_search-dropped",)


def test_filters_of_a_web_search_are_lost() -> None:
    its = request("hi", tools=[{**SEARCH, "filters": {"allowed_domains": ["example.org"]}}])
    assert its.changed == ("tools:web_search-filters-dropped",)


@pytest.mark.parametrize(
    "kind",
    [
        *("file_search", "computer", "code_interpreter", "image_generation", "mcp", "local_shell"),
        *("shell", "apply_patch", "tool_search", "programmatic_tool_calling", "new_one"),
    ],
)
def test_tools_that_only_openai_has(kind: str) -> None:
    its = request("hi", tools=[{"type": kind}, FUNCTION])
    assert [each["type"] for each in its.chat.body["tools"]] == ["function"]
    assert its.changed == (f"tools:{kind}-dropped",)
    assert refusal(tools=[{"type": kind}], tool_choice={"type": kind}).param == "tool_choice"
    assert refusal(tools=[{"type": kind}], tool_choice="required").param == "tool_choice"
    assert refusal(tools=[{"type": kind}], strict=True).param == "tools"


def test_a_type_is_noted_as_a_header_may_have_it() -> None:
    assert request("hi", tools=[{"type": "a,b\r\nc"}]).changed == ("tools:a_b_c-dropped",)


@pytest.mark.parametrize(
    ("choice", "result"),
    [
        (None, None),
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        (
            {"type": "custom", "name": "apply_patch"},
            {"type": "function", "function": {"name": "apply_patch"}},
        ),
    ],
)
def test_choices(choice: Any, result: Any) -> None:
    sent = chat("hi", tools=[FUNCTION, PATCH], tool_choice=choice, parallel_tool_calls=True)
    assert sent.get("tool_choice") == result
    assert names(sent) == ["f", "apply_patch"]
    assert sent["parallel_tool_calls"] is True


def test_allowed_tools_are_the_only_ones_and_the_answer_shows_all() -> None:
    other = {**FUNCTION, "name": "g"}
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "g"}, {"type": "mcp", "server_label": "x"}],
    }
    its = request("hi", tools=[FUNCTION, other, SEARCH], tool_choice=choice)
    assert its.chat.body["tool_choice"] == "required"
    assert [each["function"]["name"] for each in its.chat.body["tools"]] == ["g"]
    assert its.echo["tools"] == [{**FUNCTION, "strict": None}, {**other, "strict": None}, SEARCH]
    assert its.echo["tool_choice"] == choice


def test_allowed_tools_of_a_namespace_and_a_search() -> None:
    space = {"type": "namespace", "name": "mail", "tools": [{**FUNCTION, "name": "send"}]}
    allowed = [{"type": "namespace", "name": "mail"}, {"type": "web_search"}]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": allowed}
    result = chat("hi", tools=[FUNCTION, space, SEARCH], tool_choice=choice)
    assert result["tools"][0]["function"]["name"] == "mail__send"
    assert result["tools"][1] == {"type": "web_search"}
    assert len(result["tools"]) == 2


def test_a_forced_search_stays_forced() -> None:
    for choice in ({"type": "web_search_preview"}, "required"):
        its = request(tools=[SEARCH], tool_choice=choice)
        assert its.chat.body["tool_choice"] == {"type": "web_search"}
        assert its.changed == ()


@pytest.mark.parametrize(
    "choice",
    [
        "any",
        5,
        [],
        {},
        {"type": 5},
        {"type": "function"},
        {"type": "function", "name": "nope"},
        {"type": "custom", "name": "f"},
        {"type": "allowed_tools"},
        {"type": "allowed_tools", "mode": "none", "tools": []},
        {"type": "allowed_tools", "mode": "required", "tools": []},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]},
    ],
)
def test_choices_that_are_refused(choice: Any) -> None:
    assert str(refusal(tools=[FUNCTION], tool_choice=choice).param).startswith("tool_choice")


def test_a_choice_without_tools() -> None:
    assert "tool_choice" not in chat("hi", tool_choice="auto", parallel_tool_calls=True)
    assert "parallel_tool_calls" not in chat("hi", tool_choice="none", parallel_tool_calls=True)
    assert refusal(tool_choice="required").param == "tool_choice"


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({}, "tools[0].type"),
        ({"type": "function"}, "tools[0].name"),
        ({"type": "function", "name": ""}, "tools[0].name"),
        ({"type": "function", "name": "f", "parameters": []}, "tools[0].parameters"),
        ({"type": "function", "name": "f", "description": 5}, "tools[0].description"),
        ({"type": "custom", "name": "f", "format": "x"}, "tools[0].format"),
        ({"type": "namespace", "name": "n", "tools": [{}]}, "tools[0].tools[0].type"),
        (
            {"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]},
            "tools[0].tools[0].type",
        ),
    ],
)
def test_tools_that_are_refused(tool: dict[str, Any], param: str) -> None:
    assert refusal(tools=[tool]).param == param
