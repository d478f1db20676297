"""What boxes tell each other of accounts and conversations, and which worker does it for a box."""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import sharing
from qwen_wsgi.sharing import RoutingShare, StateSharing
from qwen_wsgi.state.redis.connection import SharedStore, SharedStoreAway
from qwen_wsgi.state.redis.news import News, NewsStream
from qwen_wsgi.state.shared_files import key_of
from qwen_wsgi.upstream.routing.affinity import AFFINITY_S, TELL_AGAIN_S, Affinity
from qwen_wsgi.upstream.routing.cooldown import BREAKS_AT, Cooldowns, Told
from tests.fakes.clock import FakeClock
from tests.kit.redis_server import RedisServer, needs_redis

KEY, OTHER = key_of("account"), key_of("another")
TALK = key_of("conversation")


class Box:
    """What one worker of a box knows of accounts. Its clock has nothing in common with others'."""

    def __init__(self, url: str, name: str, booted_s: float) -> None:
        self.clock = FakeClock()
        self.clock.steady_s = booted_s
        self.store = SharedStore(url, name, self.clock)
        self.cooldowns = Cooldowns(None, boottime=self.clock.monotonic)
        self.affinity = Affinity(None, boottime=self.clock.monotonic)
        self.share = RoutingShare(NewsStream(self.store), self.cooldowns, self.affinity)


@pytest.fixture(scope="module")
def running_redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory(prefix="redis-") as name, RedisServer(Path(name)) as made:
        yield made


@pytest.fixture
def redis_server(running_redis: RedisServer) -> RedisServer:
    running_redis.command("FLUSHALL")
    return running_redis


@pytest.fixture
def boxes(redis_server: RedisServer) -> Iterator[tuple[Box, Box]]:
    made = Box(redis_server.url, "box-a", 100.0), Box(redis_server.url, "box-b", 900_000.0)
    yield made
    for each in made:
        each.store.close()


def exchange(*boxes: Box) -> None:
    for box in boxes:
        box.share.exchange()


@needs_redis
def test_a_pause_has_the_same_end_on_all_boxes(boxes: tuple[Box, Box]) -> None:
    a, b = boxes
    a.cooldowns.set_cooldown(KEY, 30.0, "throttled")
    a.clock.advance(10)
    exchange(a, b)

    assert b.cooldowns.remaining_s(KEY) == pytest.approx(20.0, abs=1.0)
    assert b.cooldowns.cause(KEY) == "throttled"
    assert b.cooldowns.remaining_s(OTHER) == 0
    # What it has learned it does not tell again.
    assert b.cooldowns.changed == {}
    exchange(a, b)
    assert a.cooldowns.remaining_s(KEY) == 20.0


@needs_redis
def test_a_worker_that_starts_late_brings_no_old_pause_back(
    boxes: tuple[Box, Box], redis_server: RedisServer
) -> None:
    a, _ = boxes
    a.cooldowns.set_cooldown(KEY, 0.02, "throttled")
    a.cooldowns.record_failure(OTHER, "unreachable")
    exchange(a)
    time.sleep(0.03)

    late = Box(redis_server.url, "box-c", 5.0)
    exchange(late)
    assert late.cooldowns.remaining_s(KEY) == 0
    assert (late.cooldowns.remaining_s(OTHER), late.cooldowns.failures(OTHER)) == (0, 1)
    late.store.close()


@needs_redis
def test_a_success_on_one_box_ends_the_pause_on_all(boxes: tuple[Box, Box]) -> None:
    a, b = boxes
    a.cooldowns.set_cooldown(KEY, 30.0, "throttled")
    exchange(a, b)
    b.clock.advance(5)
    b.cooldowns.clear(KEY, began=b.cooldowns.now())
    a.clock.advance(5)
    exchange(b, a)

    assert (a.cooldowns.remaining_s(KEY), a.cooldowns.failures(KEY)) == (0, 0)


@needs_redis
def test_a_success_that_began_before_a_failure_elsewhere_ends_nothing(
    boxes: tuple[Box, Box],
) -> None:
    a, b = boxes
    a.cooldowns.set_cooldown(KEY, 30.0, "throttled")
    exchange(a, b)
    began = b.cooldowns.now()
    for box in boxes:
        box.clock.advance(40)
    a.cooldowns.set_cooldown(KEY, 60.0, "throttled")  # which the other one does not know yet
    b.cooldowns.clear(KEY, began=began + 1)
    exchange(b, a, b)

    assert a.cooldowns.remaining_s(KEY) == 60.0
    assert b.cooldowns.remaining_s(KEY) == pytest.approx(60.0, abs=1.0)


@needs_redis
def test_a_circuit_that_one_box_opens_is_open_on_all_and_each_probes(
    boxes: tuple[Box, Box],
) -> None:
    a, b = boxes
    for number in range(BREAKS_AT):
        a.clock.advance(0.1)
        a.cooldowns.record_failure(
            KEY, "unreachable", evidence=key_of(str(number))[:4] + key_of(f"r{number}")[:4]
        )
    exchange(a, b)

    assert b.cooldowns.failures(KEY) == BREAKS_AT
    assert b.cooldowns.remaining_s(KEY) > 0
    for box in boxes:
        box.clock.advance(3)
        assert box.cooldowns.begin_probe(KEY)
        assert box.cooldowns.is_probed(KEY)
    exchange(a, b)
    assert a.cooldowns.is_probed(KEY)


def test_what_is_told_is_checked() -> None:
    clock = FakeClock()
    cooldowns = Cooldowns(None, boottime=clock.monotonic)
    cooldowns.adopt(KEY, Told(0.0, 1e9, 1, b"x"))
    cooldowns.adopt(OTHER, Told(0.0, 0.0))
    assert cooldowns.is_clear


def test_only_news_of_the_right_form_is_learned() -> None:
    cooldowns, affinity = Cooldowns(None), Affinity(None)
    news = [
        News(0.0, "cooldown", KEY, b"short"),
        News(0.0, "cooldown", b"short", struct.pack("<dI20s32s", 5.0, 1, b"", b"")),
        News(0.0, "conversation", TALK, b"short"),
        News(0.0, "weather", KEY, KEY),
    ]

    class Stream:
        def exchange(self, told: list[News]) -> tuple[list[News], bool]:
            return news, False

    stream: Any = Stream()
    RoutingShare(stream, cooldowns, affinity).exchange()
    assert cooldowns.is_clear
    assert affinity.account_of(TALK) is None


@needs_redis
def test_a_conversation_stays_at_its_account_on_all_boxes(boxes: tuple[Box, Box]) -> None:
    a, b = boxes
    a.affinity.remember(TALK, KEY)
    exchange(a, b)
    assert b.affinity.account_of(TALK) == KEY
    b.affinity.remember(TALK, KEY)
    assert b.affinity.changed == {}  # the others know

    b.clock.advance(TELL_AGAIN_S + 1)
    b.affinity.remember(TALK, KEY)
    assert b.affinity.changed == {TALK: KEY}
    b.affinity.remember(TALK, OTHER)
    a.clock.advance(TELL_AGAIN_S + 1)
    exchange(b, a)
    assert a.affinity.account_of(TALK) == OTHER


def test_news_of_a_conversation_that_is_older_or_too_old_changes_nothing() -> None:
    clock = FakeClock()
    affinity = Affinity(None, boottime=clock.monotonic)
    affinity.adopt(TALK, KEY, AFFINITY_S + 1)
    assert affinity.account_of(TALK) is None
    affinity.remember(TALK, KEY)
    affinity.adopt(TALK, OTHER, 1.0)
    assert affinity.account_of(TALK) == KEY
    assert affinity.changed is None  # there are no other boxes


def test_what_waits_is_bounded() -> None:
    cooldowns, affinity = Cooldowns(None), Affinity(None)
    cooldowns.changed, affinity.changed = {}, {}
    for number in range(5000):
        cooldowns.set_cooldown(key_of(str(number)), 5.0, "x")
        affinity.remember(key_of(str(number)), KEY)
    assert len(cooldowns.changed) == 512
    assert len(affinity.changed) == 4096


@needs_redis
def test_what_could_not_be_told_is_told_when_redis_is_back(
    boxes: tuple[Box, Box], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = boxes
    a.cooldowns.set_cooldown(KEY, 30.0, "throttled")
    a.affinity.remember(TALK, KEY)

    def away(work: object) -> object:
        raise SharedStoreAway("away")

    with monkeypatch.context() as patched:
        patched.setattr(a.store, "run", away)
        with pytest.raises(SharedStoreAway):
            exchange(a)
        a.cooldowns.clear(KEY)
    exchange(a, b)
    assert b.cooldowns.remaining_s(KEY) == 0
    assert b.affinity.account_of(TALK) == KEY


# --- what is done for a box ----------------------------------------------------------------------


def test_a_look_goes_on_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def away() -> None:
        raise SharedStoreAway("away")

    def wrong() -> None:
        raise ValueError("wrong")

    store = SharedStore("unix:///nonexistent/redis.sock", "a", FakeClock())
    shared = StateSharing(store, (away, wrong, lambda: done.append("x")), lambda: None)
    shared.look()
    assert done == ["x"]
    assert "sharing with other boxes failed" in caplog.text
    store.away = True
    shared.look()
    assert done == ["x"]
    shared.stop()
    shared._run()
    assert done == ["x"]
    assert sharing.LOOK_S * 2 < 1.0
