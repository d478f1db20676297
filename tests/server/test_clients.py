"""Recipes that need nothing but Python and curl, run as they are printed, for the real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_wsgi.clients.recipe import KEY_VARIABLE, PROMPT, Recipe, Snippet
from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy
from tests.kit.servers import REPO

pytestmark = pytest.mark.server

HELLO = f"[sandbox] You said: {PROMPT}"


def printed(proxy: Proxy, sandbox: Sandbox, name: str) -> Recipe:
    """What `qwen-proxy clients` says with the server's own settings, address and model included."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "clients", name, "--json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(proxy.home),
            "PORT": str(proxy.port),
            "DASHSCOPE_BASE_URL": sandbox.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "PYTHONPATH": str(REPO),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        check=True,
        timeout=30,
    )
    value = json.loads(done.stdout)
    assert value["url"] == proxy.origin
    assert not [note for note in value["notes"] if "models" in note]
    return Recipe(tuple(Snippet(**piece) for piece in value["snippets"]), value["command"])


def environment(directory: Path) -> dict[str, str]:
    """A user's shell after the recipe's first line, with a real key."""
    return {"PATH": os.environ["PATH"], "HOME": str(directory), KEY_VARIABLE: CLIENT_KEY}


def run_program(proxy: Proxy, sandbox: Sandbox, name: str, directory: Path) -> str:
    """Save the program where the recipe says, run it, and give what it printed."""
    *_, program = printed(proxy, sandbox, name).snippets
    assert program.language == "python"
    (directory / program.place).write_text(program.text)
    done = subprocess.run(
        [sys.executable, program.place],
        cwd=directory,
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_openai_for_python(proxy: Proxy, sandbox: Sandbox, tmp_path: Path) -> None:
    assert run_program(proxy, sandbox, "openai-python", tmp_path) == HELLO + "\n"


def test_anthropic_for_python(proxy: Proxy, sandbox: Sandbox, tmp_path: Path) -> None:
    assert run_program(proxy, sandbox, "anthropic-python", tmp_path) == HELLO + "\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(proxy: Proxy, sandbox: Sandbox, tmp_path: Path) -> None:
    made = printed(proxy, sandbox, "curl")
    (script,) = made.snippets
    _, _, line = script.text.partition("\n")

    answer = shell(line, tmp_path)

    events = [event.removeprefix("data: ") for event in answer.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    words = [c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"]]
    assert "".join(words) == HELLO
    # The command to try it lists the models, the recipe's own among them.
    ids = [model["id"] for model in json.loads(shell(made.command, tmp_path))["data"]]
    assert chunks[0]["model"] in ids


def shell(line: str, directory: Path) -> str:
    """Run a line as a user would."""
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=directory,
        env=environment(directory),
        capture_output=True,
        check=True,
        text=True,
        timeout=40,
    )
    return done.stdout
