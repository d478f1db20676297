"""The metrics of one worker and of the others: when they are written, and what is told of all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from qwen_wsgi import metering as metering_module
from qwen_wsgi.accounting import metric_families as families
from qwen_wsgi.accounting.metrics import Metrics, Rows
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.metering import Metering
from qwen_wsgi.state.counters import SharedCounters
from tests.fakes.clock import NOON_S, FakeClock
from tests.kit.servers import wait_until

CALLS = (families.CALLS.name, "chat_completions", "complete", "2xx")
WORKERS = (families.WORKERS.name,)
IN_FLIGHT = (families.IN_FLIGHT.name,)


class Worker:
    """A worker's metrics; its gauges and its logins are what a test says."""

    def __init__(self, directory: Path | None, name: str = "one") -> None:
        self.clock = FakeClock()
        self.in_flight = 0
        self.logins: dict[str, Mapping[str, int]] = {}
        self.metrics = Metrics(causes=(), models=lambda: (), monotonic=self.clock.monotonic)
        self.shared = SharedCounters(
            directory, since=NOON_S, boottime=self.clock.monotonic, gone=lambda worker, _: False
        )
        self.metering = Metering(
            self.metrics,
            self.shared,
            self.clock,
            zeros=lambda: [CALLS],
            gauges=lambda: {IN_FLIGHT: [self.in_flight]},
            logins=lambda: self.logins.items(),
        )

    def count(self) -> None:
        call = CallRecord(method="POST", path="/v1/chat/completions", status=200)
        call.end(0.0)
        self.metrics.count(call)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    one, two = Worker(tmp_path), Worker(tmp_path)
    yield one, two
    one.metering.stop()
    two.metering.stop()


def test_before_any_call_known_rows_are_zero() -> None:
    totals = Worker(None).metering.totals()

    assert totals[CALLS] == [0]
    assert totals[WORKERS] == [1]
    assert totals[(families.START_TIME.name,)] == [NOON_S]


def test_all_workers_are_added_up_and_the_own_one_is_exact(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    one.count()
    two.count()
    one.in_flight, two.in_flight = 2, 3
    one.metering.work(0)
    two.metering.work(0)
    one.count()

    totals = one.metering.totals()
    assert (totals[CALLS], totals[WORKERS], totals[IN_FLIGHT]) == ([3], [2], [5])


def test_what_was_told_is_never_less_at_another_worker(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    for number in range(1, 20):
        (one if number % 2 else two).count()
        assert one.metering.totals()[CALLS] <= two.metering.totals()[CALLS]
        (one if number % 3 else two).count()
        assert two.metering.totals()[CALLS] <= one.metering.totals()[CALLS]


def test_rows_of_another_version_are_left_out(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    strange: Rows = {("qwen_proxy_former_total",): [1], (*CALLS, "more"): [1], CALLS: [1, 2]}
    two.metrics.rows.update(strange)
    two.metering.work(0)

    totals = one.metering.totals()
    assert totals[CALLS] == [0]
    assert not strange.keys() & totals.keys() - {CALLS}


def test_a_block_is_written_when_something_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(tmp_path)
    writes = 0
    write = worker.shared.write

    def counted(*arguments: Rows) -> None:
        nonlocal writes
        writes += 1
        write(*arguments)

    monkeypatch.setattr(worker.shared, "write", counted)
    worker.metering.work(0)
    assert writes == 1
    for rounds in range(1, 10):
        worker.metering.work(rounds)
    assert writes == 1
    worker.count()
    worker.metering.work(1)
    assert writes == 1, "twice a second is too often"
    worker.metering.work(2)
    worker.in_flight = 1
    worker.metering.work(4)
    assert writes == 3
    worker.metrics.observe_lag(0.1)
    worker.metering.work(6)
    assert writes == 3, "a lag alone is no reason"
    worker.clock.advance(15)
    worker.metering.work(8)
    assert writes == 4
    worker.metering.stop()


def test_a_worker_that_ends_leaves_its_counts(tmp_path: Path) -> None:
    one, two = Worker(tmp_path), Worker(tmp_path)
    one.count()
    one.in_flight = 7
    one.metering.stop()

    totals = two.metering.totals()
    assert (totals[CALLS], totals[IN_FLIGHT]) == ([1], [0])
    two.metering.stop()


def test_a_worker_that_ends_may_still_answer(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    one.count()
    one.metering.totals()
    one.metering.stop()
    one.count()
    assert one.metering.totals()[CALLS] == [2]
    assert two.metering.totals()[CALLS] == [2], "it has one block, as before"


def test_the_counts_of_ended_workers_are_taken_over(tmp_path: Path) -> None:
    one, two = Worker(tmp_path), Worker(tmp_path)
    one.count()
    one.metering.stop()
    two.metering.work(0)
    two.shared._is_gone = lambda worker, silent_s: True
    two.count()
    two.metering.work(4)
    two.metering.stop()

    assert two.metrics.rows[CALLS] == [2]
    assert len(list(tmp_path.glob("block-*"))) == 1


def test_refreshes_of_logins_are_counted_once_each() -> None:
    worker = Worker(None)
    counters = Counter({"refresh_total.ok": 2, "lock.waited": 5})
    worker.logins = {"qwen": counters}
    name = families.REFRESHES.name
    worker.metering.totals()
    counters["refresh_total.ok"] += 1
    counters["refresh_total.rejected"] += 1
    totals = worker.metering.totals()
    assert totals[name, "qwen", "ok"] == [3]
    assert totals[name, "qwen", "rejected"] == [1]
    assert len([key for key in totals if key[0] == name]) == 2

    worker.logins = {"qwen": Counter({"refresh_total.ok": 1})}  # another login of this name
    assert worker.metering.totals()[name, "qwen", "ok"] == [4]


def test_its_thread_writes_and_measures_and_goes_on_after_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metering_module, "LAG_EVERY_S", 0.001)
    worker = Worker(tmp_path)
    with caplog.at_level(logging.ERROR, metering_module.__name__), monkeypatch.context() as patch:

        def broken() -> Rows:
            raise RuntimeError("made by the test")

        patch.setattr(worker.metering, "_gauges", broken)
        worker.metering.start()
        wait_until(lambda: caplog.records, "the fault is told")
    worker.count()
    lag = (families.LOOP_LAG.name,)
    wait_until(lambda: sum(worker.metrics.rows.get(lag, [0])) > 5, "measured")
    other = Worker(tmp_path)
    wait_until(lambda: other.metering.totals()[CALLS] == [1], "written")
    worker.metering.stop()
    other.metering.stop()
