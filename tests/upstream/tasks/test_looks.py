"""Looks at tasks: fresh enough, and not more than Model Studio takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import Overloaded
from qwen_wsgi.upstream.tasks.looks import FRESH_S, TaskLooks
from qwen_wsgi.upstream.tasks.tasks import TaskState
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import account_of

ACCOUNT = account_of()


class FakeTasks:
    """Notes when it was asked for what."""

    def __init__(self, clock: FakeClock, status: str = "RUNNING") -> None:
        self.clock = clock
        self.status = status
        self.asked: list[tuple[float, str]] = []

    def look(self, account: Any, id: str) -> TaskState:
        self.asked.append((self.clock.monotonic(), id))
        return TaskState(self.status, {})


def world(status: str = "RUNNING", workers: int = 1) -> tuple[FakeClock, FakeTasks, TaskLooks]:
    clock = FakeClock()
    tasks: Any = FakeTasks(clock, status)
    return clock, tasks, TaskLooks(tasks, clock, workers=workers, sleep=clock.advance)


def test_a_state_is_kept_for_a_second_and_an_end_for_good() -> None:
    clock, tasks, looks = world()
    for _ in range(10):
        looks.look(ACCOUNT, "t")
    assert len(tasks.asked) == 1
    clock.advance(FRESH_S)
    tasks.status = "SUCCEEDED"
    for _ in range(3):
        assert looks.look(ACCOUNT, "t").status == "SUCCEEDED"
        clock.advance(3600)
    assert len(tasks.asked) == 2
    looks.forget(ACCOUNT, "t")
    looks.look(ACCOUNT, "t")
    assert len(tasks.asked) == 3


@given(
    polls=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.3)), min_size=1, max_size=150),
    workers=st.integers(0, 4),
)
def test_an_account_is_never_asked_too_often(polls: list[tuple[int, float]], workers: int) -> None:
    clock, tasks, looks = world(workers=workers)
    for task, pause_s in polls:
        clock.advance(pause_s)
        assert looks.look(ACCOUNT, f"t{task}").status == "RUNNING"

    times = [at for at, _ in tasks.asked]
    most = 16 / max(1, workers) + 1
    for first in times:
        assert sum(first <= at < first + 1 for at in times) <= most


def test_what_is_kept_is_bounded() -> None:
    clock, _, looks = world("SUCCEEDED")
    for number in range(3000):
        looks.look(ACCOUNT, str(number))
        clock.advance(1)

    assert len(looks._known) == 2000


def test_a_queue_that_is_too_long_is_refused() -> None:
    clock = FakeClock()
    tasks: Any = FakeTasks(clock)
    slept: list[float] = []
    looks = TaskLooks(tasks, clock, sleep=slept.append)
    with pytest.raises(Overloaded) as refused:
        for number in range(1000):
            looks.look(ACCOUNT, str(number))

    assert max(slept) <= 15
    assert len(slept) < 16 * 16
    assert (refused.value.retry_after_s or 0) > 15
