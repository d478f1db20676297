"""Requests as a coding agent sends them: tens of kilobytes, with all that it makes use of.

tests/corpus/messages holds them; what they say was composed for this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import tokens
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.messages import parse_prompt, parse_request
from qwen_wsgi.protocol.messages.history import FAILED, UNANSWERED
from tests.kit.properties import examples

CORPUS = Path(__file__).parents[2] / "corpus" / "messages"
FILES = sorted(CORPUS.glob("*.json"))

#: What becomes of each conversation: the role, and what the message has.
OUTLINES = {
    "001-a-failed-edit": [
        "system 2 marked",
        "user",
        "assistant thinking toolu_01A toolu_01B toolu_01C",
        "tool toolu_01A",
        "tool toolu_01B",
        "tool toolu_01C",
        "assistant thinking toolu_01D",
        "tool toolu_01D",
        "assistant toolu_01E",
        "tool toolu_01E",
        "user 1 marked",
    ],
    "002-an-interrupted-turn": [
        "system 2 marked",
        "user",
        "assistant toolu_02A toolu_02B toolu_02C",
        "tool toolu_02A",
        "tool toolu_02B",
        "tool toolu_02C",
        "user 1 marked",
        "assistant toolu_02D",
        "tool toolu_02D",
    ],
    "003-images-and-foreign-thinking": [
        "system 2 marked",
        "user 1 images",
        "assistant thinking toolu_03A toolu_03B",
        "tool toolu_03A",
        "tool toolu_03B 1 marked",
        "user 1 images",
        "assistant thinking toolu_03C",
        "tool toolu_03C",
        "user 1 marked",
    ],
}


def outline(message: dict[str, Any]) -> str:
    content = message["content"]
    parts = content if isinstance(content, list) else []
    marked = sum("cache_control" in part for part in parts)
    images = sum(part["type"] == "image_url" for part in parts)
    words = [message["role"]]
    words += ["thinking"] * ("reasoning_content" in message)
    words += [call["id"] for call in message.get("tool_calls", ())]
    words += [id] if (id := message.get("tool_call_id")) else []
    words += [f"{images} images"] * bool(images) + [f"{marked} marked"] * bool(marked)
    return " ".join(words)


def translated(path: Path) -> dict[str, Any]:
    request = parse_request(JsonObject(path.read_bytes()))
    value: dict[str, Any] = json.loads(request.chat.body.render())
    return value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_request_of_the_corpus_is_one(path: Path) -> None:
    """By the official SDK's own types."""
    assert 40_000 <= len(path.read_bytes()) <= 60_000
    adapter = TypeAdapter(MessageCreateParamsStreaming)
    assert adapter.validate_python(json.loads(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_outline_of_a_conversation(path: Path) -> None:
    assert [outline(each) for each in translated(path)["messages"]] == OUTLINES[path.stem]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_text_of_the_client_arrives_but_for_the_billing(path: Path) -> None:
    request, sent = json.loads(path.read_text()), json.dumps(translated(path), ensure_ascii=False)
    gone = 0
    for text in texts_of(request):
        if text.startswith("x-anthropic-billing-header"):
            gone += 1
        else:
            assert json.dumps(text, ensure_ascii=False)[1:-1] in sent
    assert gone == 1
    assert "x-anthropic-billing-header" not in sent
    assert "encrypted_content" not in sent


def texts_of(value: Any) -> Iterator[str]:
    """What is told to a model in some value, wherever it stands."""
    for each in value if isinstance(value, list) else ():
        yield from texts_of(each)
    if isinstance(value, dict):
        for name, each in value.items():
            if name in ("text", "thinking", "description") and isinstance(each, str):
                yield each
            elif name != "properties":
                yield from texts_of(each)


def test_what_an_agent_should_know_is_told() -> None:
    failed = translated(CORPUS / "001-a-failed-edit.json")["messages"]
    assert failed[7]["content"].startswith(FAILED)
    broken = translated(CORPUS / "002-an-interrupted-turn.json")["messages"]
    assert broken[5]["content"] == broken[8]["content"] == UNANSWERED
    shown = translated(CORPUS / "003-images-and-foreign-thinking.json")["messages"]
    assert shown[5]["content"][-1]["text"].startswith("<system-reminder>\nThe user switched")


def test_the_parameters_of_the_corpus() -> None:
    rest = [
        {name: value for name, value in translated(path).items() if name not in ("messages",)}
        for path in FILES
    ]
    assert [each["enable_thinking"] for each in rest] == [True, False, True]
    assert [each.get("reasoning_effort") for each in rest] == ["medium", None, None]
    assert rest[2]["thinking_budget"] == 10_000
    assert rest[2]["parallel_tool_calls"] is False
    assert rest[2]["tools"][-1] == {"type": "web_search"}
    for each in rest:
        assert each["stream_options"] == {"include_usage": True}
        assert not {"metadata", "context_management", "output_config", "max_tokens"} & set(each)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tokens_are_counted_in_the_range_of_such_texts(path: Path) -> None:
    body = JsonObject(path.read_bytes())
    counted = tokens.estimate(parse_prompt(body))

    assert counted == tokens.estimate(parse_request(body).chat.body)
    assert len(path.read_text()) / 6 < counted < len(path.read_text()) / 2.5


# --- nothing makes a fault ----------------------------------------------------------------------

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
)
KINDS = st.sampled_from(
    [
        *("text", "image", "document", "thinking", "redacted_thinking", "tool_use", "tool_result"),
        *("search_result", "server_tool_use", "web_search_tool_result", "base64", "url", "content"),
        *("auto", "any", "tool", "none", "enabled", "adaptive", "json_schema", "web_search_1"),
    ]
)
MEMBERS = st.sampled_from(
    [
        *("type", "text", "source", "content", "thinking", "id", "name", "input", "tool_use_id"),
        *("is_error", "cache_control", "media_type", "data", "url", "title", "role"),
        *("input_schema", "budget_tokens", "format", "effort", "schema"),
    ]
)


def below(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4)


VALUES = st.recursive(ATOMS | KINDS, below, max_leaves=10)
TOP = st.sampled_from(
    [
        *("model", "messages", "system", "tools", "tool_choice", "max_tokens", "stop_sequences"),
        *("temperature", "top_k", "thinking", "output_config", "output_format", "stream"),
        *("metadata", "container", "stream_options", "service_tier", "seed"),
    ]
)
BLOCKS = st.dictionaries(MEMBERS, VALUES, max_size=4).flatmap(
    lambda value: KINDS.map(lambda kind: {**value, "type": kind})
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system"]) | VALUES,
            "content": st.lists(BLOCKS, max_size=3) | VALUES,
        }
    ),
    max_size=4,
)


@examples(300)
@given(
    st.dictionaries(TOP, VALUES, max_size=6),
    MESSAGES | VALUES,
    st.booleans(),
)
def test_any_request_is_taken_or_refused(
    members: dict[str, Any], messages: Any, strict: bool
) -> None:
    body = JsonObject(json.dumps({"max_tokens": 5, **members, "messages": messages}).encode())
    try:
        request = parse_request(body, strict=strict)
    except ApiError as error:
        assert error.status == 400
        assert error.message
    else:
        assert tokens.estimate(request.chat.body) > 0
        for entry in request.changed:
            assert entry.isascii()
            assert entry.isprintable()
            assert "," not in entry


@examples(60)
@given(st.data())
def test_a_damaged_request_of_the_corpus_is_taken_or_refused(data: st.DataObject) -> None:
    """One value anywhere in it is another one."""
    request = json.loads(data.draw(st.sampled_from(FILES)).read_text())
    place = request
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(VALUES)
            break
        place = place[key]
    try:
        parse_request(JsonObject(json.dumps(request).encode()))
    except ApiError as error:
        assert error.status == 400
