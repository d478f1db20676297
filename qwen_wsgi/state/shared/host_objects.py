"""Files and batches that all boxes know the owners of.

Each box keeps what went through it, and Redis what all know: a file that was uploaded by way of one
box can be used on any at once. Lists come from Redis; while it is away, from this box.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.state.database.host_objects import HostObjects, Kind, Owned
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.redis.connection import SharedStoreAway
from qwen_wsgi.state.redis.records import Found, Records, TooLarge
from qwen_wsgi.state.redis.values import Unreadable
from qwen_wsgi.state.shared.outbox import Outbox
from qwen_wsgi.state.shared.troubles import unknown_here

#: Of each kind: what 100 000 of them have, packed.
MAX_BYTES: Final = 64 * 1024 * 1024


class SharedHostObjects(HostObjects):
    """As `HostObjects`, for all boxes.

    Args:
        records: of each kind.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        records: Mapping[Kind, Records],
        outbox: Outbox,
    ) -> None:
        super().__init__(database, clock)
        self._records = records
        self._outbox = outbox

    def put(self, kind: Kind, owner: str, account: str, value: Mapping[str, Any]) -> bool:
        if not super().put(kind, owner, account, value):
            return False
        try:
            if not self._put(kind, owner, account, value):
                super().remove(kind, owner, value["id"])  # by way of another box
        except TooLarge:
            pass  # `_text` has bounded it: only where Redis's bound is tiny
        except SharedStoreAway:
            self._outbox.add("put", kind, owner, value["id"])
        return True

    def get(self, kind: Kind, owner: str, id: str) -> Owned | None:
        found = super().get(kind, owner, id)
        if found is not None or not id.isascii():
            return found
        try:
            shared = self._records[kind].get(owner, id)
            return _owned(shared.value) if isinstance(shared, Found) else None
        except (SharedStoreAway, Unreadable) as error:
            raise unknown_here(kind, error) from error

    def remove(self, kind: Kind, owner: str, id: str) -> None:
        super().remove(kind, owner, id)
        try:
            self._records[kind].delete(owner, id)
        except SharedStoreAway:
            self._outbox.add("delete", kind, owner, id)

    def count(self, kind: Kind, owner: str) -> int:
        here = super().count(kind, owner)
        try:
            return max(here, self._records[kind].count(owner))
        except SharedStoreAway:
            return here

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
        def wanted(value: bytes) -> bool:
            return not purpose or _owned(value).value.get("purpose") == purpose

        try:
            found = self._records[kind].page(
                owner, limit=limit, after=after, oldest_first=oldest_first, wanted=wanted
            )
            return None if found is None else ([_owned(each) for each in found[0]], found[1])
        except SharedStoreAway as error:
            here = super().page(
                *(kind, owner), limit=limit, after=after, oldest_first=oldest_first, purpose=purpose
            )
            if here is None:
                raise unknown_here(kind, error) from error
            return here
        except Unreadable as error:
            raise unknown_here(kind, error) from error

    # --- for the others ----------------------------------------------------------------------

    def share(self, kind: Kind, owner: str, id: str) -> None:
        """Tell the others what this box has now. Raises SharedStoreAway, ApiError."""
        found = super().get(kind, owner, id)
        if found is not None:
            self._put(kind, owner, found.account, found.value)

    def tell_deleted(self, kind: Kind, owner: str, id: str) -> None:
        """Tell the others that one is gone. Raises SharedStoreAway."""
        self._records[kind].delete(owner, id)

    def forget(self, kind: Kind, owner: str, id: str) -> None:
        """Remove this box's own, because another box says so. Raises ApiError."""
        super().remove(kind, owner, id)

    # --- inside ------------------------------------------------------------------------------

    def _put(self, kind: Kind, owner: str, account: str, value: Mapping[str, Any]) -> bool:
        created = value.get("created_at")
        age = float(created) if isinstance(created, int | float) else self._clock.now()
        text = compact([value["id"], account, dict(value)]).encode()
        return self._records[kind].put(owner, value["id"], text, age=age)


def _owned(text: bytes) -> Owned:
    """Raises Unreadable: it is something else."""
    try:
        id, account, value = json.loads(text)
    except (ValueError, TypeError) as error:
        raise Unreadable(f"it is damaged ({error})") from None
    return Owned(id, account, value)
