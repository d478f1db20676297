"""What a client may take within a minute, a day and a month, and at the same time. Pure.

The state of one client is a fixed number of integers. Requests and tokens of the last minute are
in buckets of half a second, each of which counts until the latest that is in it is 60 s old: a
client never gets more than its limit in any 60 s, and waits at most half a second too long.

Two clocks: the minute goes by one that never steps (milliseconds, the same in all processes of the
machine), days and months by the wall clock. See docs/limits.md and docs/decisions/059.
"""

from __future__ import annotations

import bisect
import itertools
import os
from array import array
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

#: The window, and a bucket of it. Milliseconds.
WINDOW_MS: Final = 60_000
BUCKET_MS: Final = 500
#: Those that may count at a moment: the window, and the bucket that is being filled.
BUCKETS: Final = WINDOW_MS // BUCKET_MS + 1
#: Workers that may have calls of one client in flight: twice as many as a server has, because
#: after a reload the old ones go on for a while.
ROWS: Final = 128
#: What is reserved for the answer of a call that names no maximum. Tokens.
GUESSED_ANSWER: Final = 2_000
#: Of a currency: money is kept in millionths.
MICROS: Final = 1_000_000

#: Buckets of one span: what a worker has open is known by these.
SPAN: Final = 8

#: A wall clock that is set back over a midnight by less than this still counts for the day that it
#: has seen already: else each such step would give a second day's tokens. Seconds.
_STEP_S: Final = 3600
_DAY_S: Final = 86_400.0

#: Places in `State.head`.
_VERSION, _BUCKET, _WALL, _REQUESTS, _TOKENS, _DAY, _DAY_TOKENS, _MONTH, _MONEY, _BEGUN = range(10)
_HEAD: Final = 16
#: Of the layout of `State.pack`.
VERSION: Final = 1
#: The largest numbers in a bucket of requests, and in one of tokens.
_MOST: Final = 2**31 - 1
_MOST_TOKENS: Final = 2**62

_EMPTY_Q: Final = array("q", bytes(8 * BUCKETS))
_EMPTY_I: Final = array("i", bytes(4 * BUCKETS))
_EMPTY_H: Final = array("H", bytes(2 * BUCKETS))
_SIZES: Final = (8 * _HEAD, 8 * BUCKETS, 4 * BUCKETS, 2 * BUCKETS, 4 * ROWS, 4 * ROWS)
_ENDS: Final = tuple(itertools.accumulate(_SIZES))
#: Bytes of a packed state: less than a page, so that a process that is killed while it writes
#: leaves the old or the new one.
STATE_BYTES: Final = _ENDS[-1]


class Limits(NamedTuple):
    """What a client may take; None is no limit.

    Attributes:
        rpm, tpm: upstream requests, and tokens, within 60 s.
        tokens_per_day: until the next local midnight.
        money_per_month: until the end of the local month, in the currency of the price table.
        concurrency: calls at the same time.
    """

    rpm: int | None = None
    tpm: int | None = None
    tokens_per_day: int | None = None
    money_per_month: float | None = None
    concurrency: int | None = None


class Moment(NamedTuple):
    """A point in time.

    Attributes:
        at_ms: of the clock that never steps.
        wall_s: of the wall clock, seconds since 1970.
        day, month: local; numbers that grow by one.
        day_left_s, month_left_s: until their ends.
    """

    at_ms: int
    wall_s: int
    day: int
    month: int
    day_left_s: float
    month_left_s: float


class Calendar:
    """Tells in which day and month of a time zone a moment is.

    Args:
        zone: as in `Europe/Berlin`; "" is the zone of this machine.
    """

    def __init__(self, zone: str = "") -> None:
        self._zone = ZoneInfo(zone) if zone else None
        #: Day, month, begin and end of the day, end of the month; of the latest moment.
        self._known = (0, 0, 1.0, 0.0, 0.0)

    def moment(self, steady_s: float, wall_s: float) -> Moment:
        """A moment, by both clocks in seconds."""
        day, month, begin_s, end_s, month_end_s = self._known
        if not begin_s <= wall_s < end_s:
            self._known = day, month, begin_s, end_s, month_end_s = self._around(wall_s)
        at_ms, left_s, month_left_s = int(steady_s * 1000), end_s - wall_s, month_end_s - wall_s
        # The constructors of named tuples are functions of Python.
        return tuple.__new__(Moment, (at_ms, int(wall_s), day, month, left_s, month_left_s))

    def _around(self, wall_s: float) -> tuple[int, int, float, float, float]:
        today = datetime.fromtimestamp(wall_s, self._zone).date()
        following = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
        # From now on, not from midnight: a day may have an hour twice, but never lies behind.
        end_s = self._midnight_s(today + timedelta(days=1))
        return (
            today.toordinal(),
            today.year * 12 + today.month,
            wall_s,
            max(end_s, wall_s + 1.0),
            max(self._midnight_s(following), wall_s + 1.0),
        )

    def _midnight_s(self, day: date) -> float:
        """When a day begins. Where clocks skip midnight, it is the moment of the change."""
        return datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp()


class State:
    """What one client has taken, in plain integers.

    Attributes:
        tokens, requests: of each bucket; bucket `b` is at `b % BUCKETS`.
        last: milliseconds from the beginning of the bucket to the latest that was booked in it.
        places: calls in flight of each worker, by its row.
        tags: who has a row; 0 for nobody.
        arrays: all of them, in the order of a packed state.
    """

    __slots__ = ("arrays", "head", "last", "places", "requests", "tags", "tokens")

    def __init__(self) -> None:
        self.head = array("q", bytes(8 * _HEAD))
        self.head[_VERSION] = VERSION
        self.tokens = _EMPTY_Q[:]
        self.requests = _EMPTY_I[:]
        self.last = _EMPTY_H[:]
        self.places = array("i", bytes(4 * ROWS))
        self.tags = array("I", bytes(4 * ROWS))
        self._know_arrays()

    def _know_arrays(self) -> None:
        self.arrays = (
            *(self.head, self.tokens, self.requests),
            *(self.last, self.places, self.tags),
        )

    @property
    def in_flight(self) -> int:
        """Calls in flight, of all workers."""
        # Of 128 rows some few are used, the first ones.
        used = int.from_bytes(self.places.tobytes(), "little").bit_length() // 32 + 1
        return sum(self.places[:used])

    @property
    def begun(self) -> int:
        """Another number after each time that the counting was begun anew."""
        return self.head[_BEGUN]

    def begin_anew(self) -> None:
        """Note that a state that was lost is replaced by this one, in which no worker has a row."""
        self.head[_BEGUN] = int.from_bytes(os.urandom(4), "big")
        self.forget_all_workers()

    def forget_all_workers(self) -> None:
        """Free the rows of all workers."""
        self.places[:] = array("i", bytes(4 * ROWS))
        self.tags[:] = array("I", bytes(4 * ROWS))

    def copy(self) -> State:
        """Another one with the same content."""
        copy = State.unpack(self.pack())
        assert copy is not None
        return copy

    def pack(self) -> bytes:
        """Pack it into `STATE_BYTES`."""
        return b"".join(self.arrays)

    @classmethod
    def unpack(cls, data: bytes) -> State | None:
        """Read what `pack` has made; None for another version's."""
        state = cls.__new__(cls)
        a, b, c, d, e, _ = _ENDS
        state.head = array("q", data[:a])
        state.tokens = array("q", data[a:b])
        state.requests = array("i", data[b:c])
        state.last = array("H", data[c:d])
        state.places = array("i", data[d:e])
        state.tags = array("I", data[e:])
        state._know_arrays()
        return state if state.head[_VERSION] == VERSION else None


class Granted(NamedTuple):
    """What was booked for a call, and where.

    Attributes:
        money: in millionths.
    """

    bucket: int
    day: int
    month: int
    requests: int = 0
    tokens: int = 0
    money: int = 0


class Refused(NamedTuple):
    """Why a call is not allowed now.

    Attributes:
        limit: the name of the limit, as in `Limits`.
        value: the limit.
        used, wanted: what was taken of it, and what the call would have taken.
        retry_after_s: when it would be allowed if nobody else called; None is never.
    """

    limit: str
    value: float
    used: float
    wanted: float
    retry_after_s: float | None


class Room(NamedTuple):
    """What is left of one limit, and in how many seconds all of it is free again."""

    limit: float
    left: float
    reset_s: float


def reserve(
    state: State,
    limits: Limits,
    now: Moment,
    *,
    requests: int = 1,
    tokens: int = 0,
    money: int = 0,
    row: int = 0,
    places: int = 1,
) -> Granted | Refused:
    """Book a call if no limit is against it.

    Several limits may be against it: the answer is the one that is so for the longest time.

    Args:
        row: of the worker; below 0 it has none, and its places are counted elsewhere.
        places: 0 for more of a call that has its place already.
    """
    advance(state, now)
    head = state.head
    rpm, tpm, per_day, per_month, concurrency = limits
    if (
        (rpm is not None and head[_REQUESTS] + requests > rpm)
        # A call whose tokens are not known before is refused where nothing at all is left.
        or (tpm is not None and head[_TOKENS] + (tokens or 1) > tpm)
        or (per_day is not None and head[_DAY_TOKENS] + (tokens or 1) > per_day)
        or (per_month is not None and head[_MONEY] + (money or 1) > per_month * MICROS)
        or (concurrency is not None and places and state.in_flight + places > concurrency)
    ):
        return _refused(state, limits, now, requests, tokens, money, places)
    bucket, day, month = head[_BUCKET], head[_DAY], head[_MONTH]
    granted = tuple.__new__(Granted, (bucket, day, month, requests, tokens, money))
    _book(state, granted, requests, tokens, money)
    at, offset = bucket % BUCKETS, now.at_ms - bucket * BUCKET_MS
    if offset > state.last[at]:
        state.last[at] = offset
    if row >= 0:
        state.places[row] += places
    return granted


def count(state: State, now: Moment, requests: int = 1) -> Granted:
    """Count further requests of a call that goes on: they are never refused."""
    advance(state, now)
    head = state.head
    granted = Granted(head[_BUCKET], head[_DAY], head[_MONTH], requests)
    _book(state, granted, requests, 0, 0)
    bucket = head[_BUCKET]
    at = bucket % BUCKETS
    state.last[at] = max(state.last[at], now.at_ms - bucket * BUCKET_MS)
    return granted


def settle(
    state: State, granted: Granted, tokens: int, money: int, now: Moment, *, requests: int = 0
) -> None:
    """Replace what was reserved by what was used.

    The difference goes where the reservation is: to its bucket while that counts, to its day and
    its month while they last. The tokens of a call that began before midnight are yesterday's.

    Args:
        requests: of those reserved, how many are given back: all of them, and no tokens used, for a
            call that never reached an upstream.
    """
    advance(state, now)
    _book(state, granted, -requests, tokens - granted.tokens, money - granted.money)


def remaining(state: State, limits: Limits, now: Moment) -> Mapping[str, Room]:
    """What is left of each limit that there is, by its name in `Limits`."""
    advance(state, now)
    head, found = state.head, dict[str, Room]()
    rpm, tpm, per_day, per_month, concurrency = limits
    new = tuple.__new__
    if rpm is not None:
        left, reset_s = rpm - head[_REQUESTS], _reset_s(state, state.requests, now)
        found["rpm"] = new(Room, (rpm, left if left > 0 else 0, reset_s))
    if tpm is not None:
        left, reset_s = tpm - head[_TOKENS], _reset_s(state, state.tokens, now)
        found["tpm"] = new(Room, (tpm, left if left > 0 else 0, reset_s))
    if per_day is not None:
        used = head[_DAY_TOKENS]
        left, reset_s = per_day - used, 0.0
        if used:
            reset_s = now.day_left_s
            if head[_DAY] != now.day:
                reset_s = _left(state, now)[0]
        found["tokens_per_day"] = new(Room, (per_day, left if left > 0 else 0, reset_s))
    if per_month is not None:
        used = head[_MONEY]
        most = max(0.0, per_month - used / MICROS)
        ends_s = _left(state, now)[1]
        found["money_per_month"] = Room(per_month, most, ends_s if used else 0.0)
    if concurrency is not None:
        found["concurrency"] = Room(concurrency, max(0, concurrency - state.in_flight), 0.0)
    return found


def forget_worker(state: State, row: int, spans: Mapping[int, int], day: int, tokens: int) -> None:
    """Free the row of a worker that is gone, and what it had reserved and not settled.

    Its requests stay: they were sent.

    Args:
        spans: its open tokens, by the `SPAN` buckets in which they were reserved.
        day, tokens: its open tokens of one day.
    """
    latest = state.head[_BUCKET]
    for span, left in spans.items():
        for bucket in range(span * SPAN + SPAN - 1, span * SPAN - 1, -1):
            if left <= 0:
                break
            if latest - BUCKETS < bucket <= latest:
                taken = min(left, state.tokens[bucket % BUCKETS])
                _book(state, Granted(bucket, 0, 0), 0, -taken, 0)
                left -= taken
    if day == state.head[_DAY]:
        state.head[_DAY_TOKENS] = max(0, state.head[_DAY_TOKENS] - tokens)
    state.places[row] = state.tags[row] = 0


def advance(state: State, now: Moment) -> None:
    """Let go of what does not count any more at this moment.

    The clock that never steps goes back only with a restart of the machine. A little (nobody knows
    why) lets the window stand still until it has caught up; more than a window begins it anew.
    """
    head = state.head
    bucket = now.at_ms // BUCKET_MS
    passed = bucket - head[_BUCKET]
    if passed:
        if not -BUCKETS < passed < BUCKETS:
            state.tokens[:] = _EMPTY_Q
            state.requests[:] = _EMPTY_I
            state.last[:] = _EMPTY_H
            head[_TOKENS] = head[_REQUESTS] = 0
            head[_BUCKET] = bucket
        elif passed > 0:
            first = (head[_BUCKET] + 1) % BUCKETS
            end = first + passed
            _clear(state, first, min(end, BUCKETS))
            if end > BUCKETS:
                _clear(state, 0, end - BUCKETS)
            head[_BUCKET] = bucket
    oldest = (head[_BUCKET] - BUCKETS + 1) % BUCKETS
    if (state.requests[oldest] or state.tokens[oldest]) and not _leaves_s(
        state, head[_BUCKET] - BUCKETS + 1, now
    ):
        _clear(state, oldest, oldest + 1)
    if now.day != head[_DAY] and not _is_step_back(head, now, _DAY, now.day):
        head[_DAY], head[_DAY_TOKENS] = now.day, 0
    if now.month != head[_MONTH] and not _is_step_back(head, now, _MONTH, now.month):
        head[_MONTH], head[_MONEY] = now.month, 0
    head[_WALL] = now.wall_s


def raise_to(state: State, now: Moment, *, day: int, tokens: int, month: int, money: int) -> None:
    """Count at least so much in a day and a month, as far as they are those of now."""
    advance(state, now)
    head = state.head
    if day == head[_DAY]:
        head[_DAY_TOKENS] = max(head[_DAY_TOKENS], tokens)
    if month == head[_MONTH]:
        head[_MONEY] = max(head[_MONEY], money)


class Owed(NamedTuple):
    """What was booked in a copy of a state, to be booked in the state itself.

    Attributes:
        buckets: requests and tokens of each bucket.
    """

    buckets: Mapping[int, tuple[int, int]]
    day: int
    tokens: int
    month: int = 0
    money: int = 0

    @classmethod
    def of_spans(cls, spans: Mapping[int, int], day: int, tokens: int) -> Owed:
        """What is open of a worker, as in `forget_worker`, at the end of each span."""
        return cls({span * SPAN + SPAN - 1: (0, left) for span, left in spans.items()}, day, tokens)


def difference(before: State, after: State) -> Owed:
    """What was booked between two states of one moment."""
    latest = after.head[_BUCKET]
    buckets = {}
    for bucket in range(latest - BUCKETS + 1, latest + 1):
        at = bucket % BUCKETS
        both = after.requests[at] - before.requests[at], after.tokens[at] - before.tokens[at]
        if any(both):
            buckets[bucket] = both
    old, new = before.head, after.head
    tokens, money = new[_DAY_TOKENS] - old[_DAY_TOKENS], new[_MONEY] - old[_MONEY]
    return Owed(buckets, new[_DAY], tokens, new[_MONTH], money)


def together(first: Owed, second: Owed) -> Owed:
    """Two that were booked one after the other. What was booked in an earlier day is dropped."""
    oldest = max(second.buckets, default=0) - BUCKETS
    buckets = {bucket: both for bucket, both in first.buckets.items() if bucket > oldest}
    for bucket, (requests, tokens) in second.buckets.items():
        before = buckets.get(bucket, (0, 0))
        buckets[bucket] = before[0] + requests, before[1] + tokens
    tokens = second.tokens + (first.tokens if first.day == second.day else 0)
    money = second.money + (first.money if first.month == second.month else 0)
    return Owed(buckets, second.day, tokens, second.month, money)


def book_owed(state: State, owed: Owed, now: Moment) -> None:
    """Book what another copy of the state knows."""
    advance(state, now)
    latest = state.head[_BUCKET]
    for bucket, (requests, tokens) in owed.buckets.items():
        bucket = min(bucket, latest)
        _book(state, Granted(bucket, 0, 0), requests, tokens, 0)
        if bucket > latest - BUCKETS:
            state.last[bucket % BUCKETS] = BUCKET_MS - 1  # when exactly is not known
    _book(state, Granted(-1, owed.day, owed.month), 0, owed.tokens, owed.money)


# --- inside -------------------------------------------------------------------------------------


def _book(state: State, where: Granted, requests: int, tokens: int, money: int) -> None:
    """Add to a bucket, a day and a month as far as they still count; nothing falls below 0."""
    head = state.head
    if head[_BUCKET] - BUCKETS < where.bucket <= head[_BUCKET]:
        at = where.bucket % BUCKETS
        if requests:
            before = state.requests[at]
            after = before + requests
            state.requests[at] = after = 0 if after < 0 else after if after < _MOST else _MOST
            head[_REQUESTS] += after - before
        if tokens:
            before = state.tokens[at]
            after = before + tokens
            after = 0 if after < 0 else after if after < _MOST_TOKENS else _MOST_TOKENS
            state.tokens[at] = after
            head[_TOKENS] += after - before
    if tokens and where.day == head[_DAY]:
        after = head[_DAY_TOKENS] + tokens
        head[_DAY_TOKENS] = after if after > 0 else 0
    if money and where.month == head[_MONTH]:
        after = head[_MONEY] + money
        head[_MONEY] = after if after > 0 else 0


def _clear(state: State, first: int, end: int) -> None:
    head = state.head
    state.last[first:end] = _EMPTY_H[first:end]
    if head[_REQUESTS]:
        head[_REQUESTS] -= sum(state.requests[first:end])
        state.requests[first:end] = _EMPTY_I[first:end]
    if head[_TOKENS]:
        head[_TOKENS] -= sum(state.tokens[first:end])
        state.tokens[first:end] = _EMPTY_Q[first:end]


def _is_step_back(head: array[int], now: Moment, place: int, period: int) -> bool:
    """Whether the wall clock was set back over the beginning of a day or month, by a little."""
    return head[place] - period == 1 and head[_WALL] - now.wall_s < _STEP_S


def _left(state: State, now: Moment) -> tuple[float, float]:
    """Seconds until the day, and the month, that the state counts for are over."""
    ahead = state.head[_DAY] - now.day
    day_s = now.day_left_s + ahead * _DAY_S
    # A month that is ahead begins within the hour (see `_is_step_back`): it lasts four weeks more.
    month_s = now.month_left_s + (state.head[_MONTH] - now.month) * 28 * _DAY_S
    return day_s, month_s


def _refused(
    state: State,
    limits: Limits,
    now: Moment,
    requests: int,
    tokens: int,
    money: int,
    places: int,
) -> Refused:
    """The limit that is against a call for the longest time."""
    head, found = state.head, []
    day_s, month_s = _left(state, now)

    def check(name: str, value: float | None, used: float, wanted: float, wait_s: float) -> None:
        """One that has no window: it is free again at once after `wait_s`."""
        if value is not None and used + (wanted or 1) > value:
            never = (wanted or 1) > value
            found.append(Refused(name, value, used, wanted, None if never else wait_s))

    for name, value, ring, used, wanted in (
        ("rpm", limits.rpm, state.requests, head[_REQUESTS], requests),
        ("tpm", limits.tpm, state.tokens, head[_TOKENS], tokens),
    ):
        if value is not None and (excess := used + (wanted or 1) - value) > 0:
            check(name, value, used, wanted, _free_s(state, ring, excess, now))
    check("tokens_per_day", limits.tokens_per_day, head[_DAY_TOKENS], tokens, day_s)
    if limits.money_per_month is not None:
        most = limits.money_per_month * MICROS
        if head[_MONEY] + (money or 1) > most:
            spent, asked = head[_MONEY] / MICROS, money / MICROS
            ends_s = None if (money or 1) > most else month_s
            found.append(Refused("money_per_month", limits.money_per_month, spent, asked, ends_s))
    if places:
        check("concurrency", limits.concurrency, state.in_flight, places, 1.0)
    return max(found, key=_length_of)


def _length_of(refused: Refused) -> float:
    return float("inf") if refused.retry_after_s is None else refused.retry_after_s


def _free_s(state: State, ring: array[int], excess: int, now: Moment) -> float:
    """Seconds until so much of a window has gone."""
    oldest = state.head[_BUCKET] - BUCKETS + 1
    gone = list(itertools.accumulate(_in_order(ring, oldest)))
    # Not beyond the last one: an excess that cannot go is told apart by the caller.
    bucket = oldest + min(bisect.bisect_left(gone, excess), BUCKETS - 1)
    return _leaves_s(state, bucket, now)


def _reset_s(state: State, ring: array[int], now: Moment) -> float:
    """Seconds until all of a window has gone."""
    latest = state.head[_BUCKET]
    for bucket in range(latest, latest - BUCKETS, -1):
        if ring[at := bucket % BUCKETS]:  # as `_leaves_s`
            left_ms = bucket * BUCKET_MS + state.last[at] + WINDOW_MS - now.at_ms
            return left_ms / 1000 if left_ms > 0 else 0.0
    return 0.0


def _leaves_s(state: State, bucket: int, now: Moment) -> float:
    """Seconds until a bucket does not count any more."""
    latest_ms = bucket * BUCKET_MS + state.last[bucket % BUCKETS]
    return max(0, latest_ms + WINDOW_MS - now.at_ms) / 1000


def _in_order(ring: array[int], oldest: int) -> Sequence[int]:
    at = oldest % BUCKETS
    return ring[at:] + ring[:at]
