"""The calls of all boxes that share a Redis, for pages of the console that show them.

A box tells its calls while another one watches (`state.redis.live_calls`); one of its workers does,
beside all calls. Without a Redis, and while it is away, there is this box alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypedDict

from qwen_wsgi import greenlets
from qwen_wsgi.accounting.books import Books, BooksUnavailable
from qwen_wsgi.clock import Clock
from qwen_wsgi.in_flight import KEPT_S, CallsInFlight, Cancelled
from qwen_wsgi.protocol.json_object import encoded, reader
from qwen_wsgi.state.database.calls import CallRow
from qwen_wsgi.state.redis.connection import SharedStoreAway
from qwen_wsgi.state.redis.live_calls import Answer, LiveCalls

log = logging.getLogger(__name__)

#: Calls that a box tells: those in flight, and those that have ended. The newest.
MOST_CALLS: Final = 100
MOST_ENDED: Final = 200
#: Characters of a name that is told.
_LONGEST: Final = 80
#: Between two times that a box tells, and that it looks whether another one watches.
_TELL_S: Final = 0.75
_LOOK_S: Final = 1.0
#: The pages of one worker that look within this time share what is seen. Seconds.
_SHARED_S: Final = 0.5
#: How long another box may take to end a call, and how often its answer is looked for.
_ANSWER_S: Final = 3.0
_POLL_S: Final = 0.1


class _Told(TypedDict):
    """What pages show of a call in flight, as `in_flight.CallsInFlight` tells it."""

    id: str
    client: str
    address: str
    endpoint: str
    account: str | None
    model: str | None
    upstream_model: str | None
    state: str
    started_at: float
    seconds: float
    seconds_to_first_byte: float | None
    streamed_tokens: int
    seconds_queued: float
    seconds_connecting: float
    longest_gap: float
    gaps: list[dict[str, float]]
    attempts: int
    worker: int


class BoxTold(NamedTuple):
    """What one box tells.

    Attributes:
        name: the machine's.
        calls: those in flight.
        has_more: there are more of them.
        silent: how many of its workers have not told theirs.
        number: of the call that ended last. The ones before it have the numbers before it: who
            knows the number knows which calls are new.
        ended: those that have ended lately, the newest last.
    """

    name: str
    calls: list[_Told]
    has_more: bool
    silent: int
    number: int
    ended: list[CallRow]

    def since(self, number: int | None) -> Sequence[CallRow]:
        """Those that ended after the one with a number; all that are told, if it is not known."""
        if number is None or number > self.number:
            return self.ended
        return self.ended[max(0, len(self.ended) - (self.number - number)) :]


_read: Final = reader(BoxTold)


class Others(NamedTuple):
    """What the other boxes tell.

    Attributes:
        boxes: by their ids.
        unread: how many tell what cannot be read here.
        is_away: Redis is: nobody knows of other boxes.
    """

    boxes: Mapping[str, BoxTold]
    unread: int = 0
    is_away: bool = False


NONE: Final = Others({})


class BoxAway(Exception):
    """Another box does not answer; `str()` says so to an admin."""


class BoxCalls:
    """The calls of the other boxes, and the way to them.

    Args:
        live: None: there are no others.
        name: this machine's.
    """

    def __init__(
        self,
        live: LiveCalls | None,
        clock: Clock,
        name: str,
        *,
        sleep: Callable[[float], None],
    ) -> None:
        self.name = name
        self._live = live
        self._clock = clock
        self._sleep = sleep
        self._seen = NONE
        self._seen_s = -math.inf

    @property
    def are_several(self) -> bool:
        """Whether there may be other boxes."""
        return self._live is not None

    def others(self) -> Others:
        """What the other boxes tell now. It takes them about a second to begin."""
        if self._live is None:
            return NONE
        now_s = self._clock.monotonic()
        if now_s - self._seen_s >= _SHARED_S:
            self._seen, self._seen_s = _seen(self._live), now_s
        return self._seen

    def cancel(self, box: str, id: str, by: str) -> Cancelled:
        """End the calls with an id on another box.

        Args:
            by: who wants it, for the client.

        Raises:
            BoxAway: the box, or Redis, does not answer.
        """
        if self._live is None or box not in self.others().boxes:
            raise BoxAway("The box of this call tells nothing of its calls now.")
        try:
            token = self._live.ask(box, id, by)
            until_s = self._clock.monotonic() + _ANSWER_S
            while self._clock.monotonic() < until_s:
                if (answer := self._live.answer_of(token)) is not None:
                    return Cancelled(*answer)
                self._sleep(_POLL_S)
        except SharedStoreAway:
            raise BoxAway("Redis, by way of which boxes reach each other, is away.") from None
        raise BoxAway("The box of this call does not answer.")


def _seen(live: LiveCalls) -> Others:
    try:
        found = live.watch()
    except SharedStoreAway:
        return Others({}, is_away=True)
    boxes, unread = {}, 0
    for box, value in sorted(found.items()):
        try:
            boxes[box] = _read(value or b"")
        except (ValueError, RecursionError):  # another key, or another version
            unread += 1
    return Others(boxes, unread)


class BoxTeller:
    """Tells this box's calls to those that watch, and ends those that they want ended.

    Args:
        books: None keeps no ledger.
        is_mine: whether this worker does it for the box.
        name: this machine's.
    """

    def __init__(
        self,
        live: LiveCalls,
        in_flight: CallsInFlight,
        books: Books | None,
        clock: Clock,
        name: str,
        *,
        is_mine: Callable[[], bool],
    ) -> None:
        self._live = live
        self._in_flight = in_flight
        self._books = books
        self._clock = clock
        self._name = name
        self._is_mine = is_mine
        self._watched = False
        self._looked_s = self._told_s = -math.inf
        self._number = 0
        self._ended: list[CallRow] = []

    def look(self) -> None:
        """Tell what is to be told; to be called several times a second.

        Raises:
            SharedStoreAway: it is told later.
        """
        now_s = self._clock.monotonic()
        if not self._watched and now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        if not self._is_mine():
            self._watched = False
            return
        # What ended while nobody asked the workers is in the ledger alone.
        before, told = self._watched and now_s - self._told_s < KEPT_S, b""
        if before and now_s - self._told_s >= _TELL_S:
            told = self._told(now_s)
        wanted = self._live.exchange(told)
        self._watched = wanted.is_watched
        if wanted.is_watched and not before:
            self._begin(now_s)
            wanted.asked.extend(self._live.exchange(self._told(self._clock.monotonic())).asked)
        for each in wanted.asked:
            ended = self._in_flight.cancel(each.id, each.by)
            log.info("%s has cancelled %d calls by way of another box", each.by, ended.calls)
            self._live.answer(each.token, Answer(*ended))

    def _begin(self, now_s: float) -> None:
        """Somebody begins to watch: from now on workers keep what ends; before that there is the
        ledger."""
        self._in_flight.watch(now_s, now_s)
        self._ended = []
        if self._books is not None:
            try:
                found = greenlets.apart(partial(self._books.latest, MOST_ENDED))
                self._ended = [_bounded(row) for row in reversed(found)]
            except BooksUnavailable as error:
                log.error("other boxes are not told which calls ended: %s", error)
        # Beyond all numbers before, also those of another worker: no box ends a thousand calls a
        # second for long.
        self._number = int(self._clock.now() * 1000)
        self._told_s = now_s

    def _told(self, now_s: float) -> bytes:
        found = self._in_flight.watch(self._told_s, now_s)
        self._told_s = now_s
        known = {(row.at, row.request_id) for row in self._ended}
        new = [_bounded(row) for row in found.ended if (row.at, row.request_id) not in known]
        self._number += len(new)
        self._ended = [*self._ended, *sorted(new, key=_ended_at)][-MOST_ENDED:]
        calls, silent = found.calls.rows, found.calls.silent
        has_more = found.calls.has_more or len(calls) > MOST_CALLS
        shown = [_shown(call) for call in calls[-MOST_CALLS:]]
        return encoded((self._name, shown, has_more, silent, self._number, self._ended))


_SHOWN: Final = tuple(_Told.__annotations__)


def _shown(call: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a call in flight, bounded."""
    return {name: _cut(call[name]) if name != "id" else call[name] for name in _SHOWN}


def _bounded(row: CallRow) -> CallRow:
    return row._replace(
        client_id="",
        client=_cut(row.client),
        account=_cut(row.account),
        model=_cut(row.model),
        endpoint=_cut(row.endpoint),
        error=_cut(row.error),
        units=None,
        requests=None,
    )


def _cut(value: Any) -> Any:
    """A value; a text is shortened, and has no half of a surrogate pair, which cannot be read."""
    if not isinstance(value, str):
        return value
    return value[:_LONGEST].encode(errors="replace").decode()


def _ended_at(row: CallRow) -> float:
    return row.at
