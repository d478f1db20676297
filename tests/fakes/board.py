"""Redis as shared logins see it, in memory; each box has a view of its own that can be cut off."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count

from qwen_wsgi.credentials.shared.board import BoardAway, Holder, Seen


@dataclass
class Entry:
    """One login, as the hash in Redis."""

    version: int = 0
    content: bytes | None = None
    holder: Holder | None = None
    spending: str = ""
    wanted: str = ""
    asks: str = ""
    boxes: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)


@dataclass
class FakeRedis:
    """What all boxes see."""

    entries: dict[str, Entry] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    #: No version comes twice, also not after a flush.
    versions: Iterator[int] = field(default_factory=lambda: count(1))

    saved: dict[str, Entry] = field(default_factory=dict)

    def save(self) -> None:
        """Write to its disk."""
        self.saved = deepcopy(self.entries)

    def restore(self) -> None:
        """Start again from what is on the disk."""
        self.entries = deepcopy(self.saved)
        self.names = set(self.entries)
        for entry in self.entries.values():
            entry.boxes, entry.left = set(), set()

    def flush(self) -> None:
        self.entries.clear()
        self.names.clear()


class FakeBoard:
    """One box's view, with the rules of the scripts in `state.redis.logins`."""

    def __init__(self, redis: FakeRedis, box: str) -> None:
        self._redis = redis
        self._box = box
        self.away = ""
        self.problem = ""

    @property
    def box(self) -> str:
        return self._box

    def _entry(self, name: str) -> Entry:
        if self.away:
            raise BoardAway(self.away)
        return self._redis.entries.setdefault(name, Entry())

    def names(self) -> frozenset[str]:
        if self.away:
            raise BoardAway(self.away)
        return frozenset(self._redis.names)

    def look(
        self, name: str, *, known: int, fence: int, wanted: str = "", asks: bool = False
    ) -> Seen:
        entry = self._entry(name)
        entry.wanted = wanted or entry.wanted
        held = entry.holder
        holds = held is not None and (held.box, held.fence) == (self._box, fence)
        if held is not None and holds:
            entry.holder = Holder(held.box, held.fence, held.keeps, held.beat + 1, held.free)
        elif asks:
            entry.asks = self._box
        if holds or not fence:
            entry.boxes.add(self._box)
            entry.left.discard(self._box)
        return Seen(
            entry.version,
            None if entry.version == known or self.problem else entry.content,
            self.problem,
            entry.holder,
            entry.spending,
            entry.wanted,
            entry.asks,
            frozenset(entry.boxes),
            frozenset(entry.left),
        )

    def put(self, name: str, content: bytes, *, version: int, fence: int) -> int:
        entry = self._entry(name)
        held = entry.holder
        if entry.version != version:
            return 0
        if fence and (held is None or (held.box, held.fence) != (self._box, fence)):
            return 0
        entry.version, entry.content, entry.wanted = next(self._redis.versions), content, ""
        self._redis.names.add(name)
        return entry.version

    def mark(self, name: str, *, fence: int, spending: str) -> bool:
        entry = self._entry(name)
        held = entry.holder
        if held is None or (held.box, held.fence) != (self._box, fence) or held.free:
            return False
        entry.spending = spending
        return True

    def claim(self, name: str, *, seen: Seen, above: int, keeps: bool, force: bool = False) -> int:
        entry = self._entry(name)
        if entry.version != seen.version or (entry.holder != seen.holder and not force):
            return 0
        before = 0 if entry.holder is None else entry.holder.fence
        entry.holder = Holder(self._box, max(before, above) + 1, keeps, 0, free=False)
        entry.asks = "" if entry.asks == self._box else entry.asks
        entry.spending = "" if force else entry.spending
        entry.boxes.add(self._box)
        entry.left.discard(self._box)
        return entry.holder.fence

    def release(self, name: str, *, fence: int, to: str = "") -> None:
        entry = self._entry(name)
        held = entry.holder
        if held is None or (held.box, held.fence) != (self._box, fence):
            return
        if to:
            entry.holder, entry.asks = Holder(to, fence + 1, False, 0, free=False), ""
        else:
            entry.holder = Holder(held.box, held.fence, held.keeps, held.beat, free=True)

    def leave(self, name: str) -> None:
        entry = self._entry(name)
        if entry.version:
            entry.boxes.discard(self._box)
            entry.left.add(self._box)
