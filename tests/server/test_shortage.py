"""A server that has run out of files itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.raw_server import COMPLETION, Peer, RawServer, whole
from tests.kit.proxy import Proxy, StartProxy
from tests.kit.raw_client import chat

pytestmark = pytest.mark.server


def answer(peer: Peer) -> None:
    """Closes each connection: a kept one would need no further file."""
    if peer.request.startswith(b"POST"):
        peer.send(whole(json.dumps(COMPLETION).encode(), connection="close"))
    else:
        peer.send(whole(b"{}", "404 Not Found", connection="close"))
    peer.close()


@contextlib.contextmanager
def no_file_left(proxy: Proxy) -> Iterator[None]:
    """Let the worker open no further file, as long as it closes none."""
    (pid,) = proxy.workers()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_says_so_and_blames_no_upstream(start_proxy: StartProxy, host: str) -> None:
    with RawServer(answer) as server:
        proxy = start_proxy(
            QWEN_UPSTREAM_BASE_URL=f"http://{host}:{server.port}/v1", QWEN_PROXY_RETRY_BUDGET="5"
        )
        client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)

        def ask() -> tuple[int, str | None, Any]:
            client.request("POST", "/v1/chat/completions", json.dumps(chat(model="m")))
            response = client.getresponse()
            return response.status, response.headers["retry-after"], json.load(response)

        with contextlib.closing(client):
            assert ask()[0] == 200
            with no_file_left(proxy):
                for _ in range(8):
                    status, wait, told = ask()
                    assert (status, told["error"]["code"]) == (503, "proxy_out_of_files"), told
                    assert wait is not None
                    assert "LimitNOFILE" in told["error"]["message"]
            assert ask()[0] == 200, "no circuit is open, and nobody is left alone"
        assert proxy.stop() == 0
