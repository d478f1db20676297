"""Work in a greenlet of its own: waited for in slices, taken once, or broken off where it waits."""

from __future__ import annotations

import gevent
import pytest

from qwen_wsgi.greenlets import Task

#: Longer than any test waits.
LONG_S = 30.0


def never(result: object) -> None:
    raise AssertionError("discarded")


def slow(seconds: float, result: str = "made") -> str:
    gevent.sleep(seconds)
    return result


def test_work_is_waited_for_in_slices() -> None:
    task = Task(lambda: slow(0.05), discard=never)

    assert not task.wait(0.001)
    assert not task.wait(0.0)
    assert task.wait(None)
    assert task.wait(0.0)
    assert task.take() == "made"
    task.cancel()


def test_whoever_waits_is_woken_when_it_ends_and_by_nothing_else() -> None:
    task = Task(lambda: slow(0.02), discard=never)
    with gevent.Timeout(LONG_S):
        assert task.wait(LONG_S)

    assert task.take() == "made"
    # A wake that is left over would end this sooner.
    with gevent.Timeout(0.01), pytest.raises(gevent.Timeout):
        gevent.get_hub().switch()


def test_a_failure_of_the_work_is_raised_where_it_is_taken() -> None:
    def work() -> str:
        raise OSError("no")

    task = Task(work, discard=never)
    assert task.wait(LONG_S)

    with pytest.raises(OSError, match="no"):
        task.take()


def test_work_that_was_cancelled_before_it_began_is_not_done() -> None:
    done: list[str] = []
    task = Task(lambda: done.append("begun"), discard=never)

    task.cancel()
    gevent.sleep(0.001)

    assert task.wait(LONG_S)
    assert done == []


def test_work_is_broken_off_where_it_waits() -> None:
    ended: list[str] = []

    def work() -> str:
        try:
            return slow(LONG_S)
        finally:
            ended.append("here")

    task = Task(work, discard=never)
    assert not task.wait(0.001)

    task.cancel()
    task.cancel()
    assert ended == []  # whoever cancels does not wait for it
    assert task.wait(LONG_S)
    assert ended == ["here"]


def test_what_nobody_takes_is_discarded() -> None:
    discarded: list[str] = []
    task = Task(lambda: slow(0.0), discard=discarded.append)
    assert task.wait(LONG_S)

    task.cancel()

    assert discarded == ["made"]


def test_work_that_does_not_let_itself_be_broken_off_is_discarded_at_its_end() -> None:
    discarded: list[str] = []

    def work() -> str:
        try:
            return slow(LONG_S)
        except gevent.GreenletExit:
            return "all the same"

    task = Task(work, discard=discarded.append)
    assert not task.wait(0.001)
    task.cancel()

    assert task.wait(LONG_S)
    assert discarded == ["all the same"]


def test_what_is_thrown_into_whoever_waits_ends_the_wait_alone() -> None:
    task = Task(lambda: slow(0.02), discard=never)

    with gevent.Timeout(0.001), pytest.raises(gevent.Timeout):
        task.wait(None)

    assert task.wait(LONG_S)
    assert task.take() == "made"
