"""Cached answers: what identical requests of one client are answered with again.

Whole answers are kept, in the database of the box, which only the server's user can read, and only
where the operator has switched it on. Keeping is a service beside the answer: whatever is wrong
with the file, a call goes on without it, and the log says why.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

from qwen_wsgi.clock import Clock
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Database, DatabaseUnavailable

log = logging.getLogger(__name__)

#: Of one answer: more would keep everybody else waiting, and push out too much at once. Bytes.
LARGEST: Final = 2 * 1024 * 1024
_SHARE: Final = 8
#: What a row takes besides its body, about. Bytes.
_OVERHEAD: Final = 512
#: How many answers are kept, however small they are.
_MAX_ROWS: Final = 200_000
#: Rows that are removed with one write, so that none takes long.
_AT_A_TIME: Final = 100
#: Between two looks for what has to go. Seconds.
_TIDY_EVERY_S: Final = 60.0
#: A look-up does not wait long for another process: the upstream can answer, too.
_TRIES: Final = 2

_FIRST: Final = (
    """
    CREATE TABLE cached_answers (
        number INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        made_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        bytes INTEGER NOT NULL,
        body BLOB NOT NULL
    )
    """,
    """CREATE INDEX cached_answers_by_end ON cached_answers (expires_at)""",
    """CREATE INDEX cached_answers_by_owner ON cached_answers (owner)""",
    """CREATE TABLE cached_answer_totals (rows INTEGER NOT NULL, bytes INTEGER NOT NULL)""",
    """INSERT INTO cached_answer_totals VALUES (0, 0)""",
    """
    CREATE TRIGGER cached_answer_added AFTER INSERT ON cached_answers BEGIN
        UPDATE cached_answer_totals SET rows = rows + 1, bytes = bytes + NEW.bytes;
    END
    """,
    """
    CREATE TRIGGER cached_answer_removed AFTER DELETE ON cached_answers BEGIN
        UPDATE cached_answer_totals SET rows = rows - 1, bytes = bytes - OLD.bytes;
    END
    """,
)

TABLES: Final = Tables(
    "cached answers",
    (_FIRST,),
    damage="Cached answers are lost: identical requests go to their upstream again.",
)


class Found(NamedTuple):
    """A cached answer.

    Attributes:
        at: which of the keys has it.
    """

    at: int
    body: bytes


class CachedAnswers:
    """The cached answers of all clients. Shared by all greenlets and threads of a worker.

    Ages are measured by the wall clock, because the file outlives the machine's uptime.

    Args:
        database: with `TABLES`, and with those of the client keys.
        max_bytes: of all answers together; the oldest go first.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        max_bytes: int,
        max_rows: int = _MAX_ROWS,
    ) -> None:
        self._database = database
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._tidied_s = float("-inf")

    @property
    def largest(self) -> int:
        """The largest answer that is kept. Bytes."""
        return min(LARGEST, self._max_bytes // _SHARE)

    def get(self, keys: Sequence[bytes], ttl_s: float) -> Found | None:
        """The answer of the first of several keys that has one. Never fails.

        Args:
            ttl_s: how old it may be.
        """
        now = self._clock.now()

        def read(database: sqlite3.Connection) -> Found | None:
            for at, key in enumerate(keys):
                row = database.execute(
                    "SELECT body FROM cached_answers WHERE key = ? AND made_at > ?"
                    " AND expires_at > ?",
                    (key, now - ttl_s, now),
                ).fetchone()
                if row is not None and isinstance(row[0], bytes):
                    return Found(at, row[0])
            return None

        try:
            return self._database.run(read, tries=_TRIES)
        except DatabaseUnavailable as error:
            log.error("cached answers cannot be read: %s", error)
            return None

    def put(self, owner: str, key: bytes, body: bytes, ttl_s: float) -> None:
        """Keep an answer in place of an older one. Never fails.

        Args:
            owner: the id of the client that it belongs to.
        """
        size = len(body) + _OVERHEAD
        if size > self.largest:
            return
        now = self._clock.now()

        def insert(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM cached_answers WHERE key = ?", (key,))
            _remove_expired(database, now)
            self._make_room(database, size)
            database.execute(
                "INSERT INTO cached_answers (key, owner, made_at, expires_at, bytes, body)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (key, owner, now, now + ttl_s, size, body),
            )

        try:
            self._database.run(insert, write=True, tries=_TRIES)
        except DatabaseUnavailable as error:
            log.error("an answer is not cached: %s", error)

    def look_after(self) -> None:
        """Remove what has expired, and what belongs to keys that were revoked; to be called every
        few seconds. Never fails."""
        now_s = self._clock.monotonic()
        if now_s - self._tidied_s < _TIDY_EVERY_S or not self._database.exists:
            return
        self._tidied_s = now_s
        now = self._clock.now()
        try:
            if not self._database.run(lambda database: _has_gone(database, now)):
                return
            self._database.run(lambda database: _remove_gone(database, now), write=True)
            # What was deleted is in the log still, until it is emptied.
            self._database.empty_log()
        except DatabaseUnavailable as error:
            log.error("cached answers cannot be removed: %s", error)

    def _make_room(self, database: sqlite3.Connection, size: int) -> None:
        """Remove the oldest until there is room for one of so many bytes."""
        rows, total = database.execute(
            "SELECT rows + 1, bytes + ? FROM cached_answer_totals", (size,)
        ).fetchone()
        if rows <= self._max_rows and total <= self._max_bytes:
            return
        last = 0
        for number, its in database.execute(
            "SELECT number, bytes FROM cached_answers ORDER BY number"
        ):
            last, rows, total = number, rows - 1, total - its
            if rows <= self._max_rows and total <= self._max_bytes:
                break
        database.execute("DELETE FROM cached_answers WHERE number <= ?", (last,))


_REVOKED: Final = "owner IN (SELECT id FROM client_keys WHERE revoked_at IS NOT NULL)"


def _has_gone(database: sqlite3.Connection, now: float) -> bool:
    """Whether something has to go."""
    row = database.execute(
        f"SELECT 1 FROM cached_answers WHERE expires_at <= ? OR {_REVOKED} LIMIT 1", (now,)
    ).fetchone()
    return row is not None


def _remove_gone(database: sqlite3.Connection, now: float) -> None:
    database.execute(f"DELETE FROM cached_answers WHERE {_REVOKED}")
    database.execute("DELETE FROM cached_answers WHERE expires_at <= ?", (now,))


def _remove_expired(database: sqlite3.Connection, now: float) -> None:
    database.execute(
        "DELETE FROM cached_answers WHERE number IN"
        " (SELECT number FROM cached_answers WHERE expires_at <= ? LIMIT ?)",
        (now, _AT_A_TIME),
    )
