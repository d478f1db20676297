"""What workers tell each other about themselves."""

from __future__ import annotations

from pathlib import Path

from qwen_wsgi.state.shared_files import SharedFiles
from qwen_wsgi.state.workers import STALE_S, Worker, Workers
from tests.fakes.clock import FakeClock


def test_workers_see_each_other_until_they_end(tmp_path: Path) -> None:
    clock = FakeClock()
    one, other = (
        Workers(SharedFiles(tmp_path, boot_id="b"), boottime=clock.monotonic) for _ in range(2)
    )
    one.write(Worker(12, 3, 40))
    other.write(Worker(7, 0, 1))
    one.write(Worker(12, 2, 41))

    assert other.all() == [Worker(7, 0, 1), Worker(12, 2, 41)]
    one.remove(12)
    one.remove(13)
    assert other.all() == [Worker(7, 0, 1)]


def test_one_that_was_killed_is_forgotten() -> None:
    clock = FakeClock()
    workers = Workers(None, boottime=clock.monotonic)
    workers.write(Worker(12, 3, 40))
    clock.advance(STALE_S - 1)
    workers.write(Worker(13, 0, 0))
    clock.advance(2)

    assert workers.all() == [Worker(13, 0, 0)]
