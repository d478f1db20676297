"""Custom tools, and `allowed_tools`, for hosts that know only functions."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from tests.upstream.adapt.support import (
    LAX,
    OTHER_TOOL,
    STRICT,
    TOOL,
    USER,
    WEB_SEARCH,
    Json,
    adapted,
    sent,
    target_of,
)

CUSTOM: Json = {"type": "custom", "custom": {"name": "patch", "description": "Patches."}}
FUNCTION: Json = {
    "type": "function",
    "function": {
        "name": "patch",
        "description": "Patches.",
        "parameters": {
            "type": "object",
            "properties": {
                "input": {
                    "type": "string",
                    "description": "The whole input of the tool, as plain text.",
                }
            },
            "required": ["input"],
            "additionalProperties": False,
        },
    },
}
PARALLEL: Json = {"parallel_tool_calls": True}
CODER = target_of("qwen3-coder-plus")


def allowed(*tools: Json, mode: Any = "auto") -> Json:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def named(kind: str, name: str) -> Json:
    return {"type": kind, kind: {"name": name}}


def test_a_custom_tool_becomes_a_function() -> None:
    members: Json = {"tools": [TOOL, CUSTOM], **PARALLEL}

    made = adapted(members, CODER, STRICT)

    assert sent(members, made)["tools"] == [TOOL, FUNCTION]
    assert made.customs == {"patch"}
    assert made.changed == ("tools:custom-as-function",)


@pytest.mark.parametrize("flat", [False, True])
def test_a_grammar_becomes_a_part_of_the_description(flat: bool) -> None:
    grammar = {"syntax": "lark", "definition": "start: /a/"}
    form = {"type": "grammar", **(grammar if flat else {"grammar": grammar})}
    tool = {"type": "custom", "name": "patch", "format": form}
    if not flat:
        tool = {"type": "custom", "custom": {"name": "patch", "format": form}}
    members: Json = {"tools": [tool], **PARALLEL}

    made = adapted(members, CODER, STRICT)

    (function,) = sent(members, made)["tools"]
    described = function["function"]["description"]
    assert described == "The input must match this lark grammar:\nstart: /a/"
    assert "tools:grammar-as-text" in made.changed


def test_a_forced_custom_tool_is_a_forced_function() -> None:
    members: Json = {"tools": [TOOL, CUSTOM], "tool_choice": named("custom", "patch"), **PARALLEL}

    after = sent(members, adapted(members, CODER, STRICT))

    assert after["tool_choice"] == named("function", "patch")


def test_a_name_that_the_host_refuses_is_the_clients_again() -> None:
    tool = {"type": "custom", "custom": {"name": "search"}}
    members: Json = {"tools": [tool], **PARALLEL}

    made = adapted(members, CODER, STRICT)

    (name,) = made.customs
    assert made.renamed == {name: "search"}
    assert sent(members, made)["tools"][0]["function"]["name"] == name != "search"


def test_calls_in_the_history_become_calls_of_functions() -> None:
    call = {"id": "a", "type": "custom", "custom": {"name": "patch", "input": "x"}}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "a", "content": "ok"}
    members: Json = {"messages": [USER, assistant, result], "tools": [CUSTOM], **PARALLEL}

    after = sent(members, adapted(members, CODER, STRICT))

    (sent_call,) = after["messages"][1]["tool_calls"]
    assert sent_call["function"] == {"name": "patch", "arguments": '{"input":"x"}'}


ALL = [TOOL, CUSTOM, OTHER_TOOL]


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        (allowed(named("function", "leap")), [OTHER_TOOL]),
        (allowed(named("custom", "patch"), named("function", "look")), [TOOL, FUNCTION]),
        (
            {
                **{"type": "allowed_tools", "mode": "auto"},
                "tools": [{"type": "function", "name": "leap"}],
            },
            [OTHER_TOOL],
        ),
        (allowed(*ALL), [TOOL, FUNCTION, OTHER_TOOL]),
    ],
    ids=["one", "two", "flat", "all"],
)
def test_only_the_allowed_tools_are_sent(choice: Json, tools: list[Json]) -> None:
    members: Json = {"tools": ALL, "tool_choice": choice, **PARALLEL}

    after = sent(members, adapted(members, CODER, STRICT))

    assert after["tools"] == tools
    assert after["tool_choice"] == "auto"


def test_one_of_them_may_be_required() -> None:
    choice = allowed(named("custom", "patch"), mode="required")
    members: Json = {"tools": ALL, "tool_choice": choice, **PARALLEL}

    after = sent(members, adapted(members, CODER, STRICT))

    assert (after["tools"], after["tool_choice"]) == ([FUNCTION], named("function", "patch"))


def test_the_hosts_search_may_be_allowed_or_not() -> None:
    tools = [TOOL, WEB_SEARCH]
    other: Json = {"tools": tools, "tool_choice": allowed(TOOL), **PARALLEL}
    assert "enable_search" not in sent(other, adapted(other))

    search = {"type": "web_search_preview"}
    members: Json = {"tools": tools, "tool_choice": allowed(search, mode="required"), **PARALLEL}
    after = sent(members, adapted(members))
    assert after["enable_search"] is True
    assert after["search_options"]["forced_search"] is True
    assert "tools" not in after


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name"),
        (
            {"tools": [{"type": "custom", "custom": {"name": "a", "format": 5}}]},
            "tools[0].custom.format",
        ),
        ({"tools": ALL, "tool_choice": named("custom", "look")}, "tool_choice"),
        ({"tools": ALL, "tool_choice": allowed(named("function", "patch"))}, "tool_choice"),
        ({"tools": ALL, "tool_choice": allowed({"type": "mcp"})}, "tool_choice"),
        ({"tools": ALL, "tool_choice": allowed()}, "tool_choice"),
        (
            {"tools": ALL, "tool_choice": allowed(TOOL, mode="any")},
            "tool_choice.allowed_tools.mode",
        ),
        (
            {"tools": ALL, "tool_choice": {"type": "allowed_tools"}},
            "tool_choice.allowed_tools.mode",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_understood_is_refused(members: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        adapted(members)
    assert caught.value.param == param


def test_other_servers_get_them_as_they_are() -> None:
    members: Json = {"tools": ALL, "tool_choice": allowed(TOOL)}

    made = adapted(members, target_of("gpt-5", Family.OTHER), LAX)

    assert sent(members, made)["tools"] == ALL
    assert made.customs == frozenset()
