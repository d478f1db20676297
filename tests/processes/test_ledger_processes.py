"""The ledger between real processes, which are killed in the middle of whatever they do."""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwen_wsgi.accounting.books import DIRECTORY, Books
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.state.database.sqlite import FILE
from tests.kit.process_users import Started, Users

pytestmark = pytest.mark.server


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    with Users.of("tests.processes.ledger_user", tmp_path / "state") as users:
        yield users


def recorded(directory: Path) -> Counter[str]:
    """How often each call is in the table, once all is in it."""
    books = Books(directory, SystemClock(), days=100_000)
    with closing(books):
        books.report("client", Span(0, 1))
    with closing(sqlite3.connect(directory / "database" / FILE)) as database:
        return Counter(id for (id,) in database.execute("SELECT request_id FROM calls"))


def killed(process: Started) -> list[str]:
    """Kill a process; what it has printed."""
    process.kill()
    assert process.stdout is not None and process.stderr is not None
    # Not `communicate`, which knows nothing of what `readline` has read ahead.
    said, complaints = process.stdout.read(), process.stderr.read()
    assert complaints == ""
    # The last line may be cut: what was to be told had been done.
    return said[: said.rfind("\n") + 1].split()


def test_each_call_is_there_once_whoever_is_killed_when(users: Users) -> None:
    chance = random.Random(7)
    told: list[str] = []
    writers = [users.start("write", f"w{number}") for number in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        told.append(writer.stdout.readline().strip())
    for _ in range(6):
        reader = users.start("fold")
        assert reader.stdout is not None
        assert reader.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0.0, 0.08))
        killed(reader)
    told += [id for writer in writers for id in killed(writer)]

    found = recorded(users.directory)

    assert len(told) > 500
    assert set(told) <= found.keys()
    # One more of each writer may be there: it was killed before it could tell.
    assert len(found.keys() - set(told)) <= 2
    assert set(found.values()) == {1}
    assert not list((users.directory / DIRECTORY).glob("*.jsonl"))


def test_a_disk_that_is_full_for_a_while_costs_nothing(users: Users) -> None:
    process = users.start("full")
    _, complaints = process.communicate(timeout=20)

    assert process.returncode == 0, complaints
    assert recorded(users.directory) == Counter(f"full-{number}" for number in range(31))
