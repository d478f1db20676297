"""The real AI SDK in its four ways to ask; where it is installed (`make clients`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.clients.recipe import Recipe
from tests.fakes.scripted_model import (
    NOISE_TEXT,
    Chat,
    amid_noise,
    calls,
    results,
    says,
)
from tests.kit.client_programs import INSTALLED, Desk, ServeScript, needs
from tests.kit.proxy import CLIENT_KEY, Proxy

PACKAGES = INSTALLED / "node_modules"
PROGRAM = Path(__file__).with_name("ai_sdk.mjs")

pytestmark = [
    *needs("node", "the program of Node itself"),
    pytest.mark.skipif(
        not (PACKAGES / "ai").exists(), reason="the AI SDK is not installed (make clients)"
    ),
    pytest.mark.parametrize("dialect", ["chat", "completions", "responses", "messages"]),
    pytest.mark.parametrize("version", ["", "-5"], ids=["newest", "5"]),
]


def ask(proxy: Proxy, directory: Path, version: str, dialect: str) -> dict[str, Any]:
    """What the SDK gives: text, the finish of each step, the inputs of its tool, errors."""
    desk = Desk(directory, Recipe((), ""))
    # Node looks for packages beside the program.
    (desk.project / "node_modules").symlink_to(PACKAGES)
    shutil.copy(PROGRAM, desk.project)
    ran = desk.run("node", PROGRAM.name, version, dialect, proxy.origin, CLIENT_KEY)
    assert ran.status == 0, ran
    given: dict[str, Any] = json.loads(ran.out)
    return given


def test_noise_between_chunks_is_not_seen(
    serve_script: ServeScript, tmp_path: Path, version: str, dialect: str
) -> None:
    proxy, model = serve_script(lambda chat: amid_noise(says("All is well.", finish=None)))

    given = ask(proxy, tmp_path, version, dialect)

    assert given["errors"] == []
    assert given["text"].replace(NOISE_TEXT, "") == "All is well."
    assert given["finishes"] == ["stop"]
    assert len(model.chats) == 1


def test_calls_that_share_an_id_or_have_no_arguments_are_made(
    serve_script: ServeScript, tmp_path: Path, version: str, dialect: str
) -> None:
    def answer(chat: Chat) -> bytes:
        if results(chat):
            return says("Thanks.")
        wanted = ('{"word": "one"}', '{"word": "two"}', "")
        return calls(*(("call_1", "note", arguments) for arguments in wanted))

    proxy, model = serve_script(answer)

    given = ask(proxy, tmp_path, version, dialect)

    assert given == {
        "errors": [],
        "inputs": [{"word": "one"}, {"word": "two"}, {}],
        "text": "Thanks.",
        "finishes": ["tool-calls", "stop"],
    }
    answered = results(model.chats[-1])
    assert len({each["tool_call_id"] for each in answered}) == 3
    assert ["one" in json.dumps(answered[0]), "two" in json.dumps(answered[1])] == [True, True]
