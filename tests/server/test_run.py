"""The real clients, started by `qwen-proxy run`; where they are installed (`make clients`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwen_wsgi.clients.recipe import KEY_VARIABLE, Recipe
from qwen_wsgi.sandbox import Sandbox
from tests.kit.client_programs import Desk, needs
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, StartProxy

PROMPT = "Say hello [[sandbox: no-tools, text=good-day]]"
#: Name, program, package, the program's own arguments, the calls' path.
CLIENTS = (
    ("codex", "codex", "@openai/codex", ("exec", "--skip-git-repo-check", PROMPT), "/v1/responses"),
    ("claude-code", "claude", "@anthropic-ai/claude-code", ("-p", PROMPT), "/v1/messages"),
    ("opencode", "opencode", "opencode-ai", ("run", PROMPT), "/v1/chat/completions"),
    ("qwen-code", "qwen", "@qwen-code/qwen-code", ("-p", PROMPT), "/v1/chat/completions"),
)


@pytest.mark.parametrize(
    ("name", "arguments", "path"),
    [
        pytest.param(name, arguments, path, marks=needs(program, package), id=name)
        for name, program, package, arguments, path in CLIENTS
    ],
)
def test_it_answers_through_the_proxy_with_its_own_files_as_they_were(
    start_proxy: StartProxy,
    sandbox: Sandbox,
    tmp_path: Path,
    name: str,
    arguments: tuple[str, ...],
    path: str,
) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=CLIENT_KEY,
    )
    desk = Desk(tmp_path / "desk", Recipe((), ""))
    # Set up for somebody else: what `run` gives must win.
    codex = desk.home / ".codex/config.toml"
    codex.parent.mkdir()
    codex.write_text(
        'model = "elsewhere"\nmodel_provider = "other"\ncheck_for_update_on_startup = false\n'
        '[model_providers.other]\nname = "other"\nbase_url = "http://127.0.0.1:9/v1"\n'
        "[analytics]\nenabled = false\n"
    )
    before = codex.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "run", name, "--url", proxy.origin]
        + ["--", *arguments],
        cwd=desk.project,
        env={**desk.env, KEY_VARIABLE: CLIENT_KEY, "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done
    assert "good-day" in done.stdout
    assert path in {line["path"] for line in proxy.call_lines() if line["status"] == 200}
    assert codex.read_bytes() == before
    assert not (desk.home / ".config/opencode/opencode.json").exists()
    assert not (desk.home / ".qwen/settings.json").exists()
    assert not (desk.home / ".claude/settings.json").exists()
