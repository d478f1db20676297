"""Videos that all boxes know: which there are, what they were asked for, how they ended.

An id of a video tells every box with the same QWEN_PROXY_STATE_KEY which task it is; here is what
an id cannot tell. A service beside the answer, as on one box: while Redis is away, videos are made
and fetched without it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.state.database.sqlite import Database, DatabaseUnavailable
from qwen_wsgi.state.database.videos import KnownVideo, VideoStore
from qwen_wsgi.state.redis.connection import SharedStoreAway
from qwen_wsgi.state.redis.records import Found, Gone, Records, TooLarge
from qwen_wsgi.state.redis.tasks import TaskNotes
from qwen_wsgi.state.redis.values import Unreadable
from qwen_wsgi.state.shared.outbox import Outbox
from qwen_wsgi.state.shared.troubles import unknown_here

log = logging.getLogger(__name__)

#: What 20 000 of them have, packed.
MAX_BYTES: Final = 64 * 1024 * 1024


class SharedVideos(VideoStore):
    """As `VideoStore`, for all boxes."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        records: Records,
        notes: TaskNotes,
        outbox: Outbox,
    ) -> None:
        super().__init__(database, clock)
        self._records = records
        self._notes = notes
        self._outbox = outbox

    # --- a video that begins -----------------------------------------------------------------

    def begin(self, owner: str, account: str, model: str) -> int:
        key = super().begin(owner, account, model)
        with suppress(SharedStoreAway):  # others that need it cannot ask either, mostly
            self._notes.note(account, model, key, self._clock.now())
        return key

    def begun(self, key: int, id: str, task: str, prompt: str, state: Mapping[str, Any]) -> bool:
        if not super().begun(key, id, task, prompt, state):
            return False
        if (request := self._request_of(key)) is not None:
            owner, account, model, began = request
            with suppress(SharedStoreAway):
                self._notes.note(account, model, key, began, task)
            self._tell(owner, id, KnownVideo(id, prompt, state), began)
        return True

    def not_begun(self, key: int) -> None:
        request = self._request_of(key)
        super().not_begun(key)
        if request is not None:
            _, account, model, _ = request
            with suppress(SharedStoreAway):  # then it counts as one that is under way
                self._notes.remove(account, model, key)

    def others(self, key: int, since: float) -> tuple[frozenset[str], int]:
        tasks, unknown = super().others(key, since)
        request = self._request_of(key)
        try:
            if request is not None:
                more, waiting = self._notes.others(request[1], request[2], since)
                return tasks | more, unknown + waiting
        except SharedStoreAway:
            pass
        return tasks, unknown + 1  # what other boxes do now cannot be told

    # --- a video that is there ---------------------------------------------------------------

    def get(self, owner: str, id: str) -> KnownVideo | None:
        found = super().get(owner, id)
        if found is not None or not id.isascii():
            return found
        try:
            shared = self._records.get(owner, id)
        except (SharedStoreAway, Unreadable):
            return None  # its id tells enough
        if isinstance(shared, Gone):
            return KnownVideo(id, None, {}, deleted=True)
        return None if shared is None else _known(shared)

    def page(
        self, owner: str, *, after: str | None, limit: int, oldest_first: bool
    ) -> tuple[list[KnownVideo], bool] | None:
        if after == "":
            return None
        try:
            found = self._records.page(
                owner, limit=limit, after=after or "", oldest_first=oldest_first
            )
            return None if found is None else ([*map(_of, found[0])], found[1])
        except SharedStoreAway as error:
            here = super().page(owner, after=after, limit=limit, oldest_first=oldest_first)
            if here is None:
                raise unknown_here("video", error) from error
            return here
        except Unreadable as error:
            raise unknown_here("video", error) from error

    def update(self, owner: str, id: str, state: Mapping[str, Any]) -> None:
        known = self.get(owner, id)
        super().update(owner, id, state)
        if known is not None and not known.deleted:
            self._tell(owner, id, known._replace(state=state), None)

    def delete(self, owner: str, id: str, account: str, task: str, model: str) -> None:
        super().delete(owner, id, account, task, model)
        try:
            self._records.delete(owner, id)
        except SharedStoreAway:
            self._outbox.add("delete", "video", owner, id)

    # --- for the others ----------------------------------------------------------------------

    def share(self, owner: str, id: str) -> None:
        """Tell the others what this box has now. Raises SharedStoreAway."""
        known = super().get(owner, id)
        if known is not None and not known.deleted:
            self._put(owner, id, known, self._began(owner, id))

    def tell_deleted(self, owner: str, id: str) -> None:
        """Tell the others that one is gone. Raises SharedStoreAway."""
        self._records.delete(owner, id)

    def forget(self, owner: str, id: str) -> None:
        """Note that another box has deleted one."""
        self._written(
            lambda database: database.execute(
                "UPDATE videos SET deleted = 1, prompt = NULL, state = NULL"
                " WHERE owner = ? AND id = ?",
                (owner, id),
            ),
            None,
        )

    # --- inside ------------------------------------------------------------------------------

    def _tell(self, owner: str, id: str, known: KnownVideo, began: float | None) -> None:
        try:
            began = self._began(owner, id) if began is None else began
            if not self._put(owner, id, known, began):
                self.forget(owner, id)
        except SharedStoreAway:
            self._outbox.add("put", "video", owner, id)

    def _put(self, owner: str, id: str, known: KnownVideo, began: float) -> bool:
        text = compact([id, known.prompt, dict(known.state), began]).encode(errors="replace")
        try:
            return self._records.put(owner, id, text, age=began)
        except TooLarge:
            return True  # it is fetched by its id

    def _began(self, owner: str, id: str) -> float:
        """When a video was begun: as this box knows, as Redis does, or now."""

        def read(database: sqlite3.Connection) -> float | None:
            row = database.execute(
                "SELECT began FROM videos WHERE owner = ? AND id = ?", (owner, id)
            ).fetchone()
            return None if row is None else float(row[0])

        try:
            if (began := self._database.run(read)) is not None:
                return began
        except DatabaseUnavailable:
            pass  # the log was told by whoever came before
        try:
            shared = self._records.get(owner, id)
            if isinstance(shared, Found):
                return float(json.loads(shared.value)[3])
        except (Unreadable, ValueError, TypeError, LookupError):
            log.warning("when a video was begun is not known id=%s", id)
        return self._clock.now()

    def _request_of(self, key: int) -> tuple[str, str, str, float] | None:
        """Owner, account, model and time of a request of this box."""

        def read(database: sqlite3.Connection) -> tuple[str, str, str, float] | None:
            found: tuple[str, str, str, float] | None = database.execute(
                "SELECT owner, account, model, began FROM videos WHERE key = ?", (key,)
            ).fetchone()
            return found

        try:
            return self._database.run(read)
        except DatabaseUnavailable:
            return None


def _known(found: Found) -> KnownVideo | None:
    try:
        return _of(found.value)
    except Unreadable:
        return None


def _of(text: bytes) -> KnownVideo:
    """Raises Unreadable: it is something else."""
    try:
        id, prompt, state, _ = json.loads(text)
    except (ValueError, TypeError) as error:
        raise Unreadable(f"it is damaged ({error})") from None
    return KnownVideo(id, prompt, state)
