"""What one worker knows of the client keys in the database.

All valid digests are in a dictionary, so that a call looks nothing up on the disk. At most four
times a second a call looks whether the keys have changed, which is how a change is in force within
a second in every worker.

It fails closed. While the database cannot be read, the keys that are known go on working, and any
other one is refused with 503: it may be one that was made just now, or be nobody's. Once there were
keys, callers without one are never served again, whatever became of the database.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from qwen_wsgi.access.client_key import (
    ClientKey,
    KeptKey,
    KeySet,
    KeysUnavailable,
    digest_of,
)
from qwen_wsgi.clock import Clock

log = logging.getLogger(__name__)

#: Between two looks whether the keys have changed, also where the last one failed.
LOOK_S: Final = 0.25
#: What is known is new enough for a call to go on with while others look: half the second within
#: which a change must be in force. Seconds.
FRESH_S: Final = 0.5
#: Between two lines of the log about one trouble.
_TELL_S: Final = 60.0
#: How often the last use of a key is written, at most.
_USES_S: Final = 60.0


class KeyStore(Protocol):
    """Where the keys are: `state.database.client_keys.ClientKeys`."""

    def number(self) -> int: ...
    def read(self) -> KeySet: ...
    def kept(self) -> tuple[KeptKey, ...]: ...
    def existed(self) -> bool: ...
    def note_uses(self, uses: Mapping[str, float]) -> None: ...


class Held(NamedTuple):
    """A key that somebody holds.

    Attributes:
        until: the end of the secret that was used, which was rotated; None for no end.
    """

    key: ClientKey
    until: int | None

    def is_over(self, now: float) -> bool:
        """Whether the key, or this secret of it, has expired."""
        return self.key.expired(now) or (self.until is not None and now >= self.until)


class KeyRing:
    """The keys of the database. Not locked: greenlets switch at I/O only.

    Args:
        store: None has no keys, for tests and commands.
        later: does some work beside the call that asks for it.

    Attributes:
        on_change: called with the number of valid keys whenever they have changed.
    """

    def __init__(
        self,
        store: KeyStore | None,
        clock: Clock,
        *,
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self.on_change: Callable[[int], None] = lambda count: None
        self._store = store
        self._clock = clock
        self._later = later
        self._look_at_s = -math.inf if store is not None else math.inf
        #: When the latest look that has succeeded began.
        self._seen_at_s = -math.inf
        self._number: int | None = None
        self._held: dict[bytes, Held] = {}
        self._by_id: dict[str, ClientKey] = {}
        self._closed = False
        self._trouble = ""
        self._told_at_s = -math.inf
        self._used: dict[str, float] = {}
        self._used_at_s: dict[str, float] = {}

    @property
    def is_closed(self) -> bool:
        """Whether there are or were keys, so that nobody is served without one."""
        self.look()
        return self._closed

    @property
    def is_certain(self) -> bool:
        """Whether a key that is not found is surely none: also while the database cannot be read,
        if there never was one."""
        return not self._trouble or not self._closed

    def count(self) -> int:
        """How many keys are valid now."""
        self.look()
        now = self._clock.now()
        return sum(key.is_valid(now) for key in self._by_id.values())

    def find(self, secret: bytes) -> Held | None:
        """The key with this secret, also one that was revoked or has expired."""
        if self._clock.monotonic() >= self._look_at_s:
            self.look()
        return self._held.get(digest_of(secret)) if self._held else None

    def of_digest(self, digest: bytes) -> Held | None:
        """As `find`, by what is kept of the secret."""
        self.look()
        return self._held.get(digest)

    def has_admin(self) -> bool:
        """Whether a key that is valid now is one of an admin."""
        self.look()
        now = self._clock.now()
        return any(key.admin and key.is_valid(now) for key in self._by_id.values())

    def by_id(self, id: str) -> ClientKey | None:
        """The key with this id, also one that was revoked or has expired."""
        self.look()
        return self._by_id.get(id)

    def look_again(self) -> None:
        """Look at the next call: this worker has just changed something itself."""
        if self._store is not None:
            self._look_at_s = self._seen_at_s = -math.inf

    # --- when keys were used -----------------------------------------------------------------

    def used(self, key: ClientKey) -> None:
        """Remember that a key was used now; it is written later."""
        self._used[key.id] = self._clock.now()

    def write_uses(self) -> None:
        """Write when keys were used last, each at most once a minute. Never raises KeysUnavailable:
        what cannot be written now is written later."""
        if self._store is None or not self._used:
            return
        now_s = self._clock.monotonic()
        due = {
            id: at
            for id, at in self._used.items()
            if now_s - self._used_at_s.get(id, -math.inf) >= _USES_S
        }
        if not due:
            return
        try:
            self._store.note_uses(due)
        except KeysUnavailable as error:
            self._tell(str(error))
            return
        for id, at in due.items():
            self._used_at_s[id] = now_s
            if self._used.get(id) == at:
                del self._used[id]

    # --- what is known -----------------------------------------------------------------------

    def look(self) -> None:
        """See whether the keys have changed, unless that was done a moment ago.

        The database's thread may be at work at a large response. A call waits for it only where
        what is known may be older than a change that is in force.
        """
        now_s = self._clock.monotonic()
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        if now_s - self._seen_at_s < FRESH_S:
            self._later(self._look)
        else:
            self._look()

    def _look(self) -> None:
        began_s = self._clock.monotonic()
        assert self._store is not None, "without one there is no look"
        try:
            number = self._store.number()
            if number != self._number:
                self._take(self._store.read())
            self._trouble = self._lost()
            self._seen_at_s = began_s
        except KeysUnavailable as error:
            self._trouble = str(error)
            if not self._by_id:  # nothing is known yet
                self._begin_with_copy(self._store)
        if self._trouble and self._closed:
            self._tell(self._trouble)

    def _take(self, found: KeySet) -> None:
        self._number = found.number
        self._closed = self._closed or bool(found.number)
        # Else the database and its copy are gone, while this worker knows what was in them.
        if found.number or not self._by_id:
            self._know(found.keys)

    def _lost(self) -> str:
        """What is wrong where the database has no keys, and there were some."""
        if self._number == 0 and self._closed:
            return (
                "The database has no client keys any more, and neither has their copy. The keys "
                "that this worker knows go on working until it ends; make new ones."
            )
        return ""

    def _begin_with_copy(self, store: KeyStore) -> None:
        self._closed = self._closed or store.existed()
        if self._closed and (kept := store.kept()):
            self._know(kept)

    def _know(self, keys: tuple[KeptKey, ...]) -> None:
        self._held = {
            digest: Held(kept.key, until) for kept in keys for digest, until in kept.digests
        }
        self._by_id = {kept.key.id: kept.key for kept in keys}
        self._closed = self._closed or bool(keys)
        now = self._clock.now()
        self.on_change(sum(kept.key.is_valid(now) for kept in keys))

    def _tell(self, trouble: str) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._told_at_s >= _TELL_S:
            self._told_at_s = now_s
            known = len(self._by_id)
            log.error(
                "Client keys cannot be read: the %d keys that this worker knows go on working, and "
                "others are refused. %s",
                known,
                trouble,
            )
