"""Summaries of long conversations: requested, written, and read again in the next turn."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.responses import compaction
from qwen_wsgi.protocol.responses.content import pack_thinking
from tests.protocol.responses.support import (
    INPUT_ITEMS,
    answered,
    body,
    chat,
    chunk,
    messages,
    request,
    types,
    usage_chunk,
)

TRIGGER = {"type": "compaction_trigger"}
USER = {"type": "message", "role": "user", "content": "Do it."}
CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": "done"}
TOOL = {"type": "function", "name": "f", "parameters": {}}
CHUNKS = [
    chunk({"role": "assistant", "reasoning_content": "hm"}),
    chunk({"content": "All "}),
    chunk({"content": "is "}),
    chunk({"content": "done."}),
    chunk({}, "stop"),
    usage_chunk(),
]


def summary_of(text: str) -> dict[str, Any]:
    return {"type": "compaction", "encrypted_content": compaction.packed(text)}


def test_a_trigger_at_the_end_requests_a_summary_without_tools() -> None:
    its = request([USER, CALL, OUTPUT, TRIGGER], tools=[TOOL], tool_choice="required")
    sent = chat([USER, CALL, OUTPUT, TRIGGER], tools=[TOOL], tool_choice="required")

    assert its.summarizes
    assert [each["role"] for each in sent["messages"]] == ["user", "assistant", "tool", "user"]
    assert sent["messages"][-1]["content"] == compaction.PROMPT
    assert sent.keys().isdisjoint({"tools", "tool_choice"})
    assert not request([USER]).summarizes


def test_the_answer_is_one_item_which_the_next_turn_reads() -> None:
    events, response = answered(CHUNKS, request([USER, TRIGGER]))
    (item,) = response["output"]

    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "output_item.done",
        "completed",
    ]
    INPUT_ITEMS.validate_python(item)
    later = messages([USER, item, {"type": "message", "role": "user", "content": "More."}])
    assert [each["role"] for each in later] == ["user", "user", "user"]
    assert later[1]["content"].endswith("]\n\nAll is done.")


def test_an_earlier_trigger_requests_nothing() -> None:
    its = request([USER, TRIGGER, summary_of("S"), USER])

    assert not its.summarizes
    assert len(its.chat.body["messages"]) == 3


def test_a_stored_conversation_is_as_short_as_its_last_summary_makes_it() -> None:
    history = [
        {**USER, "content": "one"},
        CALL,
        OUTPUT,
        summary_of("first"),
        CALL,
        OUTPUT,
        summary_of("second"),
        {"type": "message", "role": "assistant", "content": "yes"},
    ]
    found = messages("go on", history=history)

    assert [each["role"] for each in found] == ["user", "user", "assistant", "user"]
    assert found[0]["content"] == "one"
    assert found[1]["content"].endswith("second")


@pytest.mark.parametrize(
    "content", [None, "", 5, "gAAAA of OpenAI", pack_thinking("x"), "qwen-proxy-unencrypted-1:%"]
)
@pytest.mark.parametrize("kind", compaction.SUMMARIES)
def test_another_servers_summary_is_refused(kind: str, content: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        request([USER, {"type": kind, "encrypted_content": content}])
    assert caught.value.param == "input[1].encrypted_content"


@pytest.mark.parametrize("given", ["Do it.", [USER]])
def test_the_body_of_compact_becomes_a_request_with_a_trigger(given: Any) -> None:
    found = compaction.triggered(
        body(model="m", input=given, stream=True, tools=[TOOL], text={"format": {}}, store=True)
    )

    assert found["input"][-1] == TRIGGER
    assert found["input"][0]["content"] == "Do it."
    assert (found["stream"], found["store"]) == (False, False)
    assert set(found.names()) == {"model", "input", "stream", "store"}
