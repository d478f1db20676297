"""A runner of tools as a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.tools.runner_client import RunnerClient
from tests.kit.processes import REPOSITORY
from tests.kit.sandboxes import open_folder


class Runner:
    """A runner of its own, with its tools.json."""

    def __init__(self, folder: Path, tools: dict[str, Any]) -> None:
        self.tools_file = folder / "tools.json"
        self.socket = folder / "state/tools.sock"
        self.log = folder / "log"
        self.write(tools)
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.tools_file.parent),
            "QWEN_PROXY_TOOLS": str(self.tools_file),
            "QWEN_PROXY_STATE_DIR": str(self.socket.parent),
            "SECRET_KEY": "a-secret-of-the-runner",
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "qwen_wsgi.tool_runner", "--parent", str(os.getpid())],
                env=environ,
                cwd=REPOSITORY,
                stderr=log,
            )

    def write(self, tools: dict[str, Any]) -> None:
        self.tools_file.write_text(json.dumps(tools))

    def client(self) -> RunnerClient:
        return RunnerClient(lambda: str(self.socket), SystemClock())

    def restart(self) -> None:
        self.process.wait(10)
        self.process = self._started()
        self.listens()

    def listens(self) -> None:
        end_s = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            assert time.monotonic() < end_s
            time.sleep(0.05)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextmanager
def running(tools: dict[str, Any]) -> Iterator[Runner]:
    with open_folder() as folder:
        runner = Runner(folder, tools)
        try:
            runner.listens()
            yield runner
        finally:
            runner.stop()
