"""News of accounts: told with their age, read once, kept for who starts later."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from qwen_wsgi.state.redis import news as module
from qwen_wsgi.state.redis.connection import SharedStore, SharedStoreAway
from qwen_wsgi.state.redis.news import News, NewsStream
from tests.fakes.clock import FakeClock
from tests.kit.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


@pytest.fixture
def stores(redis_server: RedisServer) -> Iterator[list[SharedStore]]:
    made = [SharedStore(redis_server.url, box, FakeClock()) for box in ("box-a", "box-b")]
    yield made
    for each in made:
        each.close()


def piece(age_s: float = 0.0, key: bytes = b"\x00key") -> News:
    return News(age_s, "cooldown", key, b"\xffvalue")


def test_news_are_read_once_by_the_others(stores: list[SharedStore]) -> None:
    a, b = map(NewsStream, stores)
    assert a.exchange([piece(5.0), piece(-1.0)]) == ([], False)
    time.sleep(0.02)

    (first, second), more = b.exchange([])
    assert (first.topic, first.key, first.value, more) == (
        "cooldown",
        b"\x00key",
        b"\xffvalue",
        False,
    )
    assert 5.01 < first.age_s < 6
    assert 0.01 < second.age_s < 1
    assert b.exchange([]) == ([], False)
    assert len(NewsStream(stores[1]).exchange([])[0]) == 2


def test_more_news_than_one_look_brings(
    stores: list[SharedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_A_TIME", 2)
    a, b = map(NewsStream, stores)
    a.exchange([piece(key=bytes([each])) for each in range(3)])

    first, more = b.exchange([])
    second, rest = b.exchange([])
    assert ([n.key for n in first], more) == ([b"\0", b"\1"], True)
    assert ([n.key for n in second], rest) == ([b"\2"], False)


def test_a_stream_that_was_emptied_while_the_clock_was_put_back(
    stores: list[SharedStore], redis_server: RedisServer
) -> None:
    a, b = map(NewsStream, stores)
    redis_server.command("XADD", "qwen-proxy:news", "9999999999999-1", "box", "box-x")
    assert b.exchange([]) == ([], False)  # it is none
    redis_server.command("DEL", "qwen-proxy:news")
    a.exchange([piece()])

    assert b.exchange([]) == ([], True)
    assert len(b.exchange([])[0]) == 1


@pytest.mark.parametrize("age", ["nan", "inf", "x"])
def test_what_is_no_news_is_left_out(
    stores: list[SharedStore], redis_server: RedisServer, age: str
) -> None:
    fields = ("box", "c", "topic", "cooldown", "key", "k", "value", "v", "age", age)
    redis_server.command("XADD", "qwen-proxy:news", "*", *fields)
    assert NewsStream(stores[0]).exchange([]) == ([], False)


def test_nothing_is_told_while_redis_is_away() -> None:
    store = SharedStore("unix:///nonexistent/redis.sock", "box-a", FakeClock())
    with pytest.raises(SharedStoreAway):
        NewsStream(store).exchange([piece()])
    store.close()
