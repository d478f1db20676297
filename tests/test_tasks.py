"""Work in a greenlet of its own: waited for in slices, taken once, or broken off where it waits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar

import gevent
import pytest

from qwen_wsgi.greenlets import Foreground, Task

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


# --- work that its starter does -------------------------------------------------------------------


class Starter:
    """A greenlet that does some work itself, and another one that goes on when it takes long."""

    def __init__(self, work: Callable[[], str], meanwhile: Callable[[], None]) -> None:
        self.discarded: list[str] = []
        self.work = Foreground(work, discard=self.discarded.append, meanwhile=meanwhile)
        self.in_time: bool | None = None
        self.error: BaseException | None = None
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            self.in_time = self.work.begin(0.01)
        except BaseException as error:
            self.error = error

    def join(self) -> Starter:
        self.greenlet.join(LONG_S)
        assert self.greenlet.dead
        return self


def test_work_that_is_soon_done_is_its_starters() -> None:
    starter = Starter(lambda: slow(0.0), pytest.fail).join()

    assert starter.in_time
    assert starter.work.wait(None)
    assert starter.work.take() == "made"
    gevent.sleep(0.03)  # the time is over, and nothing comes of it


def test_a_failure_in_time_is_raised_where_it_is_taken() -> None:
    def work() -> str:
        raise OSError("no")

    starter = Starter(work, pytest.fail).join()

    assert starter.in_time
    with pytest.raises(OSError, match="no"):
        starter.work.take()


def test_a_starter_whose_work_takes_long_waits_for_whoever_goes_on() -> None:
    told: list[object] = []
    who = ContextVar("who", default="nobody")

    def meanwhile() -> None:
        told.append(who.get())
        while not starter.work.wait(0.01):
            told.append("waits")
        told.append(starter.work.take())
        gevent.sleep(0.03)
        told.append("over")

    def work() -> str:
        who.set("the starter")
        return slow(0.06)

    starter = Starter(work, meanwhile)
    starter.join()

    assert starter.in_time is False
    assert (told[0], told[1], told[-2:]) == ("the starter", "waits", ["made", "over"])
    assert who.get() == "nobody"


def test_whoever_goes_on_can_break_off_the_work() -> None:
    ends: list[str] = []

    def work() -> str:
        try:
            return slow(LONG_S)
        except gevent.GreenletExit:
            ends.append("broken off")
            raise

    starter = Starter(work, lambda: starter.work.cancel())
    starter.join()

    assert (starter.in_time, starter.error, ends) == (False, None, ["broken off"])


def test_work_that_ends_all_the_same_is_discarded_then() -> None:
    def work() -> str:
        with suppress(gevent.GreenletExit):
            gevent.sleep(LONG_S)
        return "made"

    starter = Starter(work, lambda: starter.work.cancel())
    starter.join()

    assert starter.discarded == ["made"]


class Gone(BaseException):
    """Thrown by the tests."""


@pytest.mark.parametrize("waits", [True, False], ids=["for-the-work", "for-something-else"])
def test_what_is_thrown_into_the_work_reaches_whoever_goes_on(waits: bool) -> None:
    ends: list[object] = []

    def meanwhile() -> None:
        try:
            if waits:
                starter.work.wait(None)
                starter.work.take()
            else:
                gevent.sleep(LONG_S)
        except BaseException as error:
            ends.append(error)

    starter = Starter(lambda: slow(LONG_S), meanwhile)
    gevent.sleep(0.04)
    error = Gone()
    starter.greenlet.kill(error, block=False)
    starter.join()

    assert ends == [error]
    assert (starter.in_time, starter.error) == (False, None)


def test_what_is_thrown_into_a_starter_that_waits_for_the_end_is_passed_on() -> None:
    ends: list[object] = []

    def meanwhile() -> None:
        starter.work.wait(None)
        starter.work.take()
        for _ in range(2):
            try:
                gevent.sleep(LONG_S)
            except Gone as error:
                ends.append(error)

    starter = Starter(lambda: slow(0.02), meanwhile)
    errors = [Gone(), Gone()]
    for error in errors:
        gevent.sleep(0.06)
        starter.greenlet.kill(error, block=False)
    starter.join()

    assert ends == errors


def test_what_is_thrown_into_the_work_in_time_is_the_starters() -> None:
    starter = Starter(lambda: slow(LONG_S), pytest.fail)
    gevent.sleep(0.0)
    error = Gone()
    starter.greenlet.kill(error, block=False)
    starter.join()

    assert starter.in_time
    with pytest.raises(Gone):
        starter.work.take()
