"""A running `qwen-proxy serve`, and how it is started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.sandbox import Sandbox
from tests.kit.log_files import note_log_file
from tests.kit.processes import free_port
from tests.kit.secrets import secret
from tests.kit.servers import CONF, REPO, wait_until

#: The client key of the shared server.
CLIENT_KEY = secret("client")
#: The key that the proxy uses upstream.
UPSTREAM_KEY = secret("upstream")


@dataclass
class Proxy:
    """A running proxy: gunicorn and its workers."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    home: Path

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return self.origin + "/v1"

    def stop(self, *, timeout_s: float = 15) -> int:
        """Stop it gracefully; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def workers(self) -> set[int]:
        """The process ids of its workers."""
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def renew(self) -> None:
        """End its workers, wait until as many new ones are there and answer, and let them know of
        no trouble.

        They have the memory of a new start, for a third of its cost.
        """
        before = self.workers()
        for pid in before:
            os.kill(pid, signal.SIGTERM)

        def are_new() -> bool:
            now = self.workers()
            return len(now) == len(before) and not now & before

        wait_until(are_new, "new workers")
        with urllib.request.urlopen(self.origin + "/", timeout=20):
            pass
        self.forget_troubles()

    def forget_troubles(self) -> None:
        """Let its workers leave no account alone any more: wipe what they share."""
        for shared in (self.home / ".local/state/qwen-proxy").glob("*-*"):
            with shared.open("r+b") as file:
                file.write(bytes(shared.stat().st_size))

    def call_lines(self) -> list[dict[str, Any]]:
        """The log's call records, oldest first (the log is JSON)."""
        found = []
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                if entry["event"] == "call":
                    found.append(entry)
        return found

    def wait_for_call(self, request_id: str, *, timeout_s: float = 5) -> dict[str, Any]:
        """The record of one call, once it was written."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for entry in self.call_lines():
                if entry["request_id"] == request_id:
                    return entry
            time.sleep(0.02)
        raise AssertionError(f"no log line for {request_id}:\n{self.log.read_text()[-3000:]}")


StartProxy = Callable[..., Proxy]


#: As systemd passes a socket (sd_listen_fds(3)): as file 3, to the process that it starts. The
#: first argument is the number that it has here.
_PASS: Final = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(
    directory: Path,
    environment: Mapping[str, str],
    *,
    application: str = "",
    listener: socket.socket | None = None,
) -> Proxy:
    """Start `qwen-proxy serve` in a home below `directory`, and wait until it answers.

    Args:
        application: a WSGI application of the tests (`module:name`) that takes the place of the
            shipped one.
        listener: a socket that listens, which it serves as those of a socket unit.
    """
    home = directory / "home"
    home.mkdir(exist_ok=True)
    port = free_port() if listener is None else listener.getsockname()[1]
    log = directory / f"proxy-{port}.log"
    note_log_file(log)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PORT": str(port),
        "QWEN_PROXY_WORKERS": "1",
        "QWEN_PROXY_LOG_FORMAT": "json",
        "QWEN_PROXY_GRACEFUL_TIMEOUT": "5",
        # What one failure becomes is what most tests are about; test_failover sets it.
        "QWEN_PROXY_RETRY_BUDGET": "0",
        # Nobody listens there: a test that renews logins names the sandbox.
        "QWEN_OAUTH_BASE_URL": "http://127.0.0.1:9",
        "PYTHONPATH": str(REPO),
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    command = [sys.executable, "-m", "qwen_wsgi.cli", "serve"]
    if application:
        # What `serve` becomes.
        command = [sys.executable, "-P", "-m", "gunicorn", "-c", str(CONF), "--chdir", str(REPO)]
        command.append(application)
    if listener is not None:
        command = [sys.executable, "-c", _PASS, str(listener.fileno()), *command]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=env,
            stdout=out,
            stderr=out,
            pass_fds=() if listener is None else (listener.fileno(),),
        )
    proxy = Proxy(process, port, log, home)
    _wait_until_up(proxy)
    return proxy


def _wait_until_up(proxy: Proxy) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if proxy.process.poll() is not None:
            raise AssertionError(f"the proxy did not start:\n{proxy.log.read_text()}")
        try:
            with urllib.request.urlopen(proxy.origin + "/", timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    proxy.process.kill()
    proxy.process.wait()
    raise AssertionError(f"the proxy does not answer:\n{proxy.log.read_text()}")


def has_chats(sandbox: Sandbox, count: int) -> bool:
    """Whether so many chats have reached the sandbox."""
    return len(sandbox.chats) >= count
