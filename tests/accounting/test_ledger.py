"""The ledger: what of a call is written down, and once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from qwen_wsgi.accounting.ledger import Ledger, row
from qwen_wsgi.accounting.prices import Cost
from qwen_wsgi.accounting.record import MOST_GAPS, CallRecord
from qwen_wsgi.protocol.json_object import MOST
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.state.call_journal import MAX_LINE
from qwen_wsgi.state.database.calls import CallRow, line_of, row_of
from tests.fakes.clock import NOON_S, FakeClock


class Journal:
    def __init__(self) -> None:
        self.rows: list[CallRow] = []
        self.closed = self.flushed = False
        self.before: Callable[[], None] = lambda: None

    def append(self, line: bytes) -> None:
        self.before()
        found = row_of(line)
        assert found is not None
        self.rows.append(found)

    def flush(self) -> None:
        self.flushed = True

    def close(self) -> None:
        self.closed = True


def record(**members: Any) -> CallRecord:
    return CallRecord(**{"request_id": "r", "method": "POST", "started_at": 990.0, **members})


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.mark.parametrize(
    ("attempts", "requests", "written"),
    [
        (2, {"dashscope": 2}, None),
        (2, {}, None),
        (3, {"plan": 1, "dashscope": 2}, '{"plan":1,"dashscope":2}'),
        (2, {"dashscope": 1, "plan": 0}, '{"dashscope":1}'),
        (1, {"dashscope": 0}, "{}"),
    ],
)
def test_requests_are_written_where_they_are_not_simply_the_attempts(
    attempts: int, requests: dict[str, int], written: str | None
) -> None:
    call = CallRecord(account="dashscope", attempts=attempts, requests=requests)

    assert row(call, 0.0, None).requests == written


def test_parts_of_a_call_bring_their_requests() -> None:
    call = CallRecord()
    parts = [call.part() for _ in range(3)]
    for account, part in zip(("a", "b", "a"), parts, strict=True):
        part.count_request(account)
    call.join(parts, complete=3)

    assert call.requests == {"a": 2, "b": 1}


def test_a_call_is_written_once_and_ended(journal: Journal) -> None:
    ledger = Ledger(FakeClock(), journal, cost=lambda call, at: Cost(7, 3, "USD"))
    call = record(
        client="One",
        client_id="1",
        account="dashscope",
        model="asked",
        upstream_model="qwen3.8-max",
        endpoint="/v1/chat/completions",
        status=200,
        attempts=2,
        first_byte_at=992.5,
        usage=Usage(10, 5, 15, cached=4, reasoning=1),
        units=(("pictures", 2),),
    )

    ledger.write(call)
    ledger.write(call)

    assert call.outcome == "complete"
    (found,) = journal.rows
    assert found == CallRow(
        NOON_S,
        "1",
        "One",
        "dashscope",
        "qwen3.8-max",
        "/v1/chat/completions",
        200,
        "complete",
        "",
        2,
        10,
        4,
        None,
        5,
        1,
        '{"pictures":2}',
        0,
        0.0,
        0.0,
        2500.0,
        0.0,
        10_000.0,
        0,
        "r",
        7,
        3,
        "USD",
    )
    assert ledger.calls == 1


def test_quiet_calls_are_not_in_it(journal: Journal) -> None:
    ledger = Ledger(FakeClock(), journal)
    ledger.write(record(quiet=True))
    ledger.flush()
    ledger.close()

    assert (journal.rows, ledger.calls) == ([], 0)
    assert journal.flushed and journal.closed


def test_without_a_journal_there_is_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(FakeClock())
    with caplog.at_level(logging.INFO, "qwen_wsgi.calls"):
        ledger.write(record())
    ledger.flush()
    ledger.close()

    assert [each.getMessage() for each in caplog.records] == ["call"]


def test_a_fault_of_the_ledger_costs_no_client_its_answer(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a fault")

    journal.before = fail
    with caplog.at_level(logging.INFO):
        Ledger(FakeClock(), journal).write(record())

    assert [each.getMessage() for each in caplog.records] == [
        "a call is not in the ledger: r",
        "call",
    ]


@pytest.mark.parametrize(
    ("members", "unknown"),
    [
        ({"outcome": "complete"}, 1),
        ({"outcome": "client_gone"}, 1),
        ({"outcome": "cut_by_stop"}, 1),
        ({"outcome": "complete", "method": "WS"}, 1),
        ({"outcome": "upstream_error"}, 0),
        ({"outcome": "upstream_error", "first_byte_at": 991.0}, 1),
        ({"outcome": "client_gone", "attempts": 0}, 0),
        ({"outcome": "complete", "usage": Usage(5, 1)}, 0),
        ({"outcome": "complete", "usage": Usage(total=5)}, 1),
        ({"outcome": "complete", "units": (("pictures", 1),)}, 0),
        ({"outcome": "complete", "method": "GET"}, 0),
        ({"outcome": "complete", "model": ""}, 0),  # an upload
    ],
)
def test_when_it_is_unknown_what_was_used(members: dict[str, Any], unknown: int) -> None:
    call = record(**{"attempts": 1, "model": "m", **members})

    assert row(call, NOON_S, None).unknown_usage == unknown


def test_whatever_others_send_a_line_has_its_bounds() -> None:
    long = "\x00\ud800\N{GRINNING FACE}" * 5000
    call = record(
        request_id="r" * 128,
        client=long,
        client_id="c" * 64,
        account=long,
        model=long,
        error_code=long,
        endpoint="/v1/responses/{id}/input_items",
        usage=Usage(10**40, -1, cached=MOST),
        units=tuple((f"unit{number}", 1e300) for number in range(100)),
        first_byte_at=1e9,
        longest_gap_s=1e9,
        gaps=((1e9, 1e9),) * MOST_GAPS,
        queued_s=1e9,
        connect_s=1e9,
    )

    found = row(call, NOON_S, Cost(10**30, -(10**30), "USD"))

    line = line_of(found)
    assert len(line) < MAX_LINE
    assert line.count(b"\n") == 1
    assert row_of(line) is not None
    assert (found.input_tokens, found.output_tokens, found.cached_tokens) == (None, None, MOST)
    assert (found.money_micro, found.saved_micro) == (MOST, -MOST)
    assert json.loads(found.units or "")["unit0"] == 1e300
