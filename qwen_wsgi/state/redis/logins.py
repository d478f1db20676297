"""Keeps shared logins in Redis: one hash per login, and a set of their names.

Each hash has `version`, `record` (sealed) and `key` (the id of the key that sealed it); `holder`,
`fence`, `keeps`, `beat` and `free` of the box that renews it; `spending`, `wanted`, `asks` and
`boxes`; see `credentials.shared.board`. No entry expires by itself: silence is judged by who
watches, so that no clock of Redis's machine can end a lease early.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Sequence
from typing import Any, Final

from qwen_wsgi.credentials.shared.board import BoardAway, Holder, Seen, Unsealed
from qwen_wsgi.state.redis.connection import PREFIX, Lua, SharedStore, SharedStoreAway
from qwen_wsgi.state.redis.sealing import Damaged, Seal, WrongKey

_NAMES: Final = f"{PREFIX}logins"

#: Begins each script that knows which boxes there are: `boxes` is the run of Redis, then the boxes
#: that have looked in it, with a minus those that have left.
_BOXES: Final = """
local function boxes_of(key)
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local boxes = redis.call('HGET', key, 'boxes')
  if not boxes or string.sub(boxes, 1, #run) ~= run then boxes = run .. ' ' end
  return boxes
end
local function put_box(key, box, sign)
  local boxes, rest = boxes_of(key), ''
  for each in string.gmatch(boxes, '%S+') do
    if each ~= box and each ~= '-' .. box then rest = rest .. each .. ' ' end
  end
  redis.call('HSET', key, 'boxes', rest .. sign .. box .. ' ')
end
"""

#: ARGV: box, fence or 0, wanted or "", asks ("1" or ""), the version that is known.
_LOOK: Final = Lua(
    _BOXES
    + """
local key = KEYS[1]
if ARGV[3] ~= '' then redis.call('HSET', key, 'wanted', ARGV[3]) end
local held = redis.call('HMGET', key, 'holder', 'fence')
local holds = held[1] == ARGV[1] and held[2] == ARGV[2]
if holds then
  redis.call('HINCRBY', key, 'beat', 1)
elseif ARGV[4] == '1' then
  redis.call('HSET', key, 'asks', ARGV[1])
end
if holds or ARGV[2] == '0' then put_box(key, ARGV[1], '') end
local found = redis.call('HMGET', key, 'version', 'key', 'holder', 'fence', 'keeps', 'beat',
  'free', 'spending', 'wanted', 'asks')
found[11] = false
if found[1] and found[1] ~= ARGV[5] then found[11] = redis.call('HGET', key, 'record') end
found[12] = boxes_of(key)
return found
"""
)

#: ARGV: box, fence or 0, version, the next one, record, the keys whose records may be replaced (the
#: first one is its own), the name.
_PUT: Final = Lua(
    """
local key = KEYS[1]
local there = redis.call('HMGET', key, 'version', 'key', 'holder', 'fence')
if (there[1] or '0') ~= ARGV[3] then return 0 end
if ARGV[2] ~= '0' and (there[3] ~= ARGV[1] or there[4] ~= ARGV[2]) then return 0 end
local known = not there[2]
for i = 6, #ARGV - 1 do known = known or there[2] == ARGV[i] end
if not known then return -1 end
redis.call('HSET', key, 'version', ARGV[4], 'record', ARGV[5], 'key', ARGV[6])
redis.call('HDEL', key, 'wanted')
redis.call('SADD', KEYS[2], ARGV[#ARGV])
return 1
"""
)

#: ARGV: box, fence, spending or "".
_MARK: Final = Lua(
    """
local held = redis.call('HMGET', KEYS[1], 'holder', 'fence', 'free')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] or held[3] then return 0 end
redis.call('HSET', KEYS[1], 'spending', ARGV[3])
return 1
"""
)

#: ARGV: box, the version and the holder's entry that were seen, the fence to exceed, keeps, force.
_CLAIM: Final = Lua(
    _BOXES
    + """
local key = KEYS[1]
local there = redis.call('HMGET', key, 'version', 'holder', 'fence', 'beat', 'free', 'asks')
if (there[1] or '0') ~= ARGV[2] then return 0 end
local entry = ''
if there[2] then
  entry = there[2] .. ' ' .. there[3] .. ' ' .. there[4] .. ' ' .. (there[5] or '')
end
if entry ~= ARGV[3] and ARGV[6] ~= '1' then return 0 end
local fence = math.max(tonumber(there[3] or '0'), tonumber(ARGV[4])) + 1
redis.call('HSET', key, 'holder', ARGV[1], 'fence', fence, 'keeps', ARGV[5], 'beat', 0)
redis.call('HDEL', key, 'free')
if there[6] == ARGV[1] then redis.call('HDEL', key, 'asks') end
if ARGV[6] == '1' then redis.call('HDEL', key, 'spending') end
put_box(key, ARGV[1], '')
return fence
"""
)

#: ARGV: box, fence, the box that gets the right or "".
_RELEASE: Final = Lua(
    """
local key = KEYS[1]
local held = redis.call('HMGET', key, 'holder', 'fence')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('HSET', key, 'free', 1)
else
  redis.call('HSET', key, 'holder', ARGV[3], 'fence', held[2] + 1, 'keeps', 0, 'beat', 0)
  redis.call('HDEL', key, 'asks')
end
return 1
"""
)


#: ARGV: box.
_LEAVE: Final = Lua(
    _BOXES
    + """
if redis.call('HGET', KEYS[1], 'version') then put_box(KEYS[1], ARGV[1], '-') end
return 1
"""
)


class RedisLogins:
    """The shared place of logins, for `credentials.shared`.

    Args:
        secrets: QWEN_PROXY_STATE_KEY, and the one before it: records of both are read and replaced.
    """

    def __init__(self, store: SharedStore, secrets: Sequence[str]) -> None:
        self._store = store
        self._seal = Seal(secrets)

    @property
    def box(self) -> str:
        """See `Board`."""
        return self._store.box

    @property
    def away(self) -> str:
        """See `Board`."""
        store = self._store
        return _away(store.since, store.reason) if store.away else ""

    def names(self) -> frozenset[str]:
        """See `Board`."""
        try:
            found: Any = self._store.run(lambda redis: redis.smembers(_NAMES))
        except SharedStoreAway as error:
            raise BoardAway(self.away or str(error)) from None
        return frozenset(_text(each) for each in found)

    def look(
        self, name: str, *, known: int, fence: int, wanted: str = "", asks: bool = False
    ) -> Seen:
        """See `Board`."""
        found = self._run(_LOOK, name, self.box, fence, wanted, "1" if asks else "", known)
        version, key, holder, held, keeps, beat, free, spending, wants, asking, sealed, boxes = (
            found
        )
        there = _text(boxes).split()[1:]
        content, problem = None, ""
        if sealed is not None:
            content, problem = self._opened(name, sealed)
        elif version is not None and _text(key) not in self._seal.key_ids:
            problem = self._sealed_by_other(_text(key))
        return Seen(
            int(version or 0),
            content,
            problem,
            None
            if holder is None
            else Holder(
                _text(holder), int(held or 0), _text(keeps) == "1", int(beat or 0), free is not None
            ),
            _text(spending),
            _text(wants),
            _text(asking),
            frozenset(each for each in there if not each.startswith("-")),
            frozenset(each[1:] for each in there if each.startswith("-")),
        )

    def put(self, name: str, content: bytes, *, version: int, fence: int) -> int:
        """See `Board`."""
        sealed, ids = self._seal.seal(name, content), self._seal.key_ids
        # Random, because a counter would begin anew when Redis is flushed.
        new = secrets.randbits(62) + 1
        done = self._run(_PUT, name, self.box, fence, version, new, sealed, *ids, name)
        if done < 0:
            raise Unsealed("Redis has a login that was sealed with another QWEN_PROXY_STATE_KEY")
        return new if done else 0

    def mark(self, name: str, *, fence: int, spending: str) -> bool:
        """See `Board`."""
        return bool(self._run(_MARK, name, self.box, fence, spending))

    def claim(self, name: str, *, seen: Seen, above: int, keeps: bool, force: bool = False) -> int:
        """See `Board`."""
        holder, entry = seen.holder, ""
        if holder is not None:
            free = "1" if holder.free else ""
            entry = f"{holder.box} {holder.fence} {holder.beat} {free}"
        return int(
            self._run(
                _CLAIM,
                name,
                self.box,
                seen.version,
                entry,
                above,
                "1" if keeps else "0",
                "1" if force else "",
            )
        )

    def release(self, name: str, *, fence: int, to: str = "") -> None:
        """See `Board`."""
        self._run(_RELEASE, name, self.box, fence, to)

    def leave(self, name: str) -> None:
        """See `Board`."""
        self._run(_LEAVE, name, self.box)

    def _run(self, script: Lua, name: str, *arguments: object) -> Any:
        keys = (f"{PREFIX}login:{name}", _NAMES)
        try:
            return self._store.run(lambda redis: script.run(redis, keys, arguments))
        except SharedStoreAway as error:
            raise BoardAway(self.away or str(error)) from None

    def _opened(self, name: str, sealed: bytes) -> tuple[bytes | None, str]:
        try:
            return self._seal.open(name, sealed), ""
        except WrongKey as error:
            return None, self._sealed_by_other(error.key_id)
        except Damaged as error:
            return None, f"the login in Redis cannot be read: {error}"

    def _sealed_by_other(self, key_id: str) -> str:
        return (
            "the login in Redis was sealed with another QWEN_PROXY_STATE_KEY (id "
            f"{key_id}; this box's is {self._seal.key_id}): set the same one on all boxes"
        )


def _away(since_s: float | None, reason: str) -> str:
    since = datetime.datetime.fromtimestamp(since_s or 0, datetime.UTC)
    return f"Redis has been away since {since:%H:%M:%S} UTC: {reason}"


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)
