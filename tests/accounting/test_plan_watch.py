"""What a worker knows of plans: by the ledger, by its own calls, and by what vendors say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.accounting.books import Books, journal_in
from qwen_wsgi.accounting.plan_watch import BELIEVED_S, PlanAccount, PlanWatch
from qwen_wsgi.plan_limits import DEFAULTS, parse
from qwen_wsgi.state.call_journal import JournalWriter
from qwen_wsgi.state.database import tables
from qwen_wsgi.state.database.calls import line_of
from tests.fakes.clock import NOON_S, FakeClock
from tests.kit.call_rows import call

HOUR = 3600.0
DAY = 24 * HOUR
PLAN = "coding-plan"


class World:
    """Workers of one box, their ledger, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.text = "3/5h"
        self.stated = True
        self.names = [PLAN]
        self.running = 0
        self.writer: JournalWriter = journal_in(directory, self.clock)
        self.opened: list[Books] = []

    def accounts(self) -> list[PlanAccount]:
        limits = parse(f"x={self.text}").entries[0][1] if self.stated else DEFAULTS["coding"]
        return [PlanAccount(name, PLAN, limits) for name in self.names]

    def worker(self) -> PlanWatch:
        books = Books(self.directory, self.clock, days=400, sleep=self.clock.advance)
        self.opened.append(books)
        return PlanWatch(
            self.accounts,
            books,
            self.clock,
            in_flight=lambda: {PLAN: self.running},
        )

    def note(self, count: int = 1, *, at: float | None = None, **more: Any) -> None:
        for _ in range(count):
            row = call(at=self.clock.now() if at is None else at, account=PLAN, **more)
            self.writer.append(line_of(row))

    def close(self) -> None:
        self.writer.close()
        for books in self.opened:
            books.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


def window(watch: PlanWatch, at: int = 0) -> dict[str, Any]:
    report = watch.report(PLAN)
    assert report is not None
    found: dict[str, Any] = report["windows"][at]
    return found


def due(watch: PlanWatch) -> bool:
    return watch.is_due


def test_what_all_workers_used_is_counted(world: World) -> None:
    one, two = world.worker(), world.worker()
    world.note(2)
    one.look()
    two.look()

    assert window(one) == window(two)
    assert (window(one)["used"], window(one)["tokens"], window(one)["limit"]) == (2, 220, 3)
    assert not one.is_spent(PLAN)
    assert one.spent_text(PLAN) == ""
    world.note()
    two.look()
    assert two.is_spent(PLAN)
    assert not one.is_spent(PLAN)
    one.look()
    assert one.blocked_s(PLAN) == two.blocked_s(PLAN) == pytest.approx(5 * HOUR, abs=60)
    assert two.spent_text(PLAN) == (
        "the plan of account 'coding-plan' is used up: its window of 5h (3 calls) is spent until "
        "2026-11-20 17:00 UTC"
    )


def test_requests_are_counted_where_they_went(world: World) -> None:
    watch = world.worker()
    world.names = [PLAN, "other"]
    world.note(attempts=3, requests='{"coding-plan":1,"other":2}')
    world.note(attempts=2, requests='{"other":2}')
    world.note(attempts=2)
    world.note(attempts=1, requests="garbage")
    world.note(attempts=0)

    watch.look()

    other = watch.report("other")
    assert other is not None
    assert (window(watch)["calls"], other["windows"][0]["calls"]) == (3, 4)


def test_calls_of_this_worker_count_at_once(world: World) -> None:
    watch = world.worker()
    world.running = 1
    watch.look()
    assert not watch.is_spent(PLAN)
    watch.began(PLAN)
    assert not watch.is_spent(PLAN)
    watch.began(PLAN)
    assert watch.is_spent(PLAN)
    assert "spent until" in watch.spent_text(PLAN)
    watch.began("another")

    world.running = 0
    world.note(2)
    watch.look()
    assert not watch.is_spent(PLAN), "one of them did not reach it"


def test_it_is_free_again_by_itself(world: World) -> None:
    watch = world.worker()
    world.text = "3/5h@first"
    world.note(3)
    watch.look()
    assert watch.is_spent(PLAN)
    world.clock.advance(5 * HOUR)
    assert not watch.is_spent(PLAN)
    assert watch.blocked_s(PLAN) == 0
    watch.look()
    assert window(watch)["used"] == 0


def test_windows_from_the_first_call_are_remembered(world: World) -> None:
    world.text = "9/5h@first"
    world.note(at=NOON_S - 7 * HOUR)
    world.note(at=NOON_S - 3 * HOUR)  # still in the first one
    world.note(at=NOON_S - HOUR)
    watch = world.worker()

    watch.look()

    assert window(watch)["used"] == 1
    assert window(watch)["begins_at"] == NOON_S - HOUR
    assert world.opened[0].known_windows()[PLAN, "5h"].begun_at == NOON_S - HOUR


def test_a_limit_that_is_only_assumed_keeps_nobody_away(world: World) -> None:
    world.stated = False
    watch = world.worker()
    world.note(attempts=6000)
    watch.look()

    assert watch.is_spent(PLAN)
    assert watch.blocked_s(PLAN) == 0
    report = watch.report(PLAN)
    assert report is not None
    assert (report["limits"], report["plan"], report["counted"]) == ("assumed", PLAN, True)


class TestTold:
    def test_all_workers_and_the_next_start_know_it(self, world: World) -> None:
        one, two = world.worker(), world.worker()
        one.look()
        two.look()
        one.told(PLAN, "hour allocated quota exceeded", HOUR)

        assert one.blocked_s(PLAN) == HOUR
        assert "as its vendor says" in one.spent_text(PLAN)
        assert not two.is_spent(PLAN)
        assert one.is_due
        one.look()
        two.look()
        assert two.blocked_s(PLAN) == HOUR
        assert window(two)["told_by_vendor"]
        later = world.worker()
        later.look()
        assert later.blocked_s(PLAN) == HOUR
        world.clock.advance(HOUR)
        assert not two.is_spent(PLAN)
        two.look()
        assert not window(two)["told_by_vendor"]

    def test_it_is_believed_for_a_day(self, world: World) -> None:
        world.text = "9/month"
        watch = world.worker()
        watch.told(PLAN, "month allocated quota exceeded", 20 * DAY)

        assert watch.blocked_s(PLAN) == BELIEVED_S
        assert watch.free_in_s(PLAN) == 20 * DAY
        world.clock.advance(DAY + 1)
        assert watch.blocked_s(PLAN) <= 0
        assert watch.is_spent(PLAN), "the fallback answers all the same"
        watch.told(PLAN, "month allocated quota exceeded", 19 * DAY - 2)
        assert watch.blocked_s(PLAN) == BELIEVED_S

    def test_a_stop_writes_it_down(self, world: World) -> None:
        watch = world.worker()
        watch.look()
        watch.told(PLAN, "hour allocated quota exceeded", HOUR)
        watch.stop()

        assert world.opened[0].known_windows()[PLAN, "5h"].told_until == NOON_S + HOUR

    def test_it_is_told_once(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        watch = world.worker()
        watch.look()
        for _ in range(3):
            watch.told(PLAN, "hour allocated quota exceeded", HOUR)

        assert caplog.text.count("the plan's window is spent") == 1

    def test_of_an_account_without_a_plan_nothing_is_known(self, world: World) -> None:
        watch = world.worker()
        watch.told("other", "hour allocated quota exceeded", HOUR)

        assert watch.seen == {}
        assert watch.free_in_s("other") == watch.blocked_s("other") == 0
        assert watch.spent_text("other") == ""
        assert watch.report("other") is None

    def test_it_corrects_the_begin_of_a_window(self, world: World) -> None:
        world.text = "9/5h@first"
        watch = world.worker()
        world.note(at=NOON_S - HOUR)
        watch.look()
        watch.told(PLAN, "hour allocated quota exceeded", 2 * HOUR)
        watch.look()

        assert window(watch)["begins_at"] == NOON_S - 3 * HOUR
        assert window(watch)["free_at"] == NOON_S + 2 * HOUR


class TestLooks:
    def test_how_often(self, world: World) -> None:
        watch = world.worker()
        assert due(watch)
        world.text = "1000/5h"
        watch.look()
        world.clock.advance(1)
        assert not due(watch)
        world.clock.advance(4)
        assert due(watch)
        world.note(attempts=950)
        watch.look()
        world.clock.advance(1)
        assert due(watch), "little is left"

    def test_without_plans_nothing_is_read(self, world: World) -> None:
        world.names = []
        watch = world.worker()
        watch.look()

        assert watch.seen == {}
        assert not (world.directory / tables.DIRECTORY).exists()

    def test_without_a_ledger_only_what_vendors_say_is_known(self, world: World) -> None:
        watch = PlanWatch(world.accounts, None, world.clock)
        watch.look()
        watch.began(PLAN)
        watch.told(PLAN, "hour allocated quota exceeded", HOUR)
        watch.look()

        report = watch.report(PLAN)
        assert report is not None
        assert not report["counted"]
        assert watch.blocked_s(PLAN) == HOUR

    def test_a_ledger_that_cannot_be_read_is_told_and_nothing_is_forgotten(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch = world.worker()
        world.note(2)
        watch.look()
        watch.told(PLAN, "hour allocated quota exceeded", HOUR)
        directory = world.directory / tables.DIRECTORY
        aside = world.directory / "aside"
        directory.rename(aside)
        directory.write_text("no directory")
        for _ in range(3):
            watch.look()

        assert caplog.text.count("it is not known how much of plans is used") == 1
        assert (window(watch)["used"], watch.blocked_s(PLAN)) == (2, HOUR)
        directory.unlink()
        aside.rename(directory)
        watch.look()
        assert world.opened[0].known_windows()[PLAN, "5h"].told_until == NOON_S + HOUR

    def test_the_thread_survives_a_fault(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        watch = world.worker()

        def fail() -> None:
            watch.stop()
            raise RuntimeError("a fault")

        watch.look = fail  # type: ignore[method-assign]  # of the test
        watch._run()

        assert "plans could not be looked at" in caplog.text
