"""The table of calls: what goes in, what is asked, and what becomes of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.state.database.calls import CallRow, CallTable, Totals, line_of, row_of
from qwen_wsgi.state.database.plan_windows import KnownWindow, PlanWindowTable
from qwen_wsgi.state.database.sqlite import FILE, Database
from qwen_wsgi.state.database.tables import DIRECTORY, TABLES, database_in
from tests.fakes.clock import NOON_S, FakeClock
from tests.kit.call_rows import DAY, PLAIN, call
from tests.kit.properties import examples


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock, tmp_path: Path) -> Iterator[CallTable]:
    with closing(CallTable(database_in(tmp_path, clock), clock, kept_s=400 * DAY)) as made:
        yield made


def add(table: CallTable, *rows: CallRow, journal: str = "j") -> None:
    begin = table.offset(journal)
    assert table.add(journal, begin, begin + 1, [line_of(row).rstrip() for row in rows]) == 0


def ask(table: CallTable, by: str, since: float = 0, until: float = 2e9, **more: Any) -> Any:
    found = table.totals(by, since, until, **more)  # type: ignore[arg-type]  # of the test
    return sorted(found, key=str)


def rows_of(directory: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(directory / DIRECTORY / FILE)) as database:
        return database.execute("SELECT * FROM calls ORDER BY key").fetchall()


def test_a_row_is_what_was_written(table: CallTable, tmp_path: Path) -> None:
    odd = call(
        client="Z\N{LATIN SMALL LETTER U WITH DIAERESIS}rich",
        model="\ud800\n",
        units='{"pictures":2}',
        input_tokens=None,
        first_byte_ms=None,
        money_micro=None,
        currency=None,
    )
    add(table, PLAIN, odd)

    found = rows_of(tmp_path)

    assert CallRow(*found[0][1:]) == PLAIN
    assert CallRow(*found[1][1:]) == odd._replace(model="?\n")


def test_lines_are_added_once_whoever_adds_them(table: CallTable) -> None:
    other = line_of(PLAIN).replace(b"[1,", b"[2,", 1)
    lines = [line_of(PLAIN), b"garbage", b"[]", other]

    assert table.add("j", 0, 70, lines) == 3
    assert table.add("j", 0, 70, lines) is None
    assert table.offset("j") == 70
    assert table.add("other", 0, 7, lines[:1]) == 0
    table.forget(["other"])
    assert (table.offset("j"), table.offset("other")) == (0, 7)
    assert [each.calls for each in ask(table, "client")] == [2]


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (1, "noon"),
        (1, None),
        (1, 1e300),
        (1, -1.0),
        (11, 2**63 + 5),
        (2, None),
        (2, ["x"]),
        (7, 1.5),
        (7, True),
        (11, "1"),
        (11, 2**70),
        (16, {"a": 1}),
        (27, 5),
    ],
)
def test_a_line_with_a_wrong_member_is_none(at: int, value: Any) -> None:
    members = json.loads(line_of(PLAIN))
    assert row_of(json.dumps(members).encode()) == PLAIN
    members[1][at - 1] = value

    assert row_of(json.dumps(members).encode()) is None


@pytest.mark.parametrize("line", [b"", b"[", b"{}", b"1", b"[" * 100_000, b"\xff", b"[NaN]"])
def test_what_is_no_line(line: bytes) -> None:
    assert row_of(line) is None
    assert row_of(line_of(PLAIN)[:-3]) is None


@given(st.binary(max_size=60))
@examples(50)
def test_any_bytes_are_a_line_or_none(data: bytes) -> None:
    assert row_of(data) is None


# --- sums ----------------------------------------------------------------------------------------


def test_calls_are_summed_up_by_what_they_have_in_common(table: CallTable) -> None:
    add(
        table,
        PLAIN,
        call(model="qwen3.8-flash", outcome="upstream_error"),
        call(outcome="cut_by_stop"),
        call(outcome="failed", account="other", endpoint="/v1/responses"),
        call(outcome="client_gone", input_tokens=None, output_tokens=None, unknown_usage=1),
    )

    by_model = ask(table, "model")
    assert by_model == [
        Totals("qwen3.8-flash", "USD", 1, 0, 1, 100, 40, 10, 4, 0, 200, 50),
        Totals("qwen3.8-max", "USD", 4, 0, 2, 300, 160, 30, 16, 1, 800, 200),
    ]
    assert [(t.key, t.calls) for t in ask(table, "account")] == [("dashscope", 4), ("other", 1)]
    assert [(t.key, t.calls) for t in ask(table, "endpoint")] == [
        ("/v1/chat/completions", 4),
        ("/v1/responses", 1),
    ]


def test_what_has_no_price_and_what_used_nothing_are_apart(table: CallTable) -> None:
    free: dict[str, Any] = {"money_micro": None, "saved_micro": None, "currency": None}
    nothing = {**free, "input_tokens": None, "output_tokens": None}
    add(
        table,
        PLAIN,
        call(currency="CNY"),
        call(**free),
        call(**nothing, outcome="refused"),
        call(**nothing, units='{"pictures":1}'),
    )

    found = {each.priced: (each.calls, each.refused) for each in ask(table, "client")}

    assert found == {"USD": (1, 0), "CNY": (1, 0), "": (2, 0), None: (1, 1)}


def test_a_client_has_its_latest_name(table: CallTable) -> None:
    add(
        table,
        call(client="old", at=NOON_S - 5),
        call(client="new", at=NOON_S),
        call(client="older", at=NOON_S - 9),
        call(client_id="two", client="new", at=NOON_S),
    )

    assert sorted((t.key, t.calls) for t in ask(table, "client")) == [("new", 1), ("new", 3)]
    assert [t.calls for t in ask(table, "client", client_id="one")] == [3]


def test_times_are_quarters_of_an_hour_and_the_end_is_not_in_them(table: CallTable) -> None:
    add(table, *(call(at=NOON_S + 300 * number) for number in range(7)))

    found = ask(table, "hour", NOON_S, NOON_S + 1800)

    assert [(t.key * 900 - NOON_S, t.calls) for t in found] == [(0, 3), (900, 3)]
    assert ask(table, "day", 0, NOON_S) == []


# --- what becomes of them ------------------------------------------------------------------------


def test_what_is_old_is_removed_some_at_a_time(
    clock: FakeClock, tmp_path: Path, table: CallTable
) -> None:
    before = table.exists
    assert not table.prune()
    add(table, *(call(at=NOON_S - 401 * DAY) for _ in range(700)), call(at=NOON_S - 399 * DAY))
    assert (before, table.exists) == (False, True)

    assert table.prune()
    assert len(rows_of(tmp_path)) == 201
    assert not table.prune()
    assert len(rows_of(tmp_path)) == 1
    assert not table.prune()
    clock.advance(2 * DAY)
    assert not table.prune()
    assert rows_of(tmp_path) == []


def test_of_too_many_calls_those_of_nobody_go_first(clock: FakeClock, tmp_path: Path) -> None:
    database = database_in(tmp_path, clock)
    with closing(CallTable(database, clock, kept_s=DAY, max_rows=1000)) as table:
        add(table, *(call(client_id="", client="-", outcome="refused") for _ in range(700)))
        add(table, *(call(request_id=str(number)) for number in range(900)))

        assert not table.prune()
        # 600 too many, and some more, so that it is not counted for each call.
        assert [t.calls for t in ask(table, "client")] == [500]
        found = {row[25 - 1] for row in rows_of(tmp_path)}
        assert found == {str(number) for number in range(400, 900)}
        assert not table.prune()
        assert len(rows_of(tmp_path)) == 500


def test_of_a_damaged_database_the_calls_after_it_are_kept(
    clock: FakeClock, tmp_path: Path, table: CallTable, caplog: pytest.LogCaptureFixture
) -> None:
    add(table, PLAIN)
    table.close()
    (tmp_path / DIRECTORY / FILE).write_bytes(b"no database" * 1000)

    add(table, call(request_id="later"))

    assert [row[25 - 1] for row in rows_of(tmp_path)] == ["later"]
    assert "The ledger is lost" in caplog.text


# --- what accounts were asked, by the minute -----------------------------------------------------


def test_accounts_have_sums_by_the_minute(table: CallTable) -> None:
    add(
        table,
        call(at=NOON_S, attempts=2),
        call(at=NOON_S + 59, requests='{"plan":1,"dashscope":1}', attempts=2),
        call(at=NOON_S + 60, input_tokens=None, output_tokens=None),
        call(at=NOON_S + 600, attempts=0, account="", outcome="refused"),
        call(at=NOON_S + 600, account="plan"),
    )

    assert table.account_uses("dashscope", 0) == [(NOON_S, 3, 220), (NOON_S + 60, 1, 0)]
    assert table.account_uses("dashscope", NOON_S + 60) == [(NOON_S + 60, 1, 0)]
    assert table.account_uses("plan", 0, step_s=3600) == [(NOON_S, 2, 110)]
    assert table.account_uses("nobody", 0) == []
    assert table.next_use("plan", -1) == NOON_S
    assert table.next_use("plan", NOON_S + 1) == NOON_S + 600
    assert table.next_use("plan", NOON_S + 601) is None


def test_minutes_are_the_same_calls_once_as_the_table(table: CallTable) -> None:
    lines = [line_of(call(at=NOON_S))]
    assert table.add("j", 0, 10, lines) == 0
    assert table.add("j", 0, 10, lines) is None

    assert table.account_uses("dashscope", 0) == [(NOON_S, 1, 110)]


def test_old_minutes_are_removed(clock: FakeClock, table: CallTable) -> None:
    add(table, call(at=NOON_S - 41 * DAY), call(at=NOON_S - 39 * DAY))
    table.prune()
    assert len(table.account_uses("dashscope", 0)) == 1
    clock.advance(2 * DAY)
    table.prune()
    assert table.account_uses("dashscope", 0) == []
    assert ask(table, "account")[0].calls == 2


def test_a_line_of_before_is_read(table: CallTable) -> None:
    version, members = json.loads(line_of(PLAIN))

    assert row_of(json.dumps([version, members[:-1]]).encode()) == PLAIN


def test_calls_of_before_are_in_the_minutes(tmp_path: Path, clock: FakeClock) -> None:
    old = [
        each._replace(versions=each.versions[:1]) if each.feature == "calls" else each
        for each in TABLES
    ]
    with closing(Database(tmp_path / DIRECTORY, clock, tables=old, keep_damaged_s=1)) as before:
        rows = [call(attempts=3), call(at=NOON_S - 50 * DAY), call(attempts=0)]
        _, *columns = before.run(
            lambda database: [row[1] for row in database.execute("PRAGMA table_info(calls)")]
        )
        before.run(
            lambda database: database.executemany(
                f"INSERT INTO calls ({', '.join(columns)})"
                f" VALUES ({', '.join('?' * len(columns))})",
                [[getattr(row, column) for column in columns] for row in rows],
            ),
            write=True,
        )
    with closing(CallTable(database_in(tmp_path, clock), clock, kept_s=DAY)) as table:
        assert table.account_uses("dashscope", 0) == [(NOON_S, 3, 110)]
        assert ask(table, "account")[0].calls == 3


def test_windows_of_plans_are_kept_and_the_later_word_counts(
    tmp_path: Path, clock: FakeClock
) -> None:
    with closing(database_in(tmp_path, clock)) as database:
        windows = PlanWindowTable(database)
        assert windows.all() == {}
        assert not database.exists
        told = KnownWindow(None, NOON_S + 60, NOON_S)
        windows.put({("a", "5h"): told, ("a", "week"): KnownWindow(begun_at=NOON_S)})
        windows.put({("a", "5h"): KnownWindow(None, NOON_S + 30, NOON_S - 1)})
        assert windows.all() == {("a", "5h"): told, ("a", "week"): KnownWindow(NOON_S)}
