"""Requests of a coding agent like Codex, at their real size: what the chat has in the end.

The corpus is made up; its form is that of Codex's requests in the autumn of 2026.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses import ResponsesRequest, parse_request, whole
from qwen_wsgi.protocol.responses.conversation import INTERRUPTED
from tests.protocol.responses.support import EVENTS, ID, MODEL, answered, call, chunk, usage_chunk

CORPUS = Path(__file__).parents[2] / "corpus" / "responses"
NAMES = sorted(path.stem for path in CORPUS.glob("*.json"))


def read(name: str) -> tuple[dict[str, Any], ResponsesRequest]:
    raw = (CORPUS / f"{name}.json").read_bytes()
    return json.loads(raw), parse_request(JsonObject(raw), seed=ID)


def messages(its: ResponsesRequest) -> list[dict[str, Any]]:
    return list(its.chat.body["messages"])


def roles(its: ResponsesRequest) -> str:
    """The roles in order, by their first letters; of an assistant with calls the number of them."""
    letters = {"system": "s", "developer": "d", "user": "u", "assistant": "a", "tool": "t"}
    return " ".join(
        letters[each["role"]] + (str(len(each["tool_calls"])) if "tool_calls" in each else "")
        for each in messages(its)
    )


def test_the_corpus_is_there() -> None:
    assert len(NAMES) == 4
    assert all(40_000 <= (CORPUS / f"{name}.json").stat().st_size <= 60_000 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_for_all(name: str) -> None:
    raw, its = read(name)
    encoded = messages(its)
    assert encoded[0] == {"role": "system", "content": raw["instructions"]}
    assert its.chat.stream and its.chat.wants_usage and not its.store and its.packs_thinking
    assert its.chat.body["reasoning_effort"] == "medium"
    assert its.chat.body["parallel_tool_calls"] is True
    assert its.chat.body["prompt_cache_key"] == raw["prompt_cache_key"]
    assert "client_metadata:dropped" in its.changed
    waiting: list[str] = []
    for each in encoded:
        if each["role"] == "tool":
            assert each["tool_call_id"] == waiting.pop(0)
            assert isinstance(each["content"], str)
        else:
            assert waiting == []  # every answer stands directly behind its call
            waiting = [one["id"] for one in each.get("tool_calls", ())]
    calls = [one for each in encoded for one in each.get("tool_calls", ())]
    assert all(isinstance(json.loads(one["function"]["arguments"]), dict) for one in calls)
    assert len({item["id"] for item in its.input_items}) == len(raw["input"])


@pytest.mark.parametrize("name", NAMES)
def test_every_one_can_be_answered(name: str) -> None:
    raw, its = read(name)
    chunks = [
        chunk({"reasoning_content": "Hm."}),
        chunk({"content": "Yes."}),
        chunk(call("", id="call_z", name="apply_patch")),
        chunk(call('{"input":"=== patch\\n=== end\\n"}')),
        chunk({}, "tool_calls"),
        usage_chunk(),
    ]
    events, response = answered(chunks, its)
    assert [item["type"] for item in response["output"]] == [
        *("reasoning", "message", "custom_tool_call")
    ]
    assert response["output"][2]["input"] == "=== patch\n=== end\n"
    assert response["tools"] == raw["tools"]
    assert EVENTS.validate_python(events[0]).response.instructions == raw["instructions"]
    last = {"role": "assistant", "content": None, "refusal": None}
    completion = {"choices": [{"index": 0, "message": last, "finish_reason": "stop"}]}
    assert whole(its, completion, id=ID, created=7, model=MODEL)["output"] == []


def test_a_patch_and_parallel_calls() -> None:
    raw, its = read("001-a-patch-and-parallel-calls")
    assert roles(its) == "s d u u a2 t t a1 t a1 t a1 t a1 t a u"
    encoded = messages(its)
    first, second, third = encoded[4], encoded[7], encoded[9]
    assert first["content"] == "I look for where Dunmore is read."
    assert first["reasoning_content"].startswith("**Looking for the reader**")
    assert second["reasoning_content"] == "Three steps will do: a test, the reader, the tables."
    patch = next(item for item in raw["input"] if item["type"] == "custom_tool_call")
    function = third["tool_calls"][0]["function"]
    assert function["name"] == "apply_patch"
    assert json.loads(function["arguments"]) == {"input": patch["input"]}
    assert [each["function"]["name"] for each in its.chat.body["tools"]] == [
        *("shell", "update_plan", "view_image", "apply_patch")
    ]
    assert set(its.changed) == {
        *("tools:grammar-as-text", "tools:web_search-dropped", "client_metadata:dropped")
    }


def test_an_interrupted_turn() -> None:
    _, its = read("002-an-interrupted-turn")
    assert roles(its) == "s u u a3 t t t u u u a1 t u a1 t a u"
    encoded = messages(its)
    assert [each["content"] == INTERRUPTED for each in encoded[4:7]] == [True, False, True]
    assert encoded[7]["content"].startswith("<turn_aborted>")
    # The thinking of the turn that said nothing is gone.
    assert encoded[10]["reasoning_content"] == "Only the tests of Marl Basin, no mypy."
    assert encoded[12]["content"] == "(still there?)"
    assert "input:interrupted-call-answered" in its.changed


def test_images() -> None:
    raw, its = read("003-images")
    assert roles(its) == "s u u a1 t a2 t t u a u"
    encoded = messages(its)
    image = raw["input"][1]["content"][1]["image_url"]
    assert [part["type"] for part in encoded[2]["content"]] == ["text", "image_url", "text", "text"]
    assert encoded[2]["content"][1] == {"type": "image_url", "image_url": {"url": image}}
    assert encoded[3]["tool_calls"][0]["function"]["name"] == "local_shell"
    assert encoded[3]["reasoning_content"].endswith("The step is at noon.")
    assert encoded[6]["content"] == "[See the next message.]"
    assert encoded[7]["content"].endswith("\n(exit code 0)")
    shown = encoded[8]["content"]
    assert shown[0]["text"] == "[Output of view_image, call call_c2]"
    assert shown[1]["image_url"]["detail"] == "high"
    assert shown[1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_namespaces() -> None:
    raw, its = read("004-namespaces")
    assert roles(its) == "s d u u a1 t a4 t t t t a1 t a u"
    names = [each["function"]["name"] for each in its.chat.body["tools"]]
    assert names == [
        *("shell", "apply_patch", "mcp__harbour__read_gauge", "mcp__harbour__list_gauges")
    ]
    assert its.chat.body["tool_choice"] == "auto"
    called = [
        one["function"]["name"] for each in messages(its) for one in each.get("tool_calls", ())
    ]
    assert called[:2] == ["mcp__harbour__list_gauges", "mcp__harbour__read_gauge"]
    # A tool that is not allowed in this turn had the same name in an earlier one.
    pilot = its.names.tool_of(called[-1])
    assert (pilot.name, pilot.namespace) == ("search", raw["tools"][-1]["name"])
    assert len(called[-1]) == 64
    assert set(its.changed) == {
        "client_metadata:dropped",
        "input:tool_search_call-dropped",
        "tools:grammar-as-text",
        "tools:strict-dropped",
        "tools:tool_search-dropped",
    }
