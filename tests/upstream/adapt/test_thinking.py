"""All ways to switch thinking are translated to the one that the model takes."""

from __future__ import annotations

import json

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.chat import parse_request
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.upstream.adapt import adapt
from tests.upstream.adapt.support import (
    HELLO,
    STRICT,
    Json,
    adapted,
    difference,
    sent,
    target_of,
)

# Models by the way they take it.
SWITCHED = ["qwen3.7-max", "qwen3.6-plus", "qwen-plus", "qwen3-max", "coder-model", "kimi-k2.6"]
TIERED = ["qwen3.8-max", "qwen3.8-max-0902", "qwen3.8-flash", "qwen3.8-27b", "qwen3.8-omni-flash"]
PLAIN = ["qwen3-coder-plus", "qwen-max", "qwen-vl-max", "qwen3-235b-a22b-instruct-2507"]
ALWAYS = ["qwq-plus", "qwen3-235b-a22b-thinking-2507", "kimi-k2.7-code", "MiniMax-M2.5"]
ALWAYS += ["deepseek-r1", "qwen3.7-max-preview"]
BOTH_WAYS = {"reasoning_effort", "reasoning", "enable_thinking", "thinking_budget"}

ON: Json = {"enable_thinking": True}
OFF: Json = {"enable_thinking": False}


def knobs(members: Json, model: str, *, thinking: bool | None = None) -> Json:
    """The parameters for thinking that are sent."""
    made = adapted(members, target_of(model, thinking=thinking))
    return {name: value for name, value in sent(members, made).items() if name in BOTH_WAYS}


@pytest.mark.parametrize("model", SWITCHED)
@pytest.mark.parametrize(
    ("effort", "expected"),
    [
        ("none", OFF),
        ("minimal", {**ON, "thinking_budget": 4096}),
        ("low", {**ON, "thinking_budget": 4096}),
        ("medium", {**ON, "thinking_budget": 16384}),
        ("high", ON),
        ("xhigh", ON),
        ("max", ON),
    ],
)
def test_an_effort_becomes_a_switch_and_a_budget(model: str, effort: str, expected: Json) -> None:
    assert knobs({"reasoning_effort": effort}, model) == expected
    assert knobs({"reasoning": {"effort": effort}}, model) == expected
    # It goes before the host's own knobs, which other clients set by habit.
    assert knobs({"reasoning_effort": effort, "enable_thinking": effort == "none"}, model) == (
        expected
    )


@pytest.mark.parametrize("model", ["deepseek-v3.2", "qwen3-omni-flash"])
def test_but_no_budget_where_the_model_takes_none(model: str) -> None:
    assert knobs({"reasoning_effort": "low"}, model) == ON
    assert knobs({"reasoning": {"effort": "low", "max_tokens": 50}}, model) == ON


@pytest.mark.parametrize("model", TIERED)
@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_qwen38_takes_every_level_by_its_name(model: str, effort: str) -> None:
    assert adapted({"reasoning_effort": effort}, target_of(model), STRICT).changed == ()
    assert knobs({"reasoning": {"effort": effort}}, model) == {"reasoning_effort": effort}


@pytest.mark.parametrize(
    ("model", "levels"),
    [
        ("deepseek-v4-pro", {"low": "high", "medium": "high", "xhigh": "max"}),
        ("deepseek-v4-flash", {"minimal": "high", "high": "high", "max": "max"}),
        ("deepseek-v4-pro-0813", {"minimal": "low", "low": "low", "medium": "high"}),
        ("deepseek-v4-flash-0731", {"xhigh": "high", "max": "max"}),
        ("glm-5.2", {"low": "high", "xhigh": "max"}),
        ("kimi-k3", {"minimal": "low", "medium": "high", "xhigh": "max"}),
        ("glm-5.3", {"none": "low", "low": "low", "medium": "high", "max": "max"}),
        ("qwen3.8-2.4t-a95b", {"none": "low", "high": "high"}),
    ],
)
def test_a_level_that_a_model_does_not_have_becomes_the_next_one(
    model: str, levels: dict[str, str]
) -> None:
    for effort, level in levels.items():
        assert knobs({"reasoning_effort": effort}, model) == {"reasoning_effort": level}
        assert knobs({"reasoning_effort": effort, **ON}, model) == {"reasoning_effort": level}


@pytest.mark.parametrize("model", ["deepseek-v4-pro", "glm-5.1", "kimi-k3"])
def test_no_effort_at_all_is_the_switch_where_there_is_no_such_level(model: str) -> None:
    assert knobs({"reasoning_effort": "none"}, model) == OFF


@pytest.mark.parametrize("model", [*TIERED, "deepseek-v4-pro", "glm-5.2", "never-heard-of"])
def test_an_effort_never_goes_beside_a_budget(model: str) -> None:
    members: Json = {"reasoning_effort": "high", "thinking_budget": 100, **ON}

    assert knobs(members, model) == {"reasoning_effort": "high"}
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of(model), STRICT)
    assert caught.value.param == "thinking_budget"


@pytest.mark.parametrize("model", SWITCHED)
def test_a_budget_of_the_clients_own_is_kept(model: str) -> None:
    assert knobs({"reasoning_effort": "low", "thinking_budget": 7}, model) == {
        **ON,
        "thinking_budget": 7,
    }
    assert knobs({"reasoning": {"effort": "low", "max_tokens": 7}}, model) == {
        **ON,
        "thinking_budget": 7,
    }
    assert knobs({"reasoning": {"max_tokens": 7}}, model) == {"thinking_budget": 7}


@pytest.mark.parametrize("model", [*SWITCHED, *TIERED, "deepseek-v4-pro", "qwen4-max"])
@pytest.mark.parametrize("members", [ON, OFF, {**ON, "thinking_budget": 9}], ids=str)
def test_the_hosts_own_words_stay_as_they_are(model: str, members: Json) -> None:
    assert adapted(members, target_of(model), STRICT).changed == ()


@pytest.mark.parametrize("model", SWITCHED)
def test_a_budget_without_thinking_is_dropped(model: str) -> None:
    assert knobs({**OFF, "thinking_budget": 9}, model) == OFF


@pytest.mark.parametrize("model", PLAIN)
def test_a_model_that_does_not_think_is_not_asked_to(model: str) -> None:
    for members in ({"reasoning_effort": "high"}, ON, {"reasoning": {"enabled": True}}):
        assert knobs(members, model) == {}
        with pytest.raises(BadRequest) as caught:
            adapted(members, target_of(model), STRICT)
        assert caught.value.param == next(iter(members))
    assert knobs({"reasoning_effort": "none"}, model) == {}
    assert knobs({**ON, "thinking_budget": 9}, model) == {}
    assert knobs({"thinking_budget": 9}, model) == {}
    assert knobs(OFF, model) == OFF
    assert knobs({**OFF, "thinking_budget": 9}, model) == OFF
    adapted({"reasoning_effort": "none", **OFF}, target_of(model), STRICT)


@pytest.mark.parametrize("model", ALWAYS)
def test_a_model_that_always_thinks_is_not_told_to_stop(model: str) -> None:
    for members in ({"reasoning_effort": "none"}, OFF, {"reasoning": {"enabled": False}}):
        assert knobs(members, model) == {}
        with pytest.raises(BadRequest):
            adapted(members, target_of(model), STRICT)
    assert knobs({"reasoning_effort": "high"}, model) == {}
    assert knobs(ON, model) == ON


@pytest.mark.parametrize(
    ("model", "expected"), [("qwen4-max", ON), ("qwen3.7-plus", ON), ("llama-5", {})]
)
def test_the_nested_object_is_never_sent(model: str, expected: Json) -> None:
    assert knobs({"reasoning": {"enabled": True, "exclude": False}}, model) == expected
    assert knobs({"reasoning": {}}, model) == {}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, OFF),
        ({"chat_template_kwargs": {"enable_thinking": True}}, ON),
        ({"chat_template_kwargs": {"thinking": True}}, ON),
        (
            {"chat_template_kwargs": {"reasoning_effort": "low"}},
            {**ON, "thinking_budget": 4096},
        ),
        ({"think": True}, ON),
        ({"think": False}, OFF),
        ({"think": "low"}, {**ON, "thinking_budget": 4096}),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled"}}, ON),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 77}},
            {**ON, "thinking_budget": 77},
        ),
        ({"enable_reasoning": False}, OFF),
        ({"reasoning_budget": 0}, OFF),
        ({"reasoning_budget": -1}, {}),
        ({"thinking_token_budget": 88}, {"thinking_budget": 88}),
        ({"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}}, OFF),
        ({"extra_body": {"google": {"thinking_config": {"thinking_budget": -1}}}}, ON),
        (
            {"extra_body": {"google": {"thinking_config": {"thinking_budget": 800}}}},
            {"thinking_budget": 800},
        ),
        (
            {"google": {"thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": True}}},
            {**ON, "thinking_budget": 4096},
        ),
        ({"extra_body": {"enable_thinking": False}}, OFF),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, OFF),
        (
            {"extra_body": {"enable_thinking": True, "thinking_budget": 9}},
            {**ON, "thinking_budget": 9},
        ),
        # What the host itself understands goes first.
        ({"think": True, **OFF}, OFF),
        ({"think": False, "reasoning_effort": "high"}, ON),
        ({"include_reasoning": True, "separate_reasoning": True}, {}),
        ({"think": [1], "thinking": "x", "chat_template_kwargs": 5, "reasoning_budget": "z"}, {}),
    ],
    ids=str,
)
def test_the_switches_of_other_servers_are_honoured_and_not_sent(
    members: Json, expected: Json
) -> None:
    made = adapted(members, target_of("qwen3.7-plus"))

    after = sent(members, made)
    assert {name: after[name] for name in BOTH_WAYS & after.keys()} == expected
    foreign = [name for name in members if name not in BOTH_WAYS]
    assert not after.keys() & set(foreign)
    assert {f"{name}:dropped" for name in foreign} <= set(made.changed)


@pytest.mark.parametrize(
    ("model", "members", "param"),
    [
        ("qwen3-coder-plus", {"think": True}, "think"),
        ("qwq-plus", {"thinking": {"type": "disabled"}}, "thinking"),
        ("llama-5", {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ("qwen3.7-plus", {"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs"),
        ("qwen3.7-plus", {"include_reasoning": False}, "include_reasoning"),
        (
            "qwen3.7-plus",
            {"extra_body": {"google": {"thinking_config": {"include_thoughts": False}}}},
            "extra_body",
        ),
        (
            "qwen3.7-plus",
            {"google": {"thinking_config": {"thinking_budget": 5}, "cached_content": "x"}},
            "google",
        ),
        ("qwen3.7-plus", {"extra_body": {"enable_thinking": True, "other": 1}}, "extra_body"),
        ("qwq-plus", {"extra_body": {"enable_thinking": False}}, "extra_body"),
    ],
)
def test_a_switch_that_cannot_be_honoured_is_named_and_refused_when_strict(
    model: str, members: Json, param: str
) -> None:
    assert f"{param}:dropped" in adapted(members, target_of(model)).changed
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of(model), STRICT)
    assert caught.value.param == param


def test_minimax_has_a_switch_of_that_name() -> None:
    target = target_of("MiniMax-M3")
    assert adapted({"thinking": {"type": "disabled"}}, target, STRICT).changed == ()


def test_another_server_gets_its_own_switch() -> None:
    members: Json = {"chat_template_kwargs": {"enable_thinking": False}, "think": False}
    assert adapted(members, target_of("qwen3-8b", Family.OTHER)).changed == ()


@pytest.mark.parametrize("model", ["qwen4-max", "llama-5"])
def test_an_effort_for_a_model_that_is_not_known_goes_as_it_is(model: str) -> None:
    assert adapted({"reasoning_effort": "medium"}, target_of(model), STRICT).changed == ()
    assert knobs({"reasoning": {"effort": "medium"}}, model) == {"reasoning_effort": "medium"}


@pytest.mark.parametrize("model", [*SWITCHED, *TIERED, "llama-5"])
@pytest.mark.parametrize(
    "members",
    [{"reasoning_effort": "as you like"}, {"reasoning_effort": None}, {"enable_thinking": "yes"}],
    ids=str,
)
def test_what_nobody_understands_is_left_to_the_host(model: str, members: Json) -> None:
    assert adapted(members, target_of(model), STRICT).changed == ()


@pytest.mark.parametrize("model", [*SWITCHED, *TIERED, "qwen4-max", "deepseek-v4-pro"])
def test_the_name_of_the_model_may_ask_for_thinking(model: str) -> None:
    assert knobs({}, model, thinking=True) == ON
    assert knobs({}, model, thinking=False) == OFF
    # It is what a person picked from a list; the members are what the program always sends.
    assert knobs(OFF, model, thinking=True) == ON
    assert knobs({"reasoning_effort": "none"}, model, thinking=True) == ON
    assert knobs({"reasoning_effort": "high"}, model, thinking=False) == OFF


def test_and_an_effort_beside_it_says_how_much() -> None:
    assert knobs({"reasoning_effort": "low"}, "qwen3.8-max", thinking=True) == {
        "reasoning_effort": "low"
    }
    assert knobs({"reasoning_effort": "low"}, "qwen3.7-plus", thinking=True) == {
        **ON,
        "thinking_budget": 4096,
    }


def test_a_name_that_asks_in_vain_is_refused_when_strict() -> None:
    for model, thinking in (("qwen3-coder-plus", True), ("qwq-plus", False)):
        target = target_of(model, thinking=thinking)
        assert adapted({}, target).changed == ()
        with pytest.raises(BadRequest) as caught:
            adapted({}, target, STRICT)
        assert caught.value.param == "model"


@pytest.mark.parametrize("nulls", [{}, {"reasoning_effort": None, "reasoning": None}], ids=str)
def test_what_a_translation_asked_for_of_itself_is_not_missed(nulls: Json) -> None:
    """Completions switch thinking off unless the client sets it."""
    members: Json = {"messages": HELLO, "enable_thinking": False, **nulls}
    body = JsonObject(json.dumps(members).encode())
    asked = parse_request(body)
    added = parse_request(body, added=["enable_thinking"])

    made = adapt(added, target_of("qwq-plus"), STRICT, stream=True)

    assert "enable_thinking:dropped" in made.changed
    with pytest.raises(BadRequest) as caught:
        adapt(asked, target_of("qwq-plus"), STRICT, stream=True)
    assert caught.value.param == "enable_thinking"


def test_every_change_is_named() -> None:
    members: Json = {"reasoning_effort": "low"}

    made = adapted(members, target_of("qwen3.7-plus", Family.CODING_PLAN))

    assert difference(members, made).keys() == {entry.split(":")[0] for entry in made.changed}
    assert set(made.changed) == {
        "enable_thinking:true",
        "thinking_budget:4096",
        "reasoning_effort:dropped",
    }


@pytest.mark.parametrize("members", [{"extra_body": {"other": 1}}, {"google": 5}], ids=str)
def test_what_is_about_something_else_is_left_to_the_host(members: Json) -> None:
    made = adapted(members, target_of("qwen3.7-plus"), STRICT)

    assert made.changed == ()
