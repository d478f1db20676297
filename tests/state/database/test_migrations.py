"""Tables of older and newer versions of the proxy, and files from before there was one for all."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.state.database import migrations
from qwen_wsgi.state.database.host_objects import HostObjects
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.sqlite import FILE, Database, DatabaseUnavailable, TooNew
from qwen_wsgi.state.database.tables import DIRECTORY, TABLES, database_in, prepare
from qwen_wsgi.state.database.videos import VideoStore
from tests.fakes.clock import FakeClock

#: As the versions of the proxy made them that had a file for each.
OLD = {
    "responses/responses-1.sqlite3": """
        CREATE TABLE responses (key INTEGER PRIMARY KEY, owner TEXT NOT NULL, id TEXT NOT NULL,
            previous TEXT, bytes INTEGER NOT NULL, used_at REAL NOT NULL, UNIQUE (owner, id));
        CREATE TABLE bodies (key INTEGER PRIMARY KEY, response BLOB NOT NULL, input BLOB NOT NULL);
        INSERT INTO responses VALUES (7, 'me', 'resp_1', NULL, 900, 1800000000),
            (8, 'you', 'resp_2', NULL, 800, 1800000000);
        INSERT INTO bodies VALUES
            (7, CAST('{"id":"resp_1","output":[]}' AS BLOB), CAST('[{"a":1}]' AS BLOB)),
            (8, CAST('{"id":"resp_2","output":[]}' AS BLOB), CAST('[]' AS BLOB));
    """,
    "files/host-objects-1.sqlite3": """
        CREATE TABLE objects (key INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL,
            owner TEXT NOT NULL, account TEXT NOT NULL, purpose TEXT NOT NULL,
            created_at REAL NOT NULL, value BLOB NOT NULL, UNIQUE (kind, id));
        INSERT INTO objects VALUES
            (3, 'file', 'file-1', 'me', 'a', 'batch', 1800000000, '{"id":"file-1"}');
    """,
    "videos/videos-1.sqlite3": """
        CREATE TABLE videos (key INTEGER PRIMARY KEY, owner TEXT NOT NULL, account TEXT NOT NULL,
            model TEXT NOT NULL, began REAL NOT NULL, task TEXT, id TEXT UNIQUE, prompt TEXT,
            state TEXT, deleted INTEGER NOT NULL DEFAULT 0, UNIQUE (account, task));
        INSERT INTO videos VALUES
            (5, 'me', 'a', 'wan', 1800000000, 'task-1', 'video_1', 'a cat', '{}', 0);
    """,
}


@pytest.fixture
def clock() -> FakeClock:
    clock = FakeClock()
    clock.advance(1_800_000_000 - clock.now())
    return clock


def made_before(state_dir: Path) -> None:
    for name, statements in OLD.items():
        (state_dir / name).parent.mkdir()
        with closing(sqlite3.connect(state_dir / name)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(statements)


@contextmanager
def opened(state_dir: Path, clock: FakeClock) -> Iterator[Database]:
    with closing(database_in(state_dir, clock, sleep=clock.advance)) as database:
        yield database


def responses_in(database: Database, clock: FakeClock) -> ResponseStore:
    return ResponseStore(database, clock, ttl_s=1000, max_bytes=10_000)


def test_what_was_stored_before_is_there_and_its_files_are_gone(
    tmp_path: Path, clock: FakeClock
) -> None:
    made_before(tmp_path)

    prepare(tmp_path, clock)

    assert [file for name in OLD for file in (tmp_path / name).parent.glob("*")] == []
    with opened(tmp_path, clock) as database:
        responses = responses_in(database, clock)
        stored = responses.get("me", "resp_1")
        assert stored is not None and stored.input_items == [{"a": 1}]
        assert responses.get("you", "resp_1") is None
        assert HostObjects(database, clock).get("file", "me", "file-1") is not None
        video = VideoStore(database, clock).get("me", "video_1")
        assert video is not None and video.prompt == "a cat"
        # Its size counts, and is given back.
        totals = database.run(lambda each: each.execute("SELECT * FROM response_totals").fetchall())
        assert totals == [(2, 1700)]
        assert responses.delete("me", "resp_1")


def test_several_workers_move_it_once(tmp_path: Path, clock: FakeClock) -> None:
    made_before(tmp_path)
    failures: list[Exception] = []

    def use() -> None:
        try:
            with closing(database_in(tmp_path, clock)) as database:
                assert responses_in(database, clock).get("me", "resp_1") is not None
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_an_old_file_that_another_worker_deletes_while_it_is_opened_is_no_failure(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_before(tmp_path)
    late = []

    def moved_meanwhile(*_args: object) -> Path | None:
        monkeypatch.undo()
        prepare(tmp_path, clock)
        late.append(True)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(migrations, "_attached", moved_meanwhile)
    with opened(tmp_path, clock) as database:
        assert responses_in(database, clock).get("me", "resp_1") is not None
    assert late


@pytest.mark.parametrize("harm", ["garbage", "no tables"])
def test_a_damaged_old_file_is_left_and_told_of_and_the_others_move(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    made_before(tmp_path)
    file = tmp_path / "responses/responses-1.sqlite3"
    if harm == "garbage":
        file.write_bytes(b"garbage" * 2000)
    else:
        with closing(sqlite3.connect(file)) as old:
            old.execute("DROP TABLE bodies")

    with caplog.at_level(logging.ERROR):
        prepare(tmp_path, clock)

    with opened(tmp_path, clock) as database:
        assert responses_in(database, clock).get("me", "resp_1") is None
        assert HostObjects(database, clock).get("file", "me", "file-1") is not None
    assert file.exists()
    assert "Stored responses are lost" in caplog.text


def test_a_newer_version_is_left_alone_and_told_of(tmp_path: Path, clock: FakeClock) -> None:
    prepare(tmp_path, clock)
    file = tmp_path / DIRECTORY / FILE
    with closing(sqlite3.connect(file)) as newer, newer:
        newer.execute("UPDATE features SET version = 99 WHERE name = 'videos'")

    with pytest.raises(TooNew, match="newer version of qwen-proxy .version 99 of its videos"):
        prepare(tmp_path, clock)
    with opened(tmp_path, clock) as database:
        assert not responses_in(database, clock).put("me", {"id": "r", "output": []}, [], None)

    with closing(sqlite3.connect(file)) as newer:
        assert newer.execute("SELECT max(version) FROM features").fetchone() == (99,)


def test_versions_are_made_one_after_the_other(tmp_path: Path, clock: FakeClock) -> None:
    first = ("CREATE TABLE things (name TEXT)", "INSERT INTO things VALUES ('old')")
    second = ("ALTER TABLE things ADD COLUMN size INTEGER", "UPDATE things SET size = 1")
    third = ("UPDATE things SET size = size + 10",)

    def at(*versions: tuple[str, ...]) -> list[tuple[object, ...]]:
        tables = Tables("things", versions, damage="Things are lost.")
        database = Database(
            tmp_path / "things", clock, tables=[tables], keep_damaged_s=1, sleep=clock.advance
        )
        with closing(database):
            return database.run(lambda each: each.execute("SELECT * FROM things").fetchall())

    assert at(first) == [("old",)]
    assert at(first, second, third) == [("old", 11)]
    assert at(first, second, third) == [("old", 11)]


def test_a_version_that_cannot_be_made_changes_nothing(tmp_path: Path, clock: FakeClock) -> None:
    good = Tables("things", (("CREATE TABLE things (name TEXT)",),), "")
    bad = Tables("others", (("CREATE TABLE others (name TEXT)", "INSERT INTO no VALUES (1)"),), "")
    with (
        closing(
            Database(
                tmp_path / "things",
                clock,
                tables=[good, bad],
                keep_damaged_s=1,
                sleep=clock.advance,
            )
        ) as database,
        pytest.raises(DatabaseUnavailable),
    ):
        database.run(lambda each: None)

    with closing(sqlite3.connect(tmp_path / "things" / FILE)) as file:
        names = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
    assert "things" not in names


def test_each_feature_has_its_own_tables() -> None:
    """In one file two of the same name would be one."""
    with closing(sqlite3.connect(":memory:")) as database:
        for tables in TABLES:
            for statements in tables.versions:
                for statement in statements:
                    database.execute(statement)
    assert len({tables.feature for tables in TABLES}) == len(TABLES)
    assert json.dumps([tables.old_file for tables in TABLES])
