"""Reloads, stops and restarts of a real server: what clients see, and what becomes of settings."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit import servers
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy, start
from tests.kit.secrets import core, secret
from tests.kit.servers import UnixConnection, short_directory, wait_until
from tests.kit.steady_clients import SteadyClients

pytestmark = pytest.mark.server

OTHER_KEY = secret("reload-other")
HEADERS = {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"}


def body(content: str = "hello", **more: object) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": "qwen3.7-plus", "messages": messages, **more}).encode()


def chat(client: http.client.HTTPConnection) -> str:
    """One short chat; what was wrong with it."""
    client.request("POST", "/v1/chat/completions", body(), HEADERS)
    answer = client.getresponse()
    text = answer.read()
    right = answer.status == 200 and b'"choices"' in text
    return "" if right else f"{answer.status} {text[:200]!r}"


def reload(proxy: Proxy) -> None:
    """Reload, and wait until only new workers are left that accept connections."""
    before = proxy.workers()
    proxy.process.send_signal(signal.SIGHUP)
    wait_until(lambda: proxy.workers() and not proxy.workers() & before, "new workers alone")


@contextlib.contextmanager
def stream_of(proxy: Proxy, spec: str) -> Iterator[http.client.HTTPResponse]:
    """A stream whose first event has come."""
    with contextlib.closing(tcp(proxy)()) as client:
        content = f"[[sandbox: {spec}]]"
        client.request("POST", "/v1/chat/completions", body(content, stream=True), HEADERS)
        with client.getresponse() as answer:
            assert answer.status == 200
            assert answer.readline().startswith(b"data: ")
            yield answer


class Place:
    """A proxy behind a unix socket, its environment file, and how to connect to it."""

    def __init__(self, start: StartProxy, sandbox: Sandbox, directory: Path) -> None:
        self.file = directory / "proxy.env"
        self.socket = directory / "http.sock"
        self.write(QWEN_PROXY_API_KEYS=CLIENT_KEY, DASHSCOPE_API_KEY=UPSTREAM_KEY)
        self._start = start
        self._base_url = sandbox.base_url

    def write(self, **values: str) -> None:
        self.file.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))

    def start(self, **environment: str) -> Proxy:
        return self._start(
            QWEN_PROXY_ENV_FILE=str(self.file),
            DASHSCOPE_BASE_URL=self._base_url,
            **{"QWEN_PROXY_WORKERS": "2", **environment},
        )


@pytest.fixture
def place(start_proxy: StartProxy, sandbox: Sandbox) -> Iterator[Place]:
    with short_directory() as directory:
        yield Place(start_proxy, sandbox, Path(directory))


def status_of(proxy: Proxy, path: str, key: str = CLIENT_KEY) -> tuple[int, dict[str, object]]:
    with contextlib.closing(tcp(proxy)()) as client:
        client.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())


def tcp(proxy: Proxy) -> Callable[[], http.client.HTTPConnection]:
    return lambda: http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)


def test_no_call_fails_in_reloads_under_load(place: Place) -> None:
    proxy = place.start()
    reloads = int(os.environ.get("QWEN_PROXY_TEST_RELOADS", "3"))
    states: list[object] = []

    def looked(client: http.client.HTTPConnection) -> str:
        client.request("GET", "/health/ready")
        answer = client.getresponse()
        states.append(json.loads(answer.read())["status"])
        return "" if answer.status == 200 else str(answer.status)

    with (
        SteadyClients(tcp(proxy), call=chat) as clients,
        SteadyClients(tcp(proxy), call=looked, fresh=1, kept=1) as looks,
    ):
        for _ in range(reloads):
            reload(proxy)

    assert (clients.failures, looks.failures) == ([], [])
    assert clients.done > 10 * reloads
    assert set(states) == {"ok"}


@pytest.mark.skipif(not servers.nginx(), reason="nginx is not installed")
def test_no_call_fails_in_reloads_behind_nginx(place: Place) -> None:
    proxy = place.start(QWEN_PROXY_WORKERS="1")
    with (
        servers.start_nginx(place.file.parent, proxy.port) as nginx,
        SteadyClients(nginx.connect, call=chat) as clients,
    ):
        for _ in range(2):
            reload(proxy)

    assert clients.failures == []
    assert clients.done > 20


def test_streams_finish_in_their_old_worker_and_a_stop_need_not_wait_for_the_reload(
    place: Place,
) -> None:
    proxy = place.start(QWEN_PROXY_GRACEFUL_TIMEOUT="20")
    with stream_of(proxy, "chunks=70, interval=0.1") as long:
        old = proxy.workers()
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(proxy.workers() & old) == 1, "only the stream's worker is left")
        with stream_of(proxy, "chunks=3, interval=0.1") as short:
            proxy.process.send_signal(signal.SIGTERM)
            assert short.read().endswith(b"data: [DONE]\n\n")
        assert long.read().endswith(b"data: [DONE]\n\n")
    assert proxy.process.wait(10) == 0


def ready(proxy: Proxy) -> int:
    return status_of(proxy, "/health/ready")[0]


def refusal(proxy: Proxy, path: str) -> dict[str, object]:
    """The error of a call that is refused by a server that stops."""
    with contextlib.closing(tcp(proxy)()) as client:
        client.request("POST", path, body(max_tokens=9), HEADERS)
        answer = client.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (503, "close")
        assert int(answer.headers["Retry-After"]) >= 1
        error: dict[str, object] = json.loads(answer.read())["error"]
        return error


class TestSettings:
    def test_a_reload_follows_the_file(self, place: Place) -> None:
        proxy = place.start(OPENAI_MODEL="inherited", QWEN_PROXY_WORKERS="1")
        place.write(
            QWEN_PROXY_API_KEYS=OTHER_KEY,
            DASHSCOPE_API_KEY=UPSTREAM_KEY,
            QWEN_PROXY_WORKERS="2",
            QWEN_PROXY_PORT="1",
            LOG_LEVEL="WARNING",
            QWEN_PROXY_WORKRES="3",
        )
        assert status_of(proxy, "/v1/models")[0] == 200
        reload(proxy)

        assert status_of(proxy, "/v1/models")[0] == 401
        assert status_of(proxy, "/v1/models", OTHER_KEY)[0] == 200
        assert len(proxy.workers()) == 2
        wait_until(lambda: "Did you mean QWEN_PROXY_WORKERS?" in proxy.log.read_text(), "a note")
        log = proxy.log.read_text()
        assert "reload: QWEN_PROXY_PORT changed, which takes effect at the next restart" in log
        assert core(OTHER_KEY) not in log and core(CLIENT_KEY) not in log

        place.write(DASHSCOPE_API_KEY=UPSTREAM_KEY)
        reload(proxy)

        assert status_of(proxy, "/v1/models", "any word")[0] == 200, "a line removed"
        assert len(proxy.workers()) == 1, "as inherited"
        with contextlib.closing(tcp(proxy)()) as client:
            client.request("GET", "/status", headers={"Authorization": "Bearer any"})
            assert client.getresponse().status == 200

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (
                lambda file: file.write_text("QWEN_PROXY_WORKERS=many\n"),
                "QWEN_PROXY_WORKERS='many'",
            ),
            (lambda file: file.write_bytes(b"A=1\nB=\xff\n"), "line 2: this is not UTF-8"),
            (lambda file: file.unlink(), "is not there any more"),
        ],
        ids=["a bad value", "no text", "taken away"],
    )
    def test_settings_that_cannot_be_used_change_nothing(
        self, place: Place, change: Callable[[Path], object], told: str
    ) -> None:
        proxy = place.start(QWEN_PROXY_WORKERS="1")
        change(place.file)
        reload(proxy)

        (line,) = [each for each in proxy.log.read_text().splitlines() if "stay as they" in each]
        entry = json.loads(line)
        assert entry["level"] == "ERROR"
        assert told in entry["event"]
        assert status_of(proxy, "/v1/models")[0] == 200
        assert status_of(proxy, "/v1/models", OTHER_KEY)[0] == 401
        assert proxy.process.poll() is None


class TestStop:
    def test_new_calls_are_refused_while_streams_go_on(self, place: Place) -> None:
        proxy = place.start()
        with (
            contextlib.closing(tcp(proxy)()) as idle,
            stream_of(proxy, "chunks=40, interval=0.1") as stream,
        ):
            assert chat(idle) == ""
            proxy.process.send_signal(signal.SIGTERM)
            wait_until(lambda: ready(proxy) == 503, "it says so", within_s=1)
            assert refusal(proxy, "/v1/chat/completions")["code"] == "proxy_stopping"
            assert refusal(proxy, "/v1/messages")["type"] == "overloaded_error"
            idle.sock.settimeout(5)
            assert idle.sock.recv(1) == b"", "an idle connection is closed"
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert proxy.process.wait(5) == 0

    def test_a_stream_that_takes_too_long_ends_with_an_error_event(self, place: Place) -> None:
        proxy = place.start(QWEN_PROXY_GRACEFUL_TIMEOUT="1")
        with stream_of(proxy, "chunks=1000, interval=0.1") as stream:
            proxy.process.send_signal(signal.SIGTERM)
            with pytest.raises(http.client.IncompleteRead) as broken:
                stream.read()
        assert b"proxy_stopping" in broken.value.partial
        assert proxy.process.wait(10) == 0

    def test_the_unix_socket_is_there_until_the_end(self, place: Place) -> None:
        # Started by a TCP port, which `start` waits for; then by a socket of its own.
        with servers.start_gunicorn(place.file.parent, unix=True) as server:
            servers.serving(server)
            with contextlib.closing(UnixConnection(str(server.address))) as client:
                client.request("GET", "/stream?chunks=10&every=0.1")
                answer = client.getresponse()
                server.send(signal.SIGTERM)
                time.sleep(0.4)
                assert server.get("/")[0] == 200  # the demo refuses nothing
                assert answer.read().endswith(b"data: [DONE]\n\n")
            assert server.wait() == 0
            assert not Path(str(server.address)).exists()


class TestSocketOfSystemd:
    def test_restarts_lose_no_call(self, sandbox: Sandbox, tmp_path: Path) -> None:
        environment = {
            "DASHSCOPE_BASE_URL": sandbox.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_HOST": "127.0.0.2",
            "QWEN_PROXY_PORT": "9",
        }
        restarts = int(os.environ.get("QWEN_PROXY_TEST_RESTARTS", "2"))
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            proxy = start(tmp_path, environment, listener=listener)
            try:
                with SteadyClients(tcp(proxy), call=chat, fresh=2, kept=2) as clients:
                    for _ in range(restarts):
                        assert proxy.stop() == 0
                        proxy = start(tmp_path, environment, listener=listener)
                with stream_of(proxy, "chunks=10, interval=0.1") as stream:
                    proxy.process.send_signal(signal.SIGTERM)
                    assert stream.read().endswith(b"data: [DONE]\n\n")
            finally:
                proxy.stop()

        assert clients.failures == []
        assert clients.done > restarts
        log = proxy.log.read_text()
        assert f"systemd listens on 127.0.0.1:{proxy.port}, so the address 127.0.0.2:9" in log
        assert f'"listens_on": "127.0.0.1:{proxy.port}"' in log
