"""The responses that are to be made in the background: a queue that all workers of the box share.

A row is here from the request until the response has ended and is among the stored ones
(`responses`). Only one worker gets a row to work at (`claim`), and only one process ends it:
whoever marked it as `ending`. A worker notes now and then that it lives; the rows of one that does
not are found with `lost`.

Requests of clients are in it.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from qwen_wsgi.clock import Clock, boottime
from qwen_wsgi.errors import ApiError, Overloaded
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.responses import Stored
from qwen_wsgi.state.database.sqlite import Database, DatabaseUnavailable, value_of
from qwen_wsgi.state.workers import is_gone

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Of all clients together, and the bytes of their requests.
MAX_ROWS: Final = 2_000
MAX_BYTES: Final = 256 * 1024 * 1024
#: How often the log is told that the file cannot be used. Seconds.
_TELL_S: Final = 60.0
#: Of one request. Bytes.
LARGEST: Final = 16 * 1024 * 1024
#: Rows that are looked at, or removed, with one transaction.
_AT_A_TIME: Final = 100

_QUEUED: Final = "queued"
_RUNNING: Final = "running"
_ENDING: Final = "ending"
#: It has ended, and could not be stored among the others.
_ENDED: Final = "ended"

_DAMAGE: Final = (
    "Responses in the background are lost: those that were waiting or running are unknown now."
)

# Requests are apart, because SQLite writes a whole row anew when one column changes.
_FIRST: Final = (
    """
    CREATE TABLE background_jobs (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL,
        client TEXT NOT NULL,
        id TEXT NOT NULL,
        status TEXT NOT NULL,
        worker TEXT NOT NULL DEFAULT '',
        beat REAL NOT NULL DEFAULT 0,
        deadline REAL NOT NULL,
        bytes INTEGER NOT NULL,
        UNIQUE (owner, id)
    )
    """,
    """CREATE INDEX background_by_status ON background_jobs (status, owner, key)""",
    """
    CREATE TABLE background_bodies (
        key INTEGER PRIMARY KEY,
        response BLOB NOT NULL,
        items BLOB NOT NULL,
        previous TEXT,
        headers BLOB NOT NULL,
        request BLOB NOT NULL
    )
    """,
    """
    CREATE TRIGGER background_removed AFTER DELETE ON background_jobs BEGIN
        DELETE FROM background_bodies WHERE key = OLD.key;
    END
    """,
)

TABLES: Final = Tables("responses in the background", (_FIRST,), _DAMAGE)

_COLUMNS: Final = (
    "job.key, owner, client, id, status, worker, beat, deadline, response, items, previous,"
    " headers, request FROM background_jobs AS job"
    " JOIN background_bodies AS body ON body.key = job.key"
)


class Job(NamedTuple):
    """A response to be made.

    Attributes:
        owner, client: the id of the client that it belongs to, and its name for the log.
        worker, beat: who works at it, and when it was last known to live (`boottime`).
        deadline: when it has to be done, seconds since 1970.
        stored: the response object of its beginning, and what is kept beside it.
        headers: of the request, those that matter, as WSGI spells them.
        request: its body.
    """

    key: int
    owner: str
    client: str
    id: str
    status: str
    worker: str
    beat: float
    deadline: float
    stored: Stored
    headers: Mapping[str, str]
    request: bytes

    @property
    def is_queued(self) -> bool:
        """Whether nobody has begun it."""
        return self.status == _QUEUED

    @property
    def has_ended(self) -> bool:
        """Whether its response object is the last one."""
        return self.status == _ENDED


class BackgroundQueue:
    """The responses to be made, of all clients. Shared by all greenlets and threads of a worker.

    Args:
        database: with `TABLES`.
        per_client: how many of one client may wait and run.
        kept_s: how long one that could not be stored among the others is told of.
        boottime: tells how long workers have been silent, also across processes.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        per_client: int,
        kept_s: float,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        boottime: Callable[[], float] = boottime,
    ) -> None:
        self._clock = clock
        self._per_client = per_client
        self._kept_s = kept_s
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._boottime = boottime
        self._was_used = False
        self._database = database
        #: What the log was told last, and when: workers look at the queue twice a second.
        self._told = ("", -math.inf)

    @property
    def is_used(self) -> bool:
        """Whether there has ever been a row: without one there is nothing to look for.

        Raises:
            ApiError: 503: the file cannot be read now.
        """
        if not self._was_used and self._database.exists:
            self._was_used = self._do(
                lambda database: (
                    database.execute(
                        "SELECT 1 FROM sqlite_sequence WHERE name = 'background_jobs'"
                    ).fetchone()
                    is not None
                )
            )
        return self._was_used

    def add(
        self,
        owner: str,
        client: str,
        *,
        deadline: float,
        stored: Stored,
        headers: Mapping[str, str],
        request: bytes,
    ) -> None:
        """Add a response to be made, with the object that is told of it.

        Raises:
            ApiError: 413: the request is too large to be kept; 503: it cannot be kept now.
            Overloaded: 429 for one client's, 503 for all: too many wait.
        """
        response, items, kept_headers = self._rendered(
            dict(stored.response), list(stored.input_items), dict(headers)
        )
        bodies = (response, items, stored.previous, kept_headers, request)
        size = sum(len(each) for each in bodies if isinstance(each, bytes))
        if size > LARGEST:
            raise ApiError(
                f"A request for a response in the background may have {LARGEST // 2} bytes or so: "
                "it is kept until the response is made. Leave out 'background'.",
                status=413,
                type="invalid_request_error",
                code="request_too_large",
                param="input",
            )

        def insert(database: sqlite3.Connection) -> None:
            self._check_room(database, owner, size)
            key = database.execute(
                "INSERT INTO background_jobs (owner, client, id, status, deadline, bytes)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (owner, client, stored.response["id"], _QUEUED, deadline, size),
            ).lastrowid
            database.execute(
                "INSERT INTO background_bodies VALUES (?, ?, ?, ?, ?, ?)", (key, *bodies)
            )

        self._do(insert, write=True)
        self._was_used = True

    def get(self, owner: str, id: str) -> Job | None:
        """A response of this owner that is still here, or None.

        Raises:
            ApiError: 503: the file cannot be read now.
        """
        return self._one("owner = ? AND id = ?", (owner, id))

    # --- for the worker that makes them ------------------------------------------------------

    def waits(self) -> bool:
        """Whether one waits to be made. Raises as `get`."""
        return self._do(
            lambda database: (
                database.execute(
                    "SELECT 1 FROM background_jobs WHERE status = ? LIMIT 1", (_QUEUED,)
                ).fetchone()
                is not None
            )
        )

    def claim(self, worker: str) -> Job | None:
        """Take the next one to work at: the oldest of the client that has fewest running.

        Raises:
            ApiError: 503: the file cannot be used now.
        """

        def take(database: sqlite3.Connection) -> Job | None:
            row = database.execute(
                "SELECT min(key) FROM background_jobs AS one WHERE status = ? GROUP BY owner"
                " ORDER BY (SELECT count(*) FROM background_jobs AS other WHERE other.status = ?"
                " AND other.owner = one.owner), min(key) LIMIT 1",
                (_QUEUED, _RUNNING),
            ).fetchone()
            if row is None:
                return None
            database.execute(
                "UPDATE background_jobs SET status = ?, worker = ?, beat = ? WHERE key = ?",
                (_RUNNING, worker, self._boottime(), row[0]),
            )
            return _job(database, "job.key = ?", row)

        return self._do(take, write=True)

    def mine(self, worker: str) -> frozenset[int]:
        """The keys of those at which a worker works. Raises as `get`."""
        return self._do(
            lambda database: frozenset(
                key
                for (key,) in database.execute(
                    "SELECT key FROM background_jobs WHERE status = ? AND worker = ?",
                    (_RUNNING, worker),
                )
            )
        )

    def beat(self, keys: Iterable[int]) -> None:
        """Note that the worker of these lives. Raises as `claim`."""
        rows = [(self._boottime(), key) for key in keys]
        if rows:
            self._do(
                lambda database: database.executemany(
                    "UPDATE background_jobs SET beat = ? WHERE key = ?", rows
                ),
                write=True,
            )

    # --- the end -----------------------------------------------------------------------------

    def begin_end(self, key: int, worker: str) -> bool:
        """Mark one as ending, if `worker` still works at it; whether it was marked, so that the
        caller is the one who stores its end and then calls `end` or `keep`. Raises as `claim`.
        """
        return self._mark_ending(key, worker, of=worker, among=(_RUNNING,))

    def take_over(self, job: Job, worker: str) -> bool:
        """The same for one whose worker is gone, perhaps while it was ending. Raises as `claim`."""
        return self._mark_ending(job.key, worker, of=job.worker, among=(_RUNNING, _ENDING))

    def _mark_ending(self, key: int, by: str, *, of: str, among: Sequence[str]) -> bool:
        return self._do(
            lambda database: (
                database.execute(
                    "UPDATE background_jobs SET status = ?, worker = ?, beat = ? WHERE key = ?"
                    f" AND status IN ({', '.join('?' * len(among))}) AND worker = ?",
                    (_ENDING, by, self._boottime(), key, *among, of),
                ).rowcount
                == 1
            ),
            write=True,
        )

    def cancel(self, owner: str, id: str, by: str) -> Job | None:
        """The same for the client's own wish: for one that waits, or that anybody works at. None
        if it has ended, or is about to. Raises as `claim`."""

        def take(database: sqlite3.Connection) -> Job | None:
            found = _job(database, "owner = ? AND id = ?", (owner, id))
            if found is None or found.status not in (_QUEUED, _RUNNING):
                return None
            database.execute(
                "UPDATE background_jobs SET status = ?, worker = ?, beat = ? WHERE key = ?",
                (_ENDING, by, self._boottime(), found.key),
            )
            return found

        return self._do(take, write=True) if self.is_used else None

    def overdue(self, by: str) -> Job | None:
        """The same for one that nobody has begun in time. Raises as `claim`."""
        where, values = "status = ? AND deadline < ?", (_QUEUED, self._clock.now())
        found = self._one(where, values)
        return None if found is None else self.cancel(found.owner, found.id, by)

    def lost(self, worker: str, running: Iterable[int]) -> list[Job]:
        """Those whose worker is gone, and those of `worker` that are not among its `running`.
        Raises as `get`."""
        own, now = frozenset(running), self._boottime()

        def read(database: sqlite3.Connection) -> list[Job]:
            rows = database.execute(
                "SELECT key, worker, beat FROM background_jobs WHERE status IN (?, ?) LIMIT ?",
                (_RUNNING, _ENDING, _AT_A_TIME),
            ).fetchall()
            gone = [
                key
                for key, other, beat in rows
                if (key not in own if other == worker else is_gone(other, now - beat))
            ]
            return [job for key in gone if (job := _job(database, "job.key = ?", (key,)))]

        return self._do(read)

    def end(self, key: int) -> bool:
        """Remove one whose end is stored; whether it was there: else its client has deleted it
        meanwhile. Raises as `claim`."""
        return self._do(
            lambda database: (
                database.execute("DELETE FROM background_jobs WHERE key = ?", (key,)).rowcount == 1
            ),
            write=True,
        )

    def keep(self, key: int, response: Mapping[str, Any]) -> None:
        """Keep the last object of one here, because it cannot be stored elsewhere. Raises as
        `claim`."""
        (body,) = self._rendered(dict(response))

        def update(database: sqlite3.Connection) -> None:
            database.execute(
                "UPDATE background_jobs SET status = ?, deadline = ?, bytes = ? WHERE key = ?",
                (_ENDED, self._clock.now() + self._kept_s, len(body), key),
            )
            database.execute(
                "UPDATE background_bodies SET response = ?, request = x'' WHERE key = ?",
                (body, key),
            )

        self._do(update, write=True)

    def delete(self, owner: str, id: str) -> Job | None:
        """Remove one, whatever its state; it, or None. Raises as `claim`."""
        if not self.is_used:
            return None

        def remove(database: sqlite3.Connection) -> Job | None:
            found = _job(database, "owner = ? AND id = ?", (owner, id))
            if found is not None:
                database.execute("DELETE FROM background_jobs WHERE key = ?", (found.key,))
            return found

        found = self._do(remove, write=True)
        if found is not None:
            self._database.empty_log()
        return found

    # --- inside ------------------------------------------------------------------------------

    def _one(self, where: str, values: Sequence[Any]) -> Job | None:
        if not self.is_used or not all(str(value).isascii() for value in values):
            return None
        return self._do(lambda database: _job(database, where, values))

    def _check_room(self, database: sqlite3.Connection, owner: str, size: int) -> None:
        database.execute(
            "DELETE FROM background_jobs WHERE key IN"
            " (SELECT key FROM background_jobs WHERE status = ? AND deadline < ? LIMIT ?)",
            (_ENDED, self._clock.now(), _AT_A_TIME),
        )
        rows, held = database.execute(
            "SELECT count(*), total(bytes) FROM background_jobs"
        ).fetchone()
        (own,) = database.execute(
            "SELECT count(*) FROM background_jobs WHERE owner = ? AND status <> ?", (owner, _ENDED)
        ).fetchone()
        if own >= self._per_client:
            raise Overloaded(
                f"Your key has {own} responses in the background that have not ended, which is "
                "the limit of one client (QWEN_PROXY_BACKGROUND_PER_KEY). Wait for one, or cancel "
                "one.",
                status=429,
                type="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=10,
            )
        if rows >= self._max_rows or held + size > self._max_bytes:
            raise Overloaded(
                f"The proxy keeps {rows} responses in the background with {held:.0f} bytes, and "
                "has no room for one more. Please try again later, or leave out 'background'.",
                type="overloaded_error",
                code="overloaded",
                retry_after_s=10,
            )

    def _do(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        try:
            return self._database.run(work, write=write)
        except DatabaseUnavailable as error:
            raise self._unavailable(error) from error

    def _rendered(self, *values: Any) -> list[bytes]:
        try:
            return self._database.rendered(*values)
        except DatabaseUnavailable as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: DatabaseUnavailable) -> ApiError:
        self._tell(str(error))
        return ApiError(
            "The proxy cannot use its list of responses in the background now; its log says "
            "why. Leave out 'background' to have a response at once.",
            status=503,
            code="background_unavailable",
            retry_after_s=1 if error.passing else None,
        )

    def _tell(self, problem: str) -> None:
        now_s = self._clock.monotonic()
        if problem != self._told[0] or now_s - self._told[1] >= _TELL_S:
            self._told = (problem, now_s)
            log.error("responses in the background cannot be used: %s", problem)


def _job(database: sqlite3.Connection, where: str, values: Sequence[Any]) -> Job | None:
    """The first one of which this is true.

    Raises:
        Damaged: its bodies are not what was written.
    """
    row = database.execute(f"SELECT {_COLUMNS} WHERE {where} LIMIT 1", values).fetchone()
    if row is None:
        return None
    *facts, response, items, previous, headers, request = row
    stored = Stored(value_of(response), value_of(items), previous)
    return Job._make([*facts, stored, value_of(headers), request])


# --- who works ----------------------------------------------------------------------------------
