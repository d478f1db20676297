"""What boxes tell each other of their calls while somebody watches: a page of the console.

A box that watches says so, for a few seconds; the others see that, and each puts one value, with
its calls in flight and those that ended lately, which nobody needs any more a few seconds later.
While nobody watches, nothing is written here. Whoever wants a call of another box ended leaves that
for it, and looks for the answer. Times are Redis's own.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qwen_wsgi.protocol.json_object import compact, reader
from qwen_wsgi.state.redis.connection import PREFIX, Lua, SharedStore
from qwen_wsgi.state.redis.values import Packer, Unreadable

if TYPE_CHECKING:
    from redis import Redis

#: How long a box counts as one that watches after it has looked; a page looks each second.
WATCHED_S: Final = 5.0
#: How long what a box tells is kept, and what it is asked for, and its answer.
TOLD_S: Final = 5.0
_ASKED_S: Final = 5.0
_ANSWER_S: Final = 10.0
#: Of what one box tells, packed. Bytes.
LARGEST: Final = 512 * 1024

_BASE: Final = f"{PREFIX}live:"
_WATCHERS: Final = f"{_BASE}watchers"
_BOXES: Final = f"{_BASE}boxes"
_TOLD: Final = f"{_BASE}told:"
_ASKED: Final = f"{_BASE}asked:"
_ANSWER: Final = f"{_BASE}answer:"

_NOW: Final = """
local at = redis.call('TIME')
local now = at[1] * 1000 + math.floor(at[2] / 1000)
"""

#: KEYS: watchers, boxes. ARGV: own box, ms, what is before a box in the key of its value. What the
#: other boxes tell: box, value, box, value, …
_WATCH: Final = Lua(
    _NOW
    + """
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local found = {}
for _, box in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if box ~= ARGV[1] then
    local value = redis.call('GET', ARGV[3] .. box)
    if value then
      found[#found + 1] = box
      found[#found + 1] = value
    else
      redis.call('SREM', KEYS[2], box)
    end
  end
end
return found
"""
)

#: KEYS: watchers, boxes, own value, what is asked of this box. ARGV: own box, value ("": none), for
#: how many ms it is there. Whether another box watches, and what is asked.
_TELL: Final = Lua(
    _NOW
    + """
if ARGV[2] ~= '' then
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
local asked, watched = redis.call('LRANGE', KEYS[4], 0, -1), 0
if #asked > 0 then redis.call('DEL', KEYS[4]) end
for _, box in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')) do
  if box ~= ARGV[1] then watched = 1 end
end
return {watched, asked}
"""
)


class Asked(NamedTuple):
    """A call that another box wants ended.

    Attributes:
        token: under which the answer is put.
        id: of the call.
        by: who wants it, for its client.
    """

    token: str
    id: str
    by: str


class Wanted(NamedTuple):
    """What other boxes want of this one: whether one watches, and which calls are to be ended."""

    is_watched: bool
    asked: list[Asked]


class Answer(NamedTuple):
    """What became of it: how many calls are ended, and how many workers did not answer."""

    calls: int
    silent: int


class LiveCalls:
    """The calls of all boxes, as one process tells and sees them. Each method is one round trip,
    and raises SharedStoreAway.

    Args:
        packer: what is told has names of clients and addresses: it is sealed where boxes have a key
            in common.
    """

    def __init__(self, store: SharedStore, packer: Packer) -> None:
        self._store = store
        self._packer = packer

    @property
    def box(self) -> str:
        """This box's name."""
        return self._store.box

    def watch(self) -> dict[str, bytes | None]:
        """What other boxes tell, by box; None where it cannot be read. From now on they tell it."""
        ms = int(WATCHED_S * 1000)
        found = self._store.run(
            lambda redis: _WATCH.run(redis, [_WATCHERS, _BOXES], [self.box, ms, _TOLD])
        )
        boxes = [box.decode() for box in found[::2]]
        return {box: self._unpacked(box, v) for box, v in zip(boxes, found[1::2], strict=True)}

    def _unpacked(self, box: str, value: bytes) -> bytes | None:
        try:
            return self._packer.unpack(_TOLD + box, value)
        except Unreadable:
            return None

    def exchange(self, told: bytes = b"") -> Wanted:
        """Tell the others something, or nothing, and learn what they want."""
        value = self._packer.pack(_TOLD + self.box, told) if told else b""
        if len(value) > LARGEST:
            value = b""  # the others see it as a box that tells nothing
        keys = [_WATCHERS, _BOXES, _TOLD + self.box, _ASKED + self.box]
        watched, asked = self._store.run(
            lambda redis: _TELL.run(redis, keys, [self.box, value, int(TOLD_S * 1000)])
        )
        return Wanted(bool(watched), [each for each in map(_asked, asked) if each is not None])

    def ask(self, box: str, id: str, by: str) -> str:
        """Have another box end the calls with an id; a token for `answer_of`."""
        token = secrets.token_hex(8)
        text = compact([token, id, by])

        def work(redis: Redis) -> Any:
            with redis.pipeline(transaction=True) as several:
                several.rpush(_ASKED + box, text)
                several.pexpire(_ASKED + box, int(_ASKED_S * 1000))
                return several.execute()

        self._store.run(work)
        return token

    def answer(self, token: str, answer: Answer) -> None:
        """Tell what became of it."""
        text, ms = f"{answer.calls} {answer.silent}", int(_ANSWER_S * 1000)
        self._store.run(lambda redis: redis.set(_ANSWER + token, text, px=ms))

    def answer_of(self, token: str) -> Answer | None:
        """What became of it; None: it is not known yet."""
        found: Any = self._store.run(lambda redis: redis.get(_ANSWER + token))
        if found is None:
            return None
        calls, _, silent = found.decode().partition(" ")
        return Answer(int(calls), int(silent))


_read_asked: Final = reader(Asked)


def _asked(text: bytes) -> Asked | None:
    """What is asked; None for what is no such thing, of another version perhaps."""
    try:
        return _read_asked(text)
    except ValueError:
        return None
