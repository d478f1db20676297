"""The real opencode, set up as its recipe says; where it is installed (`make clients`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from qwen_wsgi.clients import agents
from tests.fakes.scripted_model import (
    NOISE_TEXT,
    Chat,
    amid_noise,
    calls,
    refuses,
    results,
    says,
)
from tests.kit import mcp_server
from tests.kit.client_programs import Desk, ServeScript, needs, target
from tests.kit.proxy import Proxy

pytestmark = needs("opencode", "opencode-ai")

TOO_LONG = {
    "message": "Range of input length should be [1, 1000000]",
    "type": "invalid_request_error",
    "code": "invalid_parameter_error",
}


def desk_of(proxy: Proxy, directory: Path) -> Desk:
    return Desk(directory, agents.opencode(target(proxy)))


def opencode(desk: Desk, text: str, *options: str) -> list[dict[str, Any]]:
    """Let it work on a text: the events that it prints."""
    ran = desk.run("opencode", "run", "--auto", "--format", "json", *options, text)
    return [json.loads(line) for line in ran.out.splitlines()]


def texts(events: list[dict[str, Any]]) -> list[str]:
    """Its answers; an error in place of one is none."""
    return [event["part"]["text"] for event in events if event["type"] == "text"]


def used(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools that it ran: each with name, input and output."""
    return [
        {"tool": part["tool"], "status": part["state"]["status"], **part["state"]}
        for part in (event["part"] for event in events if event["type"] == "tool_use")
    ]


def test_an_end_without_a_finish_reason_is_one_turn(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    proxy, model = serve_script(lambda chat: says("All is well.", finish=None))

    events = opencode(desk_of(proxy, tmp_path), "Hello")

    assert texts(events) == ["All is well."]
    assert len(model.turns) == 1


def test_two_calls_that_share_an_id_are_both_made(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    def answer(chat: Chat) -> bytes:
        if results(chat):
            return says("Both are read.")
        return calls(*(("call_1", "read", json.dumps({"filePath": path})) for path in paths))

    proxy, model = serve_script(answer)
    desk = desk_of(proxy, tmp_path)
    paths = [str(desk.project / name) for name in ("one.txt", "two.txt")]
    for path in paths:
        Path(path).write_text(f"This is {path}.\n")

    events = opencode(desk, "Read both.")

    assert texts(events) == ["Both are read."]
    assert sorted(tool["input"]["filePath"] for tool in used(events)) == paths
    first, second = results(model.turns[-1])
    assert first["tool_call_id"] != second["tool_call_id"]
    assert [f"This is {path}." in each["content"] for path, each in zip(paths, (first, second),
            strict=True)] == [True, True]  # fmt: skip


def test_noise_between_chunks_is_not_seen(serve_script: ServeScript, tmp_path: Path) -> None:
    proxy, model = serve_script(lambda chat: amid_noise(says("All is well.")))

    events = opencode(desk_of(proxy, tmp_path), "Hello")

    assert not [event for event in events if event["type"] == "error"]
    assert "".join(texts(events)).replace(NOISE_TEXT, "") == "All is well."
    assert len(model.turns) == 1


def test_a_call_without_arguments_has_an_empty_object(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    def answer(chat: Chat) -> bytes:
        return says("I see.") if results(chat) else calls(("call_1", "bash", ""))

    proxy, _ = serve_script(answer)

    events = opencode(desk_of(proxy, tmp_path), "Hello")

    # The tool wants a command: that is the model's fault, and it is told so.
    (tool,) = used(events)
    assert (tool["input"], tool["status"]) == ({}, "error")
    assert "invalid arguments" in tool["error"]
    assert texts(events) == ["I see."]


def test_a_tool_with_a_long_name_is_called_by_it(serve_script: ServeScript, tmp_path: Path) -> None:
    name = ("weather_of_a_place_" * 9)[:110]

    def answer(chat: Chat) -> bytes:
        if results(chat):
            return says("Thanks.")
        names = [tool["function"]["name"] for tool in chat.get("tools", ())]
        assert max(map(len, names), default=0) <= 64
        seen = [each for each in names if "weather" in each]
        return calls(("call_1", seen[0], '{"city": "Oslo"}')) if seen else says("A title")

    proxy, _ = serve_script(answer)
    desk = desk_of(proxy, tmp_path)
    place = desk.home / ".config/opencode/opencode.json"
    config = json.loads(place.read_text())
    command = [sys.executable, mcp_server.__file__, name]
    config["mcp"] = {"far": {"type": "local", "command": command}}
    place.write_text(json.dumps(config))

    events = opencode(desk, "How is the weather?")

    (tool,) = used(events)
    assert tool["output"] == f"{name} says: sun over Oslo"
    assert texts(events) == ["Thanks."]


def test_a_full_context_is_compacted(serve_script: ServeScript, tmp_path: Path) -> None:
    def answer(chat: Chat) -> bytes:
        if not chat.get("tools"):  # a title, or the summary of the compaction
            return says("A summary.")
        return refuses("400 Bad Request", TOO_LONG) if len(chat["messages"]) > 5 else says("Fine.")

    proxy, model = serve_script(answer)
    desk = desk_of(proxy, tmp_path)
    opencode(desk, "One.")
    opencode(desk, "Two.", "--continue")

    events = opencode(desk, "Three.", "--continue")

    assert [e["error"]["name"] for e in events if e["type"] == "error"] == ["ContextOverflowError"]
    assert texts(events)[-1] == "Fine."
    assert "A summary." in json.dumps(model.chats[-1]["messages"])
