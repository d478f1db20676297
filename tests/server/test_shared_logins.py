"""Two boxes with one login: two servers with homes and state directories of their own."""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.login_files import write_login
from tests.kit.proxy import Proxy, start
from tests.kit.raw_client import Exchange, chat
from tests.kit.redis_server import RedisServer, needs_redis
from tests.kit.servers import wait_until

pytestmark = [pytest.mark.server, needs_redis]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        RedisServer(Path(directory)) as server,
    ):
        yield server


def box(directory: Path, redis: RedisServer, service: Sandbox) -> Proxy:
    directory.mkdir(exist_ok=True)
    return start(
        directory,
        {
            "QWEN_OAUTH_BASE_URL": service.origin,
            "QWEN_PROXY_WORKERS": "1",
            "QWEN_PROXY_SANDBOX": "off",
            "QWEN_PROXY_REDIS_URL": redis.url,
            "QWEN_PROXY_STATE_KEY": "shared-by-both-boxes" * 2,
        },
    )


def answers(proxy: Proxy) -> bool:
    with Exchange(proxy.port, chat("Hello"), timeout_s=10) as exchange:
        return exchange.head()[0] == 200


def account(proxy: Proxy) -> dict[str, Any]:
    """The login in `/health`; nothing while there is none."""
    try:
        with urllib.request.urlopen(f"{proxy.origin}/health", timeout=5) as response:
            accounts: list[dict[str, Any]] = json.load(response)["accounts"]
    except urllib.error.HTTPError as error:
        error.close()
        return {}
    return accounts[0] if accounts else {}


def test_a_login_made_on_one_box_is_used_on_both_and_without_redis_too(
    tmp_path: Path, redis: RedisServer, upstream: Sandbox
) -> None:
    file = tmp_path / "one/home/.qwen/oauth_creds.json"
    file.parent.mkdir(parents=True)
    write_login(file, upstream.issue(), left_s=10_000)
    one, other = box(tmp_path / "one", redis, upstream), box(tmp_path / "other", redis, upstream)
    try:
        wait_until(lambda: answers(other), "the other box has the login", within_s=8)
        assert answers(one)
        assert account(other)["sharing"] == "in_step"
        assert not (other.home / ".qwen/oauth_creds.json").exists()

        redis.kill()
        wait_until(lambda: account(one).get("sharing") == "redis_away", "that is told", within_s=8)
        assert answers(one)
        assert answers(other)
    finally:
        for each in (one, other):
            assert each.stop() == 0
    assert "sandbox-at-" not in one.log.read_text() + other.log.read_text()
