"""Stored responses between real processes, some of which end in the middle of it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwen_wsgi.state.database.sqlite import FILE
from tests.kit.process_users import Started, Users
from tests.processes.store_user import store_at

pytestmark = pytest.mark.server


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    with Users.of("tests.processes.store_user", tmp_path / "state") as users:
        yield users


def wait_for(process: Started, count: int) -> list[str]:
    """The next ids that a process has stored."""
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def killed(process: Started) -> list[str]:
    """Kill it wherever it is; what it had stored meanwhile."""
    process.kill()
    out, trouble = process.communicate()
    # Among four that write without a pause one may wait in vain, and says so: nothing is promised.
    assert [line for line in trouble.splitlines() if "database is locked" not in line] == []
    return out.splitlines()


def check(directory: Path, stored: list[str]) -> None:
    with closing(sqlite3.connect(directory / "database" / FILE)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = store_at(directory)
    for id in stored:
        found = store.get("a", id)
        assert found is not None, id
        assert found.response["id"] == id
        assert found.input_items == [{"id": id}]
    store._database.close()


def test_processes_that_are_killed_while_they_store_lose_nothing_that_was_stored(
    users: Users,
) -> None:
    luck = random.Random(7)
    stored: list[str] = []
    running = [users.start("put", f"p{number}") for number in range(4)]
    for number in range(12):
        process = running.pop(0)
        stored += wait_for(process, luck.randrange(3, 60))
        stored += killed(process)
        if number < 8:
            running.append(users.start("put", f"p{number + 4}"))

    # All dead: the next one finds the file as they left it.
    assert running == []
    assert len(set(stored)) == len(stored) > 100
    check(users.directory, stored)
    assert not (users.directory / "database.damaged").exists()
    last = users.start("put", "last")
    wait_for(last, 1)
    killed(last)


def test_a_conversation_of_a_process_that_was_killed_goes_on_in_another(users: Users) -> None:
    first = users.start("put", "p")
    last = [*wait_for(first, 20), *killed(first)][-1]

    store = store_at(users.directory)
    with closing(store._database):
        history = store.history("a", last)

    count = int(last.removeprefix("p-")) + 1
    assert [item["id"] for item in history if "id" in item] == [f"p-{i}" for i in range(count)]


def test_when_the_system_takes_no_more_what_was_stored_stays(users: Users) -> None:
    process = users.start("full", 2_000_000)
    out, trouble = process.communicate(timeout=30)

    assert process.returncode == 0, trouble
    assert int(out) > 20
    assert trouble.startswith("a response is not stored: ")
    assert "full" in trouble
    assert len(trouble.splitlines()) == 1
    store = store_at(users.directory)
    assert all(store.get("a", f"r{number}") for number in range(int(out)))
    assert store.put("a", {"id": "room again", "output": []}, [], None)
    store._database.close()


def test_a_process_that_forks_shares_no_connection_with_its_child(users: Users) -> None:
    process = users.start("fork")
    _, trouble = process.communicate(timeout=30)

    assert (process.returncode, trouble) == (0, "")
    store = store_at(users.directory)
    assert all(store.get("a", f"child-{number}") for number in range(50))
    store._database.close()
