"""Totals of usage: written as a whole, so that nothing counts twice, and the same on every box."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_wsgi.accounting.books import Books, journal_in
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.state.database.calls import By, CallRow, line_of
from qwen_wsgi.state.redis.connection import SharedStore
from qwen_wsgi.state.redis.totals import OfOthers, UsageTotals
from tests.fakes.clock import NOON_S, FakeClock
from tests.kit.call_rows import DAY, call
from tests.kit.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

ALL = Span(NOON_S - 10 * DAY, NOON_S + DAY)


class Box:
    """A box's ledger, and what it knows of the others."""

    def __init__(self, directory: Path, url: str, name: str) -> None:
        self.directory = directory
        self.store = SharedStore(url, name, FakeClock())
        self.totals = UsageTotals(self.store, kept_s=400 * DAY)
        self.books = Books(directory, FakeClock(), days=400, sleep=lambda seconds: None)
        self.told = 0

    def close(self) -> None:
        self.books.close()
        self.store.close()

    def note(self, *rows: CallRow) -> None:
        with closing(journal_in(self.directory, FakeClock())) as writer:
            for row in rows:
                writer.append(line_of(row))
        self.books.maintain()

    def tell(self) -> None:
        self.told, hours = self.books.changed(self.told)
        self.totals.put(hours)

    def report(self, by: By = "client", asked: Span = ALL, **more: Any) -> dict[str, Any]:
        others = self.totals.of_others(asked.since, asked.until)
        return self.books.report(by, asked, others=others, **more)


@pytest.fixture
def boxes(redis_server: RedisServer, tmp_path: Path) -> Iterator[tuple[Box, Box]]:
    made = [Box(tmp_path / name, redis_server.url, name) for name in ("box-a", "box-b")]
    yield made[0], made[1]
    for each in made:
        each.close()


OF_A = (
    call(),
    call(model="qwen-flash", at=NOON_S - 3600, currency=None, money_micro=None),
    call(client_id="two", client="Two", outcome="refused", at=NOON_S - DAY),
    call(input_tokens=None, output_tokens=None, unknown_usage=1, outcome="failed"),
)
OF_B = (
    call(account="other", currency="CNY"),
    call(client_id="two", client="Two", endpoint="/v1/embeddings", at=NOON_S - 3 * DAY),
    call(at=NOON_S + 1800, cached_tokens=None),
)


def test_every_box_says_the_same_as_one_that_has_all(
    boxes: tuple[Box, Box], tmp_path: Path
) -> None:
    a, b = boxes
    for _ in range(2):  # told twice, it counts once
        a.told = b.told = 0
        for box, rows in ((a, OF_A), (b, OF_B)):
            if not box.books.changed(0)[0]:
                box.note(*rows)
            box.tell()
    with closing(Books(tmp_path / "all", FakeClock(), days=400)) as everything:
        with closing(journal_in(tmp_path / "all", FakeClock())) as writer:
            for row in (*OF_A, *OF_B):
                writer.append(line_of(row))
        for by in get_args(By):
            for client_id in (None, "two", "nobody"):
                wanted = everything.report(by, ALL, client_id=client_id)
                for box in boxes:
                    told = box.report(by, client_id=client_id)
                    assert told.pop("boxes") == {"counted": 2, "others_unknown": False}
                    assert told == wanted


def test_an_hour_grows_and_is_not_added(boxes: tuple[Box, Box]) -> None:
    a, b = boxes
    for count in range(1, 4):
        a.note(call())
        a.tell()
        assert [row["calls"] for row in b.report()["rows"]] == [count]
    assert a.books.changed(a.told) == (a.told, {})


def test_a_quarter_of_an_hour_counts_whole(boxes: tuple[Box, Box]) -> None:
    a, b = boxes
    a.note(call(at=NOON_S + 100), call(at=NOON_S + 1000))
    a.tell()

    for since, until, count in ((-600, 0, 0), (200, 300, 1), (200, 900, 1), (200, 901, 2)):
        rows = b.report("model", Span(NOON_S + since, NOON_S + until))["rows"]
        assert sum(row["calls"] for row in rows) == count


def test_a_client_has_one_name_the_latest_that_this_box_knows(boxes: tuple[Box, Box]) -> None:
    a, b = boxes
    a.note(call(client="Before", at=NOON_S - DAY), call(client="Between", at=NOON_S - 3600))
    a.tell()
    assert [row["key"] for row in b.report()["rows"]] == ["Between"]
    b.note(call(client="Now"))
    assert [(row["key"], row["calls"]) for row in b.report()["rows"]] == [("Now", 3)]


def test_many_hours_are_told_in_parts(boxes: tuple[Box, Box]) -> None:
    a, b = boxes
    a.note(*(call(at=NOON_S - 3600 * each) for each in range(60)))
    rounds = 0
    before = -1
    while before != a.told:
        before = a.told
        a.tell()
        rounds += before != a.told

    assert rounds == 3
    assert b.report("model")["rows"][0]["calls"] == 60


def test_totals_are_pruned_with_the_ledger(
    boxes: tuple[Box, Box], redis_server: RedisServer
) -> None:
    a, _ = boxes
    a.note(call())
    a.tell()
    key = f"qwen-proxy:usage:{int(NOON_S // DAY)}"
    until = redis_server.command("EXPIRETIME", key)
    assert until == (NOON_S // DAY + 1) * DAY + 400 * DAY


def test_what_is_damaged_counts_nothing(boxes: tuple[Box, Box], redis_server: RedisServer) -> None:
    a, b = boxes
    a.note(call())
    a.tell()
    day = int(NOON_S // DAY)
    hour = int(NOON_S // 3600)
    redis_server.command("HSET", f"qwen-proxy:usage:{day}", f"box-c:{hour}", "rubbish")

    assert [row["calls"] for row in b.report()["rows"]] == [1]
    assert b.report()["boxes"]["counted"] == 3


def test_while_redis_is_away_the_numbers_are_of_this_box(tmp_path: Path) -> None:
    box = Box(tmp_path, "unix:///nonexistent/redis.sock", "box-a")
    with closing(box):
        box.note(call())
        assert box.totals.of_others(*ALL) == OfOthers(*ALL, known=False)
        found = box.report()
    assert found["boxes"] == {"counted": 1, "others_unknown": True}
    assert [row["calls"] for row in found["rows"]] == [1]


def test_a_ledger_that_was_begun_anew_is_told_from_its_beginning(tmp_path: Path) -> None:
    box = Box(tmp_path, "unix:///nonexistent/redis.sock", "box-a")
    with closing(box):
        assert box.books.changed(7) == (7, {})
        box.note(call())
        latest, hours = box.books.changed(7)
    assert (latest, list(hours)) == (1, [int(NOON_S // 3600)])
