"""Calls of functions that stand for a client's custom tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._models import construct_type
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import Completion
from qwen_wsgi.protocol.chat.renamed_tools import (
    CustomChunkStream,
    WholeCustomStream,
    completion,
)
from tests.kit.properties import examples
from tests.kit.quirks import STYLES, calls_chunk, chunk, cut, fed, fragment, in_style, stream_of

PATCH = '*** Begin\n "é" \\ 中\U0001f600'
ARGUMENTS = json.dumps({"input": PATCH}, ensure_ascii=False)
CUSTOMS = frozenset({"apply_patch", "search_12345678"})
NAMES = {"search_12345678": "search"}


def streamed(*chunks: dict[str, Any], normalize: bool = True) -> list[dict[str, Any]]:
    stream = CustomChunkStream(names=NAMES, customs=CUSTOMS, hide_usage=True, normalize=normalize)
    out = fed(stream, [stream_of(*chunks, sse.DONE)])
    assert stream.complete
    values = [sse.parse(event) for event in sse.events(out)]
    for value in values:
        # The SDK's types of chunks do not have custom calls yet, but it passes them on.
        chunk = construct_type(type_=ChatCompletionChunk, value=value)
        assert isinstance(chunk, ChatCompletionChunk)
    return values


def calls_of(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Assemble the calls as a client does."""
    calls: dict[int, dict[str, Any]] = {}
    for value in values:
        for piece in value["choices"][0]["delta"].get("tool_calls") or ():
            call = calls.setdefault(piece["index"], {"text": ""})
            kind = "custom" if "custom" in piece else "function"
            inner = piece[kind]
            call["text"] += inner["input" if kind == "custom" else "arguments"]
            call |= {name: piece[name] for name in ("id", "type") if name in piece}
            if "name" in inner:
                assert "name" not in call
                call["name"] = inner["name"]
            assert call["type"] == kind
    return [calls[index] for index in sorted(calls)]


def pieces_of(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_streamed_call_is_a_custom_one(size: int, normalize: bool) -> None:
    first = fragment(0, "call_a", "apply_patch", "")
    others = [fragment(0, "", None, each) for each in pieces_of(ARGUMENTS, size)]
    chunks = [calls_chunk(each) for each in (first, *others)]

    values = streamed(
        chunk({"content": "hm"}), *chunks, chunk({}, "tool_calls"), normalize=normalize
    )

    call = {"id": "call_a", "type": "custom", "name": "apply_patch", "text": PATCH}
    assert calls_of(values) == [call]
    finishes = [value["choices"][0]["finish_reason"] for value in values]
    assert [each for each in finishes if each] == ["tool_calls"]


def test_other_calls_stay_functions_and_names_are_the_clients() -> None:
    values = streamed(
        calls_chunk(fragment(0, "a", "look", '{"a":1}'), fragment(1, "b", "search_12345678", "")),
        calls_chunk(fragment(1, "", None, ARGUMENTS)),
        chunk({}, "tool_calls"),
    )

    assert calls_of(values) == [
        {"id": "a", "type": "function", "name": "look", "text": '{"a":1}'},
        {"id": "b", "type": "custom", "name": "search", "text": PATCH},
    ]


@pytest.mark.parametrize(
    ("arguments", "finish", "expected"),
    [
        ("", "tool_calls", ""),
        ('{"a": 1, "input": "x"}', "tool_calls", "x"),
        ('{"patch": "x"}', "stop", '{"patch": "x"}'),
        ('{"input": "cut', "length", "cut"),
        ('{"inp', "length", '{"inp'),
    ],
)
def test_the_rest_of_a_text_comes_with_the_finish(
    arguments: str, finish: str, expected: str
) -> None:
    call = calls_chunk(fragment(0, "a", "apply_patch", arguments))
    alone = streamed(call, chunk({}, finish))
    with_finish = streamed({**call, "choices": [{**call["choices"][0], "finish_reason": finish}]})

    assert [each["text"] for each in calls_of(alone)] == [expected]
    assert [each["text"] for each in calls_of(with_finish)] == [expected]


@examples(80)
@given(
    st.sampled_from(sorted(STYLES)),
    st.lists(st.tuples(st.sampled_from(["apply_patch", "look"]), st.text(max_size=8)), min_size=1),
    st.data(),
)
def test_streamed_and_whole_calls_are_the_same(
    style: str, given_: list[tuple[str, str]], data: st.DataObject
) -> None:
    calls = [
        (f"call_{number}", name, json.dumps({"input": text}))
        for number, (name, text) in enumerate(given_)
    ]
    chunks = []
    for number, call in enumerate(calls):
        pieces = data.draw(cut(call[2]))
        chunks += [calls_chunk(each) for each in in_style(style, number, call, pieces)]
    chunks.append(chunk({}, "tool_calls"))

    shown = calls_of(streamed(*chunks))

    stream = WholeCustomStream(names=NAMES, customs=CUSTOMS, hide_usage=True)
    whole = Completion()
    for event in sse.events(fed(stream, [stream_of(*chunks, sse.DONE)])):
        whole.add(sse.parse(event))
    value = stream.turned_back(whole.render(id="c", model="m", created=1))
    ChatCompletion.model_validate(value)
    found = []
    for call in value["choices"][0]["message"]["tool_calls"]:
        inner = call[call["type"]]
        text = inner["input" if call["type"] == "custom" else "arguments"]
        found.append({**{n: call[n] for n in ("id", "type")}, "name": inner["name"], "text": text})
    assert [{**each} for each in shown] == found


def test_a_whole_call_is_a_custom_one() -> None:
    function = {"name": "apply_patch", "arguments": ARGUMENTS}
    call = {"id": "a", "type": "function", "function": function}
    value = {"choices": [{"index": 0, "message": {"tool_calls": [call]}}]}

    (turned,) = completion(value, {}, CUSTOMS)["choices"][0]["message"]["tool_calls"]

    assert turned == {
        "id": "a",
        "type": "custom",
        "custom": {"name": "apply_patch", "input": PATCH},
    }
    assert completion(value, {}, {"other"}) is value
