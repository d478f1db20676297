"""What waits to be told to other boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.database.tables import database_in
from qwen_wsgi.state.shared.outbox import Outbox
from tests.fakes.clock import FakeClock


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = database_in(tmp_path, FakeClock(), sleep=lambda seconds: None)
    yield made
    made.close()


def waiting(outbox: Outbox) -> list[tuple[str, str]]:
    return [(each.what, each.id) for each in outbox.next(10)]


def test_the_latest_of_a_name_waits(database: Database) -> None:
    outbox = Outbox(database)
    assert outbox.next(10) == []
    outbox.add("put", "response", "ada", "1")
    outbox.add("put", "response", "ada", "2")
    (first, *_) = outbox.next(1)
    outbox.add("delete", "response", "ada", "1")

    assert waiting(outbox) == [("put", "2"), ("delete", "1")]
    outbox.remove([first])  # it was noted anew meanwhile
    assert waiting(outbox) == [("put", "2"), ("delete", "1")]
    outbox.remove(outbox.next(10))
    assert waiting(outbox) == []


def test_too_many_lose_the_oldest(database: Database) -> None:
    outbox = Outbox(database, max_rows=3)
    for number in range(5):
        outbox.add("put", "file", "ada", str(number))
    assert [id for _, id in waiting(outbox)] == ["2", "3", "4"]


def test_positions_are_kept(database: Database) -> None:
    outbox = Outbox(database)
    assert outbox.position("orders") == ""
    outbox.note("orders", "1-0")
    outbox.note("orders", "2-0")
    assert Outbox(database).position("orders") == "2-0"


def test_a_database_that_cannot_be_used_is_told_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "database").write_text("in the way")
    database = database_in(tmp_path, FakeClock(), sleep=lambda seconds: None)
    outbox = Outbox(database)
    outbox.add("put", "file", "ada", "1")
    assert outbox.position("orders") == ""
    assert "cannot be noted" in caplog.text
    database.close()
