"""A home with logins beside a sandbox, and `qwen-proxy creds` in it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_wsgi.cli import main
from qwen_wsgi.sandbox import Sandbox

HOUR_S = 3600


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.out)
        return found


class Machine:
    """A home with logins, and the command to look at them."""

    def __init__(
        self,
        home: Path,
        sandbox: Sandbox,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.qwen = home / ".qwen"
        self.qwen.mkdir()
        self.sandbox = sandbox
        self._capsys = capsys
        self._secrets: list[str] = []
        monkeypatch.setenv("QWEN_OAUTH_BASE_URL", sandbox.origin)

    def seed(self, name: str = "oauth_creds.json", *, left_s: int = 6 * HOUR_S) -> dict[str, Any]:
        answer = self.sandbox.issue()
        content = {
            "access_token": answer["access_token"],
            "token_type": "Bearer",
            "refresh_token": answer["refresh_token"],
            "resource_url": self.sandbox.origin,
            "expiry_date": int((time.time() + left_s) * 1000),
        }
        (self.qwen / name).write_text(json.dumps(content))
        self._note(content)
        return content

    def content(self, name: str = "oauth_creds.json") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.qwen / name).read_text())
        self._note(found)
        return found

    def _note(self, content: dict[str, Any]) -> None:
        self._secrets += [content["access_token"], content["refresh_token"]]

    def run(self, *arguments: str) -> Ended:
        try:
            status = main.main(["creds", *arguments])
        except SystemExit as end:  # argparse's way out
            status = int(end.code or 0)
        found = Ended(status, *self._capsys.readouterr())
        for path in self.qwen.glob("oauth_creds*.json"):
            if path.stat().st_mode & 0o400:
                self.content(path.name)
        for each in self._secrets:
            assert each not in found.out + found.err
            assert each[:-4] not in found.out + found.err
        return found

    @property
    def sent(self) -> int:
        return len(self.sandbox.requests)
