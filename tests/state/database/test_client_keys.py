"""The keys in the database, and the copy from which a lost database gets them."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.access.client_key import (
    KeyProblem,
    KeysUnavailable,
    NameTaken,
    NewKey,
    digest_of,
)
from qwen_wsgi.state import key_copy
from qwen_wsgi.state.database import client_keys
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.database.tables import database_in
from tests.fakes.clock import FakeClock

_opened: list[Database] = []


@pytest.fixture(autouse=True)
def _closed_at_the_end() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


_ENTRY = {"id": "key_1", "name": "x", "created_at": 0}


class World:
    """Keys in a state directory, as one process has them."""

    def __init__(self, directory: Path, clock: FakeClock | None = None) -> None:
        self.directory = directory
        self.clock = clock or FakeClock()
        self.database = database_in(directory, self.clock)
        _opened.append(self.database)
        self.keys = ClientKeys(self.database, self.clock, directory)

    def add(self, name: str, **members: object) -> NewKey:
        return self.keys.add({"name": name, **members})

    @property
    def names(self) -> list[str]:
        return [key.name for key in self.keys.all()]

    def valid_digests(self) -> set[bytes]:
        now = self.clock.now()
        return {
            digest
            for _, digests in self.keys.read().keys
            for digest, until in digests
            if until is None or until > now
        }

    @property
    def file(self) -> Path:
        return self.directory / "database/state.sqlite3"

    @property
    def copy(self) -> Path:
        return self.directory / key_copy.FILE


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state")


def test_a_key_is_found_by_its_digest_its_id_and_its_name(world: World) -> None:
    made = world.add("anna", rpm=5, models=("qwen*",))

    ((kept_key, digests),) = world.keys.read().keys
    assert kept_key == made.key
    assert digests == ((digest_of(made.secret.encode()), None),)
    assert world.keys.find("anna") == world.keys.find(made.key.id) == made.key
    assert world.keys.find("nobody") is None
    assert world.keys.find("änna") is None


def test_no_file_has_the_secret(world: World) -> None:
    made = world.add("anna")
    rotated = world.keys.rotate("anna", grace_s=60)
    assert rotated is not None
    world.database.close()

    for file in world.directory.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            for secret in (made.secret, rotated.secret):
                assert secret.encode() not in content
            assert file.stat().st_mode & 0o077 == 0


def test_every_change_has_another_number_and_a_use_has_not(world: World) -> None:
    assert world.keys.number() == 0
    numbers = []

    world.add("anna")
    numbers.append(world.keys.number())
    world.keys.edit("anna", {"rpm": 1})
    numbers.append(world.keys.number())
    world.keys.rotate("anna", grace_s=0)
    numbers.append(world.keys.number())
    world.keys.revoke("anna")
    numbers.append(world.keys.number())
    key = world.keys.find("anna")
    assert key is not None
    world.keys.note_uses({key.id: 7.9})

    assert len(set(numbers)) == 4
    assert 0 not in numbers
    assert world.keys.number() == numbers[-1]
    assert [each.last_used_at for each in world.keys.all()] == [7]


def test_a_use_is_never_set_back(world: World) -> None:
    id = world.add("anna").key.id
    world.keys.note_uses({id: 9.0, "key_gone": 9.0})
    world.keys.note_uses({id: 5.0})

    assert world.keys.all()[0].last_used_at == 9


def test_names_are_unique_among_those_that_are_not_revoked(world: World) -> None:
    first = world.add("anna").key
    world.add("ben")
    with pytest.raises(NameTaken):
        world.add("anna")
    with pytest.raises(NameTaken):
        world.keys.edit("ben", {"name": "anna"})
    world.keys.edit("anna", {"name": "anna", "rpm": 1})  # its own

    world.clock.advance(5)
    world.keys.revoke("anna")
    second = world.add("anna").key

    assert world.keys.find("anna") == second
    found = world.keys.find(first.id)
    assert found is not None and found.revoked_at is not None
    world.clock.advance(5)
    world.keys.revoke("anna")
    latest = world.keys.find("anna")
    assert latest is not None and latest.id == second.id
    assert world.names == ["anna", "ben", "anna"]


def test_a_change_keeps_what_it_does_not_name(world: World) -> None:
    made = world.add("anna", rpm=5, note="x").key
    changed = world.keys.edit(made.id, {"rpm": None, "name": "ann"})

    assert changed is not None
    assert (changed.id, changed.name, changed.rpm, changed.note) == (made.id, "ann", None, "x")
    assert world.keys.edit("nobody", {"rpm": 1}) is None


def test_a_rotated_key_has_both_secrets_until_the_grace_is_over(world: World) -> None:
    made = world.add("anna")
    rotated = world.keys.rotate("anna", grace_s=3600)

    assert rotated is not None and rotated.key == made.key
    old, new = (digest_of(each.secret.encode()) for each in (made, rotated))
    assert world.valid_digests() == {old, new}
    world.clock.advance(3601)
    assert world.valid_digests() == {new}
    assert world.keys.rotate("nobody", grace_s=0) is None


def test_a_second_rotation_does_not_lengthen_the_first_ones_grace(world: World) -> None:
    world.add("anna")
    world.keys.rotate("anna", grace_s=10)
    world.keys.rotate("anna", grace_s=3600)
    assert len(world.valid_digests()) == 3
    world.clock.advance(11)
    assert len(world.valid_digests()) == 2


def test_of_many_secrets_the_oldest_are_forgotten(world: World) -> None:
    world.add("anna")
    latest = b""
    for _ in range(8):
        rotated = world.keys.rotate("anna", grace_s=3600)
        assert rotated is not None
        latest = digest_of(rotated.secret.encode())

    assert len(world.valid_digests()) == 5
    assert latest in world.valid_digests()


def test_a_revoked_key_stays_as_it_is(world: World) -> None:
    world.add("anna")
    revoked = world.keys.revoke("anna")
    world.clock.advance(60)

    assert world.keys.revoke("anna") == revoked
    assert world.keys.revoke("nobody") is None
    for change in (
        lambda: world.keys.edit("anna", {"rpm": 1}),
        lambda: world.keys.rotate("anna", grace_s=0),
    ):
        with pytest.raises(KeyProblem, match="revoked"):
            change()


def test_there_is_a_limit_of_keys(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_keys, "MOST_KEYS", 3)
    for name in ("a", "b", "c"):
        world.add(name)
    with pytest.raises(KeyProblem, match="Revoke some"):
        world.add("d")
    for name in ("b", "a"):
        world.keys.revoke(name)
        world.clock.advance(1)

    world.add("d")

    assert world.names == ["a", "c", "d"]
    assert len(world.keys.read().keys) == 3


def test_two_that_add_one_name_at_once_do_not_both_get_it(tmp_path: Path) -> None:
    worlds = [World(tmp_path), World(tmp_path)]
    results: list[object] = []

    def add(world: World) -> None:
        try:
            results.append(world.add("anna"))
        except KeyProblem as problem:
            results.append(problem)

    threads = [threading.Thread(target=add, args=(world,)) for world in worlds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(type(result).__name__ for result in results) == ["NameTaken", "NewKey"]


# --- the copy ------------------------------------------------------------------------------------


def test_the_copy_is_written_with_every_change_and_is_private(world: World) -> None:
    assert not world.keys.existed()
    made = world.add("anna", rpm=5)

    assert world.keys.existed()
    assert world.copy.stat().st_mode & 0o777 == 0o600
    assert key_copy.read(world.directory) == world.keys.read().keys == world.keys.kept()
    assert made.secret not in world.copy.read_text()
    world.keys.revoke("anna")
    (key,) = key_copy.keys_in(world.directory)
    assert key.revoked_at is not None
    assert [file.name for file in world.directory.iterdir() if file.is_file()] == [key_copy.FILE]


def test_a_copy_that_was_removed_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.add("anna")
    world.copy.unlink()
    found = world.keys.read()
    assert key_copy.read(world.directory) == found.keys

    def full(directory: Path, keys: object) -> None:
        raise OSError(28, "No space left on device")

    world.copy.unlink()
    monkeypatch.setattr(key_copy, "write", full)
    assert world.keys.read() == found
    assert "No space left" in caplog.text


def test_a_change_without_its_copy_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("anna")
    number = world.keys.number()

    def full(directory: Path, keys: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(key_copy, "write", full)
    with pytest.raises(KeysUnavailable, match="No space left"):
        world.keys.revoke("anna")

    assert world.keys.number() == number
    assert world.keys.all()[0].revoked_at is None


@pytest.mark.parametrize("how", ["garbage", "removed", "directory removed"])
def test_a_database_that_was_begun_anew_gets_its_keys_from_the_copy(
    world: World, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = world.add("anna", rpm=5)
    world.keys.rotate("anna", grace_s=3600)
    world.add("ben")
    world.keys.revoke("ben")
    before, number = world.keys.read().keys, world.keys.number()
    world.database.close()
    if how == "garbage":
        world.file.write_bytes(b"this is no database" * 1000)
    else:
        for file in world.file.parent.iterdir():
            file.unlink()
    if how == "directory removed":
        world.file.parent.rmdir()

    with caplog.at_level(logging.WARNING, "qwen_wsgi"):
        again = World(world.directory, world.clock)
        found = again.keys.read()

    assert set(found.keys) == set(before)
    assert found.number not in (0, number)
    assert re.search(r"2 keys were taken from their copy", caplog.text)
    assert again.keys.find("anna") == made.key
    again.add("carl")
    assert again.names == ["anna", "ben", "carl"]


def test_of_several_processes_one_takes_the_keys_from_the_copy(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.add("anna")
    world.database.close()
    for file in world.file.parent.iterdir():
        file.unlink()

    with caplog.at_level(logging.WARNING, "qwen_wsgi"):
        worlds = [World(world.directory) for _ in range(2)]
        numbers = {each.keys.read().number for each in worlds}

    assert len(numbers) == 1
    assert caplog.text.count("taken from their copy") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"keys": 1}',
        b'{"keys": [{}]}',
        b"\xff",
        json.dumps({"keys": [{**_ENTRY, "digests": 7}]}).encode(),
        json.dumps({"keys": [{**_ENTRY, "digests": [{"sha256": "00", "until": None}]}]}).encode(),
    ],
    ids=str,
)
def test_without_database_and_with_a_damaged_copy_keys_are_unavailable(
    world: World, content: bytes
) -> None:
    world.add("anna")
    world.database.close()
    for file in world.file.parent.iterdir():
        file.unlink()
    world.copy.write_bytes(content)
    again = World(world.directory)

    with pytest.raises(KeysUnavailable, match="are lost"):
        again.keys.read()
    with pytest.raises(KeysUnavailable, match="are lost"):
        again.add("ben")

    assert again.keys.kept() == ()
    assert again.keys.existed()
    assert key_copy.keys_in(world.directory) == ()


def test_a_database_that_cannot_be_read_is_told(world: World, tmp_path: Path) -> None:
    world.add("anna")
    world.database.close()
    for file in world.file.parent.iterdir():
        file.unlink()
    world.file.mkdir()  # nobody can open it, root neither

    again = World(world.directory)
    with pytest.raises(KeysUnavailable, match="cannot be used"):
        again.keys.number()

    assert [kept.key.name for kept in again.keys.kept()] == ["anna"]


def test_in_memory_there_is_no_copy() -> None:
    clock = FakeClock()
    database = database_in(None, clock)
    _opened.append(database)
    keys = ClientKeys(database, clock, None)
    keys.add({"name": "anna"})

    assert not keys.existed()
    assert keys.kept() == ()
    assert [key.name for key in keys.all()] == ["anna"]


def test_a_row_that_is_damaged_sets_the_database_aside(world: World) -> None:
    made = world.add("anna")
    world.database.run(
        lambda database: database.execute("UPDATE client_keys SET value = x'00'"), write=True
    )

    assert [kept.key for kept in world.keys.read().keys] == [made.key]
