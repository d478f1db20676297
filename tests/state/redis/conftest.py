"""One Redis for the tests of this room, emptied for each of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.redis_server import PROGRAM, RedisServer


@pytest.fixture(scope="session")
def running_redis() -> Iterator[RedisServer]:
    if not PROGRAM:
        pytest.skip("redis-server is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        RedisServer(Path(directory)) as server,
    ):
        yield server


@pytest.fixture
def redis_server(running_redis: RedisServer) -> RedisServer:
    running_redis.command("FLUSHALL")
    return running_redis
