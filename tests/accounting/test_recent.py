"""The calls that a page is told of at once."""

from __future__ import annotations

from qwen_wsgi.accounting.ledger import Ledger
from qwen_wsgi.accounting.recent import MOST, WATCHED_S, Recent
from qwen_wsgi.accounting.record import CallRecord
from tests.fakes.clock import FakeClock
from tests.kit.call_rows import call


def test_nothing_is_kept_without_a_question() -> None:
    clock = FakeClock()
    recent = Recent(clock.monotonic)
    ledger = Ledger(clock, recent=recent)
    ledger.write(CallRecord(request_id="before", started_at=clock.monotonic()))
    assert recent.between(0, 1e9) == []

    clock.advance(1)
    ledger.write(CallRecord(request_id="watched", started_at=clock.monotonic()))
    ledger.write(CallRecord(request_id="quiet", quiet=True, started_at=clock.monotonic()))
    assert [row.request_id for row in recent.between(0, 1e9)] == ["watched"]

    clock.advance(WATCHED_S + 1)
    ledger.write(CallRecord(request_id="after", started_at=clock.monotonic()))
    assert recent.between(0, 1e9) == []


def test_each_call_is_told_once() -> None:
    clock = FakeClock()
    recent = Recent(clock.monotonic)
    told: list[str] = []
    since = clock.monotonic()
    recent.between(since, since)
    for number in range(40):
        recent.add(call(request_id=str(number)))
        clock.advance(0.5)
        if number % 3 == 0:
            until = clock.monotonic()
            told += [row.request_id for row in recent.between(since, until)]
            since = until
    clock.advance(0.1)
    told += [row.request_id for row in recent.between(since, clock.monotonic())]
    assert told == [str(number) for number in range(40)]


def test_what_is_kept_is_bounded() -> None:
    clock = FakeClock()
    recent = Recent(clock.monotonic)
    recent.between(0, 0)
    for number in range(3 * MOST):
        recent.add(call(request_id=str(number)))
    rows = recent.between(0, 1e9)
    assert len(rows) == MOST
    assert rows[-1].request_id == str(3 * MOST - 1)
