"""Tool calls in the history whose arguments are not a JSON object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.translation.arguments import UNPARSED
from qwen_wsgi.sandbox import params as sandbox
from qwen_wsgi.upstream.adapt import adapt
from tests.kit.properties import examples
from tests.upstream.adapt.support import (
    HELLO,
    LAX,
    STRICT,
    USER,
    Json,
    adapted,
    part,
    request_of,
    sent,
    target_of,
)

NOTED = ("messages:arguments-made-json",)
ANSWER: Json = {"role": "tool", "tool_call_id": "1", "content": "42"}


def called(*arguments: Any, **rest: Any) -> Json:
    """An assistant's message with one call for each of the arguments."""
    calls = [
        {"id": str(at), "type": "function", "function": {"name": "look", "arguments": each}}
        for at, each in enumerate(arguments, 1)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls, **rest}


def wrapped(text: str) -> str:
    return json.dumps({UNPARSED: text}, ensure_ascii=False, separators=(",", ":"))


def arguments_of(messages: list[Json]) -> list[Any]:
    """The arguments that are sent."""
    members: Json = {"messages": messages}
    after = sent(members, adapted(members, options=STRICT))["messages"]
    return [
        call["function"]["arguments"] for each in after for call in each.get("tool_calls") or ()
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"path": "a.py", "content": "def f(',
        '{"path": "a.py"}}',
        "{'path': 'a.py'}",
        "a.py",
        "[1]",
        "5",
        "null",
        '{"at": NaN}',
        '{"at": ' * 100_000,
        '{"half": "\ud83d"',
    ],
    ids=lambda text: text[:20].encode("ascii", "replace").decode(),
)
def test_arguments_that_are_no_object_are_held_by_one(text: str) -> None:
    (held,) = arguments_of([USER, called(text), ANSWER])

    assert json.loads(held) == {UNPARSED: text}


@pytest.mark.parametrize("text", ["", " ", "\n\t", None])
def test_no_arguments_are_an_empty_object(text: Any) -> None:
    assert arguments_of([USER, called(text), ANSWER]) == ["{}"]


def test_arguments_that_are_missing_are_an_empty_object() -> None:
    message = called("")
    del message["tool_calls"][0]["function"]["arguments"]

    assert arguments_of([USER, message, ANSWER]) == ["{}"]


@pytest.mark.parametrize(
    ("given", "sent_on"),
    [
        ({"at": 1}, '{"at":1}'),
        ('"{\\"at\\": 1}"', '{"at": 1}'),
        (json.dumps(json.dumps('{"at": 1}')), '{"at": 1}'),
        ('""', "{}"),
        ([1, "é"], wrapped('[1,"é"]')),
        (5, wrapped("5")),
        (False, wrapped("false")),
        ('"plain"', wrapped('"plain"')),
    ],
    ids=str,
)
def test_an_object_is_unwrapped_and_anything_else_is_kept_as_a_text(
    given: Any, sent_on: str
) -> None:
    assert arguments_of([USER, called(given), ANSWER]) == [sent_on]


def test_calls_that_are_well_keep_every_character_and_their_message() -> None:
    spaced = '{ "at" : 1.0,\n"to":"\\u00e9" }'
    messages = [USER, called(spaced), ANSWER, called(spaced, "{", reasoning_content="hm"), ANSWER]
    request = request_of(messages=messages)
    made = adapt(request, target_of(), LAX, stream=True)

    assert made.changed == NOTED
    after, before = made.changes["messages"], request.body["messages"]
    assert [new is old for new, old in zip(after, before, strict=True)] == [
        *(True, True, True),
        *(False, True),
    ]
    assert after[3]["tool_calls"][0] is before[3]["tool_calls"][0]
    assert after[3] == called(spaced, json.dumps({UNPARSED: "{"}, separators=(",", ":"))) | {
        "reasoning_content": "hm"
    }
    assert before == messages


def test_a_history_that_is_well_is_not_rendered_anew() -> None:
    messages = [*HELLO, called('{"at": 1}', "{}"), ANSWER, {**ANSWER, "tool_call_id": "2"}]

    made = adapted({"messages": messages})

    assert (made.changed, dict(made.changes)) == ((), {})


def test_calls_of_the_old_form_as_well() -> None:
    function = {"name": "look", "arguments": '{"at": '}
    messages = [
        USER,
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function", "name": "look", "content": "42"},
    ]

    (held,) = arguments_of(messages)

    assert json.loads(held) == {UNPARSED: '{"at": '}


@pytest.mark.parametrize(
    "calls",
    [
        "x",
        {"a": 1},
        ["x", None, {}],
        [{"function": None}, {"function": "x"}],
        [{"type": "custom", "custom": {"input": "x"}}],
    ],
    ids=str,
)
def test_what_is_no_call_is_left_to_the_host(calls: Any) -> None:
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": calls}]

    assert adapted({"messages": messages}).changed == ()


def test_a_call_with_a_plain_text_is_one_of_a_function() -> None:
    custom = {"id": "1", "type": "custom", "custom": {"name": "look", "input": "x"}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [custom]}, ANSWER]
    members: Json = {"messages": messages}

    made = adapted(members, options=STRICT)

    assert made.changed == ("messages:custom-as-function",)
    assert sent(members, made)["messages"][1]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"input":"x"}'}}
    ]


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"tool_calls": called("{}")["tool_calls"]}, ""),
        ({"content": None, "refusal": "No."}, "No."),
        ({"refusal": "No."}, "No."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, [part("No.")]),
    ],
    ids=str,
)
def test_the_assistant_has_the_content_that_hosts_require(message: Json, content: Any) -> None:
    members: Json = {"model": "x", "messages": [USER, {"role": "assistant", **message}, ANSWER]}

    made = adapted(members, options=STRICT)

    after = sent(members, made)
    assert after["messages"][1]["content"] == content
    assert "refusal" not in after["messages"][1]
    assert made.changed == ("messages:content-added",)
    assert sandbox.refusal_for(after) is None


def test_only_calls_of_the_assistant_are_looked_at() -> None:
    assert adapted({"messages": [{**USER, **{"tool_calls": called("{")["tool_calls"]}}]}) == (
        adapted({"messages": [USER]})
    )


def test_another_server_gets_what_the_client_sent() -> None:
    messages = [USER, called("{"), ANSWER]

    assert adapted({"messages": messages}, target_of("llama-4", Family.OTHER)).changed == ()


ARGUMENTS = st.one_of(
    st.text(max_size=12),
    st.text(alphabet='{}[]":,a1 \\', max_size=10),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2).map(json.dumps),
)


@examples(200)
@given(arguments=st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_the_host_takes_whatever_a_model_wrote(arguments: list[str]) -> None:
    answers = [{**ANSWER, "tool_call_id": str(at)} for at in range(1, len(arguments) + 1)]
    members: Json = {"model": "qwen3.7-plus", "messages": [USER, called(*arguments), *answers]}

    made = adapted(members)

    body = sent(members, made)
    assert sandbox.refusal_for(body) is None
    before = sandbox.refusal_for({**members, "stream": True})
    assert made.changed or before is None
    for text, call in zip(arguments, body["messages"][1]["tool_calls"], strict=True):
        held = json.loads(call["function"]["arguments"])
        kept = call["function"]["arguments"]
        unwrapped = text == json.dumps(kept) or kept in text
        assert kept == text or unwrapped or held in ({}, {UNPARSED: text})
