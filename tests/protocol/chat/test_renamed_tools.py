"""Calls of tools that were renamed for the host have the client's names."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.renamed_tools import (
    RenamedChunkStream,
    RenamedLegacyChunkStream,
    completion,
)

NAMES = {"search_12345678": "search"}


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": choices}


def call(name: str, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": 0, "id": "x", "type": "function", "function": function}


CHUNKS = [
    chunk({"role": "assistant", "content": "a"}),
    chunk({"content": 'says "search_12345678"'}),
    chunk({"tool_calls": [call("search_12345678", "")]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
    chunk({}, "tool_calls"),
]


@pytest.mark.parametrize("normalize", [True, False])
def test_a_streamed_call_has_the_clients_name(normalize: bool) -> None:
    stream = RenamedChunkStream(names=NAMES, hide_usage=True, normalize=normalize)

    sent = b"".join(stream.feed(sse.render(each)) for each in CHUNKS)
    sent += stream.feed(sse.DONE) + stream.end()

    seen = [sse.parse(event)["choices"][0]["delta"] for event in sse.events(sent)]
    texts = "".join(each.get("content") or "" for each in seen)
    assert texts == 'asays "search_12345678"'
    functions = [each["tool_calls"][0]["function"] for each in seen if each.get("tool_calls")]
    assert [each["name"] for each in functions if each.get("name")] == ["search"]
    assert "".join(each.get("arguments", "") for each in functions) == "{}"
    assert stream.complete


def test_so_has_one_in_the_legacy_form() -> None:
    stream = RenamedLegacyChunkStream(names=NAMES, hide_usage=True)

    sent = b"".join(stream.feed(sse.render(each)) for each in CHUNKS)

    seen = [sse.parse(event)["choices"][0]["delta"] for event in sse.events(sent)]
    called = [each["function_call"] for each in seen if each.get("function_call")]
    assert called[0]["name"] == "search"


def test_a_whole_call_has_the_clients_name() -> None:
    message = {"role": "assistant", "tool_calls": [call("search_12345678"), call("other")]}
    value = {"choices": [{"index": 0, "message": message}]}

    calls = completion(value, NAMES)["choices"][0]["message"]["tool_calls"]

    assert [each["function"]["name"] for each in calls] == ["search", "other"]


@pytest.mark.parametrize(
    "value", [{}, {"choices": "x"}, {"choices": [None, {"message": {"tool_calls": [{}]}}]}], ids=str
)
def test_what_has_no_such_call_is_the_same_object(value: dict[str, Any]) -> None:
    assert completion(value, NAMES) is value
