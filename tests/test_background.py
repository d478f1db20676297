"""The worker's side of responses in the background: what breaks one off, and what is told then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gevent
import pytest

from qwen_wsgi.background import Background
from qwen_wsgi.errors import ApiError
from qwen_wsgi.state.database.background import BackgroundQueue, Job
from qwen_wsgi.state.database.responses import ResponseStore, Stored
from qwen_wsgi.state.database.tables import database_in
from tests.fakes.clock import FakeClock

OTHER = "boot/pid:[1]/2/2"

T = TypeVar("T")


class World:
    """A worker whose responses take as long as a test wants."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.database = database_in(None, self.clock, apart=self._apart)
        #: The results of its transactions are long on their way back.
        self.slow: object = None
        self.queue = BackgroundQueue(self.database, self.clock, per_client=10, kept_s=100)
        self.responses = ResponseStore(self.database, self.clock, ttl_s=100, max_bytes=1 << 20)
        self.worker = Background(self.queue, self.responses, self.clock, limit=2, stop_s=3)
        self.worker.work = self._work
        self.begun: list[str] = []
        self.broken_off: list[str] = []

    def _apart(self, work: Callable[[], T], *, timeout_s: float | None = None) -> T:
        result = work()
        if gevent.getcurrent() is self.slow:
            gevent.sleep(0.02)
        return result

    def _work(self, job: Job) -> dict[str, Any]:
        self.begun.append(job.id)
        try:
            gevent.sleep(10)
        except BaseException:
            self.broken_off.append(job.id)
            raise
        raise AssertionError("not broken off")

    def add(self, id: str) -> None:
        self.queue.add(
            "ada",
            "key…a",
            deadline=self.clock.now() + 50,
            stored=Stored({"id": id, "output": [], "status": "queued"}, [], None),
            headers={},
            request=b"{}",
        )

    def begin(self, id: str) -> None:
        """Add one, and work at it."""
        self.add(id)
        self.worker.look()
        self.worker.wait(0.01)
        assert id in self.begun

    def told(self, id: str) -> tuple[str, str]:
        """The status and the error of one that has ended."""
        self.worker.wait(1)
        assert self.worker.in_flight == 0
        found = self.responses.get("ada", id)
        assert found is not None
        return found.response["status"], (found.response.get("error") or {}).get("message", "")


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.worker.stop()
    made.database.close()


def test_so_many_at_a_time(world: World) -> None:
    for id in "abc":
        world.add(id)
    world.worker.look()
    world.worker.wait(0.01)
    assert world.begun == ["a", "b"]
    assert world.worker.in_flight == 2


def test_a_cancel_here(world: World) -> None:
    world.begin("a")
    cancelled = world.worker.cancel("ada", "a")
    assert cancelled is not None
    assert cancelled["status"] == "cancelled"
    assert world.told("a") == ("cancelled", "")
    assert world.broken_off == ["a"]
    assert world.worker.cancel("ada", "a") is None


def test_a_cancel_elsewhere(world: World) -> None:
    world.begin("a")
    world.queue.cancel("ada", "a", OTHER)
    world.worker.look()
    world.worker.look()
    world.worker.wait(1)
    assert world.worker.in_flight == 0
    assert world.broken_off == ["a"]
    assert world.responses.get("ada", "a") is None  # the other one stores it


def test_a_look_while_one_that_waits_is_cancelled_leaves_its_end_alone(world: World) -> None:
    """It is ending, and nobody works at it: so is one whose worker is gone."""
    world.add("a")
    world.slow = cancel = gevent.spawn(world.worker.cancel, "ada", "a")
    gevent.sleep(0.001)
    world.worker.look()

    assert (cancel.get() or {}).get("status") == "cancelled"
    assert world.told("a") == ("cancelled", "")
    assert world.begun == []


def test_a_delete(world: World) -> None:
    world.begin("a")
    assert world.worker.delete("ada", "a")
    world.worker.wait(1)
    assert world.broken_off == ["a"]
    assert world.queue.get("ada", "a") is None
    assert world.responses.get("ada", "a") is None


def test_one_that_is_broken_off_before_it_began(world: World) -> None:
    """Its greenlet never runs, and its place is free all the same."""
    world.add("a")
    world.worker.look()
    world.worker.cancel("ada", "a")
    world.worker.wait(1)
    world.worker.look()
    assert world.told("a") == ("cancelled", "")
    assert world.begun == []


def test_one_that_takes_too_long(world: World) -> None:
    world.begin("a")
    world.clock.advance(51)
    world.worker.look()
    status, why = world.told("a")
    assert status == "failed"
    assert "in time" in why
    assert world.broken_off == ["a"]


def test_a_stop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs has its time, what waits stays, and gunicorn is told that the worker lives."""
    world.begin("a")
    signs: list[float] = []

    def notify() -> None:
        signs.append(world.clock.monotonic())
        world.clock.advance(2)

    world.worker.drain()
    world.worker.drain()
    world.add("b")
    world.worker.look()
    with monkeypatch.context() as shorter:
        shorter.setattr(world.worker, "wait", lambda timeout_s: gevent.sleep(0.01))
        world.worker.stop(notify)

    assert len(signs) == 2
    status, why = world.told("a")
    assert status == "failed"
    assert "stopped or restarted" in why
    waiting = world.queue.get("ada", "b")
    assert waiting is not None
    assert waiting.is_queued


def test_an_end_that_fails_is_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("broken")

    world.worker.work = lambda job: {"id": job.id, "output": []}
    monkeypatch.setattr(world.worker, "finish", broken)
    world.add("a")
    with caplog.at_level(logging.ERROR, "qwen_wsgi"):
        world.worker.look()
        world.worker.wait(1)
    assert world.worker.in_flight == 0
    assert "the end of a response in the background is lost" in caplog.text


def test_a_look_that_fails_is_not_the_last(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[Callable[[], None]] = []

    def look() -> None:
        looks.append(world.worker.wake)
        world.worker.wake()
        if len(looks) == 1:
            raise ApiError("no disk")
        if len(looks) == 2:
            raise RuntimeError("broken")
        world.worker.stop()

    monkeypatch.setattr(world.worker, "look", look)
    with caplog.at_level(logging.ERROR, "qwen_wsgi"):
        world.worker._run()
    assert len(looks) == 3
    assert caplog.text.count("a look failed") == 1
