"""Who is signed in to the console: one-time links, sessions, and how often a sign-in failed lately.

Of links and sessions only digests are kept: a copy of the database lets nobody in.
"""

from __future__ import annotations

import base64
import os
import sqlite3
from collections.abc import Callable
from typing import Final, NamedTuple

from qwen_wsgi.access.client_key import digest_of
from qwen_wsgi.clock import Clock
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Database

#: How long a link can be used, and how long it is known that it was. Seconds.
LINK_S: Final = 300
_KNOWN_S: Final = 86_400
#: How long a session lasts, and how long without a request. Seconds.
SESSION_S: Final = 12 * 3600
IDLE_S: Final = 2 * 3600
#: How often a request of a session is written down. Seconds.
_SEEN_S: Final = 60
#: So many wrong tries of an address within so many seconds are the last ones for that time.
MOST_TRIES: Final = 10
TRIES_S: Final = 60

#: Of each table; the oldest rows make room.
_MOST_LINKS: Final = 50
_MOST_SESSIONS: Final = 100
_MOST_TRIED: Final = 1000

#: Of what a browser says of itself.
_AGENT_CHARS: Final = 200

_FIRST: Final = (
    """
    CREATE TABLE console_links (
        digest BLOB PRIMARY KEY,
        made_at INTEGER NOT NULL,
        used_at INTEGER
    )
    """,
    """
    CREATE TABLE console_sessions (
        id TEXT PRIMARY KEY,
        digest BLOB NOT NULL UNIQUE,
        client_id TEXT NOT NULL,
        client TEXT NOT NULL,
        key_digest BLOB NOT NULL,
        began_at INTEGER NOT NULL,
        seen_at INTEGER NOT NULL,
        address TEXT NOT NULL,
        agent TEXT NOT NULL
    )
    """,
    "CREATE TABLE console_tries (number INTEGER PRIMARY KEY, address TEXT NOT NULL, at REAL)",
)

TABLES: Final = Tables(
    "console sessions", (_FIRST,), damage="Nobody is signed in to the console any more."
)


class Person(NamedTuple):
    """Who signs in.

    Attributes:
        client_id: of the admin's key; `LINK.client_id` for a link of this machine's operator.
        client: the name.
        key_digest: of the admin's key, which may be rotated; b"" for a link.
    """

    client_id: str
    client: str
    key_digest: bytes = b""


#: Who signs in by a link.
LINK: Final = Person("console", "console")


class Session(NamedTuple):
    """Somebody who is signed in. Times are seconds since 1970.

    Attributes:
        id: for the list of sessions; it lets nobody in.
        seen_at: of the latest request, to the minute.
        address: from where it began.
        agent: what the browser said of itself then; hostile text.
    """

    id: str
    person: Person
    began_at: int
    seen_at: int
    address: str
    agent: str


class ConsoleSessions:
    """The sessions of a box, for all its workers. Everything raises DatabaseUnavailable.

    Args:
        database: with `TABLES`.
        random: so many random bytes.
    """

    def __init__(
        self, database: Database, clock: Clock, *, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._database = database
        self._clock = clock
        self._random = random

    # --- links -------------------------------------------------------------------------------

    def add_link(self) -> str:
        """Make a link; its secret."""
        secret, now = self._secret(), int(self._clock.now())

        def insert(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM console_links WHERE made_at < ?", (now - _KNOWN_S,))
            _make_room(database, "console_links", "rowid", _MOST_LINKS)
            row = (digest_of(secret.encode()), now)
            database.execute("INSERT INTO console_links (digest, made_at) VALUES (?, ?)", row)

        self._database.run(insert, write=True)
        return secret

    def spend_link(self, secret: str) -> str:
        """Use a link up: `spent` for the first who does; else `used`, `expired` or `unknown`."""
        digest, now = digest_of(secret.encode()), int(self._clock.now())

        def spend(database: sqlite3.Connection) -> str:
            row = database.execute(
                "SELECT made_at, used_at FROM console_links WHERE digest = ?", (digest,)
            ).fetchone()
            if row is None:
                return "unknown"
            made_at, used_at = row
            if used_at is not None:
                return "used"
            if now - made_at >= LINK_S:
                return "expired"
            database.execute("UPDATE console_links SET used_at = ? WHERE digest = ?", (now, digest))
            return "spent"

        return self._database.run(spend, write=True)

    # --- sessions ----------------------------------------------------------------------------

    def begin(self, person: Person, *, address: str, agent: str) -> str:
        """Sign somebody in; the secret of the session."""
        secret, now = self._secret(), int(self._clock.now())
        row = (
            self._random(9).hex(),
            digest_of(secret.encode()),
            *person,
            *(now, now, address, agent[:_AGENT_CHARS]),
        )

        def insert(database: sqlite3.Connection) -> None:
            _delete_ended(database, now)
            _make_room(database, "console_sessions", "seen_at", _MOST_SESSIONS)
            database.execute(
                "INSERT INTO console_sessions (id, digest, client_id, client, key_digest,"
                " began_at, seen_at, address, agent) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )

        self._database.run(insert, write=True)
        return secret

    def find(self, secret: str, *, active: bool = True) -> Session | None:
        """The session with this secret, if it has not ended.

        Args:
            active: a person asks, so that it is not idle; False for a page that asks by itself.
        """
        if not self._database.exists:
            return None  # and none is made, only to look
        digest, now = digest_of(secret.encode()), int(self._clock.now())
        found = self._database.run(lambda database: _select(database, now, digest))
        if not found:
            return None
        session = found[0]
        if active and now - session.seen_at >= _SEEN_S:
            self._database.run(
                lambda database: database.execute(
                    "UPDATE console_sessions SET seen_at = ? WHERE digest = ?", (now, digest)
                ),
                write=True,
            )
        return session

    def all(self) -> list[Session]:
        """All sessions that have not ended, the latest first."""
        now = int(self._clock.now())
        return self._database.run(lambda database: _select(database, now))

    def end(self, id: str) -> bool:
        """End a session; whether there was one."""

        def delete(database: sqlite3.Connection) -> bool:
            gone = database.execute("DELETE FROM console_sessions WHERE id = ?", (id,))
            return gone.rowcount > 0

        return self._database.run(delete, write=True)

    # --- wrong tries -------------------------------------------------------------------------

    def begin_try(self, address: str) -> int | None:
        """Count a try to sign in as a wrong one, before it is known to be one: of many at the same
        moment no more than `MOST_TRIES` are made. Its number, for `forget_try`; None if there were
        too many from this address lately.
        """
        now = self._clock.now()

        def insert(database: sqlite3.Connection) -> int | None:
            database.execute("DELETE FROM console_tries WHERE at <= ?", (now - TRIES_S,))
            (count,) = database.execute(
                "SELECT count(*) FROM console_tries WHERE address = ?", (address,)
            ).fetchone()
            if count >= MOST_TRIES:
                return None
            _make_room(database, "console_tries", "number", _MOST_TRIED)
            row = (address, now)
            return database.execute(
                "INSERT INTO console_tries (address, at) VALUES (?, ?)", row
            ).lastrowid

        return self._database.run(insert, write=True)

    def forget_try(self, number: int) -> None:
        """A try was not wrong."""
        self._database.run(
            lambda database: database.execute(
                "DELETE FROM console_tries WHERE number = ?", (number,)
            ),
            write=True,
        )

    def _secret(self) -> str:
        return base64.urlsafe_b64encode(self._random(30)).decode()


def _select(database: sqlite3.Connection, now: int, digest: bytes | None = None) -> list[Session]:
    """The sessions that have not ended: all, or the one with a digest."""
    rows = database.execute(
        "SELECT id, client_id, client, key_digest, began_at, seen_at, address, agent"
        " FROM console_sessions WHERE began_at > ? AND seen_at > ? AND coalesce(digest = ?, 1)"
        " ORDER BY seen_at DESC, began_at DESC",
        (now - SESSION_S, now - IDLE_S, digest),
    )
    return [
        Session(id, Person(client_id, client, key), *rest)
        for id, client_id, client, key, *rest in rows
    ]


def _delete_ended(database: sqlite3.Connection, now: int) -> None:
    database.execute(
        "DELETE FROM console_sessions WHERE began_at <= ? OR seen_at <= ?",
        (now - SESSION_S, now - IDLE_S),
    )


def _make_room(database: sqlite3.Connection, table: str, order: str, most: int) -> None:
    """Delete the oldest rows, so that there is room for one more."""
    database.execute(
        f"DELETE FROM {table} WHERE rowid IN"
        f" (SELECT rowid FROM {table} ORDER BY {order} DESC LIMIT -1 OFFSET ?)",
        (most - 1,),
    )
