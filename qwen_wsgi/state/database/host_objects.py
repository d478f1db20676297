"""Which client owns which file and batch at which account, and what their host last said of them.

Hosts know accounts, not our clients: without a
row here nobody gets at a file, so a row is written before the client hears of its file, and goes
only when the client deletes the file. A batch goes when its host has forgotten it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar

from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Damaged, Database, DatabaseUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

Kind = Literal["file", "batch"]

#: Of one kind and one client. A whole account has no more files (Model Studio, 2026-05).
MOST_OF_OWNER: Final = 10_000

#: Model Studio tells of a batch for 30 days. Seconds.
BATCH_LIFE_S: Final = 40 * 86_400.0

#: Text of an object; a batch's list of errors may be longer, and is left out then.
_LARGEST: Final = 64 * 1024

_DAMAGE: Final = (
    "The list of who uploaded which file is lost: files and batches are still at their accounts, "
    "but no client gets at them through this proxy."
)

_FIRST: Final = (
    """
    CREATE TABLE objects (
        key INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        owner TEXT NOT NULL,
        account TEXT NOT NULL,
        purpose TEXT NOT NULL,
        created_at REAL NOT NULL,
        value BLOB NOT NULL,
        UNIQUE (kind, id)
    )
    """,
    """CREATE INDEX objects_by_owner ON objects (kind, owner, key)""",
)

TABLES: Final = Tables(
    "files and batches",
    (_FIRST,),
    damage=_DAMAGE,
    old_file="files/host-objects-1.sqlite3",
    moves=(
        "INSERT INTO objects"
        " SELECT key, kind, id, owner, account, purpose, created_at, value FROM old.objects",
    ),
)


class Owned(NamedTuple):
    """A file or a batch of one client.

    Attributes:
        account: the name of the account that has it.
        value: the object as its host last told it, in OpenAI's form.
    """

    id: str
    account: str
    value: dict[str, Any]


class HostObjects:
    """The files and batches of all clients. Shared by all greenlets of a worker.

    Args:
        database: with `TABLES`.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def put(self, kind: Kind, owner: str, account: str, value: Mapping[str, Any]) -> bool:
        """Note whose an object is, or what its host says of it now.

        Args:
            owner: the id of the client (`access.guard.Client`).
            value: OpenAI's object, with `id` and perhaps `purpose`.

        Returns:
            False if the id belongs to another client: nothing was changed.

        Raises:
            ApiError: 503: it cannot be written now.
        """
        now = self._clock.now()
        row = (kind, value["id"], owner, account, str(value.get("purpose", "")), now, _text(value))

        def write(database: sqlite3.Connection) -> bool:
            database.execute(
                "DELETE FROM objects WHERE kind = 'batch' AND created_at < ?",
                (now - BATCH_LIFE_S,),
            )
            done = database.execute(
                "INSERT INTO objects (kind, id, owner, account, purpose, created_at, value)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, id) DO UPDATE"
                " SET account = excluded.account, purpose = excluded.purpose,"
                " value = excluded.value WHERE owner = excluded.owner",
                row,
            )
            return done.rowcount == 1

        return self._run(write, write=True)

    def get(self, kind: Kind, owner: str, id: str) -> Owned | None:
        """An object of this client, or None.

        Raises:
            ApiError: 503: it cannot be read now.
        """
        if not id.isascii():
            return None
        return self._run(lambda database: _one(database, kind, owner, id))

    def remove(self, kind: Kind, owner: str, id: str) -> None:
        """Forget an object.

        Raises:
            ApiError: 503: it cannot be written now.
        """
        self._run(
            lambda database: database.execute(
                "DELETE FROM objects WHERE kind = ? AND owner = ? AND id = ?", (kind, owner, id)
            ),
            write=True,
        )

    def count(self, kind: Kind, owner: str) -> int:
        """How many objects of a kind the client has.

        Raises:
            ApiError: 503: it cannot be read now.
        """
        (found,) = self._run(
            lambda database: database.execute(
                "SELECT count(*) FROM objects WHERE kind = ? AND owner = ?", (kind, owner)
            ).fetchone()
        )
        return int(found)

    def page(
        self,
        kind: Kind,
        owner: str,
        *,
        limit: int,
        after: str = "",
        oldest_first: bool = False,
        purpose: str = "",
    ) -> tuple[list[Owned], bool] | None:
        """Some objects of the client, the latest first, and whether there are more.

        Args:
            after: the id of the last one of the page before; None is returned if the client has
                no such object.
            purpose: only files of this purpose; "" for all.

        Raises:
            ApiError: 503: it cannot be read now.
        """

        def read(database: sqlite3.Connection) -> tuple[list[Owned], bool] | None:
            beyond = 0 if oldest_first else 2**62
            if after:
                row = database.execute(
                    "SELECT key FROM objects WHERE kind = ? AND owner = ? AND id = ?",
                    (kind, owner, after),
                ).fetchone()
                if row is None:
                    return None
                (beyond,) = row
            rows = database.execute(
                "SELECT id, account, value FROM objects WHERE kind = ? AND owner = ?"
                f" AND key {'>' if oldest_first else '<'} ? AND (? = '' OR purpose = ?)"
                f" ORDER BY key {'ASC' if oldest_first else 'DESC'} LIMIT ?",
                (kind, owner, beyond, purpose, purpose, limit + 1),
            ).fetchall()
            return [_owned(*row) for row in rows[:limit]], len(rows) > limit

        return self._run(read) if after.isascii() else None

    def _run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        try:
            return self._database.run(work, write=write)
        except DatabaseUnavailable as error:
            log.error("the list of files and batches cannot be used: %s", error)
            raise ApiError(
                "The proxy cannot look now whose files and batches these are; its log says why.",
                status=503,
                code="file_store_unavailable",
                retry_after_s=1 if error.passing else None,
            ) from error


def _one(database: sqlite3.Connection, kind: Kind, owner: str, id: str) -> Owned | None:
    row = database.execute(
        "SELECT id, account, value FROM objects WHERE kind = ? AND owner = ? AND id = ?",
        (kind, owner, id),
    ).fetchone()
    return None if row is None else _owned(*row)


def _owned(id: str, account: str, value: bytes) -> Owned:
    try:
        return Owned(id, account, json.loads(value))
    except ValueError as error:
        raise Damaged(f"an object was lost ({error})") from None


def _text(value: Mapping[str, Any]) -> bytes:
    text = compact(dict(value)).encode()
    if len(text) <= _LARGEST:
        return text
    known = ("id", "object", "purpose", "status", "created_at", "input_file_id", "endpoint")
    return compact({name: value[name] for name in known if name in value}).encode()
