"""What this box has to tell Redis later, and how far it has read what others told.

While Redis is away a box goes on by itself; what changes meanwhile is noted here, by name: when
Redis is back, what a name stands for then is sent. It outlasts the server.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, TypeVar

from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Database, DatabaseUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

Kind = Literal["response", "file", "batch", "video"]
What = Literal["put", "delete"]

#: Of what waits; beyond it the oldest is not told any more.
MAX_ROWS: Final = 100_000

_DAMAGE: Final = (
    "What other boxes were still to be told is lost: what was stored while Redis was away stays "
    "on this box, and what was deleted meanwhile may be found on others."
)

_FIRST: Final = (
    """
    CREATE TABLE shared_outbox (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        what TEXT NOT NULL,
        kind TEXT NOT NULL,
        owner TEXT NOT NULL,
        id TEXT NOT NULL,
        UNIQUE (kind, owner, id)
    )
    """,
    """CREATE TABLE shared_positions (name TEXT PRIMARY KEY, value TEXT NOT NULL)""",
)

TABLES: Final = Tables("what boxes share", (_FIRST,), damage=_DAMAGE)

#: Everything that this box has, to be told anew: of each kind.
_ALL: Final = (
    "INSERT OR IGNORE INTO shared_outbox (what, kind, owner, id)"
    " SELECT 'put', 'response', owner, id FROM responses ORDER BY used_at DESC",
    "INSERT OR IGNORE INTO shared_outbox (what, kind, owner, id)"
    " SELECT 'put', kind, owner, id FROM objects ORDER BY key",
    "INSERT OR IGNORE INTO shared_outbox (what, kind, owner, id)"
    " SELECT iif(deleted, 'delete', 'put'), 'video', owner, id FROM videos"
    " WHERE id IS NOT NULL ORDER BY key",
)


class Waiting(NamedTuple):
    """Something to be told.

    Attributes:
        what: `put`: as it is now; `delete`: it is gone.
    """

    key: int
    what: What
    kind: Kind
    owner: str
    id: str


class Outbox:
    """What waits to be told. Shared by all workers of the box. Never fails: it is a service beside
    the stores, and the log says what is wrong.

    Args:
        database: with `TABLES`, and those of the stores.
    """

    def __init__(self, database: Database, *, max_rows: int = MAX_ROWS) -> None:
        self._database = database
        self._max_rows = max_rows

    def add(self, what: What, kind: Kind, owner: str, id: str) -> None:
        """Note something to be told later; the latest of one name counts."""

        def write(database: sqlite3.Connection) -> None:
            database.execute(
                "INSERT OR REPLACE INTO shared_outbox (what, kind, owner, id) VALUES (?, ?, ?, ?)",
                (what, kind, owner, id),
            )
            self._make_room(database)

        self._done(write, None)

    def add_all(self) -> None:
        """Note everything that this box has: Redis knows nothing."""

        def write(database: sqlite3.Connection) -> None:
            for statement in _ALL:
                database.execute(statement)
            self._make_room(database)

        self._done(write, None)

    def next(self, most: int) -> list[Waiting]:
        """Some of what waits, the oldest first."""
        if not self._database.exists:
            return []
        return self._done(
            lambda database: [
                Waiting(*row)
                for row in database.execute(
                    "SELECT key, what, kind, owner, id FROM shared_outbox ORDER BY key LIMIT ?",
                    (most,),
                )
            ],
            [],
            write=False,
        )

    def remove(self, told: Sequence[Waiting]) -> None:
        """Some of it was told; what was noted anew meanwhile stays."""
        if told:
            self._done(
                lambda database: database.executemany(
                    "DELETE FROM shared_outbox WHERE key = ?", [(each.key,) for each in told]
                ),
                None,
            )

    def position(self, name: str) -> str:
        """How far something is read; "" if that is not known."""
        return self._done(
            lambda database: next(
                (
                    str(value)
                    for (value,) in database.execute(
                        "SELECT value FROM shared_positions WHERE name = ?", (name,)
                    )
                ),
                "",
            ),
            "",
            write=False,
        )

    def note(self, name: str, value: str) -> None:
        """Note how far something is read."""
        self._done(
            lambda database: database.execute(
                "INSERT OR REPLACE INTO shared_positions VALUES (?, ?)", (name, value)
            ),
            None,
        )

    def _make_room(self, database: sqlite3.Connection) -> None:
        (count,) = database.execute("SELECT count(*) FROM shared_outbox").fetchone()
        if count > self._max_rows:
            database.execute(
                "DELETE FROM shared_outbox WHERE key IN"
                " (SELECT key FROM shared_outbox ORDER BY key LIMIT ?)",
                (count - self._max_rows,),
            )

    def _done(
        self, work: Callable[[sqlite3.Connection], T], otherwise: T, *, write: bool = True
    ) -> T:
        try:
            return self._database.run(work, write=write)
        except DatabaseUnavailable as error:
            log.error("what other boxes are to be told cannot be noted: %s", error)
            return otherwise
