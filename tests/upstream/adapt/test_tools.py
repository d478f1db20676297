"""Legacy functions, empty lists of tools, the host's own web search, and forced calls."""

from __future__ import annotations

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.sandbox import params as sandbox
from tests.upstream.adapt.support import (
    HELLO,
    NAMED,
    OTHER_TOOL,
    STRICT,
    TOOL,
    WEB_SEARCH,
    Json,
    adapted,
    difference,
    sent,
    target_of,
)

PARALLEL: Json = {"parallel_tool_calls": True}


@pytest.mark.parametrize("model", ["qwen3.7-plus", "glm-5.1", "unknown"])
def test_who_says_nothing_of_parallel_calls_gets_openais_default(model: str) -> None:
    made = adapted({"tools": [TOOL]}, target_of(model), STRICT)

    assert difference({"tools": [TOOL]}, made) == PARALLEL
    assert made.changed == ("parallel_tool_calls:default",)
    assert adapted({}, target_of(model)).changed == ()


@pytest.mark.parametrize("value", [True, False, None])
def test_who_says_something_gets_that(value: bool | None) -> None:
    members: Json = {"tools": [TOOL], "parallel_tool_calls": value}

    assert adapted(members).changed == ()


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"tools": []}, {}),
        ({"tools": [], "tool_choice": "auto"}, {}),
        ({"tools": [], "tool_choice": "none", "parallel_tool_calls": True}, {}),
        ({"tools": [], "tool_choice": "required"}, {"tool_choice": "required"}),
    ],
    ids=str,
)
def test_an_empty_list_of_tools_is_dropped_with_what_belongs_to_it(
    members: Json, expected: Json
) -> None:
    made = adapted(members, options=STRICT)

    assert sent(members, made) == {"messages": HELLO, **expected}
    assert "tools:empty" in made.changed


@pytest.mark.parametrize("tools", [None, "x", {}, 5], ids=str)
def test_tools_that_are_no_list_are_left_to_the_host(tools: object) -> None:
    assert adapted({"tools": tools, "tool_choice": "required"}, options=STRICT).changed == ()


LONG = "mcp__a_server_with_a_long_name__" + "x" * 90


@pytest.mark.parametrize("name", ["search", LONG, "files.read", "読む"])
def test_a_name_that_the_host_refuses_is_another_one_everywhere(name: str) -> None:
    function: Json = {"name": name, "arguments": "{}"}
    members: Json = {
        "model": "qwen3-coder-plus",
        "messages": [
            *HELLO,
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "name": name, "content": "x"},
        ],
        "tools": [{"type": "function", "function": {"name": name}}, TOOL],
        "tool_choice": {"type": "function", "function": {"name": name}},
        **PARALLEL,
    }

    made = adapted(members, target_of("qwen3-coder-plus"), STRICT)

    after = sent(members, made)
    (new,) = made.renamed
    assert made.renamed == {new: name}
    assert after["tools"][0]["function"]["name"] == new
    assert after["tools"][1] == TOOL
    assert after["tool_choice"]["function"]["name"] == new
    assert after["messages"][2]["tool_calls"][0]["function"]["name"] == new
    assert after["messages"][3]["name"] == new
    assert made.changed == ("tools:renamed", "messages:tools-renamed", "tool_choice:renamed")
    assert sandbox.refusal_for({**after, "stream": True}) is None
    assert sandbox.refusal_for({**members, "stream": True}) is not None
    assert adapted(members, target_of("qwen3-coder-plus")).renamed == made.renamed


def test_another_server_gets_the_names_of_a_chat_as_they_are() -> None:
    members: Json = {"tools": [{"type": "function", "function": {"name": LONG}}]}

    assert adapted(members, target_of("llama-4", Family.OTHER)).changed == ()


# --- the form of 2023 ---------------------------------------------------------------------------

FUNCTION: Json = {"name": "look", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("call", "choice"),
    [
        ({}, {}),
        ({"function_call": "auto"}, {"tool_choice": "auto"}),
        ({"function_call": "none"}, {"tool_choice": "none"}),
        ({"function_call": {"name": "look"}}, {"tool_choice": NAMED}),
        ({"function_call": None}, {}),
    ],
    ids=str,
)
def test_functions_are_tools(call: Json, choice: Json) -> None:
    members = {"functions": [FUNCTION], **call}

    made = adapted(members, target_of("qwen3-coder-plus"), STRICT)

    assert sent(members, made) == {
        "messages": HELLO,
        "tools": [TOOL],
        # Its author knows answers with one call only.
        "parallel_tool_calls": False,
        **choice,
    }
    assert made.legacy_functions
    assert "functions:as-tools" in made.changed


def test_functions_beside_tools_are_not_taken() -> None:
    members: Json = {"functions": [FUNCTION], "function_call": "none", "tools": [OTHER_TOOL]}

    made = adapted(members)

    assert sent(members, made) == {
        "messages": HELLO,
        "tools": [OTHER_TOOL],
        "tool_choice": "none",
        **PARALLEL,
    }
    assert not made.legacy_functions
    assert "functions:dropped" in made.changed
    with pytest.raises(BadRequest) as caught:
        adapted(members, options=STRICT)
    assert caught.value.param == "functions"


@pytest.mark.parametrize("functions", [None, []])
def test_empty_functions_beside_tools_leave_the_answer_in_the_form_of_tools(
    functions: list[Json] | None,
) -> None:
    made = adapted({"functions": functions, "tools": [TOOL]}, options=STRICT)

    assert not made.legacy_functions
    assert "functions:dropped" in made.changed


@pytest.mark.parametrize("members", [{"functions": []}, {"function_call": "auto"}], ids=str)
def test_no_functions_are_nothing(members: Json) -> None:
    made = adapted(members, options=STRICT)

    assert sent(members, made) == {"messages": HELLO}
    assert not made.legacy_functions


# --- the host's own search ----------------------------------------------------------------------


#: Asks for the pages that the host's search finds, and for marks in the text.
SOURCES: Json = {
    "enable_source": True,
    "enable_citation": True,
    "citation_format": "[<number>]",
}
#: The host's own search.
SEARCHES: Json = {"enable_search": True, "search_options": SOURCES}


@pytest.mark.parametrize("model", ["qwen3.8-max", "qwen3.7-plus", "deepseek-v4-pro", "unknown"])
@pytest.mark.parametrize(
    "members",
    [
        {"tools": [WEB_SEARCH]},
        {"tools": [{"type": "web_search_preview_2025_03_11", "search_context_size": "low"}]},
        {"web_search_options": {}},
        {"tools": [WEB_SEARCH], "web_search_options": {}, "enable_search": True},
    ],
    ids=str,
)
def test_a_web_search_is_the_hosts_own(model: str, members: Json) -> None:
    made = adapted(members, target_of(model), STRICT)

    assert sent(members, made) == {"messages": HELLO, **SEARCHES}


def test_other_tools_stay_beside_it() -> None:
    members: Json = {"tools": [TOOL, WEB_SEARCH, OTHER_TOOL], "tool_choice": "auto"}

    made = adapted(members)

    assert difference(members, made) == {
        "tools": [TOOL, OTHER_TOOL],
        **SEARCHES,
        **PARALLEL,
    }


def test_the_name_of_the_model_may_ask_for_it() -> None:
    made = adapted({}, target_of(search=True), STRICT)

    assert (dict(made.changes), made.changed) == ({"enable_search": True}, ("enable_search:true",))


def test_models_for_sound_need_a_strategy_named() -> None:
    made = adapted({}, target_of("qwen3.5-omni-plus", search=True), STRICT)

    assert made.changes == {"enable_search": True, "search_options": {"search_strategy": "agent"}}
    own: Json = {"search_options": {"forced_search": True}}
    made = adapted(own, target_of("qwen3.5-omni-plus", search=True))
    assert made.changes == {"enable_search": True}


@pytest.mark.parametrize("model", ["qwen3-coder-plus", "glm-5.1", "kimi-k3"])
def test_a_model_without_it_answers_without_it(model: str) -> None:
    """Codex and others list the tool for every model."""
    asked: list[Json] = [{"tools": [WEB_SEARCH]}, {"web_search_options": {}}]
    for members in asked:
        made = adapted(members, target_of(model))
        assert sent(members, made) == {"messages": HELLO}
        with pytest.raises(BadRequest) as caught:
            adapted(members, target_of(model), STRICT)
        assert caught.value.param == next(iter(members))


def test_but_who_asked_by_the_models_name_hears_the_host_refuse() -> None:
    target = target_of("qwen3-coder-plus", search=True)

    assert adapted({}, target).changes == {"enable_search": True}
    with pytest.raises(BadRequest) as caught:
        adapted({}, target, STRICT)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([WEB_SEARCH], {"type": "web_search"}),
        ([WEB_SEARCH], "required"),
        ([WEB_SEARCH, TOOL], {"type": "web_search_preview"}),
    ],
    ids=str,
)
def test_a_forced_search_is_forced_or_refused(tools: list[Json], choice: Json | str) -> None:
    members: Json = {"tools": tools, "tool_choice": choice, **PARALLEL}

    after = sent(members, adapted(members, options=STRICT))

    assert after["enable_search"] is True
    assert after["search_options"] == {**SOURCES, "forced_search": True}
    assert "tool_choice" not in after
    omni = sent(members, adapted(members, target_of("qwen3.5-omni-plus")))
    expected = {"search_strategy": "agent", **SOURCES, "forced_search": True}
    assert omni["search_options"] == expected
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of("qwen3-coder-plus"))
    assert (caught.value.param, caught.value.code) == ("tool_choice", "web_search_unavailable")


def test_options_of_a_search_are_lost() -> None:
    members: Json = {"web_search_options": {"search_context_size": "high"}}

    assert sent(members, adapted(members)) == {"messages": HELLO, **SEARCHES}
    with pytest.raises(BadRequest):
        adapted(members, options=STRICT)


# --- calls that are forced ----------------------------------------------------------------------

HYBRIDS = ["qwen3.7-plus", "qwen3.8-max", "deepseek-v4-pro", "glm-5.1", "coder-model"]
THINKING_ONLY = ["qwq-plus", "kimi-k2.7-code", "qwen3-30b-a3b-thinking-2507"]
NOT_THINKING = ["qwen3-coder-plus", "qwen-max", "qwen-plus", "kimi-k2.6"]


def forced(members: Json, model: str) -> Json:
    members = {"tools": [TOOL], **PARALLEL, **members}
    return difference(members, adapted(members, target_of(model)))


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=str)
@pytest.mark.parametrize("model", HYBRIDS)
def test_to_force_the_only_tool_thinking_that_nobody_asked_for_is_off(
    choice: Json | str, model: str
) -> None:
    members: Json = {"tools": [TOOL], "tool_choice": choice, **PARALLEL}

    made = adapted(members, target_of(model), STRICT)

    after = sent(members, made)
    assert after["tool_choice"] == NAMED
    assert after["enable_thinking"] is False


@pytest.mark.parametrize("model", NOT_THINKING)
def test_without_thinking_the_only_tool_is_named(model: str) -> None:
    assert forced({"tool_choice": "required"}, model) == {"tool_choice": NAMED}
    assert forced({"tool_choice": NAMED}, model) == {}


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=str)
@pytest.mark.parametrize(
    "asked", [{"enable_thinking": True}, {"reasoning_effort": "high"}], ids=str
)
@pytest.mark.parametrize("model", ["qwen3.7-plus", "qwen3.8-max", "deepseek-v4-pro", "qwen-plus"])
def test_thinking_that_was_asked_for_stays(choice: Json | str, asked: Json, model: str) -> None:
    members: Json = {"tools": [TOOL], "tool_choice": choice, **asked}

    made = adapted(members, target_of(model))

    assert sent(members, made)["tool_choice"] == "auto"
    assert "tool_choice:auto" in made.changed
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of(model), STRICT)
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=str)
@pytest.mark.parametrize("model", THINKING_ONLY)
def test_a_model_that_always_thinks_cannot_be_forced(choice: Json | str, model: str) -> None:
    assert forced({"tool_choice": choice}, model) == {"tool_choice": "auto"}


@pytest.mark.parametrize("model", [*HYBRIDS, *THINKING_ONLY, *NOT_THINKING, "unknown"])
def test_one_of_several_tools_cannot_be_required(model: str) -> None:
    members: Json = {"tools": [TOOL, OTHER_TOOL], "tool_choice": "required"}

    assert forced(members, model) == {"tool_choice": "auto"}
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of(model), STRICT)
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("model", HYBRIDS)
def test_but_one_of_several_can_be_named(model: str) -> None:
    members: Json = {"tools": [TOOL, OTHER_TOOL], "tool_choice": NAMED}

    assert forced(members, model) == {"enable_thinking": False}


def test_with_thinking_off_a_named_tool_is_no_matter() -> None:
    members: Json = {"tool_choice": NAMED, "enable_thinking": False}

    assert forced(members, "qwen3.7-plus") == {}
    assert forced({"tool_choice": NAMED, "reasoning_effort": "none"}, "qwen3.8-max") == {}


@pytest.mark.parametrize("model", ["unknown", "qwen4-max"])
def test_of_a_model_that_is_not_known_only_the_hosts_rule_is_sure(model: str) -> None:
    assert forced({"tool_choice": NAMED}, model) == {}
    assert forced({"tool_choice": "required"}, model) == {"tool_choice": "auto"}


@pytest.mark.parametrize(
    "choice", ["auto", "none", "always", None, 5, {"type": "mcp"}, {"type": 5}, {}]
)
def test_any_other_choice_is_left_to_the_host(choice: object) -> None:
    assert forced({"tool_choice": choice}, "qwen3.7-plus") == {}


def test_the_name_of_the_model_asks_for_thinking_too() -> None:
    members: Json = {"tools": [TOOL], "tool_choice": NAMED, **PARALLEL}

    made = adapted(members, target_of("qwen3.7-plus", thinking=True))

    assert difference(members, made) == {"tool_choice": "auto", "enable_thinking": True}


def test_who_sets_a_budget_for_thinking_wants_it() -> None:
    members: Json = {"tool_choice": NAMED, "thinking_budget": 100}

    assert forced(members, "qwen3.7-plus") == {"tool_choice": "auto"}
    assert forced(members, "qwen-plus") == {}


def test_a_call_forced_in_the_old_form_is_refused_by_its_name() -> None:
    members: Json = {
        "functions": [FUNCTION],
        "function_call": {"name": "look"},
        "enable_thinking": True,
    }

    with pytest.raises(BadRequest) as caught:
        adapted(members, options=STRICT)
    assert caught.value.param == "function_call"
