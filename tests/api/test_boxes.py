"""What /health and /status say of the Redis that several boxes share."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.apps import in_front_of, running
from tests.kit.redis_server import RedisServer, needs_redis
from tests.kit.secrets import core, secret

pytestmark = needs_redis

WORD = secret("redis-password")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        RedisServer(Path(directory), password=WORD) as server,
    ):
        yield server


def test_health_and_status_say_whether_it_is_away(server: RedisServer) -> None:
    with in_front_of(b"", QWEN_PROXY_REDIS_URL=server.url) as (app, _):
        store = app.services.shared_store
        assert store is not None
        store.look()
        there = json.loads(app.get("/health").data)
        noted = json.loads(app.get("/status").data)["notes"]
        server.kill()
        store.look()
        app.clock.advance(7)
        away = app.get("/health")
        problems = json.loads(app.get("/status").data)["problems"]

    assert there["redis"]["state"] == "ok"
    assert there["redis"]["version"]
    assert noted == [
        f"Redis {there['redis']['version']} at {store.shown} is shared with other boxes."
    ]
    assert away.status_code == 200
    assert json.loads(away.data)["redis"] == {**there["redis"], "state": "away", "away_s": 7.0}
    assert "has been away for 7 s" in problems[-1]
    assert core(WORD) not in json.dumps([there, noted, problems]) + away.text


def test_without_one_nothing_is_said_and_nothing_is_loaded() -> None:
    with running() as app:
        assert app.services.shared_store is None
        assert "redis" not in json.loads(app.get("/health").data)
