"""Cached answers: their age, their room, and what becomes of those of keys that were revoked."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.state.database import cached_answers
from qwen_wsgi.state.database.cached_answers import CachedAnswers, Found
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.sqlite import Database, DatabaseUnavailable
from qwen_wsgi.state.database.tables import database_in
from tests.fakes.clock import FakeClock

MB = 1024 * 1024


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def database(tmp_path: Path, clock: FakeClock) -> Iterator[Database]:
    made = database_in(tmp_path, clock, sleep=clock.advance)
    yield made
    made.close()


@pytest.fixture
def answers(database: Database, clock: FakeClock) -> CachedAnswers:
    return CachedAnswers(database, clock, max_bytes=MB)


def keys_in(database: Database) -> list[bytes]:
    def read(opened: sqlite3.Connection) -> list[bytes]:
        rows = opened.execute("SELECT key FROM cached_answers ORDER BY number").fetchall()
        total = opened.execute("SELECT rows, bytes FROM cached_answer_totals").fetchone()
        sums = opened.execute(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM cached_answers"
        ).fetchone()
        assert total == sums
        return [key for (key,) in rows]

    return database.run(read)


def test_the_first_key_that_has_one(answers: CachedAnswers) -> None:
    answers.put("a", b"2", b"two", 60)
    answers.put("a", b"3", b"three", 60)
    assert answers.get([b"1", b"2", b"3"], 60) == Found(1, b"two")
    assert answers.get([b"1"], 60) is None
    answers.put("a", b"2", b"another", 60)
    assert answers.get([b"2"], 60) == Found(0, b"another")


def test_its_age_is_that_of_when_it_was_kept_and_of_now(
    answers: CachedAnswers, clock: FakeClock
) -> None:
    answers.put("a", b"1", b"one", 60)
    clock.advance(30)
    assert answers.get([b"1"], 31) is not None
    assert answers.get([b"1"], 30) is None
    clock.advance(30)
    assert answers.get([b"1"], 1000) is None


def test_the_oldest_make_room(answers: CachedAnswers, database: Database, clock: FakeClock) -> None:
    body = bytes(100_000)
    for number in range(12):
        answers.put("a", b"%d" % number, body, 60)
    assert keys_in(database) == [b"%d" % number for number in range(2, 12)]
    answers.put("a", b"large", bytes(answers.largest), 60)  # with what a row takes, too large
    assert len(keys_in(database)) == 10
    few = CachedAnswers(database, clock, max_bytes=MB, max_rows=3)
    few.put("a", b"new", b"x", 60)
    assert keys_in(database) == [b"10", b"11", b"new"]


def test_what_has_expired_is_removed(
    answers: CachedAnswers, database: Database, clock: FakeClock
) -> None:
    answers.put("a", b"1", b"one", 60)
    answers.put("a", b"2", b"two", 600)
    clock.advance(61)
    answers.put("a", b"3", b"three", 60)
    assert keys_in(database) == [b"2", b"3"]
    clock.advance(61)
    answers.look_after()
    assert keys_in(database) == [b"2"]
    clock.advance(600)
    answers.look_after()
    assert keys_in(database) == []
    answers.put("a", b"4", b"four", 1)
    clock.advance(5)
    answers.look_after()  # not that often
    assert keys_in(database) == [b"4"]


def test_those_of_revoked_keys_are_removed(
    answers: CachedAnswers, database: Database, clock: FakeClock
) -> None:
    store = ClientKeys(database, clock, None)
    gone, left = (store.add({"name": name}).key for name in ("anna", "ben"))
    for key in (gone, left):
        answers.put(key.id, key.id.encode(), b"x", 600)
    store.revoke("anna")
    answers.look_after()
    assert keys_in(database) == [left.id.encode()]


def test_without_a_file_nothing_is_made(answers: CachedAnswers, tmp_path: Path) -> None:
    answers.look_after()
    assert not (tmp_path / "database").exists()


def test_a_file_that_cannot_be_used_costs_only_the_cache(
    answers: CachedAnswers, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    answers.put("a", b"1", b"one", 60)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise DatabaseUnavailable("the disk is full", passing=False)

    monkeypatch.setattr(database, "run", fail)
    with caplog.at_level(logging.ERROR):
        answers.put("a", b"1", b"one", 60)
        assert answers.get([b"1"], 60) is None
        answers.look_after()
    assert len(caplog.records) == 3
    assert all("the disk is full" in record.getMessage() for record in caplog.records)
    assert answers.largest <= cached_answers.LARGEST
