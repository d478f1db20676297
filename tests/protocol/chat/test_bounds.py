"""An answer has so many choices and tool calls, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream, Completion
from qwen_wsgi.protocol.chat.tool_calls import MOST_CALLS, MOST_CHOICES, ToolCalls


def chunk(index: int) -> dict[str, Any]:
    choice = {"index": index, "delta": {"role": "assistant", "content": "x"}}
    return {"id": "c", "choices": [{**choice, "finish_reason": None}]}


def test_the_choices_of_a_whole_answer_are_bounded() -> None:
    completion = Completion()
    for index in range(MOST_CHOICES):
        completion.add(chunk(index))
    with pytest.raises(AnswerTooLarge, match="128 choices"):
        completion.add(chunk(MOST_CHOICES))


def test_the_choices_of_a_stream_are_bounded() -> None:
    chunks = ChunkStream(hide_usage=False)
    with pytest.raises(AnswerTooLarge, match="128 choices"):
        for index in range(MOST_CHOICES + 1):
            chunks.feed(sse.render(chunk(index)))


def test_the_tool_calls_of_a_choice_are_bounded() -> None:
    calls = ToolCalls()
    for index in range(MOST_CALLS):
        calls.take({"index": index, "id": f"c{index}", "function": {"name": "f"}})
    with pytest.raises(AnswerTooLarge, match="tool calls"):
        calls.take({"index": MOST_CALLS, "id": "x", "function": {"name": "f"}})
