"""A backup of the database while it is used, and its way back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.access.client_key import digest_of
from qwen_wsgi.state.database import client_keys, in_use
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.copies import CopyFailed, Restored, backup, restore
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.sqlite import FILE
from qwen_wsgi.state.database.tables import DIRECTORY, TABLES, database_in
from tests.fakes.clock import FakeClock


class World:
    """A state directory, and a place for copies."""

    def __init__(self, place: Path) -> None:
        self.clock = FakeClock()
        self.state_dir = place / "state"
        self.directory = self.state_dir / DIRECTORY
        self.file = self.directory / FILE
        self.copy = place / "copy"

    @contextmanager
    def used(self) -> Iterator[ResponseStore]:
        """As a worker uses it."""
        with closing(database_in(self.state_dir, self.clock, sleep=self.clock.advance)) as opened:
            yield ResponseStore(opened, self.clock, ttl_s=1e6, max_bytes=2**26)

    def put(self, *ids: str) -> None:
        with self.used() as store:
            for id in ids:
                assert store.put("me", {"id": id, "output": ["x" * 10_000]}, [], None)

    def has(self, id: str) -> bool:
        with self.used() as store:
            return store.get("me", id) is not None

    def backup(self, *, overwrite: bool = False) -> int:
        return backup(self.directory, self.copy, overwrite=overwrite)

    def restore(self, *, keep_keys: bool = False) -> Restored:
        return restore(
            self.state_dir,
            self.directory,
            self.copy,
            self.clock,
            tables=TABLES,
            keep_keys=keep_keys,
        )

    @contextmanager
    def keys(self) -> Iterator[ClientKeys]:
        """The client keys, without the copy beside the database."""
        with closing(database_in(self.state_dir, self.clock, sleep=self.clock.advance)) as opened:
            yield ClientKeys(opened, self.clock, None)

    def valid_keys(self) -> set[str]:
        with self.keys() as keys:
            return {key.name for key in keys.all() if key.is_valid(self.clock.now())}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def ids_in(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as database:
        return {id for (id,) in database.execute("SELECT id FROM responses")}


def test_a_backup_has_what_is_in_the_log_still_and_is_complete_by_itself(world: World) -> None:
    with world.used() as store:
        store.put("me", {"id": "r1", "output": []}, [], None)
        assert world.file.with_name(FILE + "-wal").stat().st_size
        size = world.backup()

    assert [each.name for each in world.copy.parent.glob("*copy*")] == ["copy"]
    assert size == world.copy.stat().st_size
    assert stat.S_IMODE(world.copy.stat().st_mode) == 0o600
    world.copy.chmod(0o400)
    assert ids_in(world.copy) == {"r1"}


def test_what_is_written_meanwhile_does_not_wait_and_is_not_in_it(world: World) -> None:
    with world.used() as store, world.used() as other:
        store.put("me", {"id": "r1", "output": []}, [], None)
        other._database.run(lambda database: _copy_within(world, database), write=True)
        assert store.put("me", {"id": "r3", "output": []}, [], None)

    assert ids_in(world.copy) == {"r1"}


def _copy_within(world: World, database: sqlite3.Connection) -> None:
    database.execute(
        "INSERT INTO responses (owner, id, bytes, used_at) VALUES ('me', 'r2', 1, 1e10)"
    )
    world.backup()


def test_a_copy_that_is_there_is_overwritten_only_by_force(world: World) -> None:
    world.put("r1")
    world.copy.write_text("mine")

    with pytest.raises(CopyFailed, match="is there already. .*--force"):
        world.backup()

    assert world.copy.read_text() == "mine"
    world.backup(overwrite=True)
    assert ids_in(world.copy) == {"r1"}


def test_there_is_nothing_to_copy(world: World) -> None:
    with pytest.raises(CopyFailed, match="no database yet"):
        world.backup()
    assert not world.state_dir.exists()


def test_a_copy_needs_a_place(world: World) -> None:
    world.put("r1")
    world.copy.mkdir()
    with pytest.raises(CopyFailed, match="is a directory"):
        world.backup(overwrite=True)
    world.copy = world.file
    with pytest.raises(CopyFailed, match="the database's own directory"):
        world.backup(overwrite=True)
    world.copy = world.file.with_name("no") / "copy"
    with pytest.raises(CopyFailed, match="No such file or directory"):
        world.backup()


def test_a_damaged_database_is_not_copied(world: World) -> None:
    world.put(*(f"r{number}" for number in range(20)))
    harm(world.file)

    with pytest.raises(CopyFailed, match="damaged|malformed"):
        world.backup()

    assert list(world.copy.parent.glob("*copy*")) == []


def harm(file: Path) -> None:
    """Overwrite pages within; the first, with the schema, stays."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(8192)
        opened.write(os.urandom(size - 8192))


def test_another_user_is_told_who_may(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("r1")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(CopyFailed, match="belongs to the user .* run this command as that user"):
        world.backup()
    with pytest.raises(CopyFailed, match="belongs to the user"):
        world.restore()


# --- the way back ---------------------------------------------------------------------------------


def test_what_was_copied_comes_back_and_what_was_there_is_kept(world: World) -> None:
    world.put("r1")
    world.backup()
    world.put("r2")

    done = world.restore()

    assert world.has("r1")
    assert not world.has("r2")
    assert done.replaced is not None
    assert done.replaced.parent == world.directory
    assert ids_in(done.replaced) == {"r1", "r2"}
    assert stat.S_IMODE(world.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(done.replaced.stat().st_mode) == 0o600


def test_what_was_replaced_may_be_brought_back_as_well(world: World) -> None:
    world.put("r1")
    world.backup()
    world.put("r2")
    first = world.restore().replaced
    assert first is not None

    world.copy = first
    second = world.restore().replaced

    assert second not in (None, first)
    assert world.has("r2")


def test_a_state_directory_of_another_box(world: World) -> None:
    world.put("r1")
    size = world.backup()
    shutil.rmtree(world.state_dir)

    assert world.restore() == Restored(None, size)

    assert world.has("r1")


def test_a_server_that_was_killed_has_left_its_log(world: World) -> None:
    world.put("r1")
    world.backup()
    with world.used() as store:
        store.put("me", {"id": "r2", "output": []}, [], None)
        left = world.state_dir.with_name("left")
        shutil.copytree(world.state_dir, left)
    shutil.rmtree(world.state_dir)
    left.rename(world.state_dir)
    assert world.file.with_name(FILE + "-wal").stat().st_size

    done = world.restore()

    assert done.replaced is not None
    assert ids_in(done.replaced) == {"r1", "r2"}
    with world.used() as store:
        assert store.get("me", "r1") is not None
        assert store.get("me", "r2") is None


def test_a_damaged_database_is_replaced_and_kept_with_its_log(world: World) -> None:
    world.put("r1")
    world.backup()
    world.file.write_bytes(b"garbage" * 3000)
    world.file.with_name(FILE + "-wal").write_bytes(b"its log")

    done = world.restore()

    assert world.has("r1")
    assert done.replaced is not None
    assert done.replaced.read_bytes().startswith(b"garbage")
    kept_log = done.replaced.with_name(done.replaced.name + "-wal")
    assert kept_log.read_bytes() == b"its log"


def test_while_a_server_runs_nothing_is_restored(world: World) -> None:
    world.put("r1")
    world.backup()
    server = in_use.hold(world.state_dir)
    try:
        with pytest.raises(CopyFailed, match="A server uses .* Stop it first"):
            world.restore()
    finally:
        os.close(server)

    assert world.restore().replaced is not None


@pytest.mark.parametrize("content", ["garbage", "empty", "another program's", "missing"])
def test_what_is_no_copy_is_refused(world: World, content: str) -> None:
    world.put("r1")
    if content == "garbage":
        world.copy.write_bytes(b"garbage" * 3000)
    elif content == "empty":
        world.copy.touch()
    elif content == "another program's":
        with closing(sqlite3.connect(world.copy)) as database:
            database.execute("CREATE TABLE bookmarks (url TEXT)")

    with pytest.raises(CopyFailed, match="no database|not a database|There is no file"):
        world.restore()

    assert world.has("r1")
    assert [each.name for each in world.directory.iterdir()] == [FILE]


def test_a_damaged_copy_is_refused(world: World) -> None:
    world.put(*(f"r{number}" for number in range(20)))
    world.backup()
    harm(world.copy)

    with pytest.raises(CopyFailed, match="damaged|malformed"):
        world.restore()

    assert world.has("r1")


def test_a_copy_of_a_newer_version_is_refused(world: World) -> None:
    world.put("r1")
    world.backup()
    with closing(sqlite3.connect(world.copy)) as newer, newer:
        newer.execute("UPDATE features SET version = 99 WHERE name = 'videos'")

    with pytest.raises(CopyFailed, match="newer version of qwen-proxy .* Install that version"):
        world.restore()

    assert world.has("r1")


def test_a_copy_of_an_older_version_is_brought_forward(world: World) -> None:
    world.put("r1")
    world.backup()
    with closing(sqlite3.connect(world.copy)) as older, older:
        older.execute("DELETE FROM features WHERE name = 'videos'")
        older.execute("DROP TABLE videos")

    world.restore()

    assert world.has("r1")
    with world.used() as store:
        found = store._database.run(lambda database: database.execute("SELECT * FROM videos"))
    assert found is not None


@pytest.mark.parametrize("keep", [False, True])
def test_client_keys_are_those_of_the_copy_unless_they_are_kept(world: World, keep: bool) -> None:
    with world.keys() as keys:
        keys.add({"name": "ada"})
        keys.add({"name": "bob"})
    world.put("r1")
    world.backup()
    with world.keys() as keys:
        keys.revoke("bob")
        cid = keys.add({"name": "cid"})
    world.put("r2")

    done = world.restore(keep_keys=keep)

    assert (done.keys, world.valid_keys()) == ((0, {"ada", "cid"}) if keep else (2, {"ada", "bob"}))
    assert (world.has("r1"), world.has("r2")) == (True, False)
    with world.keys() as keys:
        found = [kept for kept in keys.read().keys if kept.key.name == "cid"]
        assert [digest for kept in found for digest, _ in kept.digests] == (
            [digest_of(cid.secret.encode())] if keep else []
        )


def test_keys_are_kept_beside_a_copy_from_before_there_were_any(world: World) -> None:
    world.put("r1")
    with closing(sqlite3.connect(world.file)) as database:
        for name in client_keys.NAMES:
            database.execute(f"DROP TABLE {name}")
        database.execute("DELETE FROM features WHERE name = 'client keys'")
        database.commit()
    world.backup()
    with world.keys() as keys:
        keys.add({"name": "ada"})

    world.restore(keep_keys=True)

    assert world.valid_keys() == {"ada"}


def test_no_keys_can_be_kept_without_a_database(world: World) -> None:
    world.put("r1")
    world.backup()
    world.file.write_bytes(b"garbage" * 1000)
    with pytest.raises(CopyFailed, match="cannot be kept"):
        world.restore(keep_keys=True)
    world.file.unlink()
    with pytest.raises(CopyFailed, match="no keys to keep"):
        world.restore(keep_keys=True)
    assert world.restore() == Restored(None, world.file.stat().st_size)
