"""Clients that are programs of their own: where they are, and how a test runs one.

`make clients` installs them in `.clients`; what PATH has is as good.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen_wsgi.clients.recipe import Model, Recipe, Target
from tests.fakes.scripted_model import ScriptedModel
from tests.kit.proxy import CLIENT_KEY, Proxy
from tests.kit.servers import REPO

#: Where `make clients` installs.
INSTALLED = REPO / ".clients"
_PATH = f"{INSTALLED / 'node_modules/.bin'}:{os.environ['PATH']}"

#: What every program gets: it shall not reach anything but this machine, nor look for updates.
_QUIET = {
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "QWEN_TELEMETRY_ENABLED": "false",
}

#: Above what the slowest of them takes on a busy machine.
_PATIENCE_S = 150

#: Starts a proxy in front of a model that a test wrote.
ServeScript = Callable[..., tuple[Proxy, ScriptedModel]]

#: The models of the recipes, with the limits that they have at Model Studio.
CODER = Model("qwen3-coder-plus", context=1_000_000, max_output=65_536)
FAST = Model("qwen3-coder-flash", context=1_000_000, max_output=65_536)


def needs(program: str, package: str) -> list[pytest.MarkDecorator]:
    """The marks of tests that run a program; they are skipped where it is not installed."""
    return [
        pytest.mark.server,
        pytest.mark.clients,
        pytest.mark.timeout(400),
        pytest.mark.skipif(
            not shutil.which(program, path=_PATH),
            reason=f"{program} is not installed (make clients; npm: {package})",
        ),
    ]


def target(proxy: Proxy, model: Model = CODER) -> Target:
    """What a recipe shall connect to."""
    return Target(proxy.origin, model, FAST)


@dataclass(frozen=True)
class Ran:
    """What a program printed."""

    status: int
    out: str
    err: str


class Desk:
    """A user's home and project, in which a recipe was followed."""

    def __init__(self, directory: Path, recipe: Recipe) -> None:
        self.home = directory / "user"
        self.project = self.home / "project"
        self.project.mkdir(parents=True)
        self.env = {"PATH": _PATH, "HOME": str(self.home), **_QUIET}
        for snippet in recipe.snippets:
            if snippet.language == "sh":
                self.env.update(self._exports(snippet.text))
            else:
                self._save(snippet.place, snippet.text)

    def run(self, *command: str, **more: str) -> Ran:
        """Run a program in the project until it ends, with more variables."""
        done = subprocess.run(
            command,
            executable=shutil.which(command[0], path=_PATH),
            cwd=self.project,
            env={**self.env, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def _exports(self, script: str) -> Mapping[str, str]:
        """The variables that lines for a shell set."""
        lines = script.replace("YOUR_CLIENT_KEY", CLIENT_KEY) + "env -0\n"
        shown = subprocess.run(
            ["/bin/sh", "-c", lines], env=self.env, capture_output=True, text=True, check=True
        )
        pairs = (entry.partition("=") for entry in shown.stdout.split("\0") if entry)
        return {name: value for name, _, value in pairs if name not in ("PWD", "_", "SHLVL")}

    def _save(self, place: str, text: str) -> None:
        path, *_ = place.split(" ")
        inside = self.home / path[2:] if path.startswith("~/") else self.project / path
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text)
