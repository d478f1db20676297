"""Links, sessions and wrong tries in the database: bounded, and only as digests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.state.database.console_sessions import LINK, ConsoleSessions, Person
from qwen_wsgi.state.database.tables import database_in
from tests.fakes.clock import FakeClock

ANNA = Person("key_1", "anna", b"digest")


@contextmanager
def made(clock: FakeClock, directory: Path | None = None) -> Iterator[ConsoleSessions]:
    database = database_in(directory, clock)
    try:
        yield ConsoleSessions(database, clock)
    finally:
        database.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sessions(clock: FakeClock, tmp_path: Path) -> Iterator[ConsoleSessions]:
    with made(clock, tmp_path) as found:
        yield found


def test_a_session_is_found_by_its_secret_alone(sessions: ConsoleSessions) -> None:
    assert sessions.find("x" * 40) is None
    secret = sessions.begin(ANNA, address="this machine", agent="a" * 1000)

    found = sessions.find(secret)
    assert found is not None
    assert found.person == ANNA
    assert len(found.agent) == 200
    assert sessions.find(found.id) is None
    assert sessions.find(secret + "=") is None
    assert sessions.all() == [found]
    assert sessions.end(found.id)
    assert not sessions.end(found.id)
    assert sessions.find(secret) is None


def test_a_page_that_asks_by_itself_keeps_no_session_alive(
    clock: FakeClock, sessions: ConsoleSessions
) -> None:
    secret = sessions.begin(LINK, address="", agent="")
    for _ in range(7):
        clock.advance(1000)
        assert sessions.find(secret, active=False) is not None
    clock.advance(201)

    assert sessions.find(secret) is None
    assert sessions.all() == []


@pytest.mark.parametrize("table", ["console_links", "console_sessions", "console_tries"])
def test_the_oldest_make_room(table: str, clock: FakeClock, sessions: ConsoleSessions) -> None:
    links, secrets = [], []
    for number in range(120 if table != "console_tries" else 1100):
        clock.advance(0.05)
        if table == "console_links":
            links.append(sessions.add_link())
        elif table == "console_sessions":
            secrets.append(sessions.begin(ANNA, address=str(number), agent=""))
        else:
            sessions.begin_try(str(number))

    if links:
        outcomes = [sessions.spend_link(link) for link in links]
        assert outcomes == ["unknown"] * 70 + ["spent"] * 50
    if secrets:
        assert len(sessions.all()) == 100
        assert sessions.find(secrets[-1]) is not None
    if table == "console_tries":
        tries = [sessions.begin_try("1099") for _ in range(10)]
        assert tries.count(None) == 1


def test_workers_see_each_others_sessions(
    clock: FakeClock, sessions: ConsoleSessions, tmp_path: Path
) -> None:
    secret = sessions.begin(ANNA, address="", agent="")
    with made(clock, tmp_path) as other:
        link = other.add_link()
        found = other.find(secret)
        assert found is not None
        assert sessions.spend_link(link) == "spent"
        assert other.spend_link(link) == "used"
        other.end(found.id)
    assert sessions.find(secret) is None
    files = [path.read_bytes() for path in (tmp_path / "database").iterdir()]
    assert files
    assert not any(secret.encode() in content for content in files)


def test_tries_are_counted_before_they_are_known_to_be_wrong(
    clock: FakeClock, sessions: ConsoleSessions
) -> None:
    numbers = [sessions.begin_try("a") for _ in range(12)]
    assert numbers[9] is not None
    assert numbers[10:] == [None, None]
    assert sessions.begin_try("b") is not None
    sessions.forget_try(numbers[9])
    assert sessions.begin_try("a") is not None
    assert sessions.begin_try("a") is None
    clock.advance(61)
    assert sessions.begin_try("a") is not None
