"""What each box has used in each hour, so that every box can tell for all.

A box writes its own totals of an hour as a whole, in the hash of the day: written twice, they count
once. No single calls, no prompts are here. Totals go with the days that the ledger keeps.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.state.database.calls import QUARTER_S, Quarter, Totals
from qwen_wsgi.state.redis.connection import PREFIX, SharedStore, SharedStoreAway

if TYPE_CHECKING:
    from redis import Redis

HOUR_S: Final = 3600
_DAY_HOURS: Final = 24
#: Days that one question brings.
_AT_A_TIME: Final = 10
#: A question for all times asks for no more of them: a hundred years.
_MOST_DAYS: Final = 36_525
#: How many numbers a quarter has.
_COUNTS: Final = len(Totals._fields) - Totals._fields.index("calls")
#: Of one hour, as text.
_LARGEST_TEXT: Final = 32 * 1024 * 1024


class OfOthers(NamedTuple):
    """What other boxes have used in a time.

    Attributes:
        since, until: seconds since 1970.
        boxes: how many there are.
        packed: their hours, as `quarters` reads them.
        known: False while Redis is away: nobody knows.
    """

    since: float
    until: float
    boxes: int = 0
    packed: Sequence[bytes] = ()
    known: bool = True

    def quarters(self) -> Iterator[Quarter]:
        """Their quarters of an hour; the first and the last one count whole, because single calls
        are not known. Takes long for many: not for the event loop."""
        for value in self.packed:
            for each in _read(value):
                if (each.number + 1) * QUARTER_S > self.since and (
                    each.number * QUARTER_S < self.until
                ):
                    yield each


class UsageTotals:
    """The totals of all boxes.

    Args:
        kept_s: how long they are kept.
    """

    def __init__(self, store: SharedStore, *, kept_s: float) -> None:
        self._store = store
        self._kept_s = kept_s

    def put(self, hours: Mapping[int, Sequence[Quarter]]) -> None:
        """Write this box's totals of some hours, by their number since 1970.

        Raises:
            SharedStoreAway: perhaps some of it was written.
        """
        packed = {
            hour: zlib.compress(compact([list(each) for each in quarters]).encode())
            for hour, quarters in hours.items()
        }

        def work(redis: Redis) -> Any:
            with redis.pipeline(transaction=False) as several:
                for hour, value in packed.items():
                    day = _day(hour // _DAY_HOURS)
                    several.hset(day, f"{self._store.box}:{hour}", value)
                    end = (hour // _DAY_HOURS + 1) * _DAY_HOURS * HOUR_S + self._kept_s
                    several.expireat(day, int(end))
                return several.execute()

        self._store.run(work)

    def of_others(self, since: float, until: float) -> OfOthers:
        """What other boxes have used in a time; unknown while Redis is away."""
        first, last = int(since // HOUR_S), int(until // HOUR_S)
        days = range(max(0, first) // _DAY_HOURS, last // _DAY_HOURS + 1)[-_MOST_DAYS:]
        boxes: set[str] = set()
        packed: list[bytes] = []
        try:
            for begin in range(0, len(days), _AT_A_TIME):
                for values in self._of_days(days[begin : begin + _AT_A_TIME]):
                    for field, value in values.items():
                        box, _, hour = field.decode().partition(":")
                        if box != self._store.box and first <= int(hour) <= last:
                            boxes.add(box)
                            packed.append(value)
        except SharedStoreAway:
            return OfOthers(since, until, known=False)
        return OfOthers(since, until, len(boxes), packed)

    def _of_days(self, days: Sequence[int]) -> Iterable[dict[bytes, bytes]]:
        def work(redis: Redis) -> Any:
            with redis.pipeline(transaction=False) as several:
                for day in days:
                    several.hgetall(_day(day))
                return several.execute()

        found: list[dict[bytes, bytes]] = self._store.run(work)
        return found


def _day(number: int) -> str:
    return f"{PREFIX}usage:{number}"


def _read(value: bytes) -> list[Quarter]:
    """The quarters of an hour; none of what is damaged, or of a newer version."""
    try:
        text = zlib.decompressobj().decompress(value, _LARGEST_TEXT)
        found = [Quarter._make((*own, tuple(counts))) for *own, counts in json.loads(text)]
    except (zlib.error, ValueError, TypeError):
        return []
    return found if all(len(each.counts) == _COUNTS for each in found) else []
