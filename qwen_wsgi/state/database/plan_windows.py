"""What is known of the windows of plans besides what was used in them: when those have begun that
begin with a call, and until when the vendor says that one is spent."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final, NamedTuple

from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Database

_DAMAGE: Final = (
    "It is not known any more which windows of plans their vendor has called spent: one more call "
    "is refused, and tells it again."
)

_FIRST: Final = (
    """
    CREATE TABLE plan_windows (
        account TEXT NOT NULL,
        window TEXT NOT NULL,
        begun_at REAL,
        told_until REAL,
        told_at REAL,
        PRIMARY KEY (account, window)
    ) WITHOUT ROWID
    """,
)

TABLES: Final = Tables("plan windows", (_FIRST,), _DAMAGE)


class KnownWindow(NamedTuple):
    """What is known of one window of one account. Times are seconds since 1970.

    Attributes:
        begun_at: when it began, if it begins with a call.
        told_until: until when its vendor said that it is spent.
        told_at: when it said so.
    """

    begun_at: float | None = None
    told_until: float | None = None
    told_at: float | None = None


class PlanWindowTable:
    """The windows of all accounts, for all workers and the next start.

    Args:
        database: with `TABLES`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[tuple[str, str], KnownWindow]:
        """By account and window.

        Raises:
            DatabaseUnavailable: it cannot be read now.
        """
        if not self._database.exists:
            return {}  # and none is made, only to look
        rows = self._database.rows(
            "SELECT account, window, begun_at, told_until, told_at FROM plan_windows"
        )
        return {(account, window): KnownWindow(*rest) for account, window, *rest in rows}

    def put(self, known: Mapping[tuple[str, str], KnownWindow]) -> None:
        """Write what has become known. What a vendor said later than another worker knows stays.

        Raises:
            DatabaseUnavailable: it cannot be written now.
        """
        rows = [(account, window, *each) for (account, window), each in known.items()]

        def write(database: sqlite3.Connection) -> None:
            database.executemany(
                "INSERT INTO plan_windows VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " begun_at = excluded.begun_at, told_until = excluded.told_until,"
                " told_at = excluded.told_at"
                " WHERE coalesce(excluded.told_at, 0) >= coalesce(told_at, 0)",
                rows,
            )

        self._database.run(write, write=True)
