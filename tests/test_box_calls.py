"""The calls of several boxes: told once, bounded, and ended from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import box_calls as module
from qwen_wsgi.accounting.books import Books, BooksUnavailable
from qwen_wsgi.box_calls import BoxAway, BoxCalls, BoxTeller, BoxTold
from qwen_wsgi.in_flight import Calls, CallsInFlight, Cancelled, Watched
from qwen_wsgi.protocol.json_object import encoded
from qwen_wsgi.state.database.calls import CallRow
from qwen_wsgi.state.redis.connection import SharedStoreAway
from qwen_wsgi.state.redis.live_calls import Answer, Asked, LiveCalls, Wanted
from tests.fakes.clock import FakeClock
from tests.kit.call_rows import call

TOLD: dict[str, Any] = {
    "object": "call", "id": "req_1", "client": "anna", "client_id": "c", "address": "192.0.2.7",
    "method": "POST", "endpoint": "/v1/messages", "stream": True, "account": "dashscope",
    "model": "qwen3.8-max", "upstream_model": None, "state": "streaming", "started_at": 12.5,
    "seconds": 3.2, "seconds_to_first_byte": 0.5, "received_bytes": 9, "streamed_tokens": 1234,
    "seconds_queued": 0.1, "seconds_connecting": 0.05, "longest_gap": 1.5,
    "gaps": [{"after": 1.0, "seconds": 1.5}], "attempts": 1, "worker": 7,
}  # fmt: skip


class Between(LiveCalls):
    """Redis, between two boxes of this process: `told` is what each tells."""

    def __init__(self) -> None:
        self.told: dict[str, bytes | None] = {}
        self.watched = False
        self.away = False
        self.asked: list[Asked] = []
        self.answers: dict[str, Answer] = {}
        self.trips = 0

    def watch(self) -> dict[str, bytes | None]:
        self._trip()
        self.watched = True
        return dict(self.told)

    def exchange(self, told: bytes = b"") -> Wanted:
        self._trip()
        if told:
            self.told["b"] = told
        asked, self.asked = self.asked, []
        return Wanted(self.watched, asked)

    def ask(self, box: str, id: str, by: str) -> str:
        self._trip()
        self.asked.append(Asked("token", id, by))
        return "token"

    def answer(self, token: str, answer: Answer) -> None:
        self.answers[token] = answer

    def answer_of(self, token: str) -> Answer | None:
        self._trip()
        return self.answers.get(token)

    def _trip(self) -> None:
        self.trips += 1
        if self.away:
            raise SharedStoreAway("no answer")


class InFlight(CallsInFlight):
    """The calls of a box, as a test says them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ended: list[CallRow] = []
        self.cancelled: list[tuple[str, str]] = []

    def watch(self, since: float, until: float) -> Watched:
        ended: list[CallRow] = []
        if until > since:
            ended, self.ended = self.ended, []
        return Watched(Calls(self.rows, False, 1, 0), ended)

    def cancel(self, request_id: str, by: str) -> Cancelled:
        self.cancelled.append((request_id, by))
        return Cancelled(1, 0)


class Ledger(Books):
    """The ledger of a box, as a test says it, the newest first."""

    def __init__(self) -> None:
        self.rows: list[CallRow] = []
        self.broken = False

    def latest(self, limit: int) -> list[CallRow]:
        if self.broken:
            raise BooksUnavailable("locked")
        return self.rows[:limit]


class World:
    """Box `a`, which looks at `b`."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.between, self.in_flight, self.ledger = Between(), InFlight(), Ledger()
        self.mine = True
        self.a = BoxCalls(self.between, self.clock, "hall", sleep=self._sleep)
        self.b = BoxTeller(
            self.between, self.in_flight, self.ledger, self.clock, "kitchen",
            is_mine=lambda: self.mine,
        )  # fmt: skip

    def _sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.b.look()

    def look(self) -> BoxTold:
        """What `a` sees of `b`, a second later."""
        self.a.others()
        self.clock.advance(1.0)
        self.b.look()
        return self.a.others().boxes["b"]


@pytest.fixture
def world() -> World:
    return World()


def test_each_call_that_ends_is_told_once(world: World) -> None:
    world.ledger.rows = [call(at=2.0, request_id="second"), call(at=1.0, request_id="first")]
    told = world.look()
    assert told.name == "kitchen"
    assert [row.request_id for row in told.since(None)] == ["first", "second"]
    known = told.number

    world.in_flight.ended = [call(at=4.0, request_id="fourth"), call(at=3.0, request_id="third")]
    told = world.look()
    assert [row.request_id for row in told.since(known)] == ["third", "fourth"]
    assert told.since(told.number) == []
    # Another teller, in another worker, has numbers beyond these.
    world.b._looked_s = world.b._told_s = float("-inf")
    world.b._watched = False
    again = world.look()
    assert again.number > told.number
    assert len(again.since(told.number)) == 2


def test_of_what_ends_the_last_ones_are_kept(world: World) -> None:
    world.look()
    for number in range(3):
        world.in_flight.ended = [call(at=float(number * 100 + n)) for n in range(100)]
        told = world.look()
    assert [told.ended[0].at, told.ended[-1].at, len(told.ended)] == [100.0, 299.0, 200]
    assert len(told.since(told.number - 500)) == 200


def test_calls_in_flight_are_bounded(world: World) -> None:
    long = "\ud800" + "x" * 1000
    world.in_flight.rows = [{**TOLD, "id": str(n), "client": long} for n in range(150)]
    world.in_flight.ended = [call(client=long, units="u", requests="r")]
    world.look()
    told = world.look()
    assert (len(told.calls), told.calls[-1]["id"], told.has_more) == (100, "149", True)
    assert told.calls[0]["client"] == "?" + "x" * 79
    (row,) = told.ended
    assert (row.client, row.units, row.requests) == ("?" + "x" * 79, None, None)


def test_without_a_page_a_box_asks_nobody_but_redis_once_a_second(world: World) -> None:
    for _ in range(40):
        world.clock.advance(0.1)
        world.b.look()
    assert 3 <= world.between.trips <= 5
    assert world.between.told == {}


def test_another_worker_tells(world: World) -> None:
    world.mine = False
    world.a.others()
    world.clock.advance(1.0)
    world.b.look()
    assert world.between.told == {}


def test_pages_of_one_worker_share_a_look(world: World) -> None:
    for _ in range(16):
        world.a.others()
    assert world.between.trips == 1


def test_redis_is_away_and_comes_back(world: World) -> None:
    world.look()
    world.between.away = True
    world.clock.advance(1.0)
    assert world.a.others().is_away
    with pytest.raises(SharedStoreAway):
        world.b.look()
    with pytest.raises(BoxAway, match="tells nothing"):
        world.a.cancel("b", "req_1", "anna")
    world.clock.advance(60.0)
    world.between.away = False
    world.ledger.rows = [call(request_id="meanwhile")]
    assert [row.request_id for row in world.look().ended] == ["meanwhile"]


def test_a_call_is_ended_on_its_own_box(world: World) -> None:
    world.look()
    assert world.a.cancel("b", "req_1", "anna") == (1, 0)
    assert world.in_flight.cancelled == [("req_1", "anna")]
    with pytest.raises(BoxAway, match="tells nothing"):
        world.a.cancel("unknown", "req_1", "anna")


def test_a_box_that_does_not_answer(world: World) -> None:
    world.look()
    world.mine = False
    began = world.clock.monotonic()
    with pytest.raises(BoxAway, match="does not answer"):
        world.a.cancel("b", "req_1", "anna")
    assert world.clock.monotonic() - began == pytest.approx(3.0, abs=0.2)


def test_what_cannot_be_read_is_counted(world: World) -> None:
    other = ["kitchen", [{"id": "x"}], False, 0, 1, []]
    world.between.told = {"b": None, "c": b"{", "d": encoded(other)}
    found = world.a.others()
    assert (dict(found.boxes), found.unread) == ({}, 3)


def test_a_ledger_that_cannot_be_read_hides_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.ledger.broken = True
    world.in_flight.rows = [TOLD]
    assert len(world.look().calls) == 1
    assert "which calls ended: locked" in caplog.text


def test_one_box_alone_has_no_others(tmp_path: Path) -> None:
    alone = BoxCalls(None, FakeClock(), "hall", sleep=lambda s: None)
    assert alone.others() == module.NONE
    assert not alone.are_several
    with pytest.raises(BoxAway):
        alone.cancel("b", "req_1", "anna")
