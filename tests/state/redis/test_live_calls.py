"""What boxes tell of their calls: to those that watch, for some seconds, sealed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from qwen_wsgi.state.redis import live_calls as module
from qwen_wsgi.state.redis.connection import SharedStore, SharedStoreAway
from qwen_wsgi.state.redis.live_calls import Answer, LiveCalls
from qwen_wsgi.state.redis.sealing import Seal
from qwen_wsgi.state.redis.values import Packer
from tests.fakes.clock import FakeClock
from tests.kit.redis_server import RedisServer, needs_redis
from tests.kit.secrets import secret

pytestmark = needs_redis

KEY = secret("key-of-live-calls") + "-0123456789abcdef"


@pytest.fixture
def boxes(redis_server: RedisServer) -> Iterator[tuple[LiveCalls, LiveCalls]]:
    stores = [SharedStore(redis_server.url, box, FakeClock()) for box in ("box-a", "box-b")]
    a, b = (LiveCalls(store, Packer(Seal((KEY,)))) for store in stores)
    yield a, b
    for each in stores:
        each.close()


def test_a_box_tells_while_another_one_watches(
    boxes: tuple[LiveCalls, LiveCalls], redis_server: RedisServer
) -> None:
    a, b = boxes
    assert not b.exchange().is_watched
    assert redis_server.command("KEYS", "qwen-proxy:live:*") == []

    assert a.watch() == {}
    assert not a.exchange().is_watched  # it knows its own calls
    assert b.exchange().is_watched
    b.exchange(b"calls of anna")

    assert a.watch() == {"box-b": b"calls of anna"}
    stored = redis_server.command("GET", "qwen-proxy:live:told:box-b")
    assert isinstance(stored, bytes)
    assert b"anna" not in stored


def test_all_of_it_is_gone_soon(
    boxes: tuple[LiveCalls, LiveCalls],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WATCHED_S", "TOLD_S", "_ASKED_S", "_ANSWER_S"):
        monkeypatch.setattr(module, name, 0.05)
    a, b = boxes
    a.watch()
    b.exchange(b"calls")
    b.answer(a.ask("box-c", "x", "anna"), Answer(1, 0))
    time.sleep(0.1)
    assert redis_server.command("KEYS", "qwen-proxy:live:*") == []  # though nobody looks again
    assert not b.exchange().is_watched
    assert a.watch() == {}
    time.sleep(0.1)
    assert redis_server.command("KEYS", "qwen-proxy:live:*") == []


def test_a_call_of_another_box_is_asked_for_once(boxes: tuple[LiveCalls, LiveCalls]) -> None:
    a, b = boxes
    token = a.ask("box-b", "req_1", "anna")
    assert a.exchange().asked == []
    assert a.answer_of(token) is None

    (asked,) = b.exchange().asked
    assert asked == (token, "req_1", "anna")
    assert b.exchange().asked == []
    b.answer(asked.token, Answer(2, 1))
    assert a.answer_of(token) == (2, 1)


def test_what_cannot_be_read_or_is_too_large(
    boxes: tuple[LiveCalls, LiveCalls], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = boxes
    redis_server.command("SET", "qwen-proxy:live:told:box-b", "1sealed by another key")
    redis_server.command("SADD", "qwen-proxy:live:boxes", "box-b")
    redis_server.command("RPUSH", "qwen-proxy:live:asked:box-b", "{", '["too", "short"]')
    assert a.watch() == {"box-b": None}
    assert b.exchange().asked == []

    redis_server.command("DEL", "qwen-proxy:live:told:box-b")
    monkeypatch.setattr(module, "LARGEST", 20)
    assert b.exchange(b"so much").is_watched
    assert a.watch() == {}


def test_redis_is_away(boxes: tuple[LiveCalls, LiveCalls], redis_server: RedisServer) -> None:
    redis_server.kill()
    with pytest.raises(SharedStoreAway):
        boxes[0].watch()
    redis_server.start()
