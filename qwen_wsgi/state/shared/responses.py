"""Stored responses that all boxes have: made on one, read, continued and deleted on any.

A response is written into the database of the box that made it, then into Redis, before its client
hears of its end: so the next request may go to any box. A box makes no copy of what others made: it
reads that from Redis. Deleting says so to all boxes (docs/decisions/068).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from functools import partial
from struct import Struct
from typing import Any, Final

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.responses import background as protocol
from qwen_wsgi.state.database.background import BackgroundQueue, Job
from qwen_wsgi.state.database.responses import (
    ResponseStore,
    Stored,
    can_be_an_id,
    items_of,
    missing_response,
    too_large,
)
from qwen_wsgi.state.database.sqlite import Apart, Damaged, Database, here, value_of
from qwen_wsgi.state.redis.connection import SharedStoreAway
from qwen_wsgi.state.redis.records import Found, OrderStream, Records, TooLarge
from qwen_wsgi.state.redis.values import Unreadable
from qwen_wsgi.state.shared.outbox import Outbox
from qwen_wsgi.state.shared.troubles import unknown_here

log = logging.getLogger(__name__)

#: In front of a value: the bytes of the response and of its input, which follow; then comes the id
#: of the previous one.
_HEAD: Final = Struct("<II")
#: A response that should have ended so long ago is not made any more. Seconds.
_LOST_S: Final = 120.0
#: How long the box that makes a response has to end it, and how often is looked. Seconds.
CANCEL_S: Final = 3.0
_LOOK_S: Final = 0.1
#: No conversation has so many.
_MOST_TURNS: Final = 100_000
#: Of what was used here, and is not told yet.
_MOST_TOUCHED: Final = 1_000


class SharedResponses(ResponseStore):
    """As `ResponseStore`, for all boxes.

    Args:
        pending: a response of this box that is still in the queue, or None.
        apart: a thread for large values.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        records: Records,
        orders: OrderStream,
        outbox: Outbox,
        *,
        ttl_s: float,
        max_bytes: int,
        largest_history: int,
        apart: Apart = here,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        super().__init__(
            database, clock, ttl_s=ttl_s, max_bytes=max_bytes, largest_history=largest_history
        )
        self.pending: Callable[[str, str], Job | None] = lambda owner, id: None
        self._records = records
        self._orders = orders
        self._outbox = outbox
        self._apart = apart
        self._sleep = sleep
        self._touched: dict[tuple[str, str], None] = {}

    # --- as for one box ----------------------------------------------------------------------

    def _keep(
        self, owner: str, id: str, previous: str | None, response_body: bytes, input_body: bytes
    ) -> bool:
        stored = super()._keep(owner, id, previous, response_body, input_body)
        value = _value(response_body, input_body, previous)
        try:
            if not self._records.put(owner, id, value, previous=previous):
                super().delete(owner, id)  # its client has deleted it by way of another box
            return True
        except TooLarge as error:
            log.warning("a response stays on this box: %s", error)
        except SharedStoreAway:
            if stored:
                self._outbox.add("put", "response", owner, id)
        return stored

    def get(self, owner: str, id: str) -> Stored | None:
        found = super().get(owner, id)
        if found is not None:
            self._used(owner, id)
            return found
        if not self._may_be_shared(id):
            return None
        try:
            shared = self._records.get(owner, id)
            return self._apart(partial(_told, shared)) if isinstance(shared, Found) else None
        except (SharedStoreAway, Unreadable) as error:
            raise unknown_here("response", error) from error

    def history(self, owner: str, id: str) -> list[dict[str, Any]]:
        found: list[Stored] = []
        left, missing, most = self._largest_history, id, self._largest_history
        while True:
            part = self._read(owner, missing, most=left)
            if part:
                self._used(owner, missing)
            elif self._may_be_shared(missing):
                part = self._read_shared(owner, missing, left, most)
            if not part:
                raise missing_response(id, missing)
            found[:0] = part
            left -= sum(each.size for each in part)
            if (before := part[0].previous) is None:
                return items_of(found)
            if len(found) > _MOST_TURNS:
                raise missing_response(id, before)
            missing = before

    def delete(self, owner: str, id: str) -> bool:
        there = super().delete(owner, id)
        if not self._may_be_shared(id):
            return there
        try:
            return self._records.delete(owner, id) or there
        except SharedStoreAway as error:
            if not there:
                raise unknown_here("response", error) from error
            self._outbox.add("delete", "response", owner, id)
            return True

    # --- for the others ----------------------------------------------------------------------

    def announce(self, owner: str, stored: Stored, status: str, deadline: float) -> None:
        """Tell the others of a response that this box is going to make.

        Args:
            deadline: when it has to be done, seconds since 1970.
        """
        response = {**stored.response, "status": status}
        id, value = response["id"], self._rendered(response, stored)
        left_s = deadline - self._clock.now()
        try:
            self._records.put(
                *(owner, id, value),
                previous=stored.previous,
                maker=self._records.box,
                left_s=left_s,
            )
        except TooLarge as error:
            log.warning("a response in the background is told to no other box: %s", error)
        except SharedStoreAway:
            self._outbox.add("put", "response", owner, id)

    def share(self, owner: str, id: str) -> None:
        """Tell the others what this box has now, where it has something.

        Raises:
            SharedStoreAway: they cannot be told now.
            ApiError: it cannot be read now.
        """
        stored = ResponseStore.get(self, owner, id)
        if stored is None:
            job = self.pending(owner, id)
            if job is not None and not job.has_ended:
                status = protocol.QUEUED if job.is_queued else protocol.RUNNING
                self.announce(owner, job.stored, status, job.deadline)
            return
        value = self._rendered(stored.response, stored)
        try:
            self._records.put(owner, id, value, previous=stored.previous)
        except TooLarge as error:
            log.debug("a response stays on this box: %s", error)

    def tell_deleted(self, owner: str, id: str) -> None:
        """Tell the others that one is gone. Raises SharedStoreAway."""
        self._records.delete(owner, id)

    def forget(self, owner: str, id: str) -> None:
        """Remove this box's own, because another box says so. Raises ApiError."""
        super().delete(owner, id)

    def tell_uses(self) -> None:
        """Tell Redis what was used here, so that it keeps it as well. Raises SharedStoreAway."""
        while self._touched:
            owner, id = next(iter(self._touched))
            self._records.touch(owner, [id])
            self._touched.pop((owner, id), None)

    def cancel_elsewhere(self, owner: str, id: str) -> dict[str, Any] | None:
        """Have the box that makes a response end it; its object, or None if none makes it.

        Raises:
            ApiError: 503: that box does not answer, or nobody can be asked.
        """
        if not self._may_be_shared(id):
            return None
        try:
            found = self._records.get(owner, id)
            if not isinstance(found, Found) or found.maker in ("", self._records.box):
                return None
            self._orders.cancel(found.maker, owner, id)
            for _ in range(round(CANCEL_S / _LOOK_S)):
                self._sleep(_LOOK_S)
                found = self._records.get(owner, id)
                if not isinstance(found, Found):
                    return None
                if not found.maker:
                    return _told(found).response
        except (SharedStoreAway, Unreadable) as error:
            raise unknown_here("response", error) from error
        raise ApiError(
            "Another box of this proxy makes this response, and it did not answer. It ends the "
            "response when it is back, or the response ends at its time: please look again with "
            "GET /v1/responses/{id}.",
            status=503,
            code="box_does_not_answer",
            retry_after_s=5,
        )

    # --- inside ------------------------------------------------------------------------------

    def _may_be_shared(self, id: str) -> bool:
        return self._ttl_s > 0 and can_be_an_id(id)

    def _used(self, owner: str, id: str) -> None:
        if len(self._touched) < _MOST_TOUCHED:
            self._touched[owner, id] = None

    def _read_shared(self, owner: str, id: str, left: int, most: int) -> list[Stored]:
        """The part of a conversation that is in Redis, oldest first."""
        try:
            values, size = self._records.chain(owner, id, most=left)
            if size > left:
                raise too_large(size + most - left, most)
            return self._apart(lambda: [_stored(each) for each in reversed(values)])
        except (SharedStoreAway, Unreadable) as error:
            raise unknown_here("response", error) from error

    def _rendered(self, response: Mapping[str, Any], stored: Stored) -> bytes:
        bodies = self._database.rendered(dict(response), list(stored.input_items))
        return _value(bodies[0], bodies[1], stored.previous)


class SharedQueue(BackgroundQueue):
    """As `BackgroundQueue`; other boxes can tell of what is in it."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        responses: SharedResponses,
        *,
        per_client: int,
        kept_s: float,
    ) -> None:
        super().__init__(database, clock, per_client=per_client, kept_s=kept_s)
        self._responses = responses
        responses.pending = self.get

    def add(
        self,
        owner: str,
        client: str,
        *,
        deadline: float,
        stored: Stored,
        headers: Mapping[str, str],
        request: bytes,
    ) -> None:
        super().add(
            owner, client, deadline=deadline, stored=stored, headers=headers, request=request
        )
        self._responses.announce(owner, stored, protocol.QUEUED, deadline)

    def claim(self, worker: str) -> Job | None:
        job = super().claim(worker)
        if job is not None:
            self._responses.announce(job.owner, job.stored, protocol.RUNNING, job.deadline)
        return job


def _value(response_body: bytes, input_body: bytes, previous: str | None) -> bytes:
    head = _HEAD.pack(len(response_body), len(input_body))
    return b"".join((head, response_body, input_body, (previous or "").encode(errors="replace")))


def _stored(value: bytes) -> Stored:
    """Raises Unreadable: it is not what `_value` made."""
    try:
        response_bytes, input_bytes = _HEAD.unpack_from(value)
        middle = _HEAD.size + response_bytes
        end = middle + input_bytes
        return Stored(
            value_of(value[_HEAD.size : middle]),
            value_of(value[middle:end]),
            value[end:].decode() or None,
            size=response_bytes + input_bytes,
        )
    except (Damaged, RecursionError, ValueError, struct.error) as error:
        raise Unreadable(f"it is damaged ({error})") from None


def _told(found: Found) -> Stored:
    stored = _stored(found.value)
    if found.maker and found.late_s > _LOST_S:
        failed = protocol.failed(stored.response, _lost())
        return Stored(failed, stored.input_items, stored.previous)
    return stored


def _lost() -> ApiError:
    return ApiError(
        "The box of this proxy that made this response has ended, or cannot be reached. Create the "
        "response anew.",
        code="background_lost",
    )
