"""The estimate of tokens: close for usual texts, and a number for any value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_wsgi.protocol import tokens
from qwen_wsgi.protocol.json_object import JsonObject

#: Texts, and how many tokens the vocabulary in Alibaba's package `dashscope` makes of them.
KNOWN = {
    "prose": (
        "The ledger is written by whoever closes first. When two workers close at the sam"
        "e time, the second one waits, reads what is there, and appends its own line; not"
        "hing is ever rewritten, so a crash in the middle costs one line at most.",
        52,
    ),
    "code": (
        'def settle(draft: Draft, *, limit: int = 40) -> None:\n    """Apply the rules in '
        'order."""\n    for rule in RULES:\n        if rule.fits(draft) and draft.count < l'
        'imit:\n            draft.put(rule.name, rule.value(draft), "settled")\n    return '
        "None\n",
        66,
    ),
    "json": (
        '{"type": "object", "properties": {"file_path": {"type": "string", "description":'
        ' "absolute path"}, "offset": {"type": "integer"}}, "required": ["file_path"], "a'
        'dditionalProperties": false}',
        49,
    ),
    "chinese": (
        "请把这个函数改写成异步版本，并且保证在网络中断时能够自动重试三次，每次等待的时间加倍。",
        26,
    ),
    "japanese": (
        "この関数を非同期に書き換えて、ネットワークが切れたときは三回まで自動的に再試行してください。",
        27,
    ),
    "korean": (
        "이 함수를 비동기로 바꾸고 네트워크가 끊기면 세 번까지 자동으로 다시 시도하게 해 주세요.",
        35,
    ),
    "russian": (
        "Перепишите эту функцию асинхронно и повторяйте запрос до трёх раз, если соединен"
        "ие прервалось.",
        32,
    ),
    "german": (
        "Schreiben Sie diese Funktion bitte asynchron und wiederholen Sie die Anfrage bis"
        " zu dreimal, falls die Verbindung während der Übertragung abbricht.",
        34,
    ),
    "digits": ("2026-11-20T10:15:30.123456 1763633730 0x7f3a9c 99.97% 192.168.10.254:8080", 73),
}


def request(content: Any, **rest: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **rest}


@pytest.mark.parametrize("kind", KNOWN)
def test_texts_are_counted_within_the_margin(kind: str) -> None:
    text, count = KNOWN[kind]
    margin = 0.12 if kind in ("prose", "code", "json") else 0.2

    assert abs(tokens.of_text(text) - count) <= margin * count


def test_nothing_is_no_token() -> None:
    assert tokens.of_text("") == 0


def test_a_dict_and_a_json_object_count_alike() -> None:
    value = request("How are you?", tools=[{"type": "function", "function": {"name": "f"}}])

    assert tokens.estimate(value) == tokens.estimate(JsonObject(json.dumps(value).encode()))


def test_each_thing_in_a_request_counts() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "read", "arguments": '{"a": 1}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 90_000}}
    smallest = tokens.estimate(request("Hi"))
    answered = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "done"},
        ]
    }

    assert 4 <= smallest <= 20
    assert tokens.estimate(request([{"type": "text", "text": "Hi"}])) == smallest
    assert smallest + 20 < tokens.estimate(answered) < smallest + 100
    assert 500 < tokens.estimate(request([image])) < 3_000
    assert tokens.estimate(request([{"type": "input_audio"}])) > 500
    tools = [{"type": "function", "function": {"name": "read", "description": "Reads. " * 40}}]
    assert tokens.estimate(request("Hi", tools=tools)) > smallest + 150


def test_thinking_of_the_past_is_not_counted() -> None:
    plain = {"role": "assistant", "content": "Yes."}
    thought = {**plain, "reasoning_content": "Hm. " * 100}

    assert tokens.estimate({"messages": [plain]}) == tokens.estimate({"messages": [thought]})


USER = {"role": "user", "content": "Hello"}
YES = {"role": "assistant", "content": "Yes."}


def keys(*messages: Any, seed: str = "m", **more: Any) -> list[bytes]:
    return tokens.beginnings({"messages": list(messages), **more}, seed)


def test_a_conversation_is_known_by_each_of_its_beginnings() -> None:
    assert keys(USER, YES, USER)[:2] == keys(USER, YES)
    assert len(set(keys(USER, USER, USER))) == 3
    assert keys() == []


@pytest.mark.parametrize(
    "same",
    [
        {**YES, "reasoning_content": "Hm."},
        {**YES, "content": [{"type": "text", "text": "Yes.", "cache_control": {}}]},
    ],
)
def test_thinking_and_marks_make_no_difference(same: Any) -> None:
    assert keys(same) == keys(YES)


@pytest.mark.parametrize(
    "other",
    [
        {**YES, "role": "user"},
        {**YES, "content": "Yes"},
        {**YES, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {**YES, "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {**YES, "content": "Yes.\ud800"},
    ],
)
def test_all_that_the_model_sees_makes_a_difference(other: Any) -> None:
    assert keys(other) != keys(YES)
    assert keys(YES, tools=[{"type": "function"}]) != keys(YES)
    assert keys(YES, seed="n") != keys(YES)


def test_only_what_was_added_is_estimated() -> None:
    whole = tokens.estimate({"messages": [USER, YES, USER]})

    assert tokens.estimate({"messages": [USER]}) + tokens.estimate_added(
        {"messages": [USER, YES, USER]}, 1
    ) == (whole)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "tool_calls", "function"]), inner
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_anything_has_a_number(messages: Any, tools: Any) -> None:
    assert tokens.estimate({"messages": messages, "tools": tools}) >= 1
    found = tokens.beginnings({"messages": messages, "tools": tools})
    assert {len(key) for key in found} <= {tokens.KEY_BYTES}


@settings(deadline=None)
@given(st.text(), st.text())
def test_more_text_is_not_fewer_tokens(one: str, other: str) -> None:
    assert tokens.of_text(one + "\n" + other) + 1 >= tokens.of_text(one)


def quick(content: Any, **members: Any) -> int:
    body = {"messages": [{"role": "user", "content": content}], **members}
    return tokens.quick(JsonObject(json.dumps(body, ensure_ascii=False).encode()))


@pytest.mark.parametrize("name", KNOWN)
def test_the_quick_estimate_is_of_the_right_size(name: str) -> None:
    text, count = KNOWN[name]

    assert 0.25 * count <= quick(text * 20) / 20 <= 2.2 * count


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}},
        {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}},
        {"type": "video", "video": ["data:image/png;base64," + "A" * 200_000] * 2},
        {"type": "file", "file": {"file_data": "A" * 400_000, "filename": "a.pdf"}},
        {"type": "odd", "odd": "data:;base64," + "A" * 400_000, "n": 5},
    ],
    ids=lambda part: part["type"],
)
def test_media_are_not_estimated_by_their_bytes(part: dict[str, Any]) -> None:
    assert 900 < quick([part, {"type": "text", "text": "What is it?"}]) < 2200


def test_a_text_that_speaks_of_media_is_estimated_by_its_bytes() -> None:
    assert quick([{"type": "text", "text": ";base64," * 1000}]) > 1900
