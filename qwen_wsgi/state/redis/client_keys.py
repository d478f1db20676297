"""The client keys of several boxes: Redis has them, and each box a copy in its database.

A change is made in Redis first, and comes into the databases of all boxes as one of another box
does: each looks every second. An empty Redis gets what the boxes know, and each key has the number
of its latest change, so that a box that knows an older state brings nothing back. One that was
revoked stays so, whoever knows it.

While Redis is away the keys that are known go on working, and no change is made but this: a key is
revoked on this box at once, and everywhere when Redis is back.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from qwen_wsgi.access.client_key import ClientKey, KeptKey, KeysUnavailable
from qwen_wsgi.clock import Clock
from qwen_wsgi.state import key_copy
from qwen_wsgi.state.database.client_keys import (
    MOST_KEYS,
    ClientKeys,
    read_all,
    revision_in,
    text_of,
)
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.redis.connection import PREFIX, Lua, SharedStore, SharedStoreAway

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)

T = TypeVar("T")

_KEYS: Final = PREFIX + "client-keys"
_NUMBER: Final = PREFIX + "client-keys:number"
#: How often a change is tried again when another box was faster.
_TRIES: Final = 8

#: Nothing is written over what another box has just written.
_PUT: Final = Lua("""
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('SET', KEYS[2], ARGV[2])
return 1
""")


class Entry(NamedTuple):
    """A key, and the number of its latest change. When it was used last is each box's own."""

    kept: KeptKey
    revision: int

    def text(self) -> bytes:
        """As it is in Redis."""
        return json.dumps({**key_copy.entry_of(self.kept), "revision": self.revision}).encode()


Entries = Mapping[str, Entry]


class _Planned(Exception):
    """Ends a transaction whose change is made elsewhere."""

    def __init__(self, result: Any, before: dict[str, Entry], after: dict[str, Entry]) -> None:
        super().__init__()
        self.result = result
        self.before = before
        self.after = after


class SharedClientKeys(ClientKeys):
    """The keys of several boxes.

    Args: as of `ClientKeys`.
    """

    def __init__(
        self, shared_store: SharedStore, database: Database, clock: Clock, directory: Path | None
    ) -> None:
        super().__init__(database, clock, directory)
        self._own = ClientKeys(database, clock, directory)
        self._shared = shared_store
        #: The numbers, in Redis and here, of what was the same in both.
        self._same: tuple[bytes, int] | None = None
        shared_store.each_second(self._look)

    # --- as ClientKeys -------------------------------------------------------------------------

    def number(self) -> int:
        """As `ClientKeys.number`. A box that has none yet asks Redis whether there are any: without
        an answer it lets nobody in."""
        found = super().number()
        if found or self._same is not None:
            return found
        try:
            self.synchronize()
        except SharedStoreAway as error:
            raise KeysUnavailable(
                f"This box knows no client keys yet, and Redis, which has those of all boxes, is "
                f"away: {error}.",
                passing=True,
            ) from error
        return super().number()

    def existed(self) -> bool:
        """As `ClientKeys.existed`; there may be some as long as Redis was not asked."""
        return self._same is None or super().existed()

    def all(self) -> tuple[ClientKey, ...]:
        """As `ClientKeys.all`; while Redis is away, as this box knows them."""
        self._try_to_synchronize()
        return super().all()

    def find(self, wanted: str) -> ClientKey | None:
        """As `ClientKeys.find`; while Redis is away, as this box knows it."""
        self._try_to_synchronize()
        return super().find(wanted)

    def revoke(self, wanted: str) -> ClientKey | None:
        """As `ClientKeys.revoke`; while Redis is away, on this box at once."""
        self.note = ""
        try:
            self._shared.run(_number)
        except SharedStoreAway as error:
            found = self._own.revoke(wanted)
            if found is not None:
                self.note = (
                    f"Redis is away ({error}): the key is revoked on this box, and on the others "
                    "when it is back."
                )
                log.warning("%s", self.note)
            return found
        return super().revoke(wanted)

    # --- between Redis and the database --------------------------------------------------------

    def synchronize(self) -> None:
        """Bring what has changed from Redis into the database, and what Redis does not know there.

        Raises:
            SharedStoreAway: Redis is away.
            KeysUnavailable: the database cannot be used now.
        """
        for _ in range(_TRIES):
            number = self._shared.run(_number)
            if self._same is not None and self._same == (number, super().number()):
                return
            if self._once():
                return
        log.warning("the client keys of the boxes change too often to be brought together now")

    def _look(self) -> None:
        try:
            self.synchronize()
        except KeysUnavailable as error:  # the key ring tells the log what that means
            log.debug("client keys are not brought together now: %s", error)

    def _once(self) -> bool:
        super().read()  # a database that was begun anew first gets the keys of its copy
        number, remote = self._shared.run(_entries_of)

        def work(database: sqlite3.Connection) -> tuple[int, dict[str, Entry]]:
            store, send = merged(_entries_in(database), remote)
            if store:
                _store(database, store)
                self._has_changed(database)
            return read_all(database).number, send

        own, send = self._run(work, write=True)
        if send and len(remote) + len(send) <= 2 * MOST_KEYS:
            number = self._put(number, send)
            if not number:
                return False
        self._same = number, own
        return True

    def _put(self, expected: bytes, entries: Entries, removed: Iterable[str] = ()) -> bytes:
        """Write into Redis; its new number, or b"" if another box was faster."""
        number = secrets.token_hex(8).encode()
        args: list[Any] = [expected, number]
        for id, entry in entries.items():
            args += [id, entry.text()]
        for id in removed:
            args += [id, b""]
        done = self._shared.run(lambda client: _PUT.run(client, [_KEYS, _NUMBER], args))
        return number if done else b""

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change in Redis, and then here.

        It is tried in the database and taken back first: so it keeps the rules of one box.
        """
        self.note = ""
        certain = "Nothing was changed."
        try:
            for _ in range(_TRIES):
                self.synchronize()
                assert self._same is not None, "it was brought together just now"
                expected = self._same[0]
                planned = self._planned(work)
                changed = {
                    id: each for id, each in planned.after.items() if planned.before.get(id) != each
                }
                removed = planned.before.keys() - planned.after.keys()
                if not changed and not removed:
                    return planned.result  # type: ignore[no-any-return]  # of `work`
                certain = "Whether the change was made, `qwen-proxy keys list` shows then."
                if number := self._put(expected, changed, removed):
                    self._take_over(number, changed, removed)
                    return planned.result  # type: ignore[no-any-return]  # of `work`
                certain = "Nothing was changed."
        except SharedStoreAway as error:
            raise KeysUnavailable(
                f"Redis, which has the client keys of all boxes, is away ({error}). {certain} Try "
                "again when it is back. Meanwhile a key can be revoked, on this box.",
                passing=True,
            ) from error
        raise KeysUnavailable("Other boxes change client keys now. Try again.", passing=True)

    def _planned(self, work: Callable[[sqlite3.Connection], Any]) -> _Planned:
        """What a change would make of the keys."""

        def attempt(database: sqlite3.Connection) -> None:
            before = _entries_in(database)
            result = work(database)
            raise _Planned(result, before, _entries_in(database))

        try:
            self._run(attempt, write=True)
        except _Planned as planned:
            return planned
        raise AssertionError("the transaction was taken back")

    def _take_over(self, number: bytes, changed: Entries, removed: Iterable[str]) -> None:
        def work(database: sqlite3.Connection) -> int:
            for id in removed:
                database.execute("DELETE FROM client_keys WHERE id = ?", (id,))
                database.execute("DELETE FROM client_key_digests WHERE id = ?", (id,))
            _store(database, changed)
            self._has_changed(database)
            return read_all(database).number

        self._same = number, self._run(work, write=True)

    def _try_to_synchronize(self) -> None:
        self.note = ""
        try:
            self.synchronize()
        except SharedStoreAway as error:
            self.note = f"Redis is away ({error}): these are the keys that this box knows."


def merged(own: Entries, remote: Entries) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Bring two sets of keys together: what is to be stored here, and what is to be sent there.

    Of each key the one with the later change counts, and it is revoked if either says so. Where two
    boxes that were alone have given one name to two keys, the one that is not in Redis is renamed.
    """
    store: dict[str, Entry] = {}
    send: dict[str, Entry] = {}
    names = {each.kept.key.name for each in remote.values() if not each.kept.key.revoked_at}
    for id in sorted({*own, *remote}):
        here, there = own.get(id), remote.get(id)
        if there is None:
            assert here is not None, "it is in one of the two"
            key = here.kept.key
            if key.revoked_at is None and key.name in names:
                key = replace(key, name=f"{key.name[:48]}-{id[-12:]}")
                here = Entry(here.kept._replace(key=key), here.revision + 1)
                store[id] = here
                log.warning(
                    "two boxes had a client key of one name; that of this box is now %s", key.name
                )
            send[id] = here
            continue
        newest = there if here is None or there.revision >= here.revision else here
        ends = [
            each.kept.key.revoked_at
            for each in (here, there)
            if each is not None and each.kept.key.revoked_at is not None
        ]
        key = replace(newest.kept.key, revoked_at=min(ends, default=None))
        newest = newest._replace(kept=newest.kept._replace(key=key))
        if newest != here:
            store[id] = newest
        if newest != there:
            send[id] = newest
    return store, send


def _number(client: redis.Redis) -> bytes:
    found = client.get(_NUMBER)
    return found if isinstance(found, bytes) else b""


def _entries_of(client: redis.Redis) -> tuple[bytes, dict[str, Entry]]:
    """What is in Redis: its number, and the keys by their ids."""
    with client.pipeline() as several:
        several.get(_NUMBER)
        several.hgetall(_KEYS)
        number, rows = several.execute()
    found = {}
    for id, text in rows.items():
        try:
            value = json.loads(text)
            found[id.decode()] = Entry(key_copy.kept_of(value), int(value["revision"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            log.error("a client key in Redis cannot be read id=%r: %s", id, type(error).__name__)
    return number or b"", found


def _entries_in(database: sqlite3.Connection) -> dict[str, Entry]:
    """The keys of the database, by their ids."""
    values = dict(database.execute("SELECT id, value FROM client_keys"))
    return {
        kept.key.id: Entry(
            kept._replace(key=replace(kept.key, last_used_at=None)),
            revision_in(values[kept.key.id]),
        )
        for kept in read_all(database).keys
    }


def _store(database: sqlite3.Connection, entries: Entries) -> None:
    """Write keys as they are, with their digests; when they were used last stays."""
    for id in entries:  # names may have been exchanged
        database.execute("UPDATE client_keys SET name = id WHERE id = ?", (id,))
    for id, (kept, revision) in entries.items():
        key = kept.key
        database.execute(
            "INSERT INTO client_keys (id, name, revoked_at, value) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name,"
            " revoked_at = excluded.revoked_at, value = excluded.value",
            (id, key.name, key.revoked_at, text_of(key, revision)),
        )
        database.execute("DELETE FROM client_key_digests WHERE id = ?", (id,))
        database.executemany(
            "INSERT INTO client_key_digests (digest, id, until, made) VALUES (?, ?, ?,"
            " (SELECT coalesce(max(made), 0) + 1 FROM client_key_digests))",
            [(digest, id, until) for digest, until in kept.digests],
        )
