"""Whether the server, its health and the commands say the same of an account that does not work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_wsgi.upstream.failures.causes import CAUSES
from tests.fakes.raw_server import COMPLETION, Peer, RawServer, whole
from tests.kit.proxy import Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat
from tests.kit.secrets import secret
from tests.kit.servers import REPO, wait_until

pytestmark = pytest.mark.server

KEY = secret("refused")
REFUSED = whole(
    b'{"error":{"message":"Incorrect API key provided.","code":"invalid_api_key"}}',
    "401 Unauthorized",
)
UNPAID = whole(b'{"error":{"message":"Overdue.","code":"Arrearage"}}', "400 Bad Request")
MODELS = whole(b'{"object":"list","data":[{"id":"m"}]}')
ANSWER = whole(json.dumps(COMPLETION).encode())


class Host(RawServer):
    """An upstream whose answers a test changes."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.models, self.chat = MODELS, ANSWER

    def _answer(self, peer: Peer) -> None:
        peer.send(self.chat if peer.request.startswith(b"POST") else self.models)


@pytest.fixture
def host() -> Iterator[Host]:
    server = Host()
    with server:
        yield server


def environment(host: Host) -> dict[str, str]:
    return {
        "QWEN_UPSTREAM_BASE_URL": f"{host.url}/v1",
        "QWEN_UPSTREAM_API_KEY": KEY,
        "QWEN_PROXY_WORKERS": "2",
    }


def get(proxy: Proxy, path: str) -> tuple[int, Any]:
    with Exchange(proxy.port, method="GET", path=path) as exchange:
        return exchange.head()[0], json.loads(exchange.body())


def ask(proxy: Proxy) -> tuple[int, dict[str, str], Any]:
    with Exchange(proxy.port, chat(model="m"), timeout_s=20) as exchange:
        status, headers = exchange.head()
        return status, headers, json.loads(exchange.body())


def command(proxy: Proxy, host: Host, *arguments: str) -> tuple[int, Any]:
    """A command beside the server, with the same settings and home."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", *arguments, "--json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(proxy.home),
            "PYTHONPATH": str(REPO),
            "PORT": str(proxy.port),
            "QWEN_OAUTH_BASE_URL": "http://127.0.0.1:9",
            **environment(host),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert KEY not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("cause", "state", "refusal", "status"),
    [("key_refused", "refused", REFUSED, 502), ("billing", "unpaid", UNPAID, 429)],
)
def test_everybody_says_the_same(
    start_proxy: StartProxy, host: Host, cause: str, state: str, refusal: bytes, status: int
) -> None:
    proxy = start_proxy(**environment(host))
    assert ask(proxy)[0] == 200
    assert get(proxy, "/health")[1]["status"] == "ok"
    host.chat = refusal

    got, _, told = ask(proxy)
    assert got == status
    remedy = CAUSES[cause].remedy
    if state == "refused":
        assert remedy in told["error"]["message"]
    for _ in range(4):
        got, health = get(proxy, "/health")
        assert (got, health["status"], health["cause"]) == (503, "no_usable_account", cause)
        (row,) = health["accounts"]
        assert (row["state"], row["cause"], row["remedy"]) == (state, cause, remedy)
        assert get(proxy, "/health/ready") == (
            503,
            {"status": "no_usable_account", "cause": cause},
        )
        got, headers, told = ask(proxy)
        assert got == status
        assert 1 <= int(headers["retry-after"]) <= 60, "told also while nobody is asked"
        if state == "refused":
            assert remedy in told["error"]["message"]

    ended, found = command(proxy, host, "status")
    (row,) = found["accounts"]
    assert (ended, row["state"], row["remedy"]) == (1, state, remedy)
    ended, found = command(proxy, host, "doctor", "--no-calls")
    mine = [each for each in found["findings"] if each["check"] == "accounts"]
    assert ended == 1
    assert (mine[0]["level"], mine[0]["remedy"]) == ("fail", remedy)
    ended, found = command(proxy, host, "doctor")
    mine = [each for each in found["findings"] if each["check"] == "accounts"]
    assert ended == 1
    assert remedy in [each["remedy"] for each in mine if each["level"] == "fail"]
    assert any(remedy in line for line in proxy.log.read_text().splitlines())

    host.chat = ANSWER
    wait_until(lambda: ask(proxy)[0] == 200, "the key is accepted again")
    for _ in range(4):
        assert get(proxy, "/health")[1]["status"] == "ok"
    assert command(proxy, host, "status")[0] == 0


def test_a_key_that_only_the_list_was_asked_with_is_known_to_be_refused(
    start_proxy: StartProxy, host: Host
) -> None:
    host.models = host.chat = REFUSED
    proxy = start_proxy(**environment(host))

    wait_until(lambda: get(proxy, "/health")[0] == 503, "the banner asks for the list")
    assert get(proxy, "/health")[1]["cause"] == "key_refused"
    ended, found = command(proxy, host, "doctor")
    (told, *_) = [
        each
        for each in found["findings"]
        if each["check"] == "accounts" and each["level"] == "fail"
    ]
    assert ended == 1
    assert "401" in told["what"]
    assert told["remedy"] == CAUSES["key_refused"].remedy


def test_health_is_true_within_moments_of_each_worker_s_news(
    start_proxy: StartProxy, host: Host
) -> None:
    host.chat = whole(
        b'{"error":{"message":"Slow down.","code":"limit_requests"}}',
        "429 Too Many Requests",
        retry_after="120",
    )
    proxy = start_proxy(**environment(host))
    ask(proxy)
    begun = time.monotonic()
    for _ in range(10):
        got, health = get(proxy, "/health")
        (row,) = health["accounts"]
        assert (got, row["state"], row["cause"]) == (503, "paused", "rate_limited")
        (model,) = row["models"]
        assert model["model"] == "m" and 60 < model["left_alone_s"] <= 120
    assert time.monotonic() - begun < 10
