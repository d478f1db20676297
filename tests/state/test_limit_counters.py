"""Counters of limits that workers share, and what becomes of them when something is wrong."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_wsgi.access.limits import ROWS, Calendar, Granted, Limits, Refused
from qwen_wsgi.state import file_lock
from qwen_wsgi.state.limits import counters
from qwen_wsgi.state.limits.counter import Counter
from qwen_wsgi.state.limits.counters import UNUSED_S, LimitCounters
from tests.fakes.clock import FakeClock

LIMITS = Limits(rpm=10, tpm=1000, tokens_per_day=5000, concurrency=4)


class Box:
    """Workers that share a directory, and which of them are dead."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.dead: set[str] = set()
        self.workers: list[LimitCounters] = []

    def worker(self, name: str = "", *, patience_s: float = 0.02) -> LimitCounters:
        name = name or f"worker-{len(self.workers)}"
        made = LimitCounters(
            self.directory,
            self.clock,
            Calendar("UTC"),
            boottime=self.clock.monotonic,
            worker=lambda: name,
            is_gone=lambda worker, silent_s: worker in self.dead or silent_s > 45,
            patience_s=patience_s,
        )
        self.workers.append(made)
        return made

    @property
    def file(self) -> Path:
        assert self.directory is not None
        (file,) = self.directory.iterdir()
        return file


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path / "state/limits")
    box.directory.parent.mkdir()  # type: ignore[union-attr]  # it was given
    yield box
    for worker in box.workers:
        worker.close()


def reserved(counter: Counter, tokens: int = 0, limits: Limits = LIMITS) -> Granted:
    found = counter.reserve(limits, tokens=tokens)
    assert isinstance(found, Granted), found
    return found


def left(counter: Counter) -> dict[str, float]:
    return {name: room.left for name, room in counter.remaining(LIMITS).items()}


ALL = {"rpm": 10, "tpm": 1000, "tokens_per_day": 5000, "concurrency": 4}


def test_workers_count_together(box: Box) -> None:
    one, other = box.worker().of("c"), box.worker().of("c")
    call = reserved(one, 300)
    reserved(other, 100)
    one.count(2)

    assert left(one) == left(other)
    assert left(one) == {"rpm": 6, "tpm": 600, "tokens_per_day": 4600, "concurrency": 2}
    one.settle(call, 50, requests=0)
    assert left(other) == {"rpm": 6, "tpm": 850, "tokens_per_day": 4850, "concurrency": 3}


def test_clients_do_not_count_together(box: Box) -> None:
    worker = box.worker()
    reserved(worker.of("a"))

    assert left(worker.of("b")) == ALL
    assert left(worker.of("a"))["rpm"] == 9


def test_the_file_is_small_private_and_tells_nothing_of_the_client(box: Box) -> None:
    reserved(box.worker().of("client-id"))

    status = box.file.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(box.file.parent.stat().st_mode) == 0o700
    assert status.st_size <= 40_000
    assert b"client-id" not in box.file.read_bytes()
    assert len(box.file.name) == 34


def test_a_restart_forgets_nothing(box: Box) -> None:
    worker = box.worker()
    call = reserved(worker.of("c"), 300)
    worker.of("c").settle(call, 200)
    worker.close()
    box.clock.advance(30)

    assert left(box.worker().of("c")) == {**ALL, "rpm": 9, "tpm": 800, "tokens_per_day": 4800}


def test_after_a_minute_and_at_midnight_all_is_free_again(box: Box) -> None:
    counter = box.worker().of("c")
    for _ in range(4):
        reserved(counter, 250)
    assert isinstance(counter.reserve(LIMITS, tokens=1), Refused)

    box.clock.advance(60)
    assert left(counter) == {**ALL, "tokens_per_day": 4000, "concurrency": 0}
    box.clock.advance(12 * 3600)
    assert left(counter) == {**ALL, "concurrency": 0}


# --- workers that die ----------------------------------------------------------------------------


def test_what_a_dead_worker_held_comes_back_with_the_next_round(box: Box) -> None:
    dead, alive = box.worker("dead"), box.worker()
    reserved(dead.of("c"), 300)
    box.clock.advance(20)
    reserved(dead.of("c"), 100)
    reserved(alive.of("c"), 50)
    box.dead.add("dead")

    alive.look_after()

    assert left(alive.of("c")) == {"rpm": 7, "tpm": 950, "tokens_per_day": 4950, "concurrency": 3}


def test_a_refusal_looks_for_dead_workers_at_once(box: Box) -> None:
    dead, counter = box.worker("dead"), box.worker().of("c")
    for _ in range(4):
        reserved(dead.of("c"))
    found = counter.reserve(LIMITS)
    assert isinstance(found, Refused)
    assert found.limit == "concurrency"
    box.dead.add("dead")
    box.clock.advance(1)

    reserved(counter)


def test_a_new_worker_gives_back_what_the_one_before_held(box: Box) -> None:
    reserved(box.worker("dead").of("c"), 900)
    box.dead.add("dead")

    counter = box.worker().of("c")
    reserved(counter, 10)
    assert left(counter) == {"rpm": 8, "tpm": 990, "tokens_per_day": 4990, "concurrency": 3}


def test_settled_calls_of_a_dead_worker_stay_counted(box: Box) -> None:
    dead, alive = box.worker("dead"), box.worker()
    call = reserved(dead.of("c"), 300)
    dead.of("c").settle(call, 200)
    reserved(dead.of("c"), 100)
    box.dead.add("dead")
    reserved(alive.of("c"), 0)

    alive.look_after()

    assert left(alive.of("c"))["tpm"] == 800


def test_a_worker_that_stood_still_takes_its_own_back(box: Box) -> None:
    stopped, alive = box.worker("stopped"), box.worker()
    call = reserved(stopped.of("c"), 300)
    reserved(stopped.of("c"), 100)
    box.clock.advance(46)
    alive.of("c").count(1)
    alive.look_after()
    assert left(alive.of("c"))["concurrency"] == 4
    assert left(alive.of("c"))["tokens_per_day"] == 5000

    stopped.of("c").settle(call, 200)

    assert left(alive.of("c"))["concurrency"] == 3
    assert left(alive.of("c"))["tokens_per_day"] == 4700


def test_a_worker_that_lives_says_so(box: Box) -> None:
    working, other = box.worker(), box.worker()
    reserved(working.of("c"))
    for _ in range(12):
        box.clock.advance(5)
        working.look_after()
        other.of("c").count(1)
        other.look_after()

    assert left(other.of("c"))["concurrency"] == 3


def test_a_client_that_nobody_serves_costs_no_writes(box: Box) -> None:
    worker = box.worker()
    counter = worker.of("c")
    counter.settle(reserved(counter, 10), 10)
    worker.look_after()
    written = box.file.stat().st_mtime_ns
    os.utime(box.file, (1, 1))

    worker.look_after()

    assert box.file.stat().st_mtime_ns == 1_000_000_000 != written


def test_more_workers_than_rows_keep_to_the_limits_each_by_itself(box: Box) -> None:
    all_of_them = [box.worker(f"w{n}").of("c") for n in range(ROWS + 1)]
    many = LIMITS._replace(rpm=None, concurrency=ROWS + 2)
    for counter in all_of_them:
        reserved(counter, limits=many)
    last = all_of_them[-1]
    reserved(last, limits=many)
    found = last.reserve(many)

    assert isinstance(found, Refused)
    assert found.limit == "concurrency"
    assert left(all_of_them[0])["concurrency"] == 0


# --- locks ---------------------------------------------------------------------------------------


@pytest.fixture
def holder(box: Box) -> Iterator[Callable[[], None]]:
    """Holds the lock of the only file, as a worker does that was stopped; call it to let go."""
    reserved(box.worker("holder").of("c"), 100)
    fd = os.open(box.file, os.O_RDWR)
    assert file_lock.take(fd)
    yield lambda: file_lock.free(fd)
    os.close(fd)


def test_a_lock_that_is_held_for_long_stops_nobody_and_nothing_is_lost(
    box: Box, holder: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        counter = box.worker().of("c")
        call = reserved(counter, 200)
        counter.settle(call, 150)
        reserved(counter, 50)
        reserved(counter, 50)
        # It counts on from what it knew last, and keeps to the limits by itself.
        assert isinstance(counter.reserve(LIMITS, tokens=700), Refused)
    assert counter.remaining(LIMITS)["tpm"].left == 650
    assert caplog.text.count("locked by a process that does not go on") == 1
    holder()

    counter.count(1)

    other = box.worker().of("c")
    assert left(other) == {"rpm": 5, "tpm": 650, "tokens_per_day": 4650, "concurrency": 1}


def test_rounds_of_care_wait_for_no_lock(
    box: Box, holder: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    worker = box.worker(patience_s=5)
    worker.of("c").remaining(LIMITS)
    began_s = time.monotonic()
    worker.look_after()

    assert time.monotonic() - began_s < 1
    assert caplog.text == ""
    holder()
    worker.look_after()
    reserved(worker.of("c"))


def test_the_log_is_told_again_after_a_minute(
    box: Box, holder: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    counter = box.worker(patience_s=0).of("c")
    for _ in range(3):
        counter.count(1)
        box.clock.advance(31)

    assert caplog.text.count("does not go on") == 2


def test_a_lock_of_a_moment_is_waited_for(box: Box, holder: Callable[[], None]) -> None:
    counter = box.worker(patience_s=5).of("c")
    timer = threading.Timer(0.05, holder)
    timer.start()

    reserved(counter, 200)

    timer.join()
    assert left(box.worker().of("c"))["tpm"] == 700


def test_threads_of_one_process_count_exactly(box: Box) -> None:
    counter = box.worker(patience_s=30).of("c")
    limits = Limits(rpm=50)
    passed: list[bool] = []

    def run() -> None:
        passed.extend(isinstance(counter.reserve(limits), Granted) for _ in range(20))

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert passed.count(True) == 50


def test_a_file_system_without_locks_is_no_reason_to_stop(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int) -> bool:
        raise OSError("No locks available")

    counter = box.worker().of("c")
    monkeypatch.setattr(file_lock, "take", refuse)
    counter.settle(reserved(counter, 100), 60)
    reserved(counter, 100)

    assert counter.known_remaining(LIMITS)["tpm"].left == 840
    assert caplog.text.count("cannot be used") == 1
    monkeypatch.undo()
    assert isinstance(counter.reserve(LIMITS, tokens=900), Refused)


# --- files that are harmed -----------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["cut", "garbage", "emptied", "rows"])
def test_a_damaged_file_is_begun_anew_and_the_log_says_so(
    box: Box, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    one, other = box.worker(), box.worker()
    reserved(one.of("c"), 100)
    reserved(other.of("c"), 100)
    whole = box.file.read_bytes()
    harmed = {
        "cut": whole[:100],
        "garbage": whole[:50] + b"?" + whole[51:],
        "emptied": b"",
        "rows": whole[:4096] + b"\xff" * (len(whole) - 4096),
    }[harm]
    with box.file.open("r+b") as file:
        file.truncate(0)
        file.write(harmed)

    reserved(other.of("c"), 100)
    one.of("c").count(1)

    if harm == "rows":
        one.look_after()
        other.look_after()
    else:
        assert caplog.text.count("damaged or cut") == 1
    # What a worker knew is known again, and all have their places.
    assert left(one.of("c")) == left(other.of("c"))
    assert left(one.of("c")) == {"rpm": 6, "tpm": 700, "tokens_per_day": 4700, "concurrency": 1}


def test_a_damaged_file_of_which_nobody_knows_anything_begins_at_zero(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    worker = box.worker()
    reserved(worker.of("c"), 100)
    worker.close()
    box.file.write_bytes(b"\xff" * 5000)

    counter = box.worker().of("c")
    reserved(counter, 10)

    assert left(counter)["tpm"] == 990
    assert "damaged or cut" in caplog.text


def test_a_file_that_is_removed_begins_anew_for_all(box: Box) -> None:
    one, other = box.worker(), box.worker()
    reserved(one.of("c"), 100)
    reserved(other.of("c"), 100)
    box.file.unlink()
    one.look_after()
    other.look_after()
    reserved(one.of("c"), 100)

    other.of("c").count(1)

    assert left(other.of("c")) == {"rpm": 8, "tpm": 900, "tokens_per_day": 4900, "concurrency": 1}


@pytest.mark.parametrize("trouble", ["is a file", "no room"])
def test_without_a_file_each_worker_counts_by_itself(
    box: Box, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    assert box.directory is not None

    def refuse(fd: int, at: int, size: int) -> None:
        raise OSError("No space left on device")

    if trouble == "is a file":
        box.directory.write_text("in the way")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    worker = box.worker()
    counter = worker.of("c")
    counter.settle(reserved(counter, 300), 200)
    reserved(counter, 100)
    worker.look_after()

    assert left(counter) == {"rpm": 8, "tpm": 700, "tokens_per_day": 4700, "concurrency": 3}
    assert caplog.text.count("cannot be used") == 1

    # When it can be used again, what was counted meanwhile is booked.
    monkeypatch.undo()
    if trouble == "is a file":
        box.directory.unlink()
    worker.look_after()
    reserved(counter)
    assert left(box.worker().of("c")) == {
        "rpm": 7,
        "tpm": 700,
        "tokens_per_day": 4700,
        "concurrency": 2,
    }


def test_a_write_that_fails_is_not_forgotten(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, data: bytes, at: int) -> int:
        raise OSError("No space left on device")

    worker = box.worker()
    counter = worker.of("c")
    reserved(counter, 100)
    monkeypatch.setattr(os, "pwrite", refuse)
    for _ in range(3):
        reserved(counter, 100)
    assert isinstance(counter.reserve(LIMITS, tokens=601), Refused)
    assert "cannot be used" in caplog.text
    monkeypatch.undo()
    worker.look_after()

    counter.count(1)

    assert left(box.worker().of("c")) == {
        "rpm": 5,
        "tpm": 600,
        "tokens_per_day": 4600,
        "concurrency": 0,
    }


def test_a_link_in_the_place_of_a_file_is_not_followed(box: Box, tmp_path: Path) -> None:
    worker = box.worker()
    reserved(worker.of("c"))
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    file = box.file
    worker.close()
    file.unlink()
    file.symlink_to(target)

    reserved(box.worker().of("c"))

    assert target.read_bytes() == b"precious"


# --- housekeeping --------------------------------------------------------------------------------


def test_files_of_clients_that_were_not_seen_for_long_are_removed(box: Box) -> None:
    worker = box.worker()
    reserved(worker.of("old"))
    worker.close()
    old = box.file
    box.clock.advance(UNUSED_S + 1)
    now = box.clock.now()
    os.utime(old, (now - UNUSED_S - 1, now - UNUSED_S - 1))
    reserved(worker.of("new"))
    (new,) = set(old.parent.iterdir()) - {old}
    os.utime(new, (now, now))

    worker.look_after()

    assert list(old.parent.iterdir()) == [new]


def test_a_file_that_is_locked_is_not_removed(box: Box, holder: Callable[[], None]) -> None:
    os.utime(box.file, (1, 1))

    box.worker().look_after()
    assert box.file.exists()


def test_files_of_idle_clients_are_closed_when_there_are_many(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "_MOST_OPEN", 2)
    worker = box.worker()
    busy = reserved(worker.of("busy"), 100)
    worker.of("idle").settle(reserved(worker.of("idle"), 100), 60)
    before = len(os.listdir("/proc/self/fd"))

    for name in ("a", "b", "c"):
        worker.of(name).settle(reserved(worker.of(name), 10), 10)

    assert len(os.listdir("/proc/self/fd")) == before
    assert left(worker.of("idle"))["tpm"] == 940
    worker.of("busy").settle(busy, 20)
    assert left(worker.of("busy"))["tpm"] == 980


def test_without_a_directory_it_counts_in_memory() -> None:
    box = Box(None)
    worker = box.worker()
    counter = worker.of("c")
    counter.settle(reserved(counter, 300), 200, requests=1)
    reserved(counter, 100)
    worker.look_after()

    assert left(counter) == {"rpm": 9, "tpm": 700, "tokens_per_day": 4700, "concurrency": 3}
    worker.close()
