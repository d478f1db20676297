"""The real Codex, with the recipe's provider; where it is installed (npm: @openai/codex)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

CODEX = shutil.which("codex") or ""

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not CODEX, reason="codex is not installed (npm: @openai/codex)"),
]

#: What it says when a WebSocket does not work as it expects.
COMPLAINTS = ("Reconnecting", "alling back", "stream error", "ERROR")

CONFIG = """\
model = "qwen3.7-plus"
model_provider = "qwen"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.qwen]
name = "qwen-proxy"
base_url = "{base_url}"
model_catalog_url = "{base_url}/models"
wire_api = "responses"
env_key = "QWEN_PROXY_KEY"
supports_websockets = true
"""


def say(proxy: Proxy, home: Path, text: str) -> str:
    """Let it work on a text; all that it prints."""
    (home / ".codex").mkdir(parents=True)
    (home / ".codex/config.toml").write_text(CONFIG.format(base_url=proxy.base_url))
    done = subprocess.run(
        [CODEX, "exec", "--skip-git-repo-check", text],
        cwd=home,
        # Whatever else it wants to reach, it shall not.
        env={
            "PATH": "/usr/local/bin:/usr/bin:/bin:" + str(Path(CODEX).parent),
            "HOME": str(home),
            "QWEN_PROXY_KEY": CLIENT_KEY,
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


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

    # One line says that the connection failed.
    assert not [word for word in COMPLAINTS if word in shown and word != "ERROR"], shown
    assert kinds(proxy) == [("GET", 426), ("POST", 200)]
