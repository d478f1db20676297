"""What clients have taken of their limits, counted by all workers of several boxes in one Redis.

One script decides (limits.lua): the arithmetic of `access.limits` on the same packed state. A call
asks once; what it has used is settled in the background, many calls in one trip. While Redis is
away a worker counts in its box's files (`state.limits`), and what it booked there is added when
Redis is back. The window goes by Redis's own clock, which all boxes share; days and months by the
boxes' calendars. See docs/decisions/066.

What a worker has reserved and not settled is in a hash of its own, by client, day and bucket. A
worker that is gone gets it settled at nothing by the others; a settlement that comes after that is
counted whole, because the script gives back no more than is there.
"""

from __future__ import annotations

import functools
import logging
import math
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qwen_wsgi.access import limits as arithmetic
from qwen_wsgi.access.limits import (
    BUCKET_MS,
    BUCKETS,
    MICROS,
    Calendar,
    Granted,
    Limits,
    Moment,
    Refused,
    Room,
    State,
)
from qwen_wsgi.clock import Clock
from qwen_wsgi.state.limits.counter import Counter
from qwen_wsgi.state.limits.counters import LimitCounters
from qwen_wsgi.state.redis.connection import PREFIX, Lua, SharedStore, SharedStoreAway
from qwen_wsgi.state.workers import is_gone, this_worker

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)

#: A worker that gave no sign for so long is gone, also one of a box that is gone. Seconds.
LEASE_S: Final = 15.0
_SCRIPT: Final = Path(__file__).with_name("limits.lua")
_WORKERS: Final = PREFIX + "workers"
#: The part of a packed state that Redis has, and what is kept of workers by themselves.
_SHARED_BYTES: Final = 1822
_NO_ROWS: Final = bytes(arithmetic.STATE_BYTES - _SHARED_BYTES)
_DAY, _DAY_TOKENS, _MONTH, _MONEY, _BEGUN, _IN_FLIGHT = 5, 6, 7, 8, 9, 10
#: Bookings of one client that wait, before those of earlier minutes become one.
_MOST_BOOKINGS: Final = 300
#: A bucket that is not over yet: booked in the latest one.
_NOW: Final = 2**40
#: What is so old is no question on its way. Buckets.
_SETTLED: Final = 8


class SharedGranted(Granted):
    """What was booked in Redis, not in a file of this box."""


class Booking(NamedTuple):
    """What is to be added: numbers as in `limits.lua`.

    Attributes:
        tokens: that were used.
        open, places: of what the worker has open; negative to give back.
        counts: 1 if tokens are added by what is opened, and taken by what is given back.
    """

    requests: int = 0
    tokens: int = 0
    money: int = 0
    open: int = 0
    places: int = 0
    counts: int = 1

    def plus(self, more: Booking) -> Booking:
        """Both together."""
        return Booking._make(
            [a + b for a, b in zip(self[:5], more[:5], strict=True)] + [self.counts]
        )


#: Bucket, day, month.
Where = tuple[int, int, int]


class SharedCounter:
    """What one client has taken; as `access.budget.Counter`."""

    def __init__(self, all: SharedLimitCounters, client: str) -> None:
        self._all = all
        self._client = client
        self.state = State()
        #: Whether what is known here may be more than what Redis has.
        self.is_suspect = False
        #: When Redis lost its data last: a bucket. What was open then is in the day that was put
        #: back.
        self.lost_at = -1
        #: Whether the box's file knows the day and the month since Redis is away.
        self._is_prepared = False
        self._waiting: dict[Where, Booking] = {}
        #: On its way, with the number by which Redis does it once.
        self._sending: tuple[int, dict[Where, Booking]] | None = None
        #: What this worker has open in Redis: tokens and places, by bucket and day.
        self.open: dict[tuple[int, int], tuple[int, int]] = {}

    # --- as access.budget.Counter --------------------------------------------------------------

    def reserve(
        self, limits: Limits, *, requests: int = 1, tokens: int = 0, places: int = 1
    ) -> Granted | Refused:
        """Book a call, see `access.limits.reserve`. Asks Redis once; where it is away, the file."""
        asked = (requests, tokens, 0, places)
        try:
            found = self._ask(limits, asked)
            if isinstance(found, Refused) and self.has_waiting:
                self.send()  # what has ended meanwhile may make room
                found = self._ask(limits, asked)
        except SharedStoreAway:
            return self._reserve_here(limits, requests, tokens, places)
        return found

    def count(self, requests: int) -> None:
        """Count further requests, see `access.limits.count`."""
        if self._all.store.away:
            self._prepared().count(requests)
        now = self._all.moment()
        self._put((_NOW, now.day, now.month), Booking(requests))

    def settle(
        self,
        granted: Granted,
        tokens: int,
        money: int = 0,
        *,
        requests: int = 0,
        places: int = 1,
    ) -> None:
        """End a call, see `access.limits.settle`; waits for nobody."""
        where = (granted.bucket, granted.day, granted.month)
        if isinstance(granted, SharedGranted):
            used = Booking(-requests, tokens, money - granted.money, -granted.tokens, -places)
        else:
            self._local.settle(granted, tokens, money, requests=requests, places=places)
            where = (self._all.shared_bucket(granted.bucket), *where[1:])
            used = Booking(-requests, tokens - granted.tokens, money - granted.money)
        self._put(where, used)

    def remaining(self, limits: Limits) -> Mapping[str, Room]:
        """What is left, see `access.limits.remaining`."""
        try:
            self._change(limits, None)
        except SharedStoreAway:
            return self._prepared().remaining(limits)
        return self.known_remaining(limits)

    def known_remaining(self, limits: Limits) -> Mapping[str, Room]:
        """The same as this worker knows it since its latest change."""
        if self._all.store.away:
            return self._prepared().known_remaining(limits)
        return arithmetic.remaining(self.state, limits, self._all.moment())

    # --- in the background ---------------------------------------------------------------------

    @property
    def has_waiting(self) -> bool:
        """Whether something is to be sent, or was and is not known to have come."""
        return bool(self._waiting or self._sending)

    def send(self) -> None:
        """Send what waits. Raises SharedStoreAway: it is sent again later."""
        while self.has_waiting:
            if self._sending is None:
                self._sending = 1 + secrets.randbits(48), self._waiting
                self._waiting = {}
            number, bookings = sending = self._sending
            self._change(Limits(), None, number, _rows(bookings))
            if self._sending is sending:  # else another greenlet has sent it, too
                self._sending = None
                for where, booking in bookings.items():
                    self._note_open(where, booking.open, booking.places)

    def give_back(self, worker: str, entries: Iterable[tuple[int, int, int, int]]) -> None:
        """Settle at nothing what a worker has open: bucket, day, tokens, places."""
        rows = [
            (bucket, day, 0, 0, 0, 0, -tokens, -places, 1)
            for bucket, day, tokens, places in entries
        ]
        self._change(Limits(), None, 1 + secrets.randbits(48), rows, worker=worker)

    def mend(self, found: Mapping[tuple[int, int], tuple[int, int]], before: int) -> None:
        """Make what Redis has of this worker what the worker has.

        A question that was broken off may have been done all the same, and data may be lost.

        Args:
            found: what Redis has, as `open`.
            before: only buckets before this one; later ones may be on their way.
        """
        if self.has_waiting:
            return
        rows: list[tuple[int, ...]] = []
        for where in sorted(set(found) | set(self.open)):
            if where[0] >= before:
                continue
            (is_t, is_p), (t, p) = found.get(where, (0, 0)), self.open.get(where, (0, 0))
            if is_t > t:
                rows.append((*where, 0, 0, 0, 0, t - is_t, min(0, p - is_p), 1))
            elif is_t < t or is_p != p:
                # Lost with the data; or given back, because this worker stood still.
                counts = 0 if where[0] <= self.lost_at else 1
                rows.append((*where, 0, 0, 0, 0, t - is_t, p - is_p, counts))
        if rows:
            self._change(Limits(), None, 1 + secrets.randbits(48), rows)

    # --- inside --------------------------------------------------------------------------------

    @property
    def _local(self) -> Counter:
        return self._all.files.of(self._client)

    def _prepared(self) -> Counter:
        """The counter of this box, that knows what was taken of the day and the month."""
        local = self._local
        if not self._is_prepared:
            self._is_prepared = True
            head = self.state.head
            local.raise_to(head[_DAY], head[_DAY_TOKENS], head[_MONTH], head[_MONEY])
        return local

    def _reserve_here(
        self, limits: Limits, requests: int, tokens: int, places: int
    ) -> Granted | Refused:
        found = self._prepared().reserve(limits, requests=requests, tokens=tokens, places=places)
        if isinstance(found, Granted):
            where = (self._all.shared_bucket(found.bucket), found.day, found.month)
            self._put(where, Booking(requests, tokens))
        return found

    def _ask(self, limits: Limits, asked: tuple[int, int, int, int]) -> Granted | Refused:
        granted, now = self._change(limits, asked)
        requests, tokens, money, places = asked
        if not granted:
            # The reason is found by the same arithmetic on the same state.
            found = arithmetic.reserve(
                self.state.copy(), limits, now, requests=requests, tokens=tokens, places=places
            )
            if isinstance(found, Refused):
                return found
            raise SharedStoreAway("its script and this program count in two ways")
        head = self.state.head
        made = SharedGranted(head[1], head[_DAY], head[_MONTH], requests, tokens, money)
        self._note_open((made.bucket, made.day, made.month), tokens, places)
        return made

    def _note_open(self, where: Where, tokens: int, places: int) -> None:
        before = self.open.get(where[:2], (0, 0))
        after = max(0, before[0] + tokens), max(0, before[1] + places)
        if any(after):
            self.open[where[:2]] = after
        else:
            self.open.pop(where[:2], None)

    def _put(self, where: Where, booking: Booking) -> None:
        if len(self._waiting) >= _MOST_BOOKINGS:
            self._fold()
        before = self._waiting.get(where)
        self._waiting[where] = booking if before is None else before.plus(booking)
        self._all.send_soon(self)

    def _fold(self) -> None:
        """Put together what counts for the day and the month alone."""
        oldest = self._all.moment().at_ms // BUCKET_MS - BUCKETS
        waiting, self._waiting = self._waiting, {}
        for where, booking in waiting.items():
            if where[0] <= oldest and not booking.open and not booking.places:
                where = (0, *where[1:])
            before = self._waiting.get(where)
            self._waiting[where] = booking if before is None else before.plus(booking)

    def _change(
        self,
        limits: Limits,
        asked: tuple[int, int, int, int] | None,
        batch: int = 0,
        rows: Iterable[tuple[int, ...]] = (),
        *,
        worker: str = "",
    ) -> tuple[bool, Moment]:
        """Have the script run; `state` is as it left it."""
        head, wall = self.state.head, self._all.moment()
        begun = -1 if self.is_suspect else head[_BEGUN]
        money = limits.money_per_month
        args = [
            *(self._client, self._all.at_ms(), wall.wall_s, wall.day, wall.month),
            *(1 + secrets.randbits(31), begun),
            *(head[_DAY], head[_DAY_TOKENS], head[_MONTH], head[_MONEY], batch),
            *(limits.rpm, limits.tpm, limits.tokens_per_day),
            *(None if money is None else money * MICROS, limits.concurrency),
            *(asked or (-1, 0, 0, 0)),
            *(number for row in rows for number in row),
        ]
        granted, at_ms, data = self._all.run(
            (PREFIX + "limits:" + self._client, open_key(worker or self._all.worker)),
            ["" if each is None else each for each in args],
        )
        self.is_suspect = self._is_prepared = False
        state = State.unpack(data + _NO_ROWS)
        assert state is not None, "the script writes this version alone"
        state.places[0] = state.head[_IN_FLIGHT]
        self.state = state
        return bool(granted), self._all.moment(at_ms)


class SharedLimitCounters:
    """The counters of all clients; as `access.budget.Counters`.

    Args:
        files: those of this box alone, for the time when Redis is away.
        later: does some work beside whoever asks for it.
        worker, is_gone: as in `state.workers`.
        at_ms: the time of the window; None is Redis's own.
    """

    def __init__(
        self,
        store: SharedStore,
        files: LimitCounters,
        clock: Clock,
        calendar: Calendar,
        *,
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
        worker: Callable[[], str] = this_worker,
        is_gone: Callable[[str, float], bool] = is_gone,
        at_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.store = store
        self.files = files
        self.at_ms = at_ms
        self._clock = clock
        self._calendar = calendar
        self._later = later
        self._name = worker
        self._is_gone = is_gone
        self._script = Lua(_SCRIPT.read_text())
        self._counters: dict[str, SharedCounter] = {}
        self._to_send: dict[str, SharedCounter] = {}
        self._is_sending = False
        self._has_beaten = False
        #: Redis's time less this process's that never steps; until it is known, by the wall clock.
        self._ahead_ms = (clock.now() - clock.monotonic()) * 1000
        self._silent_since_s = clock.monotonic()
        store.subscribe(self._converge)
        store.each_second(self.beat)

    @functools.cached_property
    def worker(self) -> str:
        """The name of this process among those of all boxes; asked for after the fork."""
        return f"{self.store.box}|{self._name()}"

    def of(self, client: str) -> SharedCounter:
        """The counter of a client, by its id."""
        found = self._counters.get(client)
        if found is None:
            found = self._counters[client] = SharedCounter(self, client)
        return found

    def look_after(self) -> None:
        """See `state.limits.counters.LimitCounters`."""
        self.files.look_after()

    def close(self) -> None:
        """Send what waits, and leave."""
        self._send()
        if self._has_beaten:  # a command that only looks has not
            try:
                self.store.run(lambda client: client.zrem(_WORKERS, self.worker))
            except SharedStoreAway as error:
                log.debug("the worker is not signed off: %s", error)
        self.files.close()

    # --- for the counters ----------------------------------------------------------------------

    def moment(self, at_ms: int | None = None) -> Moment:
        """Now, by Redis's clock for the window.

        Args:
            at_ms: what that clock said just now.
        """
        steady_s, wall_s = self._clock.monotonic(), self._clock.now()
        if at_ms is not None:
            self._ahead_ms = at_ms - steady_s * 1000
        found = self._calendar.moment(steady_s + self._ahead_ms / 1000, wall_s)
        return found if at_ms is None else found._replace(at_ms=at_ms)

    def shared_bucket(self, bucket: int) -> int:
        """A bucket of this box, by Redis's clock."""
        return math.floor((bucket * BUCKET_MS + self._ahead_ms) / BUCKET_MS)

    def run(self, keys: tuple[str, str], args: list[Any]) -> list[Any]:
        """Have the script run. Raises SharedStoreAway."""
        found: list[Any] = self.store.run(lambda client: self._script.run(client, keys, args))
        return found

    def send_soon(self, counter: SharedCounter) -> None:
        """Have sent what waits of a client, beside the call that ends."""
        self._to_send[counter._client] = counter
        if not self._is_sending and not self.store.away:
            self._is_sending = True
            self._later(self._send)

    def _send(self) -> None:
        """Send what waits; what comes meanwhile goes with the next trip of its client."""
        self._is_sending = True
        try:
            while self._to_send:
                client, counter = next(iter(self._to_send.items()))
                del self._to_send[client]
                try:
                    counter.send()
                except SharedStoreAway:
                    self._to_send.setdefault(client, counter)
                    return
        finally:
            self._is_sending = False

    # --- each second ---------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that this worker lives, send what still waits, and give back what dead ones held.
        Raises SharedStoreAway."""
        if not self._is_sending:
            self._send()
        calm = not self._is_sending

        def ask(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=False) as several:
                several.time()
                several.zrange(_WORKERS, 0, -1, withscores=True)
                several.hgetall(open_key(self.worker))
                found: list[Any] = several.execute()
                seconds = found[0][0] + found[0][1] / 1e6
                client.zadd(_WORKERS, {self.worker: seconds})
                return found

        (seconds, parts), workers, own = self.store.run(ask)
        self._has_beaten = True
        now = seconds + parts / 1e6
        if calm and not self._is_sending:
            self._mend(own, int(now * 1000) if self.at_ms() is None else self.at_ms() or 0)
        for name, at in workers:
            self._sweep(name.decode(), now - at)

    def _mend(self, own: Mapping[bytes, bytes], at_ms: int) -> None:
        by_client = _by_client(own)
        before = at_ms // BUCKET_MS - _SETTLED
        for name in set(by_client) | {n for n, each in self._counters.items() if each.open}:
            self.of(name).mend(by_client.get(name, {}), before)

    def _sweep(self, worker: str, silent_s: float) -> None:
        box, _, name = worker.partition("|")
        if worker == self.worker:
            return
        gone = box == self.store.box and self._is_gone(name, 0.0)
        # After a time in which nobody could give a sign, all get the time to give one.
        waited = self._clock.monotonic() - self._silent_since_s > LEASE_S
        if not gone and not (waited and silent_s > LEASE_S):
            return
        left = self.store.run(lambda client: client.hgetall(open_key(worker)))
        for client, entries in _by_client(left).items():  # type: ignore[arg-type]  # not async
            rows = [(*where, *both) for where, both in entries.items()]
            self.of(client).give_back(worker, rows)
        self.store.run(
            lambda client: (client.delete(open_key(worker)), client.zrem(_WORKERS, worker))
        )
        log.info("what a worker that is gone held of limits is given back worker=%s", worker)

    def _converge(self) -> None:
        """Redis is back, or has not what it had: what is known here goes there."""
        self._silent_since_s = self._clock.monotonic()
        for counter in self._counters.values():
            if self.store.has_lost:
                counter.is_suspect = True
                counter.lost_at = self.moment().at_ms // BUCKET_MS
            if counter.state.begun:
                self._to_send.setdefault(counter._client, counter)
        self._put_back()
        self._send()

    def _put_back(self) -> None:
        """The day and the month of each client, before anybody calls."""
        for counter in list(self._counters.values()):
            if counter.state.begun:
                counter.remaining(Limits())


def open_key(worker: str) -> str:
    """The hash of what a worker has open."""
    return f"{PREFIX}limits-open:{worker}"


def _rows(bookings: Mapping[Where, Booking]) -> list[tuple[int, ...]]:
    return [(*where, *booking) for where, booking in bookings.items()]


def _by_client(
    entries: Mapping[bytes, bytes],
) -> dict[str, dict[tuple[int, int], tuple[int, int]]]:
    """What is open, from the fields of a hash: by client, then by bucket and day."""
    found: dict[str, dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
    for name, value in entries.items():
        kind, _, rest = name.decode().partition("|")
        if kind not in ("t", "p"):
            continue
        client, day, bucket = rest.rsplit("|", 2)
        where = int(bucket), int(day)
        tokens, places = found[client].get(where, (0, 0))
        both = (int(value), places) if kind == "t" else (tokens, int(value))
        found[client][where] = both
    return dict(found)
