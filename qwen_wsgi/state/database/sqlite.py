"""SQLite with care: one file for all workers, private, opened anew when it was replaced or damaged.

Everything that must last is in it. Each feature has tables of its own, with a version of its own;
what an older version of the proxy wrote is brought forward when the file is opened.

A worker works with it in a thread apart, so that its event loop waits for no disk: a large body
takes tenths of a second, and every four megabytes SQLite empties its log into the database, which
takes what the disk needs to sync. No work waits in that thread for another process: SQLite's own
waiting is off, and the pause before another try is a `sleep` of the caller.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.protocol.json_object import loads, render_slowly
from qwen_wsgi.state.database.migrations import (
    DAMAGED,
    NewerVersion,
    Tables,
    bring_forward,
    code_of,
    transaction,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The file, in a directory of its own.
FILE: Final = "state.sqlite3"

#: While another process writes: how often, and after what pauses, it is tried again.
TRIES: Final = 40
_PAUSE_S: Final = 0.025

#: How long a worker waits for a disk that does not answer, before its call goes on without.
_DISK_S: Final = 10.0

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})

_NO_ROOM: Final = "Free some space on its disk, or set QWEN_PROXY_RESPONSES_TTL=0."
_NO_WRITING: Final = (
    "It may only be read: check whether its disk is mounted read-only, as one that fails is, and "
    "whether it belongs to the user who runs the server."
)
_FAILING: Final = "Check whether its disk is full or failing."
_NO_ACCESS: Final = "Give it to the user who runs the server, or set QWEN_PROXY_STATE_DIR."

#: What to do about SQLite's other codes, and about the system's errors.
_REMEDIES: Final[Mapping[int, str]] = {
    **dict.fromkeys(_BUSY, "Another process holds it; if this goes on, restart qwen-proxy."),
    **dict.fromkeys(DAMAGED, "It is damaged: check its disk, or restore a backup of it."),
    sqlite3.SQLITE_FULL: _NO_ROOM,
    sqlite3.SQLITE_READONLY: _NO_WRITING,
    sqlite3.SQLITE_IOERR: _FAILING,
    sqlite3.SQLITE_NOMEM: "The machine is out of memory.",
}
_SYSTEMS_REMEDIES: Final[Mapping[int | None, str]] = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EROFS: _NO_WRITING,
    errno.EIO: _FAILING,
}


def remedy_of(error: Exception) -> str:
    """What to do about a file that cannot be used, as a sentence."""
    if isinstance(error, OSError):
        return _SYSTEMS_REMEDIES.get(error.errno, _NO_ACCESS)
    return _REMEDIES.get(code_of(error), _NO_ACCESS)


class DatabaseUnavailable(Exception):
    """The file cannot be used. `str()` says why and what to do, for the log.

    Args:
        passing: it may be better in a moment.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class TooNew(DatabaseUnavailable):
    """A newer version of the proxy wrote the file: this one would harm it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, passing=False)


class Damaged(Exception):
    """What a transaction read is not what was written: raise it to have the file set aside."""


def value_of(body: Any) -> Any:
    """A value as `Database.rendered` has made it.

    Raises:
        Damaged: it is something else.
        RecursionError: it is nested just as deep as could still be rendered.
    """
    try:
        if isinstance(body, bytes):
            return loads(body)
    except ValueError as error:
        raise Damaged(f"a body was lost ({error})") from None
    raise Damaged("a body was lost")


class Apart(Protocol):
    """Runs some work in a thread apart (`greenlets.ThreadApart`)."""

    def __call__(self, work: Callable[[], T], *, timeout_s: float | None = None) -> T:
        """The result of the work, or its exception; TimeoutError if it takes longer."""


def here(work: Callable[[], T], *, timeout_s: float | None = None) -> T:
    """Do some work in the thread of the caller: where there is no event loop."""
    return work()


class Database:
    """One SQLite file, shared by the greenlets and threads of a worker and by all workers.

    A damaged file is set aside with its directory, and a new one is begun.

    Args:
        directory: created when it is needed, for this file alone. None keeps it all in memory.
        tables: of all features.
        keep_damaged_s: how long a damaged file is kept beside the new one.
        clock: its wall clock says when a damaged file is old enough to go.
        apart: a thread for this database alone.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Clock,
        *,
        tables: Sequence[Tables],
        keep_damaged_s: float,
        sleep: Callable[[float], None] = sleep,
        apart: Apart = here,
    ) -> None:
        self.directory = directory
        self._apart = apart
        self._tables = tables
        self._keep_damaged_s = keep_damaged_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        #: Of the file that is open, to notice when it is no longer the one at its path.
        self._inode = 0
        #: How long the index of its log was; SQLite makes it longer, never shorter.
        self._index_bytes = 0
        self._pid = 0
        #: Of a process that forked: closed here, they would do their parent harm.
        self._inherited: list[sqlite3.Connection] = []

    def run(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        write: bool = False,
        tries: int = TRIES,
    ) -> T:
        """Do some work in one transaction.

        Raises:
            DatabaseUnavailable: it could not be done.
        """
        repaired = False
        while True:
            attempt = partial(self._attempt, work, write=write, repair=not repaired)
            try:
                return self._apart(attempt, timeout_s=_DISK_S)
            except NewerVersion as error:
                raise TooNew(
                    f"{self._file()} {error}. Install that version again, or move the file away: "
                    "client keys and what was stored are in it."
                ) from error
            except (sqlite3.Error, Damaged, OSError) as error:
                code = code_of(error)
                if code in DAMAGED and not repaired:
                    repaired = True
                    continue
                tries -= 1
                if code not in _BUSY or tries <= 0:
                    raise self._unavailable(error) from error
            self._sleep(_PAUSE_S)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a query finds.

        Raises:
            DatabaseUnavailable: it cannot be read now.
        """
        return self.run(lambda database: database.execute(query, values).fetchall())

    def _attempt(self, work: Callable[[sqlite3.Connection], T], *, write: bool, repair: bool) -> T:
        """Try once.

        Args:
            repair: whether a damaged file is set aside, so that the next try has a new one.
        """
        with self._lock:
            try:
                return self._transact(work, write=write)
            except (sqlite3.Error, Damaged) as error:
                code = code_of(error)
                if code not in _BUSY:
                    self._close()
                if code in DAMAGED and repair:
                    self._set_aside(error)
                raise

    def rendered(self, *values: Any) -> list[bytes]:
        """Values as JSON, to be stored. Made in the database's thread: large ones take long.

        Raises:
            DatabaseUnavailable: the thread is at work for too long.
            RecursionError, ValueError: a value cannot be rendered.
        """
        try:
            return self._apart(lambda: list(map(render_slowly, values)), timeout_s=_DISK_S)
        except TimeoutError as error:
            raise self._unavailable(error) from error

    def empty_log(self) -> bool:
        """Write the log into the database and empty it, so that what was deleted is in neither.

        Best effort: another process that reads at this moment keeps the log as it is; the next
        write that empties it takes care of the rest.

        Returns:
            Whether it is empty.
        """
        for _ in range(TRIES):
            with suppress(sqlite3.Error, OSError):
                if self._apart(self._emptied, timeout_s=_DISK_S):
                    return True
            self._sleep(_PAUSE_S)
        return False

    def _emptied(self) -> bool:
        with self._lock:
            busy, *_rest = self._opened().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with suppress(TimeoutError):
            self._apart(self._closed, timeout_s=_DISK_S)

    def _closed(self) -> None:
        with self._lock:
            self._close()

    @property
    def exists(self) -> bool:
        """Whether there is a file, or something in memory."""
        file = self._file()
        return self._connection is not None if file is None else file.exists()

    def remove_damaged(self) -> None:
        """Delete a damaged file that was kept."""
        if self.directory is not None:
            shutil.rmtree(aside(self.directory), ignore_errors=True)

    def _transact(self, work: Callable[[sqlite3.Connection], T], *, write: bool) -> T:
        database = self._opened()
        with transaction(database, write=write):
            return work(database)

    def _opened(self) -> sqlite3.Connection:
        """The database, opened when it is first needed in this process, and again when the file at
        its path is another one than the file that is open."""
        if self._connection is not None and self._pid != os.getpid():
            self._inherited.append(self._connection)
            self._connection = None
        file = self._file()
        if self._connection is not None and file and _inode_of(file) != self._inode:
            self._close()
        if self._connection is None:
            self._connection = self._open(file)
            self._pid = os.getpid()
            self._index_bytes = 0
        self._lengthen_index()
        return self._connection

    def _lengthen_index(self) -> None:
        """Make SQLite's index of its log as long as it was, if somebody cut it.

        SQLite maps it, and a look beyond its end kills the process (SIGBUS). Zeros are no index,
        and SQLite makes a new one. A cut in the middle of a transaction is still deadly.

        Raises:
            OSError: it cannot be done.
        """
        if (file := self._file()) is None:
            return
        index = file.with_name(f"{file.name}-shm")
        try:
            size = index.stat().st_size
        except FileNotFoundError:
            return  # whoever removed it did us no harm: what is mapped stays
        if size >= self._index_bytes:
            self._index_bytes = size
            return
        log.warning("the index of SQLite's log was cut, and is made anew path=%s", index)
        # By name, as in `_make_private`. A beginning that was left would be taken for the whole.
        os.truncate(index, 0)
        os.truncate(index, self._index_bytes)

    def _open(self, file: Path | None) -> sqlite3.Connection:
        if file is not None:
            self._make_private(file)
            self._inode = _inode_of(file)
        database = sqlite3.connect(
            file or ":memory:",
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            uri=True,  # for what is attached; our own name is a path, and begins with a slash
        )
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # A power cut loses the latest, and damages nothing.
            database.execute("PRAGMA synchronous = NORMAL")
            # What is deleted is gone from the file, too.
            database.execute("PRAGMA secure_delete = ON")
            database.execute(f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")
            bring_forward(database, self._tables, self.directory and self.directory.parent)
        except BaseException:
            database.close()
            raise
        return database

    def _make_private(self, file: Path) -> None:
        directory = file.parent
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        # Not through a descriptor: closing one would drop this process's locks on the file.
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        for path in (directory, file):
            if (mode := path.stat().st_mode) & 0o077:
                path.chmod(mode & 0o700)
        damaged = aside(directory)
        with suppress(OSError):
            if damaged.stat().st_ctime < self._clock.now() - self._keep_damaged_s:
                shutil.rmtree(damaged)

    def _file(self) -> Path | None:
        return self.directory and self.directory / FILE

    def _close(self) -> None:
        database, self._connection = self._connection, None
        if database is not None and self._pid == os.getpid():
            with suppress(sqlite3.Error, OSError):
                self._lengthen_index()
                database.close()

    def _set_aside(self, error: Exception) -> None:
        """Begin anew; the damaged file is kept beside. Of several processes the first does it.

        The directory is moved as a whole: SQLite finds its log by the file's name, and a log
        without its database, or with another one, is damage as well.

        Raises:
            OSError: it cannot be moved.
        """
        directory, file = self.directory, self._file()
        if directory is None or file is None or _inode_of(file) != self._inode:
            return
        damaged = aside(directory)
        shutil.rmtree(damaged, ignore_errors=True)
        directory.rename(damaged)
        log.error(
            "The file of the state is damaged, and a new one is begun. %s If this happens again, "
            "check the disk. The damaged file is kept for a while path=%s: %s",
            " ".join(each.damage for each in self._tables),
            damaged,
            error,
        )

    def _unavailable(self, error: Exception) -> DatabaseUnavailable:
        if isinstance(error, TimeoutError):
            return DatabaseUnavailable(
                f"{self._file()} cannot be used: its disk did not answer within {_DISK_S:g} s. "
                "Check whether the disk is failing, or too slow for what is stored "
                "(QWEN_PROXY_RESPONSES_TTL=0 stores no responses).",
                passing=True,
            )
        return DatabaseUnavailable(
            f"{self._file()} cannot be used: {error}. {remedy_of(error)}",
            passing=code_of(error) in _BUSY,
        )


def _inode_of(file: Path) -> int:
    """0 if there is none."""
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0


def aside(directory: Path) -> Path:
    """Where a damaged database is kept, with its directory."""
    return directory.with_name(directory.name + ".damaged")
