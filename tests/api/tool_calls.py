"""What tests of tools that the proxy runs share: the application, and what the sandbox is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import UPSTREAM_KEY, App, running
from tests.fakes.tool_runner import FakeRunner


@contextmanager
def in_front_of(
    sandbox: Sandbox, runner: FakeRunner | None = None, **environ: Any
) -> Iterator[App]:
    """The application with an account at the sandbox; without a runner it offers no tools."""
    settings: dict[str, Any] = {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        **environ,
    }
    with running(tool_runner=runner, **settings) as app:
        yield app


def arguments(**given: Any) -> str:
    """A spec that has the sandbox call with these arguments."""
    return f"tool-args={quote(json.dumps(given))}"


def spec(**given: Any) -> str:
    """Have the sandbox call with these arguments."""
    return f"[[sandbox: {arguments(**given)}]]"


def chats(sandbox: Sandbox) -> list[Any]:
    """The chats that the sandbox got."""
    sandbox.settle()
    return [json.loads(each.body or b"{}") for each in sandbox.chats]
