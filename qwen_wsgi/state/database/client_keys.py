"""The client keys: made, changed, rotated, revoked, and found by the digests of their secrets.

Every change gives the keys another number, by which workers notice it, and writes the copy beside
the database (`state.key_copy`) before it counts: a copy that is behind would bring a revoked key
back to life.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from qwen_wsgi.access.client_key import (
    ClientKey,
    KeptKey,
    KeyProblem,
    KeySet,
    KeysUnavailable,
    NameTaken,
    NewKey,
    digest_of,
    new_key,
    new_secret,
    of_json,
)
from qwen_wsgi.clock import Clock
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.state import key_copy
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import TRIES, Damaged, Database, DatabaseUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Keys, with those that were revoked; of these the oldest make room. A worker goes over all of
#: them after a change.
MOST_KEYS: Final = 2000
#: Secrets of one key that are known: the latest, and those before it.
_MOST_DIGESTS: Final = 5
#: A look of a worker does not wait long for another process.
_TRIES: Final = 4

_NUMBER_BITS: Final = 62

_FIRST: Final = (
    """
    CREATE TABLE client_keys (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        revoked_at INTEGER,
        last_used_at INTEGER,
        value BLOB NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX client_keys_by_name ON client_keys (name) WHERE revoked_at IS NULL",
    """
    CREATE TABLE client_key_digests (
        digest BLOB PRIMARY KEY,
        id TEXT NOT NULL,
        until INTEGER,
        made INTEGER NOT NULL
    )
    """,
    "CREATE INDEX client_key_digests_by_id ON client_key_digests (id)",
    "CREATE TABLE client_key_changes (one INTEGER PRIMARY KEY, number INTEGER NOT NULL)",
)

#: All of them; what is in one of them makes no sense without the others.
NAMES: Final = ("client_keys", "client_key_digests", "client_key_changes")

TABLES: Final = Tables(
    "client keys",
    (_FIRST,),
    damage="Client keys are taken from their copy, client-keys.json.",
)


class ClientKeys:
    """The keys of a box.

    Args:
        database: with `TABLES`.
        directory: of the copy; None keeps none, as of a database in memory.
        random: so many random bytes.

    Attributes:
        note: what the operator should know of the latest change; "" for nothing.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        directory: Path | None,
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._database = database
        self._clock = clock
        self._directory = directory
        self._random = random
        self.note = ""

    # --- for whoever checks keys -------------------------------------------------------------

    def number(self) -> int:
        """The number of the latest change; 0 before the first one.

        Raises:
            KeysUnavailable: it cannot be read now.
        """
        return self._run(_number, tries=_TRIES)

    def read(self) -> KeySet:
        """All keys. A database that was begun anew first gets those of the copy, and a copy that
        somebody has removed is written again.

        Raises:
            KeysUnavailable: they cannot be read now.
        """
        found = self._run(read_all, tries=_TRIES)
        if found.number:
            if self._directory is not None and not self.existed():
                self._copy_again(self._directory)
            return found
        copy = self._copy()
        if copy is None:
            return found
        restored, was_empty = self._run(lambda database: _restore(database, copy), write=True)
        if was_empty:
            log.warning(
                "The database of client keys was begun anew, so %d keys were taken from their copy "
                "path=%s",
                len(restored.keys),
                self._directory,
            )
        return restored

    def kept(self) -> tuple[KeptKey, ...]:
        """The keys as the copy has them, for the time in which the database cannot be read; () if
        there is none, or it cannot be read either."""
        try:
            return self._copy() or ()
        except KeysUnavailable:
            return ()

    def existed(self) -> bool:
        """Whether there are or were keys, as far as the copy tells."""
        return key_copy.exists(self._directory)

    def note_uses(self, uses: Mapping[str, float]) -> None:
        """Note when keys were used last, by their ids. Raises as `number`."""
        rows = [(int(at), id) for id, at in uses.items()]
        self._run(
            lambda database: database.executemany(
                "UPDATE client_keys SET last_used_at = max(coalesce(last_used_at, 0), ?)"
                " WHERE id = ?",
                rows,
            ),
            write=True,
            tries=_TRIES,
        )

    # --- for the operator --------------------------------------------------------------------

    def all(self) -> tuple[ClientKey, ...]:
        """All keys, the oldest first, also those that were revoked. Raises as `number`."""
        return tuple(kept.key for kept in self.read().keys)

    def find(self, wanted: str) -> ClientKey | None:
        """A key by its id or its name; of several with one name the one that is not revoked, or
        was revoked last. Raises as `number`."""
        self.read()
        return self._run(lambda database: _find(database, wanted))

    def add(self, changes: Mapping[str, Any]) -> NewKey:
        """Make a key.

        Args:
            changes: its members, as `changes_of` read them.

        Raises:
            KeyProblem: it has no name, another one has it (`NameTaken`), or there are too many.
            KeysUnavailable: it cannot be written now.
        """
        made = new_key(changes, now=self._clock.now(), random=self._random)

        def insert(database: sqlite3.Connection) -> None:
            _check_name(database, made.key)
            _make_room(database)
            database.execute(
                "INSERT INTO client_keys (id, name, value) VALUES (?, ?, ?)",
                (made.key.id, made.key.name, text_of(made.key, self._revision())),
            )
            self._put_digest(database, made.key.id, made.secret)

        self._change(insert)
        return made

    def edit(self, wanted: str, changes: Mapping[str, Any]) -> ClientKey | None:
        """Change a key; None if there is none such.

        Raises:
            KeyProblem: another one has the name, or it was revoked.
            KeysUnavailable: it cannot be written now.
        """

        def update(database: sqlite3.Connection) -> ClientKey | None:
            if (found := _alive(database, wanted)) is None:
                return None
            changed = replace(found, **changes)
            _check_name(database, changed)
            _update(database, changed, self._revision())
            return changed

        return self._change(update)

    def rotate(self, wanted: str, *, grace_s: float) -> NewKey | None:
        """Give a key a new secret; None if there is none such. Raises as `edit`.

        Args:
            grace_s: for how long the old one stays valid.
        """
        secret = new_secret(self._random)
        until = int(self._clock.now() + grace_s)

        def update(database: sqlite3.Connection) -> NewKey | None:
            if (found := _alive(database, wanted)) is None:
                return None
            database.execute(
                "UPDATE client_key_digests SET until = min(coalesce(until, ?), ?) WHERE id = ?",
                (until, until, found.id),
            )
            self._put_digest(database, found.id, secret)
            _update(database, found, self._revision())
            database.execute(
                "DELETE FROM client_key_digests WHERE id = ? AND digest NOT IN (SELECT digest"
                " FROM client_key_digests WHERE id = ? ORDER BY made DESC LIMIT ?)",
                (found.id, found.id, _MOST_DIGESTS),
            )
            return NewKey(secret, found)

        return self._change(update)

    def revoke(self, wanted: str) -> ClientKey | None:
        """End a key for good; None if there is none such. One that was revoked stays as it is.
        Raises as `add`."""

        def update(database: sqlite3.Connection) -> ClientKey | None:
            found = _find(database, wanted)
            if found is None or found.revoked_at is not None:
                return found
            revoked = replace(found, revoked_at=int(self._clock.now()))
            _update(database, revoked, self._revision())
            return revoked

        return self._change(update)

    # --- inside ------------------------------------------------------------------------------

    def _revision(self) -> int:
        """What tells which of two boxes knows a key's latest change: when it was made."""
        return int(self._clock.now() * 1000)

    def _put_digest(self, database: sqlite3.Connection, id: str, secret: str) -> None:
        database.execute(
            "INSERT INTO client_key_digests (digest, id, made)"
            " VALUES (?, ?, (SELECT coalesce(max(made), 0) + 1 FROM client_key_digests))",
            (digest_of(secret.encode()), id),
        )

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change; all keys have another number then."""
        self.read()  # so that nothing is added to a database that has yet to get its keys

        def change(database: sqlite3.Connection) -> T:
            result = work(database)
            self._has_changed(database)
            return result

        return self._run(change, write=True)

    def _has_changed(self, database: sqlite3.Connection) -> None:
        """Give the keys another number, and write their copy."""
        _renumber(database)
        if self._directory is not None:
            key_copy.write(self._directory, read_all(database).keys)

    def _copy_again(self, directory: Path) -> None:
        """Write the copy, as part of a transaction: nobody else's later one is overwritten."""
        try:
            self._run(
                lambda database: key_copy.write(directory, read_all(database).keys), write=True
            )
        except KeysUnavailable as error:
            log.warning("the copy of the client keys cannot be written: %s", error)

    def _copy(self) -> tuple[KeptKey, ...] | None:
        if self._directory is None:
            return None
        try:
            return key_copy.read(self._directory)
        except (OSError, key_copy.CopyDamaged) as error:
            raise KeysUnavailable(
                f"The client keys are lost: the database has none, and their copy cannot be read: "
                f"{error}. Restore one of the two from a backup; or remove the copy, which lets "
                "this machine in without a key, and make new keys."
            ) from error

    def _run(
        self, work: Callable[[sqlite3.Connection], T], *, write: bool = False, tries: int = TRIES
    ) -> T:
        try:
            return self._database.run(work, write=write, tries=tries)
        except DatabaseUnavailable as error:
            raise KeysUnavailable(str(error), passing=error.passing) from error


def _number(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT number FROM client_key_changes").fetchone()
    return 0 if row is None else int(row[0])


def _renumber(database: sqlite3.Connection) -> None:
    """Give the keys another number. A random one: a database that was begun anew must not arrive
    at one that a worker knows."""
    number = 1 + secrets.randbits(_NUMBER_BITS)
    database.execute("INSERT OR REPLACE INTO client_key_changes VALUES (1, ?)", (number,))


def read_all(database: sqlite3.Connection) -> KeySet:
    """All keys."""
    digests: dict[str, list[tuple[bytes, int | None]]] = {}
    for digest, id, until in database.execute(
        "SELECT digest, id, until FROM client_key_digests ORDER BY made"
    ):
        digests.setdefault(id, []).append((digest, until))
    rows = database.execute("SELECT value, last_used_at FROM client_keys ORDER BY number")
    keys = [_key(*row) for row in rows]
    return KeySet(
        _number(database), tuple(KeptKey(key, tuple(digests.get(key.id, ()))) for key in keys)
    )


def _restore(database: sqlite3.Connection, copy: tuple[KeptKey, ...]) -> tuple[KeySet, bool]:
    """Take over the keys of the copy, unless another process has; and whether it had not."""
    was_empty = not _number(database)
    if was_empty:
        for key, digests in copy:
            database.execute(
                "INSERT INTO client_keys (id, name, revoked_at, last_used_at, value)"
                " VALUES (?, ?, ?, ?, ?)",
                (key.id, key.name, key.revoked_at, key.last_used_at, text_of(key)),
            )
            database.executemany(
                "INSERT INTO client_key_digests (digest, id, until, made) VALUES (?, ?, ?, ?)",
                [(digest, key.id, until, made) for made, (digest, until) in enumerate(digests)],
            )
        _renumber(database)
    return read_all(database), was_empty


def _find(database: sqlite3.Connection, wanted: str) -> ClientKey | None:
    if not wanted.isascii():
        return None
    row = database.execute(
        "SELECT value, last_used_at FROM client_keys WHERE id = ? OR name = ?"
        " ORDER BY id = ? DESC, revoked_at IS NOT NULL, revoked_at DESC, number DESC LIMIT 1",
        (wanted, wanted, wanted),
    ).fetchone()
    return None if row is None else _key(*row)


def _alive(database: sqlite3.Connection, wanted: str) -> ClientKey | None:
    """A key that can be changed; raises KeyProblem if it was revoked."""
    found = _find(database, wanted)
    if found is not None and found.revoked_at is not None:
        raise KeyProblem(
            f"The key '{found.name}' was revoked, and cannot be changed any more. Make a new one."
        )
    return found


def _check_name(database: sqlite3.Connection, key: ClientKey) -> None:
    row = database.execute(
        "SELECT 1 FROM client_keys WHERE name = ? AND id <> ? AND revoked_at IS NULL",
        (key.name, key.id),
    ).fetchone()
    if row is not None:
        raise NameTaken(key.name)


def _make_room(database: sqlite3.Connection) -> None:
    (count,) = database.execute("SELECT count(*) FROM client_keys").fetchone()
    if count < MOST_KEYS:
        return
    row = database.execute(
        "SELECT id FROM client_keys WHERE revoked_at IS NOT NULL ORDER BY revoked_at LIMIT 1"
    ).fetchone()
    if row is None:
        raise KeyProblem(f"There are {count} keys, the most that there can be. Revoke some first.")
    database.execute("DELETE FROM client_keys WHERE id = ?", row)
    database.execute("DELETE FROM client_key_digests WHERE id = ?", row)


def _update(database: sqlite3.Connection, key: ClientKey, revision: int) -> None:
    row = database.execute("SELECT value FROM client_keys WHERE id = ?", (key.id,)).fetchone()
    revision = max(revision, 0 if row is None else revision_in(row[0]) + 1)
    database.execute(
        "UPDATE client_keys SET name = ?, revoked_at = ?, value = ? WHERE id = ?",
        (key.name, key.revoked_at, text_of(key, revision), key.id),
    )


def text_of(key: ClientKey, revision: int = 0) -> bytes:
    """A key as it is written."""
    return compact({**key.json(), "revision": revision}).encode()


def revision_in(value: bytes) -> int:
    """The number of a key's latest change; 0 of one that an older version wrote."""
    found = json.loads(value).get("revision", 0)
    return found if isinstance(found, int) else 0


def _key(value: bytes, last_used_at: int | None) -> ClientKey:
    try:
        key = _parsed(value)
    except (ValueError, TypeError) as error:
        raise Damaged(f"a client key was lost ({error})") from None
    return key if key.last_used_at == last_used_at else replace(key, last_used_at=last_used_at)


@functools.lru_cache(maxsize=2 * MOST_KEYS)
def _parsed(value: bytes) -> ClientKey:
    """A key as it was written. Remembered: after a change nearly all are as they were, and to read
    one takes 0.1 ms."""
    return of_json(json.loads(value))
