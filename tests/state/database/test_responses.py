"""Stored responses: had again by their owner, kept within limits, and never in the way."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import ApiError
from qwen_wsgi.state.database.responses import (
    LARGEST,
    TABLES,
    ResponseMissing,
    ResponseStore,
    Stored,
    StoreUnavailable,
)
from qwen_wsgi.state.database.sqlite import FILE, Database
from tests.fakes.clock import FakeClock
from tests.kit.privileges import as_ordinary_user
from tests.kit.properties import examples

DAY_S = 86_400.0
BOUNDS = {"ttl_s": 7 * DAY_S, "max_bytes": 2**20}


class Store(ResponseStore):
    """A store with a database of its own, as a worker has it."""

    def __init__(
        self,
        directory: Path | None,
        clock: FakeClock,
        sleep: Callable[[float], None],
        **bounds: Any,
    ) -> None:
        database = Database(
            directory, clock, tables=[TABLES], keep_damaged_s=7 * DAY_S, sleep=sleep
        )
        super().__init__(database, clock, **bounds)

    def close(self) -> None:
        self._database.close()


OpenStore = Callable[..., Store]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state/responses"


@pytest.fixture
def open_store(directory: Path, clock: FakeClock) -> Iterator[OpenStore]:
    """Stores as several workers have them, over the same file unless told otherwise."""
    opened: list[Store] = []

    def begin(path: Path | None = directory, **options: Any) -> Store:
        options = {**BOUNDS, "sleep": clock.advance, **options}
        opened.append(Store(path, clock, **options))
        return opened[-1]

    yield begin
    for each in opened:
        each.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def response(id: str, *texts: str) -> dict[str, Any]:
    return {"id": id, "object": "response", "output": [said(text) for text in texts]}


def put(store: ResponseStore, id: str, previous: str | None = None, *, owner: str = "a") -> bool:
    return store.put(owner, response(id, f"answer {id}"), [said(f"ask {id}")], previous)


def texts(items: list[dict[str, Any]]) -> list[str]:
    return [item["content"] for item in items]


# --- what is stored can be had ------------------------------------------------------------------


def test_what_was_stored_is_had_again_by_every_worker(open_store: OpenStore) -> None:
    one, other = open_store(), open_store()
    told = {**response("resp_2", "Grüße, 世界 \ud83d"), "usage": None, "temperature": 1.0}

    assert one.put("a", told, [said("one"), said("two")], "resp_1") is True

    assert other.get("a", "resp_2") == Stored(told, [said("one"), said("two")], "resp_1")


def test_a_store_in_memory_leaves_no_file(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(None)

    assert put(store, "r")

    assert store.get("a", "r") is not None
    assert list(tmp_path.rglob("*.sqlite3")) == []


def test_it_outlives_the_process(open_store: OpenStore) -> None:
    first = open_store()
    put(first, "r")
    first.close()

    assert open_store().get("a", "r") is not None
    assert first.get("a", "r") is not None  # closed is not the end


def test_another_one_with_the_same_id_takes_its_place(store: ResponseStore) -> None:
    put(store, "first")
    put(store, "r", "first")

    assert store.put("a", response("r", "better"), [], "first")

    found = store.get("a", "r")
    assert found is not None
    assert texts(found.response["output"]) == ["better"]
    assert found.input_items == []


def test_a_conversation_is_told_oldest_first(store: ResponseStore) -> None:
    put(store, "one")
    put(store, "two", "one")
    put(store, "aside", "one")
    put(store, "three", "two")

    assert texts(store.history("a", "three")) == [
        *("ask one", "answer one", "ask two", "answer two", "ask three", "answer three")
    ]
    assert texts(store.history("a", "one")) == ["ask one", "answer one"]


def test_a_response_without_output_adds_what_was_asked(store: ResponseStore) -> None:
    store.put("a", {"id": "r", "output": None}, [said("ask")], None)

    assert texts(store.history("a", "r")) == ["ask"]


@pytest.mark.parametrize("gone", ["one", "two", "three"])
def test_a_conversation_with_a_link_missing_is_none(store: ResponseStore, gone: str) -> None:
    put(store, "one")
    put(store, "two", "one")
    put(store, "three", "two")
    assert store.delete("a", gone) is True

    with pytest.raises(ResponseMissing) as caught:
        store.history("a", "three")

    assert caught.value.status == 400
    assert caught.value.param == "previous_response_id"
    assert caught.value.code == "previous_response_not_found"
    assert "'three'" in caught.value.message
    assert f"'{gone}'" in caught.value.message


def test_a_circle_of_responses_is_no_conversation(store: ResponseStore) -> None:
    put(store, "one", "two")
    put(store, "two", "one")

    with pytest.raises(ResponseMissing):
        store.history("a", "two")


@pytest.mark.parametrize("id", ["", "nothing", "\ud83d", "é", "a\0b", "' OR '1'='1", "x" * 100_000])
def test_what_is_not_there_is_not_found(store: ResponseStore, id: str) -> None:
    put(store, "r")

    assert store.get("a", id) is None
    assert store.delete("a", id) is False
    with pytest.raises(ResponseMissing) as caught:
        store.history("a", id)
    assert len(caught.value.message) < 500
    assert store.get("a", "r") is not None


def test_a_response_that_continues_what_is_gone_can_be_had_itself(store: ResponseStore) -> None:
    assert put(store, "r", "gone")
    assert put(store, "s", "\ud83d") is False  # such an id was never given out

    found = store.get("a", "r")
    assert found is not None
    assert found.previous == "gone"


# --- whose it is --------------------------------------------------------------------------------


def test_nobody_gets_what_belongs_to_somebody_else(store: ResponseStore) -> None:
    put(store, "r", owner="a")

    assert store.get("b", "r") is None
    assert store.delete("b", "r") is False
    with pytest.raises(ResponseMissing):
        store.history("b", "r")
    assert store.get("a", "r") is not None


def test_an_id_of_two_owners_is_two_responses(store: ResponseStore) -> None:
    store.put("a", response("r", "of a"), [], None)
    store.put("b", response("r", "of b"), [], None)
    put(store, "s", "r", owner="b")

    assert texts(store.history("a", "r")) == ["of a"]
    assert texts(store.history("b", "s"))[0] == "of b"
    assert store.delete("a", "r")
    assert store.get("b", "r") is not None


def test_a_conversation_does_not_go_on_into_another_owners(store: ResponseStore) -> None:
    put(store, "one", owner="a")
    put(store, "two", "one", owner="b")

    with pytest.raises(ResponseMissing):
        store.history("b", "two")


def test_only_the_servers_user_can_read_it(store: ResponseStore, directory: Path) -> None:
    before = os.umask(0)
    try:
        put(store, "r")
    finally:
        os.umask(before)

    assert directory.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in directory.iterdir()}
    assert modes == {FILE: 0o600, f"{FILE}-wal": 0o600, f"{FILE}-shm": 0o600}


def test_what_others_could_read_is_closed_to_them(open_store: OpenStore, directory: Path) -> None:
    first = open_store()
    put(first, "r")
    first.close()
    directory.chmod(0o755)
    (directory / FILE).chmod(0o644)

    assert open_store().get("a", "r") is not None

    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / FILE).stat().st_mode & 0o777 == 0o600


def test_what_is_deleted_is_gone_from_the_file(store: Store, directory: Path) -> None:
    store.put("a", response("r", "swordfish" * 2000), [], None)
    store.delete("a", "r")
    store.close()  # empties SQLite's log into the file

    assert [file.name for file in directory.iterdir()] == [FILE]
    assert b"swordfish" not in (directory / FILE).read_bytes()


# --- for how long -------------------------------------------------------------------------------


def test_what_nobody_uses_expires(store: ResponseStore, clock: FakeClock) -> None:
    put(store, "r")

    clock.advance(7 * DAY_S - 1)
    assert put(store, "other")
    clock.advance(2)

    assert store.get("a", "r") is None
    assert store.delete("a", "r") is False
    with pytest.raises(ResponseMissing):
        store.history("a", "r")
    assert store.get("a", "other") is not None


def test_what_has_expired_leaves_the_file_with_the_next_that_comes(
    store: ResponseStore, clock: FakeClock, directory: Path
) -> None:
    for number in range(150):
        put(store, f"r{number}")
    clock.advance(8 * DAY_S)

    put(store, "one")
    put(store, "two")

    assert rows(directory) == ["one", "two"]


Use = Callable[[ResponseStore, str], object]
USES: dict[str, Use] = {
    "get": lambda store, id: store.get("a", id),
    "history": lambda store, id: store.history("a", id),
    "continuing it": lambda store, id: put(store, "again", id),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_conversation_that_is_used_keeps_its_beginning(
    store: ResponseStore, clock: FakeClock, use: Use
) -> None:
    put(store, "one")
    put(store, "two", "one")
    put(store, "other")
    put(store, "three", "two")

    for _ in range(4):
        clock.advance(3 * DAY_S)
        use(store, "three")

    assert texts(store.history("a", "three"))[0] == "ask one"
    assert store.get("a", "other") is None


def test_a_clock_that_is_put_back_makes_nothing_expire(
    store: ResponseStore, clock: FakeClock
) -> None:
    put(store, "one")
    clock.advance(-400 * DAY_S)
    put(store, "two", "one")

    assert len(store.history("a", "two")) == 4
    clock.advance(6 * DAY_S)
    assert len(store.history("a", "two")) == 4


def test_nor_does_it_make_anything_live_for_ever(
    store: ResponseStore, clock: FakeClock, directory: Path
) -> None:
    put(store, "of the future")
    clock.advance(-400 * DAY_S)
    put(store, "one")  # here it is noticed

    clock.advance(8 * DAY_S)
    put(store, "two")

    assert rows(directory) == ["two"]


def test_without_any_time_nothing_is_kept_and_the_rest_is_removed(
    open_store: OpenStore, directory: Path
) -> None:
    open_store().put("a", {"id": "r", "output": ["a very private text"]}, [], None)
    aside = directory.with_name("responses.damaged")
    aside.mkdir()
    store = open_store(ttl_s=0)

    assert put(store, "s") is False

    assert store.get("a", "r") is None
    assert store.delete("a", "r") is False
    with pytest.raises(ResponseMissing):
        store.history("a", "r")
    assert rows(directory) == []
    assert not any(b"very private" in path.read_bytes() for path in directory.iterdir())
    assert not aside.exists()


# --- how much -----------------------------------------------------------------------------------


def rows(directory: Path) -> list[str]:
    """The ids in the file, in alphabetical order; and all its parts fit together."""
    with closing(sqlite3.connect(directory / FILE)) as database:
        ids = [id for (id,) in database.execute("SELECT id FROM responses ORDER BY id")]
        told = database.execute("SELECT rows, bytes FROM response_totals").fetchall()
        assert (
            told
            == database.execute(
                "SELECT count(*), coalesce(sum(bytes), 0) FROM responses"
            ).fetchall()
        )
        keys = database.execute("SELECT key FROM responses ORDER BY key").fetchall()
        assert keys == database.execute("SELECT key FROM response_bodies ORDER BY key").fetchall()
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return ids


def test_of_too_many_those_go_that_were_not_used_for_longest(
    open_store: OpenStore, clock: FakeClock, directory: Path
) -> None:
    store = open_store(max_rows=3)
    for id in ("one", "two", "three"):
        put(store, id)
        clock.advance(1)
    store.get("a", "one")
    clock.advance(1)

    put(store, "four")
    assert rows(directory) == ["four", "one", "three"]

    put(store, "five", "three")
    assert rows(directory) == ["five", "four", "three"]


def test_of_too_much_as_well(open_store: OpenStore, clock: FakeClock, directory: Path) -> None:
    store = open_store(max_bytes=2**20)
    for number in range(30):
        assert store.put("a", response(f"r{number:02}", "x" * 100_000), [], None)
        clock.advance(1)

    assert rows(directory) == [f"r{number}" for number in range(20, 30)]
    files = sum(file.stat().st_size for file in directory.iterdir() if file.suffix == ".sqlite3")
    assert files < 1.2 * 2**20


def test_a_smaller_limit_holds_from_the_next_one_on(open_store: OpenStore, directory: Path) -> None:
    first = open_store()
    for number in range(20):
        put(first, f"r{number}")

    put(open_store(max_rows=2), "last")

    assert len(rows(directory)) == 2


@pytest.mark.parametrize("limit", [2**20, 2**30])
def test_one_that_is_too_large_is_not_stored_and_takes_nobodys_place(
    store: ResponseStore,
    open_store: OpenStore,
    caplog: pytest.LogCaptureFixture,
    limit: int,
) -> None:
    put(store, "r")

    large = response("large", "x" * min(limit, LARGEST))
    assert open_store(max_bytes=limit).put("a", large, [], None) is False

    assert store.get("a", "large") is None
    assert store.get("a", "r") is not None
    assert f"of at most {min(limit, LARGEST)}" in caplog.text


#: What clients and workers may do, in any order.
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.sampled_from("ab"),
            st.sampled_from("12345"),
            st.none() | st.sampled_from("12345"),
            st.integers(0, 600),
        ),
        st.tuples(
            st.sampled_from(["get", "delete"]), st.sampled_from("ab"), st.sampled_from("123")
        ),
        st.tuples(st.just("wait"), st.floats(-50, 70)),
    ),
    max_size=30,
)


@given(STEPS)
@examples(150)
def test_whatever_is_done_the_limits_hold_and_nothing_is_mixed_up(steps: list[Any]) -> None:
    clock = FakeClock()
    store = Store(None, clock, clock.advance, ttl_s=100, max_bytes=4000, max_rows=4)
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for step in steps:
        if step[0] == "put":
            _, owner, id, previous, size = step
            told = response(id, owner * size)
            assert store.put(owner, told, [], previous)
            last[owner, id] = told
            assert store.get(owner, id) == Stored(told, [], previous)
        elif step[0] == "get":
            found = store.get(*step[1:])
            assert found is None or found.response == last[step[1:]]
        elif step[0] == "delete":
            store.delete(*step[1:])
            assert store.get(*step[1:]) is None
        else:
            clock.advance(step[1])
        database = store._database._opened()  # in memory nobody else can look
        count, size = database.execute("SELECT count(*), total(bytes) FROM responses").fetchone()
        assert (count, size) == database.execute(
            "SELECT rows, bytes FROM response_totals"
        ).fetchone()
        assert database.execute("SELECT count(*) FROM response_bodies").fetchone() == (count,)
        assert count <= 4
        assert size <= 4000
    store.close()


# --- what may go wrong --------------------------------------------------------------------------


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda data: b"\xa5garbage" * 4000,
    "another file": lambda data: json.dumps({"not": "ours"}).encode(),
    "the head lost": lambda data: bytes(4096) + data[4096:],
    "the middle lost": lambda data: data[:4096] + bytes(len(data) - 4096),
    "cut": lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_set_aside_and_begun_anew(
    open_store: OpenStore,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    first = open_store()
    for number in range(50):
        put(first, f"r{number}")
    first.close()
    broken = damage((directory / FILE).read_bytes())
    (directory / FILE).write_bytes(broken)
    store = open_store()

    assert put(store, "new") is True

    assert store.get("a", "new") is not None
    assert store.get("a", "r7") is None
    assert (directory.with_name("responses.damaged") / FILE).read_bytes() == broken
    assert len(errors(caplog)) == 1
    assert "responses.damaged" in errors(caplog)[0]
    assert rows(directory) == ["new"]


@pytest.mark.parametrize("left", [0, 100, 20_000])
def test_the_index_of_the_log_may_be_cut(directory: Path, left: int) -> None:
    """SQLite maps it: unmended, the next look at it would kill the worker."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from tests.state.database.test_responses import *\n"
        "directory, left = Path(sys.argv[1]), int(sys.argv[2])\n"
        "stores = [Store(directory, FakeClock(), print, **BOUNDS) for _ in range(2)]\n"
        "for number in range(20):\n"
        "    assert put(stores[number % 2], f'r{number}')\n"
        "    os.truncate(directory / (FILE + '-shm'), left)\n"
        "    assert all(store.get('a', f'r{number}') for store in stores)\n"
        "    os.truncate(directory / (FILE + '-shm'), left)\n"
        "for store in stores:\n"
        "    store.close()\n"
        "print(rows(directory) == sorted(f'r{number}' for number in range(20)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory), str(left)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b"null, null"])
def test_so_is_one_whose_bodies_are_not_what_was_written(
    store: ResponseStore, directory: Path, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    put(store, "r")
    with closing(sqlite3.connect(directory / FILE)) as database, database:
        database.execute("UPDATE response_bodies SET response = ?", (body,))

    assert store.get("a", "r") is None

    assert put(store, "new")
    assert len(errors(caplog)) == 1


def test_so_is_one_of_other_tables(store: ResponseStore, directory: Path) -> None:
    put(store, "r")
    with closing(sqlite3.connect(directory / FILE)) as database, database:
        database.execute("ALTER TABLE responses RENAME TO elsewhere")

    assert put(store, "new") is True
    assert rows(directory) == ["new"]


def test_several_workers_set_a_damaged_file_aside_once(
    open_store: OpenStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stores = [open_store() for _ in range(3)]
    for store in stores:
        put(store, "r")
    with closing(sqlite3.connect(directory / FILE)) as database, database:
        database.execute("DROP TABLE response_bodies")

    for number, store in enumerate(stores):
        assert put(store, f"new{number}") is True

    assert rows(directory) == ["new0", "new1", "new2"]
    assert len(errors(caplog)) == 1


def test_a_damaged_file_is_not_kept_for_ever(
    open_store: OpenStore, directory: Path, clock: FakeClock
) -> None:
    directory.mkdir(parents=True)
    (directory / FILE).write_bytes(b"garbage" * 1000)
    clock.advance(os.stat(directory).st_ctime - clock.now())
    put(open_store(), "r")
    aside = directory.with_name("responses.damaged")

    clock.advance(6 * DAY_S)
    put(open_store(), "r")
    assert aside.exists()

    clock.advance(2 * DAY_S)
    put(open_store(), "r")
    assert not aside.exists()


def test_a_directory_that_is_removed_meanwhile_is_made_anew(
    store: ResponseStore, open_store: OpenStore, directory: Path
) -> None:
    put(store, "r")
    directory.rename(directory.with_name("elsewhere"))

    assert store.get("a", "r") is None
    assert put(store, "s")
    assert open_store().get("a", "s") is not None


class Holder:
    """Another process's write that does not end."""

    def __init__(self, directory: Path) -> None:
        self._database = sqlite3.connect(directory / FILE, isolation_level=None)
        self._database.execute("BEGIN IMMEDIATE")

    def end(self) -> None:
        self._database.close()


def test_while_another_process_writes_greenlets_run_and_it_is_tried_again(
    open_store: OpenStore, directory: Path
) -> None:
    put(open_store(), "r")
    holder = Holder(directory)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            holder.end()

    store = open_store(sleep=sleep)
    assert put(store, "s") is True

    assert len(pauses) == 3


def test_one_that_never_ends_costs_the_answer_nothing_but_a_second(
    open_store: OpenStore, directory: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    put(store, "r")
    holder = Holder(directory)
    began = clock.steady_s

    assert put(store, "s") is False

    assert 0.5 < clock.steady_s - began < 2
    assert len(errors(caplog)) == 1
    assert errors(caplog)[0].startswith("a response is not stored: ")
    assert "restart qwen-proxy" in errors(caplog)[0]
    # Reading goes on, and does not wait.
    now = clock.steady_s
    assert store.get("a", "r") is not None
    assert len(store.history("a", "r")) == 2
    assert clock.steady_s == now
    with pytest.raises(StoreUnavailable) as caught:
        store.delete("a", "r")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    holder.end()
    assert put(store, "s") is True


def test_a_full_disk_is_told_and_harms_nothing(
    store: ResponseStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, "r")
    store._database._opened().execute("PRAGMA max_page_count = 20")  # as good as a full disk

    assert store.put("a", response("s", "x" * 200_000), [], None) is False

    assert len(errors(caplog)) == 1
    assert "full" in errors(caplog)[0]
    assert "Free some space" in errors(caplog)[0]
    assert rows(directory) == ["r"]
    assert store.put("a", response("s", "x" * 200_000), [], None) is True


def test_a_directory_that_cannot_be_written_is_told(
    open_store: OpenStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.parent.mkdir(parents=True)
    with as_ordinary_user(directory.parent):
        directory.parent.chmod(0o500)
        store = open_store()

        assert put(store, "r") is False
        with pytest.raises(StoreUnavailable) as caught:
            store.get("a", "r")

        directory.parent.chmod(0o700)
        assert put(store, "r") is True
        assert store.get("a", "r") is not None
    assert str(directory) in errors(caplog)[0]
    assert "QWEN_PROXY_STATE_DIR" in errors(caplog)[0]
    assert caught.value.status == 503
    assert str(directory) not in caught.value.message


def test_a_file_that_can_only_be_read_is_read(
    open_store: OpenStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = open_store()
    put(writer, "r")
    with as_ordinary_user(directory.parent):
        (directory / FILE).chmod(0o400)
        store = open_store()

        assert store.get("a", "r") is not None
        assert put(store, "s") is False
    assert "readonly" in errors(caplog)[0]
    assert len(errors(caplog)) == 1


def test_a_file_where_the_directory_should_be_is_told(
    store: ResponseStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.parent.mkdir()
    directory.write_text("in the way")

    assert put(store, "r") is False

    assert len(errors(caplog)) == 1
    assert directory.read_text() == "in the way"


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [100, 900, 960, 980, 990, 100_000])
def test_however_deep_something_is_nested_nothing_fails(store: ResponseStore, depth: int) -> None:
    put(store, "before")
    told = {"id": "r", "output": [{"type": "message", "content": nested(depth)}]}

    kept = store.put("a", told, [], None)

    found = store.get("a", "r")
    assert depth > 500 or (kept and found is not None)
    assert found is None or (kept and found.response["id"] == "r")
    assert store.get("a", "before") is not None


def test_threads_share_a_store(store: ResponseStore) -> None:
    done: list[bool] = []

    def work(number: int) -> None:
        previous = None
        for step in range(10):
            id = f"{number}-{step}"
            done.append(put(store, id, previous))
            previous = id
        assert len(store.history("a", f"{number}-9")) == 20

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert done == [True] * 40


# --- whose responses go first --------------------------------------------------------------------


def test_who_has_most_loses_first(open_store: OpenStore, clock: FakeClock) -> None:
    """A client that stores without end drives out its own responses, and nobody else's."""
    store = open_store(max_rows=10)
    for index in range(3):
        put(store, f"resp_modest{index}", owner="modest")
        clock.advance(1)
    for index in range(100):
        assert put(store, f"resp_greedy{index}", owner="greedy")
        clock.advance(1)

    assert all(store.get("modest", f"resp_modest{index}") for index in range(3))
    kept = [index for index in range(100) if store.get("greedy", f"resp_greedy{index}")]
    assert kept == list(range(93, 100))
    # The modest one may have more, and then the greedy one makes room.
    put(store, "resp_modest3", owner="modest")
    assert store.get("modest", "resp_modest3")
    assert store.get("greedy", "resp_greedy93") is None


def test_who_has_most_bytes_loses_first(open_store: OpenStore, clock: FakeClock) -> None:
    store = open_store(max_bytes=100_000)
    for owner, size in (("small", 1), ("small", 1), ("large", 40_000), ("large", 40_000)):
        clock.advance(1)
        id = f"resp_{clock.now()}"
        store.put(owner, {"id": id, "output": ["x" * size]}, [], None)
    before = clock.now()
    clock.advance(1)

    assert store.put("small", {"id": "resp_new", "output": ["x" * 30_000]}, [], None)

    assert store.get("small", "resp_new")
    assert store.get("large", f"resp_{before - 1}") is None
    assert store.get("large", f"resp_{before}")
    assert store.get("small", f"resp_{before - 3}")


def test_a_conversation_that_is_too_large_is_not_read(open_store: OpenStore) -> None:
    store = open_store(largest_history=10_000)
    previous = None
    for index in range(6):
        store.put("a", {"id": f"resp_{index}", "output": ["x" * 2000]}, [], previous)
        previous = f"resp_{index}"

    assert store.history("a", "resp_2")
    with pytest.raises(ApiError, match="more than a request may have") as caught:
        store.history("a", "resp_5")
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_what_is_deleted_is_in_no_file(store: ResponseStore, directory: Path) -> None:
    """Nor in the log beside the database, at once."""
    store.put("a", {"id": "resp_1", "output": ["a very private text"]}, [], None)
    assert any(b"very private" in path.read_bytes() for path in directory.rglob("*.sqlite3*"))

    assert store.delete("a", "resp_1")

    assert not any(b"very private" in path.read_bytes() for path in directory.rglob("*.sqlite3*"))
