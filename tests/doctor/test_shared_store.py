"""What doctor says of the Redis that several boxes share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.doctor import shared_store
from qwen_wsgi.doctor.findings import Level
from qwen_wsgi.state.redis.connection import SharedStore, SharedStoreAway, Survey
from tests.fakes.clock import FakeClock
from tests.kit.redis_server import RedisServer, needs_redis

GOOD = Survey("7.0.15", 0.001, "noeviction", 0, True)


class Given(SharedStore):
    """Tells what it is given."""

    def __init__(self, found: Survey | SharedStoreAway) -> None:
        super().__init__("redis://:a-password@redis.lan:6379/0", "box", FakeClock())
        self._found = found

    def survey(self) -> Survey:
        if isinstance(self._found, SharedStoreAway):
            raise self._found
        return self._found


def levels(found: Survey | SharedStoreAway) -> dict[str, Level]:
    return {each.subject: each.level for each in shared_store.check(Given(found))}


PLACE = "redis://****@redis.lan:6379/0"


def test_without_one_there_is_nothing_to_check() -> None:
    assert list(shared_store.check(None)) == []


def test_a_good_one() -> None:
    assert levels(GOOD) == {PLACE: Level.OK, "latency": Level.OK}


@pytest.mark.parametrize(
    ("found", "subject", "level"),
    [
        (SharedStoreAway("no answer within 250 ms"), PLACE, Level.FAIL),
        (GOOD._replace(version="5.0.3"), PLACE, Level.FAIL),
        (GOOD._replace(seconds=0.1), "latency", Level.WARN),
        (GOOD._replace(policy="allkeys-lru"), "maxmemory-policy", Level.WARN),
        (GOOD._replace(persistent=False), "persistence", Level.NOTE),
    ],
)
def test_what_is_wrong(found: Survey | SharedStoreAway, subject: str, level: Level) -> None:
    assert levels(found)[subject] is level


def test_one_that_does_not_tell_whether_it_persists_is_not_blamed() -> None:
    assert "persistence" not in levels(GOOD._replace(persistent=None))


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        RedisServer(Path(directory)) as server,
    ):
        yield server


@needs_redis
def test_a_real_one(server: RedisServer) -> None:
    store = SharedStore(server.url, "box", FakeClock(), patience_s=10.0)
    found = store.survey()
    assert int(found.version.partition(".")[0]) >= 6
    assert (found.policy, found.limit, found.persistent) == ("noeviction", 0, False)

    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    server.command("CONFIG", "SET", "save", "60 1")
    assert store.survey()[2:] == ("allkeys-lru", 0, True)
    server.command("ACL", "SETUSER", "default", "-config")
    server.command("ACL", "SETUSER", "default", "+ping")
    assert store.survey().persistent is None
    store.close()
