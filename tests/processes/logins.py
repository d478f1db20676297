"""A login at the sandbox, on disk, and the processes that share it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_wsgi.credentials.files.login_store import LoginPaths
from qwen_wsgi.sandbox import Sandbox
from tests.kit.login_files import write_login

ROOT = Path(__file__).parents[2]
#: No process of these tests takes nearly as long.
DEADLINE_S = 40.0


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: list[dict[str, Any]]
    log: str


class Home:
    """A home with one login, and the sandbox that issued it."""

    def __init__(self, directory: Path, sandbox: Sandbox) -> None:
        self.directory = directory
        self.sandbox = sandbox
        self.paths = LoginPaths.beside(directory / ".qwen/oauth_creds.json")
        self._processes: list[subprocess.Popen[str]] = []
        self._secrets: list[str] = []

    def log_in(self, *, left_s: float) -> dict[str, Any]:
        tokens = self.sandbox.issue()
        write_login(self.paths.document, tokens, left_s=left_s)
        return tokens

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Start a process of ours; see `login_user` for the arguments."""
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "tests.processes.login_user",
                *map(str, args),
            ],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "QWEN_OAUTH_BASE_URL": self.sandbox.origin,
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for the end of a process; nothing that it logged is a secret."""
        out, log = process.communicate(timeout=DEADLINE_S)
        assert "sandbox-at-" not in log
        assert "sandbox-rt-" not in log
        return Ended(process.returncode, [json.loads(line) for line in out.splitlines()], log)

    def run(self, *args: object) -> Ended:
        return self.end(self.start(*args))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    # What there is.

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.paths.document.read_text())
        return found

    def journal(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.paths.journal.read_text())
        return found

    def left_over(self) -> list[str]:
        """Our temporary files."""
        places = (self.paths.document.parent, self.paths.journal.parent)
        names = [name for place in places if place.exists() for name in os.listdir(place)]
        return [name for name in names if name.startswith(".qwen-proxy-")]

    def counted(self) -> tuple[int, int, int]:
        """What the sandbox saw: refreshes, second uses, unknown tokens."""
        oauth = self.sandbox.state()["oauth"]
        return oauth["refreshes"], oauth["refresh_reuses"], oauth["refresh_unknown"]

    def wait_for(self, refreshes: int) -> None:
        """Wait until so many refresh tokens were spent."""
        assert self.sandbox.wait_until(lambda: self.counted()[0] >= refreshes, 15)

    def assert_sound(self) -> None:
        """The file holds the newest login: its tokens belong together and are good."""
        document = self.document()
        assert document["access_token"][-6:] == document["refresh_token"][-6:]
        assert document["unknown"] == {"kept": True}
        assert list(document)[-1] == "unknown"
        assert self.paths.document.stat().st_mode & 0o777 == 0o600
        assert document["expiry_date"] > time.time() * 1000
        assert not self.paths.cli_lock.exists()
        assert self.sandbox.state()["oauth"]["live_refresh_tokens"] == 1
