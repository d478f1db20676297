"""What a box knows of its videos, and the key that signs their ids."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.errors import ApiError
from qwen_wsgi.state.database.tables import DIRECTORY, database_in
from qwen_wsgi.state.database.videos import KEPT_S, VideoStore
from qwen_wsgi.state.state_key import StateKey
from tests.fakes.clock import FakeClock

STATE = {"output": {"task_status": "PENDING"}}


def stored(store: VideoStore, id: str, owner: str = "me", account: str = "a") -> int:
    key = store.begin(owner, account, "wan")
    assert store.begun(key, id, "task-" + id, "a cat", STATE)
    return key


def ids(store: VideoStore, owner: str = "me", *, after: str | None = None) -> list[str]:
    found = store.page(owner, after=after, limit=100, oldest_first=False)
    assert found is not None
    return [each.id for each in found[0]]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@contextmanager
def opened(directory: Path | None, clock: FakeClock, **options: int) -> Iterator[VideoStore]:
    """As a worker has it."""
    with closing(database_in(directory, clock, sleep=clock.advance)) as database:
        yield VideoStore(database, clock, **options)


@pytest.fixture
def store(clock: FakeClock) -> Iterator[VideoStore]:
    with opened(None, clock) as made:
        yield made


def test_what_is_kept_outlives_a_restart_and_is_private(tmp_path: Path, clock: FakeClock) -> None:
    with opened(tmp_path, clock) as first:
        stored(first, "v1")
        first.update("me", "v1", {"output": {"task_status": "FAILED"}})
    with opened(tmp_path, clock) as again:
        found = again.get("me", "v1")

        assert found is not None
        assert found.state == {"output": {"task_status": "FAILED"}}
        assert found.prompt == "a cat"
        assert not found.deleted
        assert again.get("other", "v1") is None
    (file,) = (tmp_path / DIRECTORY).glob("*.sqlite3")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_old_ones_go(store: VideoStore, clock: FakeClock) -> None:
    stored(store, "v1")
    clock.advance(KEPT_S + 1)
    assert ids(store) == []
    stored(store, "v2")

    assert store.get("me", "v1") is None
    assert ids(store) == ["v2"]


def test_a_clock_that_was_put_back_keeps_nothing_for_ever(
    store: VideoStore, clock: FakeClock
) -> None:
    stored(store, "v1")
    clock.advance(-1_000_000)
    stored(store, "v2")
    clock.advance(KEPT_S + 61)
    stored(store, "v3")

    assert ids(store) == ["v3"]


def test_nobody_drives_out_what_others_have(clock: FakeClock) -> None:
    with opened(None, clock, max_rows=5) as store:
        stored(store, "mine")
        for number in range(20):
            stored(store, f"v{number}", owner="other")

        assert ids(store) == ["mine"]
        assert ids(store, "other") == ["v19", "v18", "v17", "v16"]


def test_requests_that_are_under_way(store: VideoStore, clock: FakeClock) -> None:
    began = clock.now()
    own, other = store.begin("me", "a", "wan"), store.begin("you", "a", "wan")
    for account, model in (("b", "wan"), ("a", "happyhorse")):
        store.begin("me", account, model)

    assert store.others(own, began) == (frozenset(), 1)
    assert store.begun(other, "v", "t", "", STATE)
    assert store.others(own, began) == (frozenset({"t"}), 0)
    assert store.others(own, began + 1) == (frozenset(), 0)
    assert not store.begun(own, "w", "t", "", STATE)
    store.not_begun(own)
    assert store.others(other, began) == (frozenset(), 0)
    assert store.others(own, began) == (frozenset(), 1)  # itself is not known any more


def test_of_two_requests_one_gets_a_task(tmp_path: Path, clock: FakeClock) -> None:
    databases = [database_in(tmp_path, clock) for _ in range(4)]
    stores = [VideoStore(database, clock) for database in databases]
    keys = [each.begin("me", "a", "wan") for each in stores]

    def take(number: int) -> bool:
        return stores[number].begun(keys[number], f"v{number}", "t", "", STATE)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(4))) == [False, False, False, True]
    for each in databases:
        each.close()


def test_deleted_ones_leave_no_prompt(store: VideoStore) -> None:
    stored(store, "v1")
    store.delete("me", "v1", "a", "task-v1", "wan")
    store.delete("me", "of-another-box", "a", "t-9", "wan")

    for id in ("v1", "of-another-box"):
        found = store.get("me", id)
        assert found is not None
        assert found.deleted
        assert found.prompt is None
        assert found.state == {}
    assert ids(store) == []


def test_a_page_after_one_that_is_not_there(store: VideoStore) -> None:
    stored(store, "v1", owner="other")

    assert store.page("me", after="v1", limit=5, oldest_first=True) is None


def test_without_its_file_videos_go_on(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / DIRECTORY).write_text("in the way")
    store = VideoStore(database_in(tmp_path, clock, sleep=clock.advance), clock)
    key = store.begin("me", "a", "wan")

    assert key == 0
    assert store.begun(key, "v", "t", "p", STATE)
    assert store.get("me", "v") is None
    # Nothing is known of others, so nothing is clear.
    assert store.others(key, 0.0) == (frozenset(), 1)
    with pytest.raises(ApiError, match="list of videos"):
        store.page("me", after=None, limit=5, oldest_first=True)


def test_half_a_surrogate_pair_can_be_kept(store: VideoStore) -> None:
    key = store.begin("me", "a", "wan")

    assert store.begun(key, "v", "t", "a\ud83d", STATE)
    assert ids(store) == ["v"]


# --- the key -------------------------------------------------------------------------------------


def test_a_key_is_made_once_for_all_workers(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: StateKey("", directory).get(), range(16)))

    assert len(keys) == 1
    assert len(keys.pop()) == 32
    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert StateKey("k" * 32, directory).get() == b"k" * 32


def test_half_a_key_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "state.key").write_text("abcd")

    assert len(StateKey("", tmp_path).get()) == 32
    assert StateKey("", tmp_path).get() == StateKey("", tmp_path).get()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")

    with pytest.raises(ApiError) as failed:
        StateKey("", tmp_path / "state").get()
    assert failed.value.code == "state_key_unavailable"
    assert StateKey("", None).get() != StateKey("", None).get()
