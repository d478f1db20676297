"""A qwen-code login behind a real gunicorn: renewed ahead of need, and never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.files.login_store import LoginPaths
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.sandbox import Sandbox
from tests.kit.login_files import write_login
from tests.kit.proxy import Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat, events, text_of
from tests.kit.servers import REPO

pytestmark = pytest.mark.server

HOURS_S = 3 * 3600.0


@pytest.fixture
def service(upstream: Sandbox) -> Sandbox:
    """The shared sandbox as login service and as upstream, with nothing of the test before."""
    upstream.settle()
    upstream.reset()
    return upstream


def paths(home: Path) -> LoginPaths:
    return LoginPaths.beside(home / ".qwen/oauth_creds.json")


def log_in(home: Path, service: Sandbox, *, left_s: float) -> dict[str, Any]:
    tokens = service.issue()
    write_login(paths(home).document, tokens, left_s=left_s)
    return tokens


def serve(start_proxy: StartProxy, service: Sandbox, *, workers: int = 1) -> Proxy:
    return start_proxy(
        QWEN_OAUTH_BASE_URL=service.origin,
        QWEN_PROXY_WORKERS=str(workers),
        QWEN_PROXY_SANDBOX="off",
    )


def ask(proxy: Proxy, text: str = "Hello there", **fields: Any) -> Exchange:
    return Exchange(proxy.port, chat(text, **fields), timeout_s=25)


def answer(proxy: Proxy, text: str = "Hello there", **fields: Any) -> tuple[int, Any]:
    with ask(proxy, text, **fields) as exchange:
        return exchange.head()[0], json.loads(exchange.body())


def counted(service: Sandbox) -> tuple[int, int, int]:
    oauth = service.state()["oauth"]
    return oauth["refreshes"], oauth["refresh_reuses"], oauth["refresh_unknown"]


def document(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths(home).document.read_text())
    return found


def assert_sound(home: Path, service: Sandbox, *, logins: int = 1) -> None:
    """The file holds the newest login, whole; of as many logins as were made."""
    found = document(home)
    assert found["access_token"][-6:] == found["refresh_token"][-6:]
    assert found["expiry_date"] > time.time() * 1000
    assert found["unknown"] == {"kept": True}
    assert service.state()["oauth"]["live_refresh_tokens"] == logins
    assert not paths(home).cli_lock.exists()


def assert_no_token_logged(proxy: Proxy) -> None:
    log = proxy.log.read_text()
    assert "sandbox-at-" not in log
    assert "sandbox-rt-" not in log


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_refused_token_is_renewed_and_the_client_sees_nothing(
    start_proxy: StartProxy, service: Sandbox, home: Path, stream: bool
) -> None:
    log_in(home, service, left_s=HOURS_S)
    proxy = serve(start_proxy, service)
    service.control(revoke_access_tokens=True)

    with ask(proxy, stream=stream) as exchange:
        status, _ = exchange.head()
        body = exchange.body()

    assert status == 200
    if stream:
        assert events(body)[-1] == "[DONE]"
        assert text_of(events(body)[:-1]).startswith("[sandbox]")
    else:
        assert json.loads(body)["choices"][0]["message"]["content"].startswith("[sandbox]")
    assert [record.status for record in service.settle() if record.route == "chat"] == [401, 200]
    assert counted(service) == (1, 0, 0)
    assert answer(proxy)[0] == 200
    assert counted(service) == (1, 0, 0)
    assert_sound(home, service)
    assert_no_token_logged(proxy)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_second_refusal_is_a_failure_of_the_account_and_not_of_the_clients_key(
    start_proxy: StartProxy, service: Sandbox, home: Path, stream: bool
) -> None:
    log_in(home, service, left_s=HOURS_S)
    proxy = serve(start_proxy, service, workers=2)
    service.control(closed_tier=True)

    for _ in range(4):
        status, body = answer(proxy, stream=stream)
        assert status == 503
        assert body["error"]["code"] == "oauth_tier_closed"
        assert "auth" not in body["error"]["type"]
        assert "API key" in body["error"]["message"]
    assert counted(service) == (1, 0, 0)
    # Another login is another chance.
    service.control(closed_tier=False)
    log_in(home, service, left_s=HOURS_S)
    assert answer(proxy)[0] == 200
    assert_no_token_logged(proxy)


def test_an_idle_proxy_keeps_its_token_fresh(
    start_proxy: StartProxy, service: Sandbox, home: Path
) -> None:
    log_in(home, service, left_s=HOURS_S)
    serve(start_proxy, service, workers=2)
    old = log_in(home, service, left_s=60)

    assert service.wait_until(lambda: counted(service)[0] == 1, 20)
    assert service.wait_until(lambda: document(home)["access_token"] != old["access_token"], 5)
    assert [record for record in service.requests if record.route == "chat"] == []


def test_no_call_waits_for_a_refresh_while_a_token_is_at_hand(
    start_proxy: StartProxy, service: Sandbox, home: Path
) -> None:
    log_in(home, service, left_s=HOURS_S)
    proxy = serve(start_proxy, service)
    service.control(faults={"token": "slow-after=5"})
    old = log_in(home, service, left_s=600)
    begun_s = time.monotonic()

    for _ in range(5):
        assert answer(proxy)[0] == 200
    took_s = time.monotonic() - begun_s

    assert document(home)["access_token"] == old["access_token"]
    assert took_s < 4
    assert service.wait_until(lambda: document(home)["access_token"] != old["access_token"], 20)
    assert answer(proxy)[0] == 200
    assert counted(service) == (1, 0, 0)


def test_a_stream_under_way_is_not_disturbed_by_a_refresh(
    start_proxy: StartProxy, service: Sandbox, home: Path
) -> None:
    old = log_in(home, service, left_s=HOURS_S)
    proxy = serve(start_proxy, service)

    with ask(proxy, "Hi [[sandbox: chunks=20, interval=0.1]]", stream=True) as exchange:
        exchange.read_until(b"data: ")
        service.control(next={"spec": "token-expired", "route": "chat"})
        assert answer(proxy)[0] == 200
        assert counted(service) == (1, 0, 0)
        assert document(home)["access_token"] != old["access_token"]
        assert b"[DONE]" not in exchange._received
        assert events(exchange.body())[-1] == "[DONE]"


def test_a_login_is_picked_up_without_a_restart(
    start_proxy: StartProxy, service: Sandbox, home: Path
) -> None:
    proxy = serve(start_proxy, service, workers=2)
    status, body = answer(proxy)
    assert (status, body["error"]["code"]) == (503, "no_account")
    service.control(approve_after_polls=0)

    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "login", "--json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(REPO),
            "QWEN_OAUTH_BASE_URL": service.origin,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert json.loads(done.stdout.splitlines()[-1])["event"] == "success"
    assert "sandbox-at-" not in done.stdout + done.stderr
    for _ in range(6):
        assert answer(proxy)[0] == 200
    assert counted(service) == (0, 0, 0)


def test_a_stop_in_the_middle_of_a_refresh_loses_nothing(
    start_proxy: StartProxy, service: Sandbox, home: Path
) -> None:
    log_in(home, service, left_s=HOURS_S)
    proxy = serve(start_proxy, service)
    service.control(faults={"token": "slow-after=3"})
    old = log_in(home, service, left_s=-5)
    found: list[int] = []
    client = threading.Thread(target=lambda: found.append(answer(proxy)[0]))
    client.start()
    assert service.wait_until(lambda: counted(service)[0] == 1, 15)
    assert document(home)["access_token"] == old["access_token"]

    assert proxy.stop(timeout_s=40) == 0

    client.join(10)
    assert found == [200]  # it was waiting, and the stop is graceful
    assert counted(service) == (1, 0, 0)
    assert_sound(home, service, logins=2)
    assert_no_token_logged(proxy)


def test_a_stop_that_cuts_the_calls_still_waits_for_the_refresh(
    start_proxy: StartProxy, service: Sandbox, home: Path
) -> None:
    log_in(home, service, left_s=HOURS_S)
    proxy = start_proxy(
        QWEN_OAUTH_BASE_URL=service.origin,
        QWEN_PROXY_SANDBOX="off",
        QWEN_PROXY_GRACEFUL_TIMEOUT="1",
    )
    service.control(faults={"token": "slow-after=5"})
    log_in(home, service, left_s=600)
    assert answer(proxy)[0] == 200  # with the old token; the refresh goes on by itself
    assert service.wait_until(lambda: counted(service)[0] == 1, 15)

    assert proxy.stop(timeout_s=40) == 0

    assert counted(service) == (1, 0, 0)
    assert_sound(home, service, logins=2)


def test_a_worker_that_is_killed_in_a_refresh_is_replaced_by_another(
    start_proxy: StartProxy, service: Sandbox, home: Path
) -> None:
    log_in(home, service, left_s=HOURS_S)
    proxy = serve(start_proxy, service, workers=2)
    service.control(faults={"token": "slow-before=20"})
    log_in(home, service, left_s=60)
    # Whoever looks first; the token is not spent by a client that leaves.
    assert service.wait_until(lambda: any(r.route == "token" for r in service.requests), 20)
    holder = ProxyLock(paths(home).proxy_lock).holder()
    assert holder is not None and holder.pid is not None
    assert holder.pid != proxy.process.pid
    service.control(faults={"token": ""})
    os.kill(holder.pid, signal.SIGKILL)

    assert service.wait_until(lambda: counted(service)[0] == 1, 25)
    assert service.wait_until(lambda: not paths(home).cli_lock.exists(), 10)
    assert answer(proxy)[0] == 200
    assert counted(service) == (1, 0, 0)
    assert_sound(home, service, logins=2)
    assert "own_dead_lock_broken" in proxy.log.read_text()
