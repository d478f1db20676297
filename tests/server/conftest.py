"""Real servers: the sandbox as upstream, gunicorn with the proxy, nginx with the shipped site."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.conftest import note_log_file
from tests.kit.secrets import secret

REPO = Path(__file__).resolve().parents[2]

#: The client key of the shared server.
CLIENT_KEY = secret("client")
#: The key that the proxy uses upstream.
UPSTREAM_KEY = secret("upstream")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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

    def forget_troubles(self) -> None:
        """Let its workers leave no account alone any more: wipe what they share."""
        for board in (self.home / ".local/state/qwen-proxy").glob("board-*"):
            with board.open("r+b") as file:
                file.write(bytes(board.stat().st_size))

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


def start(directory: Path, environment: Mapping[str, str]) -> Proxy:
    """Start `qwen-proxy serve` in a home below `directory`, and wait until it answers."""
    home = directory / "home"
    home.mkdir(exist_ok=True)
    port = free_port()
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
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen_wsgi.cli", "serve"],
            cwd=directory,
            env=env,
            stdout=out,
            stderr=out,
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


@pytest.fixture(scope="session")
def upstream() -> Iterator[Sandbox]:
    """The sandbox, in this process, so that tests can look into it."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(upstream: Sandbox) -> Sandbox:
    """The shared sandbox, with nothing left of the test before."""
    upstream.settle()
    upstream.reset()
    return upstream


@pytest.fixture(scope="session")
def proxy(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The shared proxy: two workers, a client key, a Qwen-like upstream, short keep-alives."""
    running = start(
        tmp_path_factory.mktemp("proxy"),
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_WORKERS": "2",
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.5",
            "QWEN_PROXY_IDLE_TIMEOUT": "2",
            "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "3",
        },
    )
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _no_troubles_of_the_test_before(request: pytest.FixtureRequest) -> None:
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").forget_troubles()


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Starts proxies with settings of a test's own, and stops them."""
    started: list[Proxy] = []

    def begin(**environment: str) -> Proxy:
        started.append(start(tmp_path, environment))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class CannedUpstream:
    """An upstream that sends the same bytes to every POST, in one piece; and knows no models."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(5)
                    request = _read_request(connection)
                    if not request:
                        return
                    if request.startswith(b"POST"):
                        connection.sendall(self.answer)
                    else:
                        connection.sendall(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")

    def stop(self) -> None:
        """End its thread by a connection that says nothing."""
        port = int(self.base_url.split(":")[2].split("/")[0])
        socket.create_connection(("127.0.0.1", port)).close()
        self._thread.join(5)


def _read_request(connection: socket.socket) -> bytes:
    """A whole request: closing with bytes unread would reset the connection, answer and all."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head


@pytest.fixture
def canned_upstream() -> Iterator[CannedUpstream]:
    """An upstream that answers with bytes of the test's own."""
    upstream = CannedUpstream()
    yield upstream
    upstream.stop()
