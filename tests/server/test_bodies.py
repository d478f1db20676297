"""Bodies that do not come, come slowly, come broken or in masses: what each costs the others."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.processes import tree
from tests.kit.proxy import Proxy, StartProxy, start
from tests.kit.secrets import secret
from tests.kit.servers import REPO

pytestmark = pytest.mark.server

CHAT = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "hi"}]}
BODY = json.dumps(CHAT).encode()
KEY = secret("client-of-bodies")
HEAD = (
    "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\n{framing}\r\n\r\n"
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("bodies")
    proxy = start(directory, settings_for(upstream, QWEN_PROXY_BODY_TIMEOUT="1"))
    yield proxy
    proxy.stop()


def settings_for(upstream: Sandbox, **environ: str) -> dict[str, str]:
    return {
        "QWEN_UPSTREAM_BASE_URL": upstream.base_url,
        "QWEN_UPSTREAM_API_KEY": secret("bodies"),
        "QWEN_PROXY_API_KEYS": KEY,
        "QWEN_PROXY_WORKERS": "1",
        **environ,
    }


class Connection:
    """A raw connection to the server; a context manager."""

    def __init__(self, proxy: Proxy) -> None:
        self.socket = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def request(
        self, framing: str, body: bytes, *, key: str = KEY, path: str = "/v1/chat/completions"
    ) -> None:
        head = HEAD.format(path=path, key=key, framing=framing)
        self.socket.sendall(head.encode() + body)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of an answer with a length."""
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, rest = got.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {n.lower(): v for n, v in (line.split(": ", 1) for line in lines)}
        while len(rest) < int(headers["content-length"]):
            rest += self._more()
        return int(first.split()[1]), headers, json.loads(rest)

    def _more(self) -> bytes:
        data = self.socket.recv(65536)
        assert data, "the connection ended too early"
        return data

    @property
    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def health(proxy: Proxy) -> dict[str, Any]:
    request = urllib.request.Request(
        proxy.origin + "/health", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        found: dict[str, Any] = json.load(response)
        return found


def wait_until(true: Callable[[], bool], *, timeout_s: float = 20) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("framing", "part"),
    [
        (f"Content-Length: {len(BODY)}", BODY[:20]),
        (f"Content-Length: {len(BODY)}", b""),
        ("Transfer-Encoding: chunked", b'5\r\n{"a":\r\n'),
        ("Transfer-Encoding: chunked", b'5\r\n{"a'),
    ],
)
def test_a_body_that_pauses_is_refused_and_its_place_is_free(
    proxy: Proxy, framing: str, part: bytes
) -> None:
    with Connection(proxy) as connection:
        connection.request(framing, part)

        status, headers, told = connection.answer()

        assert (status, told["error"]["code"]) == (408, "request_timeout")
        assert headers["connection"] == "close"
        assert connection.is_closed
    wait_until(lambda: health(proxy)["in_flight"] == 0)


def test_a_body_that_trickles_is_refused_in_the_end(proxy: Proxy) -> None:
    """It never pauses for a second, but would take minutes."""
    with Connection(proxy) as connection:
        connection.request("Content-Length: 1000", b"")
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.2):
                try:
                    connection.socket.sendall(b" ")
                except OSError:
                    return

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            status, _, told = connection.answer()
        finally:
            stop.set()
            sender.join()
    assert (status, told["error"]["code"]) == (408, "request_timeout")


def test_a_slow_body_that_keeps_the_rate_is_served(proxy: Proxy) -> None:
    body = BODY[:-1] + b" " * 200_000 + b"}"
    with Connection(proxy) as connection:
        connection.request(f"Content-Length: {len(body)}", b"")
        for at in range(0, len(body), 50_000):
            connection.socket.sendall(body[at : at + 50_000])
            time.sleep(0.4)

        assert connection.answer()[0] == 200


@pytest.mark.parametrize(
    "broken",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}xx0\r\n\r\n",
        b"2;\x00=1\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nbroken trailer\r\n\r\n",
        b"f" * 20_000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_broken_chunks_are_the_clients_fault(proxy: Proxy, path: str, broken: bytes) -> None:
    with Connection(proxy) as connection:
        connection.request("Transfer-Encoding: chunked", broken, path=path)

        status, headers, told = connection.answer()

        assert status == 400
        assert told["error"]["type"] == "invalid_request_error"
        assert ("type" in told) == (path == "/v1/messages")
        assert headers["connection"] == "close"
    assert "Traceback" not in proxy.log.read_text()


def test_lawful_chunks_are_served(proxy: Proxy) -> None:
    half = len(BODY) // 2
    chunks = b'%x;name="a;b" ;x=1\r\n%b\r\n' % (half, BODY[:half])
    chunks += b"%X\r\n%b\r\n00\r\nX-Trailer: 1\r\n\r\n" % (len(BODY) - half, BODY[half:])
    with Connection(proxy) as connection:
        connection.request("Transfer-Encoding: chunked", chunks)
        assert connection.answer()[0] == 200


@pytest.mark.parametrize(
    ("path", "key", "length", "status"),
    [
        ("/v1/chat/completions", "wrong", 60_000_000, 401),
        ("/v1/no-such-path", KEY, 60_000_000, 404),
        ("/v1/chat/completions", KEY, 100_000_000, 413),
        ("/v1/messages", "wrong", 10_000_000_000, 401),
    ],
)
def test_a_body_that_nobody_wants_is_not_swallowed(
    proxy: Proxy, path: str, key: str, length: int, status: int
) -> None:
    with Connection(proxy) as connection:
        connection.request(f"Content-Length: {length}", b"{", key=key, path=path)

        told = connection.answer()

        assert told[0] == status
        assert told[1]["connection"] == "close"
        assert connection.is_closed


def test_a_client_that_sends_all_before_it_reads_sees_its_refusal(proxy: Proxy) -> None:
    with Connection(proxy) as connection:
        connection.request("Content-Length: 20000000", b"x" * 20_000_000, key="wrong")
        assert connection.answer()[0] == 401


@pytest.mark.parametrize("body", [b"{", b"[]", BODY + b"}"])
def test_a_body_that_was_read_keeps_the_connection(proxy: Proxy, body: bytes) -> None:
    with Connection(proxy) as connection:
        connection.request(f"Content-Length: {len(body)}", body)
        status, headers, _ = connection.answer()
        assert (status, headers["connection"]) == (400, "keep-alive")
        connection.request(f"Content-Length: {len(BODY)}", BODY)
        assert connection.answer()[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-maybe\r\n\r\n", 417),
    ],
)
def test_what_never_became_a_request_is_answered_in_json(
    proxy: Proxy, head: bytes, status: int
) -> None:
    with Connection(proxy) as connection:
        connection.socket.sendall(head)

        told = connection.answer()

        assert told[0] == status
        assert told[1]["content-type"] == "application/json"
        assert set(told[2]["error"]) == {"message", "type", "param", "code"}
        assert connection.is_closed


def test_a_stop_does_not_wait_for_bodies(upstream: Sandbox, start_proxy: StartProxy) -> None:
    proxy = start_proxy(**settings_for(upstream))
    with Connection(proxy) as connection:
        connection.request(f"Content-Length: {len(BODY)}", BODY[:10])
        wait_until(lambda: health(proxy)["in_flight"] == 1)
        began_s = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)

        status, _, told = connection.answer()

        assert (status, told["error"]["code"]) == (503, "server_stopping")
    assert proxy.stop() == 0
    assert time.monotonic() - began_s < 20  # of the 60 that streams may have


def test_a_whole_answer_that_a_stop_cuts_is_a_503(
    upstream: Sandbox, start_proxy: StartProxy
) -> None:
    proxy = start_proxy(**settings_for(upstream, QWEN_PROXY_GRACEFUL_TIMEOUT="1"))
    upstream.control(faults={"chat": "hang"})
    with Connection(proxy) as connection:
        connection.request(f"Content-Length: {len(BODY)}", BODY)
        wait_until(lambda: health(proxy)["in_flight"] == 1)
        proxy.process.send_signal(signal.SIGTERM)

        status, headers, told = connection.answer()

        assert status == 503
        assert headers["retry-after"] == "1"
        assert "stopping" in told["error"]["message"]
    upstream.reset()
    assert proxy.stop() == 0


def test_the_bytes_of_all_bodies_are_bounded(upstream: Sandbox, start_proxy: StartProxy) -> None:
    proxy = start_proxy(**settings_for(upstream, QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT="3000000"))
    with Connection(proxy) as first, Connection(proxy) as chunked, Connection(proxy) as third:
        first.request("Content-Length: 2000000", b"{")
        wait_until(lambda: health(proxy)["in_flight"] == 1)

        chunked.request("Transfer-Encoding: chunked", b"1e8480\r\n" + b" " * 2_000_000)
        status, headers, told = chunked.answer()
        assert (status, told["error"]["code"]) == (503, "overloaded")
        assert headers["retry-after"] == "1"
        third.request("Content-Length: 1500000", b"")
        assert third.answer()[0] == 503

        first.socket.close()
        wait_until(lambda: health(proxy)["in_flight"] == 0)
        with Connection(proxy) as fourth:
            body = BODY[:-1] + b" " * 2_500_000 + b"}"
            fourth.request(f"Content-Length: {len(body)}", body)
            assert fourth.answer()[0] == 200
    assert proxy.stop() == 0


@pytest.mark.timeout(180)
def test_many_large_bodies_at_once_stall_nobody(start_proxy: StartProxy) -> None:
    """Ten bodies of 63 MB: what their calls take of memory, and how long /health waits.

    Upstream, clients and the one who asks are processes of their own: only the server is measured.
    """
    size = 63 << 20
    with run("qwen_wsgi.sandbox", "--exit-on-stdin-eof") as upstream:
        assert upstream.stdout is not None
        origin = upstream.stdout.readline().split()[-1]
        proxy = start_proxy(
            QWEN_UPSTREAM_BASE_URL=origin + "/v1",
            QWEN_UPSTREAM_API_KEY=secret("bodies"),
            QWEN_PROXY_API_KEYS=KEY,
            QWEN_PROXY_WORKERS="1",
            QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT="800000000",
        )
        (worker,) = tree(proxy.process.pid)[1:]
        before = peak = memory(proxy)
        with run("tests.kit.crowd", "watch", str(proxy.port), str(worker)) as watcher:
            senders = [
                run("tests.kit.crowd", "send", str(proxy.port), str(size)) for _ in range(10)
            ]
            try:
                while any(sender.poll() is None for sender in senders):
                    peak = max(peak, memory(proxy))
                    time.sleep(0.02)
                statuses = [sender.communicate()[0].strip() for sender in senders]
            finally:
                for sender in senders:
                    sender.kill()
            told = json.loads(watcher.communicate()[0])
        assert statuses == ["200"] * 10
        assert proxy.stop() == 0
    assert peak - before < 3 * 10 * size
    assert told["asked"] > 10
    # The goal is half a second, and bodies that stall others take several. It is doubled because
    # four processes of tests share two cores; a machine on which one look through the bytes of such
    # a body takes longer than 28 ms may need longer still.
    assert told["stall_s"] < max(1.0, 36 * look_s(size))


def look_s(size: int) -> float:
    """CPU seconds that it takes to look through so many bytes: the best of three."""
    content, found = b"A" * size, []
    for _ in range(3):
        began_s = time.thread_time()
        assert content.count(b",") == 0
        found.append(time.thread_time() - began_s)
    return min(found)


def run(*words: str) -> subprocess.Popen[str]:
    """A Python program, which ends when its stdin does."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=REPO,
        env={"PATH": os.environ["PATH"], "KEY": KEY, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def memory(proxy: Proxy) -> int:
    """Bytes that the server's processes have of their own."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        parent = re.search(r"^PPid:\s+(\d+)", text, re.MULTILINE)
        if parent and int(parent[1]) == proxy.process.pid:
            found = re.search(r"^VmRSS:\s+(\d+)", text, re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
    return total
