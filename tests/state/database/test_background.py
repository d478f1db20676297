"""The queue of responses that are made in the background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.errors import ApiError, Overloaded
from qwen_wsgi.state.database.background import BackgroundQueue, Job
from qwen_wsgi.state.database.responses import Stored
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.database.tables import DIRECTORY, database_in
from qwen_wsgi.state.shared_files import this_boot
from tests.fakes.clock import FakeClock

ME, OTHER = "boot/pid:[1]/1/1", "boot/pid:[1]/2/2"


_OPEN: list[Database] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """All queues of a test are closed after it."""
    yield
    while _OPEN:
        _OPEN.pop().close()


class Queue:
    """A queue, and what it is given."""

    def __init__(self, directory: Path | None = None, **bounds: int) -> None:
        self.clock = FakeClock()
        _OPEN.append(database_in(directory, self.clock, sleep=self.clock.advance))
        self.queue = BackgroundQueue(
            _OPEN[-1],
            self.clock,
            kept_s=100,
            boottime=self.clock.monotonic,
            **{"per_client": 10, **bounds},
        )

    def add(self, id: str, owner: str = "ada", request: bytes = b"{}") -> None:
        self.queue.add(
            owner,
            "key…a",
            deadline=self.clock.now() + 50,
            stored=Stored({"id": id, "output": []}, [{"type": "message"}], "resp_before"),
            headers={"HTTP_USER_AGENT": "x"},
            request=request,
        )

    def claim(self, worker: str = ME) -> Job:
        job = self.queue.claim(worker)
        assert job is not None
        return job


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    world = Queue(tmp_path)
    assert not world.queue.is_used
    assert world.queue.get("ada", "a") is None
    world.add("a", request=b'{"x": 1}')
    _OPEN[-1].close()

    job = Queue(tmp_path).queue.claim(ME)
    assert job is not None
    assert (job.owner, job.id, job.request) == ("ada", "a", b'{"x": 1}')
    assert job.stored == Stored({"id": "a", "output": []}, [{"type": "message"}], "resp_before")
    assert job.headers == {"HTTP_USER_AGENT": "x"}


def test_only_one_worker_gets_it_and_only_one_ends_it() -> None:
    world = Queue()
    world.add("a")
    job = world.claim(ME)

    assert world.queue.claim(OTHER) is None
    assert world.queue.mine(ME) == {job.key}
    assert not world.queue.begin_end(job.key, OTHER)
    assert world.queue.cancel("ada", "a", OTHER) is not None
    assert world.queue.mine(ME) == frozenset()
    assert not world.queue.begin_end(job.key, ME)
    assert world.queue.cancel("ada", "a", ME) is None
    assert world.queue.end(job.key)
    assert not world.queue.end(job.key)


def test_what_its_client_has_cancelled_has_no_other_end() -> None:
    """Also of the same worker, which was about to store one."""
    world = Queue()
    world.add("a")
    job = world.claim(ME)
    assert world.queue.cancel("ada", "a", ME) is not None

    assert not world.queue.begin_end(job.key, ME)
    assert not world.queue.take_over(job._replace(worker=OTHER), OTHER)
    assert world.queue.take_over(job, OTHER)


def test_clients_take_turns() -> None:
    world = Queue()
    for id in "abc":
        world.add(id, "ada")
    world.add("d", "bob")
    assert [world.claim().id for _ in range(4)] == ["a", "d", "b", "c"]


def test_bounds() -> None:
    world = Queue(per_client=2, max_rows=3, max_bytes=1000)
    world.add("a")
    with pytest.raises(Overloaded, match="no room"):
        world.add("large", request=b"x" * 1000)
    world.add("b")
    with pytest.raises(Overloaded, match="PER_KEY") as refused:
        world.add("c")
    assert refused.value.status == 429
    world.add("c", "bob")
    with pytest.raises(Overloaded, match="no room") as refused:
        world.add("d", "bob")
    assert refused.value.status == 503


def test_one_that_is_kept_here_is_no_burden_and_goes_in_the_end() -> None:
    world = Queue(per_client=1)
    world.add("a")
    world.queue.keep(world.claim().key, {"id": "a", "status": "failed"})
    world.add("b")
    job = world.queue.get("ada", "a")
    assert job is not None
    assert job.has_ended
    assert job.request == b""

    world.clock.advance(101)
    world.add("c", "bob")
    assert world.queue.get("ada", "a") is None


def test_silence() -> None:
    """Another container's process ids say nothing; ours would (`test_who_is_gone`)."""
    world = Queue()
    world.add("a")
    elsewhere = f"{this_boot()}/pid:[1]/1/1"
    key = world.claim(elsewhere).key
    world.clock.advance(40)
    assert world.queue.lost(ME, ()) == []
    world.queue.beat([key])
    world.queue.beat([])
    world.clock.advance(40)
    assert world.queue.lost(ME, ()) == []
    world.clock.advance(10)
    assert [job.key for job in world.queue.lost(ME, ())] == [key]
    assert world.queue.lost(elsewhere, [key]) == []


def test_one_that_is_late() -> None:
    world = Queue()
    world.add("a")
    assert world.queue.overdue(ME) is None
    world.clock.advance(51)
    late = world.queue.overdue(ME)
    assert late is not None
    assert late.id == "a"
    assert world.queue.overdue(ME) is None


def test_nothing_of_a_deleted_one_is_left(tmp_path: Path) -> None:
    world = Queue(tmp_path)
    assert world.queue.delete("ada", "a") is None
    world.add("a", request=b'{"input": "a-secret-of-ada"}')
    assert world.queue.delete("bob", "a") is None
    assert world.queue.delete("ada", "a") is not None
    files = b"".join(path.read_bytes() for path in (tmp_path / DIRECTORY).iterdir())
    _OPEN[-1].close()
    assert b"a-secret-of-ada" not in files


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).write_text("a file in the way")
    world = Queue(tmp_path)
    with pytest.raises(ApiError, match="cannot use its list") as refused:
        world.add("a")
    assert (refused.value.status, refused.value.code) == (503, "background_unavailable")


def test_the_log_is_told_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each worker looks at the queue twice a second."""
    (tmp_path / "background").write_text("a file in the way")
    world = Queue(tmp_path / "background")

    for _ in range(150):
        with pytest.raises(ApiError):
            world.queue.waits()
        world.clock.advance(0.5)

    assert len(caplog.messages) == 2


def test_a_damaged_row(tmp_path: Path) -> None:
    world = Queue(tmp_path)
    world.add("a")
    world.queue._do(
        lambda database: database.execute("UPDATE background_bodies SET items = '{'"), write=True
    )
    assert world.queue.get("ada", "a") is None
    world.add("b")
    assert world.queue.get("ada", "b") is not None
    _OPEN[-1].close()
