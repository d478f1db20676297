"""What this box knows of its videos: whose they are, what they were asked for, how they ended.

The id of a video is enough to ask for it. Here is what an id cannot tell: which videos a client
has, which were deleted, how finished ones ended, and which requests for one are under way, so that
a lost answer's task is not taken for somebody else's. Prompts are among it.

A service beside the answer: whatever is wrong with the file, videos are made and fetched without
it, and the log says why.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Damaged, Database, DatabaseUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Hosts keep a video for 24 hours after its end, and making it takes less than two.
KEPT_S: Final = 26 * 3600
MAX_ROWS: Final = 20_000
#: Bytes of an answer about a task. They have two thousand or so, and a prompt of 20 000 characters.
_LARGEST_STATE: Final = 256 * 1024
#: Rows that are removed with one write, so that none takes long.
_AT_A_TIME: Final = 100

_DAMAGE: Final = "The list of videos is lost: they can still be fetched by their ids."

_FIRST: Final = (
    """
    CREATE TABLE videos (
        key INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        account TEXT NOT NULL,
        model TEXT NOT NULL,
        began REAL NOT NULL,
        task TEXT,
        id TEXT UNIQUE,
        prompt TEXT,
        state TEXT,
        deleted INTEGER NOT NULL DEFAULT 0,
        UNIQUE (account, task)
    )
    """,
    """CREATE INDEX videos_by_owner ON videos (owner, key)""",
    """CREATE INDEX videos_by_age ON videos (began)""",
    """CREATE INDEX videos_by_account ON videos (account, began)""",
)

TABLES: Final = Tables(
    "videos",
    (_FIRST,),
    damage=_DAMAGE,
    old_file="videos/videos-1.sqlite3",
    moves=(
        "INSERT INTO videos"
        " SELECT key, owner, account, model, began, task, id, prompt, state, deleted"
        " FROM old.videos",
    ),
)


class KnownVideo(NamedTuple):
    """A video of the list.

    Attributes:
        prompt: of the client; None where it is not known here.
        state: the latest answer about its task that was kept.
    """

    id: str
    prompt: str | None
    state: Mapping[str, Any]
    deleted: bool = False


class VideoStore:
    """The videos of all clients. Shared by all greenlets and threads of a worker.

    Args:
        database: with `TABLES`.
        max_rows: when there are more, the client that has most of them loses its oldest.
    """

    def __init__(self, database: Database, clock: Clock, *, max_rows: int = MAX_ROWS) -> None:
        self._database = database
        self._clock = clock
        self._max_rows = max_rows

    # --- a video that begins -----------------------------------------------------------------

    def begin(self, owner: str, account: str, model: str) -> int:
        """Note that a request for a video is sent to an account; its key, or 0 if that failed."""

        def insert(database: sqlite3.Connection) -> int:
            self._tidy(database)
            row = (owner, account, model, self._clock.now())
            return (
                database.execute(
                    "INSERT INTO videos (owner, account, model, began) VALUES (?, ?, ?, ?)", row
                ).lastrowid
                or 0
            )

        return self._written(insert, 0)

    def begun(self, key: int, id: str, task: str, prompt: str, state: Mapping[str, Any]) -> bool:
        """Note the task of a request; False if it belongs to another one."""

        def update(database: sqlite3.Connection) -> bool:
            taken = database.execute(
                "SELECT 1 FROM videos WHERE task = ? AND key <> ?"
                " AND account = (SELECT account FROM videos WHERE key = ?)",
                (task, key, key),
            ).fetchone()
            if taken is None:
                database.execute(
                    "UPDATE videos SET id = ?, task = ?, prompt = ?, state = ? WHERE key = ?",
                    (id, task, _writable(prompt), _text_of(state), key),
                )
            return taken is None

        return self._written(update, True)

    def not_begun(self, key: int) -> None:
        """Forget a request that began no task."""
        self._written(
            lambda database: database.execute(
                "DELETE FROM videos WHERE key = ? AND task IS NULL", (key,)
            ),
            None,
        )

    def others(self, key: int, since: float) -> tuple[frozenset[str], int]:
        """Of other requests to the same account for the same model since a time: the ids of their
        tasks, and how many have neither a task nor a failure yet."""

        def read(database: sqlite3.Connection) -> tuple[frozenset[str], int]:
            rows = database.execute(
                "SELECT other.task FROM videos AS own JOIN videos AS other"
                " ON other.account = own.account AND other.model = own.model"
                " AND other.key <> own.key AND other.began >= ? WHERE own.key = ?",
                (since, key),
            ).fetchall()
            tasks = frozenset(task for (task,) in rows if task is not None)
            known = database.execute("SELECT 1 FROM videos WHERE key = ?", (key,)).fetchone()
            # What was not written down cannot be told from others.
            return tasks, sum(task is None for (task,) in rows) + (known is None)

        try:
            return self._database.run(read)
        except DatabaseUnavailable as error:
            log.error("the list of videos cannot be read: %s", error)
            return frozenset(), 1

    # --- a video that is there ---------------------------------------------------------------

    def get(self, owner: str, id: str) -> KnownVideo | None:
        """A video of this owner, also a deleted one; None if it is not known here."""

        def read(database: sqlite3.Connection) -> KnownVideo | None:
            row = database.execute(
                "SELECT id, prompt, state, deleted FROM videos WHERE owner = ? AND id = ?",
                (owner, id),
            ).fetchone()
            return None if row is None else _known(row)

        try:
            return self._database.run(read)
        except DatabaseUnavailable as error:
            log.error("the list of videos cannot be read: %s", error)
            return None

    def page(
        self, owner: str, *, after: str | None, limit: int, oldest_first: bool
    ) -> tuple[list[KnownVideo], bool] | None:
        """Videos of this owner, and whether there are more; None if there is no video `after`.

        Raises:
            ApiError: 503: the file cannot be read now.
        """
        compare, order = (">", "ASC") if oldest_first else ("<", "DESC")

        def read(database: sqlite3.Connection) -> list[KnownVideo] | None:
            begin = 0 if oldest_first else 2**62
            if after is not None:
                row = database.execute(
                    "SELECT key FROM videos WHERE owner = ? AND id = ?", (owner, after)
                ).fetchone()
                if row is None:
                    return None
                begin = row[0]
            rows = database.execute(
                "SELECT id, prompt, state, deleted FROM videos WHERE owner = ? AND id IS NOT NULL"
                f" AND NOT deleted AND began >= ? AND key {compare} ? ORDER BY key {order} LIMIT ?",
                (owner, self._clock.now() - KEPT_S, begin, limit + 1),
            ).fetchall()
            return [_known(row) for row in rows]

        try:
            found = self._database.run(read)
        except DatabaseUnavailable as error:
            log.error("the list of videos cannot be read: %s", error)
            raise _unavailable(error) from error
        return None if found is None else (found[:limit], len(found) > limit)

    def update(self, owner: str, id: str, state: Mapping[str, Any]) -> None:
        """Keep the answer about a task that has ended."""
        self._written(
            lambda database: database.execute(
                "UPDATE videos SET state = ? WHERE owner = ? AND id = ?",
                (_text_of(state), owner, id),
            ),
            None,
        )

    def delete(self, owner: str, id: str, account: str, task: str, model: str) -> None:
        """Note that a video is deleted, also one of another box; its prompt goes.

        Raises:
            ApiError: 503: it cannot be noted now.
        """

        def mark(database: sqlite3.Connection) -> None:
            self._tidy(database)
            database.execute(
                "INSERT INTO videos (owner, account, model, began, task, id, deleted)"
                " VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE"
                " SET deleted = 1, prompt = NULL, state = NULL",
                (owner, account, model, self._clock.now(), task, id),
            )

        try:
            self._database.run(mark, write=True)
        except DatabaseUnavailable as error:
            log.error("a video is not deleted: %s", error)
            raise _unavailable(error) from error

    # --- inside ------------------------------------------------------------------------------

    def _written(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Do some work in a transaction that writes; if it cannot be done, the log says why."""
        try:
            return self._database.run(work, write=True)
        except DatabaseUnavailable as error:
            log.error("the list of videos is not kept: %s", error)
            return otherwise

    def _tidy(self, database: sqlite3.Connection) -> None:
        """Remove what is old, bring the future back, and make room for one more."""
        now = self._clock.now()
        database.execute("UPDATE videos SET began = ? WHERE began > ?", (now, now + 60))
        database.execute(
            "DELETE FROM videos WHERE key IN"
            " (SELECT key FROM videos WHERE began < ? ORDER BY began LIMIT ?)",
            (now - KEPT_S, _AT_A_TIME),
        )
        (count,) = database.execute("SELECT count(*) FROM videos").fetchone()
        if count >= self._max_rows:
            database.execute(
                "DELETE FROM videos WHERE key IN (SELECT key FROM videos WHERE owner ="
                " (SELECT owner FROM videos GROUP BY owner ORDER BY count(*) DESC LIMIT 1)"
                " ORDER BY key LIMIT ?)",
                (count - self._max_rows + 1,),
            )


def _unavailable(error: DatabaseUnavailable) -> ApiError:
    return ApiError(
        "The proxy cannot use its list of videos now; its log says why. Videos can be fetched by "
        "their ids.",
        status=503,
        code="video_store_unavailable",
        retry_after_s=1 if error.passing else None,
    )


def _writable(text: str) -> str:
    """Half a surrogate pair, which JSON can write, no database can."""
    return text.encode(errors="replace").decode()


def _text_of(state: Mapping[str, Any]) -> str | None:
    text = json.dumps(state, separators=(",", ":"))
    return text if len(text) <= _LARGEST_STATE else None


def _known(row: tuple[str, str | None, str | None, int]) -> KnownVideo:
    id, prompt, state, deleted = row
    try:
        return KnownVideo(id, prompt, json.loads(state or "{}"), bool(deleted))
    except ValueError as error:
        raise Damaged(f"a state was lost ({error})") from None
