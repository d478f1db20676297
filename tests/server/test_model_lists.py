"""Model lists behind a server with two workers."""

from __future__ import annotations

import json
import time

import pytest

from tests.fakes.raw_server import COMPLETION, Peer, RawServer, whole
from tests.kit.proxy import Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat

pytestmark = pytest.mark.server


def get(proxy: Proxy, path: str) -> tuple[int, str]:
    with Exchange(proxy.port, method="GET", path=path) as exchange:
        return exchange.head()[0], exchange.body().decode()


def asked(proxy: Proxy, model: str) -> tuple[int, dict[str, str]]:
    with Exchange(proxy.port, chat(model=model)) as exchange:
        status, headers = exchange.head()
        exchange.body()
        return status, headers


def test_what_one_worker_learns_of_a_list_the_other_knows(start_proxy: StartProxy) -> None:
    models = ["old"]

    def answer(peer: Peer) -> None:
        if peer.request.startswith(b"POST"):
            return peer.send(whole(json.dumps(COMPLETION).encode()))
        data = [{"id": id, "object": "model"} for id in models]
        return peer.send(whole(json.dumps({"object": "list", "data": data}).encode()))

    def lists() -> int:
        return sum(request.startswith(b"GET") for request in server.requests)

    with RawServer(answer) as server:
        proxy = start_proxy(QWEN_UPSTREAM_BASE_URL=f"{server.url}/v1", QWEN_PROXY_WORKERS="2")
        try:
            for _ in range(12):
                assert asked(proxy, "old")[0] == 200
                assert asked(proxy, "new")[0] == 404
            models.append("new")
            time.sleep(1.1)  # a list of this very second is as good as a new one
            before = lists()
            assert before <= 3, "the banner's look, and at most one of each worker"
            assert '"new"' in get(proxy, "/v1/models?refresh=1")[1]
            for _ in range(12):
                assert asked(proxy, "new")[0] == 200
            assert lists() == before + 1
        finally:
            proxy.stop()


def test_a_request_that_a_lost_connection_took_along_counts_as_an_attempt(
    start_proxy: StartProxy,
) -> None:
    def answer(peer: Peer) -> None:
        posts = sum(request.startswith(b"POST") for request in server.requests)
        if not peer.request.startswith(b"POST"):
            return peer.send(whole(b"{}", "404 Not Found"))
        if posts in (2, 3):
            return peer.close()
        return peer.send(whole(json.dumps(COMPLETION).encode()))

    with RawServer(answer) as server:
        proxy = start_proxy(QWEN_UPSTREAM_BASE_URL=f"{server.url}/v1")
        try:
            assert asked(proxy, "m")[0] == 200
            status, headers = asked(proxy, "m")
            assert (status, headers["x-qwen-proxy-attempts"]) == (502, "2"), (
                "a new connection that is closed is a failure of the upstream"
            )
            status, headers = asked(proxy, "m")
            assert (status, headers["x-qwen-proxy-attempts"]) == (200, "1")
        finally:
            proxy.stop()
