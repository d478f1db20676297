"""What clients have stored, for all boxes: responses, and the facts about files, batches, videos.

Of each kind there is one hash per record, `rec:<name>`, with

- `v`: the value, packed (`values`); `n`: its bytes before;
- `p`: the name of the record that it continues, or "";
- `s`: the box that still makes it, or "" once it is whole; `d`: when it has to be whole (ms).

Beside them: `use`, the names by their last use; `sizes` and `total`, in bytes; `gone:<name>` for a
while after a record was deleted, so that a box which is behind does not bring it back; and for each
owner the names of its records by age. Times are Redis's own, so that clocks of boxes do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qwen_wsgi.state.redis.connection import PREFIX, Lua, SharedStore
from qwen_wsgi.state.redis.news import START, order_of
from qwen_wsgi.state.redis.values import Packer

if TYPE_CHECKING:
    from redis import Redis

#: Packed. More takes too long for one question to Redis: it stays on its box.
LARGEST: Final = 4 * 1024 * 1024
#: What a record takes besides its value, about. Bytes.
_OVERHEAD: Final = 512
#: How long it is remembered that a record was deleted: longer than a response in the background is
#: made, and than hosts keep videos.
GONE_S: Final = 2 * 86_400.0
#: Of packed values that one question brings.
_BYTES_AT_A_TIME: Final = 1024 * 1024
#: Names of a list whose values one question brings.
_ROWS_AT_A_TIME: Final = 100
#: Orders that are kept, about, and read at a time.
_MOST_ORDERS: Final = 100_000
_ORDERS_AT_A_TIME: Final = 100
#: A box that is new reads the orders of so many seconds: it may have stored something since.
_NEW_S: Final = 60

_ORDERS: Final = f"{PREFIX}orders"
_EPOCH: Final = f"{PREFIX}epoch"

#: In front of each script: `base`, `now`, and how a record goes, with all that is known of it.
_COMMON: Final = """
local base, at = KEYS[1], redis.call('TIME')
local now = at[1] * 1000 + math.floor(at[2] / 1000)
local function forget(name)
  local size = redis.call('HGET', base .. 'sizes', name)
  if size then
    redis.call('HDEL', base .. 'sizes', name)
    redis.call('DECRBY', base .. 'total', size)
  end
  redis.call('ZREM', base .. 'use', name)
  return redis.call('DEL', base .. 'rec:' .. name)
end
local function used(name, ttl)
  redis.call('ZADD', base .. 'use', now, name)
  if ttl > 0 then redis.call('PEXPIRE', base .. 'rec:' .. name, ttl) end
end
"""

#: ARGV: name, value, bytes before, previous, maker, ms left, ttl in ms (0: none), the most bytes,
#: owner ("": not listed), age by which it is listed, bytes besides the value. 1: done, 0: it was
#: deleted, -1: it is whole.
_PUT: Final = Lua(
    _COMMON
    + """
local name, ttl, most = ARGV[1], tonumber(ARGV[7]), tonumber(ARGV[8])
if redis.call('EXISTS', base .. 'gone:' .. name) == 1 then return 0 end
if ARGV[5] ~= '' and redis.call('HGET', base .. 'rec:' .. name, 's') == '' then return -1 end
forget(name)
if ttl > 0 then
  local old = redis.call('ZRANGEBYSCORE', base .. 'use', '-inf', now - ttl, 'LIMIT', 0, 100)
  for _, each in ipairs(old) do forget(each) end
end
local size = #ARGV[2] + tonumber(ARGV[11])
while tonumber(redis.call('GET', base .. 'total') or '0') + size > most do
  local oldest = redis.call('ZRANGE', base .. 'use', 0, 0)[1]
  if not oldest then break end
  forget(oldest)
end
redis.call('HSET', base .. 'rec:' .. name, 'v', ARGV[2], 'n', ARGV[3], 'p', ARGV[4],
  's', ARGV[5], 'd', now + ARGV[6])
redis.call('HSET', base .. 'sizes', name, size)
redis.call('INCRBY', base .. 'total', size)
used(name, ttl)
if ARGV[9] ~= '' then
  local list = base .. 'of:' .. ARGV[9]
  redis.call('ZADD', list, ARGV[10], name)
  if ttl > 0 then redis.call('PEXPIRE', list, ttl) end
end
return 1
"""
)

#: ARGV: name, ttl. The value, maker, deadline, Redis's time; or whether it was deleted.
_GET: Final = Lua(
    _COMMON
    + """
local found = redis.call('HMGET', base .. 'rec:' .. ARGV[1], 'v', 's', 'd')
if not found[1] then return redis.call('EXISTS', base .. 'gone:' .. ARGV[1]) end
used(ARGV[1], tonumber(ARGV[2]))
return {found[1], found[2], found[3], now}
"""
)

#: ARGV: name, ttl, the most steps. Names and bytes of a record and all that it continues.
_CHAIN: Final = Lua(
    _COMMON
    + """
local chain, seen, name = {}, {}, ARGV[1]
while name ~= '' and not seen[name] and #chain < tonumber(ARGV[3]) do
  local found = redis.call('HMGET', base .. 'rec:' .. name, 'n', 'p', 's')
  if not found[1] or found[3] ~= '' then break end
  seen[name] = true
  used(name, tonumber(ARGV[2]))
  chain[#chain + 1] = {name, found[1]}
  name = found[2]
end
return chain
"""
)

#: ARGV: name, how long to remember in ms, owner in lists, then box, kind, owner, id of the order;
#: and how many orders are kept.
_DELETE: Final = Lua(
    _COMMON
    + """
redis.call('ZREM', base .. 'of:' .. ARGV[3], ARGV[1])
redis.call('SET', base .. 'gone:' .. ARGV[1], 1, 'PX', ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*', 'what', 'delete', 'box', ARGV[4],
  'kind', ARGV[5], 'owner', ARGV[6], 'id', ARGV[7])
return forget(ARGV[1])
"""
)

#: No conversation has so many turns.
_MOST_STEPS: Final = 100_000


class Gone:
    """Stands for a record that was deleted."""


GONE: Final = Gone()


class Found(NamedTuple):
    """A record.

    Attributes:
        value: as it was put.
        maker: the box that still makes it; "" once it is whole.
        late_s: for how long it should have been whole; negative before that.
    """

    value: bytes
    maker: str = ""
    late_s: float = 0.0


class Order(NamedTuple):
    """What other boxes are to do about something that they may have.

    Attributes:
        what: `delete`: forget it; `cancel`: the box that makes it is to end it.
        box: who says so; of a `cancel`, who is to do it.
    """

    what: str
    box: str
    kind: str
    owner: str
    id: str


class Orders(NamedTuple):
    """What was read of the orders: how far, the orders, and what stands for Redis's data."""

    position: str
    found: list[Order]
    epoch: str


class Records:
    """The records of one kind.

    Args:
        ttl_s: how long what nobody uses is kept; 0 for ever.
        max_bytes: of all together, packed; the records that were not used for the longest go first.
        listed: whether there is a list of each owner's.
    """

    def __init__(
        self,
        store: SharedStore,
        packer: Packer,
        kind: str,
        *,
        ttl_s: float,
        max_bytes: int,
        listed: bool = False,
    ) -> None:
        self._store = store
        self._packer = packer
        self._kind = kind
        self._base = f"{PREFIX}{kind}:"
        self._ttl_ms = int(ttl_s * 1000)
        self._max_bytes = max_bytes
        self._listed = listed

    @property
    def box(self) -> str:
        """This box's name."""
        return self._store.box

    def put(
        self,
        owner: str,
        id: str,
        value: bytes,
        *,
        previous: str | None = None,
        maker: str = "",
        left_s: float = 0.0,
        age: float = 0.0,
    ) -> bool:
        """Keep a record; one with the same id is replaced, but a whole one by no unfinished one.

        Args:
            previous: the id of the record that it continues.
            maker: the box that still makes it, which has so many seconds left.
            age: by which it is listed; the greatest is the latest.

        Returns:
            False if it was deleted: nothing was kept.

        Raises:
            TooLarge: see there.
            SharedStoreAway: it is perhaps kept, perhaps not.
        """
        name = _name(owner, id)
        packed = self._packer.pack(self._bound(name), value)
        if len(packed) + _OVERHEAD > (most := min(LARGEST, self._max_bytes)):
            raise TooLarge(f"packed it has {len(packed)} bytes of at most {most}")
        arguments = (
            *(name, packed, len(value), _name(owner, previous) if previous else ""),
            *(maker, int(left_s * 1000), self._ttl_ms, self._max_bytes),
            *(_of(owner) if self._listed else "", age, _OVERHEAD),
        )
        return bool(self._run(_PUT, *arguments))

    def get(self, owner: str, id: str) -> Found | Gone | None:
        """A record, or `GONE` if it was deleted lately.

        Raises:
            SharedStoreAway: nobody knows.
            Unreadable: it was sealed with another key.
        """
        name = _name(owner, id)
        found = self._run(_GET, name, self._ttl_ms)
        if isinstance(found, int):
            return GONE if found else None
        value, maker, deadline_ms, now_ms = found
        late_s = (int(now_ms) - int(deadline_ms)) / 1000
        return Found(self._packer.unpack(self._bound(name), value), maker.decode(), late_s)

    def chain(self, owner: str, id: str, *, most: int) -> tuple[list[bytes], int]:
        """A whole record and all that it continues, as far as they are there, the latest first; and
        their bytes. Nothing is read if they have more than `most`.

        Raises: as `get`.
        """
        chain = self._run(_CHAIN, _name(owner, id), self._ttl_ms, _MOST_STEPS)
        size = sum(int(each) for _, each in chain)
        if size > most:
            return [], size
        names = [name.decode() for name, _ in chain]
        sizes = [min(int(each), LARGEST) for _, each in chain]
        values: list[bytes] = []
        for part in _parts(names, sizes):
            for name, value in zip(part, self._values(part), strict=True):
                if value is None:
                    return values, size  # it went in this moment
                values.append(self._packer.unpack(self._bound(name), value))
        return values, size

    def touch(self, owner: str, ids: Iterable[str]) -> None:
        """Records, and all that they continue, are used now. Raises SharedStoreAway."""
        for id in ids:
            self._run(_CHAIN, _name(owner, id), self._ttl_ms, _MOST_STEPS)

    def delete(self, owner: str, id: str) -> bool:
        """Forget a record, and tell all boxes so; whether it was there. Raises SharedStoreAway."""
        order = (self._store.box, self._kind, owner, id)
        arguments = (_name(owner, id), int(GONE_S * 1000), _of(owner), *order, _MOST_ORDERS)
        return bool(self._run(_DELETE, *arguments))

    def count(self, owner: str) -> int:
        """How many the owner has, where they are listed. Raises SharedStoreAway."""
        return int(self._store.run(lambda redis: redis.zcard(self._list(owner))))

    def page(
        self,
        owner: str,
        *,
        limit: int,
        after: str = "",
        oldest_first: bool = False,
        wanted: Callable[[bytes], bool] = lambda value: True,
    ) -> tuple[list[bytes], bool] | None:
        """Some records of the owner, and whether there are more; None if there is none `after`.

        Raises: as `get`.
        """
        listed: Any = self._store.run(
            lambda redis: redis.zrange(self._list(owner), 0, -1, desc=not oldest_first)
        )
        names: list[str] = [name.decode() for name in listed]
        if after:
            if (last := _name(owner, after)) not in names:
                return None
            names = names[names.index(last) + 1 :]
        values: list[bytes] = []
        for part in _parts(names, [_BYTES_AT_A_TIME // _ROWS_AT_A_TIME] * len(names)):
            for name, value in zip(part, self._values(part), strict=True):
                if value is None:  # it has expired, or made room
                    self._unlist(owner, name)
                    continue
                unpacked = self._packer.unpack(self._bound(name), value)
                if wanted(unpacked):
                    values.append(unpacked)
                if len(values) > limit:
                    return values[:limit], True
        return values, False

    def _unlist(self, owner: str, name: str) -> None:
        self._store.run(lambda redis: redis.zrem(self._list(owner), name))

    def _values(self, names: Sequence[str]) -> list[bytes | None]:
        def ask(redis: Redis) -> Any:
            with redis.pipeline(transaction=False) as several:
                for name in names:
                    several.hget(f"{self._base}rec:{name}", "v")
                return several.execute()

        found: list[bytes | None] = self._store.run(ask)
        return found

    def _run(self, script: Lua, *arguments: Any) -> Any:
        return self._store.run(lambda redis: script.run(redis, [self._base, _ORDERS], arguments))

    def _bound(self, name: str) -> str:
        """What a sealed value belongs to."""
        return f"{self._kind}:{name}"

    def _list(self, owner: str) -> str:
        return f"{self._base}of:{_of(owner)}"


class TooLarge(Exception):
    """A value is too large to be shared: it stays on its box."""


class OrderStream:
    """What boxes tell each other to do."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    def cancel(self, box: str, owner: str, id: str) -> None:
        """Have the box that makes a response end it. Raises SharedStoreAway."""
        fields: Any = {"what": "cancel", "box": box, "kind": "response", "owner": owner, "id": id}
        self._store.run(
            lambda redis: redis.xadd(_ORDERS, fields, maxlen=_MOST_ORDERS, approximate=True)
        )

    def read(self, position: str) -> Orders:
        """The next orders for this box.

        Args:
            position: of the call before; "" reads those of the last minute.

        Raises:
            SharedStoreAway: nobody knows.
        """
        if not position:
            seconds, _ = self._store.run(lambda redis: redis.time())
            position = f"{(seconds - _NEW_S) * 1000}-0"
        epoch, found, newest = self._store.run(lambda redis: _ask_orders(redis, position))
        known = (epoch or b"").decode()
        entries = found[0][1] if found else []
        if newest and order_of(newest[0][0].decode()) < order_of(position):
            # It was emptied, and Redis's clock put back.
            return Orders(START, [], known)
        orders = []
        for _, fields in entries:
            texts = {name.decode(): value.decode() for name, value in fields.items()}
            order = Order._make(texts.get(name, "") for name in Order._fields)
            if (order.box == self._store.box) == (order.what == "cancel"):
                orders.append(order)
        return Orders(entries[-1][0].decode() if entries else position, orders, known)


def _ask_orders(redis: Redis, position: str) -> Any:
    with redis.pipeline(transaction=False) as several:
        several.get(_EPOCH)
        several.xread({_ORDERS: position}, count=_ORDERS_AT_A_TIME)
        several.xrevrange(_ORDERS, count=1)
        return several.execute()


def _parts(names: Sequence[str], sizes: Sequence[int]) -> Iterable[list[str]]:
    """The names in parts of about a megabyte."""
    part: list[str] = []
    held = 0
    for name, size in zip(names, sizes, strict=True):
        if part and held + size > _BYTES_AT_A_TIME:
            yield part
            part, held = [], 0
        part.append(name)
        held += size
    if part:
        yield part


def _name(owner: str, id: str) -> str:
    """The name of a record, which reveals neither."""
    return hashlib.blake2b(f"{owner}\0{id}".encode(errors="replace"), digest_size=16).hexdigest()


def _of(owner: str) -> str:
    return hashlib.blake2b(owner.encode(errors="replace"), digest_size=8).hexdigest()
