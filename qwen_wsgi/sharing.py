"""Keeps this box and the others together, beside all calls: what is known of accounts and
conversations, what was deleted, or stored while Redis was away, and what was used.

Each worker tells and reads the news of accounts twice a second. What concerns the whole box is done
by one worker of it at a time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Final, cast

from qwen_wsgi import greenlets
from qwen_wsgi.accounting.books import Books
from qwen_wsgi.background import Background
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError
from qwen_wsgi.state import file_lock
from qwen_wsgi.state.database.host_objects import Kind
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable
from qwen_wsgi.state.redis.connection import SharedStore, SharedStoreAway
from qwen_wsgi.state.redis.news import News, NewsStream
from qwen_wsgi.state.redis.records import Order
from qwen_wsgi.state.redis.totals import UsageTotals
from qwen_wsgi.state.shared.outbox import Waiting
from qwen_wsgi.state.shared.stores import SharedStores
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.cooldown import Cooldowns, Told

log = logging.getLogger(__name__)

#: Between two looks. What is set on one box is known on all after at most two of them.
LOOK_S: Final = 0.4
#: Between two times that totals of usage are told.
USAGE_S: Final = 5.0
#: What waits, and is told with one look; and rounds of usage.
_WAITING_AT_A_TIME: Final = 20
_ROUNDS: Final = 4

_COOLDOWN: Final = "cooldown"
_CONVERSATION: Final = "conversation"
#: Of a cooldown: `Told` without its age.
_TOLD: Final = Struct("<dI20s32s")
_KEY_BYTES: Final = 8

_LOCK: Final = "sharing.lock"
#: Positions in the outbox's table.
_ORDERS: Final = "orders"
_USAGE: Final = "usage"
_EPOCH: Final = "epoch"


class RoutingShare:
    """What boxes tell each other of accounts: cooldowns, circuits, and where conversations are."""

    def __init__(self, stream: NewsStream, cooldowns: Cooldowns, affinity: Affinity) -> None:
        self._stream = stream
        self._cooldowns = cooldowns
        self._affinity = affinity
        cooldowns.changed = {}
        affinity.changed = {}

    def exchange(self) -> None:
        """Tell what has changed, and learn what has changed elsewhere.

        Raises:
            SharedStoreAway: what was to be told is told the next time.
        """
        cleared, self._cooldowns.changed = self._cooldowns.changed or {}, {}
        served, self._affinity.changed = self._affinity.changed or {}, {}
        told = [*map(self._of_cooldown, cleared.items())]
        told += [News(0.0, _CONVERSATION, *pair) for pair in served.items()]
        more = True
        try:
            while more:
                found, more = self._stream.exchange(told)
                told = []
                for piece in found:
                    self._learn(piece)
        except SharedStoreAway:
            if told:
                self._cooldowns.changed = cleared | self._cooldowns.changed
                self._affinity.changed = served | self._affinity.changed
            raise

    def _of_cooldown(self, changed: tuple[bytes, float]) -> News:
        key, cleared_at = changed
        told = self._cooldowns.told(key, cleared_at)
        value = _TOLD.pack(told.pause_s, told.failures, told.cause, told.evidence)
        return News(told.age_s, _COOLDOWN, key, value)

    def _learn(self, piece: News) -> None:
        if len(piece.key) != _KEY_BYTES:
            return
        if piece.topic == _CONVERSATION and len(piece.value) == _KEY_BYTES:
            self._affinity.adopt(piece.key, piece.value, piece.age_s)
        elif piece.topic == _COOLDOWN and len(piece.value) == _TOLD.size:
            pause_s, failures, cause, evidence = _TOLD.unpack(piece.value)
            self._cooldowns.adopt(piece.key, Told(piece.age_s, pause_s, failures, cause, evidence))


class BoxShare:
    """What one worker of a box does for all of it: obeys orders, and tells what waits to be told.

    Args:
        state_dir: of the box; None where this process is all of it.
        books: None keeps no ledger.
    """

    def __init__(
        self,
        state_dir: Path | None,
        clock: Clock,
        stores: SharedStores,
        background: Background,
        books: Books | None,
        totals: UsageTotals,
    ) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._orders, self._outbox = stores.orders, stores.outbox
        self._responses = stores.responses
        self._host_objects = stores.host_objects
        self._videos = stores.videos
        self._background = background
        self._books = books
        self._totals = totals
        self._usage_at_s = -USAGE_S
        self._lock = -1

    def look(self) -> None:
        """Do what there is to do, if no other worker does.

        Raises:
            SharedStoreAway: the rest is done later.
        """
        if self.is_mine():
            self._obey()
            self._tell()
            now_s = self._clock.monotonic()
            if self._books is not None and now_s - self._usage_at_s >= USAGE_S:
                self._usage_at_s = now_s
                self._tell_usage(self._books)

    def close(self) -> None:
        """Leave it to another worker."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def is_mine(self) -> bool:
        """Whether this worker does it; another one does when this one has ended."""
        if self._state_dir is None:
            return True
        try:
            if self._lock < 0:
                path = self._state_dir / _LOCK
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            return file_lock.take(self._lock)
        except OSError as error:
            log.error("whether another worker shares for this box is not known: %s", error)
            return True  # twice does no harm

    def _obey(self) -> None:
        """Do what other boxes have ordered, and see whether Redis still has its data."""
        position, more = self._outbox.position(_ORDERS), True
        while more:
            read = self._orders.read(position)
            if read.epoch and read.epoch != self._outbox.position(_EPOCH):
                # It is new, or was emptied: it is told all that this box has.
                self._outbox.add_all()
                self._outbox.note(_USAGE, "0")
                self._outbox.note(_EPOCH, read.epoch)
            for order in read.found:
                self._obey_one(order)
            if read.position != position:
                self._outbox.note(_ORDERS, read.position)
            more = bool(read.found) and read.position != position
            position = read.position

    def _obey_one(self, order: Order) -> None:
        owner, id = order.owner, order.id
        try:
            if order.what == "cancel":
                self._background.cancel_here(owner, id)
            elif order.kind == "response":
                self._background.delete(owner, id)
                self._responses.forget(owner, id)
            elif order.kind == "video":
                self._videos.forget(owner, id)
            elif order.kind in ("file", "batch"):
                self._host_objects.forget(cast(Kind, order.kind), owner, id)
        except ApiError as error:
            log.error("what another box has deleted may still be here id=%s: %s", id, error)

    def _tell(self) -> None:
        for waiting in self._outbox.next(_WAITING_AT_A_TIME):
            try:
                self._tell_one(waiting)
            except ApiError as error:
                log.error("other boxes are not told of a %s: %s", waiting.kind, error)
            self._outbox.remove([waiting])

    def _tell_one(self, waiting: Waiting) -> None:
        kind, owner, id = waiting.kind, waiting.owner, waiting.id
        deleted = waiting.what == "delete"
        if kind == "response":
            (self._responses.tell_deleted if deleted else self._responses.share)(owner, id)
        elif kind == "video":
            (self._videos.tell_deleted if deleted else self._videos.share)(owner, id)
        else:
            objects = self._host_objects
            (objects.tell_deleted if deleted else objects.share)(kind, owner, id)

    def _tell_usage(self, books: Books) -> None:
        """Write the totals of the hours in which something has changed. Told twice, they count
        once; how far they are told is noted afterwards."""
        try:
            for _ in range(_ROUNDS):
                known = self._outbox.position(_USAGE)
                begin = int(known) if known.isdecimal() else 0
                latest, hours = greenlets.apart(partial(books.changed, begin))
                if latest == begin:
                    break
                self._totals.put(hours)
                self._outbox.note(_USAGE, str(latest))
        except DatabaseUnavailable as error:
            log.error("other boxes are not told what was used: %s", error)


class StateSharing:
    """The thread of a worker that shares.

    Args:
        each: what is done at each look; each for itself raises SharedStoreAway.
        close: called when it ends.
        name: of the thread.
    """

    def __init__(
        self,
        store: SharedStore,
        each: tuple[Callable[[], None], ...],
        close: Callable[[], None] = lambda: None,
        *,
        name: str = "sharing",
    ) -> None:
        self._store = store
        self._each = each
        self._close = close
        self._name = name
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin, in this process: after the fork."""
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Make no further look."""
        self._stop.set()
        self._close()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Share once. Never raises."""
        if self._store.away:
            return
        for share in self._each:
            with _guarded():
                share()


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except SharedStoreAway:
        pass  # the connection has told the log
    except Exception as error:  # the thread's top: the next look may go better
        log.error("sharing with other boxes failed", exc_info=error)
