"""`qwen-proxy creds` with a login that boxes share, and what doctor says of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_wsgi import settings
from qwen_wsgi.boxes import shared_store_of, sharing_of
from qwen_wsgi.cli.main import EXIT_CONFIGURATION
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.doctor import configuration, locks
from qwen_wsgi.doctor.findings import Level
from qwen_wsgi.sandbox import Sandbox
from tests.kit.creds_machine import Machine
from tests.kit.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


@pytest.fixture
def machine(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Machine]:
    with Sandbox() as sandbox:
        yield Machine(home, sandbox, monkeypatch, capsys)


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        RedisServer(Path(directory)) as server,
    ):
        monkeypatch.setenv("QWEN_PROXY_REDIS_URL", server.url)
        monkeypatch.setenv("QWEN_PROXY_STATE_KEY", "k" * 32)
        yield server


@pytest.fixture
def discovery(redis: RedisServer, machine: Machine) -> Iterator[Callable[[], Discovery]]:
    """This box's logins, as its server sees them."""
    loaded, clock = settings.load(), SystemClock()
    directory = Path(loaded.state_dir)
    store = shared_store_of(loaded, clock, directory)
    assert store is not None
    sharing = sharing_of(loaded, clock, store, directory)
    yield lambda: Discovery(loaded, clock, sharing=sharing)
    store.close()


def test_the_state_and_a_take_over(redis: RedisServer, machine: Machine) -> None:
    machine.seed()

    (row,) = machine.run("status", "--json").rows
    box = row["sharing"].pop("this_box")
    assert row["sharing"] == {
        "state": "in_step",
        "renewed_by": None,
        "also_without_redis": False,
        "problem": None,
    }
    assert "shared: no box is known to renew it yet" in row["detail"]

    ended = machine.run("take-over", "--json")
    assert ended.status == 0
    assert ended.rows[0]["taken_over"] is True
    assert ended.rows[0]["sharing"]["renewed_by"] == box
    assert ended.rows[0]["sharing"]["also_without_redis"] is True

    assert machine.run("refresh").status == 0
    (row,) = machine.run("status", "--json").rows
    assert row["detail"].endswith("shared: this box renews it")


def test_a_take_over_without_redis(redis: RedisServer, machine: Machine) -> None:
    machine.seed()
    redis.kill()

    ended = machine.run("take-over", "--json")

    assert ended.status == 1
    assert "Redis has been away since" in ended.rows[0]["why"]
    assert ended.rows[0]["sharing"]["state"] == "redis_away"


def test_a_take_over_of_a_login_that_is_not_shared(machine: Machine) -> None:
    machine.seed()

    ended = machine.run("take-over", "--json")

    assert ended.status == 1
    assert "not shared" in ended.rows[0]["why"]


def test_forgotten_on_all_boxes(redis: RedisServer, machine: Machine) -> None:
    machine.seed()
    machine.run("take-over")

    ended = machine.run("forget", "--json")
    assert ended.status == 1
    assert "first" in ended.rows[0]["why"]

    (machine.qwen / "oauth_creds.json").unlink()
    ended = machine.run("forget", "--json")
    assert ended.status == 0
    assert ended.rows[0]["why"] == "it is forgotten on all boxes"
    assert machine.run("status").status == EXIT_CONFIGURATION


def test_forgotten_while_redis_is_away(redis: RedisServer, machine: Machine) -> None:
    machine.seed()
    machine.run("take-over")
    (machine.qwen / "oauth_creds.json").unlink()
    redis.kill()

    ended = machine.run("forget", "--json")

    assert ended.status == 0
    assert "the other boxes hear of it when Redis is back" in ended.rows[0]["why"]


def test_what_doctor_says(
    redis: RedisServer, machine: Machine, discovery: Callable[[], Discovery]
) -> None:
    machine.seed()
    (login,) = discovery().logins()

    (found,) = locks.sharing("oauth", login)
    assert found.level is Level.OK
    redis.kill()
    (found,) = locks.sharing("oauth", login)
    assert found.level is Level.WARN
    assert "Redis has been away" in found.what


def test_doctor_and_the_log_tell_of_a_missing_key(
    redis: RedisServer,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine.seed()
    monkeypatch.delenv("QWEN_PROXY_STATE_KEY")
    loaded, clock = settings.load(), SystemClock()
    store = shared_store_of(loaded, clock, Path(loaded.state_dir))
    assert store is not None
    assert sharing_of(loaded, clock, store, Path(loaded.state_dir)) is None
    store.close()

    (found,) = configuration.shared_logins(loaded, Discovery(loaded, clock))

    assert found.level is Level.WARN
    assert "QWEN_PROXY_STATE_KEY is not" in found.what
    assert "QWEN_PROXY_STATE_KEY is not set" in caplog.text
    (login,) = Discovery(loaded, clock).logins()
    assert list(locks.sharing("oauth", login)) == []
