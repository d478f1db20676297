"""The responses that are to be made in the background: a queue that all workers of the box share.

A row is here from the request until the response has ended and is among the stored ones
(`state.responses`). Only one worker gets a row to work at (`claim`), and only one process ends it:
whoever marked it as `ending`. A worker notes now and then that it lives; the rows of one that does
not are found with `lost`.

Requests of clients are in the file, so only the server's user can read it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from qwen_wsgi.clock import Clock, boottime, sleep
from qwen_wsgi.errors import ApiError, Overloaded
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.state.responses import Stored
from qwen_wsgi.state.shared_files import this_boot
from qwen_wsgi.state.sqlite import Damaged, Database, DatabaseUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The version of the schema is in the name: another one leaves this file alone.
_FILE: Final = "background-1.sqlite3"
#: Of all clients together, and the bytes of their requests.
MAX_ROWS: Final = 2_000
MAX_BYTES: Final = 256 * 1024 * 1024
#: How often the log is told that the file cannot be used. Seconds.
_TELL_S: Final = 60.0
#: Of one request. Bytes.
LARGEST: Final = 16 * 1024 * 1024
#: A worker whose event loop stands still for 30 s is killed (gunicorn.conf.py): one that gave no
#: sign for so long does not come back.
SILENT_S: Final = 45.0
#: Rows that are looked at, or removed, with one transaction.
_AT_A_TIME: Final = 100

_QUEUED: Final = "queued"
_RUNNING: Final = "running"
_ENDING: Final = "ending"
#: It has ended, and could not be stored among the others.
_ENDED: Final = "ended"

_DAMAGE: Final = (
    "the list of responses in the background is damaged and lost; those that were waiting or "
    "running are unknown now. If this happens again, check the disk."
)

# Requests are apart, because SQLite writes a whole row anew when one column changes.
_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS jobs (
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
);
CREATE INDEX IF NOT EXISTS by_status ON jobs (status, owner, key);
CREATE TABLE IF NOT EXISTS bodies (
    key INTEGER PRIMARY KEY,
    response BLOB NOT NULL,
    items BLOB NOT NULL,
    previous TEXT,
    headers BLOB NOT NULL,
    request BLOB NOT NULL
);
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON jobs BEGIN
    DELETE FROM bodies WHERE key = OLD.key;
END;
COMMIT;
"""

_COLUMNS: Final = (
    "jobs.key, owner, client, id, status, worker, beat, deadline, response, items, previous,"
    " headers, request FROM jobs JOIN bodies ON bodies.key = jobs.key"
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
        directory: created when it is needed, for this queue alone. None keeps it all in memory.
        per_client: how many of one client may wait and run.
        kept_s: how long one that could not be stored among the others is told of.
        boottime: tells how long workers have been silent, also across processes.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Clock,
        *,
        per_client: int,
        kept_s: float,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        boottime: Callable[[], float] = boottime,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._clock = clock
        self._per_client = per_client
        self._kept_s = kept_s
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._boottime = boottime
        self._path = None if directory is None else directory / _FILE
        self._was_used = False
        #: What the log was told last, and when: workers look at the queue twice a second.
        self._told = ("", -math.inf)
        self._database = Database(
            directory,
            _FILE,
            schema=_SCHEMA,
            has_schema="SELECT 1 FROM sqlite_master WHERE name = 'removed'",
            keep_damaged_s=kept_s,
            damage=_DAMAGE,
            clock=clock,
            sleep=sleep,
        )

    @property
    def is_used(self) -> bool:
        """Whether there has ever been a row: without one no file is opened, or made."""
        if not self._was_used and self._path is not None:
            self._was_used = self._path.exists()
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
        bodies = (
            compact(dict(stored.response)).encode(),
            compact(list(stored.input_items)).encode(),
            stored.previous,
            compact(dict(headers)).encode(),
            request,
        )
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
                "INSERT INTO jobs (owner, client, id, status, deadline, bytes)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (owner, client, stored.response["id"], _QUEUED, deadline, size),
            ).lastrowid
            database.execute("INSERT INTO bodies VALUES (?, ?, ?, ?, ?, ?)", (key, *bodies))

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
                    "SELECT 1 FROM jobs WHERE status = ? LIMIT 1", (_QUEUED,)
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
                "SELECT min(key) FROM jobs AS one WHERE status = ? GROUP BY owner ORDER BY"
                " (SELECT count(*) FROM jobs AS other WHERE other.status = ?"
                " AND other.owner = one.owner), min(key) LIMIT 1",
                (_QUEUED, _RUNNING),
            ).fetchone()
            if row is None:
                return None
            database.execute(
                "UPDATE jobs SET status = ?, worker = ?, beat = ? WHERE key = ?",
                (_RUNNING, worker, self._boottime(), row[0]),
            )
            return _job(database, "jobs.key = ?", row)

        return self._do(take, write=True)

    def mine(self, worker: str) -> frozenset[int]:
        """The keys of those at which a worker works. Raises as `get`."""
        return self._do(
            lambda database: frozenset(
                key
                for (key,) in database.execute(
                    "SELECT key FROM jobs WHERE status = ? AND worker = ?", (_RUNNING, worker)
                )
            )
        )

    def beat(self, keys: Iterable[int]) -> None:
        """Note that the worker of these lives. Raises as `claim`."""
        rows = [(self._boottime(), key) for key in keys]
        if rows:
            self._do(
                lambda database: database.executemany(
                    "UPDATE jobs SET beat = ? WHERE key = ?", rows
                ),
                write=True,
            )

    # --- the end -----------------------------------------------------------------------------

    def begin_end(self, key: int, by: str, *, of: str) -> bool:
        """Mark one as ending, if the worker `of` still works at it; whether it was marked, so that
        the caller is the one who stores its end and then calls `end` or `keep`. Raises as `claim`.
        """
        return self._do(
            lambda database: (
                database.execute(
                    "UPDATE jobs SET status = ?, worker = ?, beat = ? WHERE key = ?"
                    " AND status IN (?, ?) AND worker = ?",
                    (_ENDING, by, self._boottime(), key, _RUNNING, _ENDING, of),
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
                "UPDATE jobs SET status = ?, worker = ?, beat = ? WHERE key = ?",
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
                "SELECT key, worker, beat FROM jobs WHERE status IN (?, ?) LIMIT ?",
                (_RUNNING, _ENDING, _AT_A_TIME),
            ).fetchall()
            gone = [
                key
                for key, other, beat in rows
                if (key not in own if other == worker else is_gone(other, now - beat))
            ]
            return [job for key in gone if (job := _job(database, "jobs.key = ?", (key,)))]

        return self._do(read)

    def end(self, key: int) -> bool:
        """Remove one whose end is stored; whether it was there: else its client has deleted it
        meanwhile. Raises as `claim`."""
        return self._do(
            lambda database: (
                database.execute("DELETE FROM jobs WHERE key = ?", (key,)).rowcount == 1
            ),
            write=True,
        )

    def keep(self, key: int, response: Mapping[str, Any]) -> None:
        """Keep the last object of one here, because it cannot be stored elsewhere. Raises as
        `claim`."""
        body = compact(dict(response)).encode()

        def update(database: sqlite3.Connection) -> None:
            database.execute(
                "UPDATE jobs SET status = ?, deadline = ?, bytes = ? WHERE key = ?",
                (_ENDED, self._clock.now() + self._kept_s, len(body), key),
            )
            database.execute(
                "UPDATE bodies SET response = ?, request = x'' WHERE key = ?", (body, key)
            )

        self._do(update, write=True)

    def delete(self, owner: str, id: str) -> Job | None:
        """Remove one, whatever its state; it, or None. Raises as `claim`."""
        if not self.is_used:
            return None

        def remove(database: sqlite3.Connection) -> Job | None:
            found = _job(database, "owner = ? AND id = ?", (owner, id))
            if found is not None:
                database.execute("DELETE FROM jobs WHERE key = ?", (found.key,))
            return found

        found = self._do(remove, write=True)
        if found is not None:
            self._database.empty_log()
        return found

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._database.close()

    # --- inside ------------------------------------------------------------------------------

    def _one(self, where: str, values: Sequence[Any]) -> Job | None:
        if not self.is_used or not all(str(value).isascii() for value in values):
            return None
        return self._do(lambda database: _job(database, where, values))

    def _check_room(self, database: sqlite3.Connection, owner: str, size: int) -> None:
        database.execute(
            "DELETE FROM jobs WHERE key IN"
            " (SELECT key FROM jobs WHERE status = ? AND deadline < ? LIMIT ?)",
            (_ENDED, self._clock.now(), _AT_A_TIME),
        )
        rows, held = database.execute("SELECT count(*), total(bytes) FROM jobs").fetchone()
        (own,) = database.execute(
            "SELECT count(*) FROM jobs WHERE owner = ? AND status <> ?", (owner, _ENDED)
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
            self._tell(str(error))
            raise ApiError(
                "The proxy cannot use its list of responses in the background now; its log says "
                "why. Leave out 'background' to have a response at once.",
                status=503,
                code="background_unavailable",
                retry_after_s=1 if error.passing else None,
            ) from error

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
    try:
        stored = Stored(json.loads(response), json.loads(items), previous)
        return Job._make([*facts, stored, json.loads(headers), request])
    except ValueError as error:
        raise Damaged(f"a body was lost ({error})") from None


# --- who works ----------------------------------------------------------------------------------


def this_worker() -> str:
    """A name of this process that no other process has, also after a restart of the machine:
    `<boot>/<namespace of process ids>/<process id>/<its start>`."""
    return f"{this_boot()}/{_namespace()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(worker: str, silent_s: float) -> bool:
    """Whether a worker has ended.

    Args:
        worker: as `this_worker` named it.
        silent_s: how long it gave no sign. Negative after a restart of the machine.
    """
    boot, namespace, pid, started = worker.split("/")
    if boot != this_boot() or silent_s > SILENT_S:
        return True
    # The process ids of another container say nothing here: its silence has to.
    return namespace == _namespace() and _started(int(pid)) != started


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since boot (proc(5), field 22); "" if there is none, or if it
    has ended and its parent did not notice yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
