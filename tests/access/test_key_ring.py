"""What a worker knows of the keys: soon what is new, and in doubt never too much."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import pytest

from qwen_wsgi.access.client_key import (
    ClientKey,
    KeptKey,
    KeySet,
    KeysUnavailable,
    digest_of,
)
from qwen_wsgi.access.key_ring import FRESH_S, LOOK_S, KeyRing
from tests.fakes.clock import FakeClock

ANNA = ClientKey("key_a", "anna", 0)
BEN = ClientKey("key_b", "ben", 0)


def kept(key: ClientKey, secret: bytes = b"", until: int | None = None) -> KeptKey:
    return KeptKey(key, ((digest_of(secret or key.name.encode()), until),))


class FakeStore:
    """A database as a test wants it."""

    def __init__(self, *keys: KeptKey) -> None:
        self.found = KeySet(1 if keys else 0, keys)
        self.broken = False
        self.copy: tuple[KeptKey, ...] = ()
        self.has_existed = False
        self.looks = 0
        self.reads = 0
        self.uses: list[dict[str, float]] = []

    def change(self, *keys: KeptKey) -> None:
        self.found = KeySet(self.found.number + 1, keys)

    def number(self) -> int:
        self.looks += 1
        self._check()
        return self.found.number

    def read(self) -> KeySet:
        self.reads += 1
        self._check()
        return self.found

    def kept(self) -> tuple[KeptKey, ...]:
        return self.copy

    def existed(self) -> bool:
        return self.has_existed

    def note_uses(self, uses: Mapping[str, float]) -> None:
        self._check()
        self.uses.append(dict(uses))

    def _check(self) -> None:
        if self.broken:
            raise KeysUnavailable("the disk is on fire")


class World:
    def __init__(self, *keys: KeptKey) -> None:
        self.store, self.clock = FakeStore(*keys), FakeClock()
        self.ring = KeyRing(self.store, self.clock)
        self.counts: list[int] = []
        self.ring.on_change = self.counts.append

    def name_of(self, secret: bytes) -> str | None:
        held = self.ring.find(secret)
        return None if held is None else held.key.name


def test_keys_are_found_by_their_secret_and_their_id() -> None:
    world = World(kept(ANNA), kept(BEN))

    assert world.name_of(b"anna") == "anna"
    assert world.name_of(b"nobody") is None
    assert world.ring.by_id("key_b") == BEN
    assert world.ring.by_id("key_c") is None
    assert world.ring.is_closed and world.ring.is_certain
    assert world.counts == [2]


def test_a_change_is_seen_within_the_time_of_a_look_and_costs_one_read() -> None:
    world = World(kept(ANNA))
    for _ in range(100):
        world.name_of(b"anna")
    assert (world.store.looks, world.store.reads) == (1, 1)

    world.store.change(kept(ANNA), kept(BEN))
    assert world.name_of(b"ben") is None
    world.clock.advance(LOOK_S)

    assert world.name_of(b"ben") == "ben"
    assert (world.store.looks, world.store.reads) == (2, 2)
    assert world.counts == [1, 2]


def test_what_this_worker_has_changed_itself_is_seen_at_once() -> None:
    world = World(kept(ANNA))
    assert world.name_of(b"ben") is None
    world.store.change(kept(BEN))

    world.ring.look_again()

    assert world.name_of(b"ben") == "ben"
    assert world.name_of(b"anna") is None


def test_revoked_and_expired_keys_are_known_but_not_counted() -> None:
    revoked = ClientKey("key_r", "r", 0, revoked_at=1)
    expired = ClientKey("key_e", "e", 0, expires_at=1)
    world = World(kept(revoked), kept(expired), kept(ANNA))

    assert world.ring.count() == 1
    assert world.name_of(b"r") == "r"
    assert world.ring.is_closed


def test_without_any_key_it_is_open_and_a_look_is_all_it_costs() -> None:
    world = World()

    assert not world.ring.is_closed
    assert world.ring.is_certain
    assert world.ring.count() == 0


def test_a_ring_without_a_store_never_looks() -> None:
    ring = KeyRing(None, FakeClock())
    ring.look_again()
    ring.used(ANNA)
    ring.write_uses()

    assert not ring.is_closed
    assert ring.find(b"x") is None


def test_while_the_database_cannot_be_read_what_is_known_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(kept(ANNA))
    world.name_of(b"anna")
    world.store.broken = True
    with caplog.at_level(logging.ERROR, "qwen_wsgi"):
        for _ in range(300):  # 75 s
            world.clock.advance(LOOK_S)
            assert world.name_of(b"anna") == "anna"

    assert world.name_of(b"ben") is None
    assert not world.ring.is_certain
    assert world.ring.is_closed
    assert len(caplog.records) == 2  # once a minute
    assert "the 1 keys that this worker knows go on" in caplog.text
    assert "the disk is on fire" in caplog.text

    world.store.broken = False
    world.store.change(kept(BEN))
    world.clock.advance(LOOK_S)
    assert world.name_of(b"ben") == "ben"
    assert world.ring.is_certain


def test_after_a_restart_without_a_database_the_copy_has_the_keys() -> None:
    world = World()
    world.store.broken = True
    world.store.copy, world.store.has_existed = (kept(ANNA),), True

    assert world.name_of(b"anna") == "anna"
    assert world.ring.is_closed
    assert not world.ring.is_certain


def test_after_a_restart_without_either_nobody_is_served_without_a_key() -> None:
    world = World()
    world.store.broken = world.store.has_existed = True

    assert world.ring.is_closed
    assert not world.ring.is_certain
    assert world.name_of(b"anna") is None


def test_a_broken_database_that_never_had_keys_closes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.store.broken = True

    before = (world.ring.is_closed, world.ring.is_certain)
    assert before == (False, True)
    assert caplog.records == []

    # Another process can use it, and makes the first key.
    world.store.copy, world.store.has_existed = (kept(ANNA),), True
    world.clock.advance(LOOK_S)
    assert world.ring.is_closed
    assert world.name_of(b"anna") == "anna"


def test_keys_that_vanish_from_database_and_copy_stay_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(kept(ANNA))
    world.name_of(b"anna")
    world.store.found = KeySet(0, ())
    world.clock.advance(LOOK_S)

    with caplog.at_level(logging.ERROR, "qwen_wsgi"):
        assert world.name_of(b"anna") == "anna"

    assert world.ring.is_closed
    assert not world.ring.is_certain
    assert "has no client keys any more" in caplog.text


def test_uses_are_written_together_and_once_a_minute_for_each_key() -> None:
    world = World(kept(ANNA), kept(BEN))
    now = world.clock.now()
    world.ring.used(ANNA)
    world.ring.used(ANNA)
    assert world.store.uses == []

    world.ring.write_uses()
    world.ring.write_uses()
    assert world.store.uses == [{"key_a": now}]

    world.clock.advance(30)
    world.ring.used(ANNA)
    world.ring.used(BEN)
    world.ring.write_uses()
    assert world.store.uses[1:] == [{"key_b": now + 30}]

    world.clock.advance(30)
    world.ring.write_uses()
    assert world.store.uses[2:] == [{"key_a": now + 30}]


def test_uses_that_cannot_be_written_are_written_later() -> None:
    world = World(kept(ANNA))
    world.ring.used(ANNA)
    world.store.broken = True
    world.ring.write_uses()
    world.store.broken = False

    world.ring.write_uses()

    assert [list(uses) for uses in world.store.uses] == [["key_a"]]


def test_a_call_waits_for_a_look_only_where_what_is_known_is_old() -> None:
    store, clock, waiting = FakeStore(kept(ANNA)), FakeClock(), list[Callable[[], None]]()
    ring = KeyRing(store, clock, later=waiting.append)
    assert ring.find(b"anna") is not None
    assert (store.looks, waiting) == (1, [])

    store.change(kept(BEN))
    clock.advance(LOOK_S)
    assert ring.find(b"anna") is not None  # the look goes on beside it
    assert (store.looks, len(waiting)) == (1, 1)
    waiting.pop()()
    assert ring.find(b"anna") is None

    # The latest look has not ended: what is known gets too old to be gone on with.
    clock.advance(LOOK_S)
    ring.find(b"ben")
    store.change(kept(ANNA))
    clock.advance(FRESH_S)
    assert ring.find(b"anna") is not None
    assert len(waiting) == 1


def test_a_look_that_fails_makes_nothing_new() -> None:
    store, clock, waiting = FakeStore(kept(ANNA)), FakeClock(), list[Callable[[], None]]()
    ring = KeyRing(store, clock, later=waiting.append)
    ring.look()
    store.broken = True
    clock.advance(FRESH_S)
    ring.look()
    store.broken = False
    store.change(kept(BEN))
    clock.advance(LOOK_S)

    assert ring.find(b"ben") is not None
    assert waiting == []
