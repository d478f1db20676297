"""JSON formats: a schema if the model takes one, else a prompt; without thinking on old models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from tests.upstream.adapt.support import (
    HELLO,
    NAMED,
    STRICT,
    SYSTEM,
    TOOL,
    USER,
    Json,
    adapted,
    difference,
    part,
    sent,
    target_of,
)

SCHEMA: Json = {"type": "object", "properties": {"größe": {"type": "integer"}}}
BY_SCHEMA: Json = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
    }
}
OBJECT: Json = {"response_format": {"type": "json_object"}}
ASKED: list[Json] = [SYSTEM, {"role": "user", "content": "Say it in JSON"}]

TAKE_SCHEMAS = ["qwen3.8-max", "qwen3.8-max-0902", "qwen3.8-flash", "qwen3.7-plus"]
TAKE_SCHEMAS += ["qwen3.7-max", "qwen3.7-flash", "qwen3.7-plus-2026-05-26"]
TAKE_NONE = ["qwen3-coder-plus", "qwen-max", "deepseek-v4-pro", "glm-5.1", "coder-model"]
TAKE_NONE += ["qwen3.8-27b", "qwen-plus"]
#: Thinks unless told otherwise, and answers no JSON while it does.
OLD_THINKERS = ["qwen3.6-plus", "qwen3.5-flash", "qwen3-32b", "glm-5", "glm-4.7"]


@pytest.mark.parametrize("model", [*TAKE_SCHEMAS, "qwen4-max"])
def test_a_schema_stays_where_it_is_taken_or_nobody_knows(model: str) -> None:
    assert adapted(BY_SCHEMA, target_of(model), STRICT).changed == ()


@pytest.mark.parametrize("model", TAKE_NONE)
def test_elsewhere_it_is_said_in_words(model: str) -> None:
    made = adapted(BY_SCHEMA, target_of(model))

    compact = json.dumps(SCHEMA, ensure_ascii=False, separators=(",", ":"))
    text = "Be brief.\n\nAnswer with one JSON value that matches this JSON schema:\n" + compact
    assert difference(BY_SCHEMA, made) == {
        **OBJECT,
        "messages": [{"role": "system", "content": text}, USER],
    }
    assert made.changed == ("response_format:json_object", "messages:json-asked-for")
    with pytest.raises(BadRequest) as caught:
        adapted(BY_SCHEMA, target_of(model), STRICT)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("kind", ["image_url", "video_url", "video"])
def test_no_model_takes_a_schema_with_anything_but_text(kind: str) -> None:
    messages = [{"role": "user", "content": [part("What is it?"), {"type": kind, kind: {}}]}]
    members = {**BY_SCHEMA, "messages": messages}

    made = adapted(members, target_of("qwen3.7-plus"))

    assert sent(members, made)["response_format"] == OBJECT["response_format"]
    assert "JSON schema" in sent(members, made)["messages"][0]["content"]
    texts = {**BY_SCHEMA, "messages": [{"role": "user", "content": [part("What is it?")]}]}
    assert adapted(texts, target_of("qwen3.7-plus")).changed == ()


@pytest.mark.parametrize("described", [None, {}, {"schema": None}, {"schema": "x"}, 5], ids=str)
def test_a_schema_that_is_none_is_a_wish_for_json(described: Any) -> None:
    members: Json = {"response_format": {"type": "json_schema", "json_schema": described}}

    after = sent(members, adapted(members, target_of("qwen-max")))

    assert after["response_format"] == OBJECT["response_format"]
    assert after["messages"][0]["content"] == "Be brief.\n\nAnswer in JSON."


@pytest.mark.parametrize(
    ("messages", "first"),
    [
        (HELLO, {"role": "system", "content": "Be brief.\n\nAnswer in JSON."}),
        ([USER], {"role": "system", "content": "Answer in JSON."}),
        ([{"role": "system"}, USER], {"role": "system", "content": "Answer in JSON."}),
        (
            [{"role": "system", "content": [part("a", marked=True)]}, USER],
            {"role": "system", "content": [part("a", marked=True), part("Answer in JSON.")]},
        ),
        (
            [USER, {"role": "developer", "content": "a"}],
            {"role": "system", "content": "a\n\nAnswer in JSON."},
        ),
        # The host looks at what the system and the user say.
        (
            [USER, {"role": "assistant", "content": "json"}, USER],
            {"role": "system", "content": "Answer in JSON."},
        ),
    ],
    ids=str,
)
def test_the_prompt_must_say_json(messages: list[Json], first: Json) -> None:
    members = {**OBJECT, "messages": messages}

    made = adapted(members, target_of("some-new-model"), STRICT)

    assert sent(members, made)["messages"][0] == first
    assert "messages:json-asked-for" in made.changed


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "as json, please"},
        {"role": "user", "content": [part("x"), part("a Json object")]},
        {"role": "developer", "content": "JSON!"},
    ],
    ids=str,
)
def test_if_it_does_nothing_is_added(message: Json) -> None:
    members = {**OBJECT, "messages": [USER, message]}

    assert "messages:json-asked-for" not in adapted(members).changed


@pytest.mark.parametrize(
    "wanted", [None, {"type": "text"}, {"type": "xml"}, {}, "json_object", {"type": ["json"]}]
)
def test_any_other_format_is_left_to_the_host(wanted: Any) -> None:
    assert adapted({"response_format": wanted}, target_of("qwen3.6-plus"), STRICT).changed == ()


@pytest.mark.parametrize("model", OLD_THINKERS)
def test_an_old_model_does_not_think_while_it_writes_json(model: str) -> None:
    members = {**OBJECT, "messages": ASKED}

    assert difference(members, adapted(members, target_of(model), STRICT)) == {
        "enable_thinking": False
    }


@pytest.mark.parametrize("model", ["qwen-plus", "qwen3-max", *OLD_THINKERS])
@pytest.mark.parametrize(
    "asked", [{"enable_thinking": True}, {"reasoning_effort": "high"}], ids=str
)
def test_not_even_if_it_was_asked_to(model: str, asked: Json) -> None:
    members = {**OBJECT, **asked, "messages": ASKED}

    after = sent(members, adapted(members, target_of(model)))

    assert after == {**OBJECT, "messages": ASKED, "enable_thinking": False}
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of(model), STRICT)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("model", [*TAKE_SCHEMAS, "qwen3.8-27b", "deepseek-v4-pro", "qwq-plus"])
def test_newer_models_think_and_write_json(model: str) -> None:
    members = {**OBJECT, "enable_thinking": True, "messages": ASKED}

    assert adapted(members, target_of(model), STRICT).changed == ()


def test_where_thinking_is_off_by_default_it_need_not_be_switched_off() -> None:
    assert adapted({**OBJECT, "messages": ASKED}, target_of("qwen-plus"), STRICT).changed == ()


def test_json_and_a_forced_call_need_the_same() -> None:
    members = {**OBJECT, "messages": ASKED, "tools": [TOOL], "tool_choice": NAMED}
    members["parallel_tool_calls"] = False

    made = adapted({**members, "enable_thinking": True}, target_of("qwen3.6-plus"))

    assert sent({**members, "enable_thinking": True}, made) == {**members, "enable_thinking": False}
