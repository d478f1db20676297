"""Stored responses: what `POST /v1/responses` with `store` keeps for later requests.

Whole bodies are kept, as clients sent and got them, in the database of the box, which only the
server's user can read; no client gets what another one's key has stored.
`QWEN_PROXY_RESPONSES_TTL=0` keeps nothing, and removes what was kept before.

Storing is a service beside the answer: whatever is wrong with the file, a call goes on without it
and the log says why.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Database, DatabaseUnavailable, value_of

log = logging.getLogger(__name__)

_DAMAGE: Final = "Stored responses are lost: clients must begin their conversations anew."

#: How many responses are kept, however small they are.
MAX_ROWS: Final = 100_000

#: More would keep everybody else waiting. Bytes.
LARGEST: Final = 16 * 1024 * 1024
#: What a row takes besides its bodies, about. Bytes.
_OVERHEAD: Final = 512
#: Expired rows that are removed with one write, so that none takes long.
_EXPIRED_AT_A_TIME: Final = 100

# Bodies are apart, because SQLite writes a whole row anew when one column changes.
_FIRST: Final = (
    """
    CREATE TABLE responses (
        key INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        id TEXT NOT NULL,
        previous TEXT,
        bytes INTEGER NOT NULL,
        used_at REAL NOT NULL,
        UNIQUE (owner, id)
    )
    """,
    """CREATE INDEX responses_by_use ON responses (used_at)""",
    """
    CREATE TABLE response_bodies (
        key INTEGER PRIMARY KEY,
        response BLOB NOT NULL,
        input BLOB NOT NULL
    )
    """,
    """CREATE TABLE response_totals (rows INTEGER NOT NULL, bytes INTEGER NOT NULL)""",
    """INSERT INTO response_totals VALUES (0, 0)""",
    """CREATE INDEX responses_by_owner ON responses (owner, used_at, key)""",
    """
    CREATE TABLE response_owners (
        owner TEXT PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TRIGGER response_added_of_owner AFTER INSERT ON responses BEGIN
        INSERT INTO response_owners VALUES (NEW.owner, 1, NEW.bytes) ON CONFLICT (owner)
            DO UPDATE SET rows = rows + 1, bytes = bytes + NEW.bytes;
    END
    """,
    """
    CREATE TRIGGER response_removed_of_owner AFTER DELETE ON responses BEGIN
        UPDATE response_owners SET rows = rows - 1, bytes = bytes - OLD.bytes
            WHERE owner = OLD.owner;
        DELETE FROM response_owners WHERE owner = OLD.owner AND rows <= 0;
    END
    """,
    """
    CREATE TRIGGER response_added AFTER INSERT ON responses BEGIN
        UPDATE response_totals SET rows = rows + 1, bytes = bytes + NEW.bytes;
    END
    """,
    """
    CREATE TRIGGER response_removed AFTER DELETE ON responses BEGIN
        DELETE FROM response_bodies WHERE key = OLD.key;
        UPDATE response_totals SET rows = rows - 1, bytes = bytes - OLD.bytes;
    END
    """,
)

TABLES: Final = Tables(
    "responses",
    (_FIRST,),
    damage=_DAMAGE,
    old_file="responses/responses-1.sqlite3",
    moves=(
        "INSERT INTO responses SELECT key, owner, id, previous, bytes, used_at FROM old.responses",
        "INSERT INTO response_bodies SELECT key, response, input FROM old.bodies",
    ),
)


class StoreUnavailable(ApiError):
    """The store cannot be read now. The operator's problem: the log says what it is."""

    status = 503


class ResponseMissing(BadRequest):
    """A response that a request continues, or an earlier one of its chain, is not stored."""


@dataclass(frozen=True)
class Stored:
    """A response as it was stored.

    Attributes:
        response: OpenAI's response object.
        input_items: what the client sent with this call, as items.
        previous: the id of the response that it continues, or None.
        size: its bytes, where it was read from the store.
    """

    response: dict[str, Any]
    input_items: list[dict[str, Any]]
    previous: str | None
    size: int = field(default=0, compare=False)


class ResponseStore:
    """The stored responses of all clients. Shared by all greenlets and threads of a worker.

    When there is too much, the client that has most of it loses what it did not use for the
    longest: nobody can drive out what others have stored. Using a response counts as
    using all that it continues, so that a living conversation does not lose its beginning.

    Ages are measured by the wall clock, because the file outlives the machine's uptime. A clock
    that is put back makes nothing expire; what was used in its future counts as used at the next
    write, so that it is not kept for longer either. A clock that is put forward by the whole
    `ttl_s` cannot be distinguished from a machine that was off for so long: everything expires.

    Args:
        database: with `TABLES`.
        ttl_s: how long what nobody uses is kept; 0 keeps nothing.
        max_bytes: of all bodies together. The file never shrinks; SQLite's log beside it may take
            16 MiB and more.
        max_rows: of responses.
        largest_history: bytes of a conversation that a request may continue.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        ttl_s: float,
        max_bytes: int,
        max_rows: int = MAX_ROWS,
        largest_history: int = 64 * 1024 * 1024,
    ) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._largest_history = largest_history
        self._database = database
        self._removed = False

    def put(
        self,
        owner: str,
        response: Mapping[str, Any],
        input_items: Sequence[Mapping[str, Any]],
        previous: str | None,
    ) -> bool:
        """Store a response; one with the same id is replaced. Never fails.

        Args:
            owner: the id of the client that it belongs to (`access.guard.Client`).
            response: OpenAI's response object, with `id` and `output`.
            input_items: what the client sent with this call, as items; nothing of earlier ones.
            previous: the id of the response that it continues, or None.

        Returns:
            Whether it is stored; if not, the log says why.
        """
        if self._keeps_nothing():
            return False
        try:
            response_body, input_body = self._database.rendered(dict(response), list(input_items))
        except (DatabaseUnavailable, ValueError, RecursionError) as error:
            log.error("a response is not stored: %s", error)
            return False
        return self._keep(owner, response["id"], previous, response_body, input_body)

    def _keep(
        self, owner: str, id: str, previous: str | None, response_body: bytes, input_body: bytes
    ) -> bool:
        """Store a response that is rendered; whether it is."""
        size = len(response_body) + len(input_body) + _OVERHEAD
        if size > (most := min(LARGEST, self._max_bytes)):
            log.warning("a response is not stored: it has %d bytes of at most %d", size, most)
            return False
        row = (owner, id, previous, size)
        try:
            self._database.run(
                lambda database: self._insert(database, row, response_body, input_body), write=True
            )
        except (DatabaseUnavailable, ValueError) as error:  # half a surrogate pair in an id
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
            ApiError: 400: it is larger than a request may be.
            StoreUnavailable: it cannot be read now.
        """
        found = self._read(owner, id, most=self._largest_history)
        missing = found[0].previous if found else id
        if missing is not None:
            raise missing_response(id, missing)
        return items_of(found)

    def delete(self, owner: str, id: str) -> bool:
        """Remove a response of this owner; whether it was there. What continues it stays, but has
        no history any more.

        Raises:
            StoreUnavailable: it cannot be removed now.
        """
        if self._keeps_nothing() or not can_be_an_id(id):
            return False

        def remove(database: sqlite3.Connection) -> bool:
            there = _row_of(database, owner, id, self._oldest()) is not None
            database.execute("DELETE FROM responses WHERE owner = ? AND id = ?", (owner, id))
            self._tidy(database)
            return there

        try:
            there = self._database.run(remove, write=True)
            # What was deleted is in the log still, until it is emptied.
            self._database.empty_log()
            return there
        except DatabaseUnavailable as error:
            raise _unavailable(error) from error

    # --- what is done in one transaction -----------------------------------------------------

    def _read(self, owner: str, id: str, *, most: int | None = None) -> list[Stored]:
        """A response, or with `most` all that are there of its chain, of so many bytes at most,
        oldest first."""
        if self._keeps_nothing() or not can_be_an_id(id):
            return []

        def read(database: sqlite3.Connection) -> list[Stored]:
            chain = _chain(database, owner, id, self._oldest())
            if most is None:
                chain = chain[:1]
            else:
                self._check_size(database, chain, most)
            return [_stored(database, *row) for row in chain]

        try:
            found = self._database.run(read)
        except DatabaseUnavailable as error:
            raise _unavailable(error) from error
        except RecursionError:  # nested just as deep as could still be written
            return []
        if found:
            with suppress(DatabaseUnavailable):  # what was read is good all the same
                self._database.run(
                    lambda database: self._touch(database, owner, id), write=True, tries=1
                )
        found.reverse()
        return found

    def _check_size(
        self, database: sqlite3.Connection, chain: Sequence[tuple[int, str | None]], most: int
    ) -> None:
        """Refuse a conversation that is larger than a request's body may be, before it is read."""
        size = 0
        for key, _ in chain:
            row = database.execute("SELECT bytes FROM responses WHERE key = ?", (key,)).fetchone()
            size += row[0] - _OVERHEAD
        if size > most:
            raise too_large(size + self._largest_history - most, self._largest_history)

    def _insert(
        self,
        database: sqlite3.Connection,
        row: tuple[str, str, str | None, int],
        response_body: bytes,
        input_body: bytes,
    ) -> None:
        owner, id, previous, size = row
        database.execute("DELETE FROM responses WHERE owner = ? AND id = ?", (owner, id))
        if previous is not None:
            self._touch(database, owner, previous)
        self._tidy(database)
        self._make_room(database, owner, size)
        key = database.execute(
            "INSERT INTO responses (owner, id, previous, bytes, used_at) VALUES (?, ?, ?, ?, ?)",
            (*row, self._clock.now()),
        ).lastrowid
        database.execute(
            "INSERT INTO response_bodies VALUES (?, ?, ?)", (key, response_body, input_body)
        )

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

    def _make_room(self, database: sqlite3.Connection, owner: str, size: int) -> None:
        """Remove responses of those who have most, the oldest first, until there is room for one
        more of this owner, of so many bytes."""
        rows, total = database.execute(
            "SELECT rows + 1, bytes + ? FROM response_totals", (size,)
        ).fetchone()
        if rows <= self._max_rows and total <= self._max_bytes:
            return
        used = {
            name: [count, held]
            for name, count, held in database.execute(
                "SELECT owner, rows, bytes FROM response_owners"
            )
        }
        own = used.setdefault(owner, [0, 0])
        own[0], own[1] = own[0] + 1, own[1] + size
        oldest: dict[str, Iterator[tuple[int, int]]] = {}
        gone = []
        while used and (rows > self._max_rows or total > self._max_bytes):
            by_bytes = total > self._max_bytes
            most = max(used, key=lambda name: used[name][by_bytes])
            if most not in oldest:
                oldest[most] = database.execute(
                    "SELECT key, bytes FROM responses WHERE owner = ? ORDER BY used_at, key",
                    (most,),
                )
            if (found := next(oldest[most], None)) is None:
                del used[most]  # what is left of it is what is to be stored
                continue
            key, its = found
            gone.append((key,))
            used[most][0] -= 1
            used[most][1] -= its
            rows, total = rows - 1, total - its
        database.executemany("DELETE FROM responses WHERE key = ?", gone)

    def _oldest(self) -> float:
        """What was used before has expired."""
        return self._clock.now() - self._ttl_s

    def _keeps_nothing(self) -> bool:
        if self._ttl_s > 0:
            return False
        if not self._removed:
            self._removed = True
            with suppress(DatabaseUnavailable):
                if self._database.run(_remove_all, write=True):
                    self._database.empty_log()
            self._database.remove_damaged()
        return True


def _remove_all(database: sqlite3.Connection) -> int:
    return database.execute("DELETE FROM responses").rowcount


def _unavailable(error: DatabaseUnavailable) -> StoreUnavailable:
    log.error("the stored responses cannot be read: %s", error)
    return StoreUnavailable(
        "The proxy cannot read its stored responses now; its log says why. Send the whole "
        "conversation as `input` instead of `previous_response_id`.",
        code="response_store_unavailable",
        retry_after_s=1 if error.passing else None,
    )


def items_of(conversation: Sequence[Stored]) -> list[dict[str, Any]]:
    """The items of a conversation: of each call those of the client, then those of the answer."""
    return [
        item
        for each in conversation
        for item in (*each.input_items, *(each.response.get("output") or ()))
    ]


def too_large(size: int, most: int) -> ApiError:
    """The refusal of a conversation that is larger than a request may be."""
    return ApiError(
        f"The conversation that 'previous_response_id' continues has {size} bytes, more than a "
        f"request may have ({most}, QWEN_PROXY_MAX_BODY on the server): it exceeds the maximum "
        "context length. Compact it, or send what is needed of it as `input`.",
        status=400,
        type="invalid_request_error",
        code="context_length_exceeded",
        param="previous_response_id",
    )


def missing_response(id: str, missing: str) -> ResponseMissing:
    """The refusal of a response that is not there, or whose predecessor `missing` is not."""
    why = "" if missing == id else f" It continues '{missing}', which is gone."
    return ResponseMissing(
        f"Previous response with id '{id[:100]}' not found.{why} Responses are kept for a "
        "limited time, unless they were created with store=false, and only for the key that "
        "created them. Send the whole conversation as `input` instead.",
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
        Damaged: they are not what was written.
    """
    row = database.execute(
        "SELECT response, input FROM response_bodies WHERE key = ?", (key,)
    ).fetchone()
    response, items = map(value_of, row or (None, None))
    return Stored(response, items, previous, size=sum(map(len, row or ())))


def can_be_an_id(id: str) -> bool:
    """Half a surrogate pair, which JSON can write, no database can."""
    return id.isascii()
