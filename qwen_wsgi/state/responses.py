"""Responses that clients may come back to: what `POST /v1/responses` with `store` leaves behind.

All workers of the box share one SQLite database. Whole bodies are in it, as clients sent and got
them, so it lies in a directory of its own that only the server's user can read, and no client gets
what another one's key has stored. `QWEN_PROXY_RESPONSES_TTL=0` keeps nothing, and removes what was
kept before.

Storing is a service beside the answer: whatever is wrong with the file, a call goes on without it
and the log says why.

Calls block the event loop. Small ones take below a millisecond, a megabyte ten, 16 MiB, the most
that is stored of one call, two hundred; every four megabytes SQLite empties its log into the
database, which takes what the disk needs to sync. Nobody waits for another process while blocking:
SQLite's own waiting is off, and the pause before another try is a `sleep` that lets other greenlets
run.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol.json_object import compact

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How many responses are kept, however small they are.
MAX_ROWS: Final = 100_000

#: The version of the schema is in the name: another one leaves this file alone.
_FILE: Final = "responses-1.sqlite3"
#: More would keep everybody else waiting. Bytes.
LARGEST: Final = 16 * 1024 * 1024
#: What a row takes besides its bodies, about. Bytes.
_OVERHEAD: Final = 512
#: Expired rows that are removed with one write, so that none takes long.
_EXPIRED_AT_A_TIME: Final = 100

#: While another process writes: how often, and after what pauses, it is tried again.
_TRIES: Final = 40
_PAUSE_S: Final = 0.025

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
#: A plain SQLITE_ERROR is damage as well: our statements fit every file that we made.
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})

#: What to do about the others.
_REMEDIES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: "Another process holds it; if this goes on, restart qwen-proxy.",
    sqlite3.SQLITE_FULL: "Free some space on its disk, or set QWEN_PROXY_RESPONSES_TTL=0.",
    sqlite3.SQLITE_IOERR: "See whether its disk is full or failing.",
    sqlite3.SQLITE_NOMEM: "The machine is out of memory.",
}
_NO_ACCESS: Final = "Give it to the user who runs the server, or set QWEN_PROXY_STATE_DIR."

# Bodies are apart, because SQLite writes a whole row anew when one column changes.
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS responses (
    key INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    previous TEXT,
    bytes INTEGER NOT NULL,
    used_at REAL NOT NULL,
    UNIQUE (owner, id)
);
CREATE INDEX IF NOT EXISTS by_use ON responses (used_at);
CREATE TABLE IF NOT EXISTS bodies (
    key INTEGER PRIMARY KEY,
    response BLOB NOT NULL,
    input BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS totals (rows INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON responses BEGIN
    UPDATE totals SET rows = rows + 1, bytes = bytes + NEW.bytes;
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON responses BEGIN
    DELETE FROM bodies WHERE key = OLD.key;
    UPDATE totals SET rows = rows - 1, bytes = bytes - OLD.bytes;
END;
COMMIT;
"""


class StoreUnavailable(ApiError):
    """What is stored cannot be had now. The operator's problem: the log says what it is."""

    status = 503


class ResponseMissing(BadRequest):
    """A response that a request continues, or one that came before it, is not there (any more)."""


class _Trouble(Exception):
    """The file cannot be used. `str()` says why and what to do, for the log.

    Args:
        passing: it may be better in a moment.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class _LostBody(Exception):
    """A stored body is not what was written."""


@dataclass(frozen=True)
class Stored:
    """A response as it was stored.

    Attributes:
        response: OpenAI's response object.
        input_items: what the client sent with this call, as items.
        previous: the id of the response that it continues, or None.
    """

    response: dict[str, Any]
    input_items: list[dict[str, Any]]
    previous: str | None


class ResponseStore:
    """The stored responses of all clients. Shared by all greenlets and threads of a worker.

    What was not used for the longest goes first, when there is too much. Using a response counts as
    using all that it continues, so that a living conversation does not lose its beginning.

    Ages are told by the wall clock, because the file outlives the machine's uptime. A clock that is
    put back makes nothing expire; what was used in its future counts as used at the next write, so
    that it is not kept for longer either. A clock that is put forward by the whole `ttl_s` cannot
    be told from a machine that was off for so long: everything expires.

    Args:
        directory: is made when it is needed, for this store alone. None keeps it all in memory.
        ttl_s: how long what nobody uses is kept; 0 keeps nothing.
        max_bytes: of all bodies together. The file never shrinks; SQLite's log beside it may take
            16 MiB and more.
        max_rows: of responses.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Clock,
        *,
        ttl_s: float,
        max_bytes: int,
        max_rows: int = MAX_ROWS,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._sleep = sleep
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        #: Of the file that is open, to notice when it is no longer the one at its path.
        self._inode = 0
        self._pid = 0
        #: Of a process that forked: closed here, they would do their parent harm.
        self._inherited: list[sqlite3.Connection] = []
        self._forgotten = False

    def put(
        self,
        owner: str,
        response: Mapping[str, Any],
        input_items: Sequence[Mapping[str, Any]],
        previous: str | None,
    ) -> bool:
        """Store a response; one with the same id is replaced. Never fails.

        Args:
            owner: whose it is, as `Guard.owner` tells.
            response: OpenAI's response object, with `id` and `output`.
            input_items: what the client sent with this call, as items; nothing of earlier ones.
            previous: the id of the response that it continues, or None.

        Returns:
            Whether it can be had again; if not, the log says why.
        """
        if self._keeps_nothing():
            return False
        try:
            told, sent = compact(dict(response)).encode(), compact(list(input_items)).encode()
            size = len(told) + len(sent) + _OVERHEAD
            if size > (most := min(LARGEST, self._max_bytes)):
                log.warning("a response is not stored: it has %d bytes of at most %d", size, most)
                return False
            row = (owner, response["id"], previous, size)
            self._run(lambda database: self._insert(database, row, told, sent), write=True)
        except (_Trouble, ValueError, RecursionError) as error:
            log.error("a response is not stored: %s", error)
            return False
        return True

    def get(self, owner: str, id: str) -> Stored | None:
        """A response of this owner, or None.

        Raises:
            StoreUnavailable: it cannot be read now.
        """
        found = self._read(owner, id)
        return found[-1] if found else None

    def history(self, owner: str, id: str) -> list[dict[str, Any]]:
        """The items of a whole conversation up to a response, oldest first: of each call those
        that the client sent, then those of the answer.

        Raises:
            ResponseMissing: the response, or one that it continues, is not there.
            StoreUnavailable: it cannot be read now.
        """
        found = self._read(owner, id, whole=True)
        missing = found[0].previous if found else id
        if missing is not None:
            raise _missing(id, missing)
        return [
            item
            for each in found
            for item in (*each.input_items, *(each.response.get("output") or ()))
        ]

    def delete(self, owner: str, id: str) -> bool:
        """Remove a response of this owner; whether it was there. What continues it stays, but has
        no history any more.

        Raises:
            StoreUnavailable: it cannot be removed now.
        """
        if self._keeps_nothing() or not _can_be_an_id(id):
            return False

        def remove(database: sqlite3.Connection) -> bool:
            there = _row_of(database, owner, id, self._oldest()) is not None
            database.execute("DELETE FROM responses WHERE owner = ? AND id = ?", (owner, id))
            self._tidy(database)
            return there

        try:
            return self._run(remove, write=True)
        except _Trouble as trouble:
            raise _unavailable(trouble) from trouble

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._lock:
            self._drop()

    # --- what is done in one transaction -----------------------------------------------------

    def _read(self, owner: str, id: str, *, whole: bool = False) -> list[Stored]:
        """A response, or with `whole` all that are there of its chain, oldest first."""
        if self._keeps_nothing() or not _can_be_an_id(id):
            return []

        def read(database: sqlite3.Connection) -> list[Stored]:
            chain = _chain(database, owner, id, self._oldest())
            return [_stored(database, *row) for row in (chain if whole else chain[:1])]

        try:
            found = self._run(read)
        except _Trouble as trouble:
            raise _unavailable(trouble) from trouble
        except RecursionError:  # nested just as deep as could still be written
            return []
        if found:
            with suppress(_Trouble):  # what was read is good all the same
                self._run(lambda database: self._touch(database, owner, id), write=True, tries=1)
        found.reverse()
        return found

    def _insert(
        self,
        database: sqlite3.Connection,
        row: tuple[str, str, str | None, int],
        told: bytes,
        sent: bytes,
    ) -> None:
        owner, id, previous, size = row
        database.execute("DELETE FROM responses WHERE owner = ? AND id = ?", (owner, id))
        if previous is not None:
            self._touch(database, owner, previous)
        self._tidy(database)
        self._make_room(database, size)
        key = database.execute(
            "INSERT INTO responses (owner, id, previous, bytes, used_at) VALUES (?, ?, ?, ?, ?)",
            (*row, self._clock.now()),
        ).lastrowid
        database.execute("INSERT INTO bodies VALUES (?, ?, ?)", (key, told, sent))

    def _touch(self, database: sqlite3.Connection, owner: str, id: str) -> None:
        """Note that a response and all that it continues are used now."""
        now = self._clock.now()
        chain = _chain(database, owner, id, self._oldest())
        database.executemany(
            "UPDATE responses SET used_at = ? WHERE key = ?", [(now, key) for key, _ in chain]
        )

    def _tidy(self, database: sqlite3.Connection) -> None:
        """Remove what has expired, and bring the future back."""
        now = self._clock.now()
        database.execute("UPDATE responses SET used_at = ? WHERE used_at > ?", (now, now))
        database.execute(
            "DELETE FROM responses WHERE key IN"
            " (SELECT key FROM responses WHERE used_at < ? ORDER BY used_at LIMIT ?)",
            (self._oldest(), _EXPIRED_AT_A_TIME),
        )

    def _make_room(self, database: sqlite3.Connection, size: int) -> None:
        """Remove the oldest until there is room for one more, of so many bytes."""
        rows, total = database.execute("SELECT rows + 1, bytes + ? FROM totals", (size,)).fetchone()
        gone = []
        for key, its in database.execute("SELECT key, bytes FROM responses ORDER BY used_at, key"):
            if rows <= self._max_rows and total <= self._max_bytes:
                break
            gone.append((key,))
            rows, total = rows - 1, total - its
        database.executemany("DELETE FROM responses WHERE key = ?", gone)

    def _oldest(self) -> float:
        """What was used before has expired."""
        return self._clock.now() - self._ttl_s

    def _keeps_nothing(self) -> bool:
        if self._ttl_s > 0:
            return False
        if self._directory is not None and not self._forgotten:
            self._forgotten = True
            for directory in (self._directory, _aside(self._directory)):
                shutil.rmtree(directory, ignore_errors=True)
        return True

    # --- the file ----------------------------------------------------------------------------

    def _run(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        write: bool = False,
        tries: int = _TRIES,
    ) -> T:
        """Do some work in one transaction.

        Raises:
            _Trouble: it could not be done.
        """
        mended = False
        while True:
            try:
                with self._lock:
                    try:
                        return self._transact(work, write=write)
                    except (sqlite3.Error, _LostBody) as error:
                        code = _code_of(error)
                        if code not in _BUSY:
                            self._drop()
                        if code in _DAMAGED and not mended:
                            mended = True
                            self._set_aside(error)
                            continue
                        tries -= 1
                        if code not in _BUSY or tries <= 0:
                            raise
            except (sqlite3.Error, _LostBody, OSError) as error:
                raise self._trouble(error) from error
            self._sleep(_PAUSE_S)

    def _transact(self, work: Callable[[sqlite3.Connection], T], *, write: bool) -> T:
        database = self._opened()
        database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        try:
            result = work(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
            raise
        return result

    def _opened(self) -> sqlite3.Connection:
        """The database, opened when it is first needed in this process, and again when the file at
        its path is another one than the file that is open."""
        if self._database is not None and self._pid != os.getpid():
            self._inherited.append(self._database)
            self._database = None
        file = self._file()
        if self._database is not None and file and _inode_of(file) != self._inode:
            self._drop()
        if self._database is None:
            self._database = self._open(file)
            self._pid = os.getpid()
        return self._database

    def _open(self, file: Path | None) -> sqlite3.Connection:
        if file is not None:
            self._make_private(file)
            self._inode = _inode_of(file)
        database = sqlite3.connect(
            file or ":memory:", timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # A power cut loses the latest, and damages nothing.
            database.execute("PRAGMA synchronous = NORMAL")
            # What is deleted is gone from the file, too.
            database.execute("PRAGMA secure_delete = ON")
            database.execute(f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")
            made = "SELECT 1 FROM sqlite_master WHERE name = 'removed'"
            if database.execute(made).fetchone() is None:
                database.executescript(_SCHEMA)
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
        aside = _aside(directory)
        with suppress(OSError):
            if aside.stat().st_ctime < self._oldest():
                shutil.rmtree(aside)

    def _file(self) -> Path | None:
        return self._directory and self._directory / _FILE

    def _drop(self) -> None:
        database, self._database = self._database, None
        if database is not None and self._pid == os.getpid():
            with suppress(sqlite3.Error):
                database.close()

    def _set_aside(self, error: Exception) -> None:
        """Begin anew; the damaged file is kept beside. Of several processes the first does it.

        The directory is moved as a whole: SQLite finds its log by the file's name, and a log
        without its database, or with another one, is damage as well.

        Raises:
            OSError: it cannot be moved.
        """
        directory, file = self._directory, self._file()
        if directory is None or file is None or _inode_of(file) != self._inode:
            return
        aside = _aside(directory)
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
        log.error(
            "the stored responses are damaged and lost; clients must begin their conversations "
            "anew. The file is kept in %s for a while: %s. If this happens again, check the disk.",
            aside,
            error,
        )

    def _trouble(self, error: Exception) -> _Trouble:
        code = _code_of(error)
        busy = code in _BUSY
        remedy = _REMEDIES.get(sqlite3.SQLITE_BUSY if busy else code, _NO_ACCESS)
        return _Trouble(f"{self._file()} cannot be used: {error}. {remedy}", passing=busy)


def _unavailable(trouble: _Trouble) -> StoreUnavailable:
    log.error("the stored responses cannot be had: %s", trouble)
    return StoreUnavailable(
        "The proxy cannot get at its stored responses now; its log says why. Send the whole "
        "conversation as `input` instead of `previous_response_id`.",
        code="response_store_unavailable",
        retry_after_s=1 if trouble.passing else None,
    )


def _missing(asked: str, missing: str) -> ResponseMissing:
    why = "" if missing == asked else f" It continues '{missing}', which is gone."
    return ResponseMissing(
        f"Previous response with id '{asked[:100]}' not found.{why} Responses are kept for a "
        "limited time, unless they were asked for with store=false, and only for the key that "
        "asked for them. Send the whole conversation as `input` instead.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def _row_of(
    database: sqlite3.Connection, owner: str, id: str, oldest: float
) -> tuple[int, str | None] | None:
    """Key and predecessor of a response that has not expired."""
    row: tuple[int, str | None] | None = database.execute(
        "SELECT key, previous FROM responses WHERE owner = ? AND id = ? AND used_at >= ?",
        (owner, id, oldest),
    ).fetchone()
    return row


def _chain(
    database: sqlite3.Connection, owner: str, id: str | None, oldest: float
) -> list[tuple[int, str | None]]:
    """Key and predecessor of a response and of those that it continues, newest first."""
    chain: dict[int, str | None] = {}
    while id is not None and (row := _row_of(database, owner, id, oldest)) is not None:
        key, id = row
        if key in chain:
            break
        chain[key] = id
    return list(chain.items())


def _stored(database: sqlite3.Connection, key: int, previous: str | None) -> Stored:
    """The bodies of a response.

    Raises:
        _LostBody: they are not what was written.
    """
    row = database.execute("SELECT response, input FROM bodies WHERE key = ?", (key,)).fetchone()
    try:
        response, items = (json.loads(body) for body in row or ())
    except ValueError as error:
        raise _LostBody(f"a body was lost ({error})") from None
    return Stored(response, items, previous)


def _can_be_an_id(id: str) -> bool:
    """Half a surrogate pair, which JSON can write, no database can."""
    return id.isascii()


def _code_of(error: Exception) -> int:
    """What SQLite calls a failure, without the details; 0 for one of the system's."""
    if isinstance(error, OSError):
        return 0
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF


def _inode_of(file: Path) -> int:
    """0 if there is none."""
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0


def _aside(directory: Path) -> Path:
    return directory.with_name(directory.name + ".damaged")
