"""Client keys of the database on a real server with two workers, changed by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.secrets import secret
from tests.kit.servers import REPO, wait_until

pytestmark = pytest.mark.server

ADMIN = secret("admin-of-servers")
#: How soon a change is in force in every worker.
WITHIN_S = 1.0
#: So many calls in a row meet both workers.
CALLS = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def proxy(upstream: Sandbox, home: Path) -> Iterator[Proxy]:
    """Two workers whose only keys are in the database, besides an admin's."""
    running = start(home, environment(upstream))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _no_troubles_of_the_test_before() -> None:
    """The shared proxy is not used here."""


def environment(upstream: Sandbox) -> dict[str, str]:
    return {
        "DASHSCOPE_BASE_URL": upstream.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_WORKERS": "2",
        "QWEN_PROXY_ADMIN_KEYS": ADMIN,
    }


def keys(proxy: Proxy, *words: str) -> Any:
    """What `qwen-proxy keys` prints, as the server's user runs it."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(proxy.home),
        "PORT": str(proxy.port),
        "PYTHONPATH": str(REPO),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "keys", *words, "--json"],
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def asked(proxy: Proxy, key: str, path: str = "/v1/models", **headers: str) -> tuple[int, str]:
    """The status of a GET, and the code of its error, on a connection of its own."""
    sent = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(proxy.origin + path, headers={**sent, **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]["code"]


def soon(proxy: Proxy, key: str, wanted: tuple[int, str]) -> None:
    """Check that both workers answer so within a second."""
    deadline = time.monotonic() + WITHIN_S
    streak = 0
    while streak < CALLS:
        got = asked(proxy, key)
        streak = streak + 1 if got == wanted else 0
        assert streak or time.monotonic() < deadline, got


def test_a_key_lives_in_every_worker_within_a_second(proxy: Proxy) -> None:
    made = keys(proxy, "add", "anna")
    soon(proxy, made["key"], (200, ""))

    rotated = keys(proxy, "rotate", "anna", "--grace", "2s")
    soon(proxy, rotated["key"], (200, ""))
    assert asked(proxy, made["key"]) == (200, "")
    wait_until(
        lambda: asked(proxy, made["key"]) == (401, "expired_api_key"), "the grace ends", within_s=4
    )
    assert asked(proxy, rotated["key"]) == (200, "")

    keys(proxy, "edit", "anna", "--cidr", "192.168.1.0/24")
    soon(proxy, rotated["key"], (403, "network_not_allowed"))
    forwarded = {"X-Forwarded-For": "192.168.1.7"}
    assert asked(proxy, rotated["key"], **forwarded) == (200, "")

    keys(proxy, "edit", "anna", "--cidr", "none", "--expires", "1s")
    wait_until(
        lambda: asked(proxy, rotated["key"]) == (401, "expired_api_key"), "it ends", within_s=4
    )
    keys(proxy, "edit", "anna", "--expires", "never")
    soon(proxy, rotated["key"], (200, ""))
    keys(proxy, "revoke", "anna")
    soon(proxy, rotated["key"], (401, "revoked_api_key"))


def test_a_key_that_is_made_over_http_is_the_same(proxy: Proxy) -> None:
    request = urllib.request.Request(
        proxy.origin + "/admin/v1/keys",
        data=b'{"name": "ben", "models": ["qwen3.7*"]}',
        headers={"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
        made = json.loads(answer.read())
    soon(proxy, made.pop("key"), (200, ""))

    shown = keys(proxy, "show", "ben")
    assert {**shown, "last_used_at": None} == {**made, "last_used_at": None}
    # Workers write it at their next round.
    wait_until(lambda: keys(proxy, "show", "ben")["last_used_at"], "its use is noted")


def test_the_official_client_sees_the_exceptions_that_it_knows(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    made = keys(proxy, "add", "carl", "--models", "qwen3.7*")
    soon(proxy, made["key"], (200, ""))
    with openai.OpenAI(base_url=proxy.base_url, api_key=made["key"], max_retries=0) as client:

        def chat(model: str) -> str:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hello"}]
            )
            return answer.model

        assert chat("qwen3.7-plus")
        with pytest.raises(openai.PermissionDeniedError) as refused:
            chat("qwen3-coder-plus")
        assert refused.value.code == "model_not_allowed"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("qwen3-coder-plus")
        assert {model.id for model in client.models.list()} >= {"qwen3.7-plus"}
        keys(proxy, "revoke", "carl")
        soon(proxy, made["key"], (401, "revoked_api_key"))
        with pytest.raises(openai.AuthenticationError) as gone:
            chat("qwen3.7-plus")
        assert gone.value.code == "revoked_api_key"
    assert "qwen3-coder-plus" not in {json.loads(r.body or b"{}")["model"] for r in sandbox.chats}


def harm(file: Path) -> None:
    """Overwrite the database, its log and its index."""
    for each in file.parent.iterdir():
        each.write_bytes(b"\xa5" * max(each.stat().st_size, 4096))


def status_of(proxy: Proxy) -> Any:
    """What `qwen-proxy status` prints, without any client key in its environment."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "status", "--json"],
        env={"HOME": str(proxy.home), "PORT": str(proxy.port), "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return json.loads(done.stdout)


def test_the_first_key_closes_the_server_and_no_loss_opens_it_again(
    tmp_path: Path, upstream: Sandbox
) -> None:
    settings = environment(upstream)
    del settings["QWEN_PROXY_ADMIN_KEYS"]
    proxy = start(tmp_path, settings)
    try:
        assert asked(proxy, "") == (200, "")
        key = keys(proxy, "add", "anna")["key"]
        soon(proxy, "", (401, "missing_api_key"))
        assert status_of(proxy)["asked"]["server"]  # commands still get in
        old = keys(proxy, "add", "ben")["key"]
        keys(proxy, "revoke", "ben")
        soon(proxy, key, (200, ""))
        soon(proxy, old, (401, "revoked_api_key"))
        state = proxy.home / ".local/state/qwen-proxy"
        harm(state / "database/state.sqlite3")

        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            assert asked(proxy, key) == (200, "")
            assert asked(proxy, "") == (401, "missing_api_key")
            assert asked(proxy, old) == (401, "revoked_api_key")
            assert asked(proxy, "sk-qp-unknown")[0] in (401, 503)
    finally:
        proxy.stop()

    harm(state / "database/state.sqlite3")
    again = start(tmp_path, settings)
    try:
        for _ in range(CALLS):
            assert asked(again, key) == (200, "")
            assert asked(again, "") == (401, "missing_api_key")
            assert asked(again, old) == (401, "revoked_api_key")
        assert "were taken from their copy" in again.log.read_text()
        assert [each["name"] for each in keys(again, "list")["data"]] == ["anna", "ben"]
    finally:
        again.stop()
