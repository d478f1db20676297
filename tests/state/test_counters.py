"""What workers have counted: nothing is lost or counted twice, whenever a worker dies."""

from __future__ import annotations

import logging
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_wsgi.state import counters
from qwen_wsgi.state.counters import Rows, SharedCounters

CALLS = ("calls", "ok")
IN_FLIGHT = ("in_flight",)


class Box:
    """A machine whose workers begin, count, write and die as a test says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = 100.0
        self.dead: set[str] = set()
        self.namespace = "here"
        self.workers: list[Worker] = []

    def begin(self) -> Worker:
        worker = Worker(self, f"boot/{self.namespace}/{len(self.workers)}/1")
        self.workers.append(worker)
        return worker

    def gone(self, worker: str, silent_s: float) -> bool:
        return worker in self.dead

    @property
    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory)) if self.directory.exists() else []

    def close(self) -> None:
        for worker in self.workers:
            worker.shared.close()


class Worker:
    """One worker with its counts."""

    def __init__(self, box: Box, name: str) -> None:
        self.box = box
        self.name = name
        self.rows: Rows = {}
        self.shared = SharedCounters(
            box.directory,
            since=box.now,
            boottime=lambda: box.now,
            worker=lambda: name,
            gone=box.gone,
        )

    def count(self, number: int = 1) -> None:
        self.add({CALLS: [number]})

    def add(self, rows: Rows) -> None:
        for key, (number,) in rows.items():
            self.rows.setdefault(key, [0])[0] += number

    def write(self) -> None:
        self.shared.write(self.rows, {IN_FLIGHT: [1]})

    def take_over(self) -> bool:
        taken = self.shared.take_over(self.add)
        if taken:
            self.write()
        return taken

    def is_due(self) -> bool:
        return self.shared.is_due

    def die(self) -> None:
        self.box.dead.add(self.name)

    def total(self, key: tuple[str, ...] = CALLS) -> float:
        own: Rows = {IN_FLIGHT: [1.0]}
        found = [self.rows if key == CALLS else own]
        for block in self.shared.others():
            found.append(block.counts if key == CALLS else block.gauges)
        return sum(rows.get(key, [0])[0] for rows in found)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "metrics")
    yield made
    made.close()


def test_each_worker_adds_up_what_all_have_written(box: Box) -> None:
    one, two = box.begin(), box.begin()
    one.count(3)
    two.count(4)
    one.write()
    two.write()

    assert (one.total(), two.total()) == (7, 7)
    assert (one.total(IN_FLIGHT), two.total(IN_FLIGHT)) == (2, 2)
    assert [block.since for block in one.shared.others()] == [100.0]
    one.count()
    assert (one.total(), two.total()) == (8, 7), "the own ones at once, the others' when written"


def test_nobody_else_can_read_the_files(box: Box) -> None:
    box.begin().write()

    (name,) = box.files
    assert stat.S_IMODE((box.directory / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(box.directory.stat().st_mode) == 0o700


def test_a_dead_worker_counts_on_but_does_nothing_any_more(box: Box) -> None:
    one, two = box.begin(), box.begin()
    two.count(4)
    two.write()
    one.write()
    two.die()

    assert one.total() == 4
    assert one.total(IN_FLIGHT) == 1
    assert [block.since for block in one.shared.others()] == [0.0]


def test_a_worker_that_has_been_silent_is_not_shown_as_running(box: Box) -> None:
    one, two = box.begin(), box.begin()
    two.count()
    two.write()
    box.now += 46
    one.write()

    assert (one.total(), one.total(IN_FLIGHT)) == (1, 1)
    assert not one.take_over(), "the machine may have slept"


def test_a_dead_worker_is_taken_over_once(box: Box) -> None:
    one, two, three = box.begin(), box.begin(), box.begin()
    for worker in (one, two, three):
        worker.count(10)
        worker.write()
    three.die()

    assert one.take_over()
    assert not two.take_over()
    assert (one.total(), two.total()) == (30, 30)
    assert len(box.files) == 2
    one.die()
    assert two.take_over()
    assert two.total() == 30
    assert len(box.files) == 1


def test_the_counts_of_a_server_before_go_on(box: Box) -> None:
    for _ in range(3):
        worker = box.begin()
        worker.write()
        worker.take_over()
        worker.count(5)
        worker.write()
        worker.die()

    last = box.begin()
    last.write()
    assert last.total() == 15


def test_who_has_not_written_yet_takes_nothing_over(box: Box) -> None:
    one, two = box.begin(), box.begin()
    one.count()
    one.write()
    one.die()

    assert not two.take_over()
    assert two.total() == 1


#: The steps of taking over after which a worker may be killed.
def _after_the_name(worker: Worker) -> None:
    worker.shared.take_over(worker.add)


def _after_the_sum(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(counters, "_remove", lambda path: None)
        worker.take_over()


@pytest.mark.parametrize("step", ["named", "written"])
def test_a_worker_that_dies_while_it_takes_over(
    box: Box, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = box.begin(), box.begin(), box.begin()
    for worker in (one, two, three):
        worker.count(10)
        worker.write()
    three.die()
    if step == "named":
        _after_the_name(one)
    else:
        _after_the_sum(one, monkeypatch)
    assert two.total() == 30, "in the middle"
    assert len(box.files) == 3
    one.die()

    assert two.total() == 30, "dead in the middle"
    assert two.take_over()
    assert two.total() == 30
    assert len(box.files) == 1


def test_what_was_taken_is_named_until_nobody_reads_it_any_more(box: Box) -> None:
    one, two, three = box.begin(), box.begin(), box.begin()
    for worker in (one, two, three):
        worker.count(10)
        worker.write()
    # What another worker read before the file was removed.
    (block,) = [block for block in two.shared.others() if block.worker == three.name]
    three.die()
    one.take_over()
    one.write()

    (found,) = two.shared.others()
    assert block.id in found.taken
    box.now += 61
    one.write()
    (found,) = two.shared.others()
    assert found.taken == ()


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_deaths_and_takings_loses_nothing(
    box: Box, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    counted = 0.0
    alive = [box.begin() for _ in range(3)]
    for worker in alive:
        worker.write()
    for _ in range(60):
        worker = chance.choice(alive)
        step = chance.randrange(6)
        if step < 2:
            worker.count(1)
            worker.write()
            counted += 1
        elif step == 2:
            worker.take_over()
        elif step == 3:
            _after_the_name(worker)
            worker.die()
        elif step == 4:
            _after_the_sum(worker, monkeypatch)
            worker.die()
        else:
            box.now += chance.choice((1, 30, 70))
        if worker.name in box.dead:
            alive.remove(worker)
            alive.append(box.begin())
            alive[-1].write()
        assert [each.total() for each in alive] == [counted] * 3, step
    for worker in alive[1:]:
        worker.die()
    alive[0].take_over()
    alive[0].take_over()
    assert alive[0].total() == counted
    assert len(box.files) == 1


def test_two_that_take_over_at_once(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one has read the files before the first one took them."""
    one, two, three, four = (box.begin() for _ in range(4))
    for worker in (one, two, three, four):
        worker.count(10)
        worker.write()
    four.die()
    _after_the_sum(three, monkeypatch)  # three names four, whose file is still there
    three.die()
    readable = two.shared._readable(box.directory)
    one.take_over()
    monkeypatch.setattr(two.shared, "_readable", lambda directory: readable)

    assert not two.take_over()
    assert (one.total(), two.total()) == (40, 40)


def test_files_that_change_while_they_are_read_are_read_again(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = box.begin(), box.begin(), box.begin()
    for worker in (one, two, three):
        worker.count(10)
        worker.write()
    three.die()
    listed = counters._files
    times = 0

    def taken_in_between(directory: Path) -> list[counters._File]:
        nonlocal times
        found = listed(directory)
        times += 1
        if times == 1:
            one.take_over()
        return found

    monkeypatch.setattr(counters, "_files", taken_in_between)
    assert two.total() == 30
    assert times > 2


def test_a_worker_of_another_container_has_ended_after_an_hour(box: Box) -> None:
    box.namespace = "there"
    other = box.begin()
    other.count()
    other.write()
    box.namespace = "here"
    one = box.begin()
    box.now += 3599
    one.write()
    assert not one.take_over()
    box.now += 2
    assert one.take_over()
    assert one.total() == 1


def test_a_worker_that_was_taken_over_by_mistake_begins_anew(box: Box) -> None:
    one, two = box.begin(), box.begin()
    for worker in (one, two):
        worker.count(10)
        worker.write()
    two.die()
    one.take_over()
    box.dead.clear()
    assert two.is_due()
    two.write()
    two.count()
    two.write()

    assert (one.total(), two.total()) == (21, 21)


def test_who_removes_the_directory_begins_anew(box: Box) -> None:
    one = box.begin()
    one.count(5)
    one.write()
    for name in box.files:
        (box.directory / name).unlink()
    box.directory.rmdir()
    assert one.is_due()
    one.write()

    assert one.total() == 0
    assert not one.is_due()


def _cut(file: Path) -> None:
    os.truncate(file, 0)


def _fill(file: Path) -> None:
    file.write_bytes(random.Random(1).randbytes(5000))


def _number(file: Path) -> None:
    with file.open("r+b") as opened:
        for place in (0, counters._PLACE):
            opened.seek(place)
            opened.write(b"\xff" * 16)


@pytest.mark.parametrize("harm", [_cut, _fill, _number])
def test_a_harmed_file_harms_nothing_else(box: Box, harm: Callable[[Path], None]) -> None:
    one, two = box.begin(), box.begin()
    one.count(1)
    one.write()
    two.count(2)
    two.write()
    for name in box.files:
        harm(box.directory / name)
    assert one.total() == 1
    two.write()

    assert one.total() == 3


def test_a_cut_file_is_due(box: Box) -> None:
    one = box.begin()
    one.write()
    assert not one.is_due()
    _cut(box.directory / box.files[0])
    assert one.is_due()
    one.write()
    assert not one.is_due()
    box.now += 15
    assert one.is_due(), "a sign of life"


def test_a_half_written_block_leaves_the_one_before(box: Box) -> None:
    one, two = box.begin(), box.begin()
    for number in (1, 2, 3, 4):
        one.count()
        one.write()
        path = box.directory / box.files[0]
        with path.open("r+b") as opened:
            # In the place that was just written.
            opened.seek((number % 2) * counters._PLACE + 40)
            opened.write(b"\0" * 20)
        assert two.total() == number - 1
        one.shared._number -= 1  # the same once more
        one.write()
        assert two.total() == number


def test_unreadable_files_go_after_a_day(box: Box) -> None:
    one = box.begin()
    one.write()
    old, fresh = (box.directory / f"block-1-{name}" for name in ("old", "fresh"))
    old.write_bytes(b"x" * 100)
    fresh.write_bytes(b"")
    os.utime(old, (1000, 1000))
    one.take_over()

    assert fresh.exists()
    assert not old.exists()


def test_what_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics").write_text("a file in the place of the directory")
    box = Box(tmp_path / "metrics")
    one = box.begin()
    one.count()
    with caplog.at_level(logging.WARNING, counters.__name__):
        one.write()
        one.write()
    assert len(caplog.records) == 1
    assert (one.total(), one.take_over()) == (1, False)
    (tmp_path / "metrics").unlink()
    one.write()
    assert box.files
    box.close()


def test_what_is_too_large_is_told(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    one = box.begin()
    one.count()
    one.write()
    one.add({("x" * counters._PLACE,): [1]})
    with caplog.at_level(logging.WARNING, counters.__name__):
        one.write()
    assert "more than there is room for" in caplog.text
    two = box.begin()
    assert two.total() == 1, "what was written before stays"


def test_without_a_directory_everything_stays_here() -> None:
    alone = SharedCounters(None)
    alone.write({CALLS: [1]}, {})

    assert not alone.is_due
    assert alone.others() == []
    assert not alone.take_over(lambda rows: None)
    alone.close()


def test_this_process_is_a_worker_that_runs(tmp_path: Path) -> None:
    one, two = SharedCounters(tmp_path), SharedCounters(tmp_path)
    one.write({CALLS: [1]}, {IN_FLIGHT: [2]})
    two.write({}, {})
    (found,) = two.others()
    one.close()
    two.close()

    assert (found.counts, found.gauges) == ({CALLS: [1]}, {IN_FLIGHT: [2]})
