"""Records that boxes share: kept within a bound, used, deleted for good, and told in order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwen_wsgi.state.redis import records as module
from qwen_wsgi.state.redis.connection import SharedStore
from qwen_wsgi.state.redis.records import (
    GONE,
    LARGEST,
    Found,
    Order,
    OrderStream,
    Records,
    TooLarge,
)
from qwen_wsgi.state.redis.tasks import TaskNotes
from qwen_wsgi.state.redis.values import Packer
from tests.fakes.clock import FakeClock
from tests.kit.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

Open = Callable[..., Records]


@pytest.fixture
def stores(redis_server: RedisServer) -> Iterator[list[SharedStore]]:
    made = [SharedStore(redis_server.url, box, FakeClock()) for box in ("box-a", "box-b")]
    yield made
    for each in made:
        each.close()


@pytest.fixture
def records(stores: list[SharedStore]) -> Open:
    def made(box: int = 0, **bounds: Any) -> Records:
        asked = {"ttl_s": 60.0, "max_bytes": 100_000, "listed": True, **bounds}
        return Records(stores[box], Packer(None), "thing", **asked)

    return made


def values(part: tuple[list[bytes], bool] | None) -> list[bytes]:
    assert part is not None
    return part[0]


def held(server: RedisServer) -> tuple[int, int, int]:
    """What is told to be held, what is, and how many."""
    total = server.command("GET", "qwen-proxy:thing:total")
    sizes = server.command("HVALS", "qwen-proxy:thing:sizes")
    names = server.command("KEYS", "qwen-proxy:thing:rec:*")
    used = server.command("ZCARD", "qwen-proxy:thing:use")
    assert isinstance(sizes, list)
    assert isinstance(names, list)
    assert len(names) == len(sizes) == used
    return int(total or 0), sum(map(int, sizes)), len(names)  # type: ignore[call-overload]  # it is a number


def test_what_one_box_puts_the_other_has(records: Open) -> None:
    a, b = records(0), records(1)
    assert a.put("ada", "1", b"first")
    assert a.put("ada", "1", b"again")

    found = b.get("ada", "1")
    assert isinstance(found, Found)
    assert (found.value, found.maker) == (b"again", "")
    assert b.get("bob", "1") is None


def test_the_least_recently_used_make_room(records: Open, redis_server: RedisServer) -> None:
    many = records(max_bytes=10_000)
    for number in range(30):
        many.put("ada", str(number), b"%d" % number)
        many.get("ada", "0")
        time.sleep(0.001)  # the order is by milliseconds

    told, really, count = held(redis_server)
    assert told == really <= 10_000
    assert 10 < count < 20
    assert isinstance(many.get("ada", "0"), Found)
    assert isinstance(many.get("ada", "29"), Found)
    assert many.get("ada", "1") is None
    assert many.count("ada") == 30
    assert len(values(many.page("ada", limit=50))) == count
    assert many.count("ada") == count


def test_what_has_expired_frees_its_room(records: Open, redis_server: RedisServer) -> None:
    short = records(ttl_s=0.3)
    short.put("ada", "1", b"x" * 1000)
    time.sleep(0.32)

    assert short.get("ada", "1") is None
    short.put("ada", "2", b"y")
    told, really, count = held(redis_server)
    assert (told, count) == (really, 1)


def test_one_that_is_too_large_is_not_put(records: Open) -> None:
    with pytest.raises(TooLarge, match="of at most 1000"):
        records(max_bytes=1000).put("ada", "1", random.Random(1).randbytes(2000))
    with pytest.raises(TooLarge, match=f"of at most {LARGEST}"):
        records(max_bytes=2**30).put("ada", "1", random.Random(1).randbytes(LARGEST))


def test_what_was_deleted_stays_away(records: Open, redis_server: RedisServer) -> None:
    a, b = records(0), records(1)
    a.put("ada", "1", b"x")

    assert b.delete("ada", "1")
    assert not b.delete("ada", "1")
    assert not a.put("ada", "1", b"x")
    assert a.get("ada", "1") is GONE
    assert a.page("ada", limit=5) == ([], False)
    assert held(redis_server) == (0, 0, 0)


def test_an_unfinished_one_does_not_replace_a_whole_one(records: Open) -> None:
    a = records()
    assert a.put("ada", "1", b"queued", maker="box-a", left_s=100)
    found = a.get("ada", "1")
    assert isinstance(found, Found)
    assert (found.maker, -101 < found.late_s < -98) == ("box-a", True)
    a.put("ada", "1", b"done")
    a.put("ada", "1", b"in progress", maker="box-a", left_s=100)

    found = a.get("ada", "1")
    assert isinstance(found, Found)
    assert (found.value, found.maker) == (b"done", "")


def test_a_chain_is_read_in_parts_and_bounded(
    records: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BYTES_AT_A_TIME", 10)
    a = records()
    for number in range(5):
        a.put("ada", str(number), b"value%d" % number, previous=str(number - 1))
    a.put("ada", "open", b"x", previous="4", maker="box-a")
    a.put("ada", "after", b"y", previous="open")

    whole = [b"value4", b"value3", b"value2", b"value1", b"value0"]
    assert a.chain("ada", "4", most=1000) == (whole, 30)
    assert a.chain("ada", "4", most=29) == ([], 30)
    assert a.chain("ada", "after", most=1000) == ([b"y"], 1)
    assert a.chain("bob", "4", most=1000) == ([], 0)
    # A circle, which nobody makes, ends.
    a.put("ada", "0", b"value0", previous="4")
    assert a.chain("ada", "4", most=1000) == (whole, 30)


def test_a_list_in_pages(records: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_A_TIME", 2)
    monkeypatch.setattr(module, "_BYTES_AT_A_TIME", 10)
    a = records()
    for number in range(7):
        a.put("ada", str(number), b"%d" % number, age=float(number))

    assert a.page("ada", limit=3) == ([b"6", b"5", b"4"], True)
    assert a.page("ada", limit=3, after="4") == ([b"3", b"2", b"1"], True)
    assert a.page("ada", limit=3, after="1") == ([b"0"], False)
    assert a.page("ada", limit=2, oldest_first=True) == ([b"0", b"1"], True)
    even = a.page("ada", limit=3, wanted=lambda value: int(value) % 2 == 0)
    assert even == ([b"6", b"4", b"2"], True)
    assert a.page("ada", limit=3, after="none") is None


# --- orders --------------------------------------------------------------------------------------


def test_orders_reach_the_boxes_that_they_are_for(stores: list[SharedStore], records: Open) -> None:
    streams = [OrderStream(store) for store in stores]
    positions = [stream.read("").position for stream in streams]
    records(0).delete("ada", "1")
    streams[0].cancel("box-b", "ada", "2")

    of_a, of_b = (s.read(p) for s, p in zip(streams, positions, strict=True))
    assert of_a.found == []
    assert of_b.found == [
        Order("delete", "box-a", "thing", "ada", "1"),
        Order("cancel", "box-b", "response", "ada", "2"),
    ]
    assert streams[1].read(of_b.position).found == []
    # A new box reads what was said lately.
    assert streams[1].read("").found == of_b.found


def test_orders_after_a_flush_and_a_clock_that_was_put_back(
    stores: list[SharedStore], records: Open, redis_server: RedisServer
) -> None:
    stream = OrderStream(stores[1])
    future = f"{2**45}-0"
    records(0).delete("ada", "1")

    again = stream.read(future)
    assert (again.position, again.found) == ("0-0", [])
    assert [order.id for order in stream.read(again.position).found] == ["1"]
    stores[0].look()
    epoch = stream.read(future).epoch
    redis_server.command("FLUSHALL")
    stores[0].look()
    assert stream.read(future).position == future  # there is nothing that could be newer
    assert stream.read(future).epoch not in ("", epoch)


def test_a_note_of_a_task_goes_with_its_age(stores: list[SharedStore]) -> None:
    a, b = (TaskNotes(store) for store in stores)
    a.note("account", "model", 1, 1000.0)
    a.note("account", "model", 1, 1000.0, "task with a blank")
    assert b.others("account", "model", 1004.0) == (frozenset({"task with a blank"}), 0)
    assert b.others("account", "model", 1006.0) == (frozenset(), 0)
    assert a.others("account", "model", 1000.0) == (frozenset(), 0)
    b.note("account", "model", 1, 1000.0 + 27 * 3600)
    assert b.others("account", "model", 1000.0) == (frozenset(), 0)
