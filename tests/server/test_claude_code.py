"""The real Claude Code, set up as its recipe says; where it is installed (`make clients`)."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.clients import agents
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.scripted_model import Chat, calls, refuses, results, says
from tests.kit import mcp_server
from tests.kit.client_programs import Desk, ServeScript, needs, target
from tests.kit.pdf_files import pdf_of
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

pytestmark = needs("claude", "@anthropic-ai/claude-code")

#: Ten red pixels.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEklEQVR4nGP4z8CAB+GTG8HSALfKY52fTcuYAAAAAElF"
    "TkSuQmCC"
)
#: What Model Studio says of a model that reads text only, and of a prompt that is too long.
TEXT_ONLY = {
    "message": "<400> InternalError.Algo.InvalidParameter: The model only supports text input",
    "type": "invalid_request_error",
    "code": "invalid_parameter_error",
}
TOO_LONG = {**TEXT_ONLY, "message": "Range of input length should be [1, 1000000]"}


def desk_of(proxy: Proxy, directory: Path) -> Desk:
    return Desk(directory, agents.claude_code(target(proxy)))


def claude(desk: Desk, text: str, *options: str, **more: str) -> list[dict[str, Any]]:
    """Let it work on a text: the events that it prints, the last of which is the result."""
    ran = desk.run("claude", "-p", text, "--output-format", "stream-json", "--verbose", *options,
                   **more)  # fmt: skip
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.status == 0, ran
    assert (events[-1]["type"], events[-1]["is_error"]) == ("result", False), events[-1]
    return events


def outputs(events: list[dict[str, Any]]) -> list[str]:
    """What the tools gave, as it shows it."""
    found = []
    for event in events:
        if event["type"] == "user" and isinstance(event["message"]["content"], list):
            for block in event["message"]["content"]:
                if block["type"] == "tool_result":
                    found.append(json.dumps(block["content"]))
    return found


def statuses(proxy: Proxy) -> list[int]:
    return [line["status"] for line in proxy.call_lines() if line["path"] == "/v1/messages"]


def asks(chat: Chat, text: str) -> bool:
    """Whether the last message has the text."""
    return text in json.dumps(chat["messages"][-1])


def reading(path: Path) -> Any:
    """A model that reads a file when asked to, and no pictures."""

    def answer(chat: Chat) -> bytes:
        if "image_url" in json.dumps(chat["messages"]):
            return refuses("400 Bad Request", TEXT_ONLY)
        if asks(chat, "Read it."):
            return calls(("call_1", "Read", json.dumps({"file_path": str(path)})))
        return says("It is read." if len(chat["messages"]) < 6 else "Go on.")

    return answer


def test_a_picture_that_the_model_cannot_see_does_not_end_the_session(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(PICTURE)
    proxy, model = serve_script(reading(path))
    desk = desk_of(proxy, tmp_path)

    first = claude(desk, "Read it.", "--allowedTools", "Read")
    second = claude(desk, "And now?", "--continue")

    assert '"image"' in outputs(first)[0]
    assert first[-1]["result"] == "It is read."
    assert second[-1]["result"] == "Go on."
    assert statuses(proxy) == [200, 200, 200]
    assert "A picture was left out here" in json.dumps(model.chats[-1]["messages"])


def test_a_pdf_is_read_by_its_text(serve_script: ServeScript, tmp_path: Path) -> None:
    path = tmp_path / "page.pdf"
    path.write_bytes(pdf_of("Text of page one"))
    proxy, model = serve_script(reading(path))
    desk = desk_of(proxy, tmp_path)

    claude(desk, "Read it.", "--allowedTools", "Read")
    second = claude(desk, "And now?", "--continue")

    assert second[-1]["result"] == "Go on."
    assert statuses(proxy) == [200, 200, 200]
    assert "Text of page one" in json.dumps(model.chats[1]["messages"])


@pytest.mark.parametrize("length", [65, 110])
def test_a_tool_with_a_long_name_is_called_by_it(
    serve_script: ServeScript, tmp_path: Path, length: int
) -> None:
    name = ("weather_of_a_place_" * 9)[:length]
    server = {"command": sys.executable, "args": [mcp_server.__file__, name]}

    def answer(chat: Chat) -> bytes:
        if results(chat):
            return says("Thanks.")
        (seen,) = [t["function"]["name"] for t in chat["tools"] if "weather" in json.dumps(t)]
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", seen)
        return calls(("call_1", seen, '{"city": "Oslo"}'))

    proxy, model = serve_script(answer)
    events = claude(
        desk_of(proxy, tmp_path),
        "How is the weather?",
        *("--mcp-config", json.dumps({"mcpServers": {"far": server}}), "--strict-mcp-config"),
        *("--allowedTools", f"mcp__far__{name}"),
        ENABLE_TOOL_SEARCH="false",
    )

    assert outputs(events) == [
        json.dumps([{"type": "text", "text": f"{name} says: sun over Oslo"}])
    ]
    assert f"{name} says" in json.dumps(results(model.chats[-1]))


def test_a_search_that_the_model_does_not_have_is_shown_as_failed(
    serve_script: ServeScript, tmp_path: Path
) -> None:
    def answer(chat: Chat) -> bytes:
        if results(chat):
            return says("No news.")
        if not chat.get("tools"):
            return says("Invented news!")
        return calls(("call_1", "WebSearch", '{"query": "news of today"}'))

    proxy, _ = serve_script(answer)
    events = claude(desk_of(proxy, tmp_path), "News?", "--allowedTools", "WebSearch",
                    ENABLE_TOOL_SEARCH="false")  # fmt: skip

    (output,) = outputs(events)
    assert "Web search error: unavailable" in output
    assert "Invented" not in json.dumps(events)
    assert [line.get("error") for line in proxy.call_lines()] == [
        None,
        "web_search_unavailable",
        None,
    ]


def test_a_full_context_is_compacted(serve_script: ServeScript, tmp_path: Path) -> None:
    def answer(chat: Chat) -> bytes:
        # Two questions and their answers are more than it takes.
        if len(chat["messages"]) > 5 and not asks(chat, "summary"):
            return refuses("400 Bad Request", TOO_LONG)
        return says("A summary." if asks(chat, "summary") else "Fine.")

    proxy, _ = serve_script(answer)
    desk = desk_of(proxy, tmp_path)
    claude(desk, "One.")
    claude(desk, "Two.", "--continue")

    events = claude(desk, "Three.", "--continue")

    assert "compact_boundary" in [event.get("subtype") for event in events]
    assert events[-1]["result"] == "Fine."
    assert 400 in statuses(proxy)
    assert statuses(proxy)[-1] == 200


def test_its_choice_of_models_has_those_of_the_server(
    start_proxy: StartProxy, sandbox: Sandbox, tmp_path: Path
) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=CLIENT_KEY,
    )
    desk = desk_of(proxy, tmp_path)
    text = "Hello [[sandbox: no-tools]]"

    claude(desk, text, CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY="1")
    found = json.loads((desk.home / ".claude/cache/gateway-models.json").read_text())
    events = claude(desk, text, "--model", "anthropic/qwen3.7-plus")

    assert found["baseUrl"] == proxy.origin
    assert "anthropic/qwen3.7-plus" in [model["id"] for model in found["models"]]
    assert "You said" in events[-1]["result"]
    assert json.loads(sandbox.settle()[-1].body or b"")["model"] == "qwen3.7-plus"
