"""The real Codex, set up as its recipe says; where it is installed (`make clients`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_wsgi.clients import agents
from qwen_wsgi.sandbox import Sandbox
from tests.kit.client_programs import Desk, needs, target
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

pytestmark = needs("codex", "@openai/codex")

#: What it says when a WebSocket or the list of models does not work as it expects.
COMPLAINTS = ("Reconnecting", "alling back", "stream error", "ERROR", "metadata")

#: Before and behind the recipe: it shall not reach anything but the server.
QUIET = "check_for_update_on_startup = false\n", "\n[analytics]\nenabled = false\n"


def say(proxy: Proxy, directory: Path, text: str) -> str:
    """Let it work on a text; all that it prints."""
    desk = Desk(directory, agents.codex(target(proxy)))
    config = desk.home / ".codex/config.toml"
    config.write_text(config.read_text().join(QUIET))
    ran = desk.run("codex", "exec", "--skip-git-repo-check", text)
    assert ran.status == 0, ran
    return ran.out + ran.err


def kinds(proxy: Proxy) -> list[tuple[str, int]]:
    """Method and status of the calls of Responses."""
    return [
        (line["method"], line["status"])
        for line in proxy.call_lines()
        if line["path"] == "/v1/responses"
    ]


def start(start_proxy: StartProxy, sandbox: Sandbox, **more: str) -> Proxy:
    return start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=CLIENT_KEY,
        **more,
    )


def test_it_uses_one_websocket_and_sends_only_what_is_new(
    start_proxy: StartProxy, sandbox: Sandbox, tmp_path: Path
) -> None:
    proxy = start(start_proxy, sandbox)

    shown = say(proxy, tmp_path / "codex", "Say hello [[sandbox: tools=1]]")

    assert "[sandbox] The tool answered" in shown
    assert not [word for word in COMPLAINTS if word in shown], shown
    # The first is a request that is only kept, the others are before and after the tool.
    assert kinds(proxy) == [("GET", 101), ("WS", 200), ("WS", 200), ("WS", 200)]
    sandbox.settle()
    chats: list[Any] = [json.loads(chat.body or b"")["messages"] for chat in sandbox.chats]
    assert len(chats) == 2
    assert chats[1][: len(chats[0])] == chats[0]
    assert [message["role"] for message in chats[1][len(chats[0]) :]] == ["assistant", "tool"]


def test_it_survives_a_connection_that_was_closed(
    start_proxy: StartProxy, sandbox: Sandbox, tmp_path: Path
) -> None:
    proxy = start(start_proxy, sandbox, QWEN_PROXY_WEBSOCKET_IDLE="0.05")

    shown = say(proxy, tmp_path / "codex", "Say hello [[sandbox: tools=1]]")

    assert "[sandbox] The tool answered" in shown
    assert not [word for word in COMPLAINTS if word in shown], shown
    assert kinds(proxy).count(("GET", 101)) > 1


def test_without_websockets_it_uses_http_at_once(
    start_proxy: StartProxy, sandbox: Sandbox, tmp_path: Path
) -> None:
    proxy = start(start_proxy, sandbox, QWEN_PROXY_WEBSOCKETS="0")

    shown = say(proxy, tmp_path / "codex", "Say hello [[sandbox: no-tools]]")

    # One line of its log says that the connection failed.
    assert not [word for word in COMPLAINTS if word in shown and word != "ERROR"], shown
    assert kinds(proxy) == [("GET", 426), ("POST", 200)]
