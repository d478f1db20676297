"""The calls in flight of one worker, and how those of several become one list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest

from qwen_wsgi import greenlets, in_flight
from qwen_wsgi.accounting.recent import Recent
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import CallCancelled
from qwen_wsgi.in_flight import CallsInFlight, Cancelled
from qwen_wsgi.state.worker_sockets import Asked
from tests.fakes.clock import NOON_S, FakeClock
from tests.kit import call_rows


@dataclass
class Call:
    record: CallRecord
    environ: Any = field(default_factory=lambda: {"REMOTE_ADDR": "192.0.2.7"})
    closed: bool = False
    serving: Any = None


class World:
    """One worker, and what the others answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.others = Asked((), 0)
        self.asked: list[Any] = []
        self.thrown: list[BaseException | None] = []
        self.calls = CallsInFlight(
            self.clock, Path("/state"), address_of=lambda e: e["REMOTE_ADDR"], throw=self.throw
        )
        monkeypatch.setattr(in_flight, "ask_others", self.ask)

    def ask(self, state_dir: Path | None, question: Any) -> Asked:
        self.asked.append(question)
        return self.others

    def throw(self, greenlet: Any, error: Callable[[], BaseException | None]) -> None:
        self.thrown.append(error())

    def begin(self, id: str, **members: Any) -> Call:
        record = CallRecord(request_id=id, started_at=self.clock.monotonic(), **members)
        call = Call(record)
        self.calls.begin(call)
        return call

    @property
    def ids(self) -> list[str]:
        return [row["id"] for row in self.calls.all().rows]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_what_is_told_of_a_call(world: World) -> None:
    call = world.begin("a", client="anna", method="POST", endpoint="/v1/embeddings", model="m")
    world.clock.advance(2)
    (row,) = world.calls.all().rows
    assert row["state"] == "waiting"
    assert (row["started_at"], row["seconds"]) == (NOON_S, 2.0)
    assert (row["account"], row["seconds_to_first_byte"]) == (None, None)
    assert row["address"] == "192.0.2.7"

    call.record.is_queued = True
    assert world.calls.all().rows[0]["state"] == "queued"

    call.record.is_queued = False
    call.record.account, call.record.attempts = "first", 2
    call.record.first_byte_at, call.record.received_bytes = 1001.5, 77
    call.record.note_gap(1001.5, 0.25)
    (row,) = world.calls.all().rows
    assert (row["state"], row["seconds_to_first_byte"]) == ("streaming", 1.5)
    assert (row["account"], row["attempts"], row["received_bytes"]) == ("first", 2, 77)
    assert row["gaps"] == [{"after": 1.5, "seconds": 0.25}]


def test_a_split_call_is_told_by_its_parts(world: World) -> None:
    call = world.begin("a")
    first, second = call.record.part(), call.record.part()
    first.is_queued = second.is_queued = True
    assert world.calls.all().rows[0]["state"] == "queued"
    second.is_queued, second.account, second.attempts = False, "b", 1
    assert world.calls.all().rows[0]["state"] == "waiting"
    second.first_byte_at, second.received_bytes = 1003.0, 10
    (row,) = world.calls.all().rows
    assert (row["state"], row["account"], row["attempts"]) == ("streaming", "b", 1)
    assert (row["seconds_to_first_byte"], row["received_bytes"]) == (3.0, 10)


def test_what_has_ended_is_not_told(world: World) -> None:
    gone, written, closed = (world.begin(id) for id in ("gone", "written", "closed"))
    world.begin("own", endpoint="/admin/v1/calls/{id}")
    world.begin("left")
    world.calls.end(gone)
    world.calls.end(gone)
    written.record.is_written = closed.closed = True
    assert world.ids == ["left"]


def test_several_workers_are_one_list_the_newest_last(world: World) -> None:
    others = [{"id": "b", "started_at": NOON_S + 1}, {"id": "d", "started_at": NOON_S + 3}]
    world.others = Asked(({"calls": others, "more": False}, {"calls": []}, "odd"), 1)
    world.begin("a")
    world.clock.advance(2)
    world.begin("c")

    found = world.calls.all()

    assert [row["id"] for row in found.rows] == ["a", "b", "c", "d"]
    assert (found.has_more, found.workers, found.silent) == (False, 3, 1)
    cut = world.calls.all(2)
    assert [row["id"] for row in cut.rows] == ["c", "d"]
    assert cut.has_more
    world.others = Asked(({"calls": others, "more": True},), 0)
    assert world.calls.all().has_more


def test_a_question_of_another_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "MOST", 2)
    for id in "abc":
        world.begin(id)
        world.clock.advance(1)
    answer = world.calls._answer({"calls": True})
    assert [row["id"] for row in answer["calls"]] == ["b", "c"]
    assert answer["more"] is True
    assert world.calls._answer({"cancel": "b", "by": "anna"}) == {"cancelled": 1}
    assert world.calls._answer({"cancel": "x"}) == {"cancelled": 0}


def test_calls_are_counted_however_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "MOST", 2)
    world.others = Asked(({"counts": {"first": 1500, "": 2}}, "odd"), 1)
    world.begin("a", account="first")
    split = world.begin("b")
    split.record.part().account = "second"
    world.begin("own", endpoint="/admin/v1/calls")
    found = world.calls.counts()
    assert found.accounts == {"first": 1501, "second": 1, "": 2}
    assert (found.accounts.total(), found.silent) == (1504, 1)
    assert world.calls._answer({"count": True}) == {"counts": {"first": 1, "second": 1}}


def test_all_calls_of_an_id_are_cancelled(world: World) -> None:
    world.others = Asked(({"cancelled": 2}, {"cancelled": 0}), 1)
    twins = [world.begin("twin"), world.begin("twin")]
    world.begin("other")

    assert world.calls.cancel("twin", "anna") == Cancelled(4, 1)

    assert world.asked == [{"cancel": "twin", "by": "anna"}]
    assert all(twin.record.is_cancelled for twin in twins)
    assert [type(error) for error in world.thrown] == [greenlets.CallCancelledExit] * 2
    assert isinstance(world.thrown[0], CallCancelled)
    assert "by 'anna'" in world.thrown[0].error.message


def test_one_that_ends_in_the_same_moment_is_left_alone(world: World) -> None:
    call = world.begin("a")

    def late(greenlet: Any, error: Callable[[], BaseException | None]) -> None:
        call.record.is_written = True
        world.thrown.append(error())

    world.calls._throw = late
    world.calls.cancel("a", "anna")
    assert world.thrown == [None]
    assert not call.record.is_cancelled


def test_an_error_is_thrown_into_a_greenlet_that_waits() -> None:
    ended = []

    def work() -> None:
        try:
            gevent.sleep(5)
        except CallCancelled as cancelled:
            ended.append(cancelled.error.code)

    waiting = gevent.spawn(work)
    gevent.sleep(0)
    greenlets.throw_into(waiting, lambda: None)
    gevent.sleep(0.01)
    assert not waiting.dead
    greenlets.throw_into(waiting, lambda: greenlets.CallCancelledExit("anna"))
    waiting.join(1)
    assert ended == ["call_cancelled"]
    greenlets.throw_into(waiting, lambda: greenlets.CallCancelledExit("anna"))
    gevent.sleep(0.01)
    assert greenlets.current() is gevent.getcurrent()


@pytest.mark.parametrize(
    ("cancelled", "open_already", "outcome"),
    [(False, True, "client_gone"), (True, True, "cancelled"), (True, False, "complete")],
)
def test_how_the_record_of_one_that_nobody_takes_ends(
    cancelled: bool, open_already: bool, outcome: str
) -> None:
    record = CallRecord(is_cancelled=cancelled, outcome="open" if open_already else "complete")
    record.leave()
    assert record.outcome == outcome


def test_a_cancelled_call_in_its_record() -> None:
    record = CallRecord()
    record.fail(CallCancelled("anna"))
    assert (record.outcome, record.status, record.error_code) == (
        "cancelled",
        403,
        "call_cancelled",
    )


def test_a_watched_worker_tells_what_has_ended(world: World) -> None:
    ended = call_rows.call(request_id="theirs")
    answer = {"calls": [{"id": "b", "started_at": NOON_S + 1}], "more": True, "ended": [ended]}
    world.others = Asked((answer, "odd"), 1)
    world.begin("a")
    recent = Recent(world.clock.monotonic)
    world.calls._recent = recent
    begun = world.clock.monotonic()
    world.calls.watch(begun, begun)
    world.clock.advance(1)
    recent.add(call_rows.call(request_id="own"))
    world.clock.advance(1)

    found = world.calls.watch(begun, world.clock.monotonic())

    assert [row["id"] for row in found.calls.rows] == ["a", "b"]
    assert (found.calls.has_more, found.calls.workers, found.calls.silent) == (True, 2, 1)
    assert [row.request_id for row in found.ended] == ["theirs", "own"]
    assert world.asked[-1] == {"watch": [begun, begun + 2]}


def test_the_newest_of_many_calls_are_watched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_flight, "MOST_WATCHED", 2)
    for id in "abc":
        world.begin(id)
        world.clock.advance(1)
    answer = world.calls._answer({"watch": [0, 1]})
    assert [row["id"] for row in answer["calls"]] == ["b", "c"]
    assert (answer["more"], answer["ended"]) == (True, [])


def test_tokens_of_a_stream_are_estimated() -> None:
    record = CallRecord()
    assert record.streamed_tokens == 0
    record.note_events(b"data: {}\n\n", 1)
    record.note_events(b"data: {frame}\n\n" * 5, 5)
    assert record.streamed_tokens == 6
    record.note_events(b"data: {frame" + b"x" * 40 + b"}\n\n", 1)
    assert record.streamed_tokens == 6 + 1 + 10
