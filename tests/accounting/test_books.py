"""The ledger for those who read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC
from pathlib import Path

import pytest

from qwen_wsgi.accounting.books import DIRECTORY, Books, BooksUnavailable, journal_in
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.state import file_lock
from qwen_wsgi.state.call_journal import JournalWriter
from qwen_wsgi.state.database import tables
from qwen_wsgi.state.database.calls import line_of
from qwen_wsgi.state.database.sqlite import FILE
from tests.fakes.clock import NOON_S, FakeClock
from tests.kit.call_rows import DAY, call

ALL = Span(0, 2e9)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def books(clock: FakeClock, tmp_path: Path) -> Iterator[Books]:
    with closing(Books(tmp_path, clock, days=400, sleep=clock.advance)) as made:
        yield made


@pytest.fixture
def writer(clock: FakeClock, tmp_path: Path) -> Iterator[JournalWriter]:
    with closing(journal_in(tmp_path, clock)) as made:
        yield made


def calls(books: Books, asked: Span = ALL, **more: str) -> list[int]:
    return [row["calls"] for row in books.report("client", asked, **more)["rows"]]  # type: ignore[arg-type]  # of the test


def test_a_question_reads_the_journals_first(books: Books, writer: JournalWriter) -> None:
    writer.append(line_of(call()))
    assert calls(books) == [1]
    writer.append(line_of(call(client_id="two", client="Two")))
    assert calls(books) == [1, 1]
    assert calls(books, client_id="two") == [1]
    assert [r["rows"] for r in books.reports("day", [Span(0, 1), Span(1, 2)])] == [[], []]


def test_a_question_makes_no_files(books: Books, tmp_path: Path) -> None:
    assert calls(books) == []
    books.maintain()

    assert not (tmp_path / DIRECTORY).exists()
    assert not (tmp_path / tables.DIRECTORY).exists()


def test_a_round_brings_calls_into_the_table_and_removes_old_ones(
    clock: FakeClock, books: Books, writer: JournalWriter
) -> None:
    for number in range(1200):
        writer.append(line_of(call(at=NOON_S - 401 * DAY + number)))
    writer.append(line_of(call()))

    books.maintain()

    assert calls(books) == [1]


def test_a_round_that_fails_is_told_once_a_minute_and_done_later(
    clock: FakeClock,
    tmp_path: Path,
    books: Books,
    writer: JournalWriter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer.append(line_of(call()))
    (tmp_path / tables.DIRECTORY).write_text("no directory")
    for _ in range(5):
        books.maintain()
    assert caplog.text.count("the ledger is behind") == 1
    with pytest.raises(BooksUnavailable, match="cannot be used"):
        calls(books)
    clock.advance(60)
    books.maintain()
    assert caplog.text.count("the ledger is behind") == 2

    (tmp_path / tables.DIRECTORY).unlink()
    books.maintain()

    assert calls(books) == [1]


def test_a_ledger_that_cannot_be_opened_says_whose_it_is(
    tmp_path: Path, books: Books, writer: JournalWriter
) -> None:
    writer.append(line_of(call()))
    (tmp_path / DIRECTORY / "fold.lock").symlink_to("elsewhere")

    with pytest.raises(BooksUnavailable, match="belongs to the user who runs the server"):
        calls(books)


def test_a_reader_that_is_stuck_is_not_waited_for_long(
    clock: FakeClock, tmp_path: Path, books: Books, writer: JournalWriter
) -> None:
    writer.append(line_of(call()))
    lock = os.open(tmp_path / DIRECTORY / "fold.lock", os.O_RDWR | os.O_CREAT)
    try:
        assert file_lock.take(lock)
        assert books.report("client", ALL, wait_s=1.0)["rows"] == []
        assert clock.monotonic() == pytest.approx(1001, abs=0.1)
    finally:
        os.close(lock)


def test_a_damaged_database_costs_what_was_in_it(
    tmp_path: Path, books: Books, writer: JournalWriter, caplog: pytest.LogCaptureFixture
) -> None:
    writer.append(line_of(call()))
    books.maintain()
    writer.append(line_of(call(request_id="2")))
    books.close()
    (tmp_path / tables.DIRECTORY / FILE).write_bytes(b"damaged" * 4096)
    writer.append(line_of(call(request_id="3")))

    # What is still in a journal is not lost with it.
    assert calls(books) == [3]
    assert "The ledger is lost" in caplog.text


def test_errors_and_first_bytes_have_the_keys_of_a_report(
    books: Books, writer: JournalWriter
) -> None:
    bad = {"outcome": "refused", "error": "bad_key", "first_byte_ms": None}
    for row in (
        call(),
        call(first_byte_ms=1000.0),
        call(first_byte_ms=60_000.0, client="New name", at=NOON_S + 1),
        call(**bad),
        call(**bad, at=NOON_S - DAY),
        call(outcome="client_gone", first_byte_ms=None),
        call(client_id="two", client="Two", first_byte_ms=0.0),
    ):
        writer.append(line_of(row))

    books.read_all()
    assert [each.calls for each in books.errors("model", ALL)] == [2]
    assert sorted(each.key for each in books.errors("day", ALL, UTC)) == (
        sorted(row["key"] for row in books.report("day", ALL, zone=UTC)["rows"])
    )
    (one, two) = sorted(books.first_bytes("client", ALL))
    assert (one.key, one.calls, one.most_ms) == ("New name", 3, 60_000.0)
    assert one.classes == (1, 1, 0, 0, 0, 1)
    assert (two.key, two.classes) == ("Two", (1, 0, 0, 0, 0, 0))


def test_the_latest_calls_are_told_the_newest_first(books: Books, writer: JournalWriter) -> None:
    assert books.latest(5) == []
    for number in range(7):
        writer.append(line_of(call(request_id=str(number), at=NOON_S + number)))
    assert [row.request_id for row in books.latest(3)] == ["6", "5", "4"]
    writer.append(line_of(call(request_id="4", at=NOON_S + 9)))
    assert [row.at for row in books.find("4")] == [NOON_S + 9, NOON_S + 4]
    assert books.find("x") == []
