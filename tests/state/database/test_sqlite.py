"""What the log says of a database that cannot be used, and what calls do then."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from qwen_wsgi.state.database.responses import ResponseStore, StoreUnavailable
from qwen_wsgi.state.database.sqlite import FILE, Database, DatabaseUnavailable, remedy_of
from qwen_wsgi.state.database.tables import DIRECTORY, database_in
from tests.fakes.clock import FakeClock

T = TypeVar("T")


@contextmanager
def opened(state_dir: Path) -> Iterator[Database]:
    clock = FakeClock()
    with closing(database_in(state_dir, clock, sleep=clock.advance)) as database:
        yield database


def responses_in(database: Database) -> ResponseStore:
    return ResponseStore(database, FakeClock(), ttl_s=1000, max_bytes=2**26)


def put(store: ResponseStore, id: str, size: int = 10) -> bool:
    return store.put("me", {"id": id, "output": ["x" * size]}, [], None)


def told(caplog: pytest.LogCaptureFixture) -> str:
    (text,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    return text


def test_a_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Says what is lost; the call goes on."""
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / FILE).write_bytes(b"garbage" * 3000)
    with opened(tmp_path) as database:
        assert put(responses_in(database), "r1")

    assert told(caplog).startswith("The file of the state is damaged, and a new one is begun.")
    assert "Stored responses are lost" in told(caplog)
    assert str(tmp_path / f"{DIRECTORY}.damaged") in told(caplog)


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was stored can be read; what cannot be stored is told, and the call goes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened(tmp_path) as database:
        store = responses_in(database)
        assert put(store, "r1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            assert not put(store, "r2", size=4_000_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert store.get("me", "r1") is not None
        assert put(store, "r3", size=4_000_000)

    assert told(caplog).startswith("a response is not stored: ")
    assert "disk is full" in told(caplog) or "Free some space" in told(caplog)


def test_a_directory_that_may_not_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / DIRECTORY))

    monkeypatch.setattr(os, "open", refuse)
    with opened(tmp_path) as database:
        assert not put(responses_in(database), "r1")

    assert "Read-only file system" in told(caplog)
    assert "check whether its disk is mounted read-only" in told(caplog)


def test_each_trouble_has_its_own_remedy() -> None:
    def of_sqlite(code: int) -> sqlite3.Error:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        return error

    errors = [
        *map(of_sqlite, (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)),
        *map(of_sqlite, (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CORRUPT)),
        of_sqlite(sqlite3.SQLITE_CANTOPEN),
    ]
    assert len({remedy_of(error) for error in errors}) == len(errors)
    assert remedy_of(of_sqlite(sqlite3.SQLITE_READONLY_DBMOVED)) == remedy_of(errors[2])
    assert remedy_of(OSError(errno.ENOSPC, "")) == remedy_of(errors[1])
    assert remedy_of(PermissionError(errno.EACCES, "")) == remedy_of(errors[-1])


class SlowDisk:
    """In place of a thread apart: what it is asked for takes too long."""

    def __init__(self) -> None:
        self.answers = True

    def __call__(self, work: Callable[[], T], *, timeout_s: float | None = None) -> T:
        if not self.answers and timeout_s is not None:
            raise TimeoutError
        return work()


def test_a_disk_that_does_not_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = SlowDisk()
    with closing(database_in(tmp_path, FakeClock(), apart=disk)) as database:
        store = responses_in(database)
        assert put(store, "r1")
        disk.answers = False
        assert not put(store, "r2")
        assert "its disk did not answer within 10 s" in told(caplog)
        with pytest.raises(StoreUnavailable):
            store.get("me", "r1")
        for use in (lambda: database.run(lambda _: None), lambda: database.rendered({})):
            with pytest.raises(DatabaseUnavailable) as failed:
                use()
            assert failed.value.passing
        database.close()
        disk.answers = True
        assert store.get("me", "r1") is not None
