"""What `qwen-proxy state check` finds."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen_wsgi.state.database.in_use import hold
from qwen_wsgi.state.database.inspection import Inspection, inspect
from qwen_wsgi.state.database.sqlite import FILE
from qwen_wsgi.state.database.tables import DIRECTORY, TABLES, database_in
from tests.fakes.clock import FakeClock


def look(state_dir: Path) -> Inspection:
    return inspect(state_dir, state_dir / DIRECTORY, tables=TABLES)


def change(state_dir: Path, *statements: str) -> None:
    with closing(sqlite3.connect(state_dir / DIRECTORY / FILE)) as database, database:
        for statement in statements:
            database.execute(statement)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """With a database, as a server that has ended leaves it."""
    database = database_in(tmp_path, FakeClock())
    with closing(database):
        database.run(
            lambda each: each.execute(
                "INSERT INTO responses (owner, id, bytes, used_at) VALUES ('me', 'r', 1, 1)"
            ),
            write=True,
        )
    return tmp_path


def test_all_is_well(state_dir: Path) -> None:
    before = sorted(state_dir.rglob("*"))
    found = look(state_dir)

    assert (found.problems, found.notes) == ([], [])
    assert found.exists
    assert found.in_use is False
    assert found.rows["responses"] == 1
    assert found.rows["videos"] == 0
    assert found.versions == {each.feature: (len(each.versions),) * 2 for each in TABLES}
    assert found.size > 0
    assert found.free is not None
    assert sorted(state_dir.rglob("*")) == before


def test_while_a_server_uses_it(state_dir: Path) -> None:
    database = database_in(state_dir, FakeClock())
    server = hold(state_dir)
    with closing(database):
        database.run(
            lambda each: each.execute("UPDATE responses SET used_at = 2").rowcount, write=True
        )
        found = look(state_dir)
    os.close(server)

    assert found.problems == []
    assert found.in_use is True
    assert found.log > 0


def test_before_the_first_start(tmp_path: Path) -> None:
    found = look(tmp_path / "state")

    assert found.problems == []
    assert not found.exists
    assert "first start makes it" in found.notes[0]
    assert found.free is not None
    assert not (tmp_path / "state").exists()


def test_damage(state_dir: Path) -> None:
    change(
        state_dir,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'UNIQUE (owner, id)', 'UNIQUE (id, owner)')"
        " WHERE name = 'responses'",
    )
    assert any("damaged" in each and "state restore" in each for each in look(state_dir).problems)


def test_no_database_at_all(state_dir: Path) -> None:
    (state_dir / DIRECTORY / FILE).write_bytes(b"garbage" * 3000)

    (problem,) = look(state_dir).problems

    assert "file is not a database" in problem
    assert "restore a backup" in problem


def test_a_newer_version_and_an_older_one(state_dir: Path) -> None:
    change(state_dir, "UPDATE features SET version = 99 WHERE name = 'videos'")
    found = look(state_dir)
    assert found.versions["videos"] == (99, 1)
    assert "newer version of qwen-proxy" in found.problems[0]

    change(state_dir, "UPDATE features SET version = 0 WHERE name = 'videos'")
    found = look(state_dir)
    assert found.versions["videos"] == (0, 1)
    assert found.problems == []


def test_a_full_disk(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(f_bavail=3000, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda place: full)

    assert look(state_dir).problems == [
        "Only 12 MB of its disk are free: free some space, or nothing more is stored soon."
    ]


def test_what_may_not_be_written(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, how: False)
    assert "may only be read" in look(state_dir).problems[0]


def test_another_users(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    found = look(state_dir)
    assert "run this command as that user" in found.problems[0]
    assert found.rows == {}


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    (problem,) = look(tmp_path / "state").problems
    assert "Not a directory" in problem


def test_files_that_were_left(state_dir: Path) -> None:
    (state_dir / f"{DIRECTORY}.damaged").mkdir()
    for name in ("", "-wal"):
        (state_dir / DIRECTORY / f"{FILE}.replaced-20260102T030405{name}").touch()

    damaged, replaced = look(state_dir).notes

    assert "damaged" in damaged
    assert "remove it when" in replaced
