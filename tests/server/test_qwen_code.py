"""The real qwen-code, set up as its recipe says; where it is installed (`make clients`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_wsgi.clients import agents
from tests.fakes.scripted_model import (
    NOISE_TEXT,
    Chat,
    amid_noise,
    calls,
    results,
    says,
)
from tests.kit.client_programs import Desk, ServeScript, needs, target
from tests.kit.proxy import Proxy

pytestmark = needs("qwen", "@qwen-code/qwen-code")


def desk_of(proxy: Proxy, directory: Path) -> Desk:
    return Desk(directory, agents.qwen_code(target(proxy)))


def qwen(desk: Desk, text: str) -> list[dict[str, Any]]:
    """Let it work on a text: the events that it prints, the last of which is the result."""
    ran = desk.run("qwen", "-p", text, "-o", "json", "--approval-mode", "yolo")
    assert ran.status == 0, ran
    events: list[dict[str, Any]] = json.loads(ran.out)
    assert (events[-1]["type"], events[-1]["is_error"]) == ("result", False), events[-1]
    return events


def turns(events: list[dict[str, Any]]) -> int:
    """How many requests it made for the conversation itself, by its own statistics."""
    (model,) = events[-1]["stats"]["models"].values()
    return int(model["bySource"]["main"]["api"]["totalRequests"])


def blocks(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The calls of tools, or their results."""
    return [
        block
        for event in events
        if event["type"] in ("assistant", "user")
        for block in event["message"]["content"]
        if block["type"] == kind
    ]


def test_an_end_without_a_finish_reason_is_one_turn(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    proxy, _ = serve_script(lambda chat: says("All is well.", finish=None))

    events = qwen(desk_of(proxy, tmp_path), "Hello")

    assert events[-1]["result"] == "All is well."
    assert turns(events) == 1


def test_two_calls_that_share_an_id_are_both_made(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    def answer(chat: Chat) -> bytes:
        if chat["messages"][0]["role"] != "system":  # its search for what to remember
            return says("Nothing.")
        if results(chat):
            return says("Both are read.")
        return calls(*(("call_1", "read_file", json.dumps({"file_path": p})) for p in paths))

    proxy, model = serve_script(answer)
    desk = desk_of(proxy, tmp_path)
    paths = [str(desk.project / name) for name in ("one.txt", "two.txt")]
    for path in paths:
        Path(path).write_text(f"This is {path}.\n")

    events = qwen(desk, "Read both.")

    assert events[-1]["result"] == "Both are read."
    assert [block["input"]["file_path"] for block in blocks(events, "tool_use")] == paths
    assert [block["content"] for block in blocks(events, "tool_result")] == [
        f"This is {path}.\n" for path in paths
    ]
    (answered,) = [found for chat in model.chats if (found := results(chat))]
    assert len({each["tool_call_id"] for each in answered}) == 2


def test_noise_between_chunks_is_not_seen(serve_script: ServeScript, tmp_path: Path) -> None:
    proxy, _ = serve_script(lambda chat: amid_noise(says("All is well.")))

    events = qwen(desk_of(proxy, tmp_path), "Hello")

    assert events[-1]["result"].replace(NOISE_TEXT, "") == "All is well."
    assert turns(events) == 1


def test_a_call_without_arguments_has_an_empty_object(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    def answer(chat: Chat) -> bytes:
        if chat["messages"][0]["role"] != "system":
            return says("Nothing.")
        return says("I see.") if results(chat) else calls(("call_1", "list_agents", ""))

    proxy, _ = serve_script(answer)

    events = qwen(desk_of(proxy, tmp_path), "Hello")

    (call,) = blocks(events, "tool_use")
    assert (call["name"], call["input"]) == ("list_agents", {})
    assert [result["is_error"] for result in blocks(events, "tool_result")] == [False]
    assert events[-1]["result"] == "I see."
