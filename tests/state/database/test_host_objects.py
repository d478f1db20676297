"""Which client owns which file and batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.errors import ApiError
from qwen_wsgi.state.database.host_objects import HostObjects
from qwen_wsgi.state.database.tables import DIRECTORY, database_in
from tests.fakes.clock import FakeClock

DAY = 86_400


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@contextmanager
def opened(directory: Path, clock: FakeClock) -> Iterator[HostObjects]:
    """As a worker has them."""
    database = database_in(directory, clock)
    with closing(database):
        yield HostObjects(database, clock)


@pytest.fixture
def objects(clock: FakeClock, tmp_path: Path) -> Iterator[HostObjects]:
    with opened(tmp_path, clock) as made:
        yield made


def file(id: str, purpose: str = "batch") -> dict[str, object]:
    return {"id": id, "object": "file", "purpose": purpose}


def ids(objects: HostObjects, owner: str = "one", **options: object) -> list[str]:
    found = objects.page("file", owner, limit=100, **options)  # type: ignore[arg-type]  # of the test
    assert found is not None
    return [each.id for each in found[0]]


def test_an_object_is_its_owner_s_alone(objects: HostObjects) -> None:
    assert objects.put("file", "one", "dashscope", file("f1"))

    found = objects.get("file", "one", "f1")
    assert found is not None
    assert (found.id, found.account, found.value) == ("f1", "dashscope", file("f1"))
    assert objects.get("file", "two", "f1") is None
    assert objects.get("batch", "one", "f1") is None
    assert objects.get("file", "one", "f\N{LATIN SMALL LETTER E WITH ACUTE}") is None
    assert (ids(objects), ids(objects, "two")) == (["f1"], [])


def test_an_id_that_somebody_has_is_not_given_to_another(objects: HostObjects) -> None:
    objects.put("file", "one", "a", file("f1"))

    assert not objects.put("file", "two", "b", file("f1"))

    found = objects.get("file", "one", "f1")
    assert found is not None and found.account == "a"
    assert objects.get("file", "two", "f1") is None


def test_only_its_owner_removes_an_object(objects: HostObjects) -> None:
    objects.put("file", "one", "a", file("f1"))

    objects.remove("file", "two", "f1")
    assert objects.count("file", "one") == 1
    objects.remove("file", "one", "f1")
    assert objects.count("file", "one") == 0


def test_pages(objects: HostObjects) -> None:
    for number in range(5):
        objects.put("file", "one", "a", file(f"f{number}", "batch" if number % 2 else "x"))
        objects.put("file", "two", "a", file(f"g{number}"))

    assert ids(objects) == ["f4", "f3", "f2", "f1", "f0"]
    assert ids(objects, oldest_first=True, after="f1") == ["f2", "f3", "f4"]
    assert ids(objects, after="f2") == ["f1", "f0"]
    assert ids(objects, purpose="batch") == ["f3", "f1"]
    assert objects.page("file", "one", limit=2, after="g1") is None
    for limit, more in ((4, True), (5, False)):
        page = objects.page("file", "one", limit=limit)
        assert page is not None and page[1] is more


def test_a_new_word_of_its_host_keeps_its_place(objects: HostObjects) -> None:
    objects.put("file", "one", "a", file("f1"))
    objects.put("file", "one", "a", file("f2"))
    objects.put("file", "one", "a", {**file("f1"), "status": "error"})

    assert ids(objects) == ["f2", "f1"]
    found = objects.get("file", "one", "f1")
    assert found is not None and found.value["status"] == "error"


def test_another_worker_and_a_restart_know_it(
    objects: HostObjects, clock: FakeClock, tmp_path: Path
) -> None:
    objects.put("file", "one", "a", file("f1"))

    with opened(tmp_path, clock) as other:
        assert other.get("file", "one", "f1") is not None
    assert (tmp_path / DIRECTORY).stat().st_mode & 0o777 == 0o700


def test_batches_go_when_their_host_has_forgotten_them_and_files_stay(
    objects: HostObjects, clock: FakeClock
) -> None:
    objects.put("batch", "one", "a", {"id": "b1"})
    objects.put("file", "one", "a", file("f1"))
    clock.advance(41 * DAY)
    objects.put("batch", "two", "a", {"id": "b2"})

    assert objects.get("batch", "one", "b1") is None
    assert objects.get("file", "one", "f1") is not None


def test_a_large_object_is_kept_without_its_details(objects: HostObjects) -> None:
    objects.put("batch", "one", "a", {"id": "b1", "status": "failed", "errors": "x" * 100_000})

    found = objects.get("batch", "one", "b1")
    assert found is not None and found.value == {"id": "b1", "status": "failed"}


def test_a_file_that_cannot_be_used_is_told(clock: FakeClock, tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).write_text("in the way")

    with opened(tmp_path, clock) as objects, pytest.raises(ApiError) as told:
        objects.count("file", "one")

    assert (told.value.status, told.value.code) == (503, "file_store_unavailable")
