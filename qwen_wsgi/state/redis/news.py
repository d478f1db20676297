"""What one box tells the others of accounts and conversations, within about a second.

A stream in Redis, of which each worker reads what is new. Clocks of boxes differ, and their
monotonic ones have nothing in common: a piece of news has its age when it was told, and Redis's
clock tells for how long it has been there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qwen_wsgi.state.redis.connection import PREFIX, SharedStore

if TYPE_CHECKING:
    from redis import Redis

_STREAM: Final = f"{PREFIX}news"
#: Pieces of news that are kept, about: whoever starts later reads them.
MOST: Final = 10_000
#: Of one exchange.
AT_A_TIME: Final = 1_000
#: The beginning of a stream.
START: Final = "0-0"


class News(NamedTuple):
    """A piece of news.

    Attributes:
        age_s: since it happened.
        topic: what it is about: `cooldown` or `conversation`.
        key, value: in the form of the topic.
    """

    age_s: float
    topic: str
    key: bytes
    value: bytes


class NewsStream:
    """The news of all boxes, as one worker reads them."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._read = START

    def exchange(self, told: Sequence[News]) -> tuple[list[News], bool]:
        """Tell some news and get those of other boxes, with one round trip.

        Returns:
            The news, in their order, with their age now; and whether there may be more.

        Raises:
            SharedStoreAway: perhaps some of it was told, perhaps none.
        """
        (seconds, micros), found, newest = self._store.run(lambda redis: self._ask(redis, told))
        now_s = seconds + micros / 1e6
        entries = found[0][1] if found else []
        if entries:
            self._read = _text(entries[-1][0])
        elif newest and order_of(_text(newest[0][0])) < order_of(self._read):
            self._read = START  # it was emptied, and Redis's clock put back
            return [], True
        box = self._store.box.encode()
        news = [
            piece
            for id, fields in entries
            if fields.get(b"box") != box and (piece := _read(now_s, id, fields)) is not None
        ]
        return news, len(entries) == AT_A_TIME

    def _ask(self, redis: Redis, told: Sequence[News]) -> Any:
        pipeline = redis.pipeline(transaction=False)
        for piece in told:
            pipeline.xadd(
                _STREAM,
                {
                    "box": self._store.box,
                    "topic": piece.topic,
                    "key": piece.key,
                    "value": piece.value,
                    "age": f"{max(0.0, piece.age_s):.3f}",
                },
                maxlen=MOST,
                approximate=True,
            )
        pipeline.time()
        pipeline.xread({_STREAM: self._read}, count=AT_A_TIME)
        pipeline.xrevrange(_STREAM, count=1)
        return pipeline.execute()[len(told) :]


def order_of(id: str) -> tuple[int, int]:
    """The place of an entry's id in its stream."""
    time_ms, _, number = id.partition("-")
    return int(time_ms), int(number or 0)


def _read(now_s: float, id: bytes, fields: dict[bytes, bytes]) -> News | None:
    """A piece of news; None for what is none, of another version perhaps."""
    try:
        age_s = float(fields[b"age"]) + max(0.0, now_s - order_of(_text(id))[0] / 1e3)
        piece = News(age_s, fields[b"topic"].decode(), fields[b"key"], fields[b"value"])
    except (KeyError, ValueError):
        return None
    return piece if math.isfinite(age_s) else None


def _text(id: bytes | str) -> str:
    return id.decode() if isinstance(id, bytes) else id
