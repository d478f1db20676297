"""What calls write down, and how it is read: exactly once, whatever breaks."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.state import file_lock
from qwen_wsgi.state.call_journal import Journals, JournalWriter
from tests.fakes.clock import FakeClock
from tests.kit.properties import examples


class Table:
    """A target in memory."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.read: dict[str, int] = {}
        self.before_add: Callable[[], None] = lambda: None

    def offset(self, journal: str) -> int:
        return self.read.get(journal, 0)

    def add(self, journal: str, begin: int, end: int, lines: Sequence[bytes]) -> int | None:
        self.before_add()
        if self.offset(journal) != begin:
            return None
        self.read[journal] = end
        good = [line for line in lines if line.endswith(b"]")]
        self.lines += good
        return len(lines) - len(good)

    def forget(self, journals: Sequence[str]) -> None:
        self.read = {name: at for name, at in self.read.items() if name in journals}


class Disk:
    """`os.write` to a disk that is full, or cuts a write after some bytes."""

    def __init__(self) -> None:
        self.is_full = False
        self.takes: int | None = None

    def write(self, fd: int, data: bytes) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data[: self.takes])


class World:
    """A writer, a reader, and what is between them."""

    def __init__(self, directory: Path, **options: int) -> None:
        self.directory = directory / "ledger"
        self.clock, self.disk, self.table = FakeClock(), Disk(), Table()
        self.writer = self.new_writer(**options)
        self.journals = Journals(
            self.directory,
            self.table,
            monotonic=self.clock.monotonic,
            sleep=self.clock.advance,
        )

    def new_writer(self, **options: int) -> JournalWriter:
        return JournalWriter(
            self.directory, monotonic=self.clock.monotonic, write=self.disk.write, **options
        )

    @property
    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.jsonl"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with closing(world.writer):
        yield world


def line(number: int) -> bytes:
    return b"[1,%d]\n" % number


def numbers(found: Sequence[bytes]) -> list[int]:
    return [int(each[3:-1]) for each in found]


def test_lines_are_read_once_in_their_order(world: World) -> None:
    assert world.journals.fold() == (0, True)
    before = world.journals.exist
    for number in range(3):
        world.writer.append(line(number))
    assert (before, world.journals.exist) == (False, True)
    assert world.journals.fold() == (3, True)
    assert world.journals.fold() == (0, True)
    world.writer.append(line(3))
    assert world.journals.fold() == (1, True)

    assert numbers(world.table.lines) == [0, 1, 2, 3]
    assert world.directory.stat().st_mode & 0o777 == 0o700
    assert world.files[0].stat().st_mode & 0o777 == 0o600


def test_a_journal_goes_when_nobody_writes_to_it_any_more(world: World) -> None:
    world.writer.append(line(1))
    world.journals.fold()
    assert len(world.files) == 1

    world.writer.close()
    world.journals.fold()

    assert world.files == []
    assert world.table.read == {}
    # Also one that nobody has read yet; a writer that goes on begins another one.
    world.writer.append(line(2))
    world.writer.close()
    world.journals.fold()
    assert (world.files, numbers(world.table.lines)) == ([], [1, 2])


def test_a_large_journal_is_left_for_a_new_one(tmp_path: Path) -> None:
    world = World(tmp_path, max_bytes=20)
    for number in range(10, 17):
        world.writer.append(line(number))

    assert sorted(file.stat().st_size for file in world.files) == [7, 21, 21]
    world.journals.fold()
    assert sorted(numbers(world.table.lines)) == list(range(10, 17))
    assert len(world.files) == 1
    world.writer.close()


def test_what_another_process_has_locked_is_not_read(world: World) -> None:
    world.writer.append(line(1))
    lock = os.open(world.directory / "fold.lock", os.O_RDWR | os.O_CREAT)
    try:
        assert file_lock.take(lock)
        before = world.clock.monotonic()
        assert world.journals.fold(wait_s=0.5) == (0, False)
        assert world.clock.monotonic() - before == pytest.approx(0.5, abs=0.05)
    finally:
        os.close(lock)
    assert world.journals.fold() == (1, True)


def test_a_round_ends_when_its_time_is_over(world: World) -> None:
    for number in range(40_000):
        world.writer.append(line(number))
    world.table.before_add = lambda: world.clock.advance(1)

    done = world.journals.fold(work_s=0.5)

    assert not done.is_whole
    assert 0 < done.lines < 40_000
    while not world.journals.fold(work_s=0.5).is_whole:
        pass
    assert numbers(world.table.lines) == list(range(40_000))


def test_the_place_that_another_reader_has_moved_is_seen(world: World) -> None:
    world.writer.append(line(1))

    def other() -> None:
        world.table.before_add = lambda: None
        world.table.add(world.files[0].name, 0, len(line(1)), [b"[1,1]"])

    world.table.before_add = other

    assert world.journals.fold() == (0, False)
    assert world.journals.fold() == (0, True)
    assert numbers(world.table.lines) == [1]


# --- what breaks ---------------------------------------------------------------------------------


def test_what_cannot_be_written_waits_in_memory(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.writer.append(line(0))
    world.disk.is_full = True
    for number in range(1, 4):
        world.writer.append(line(number))
        world.clock.advance(2)
    world.journals.fold()
    assert numbers(world.table.lines) == [0]
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    world.clock.advance(60)
    world.writer.flush()
    assert len(caplog.records) == 2
    assert "3 wait in memory (0 are lost)" in caplog.text

    world.disk.is_full = False
    world.clock.advance(2)
    world.writer.append(line(4))
    world.writer.append(line(5))

    world.journals.fold()
    assert numbers(world.table.lines) == [0, 1, 2, 3, 4, 5]


def test_a_disk_that_fails_is_not_asked_for_each_call(world: World) -> None:
    world.disk.is_full = True
    world.writer.append(line(0))
    asked: list[int] = []

    def write(fd: int, data: bytes) -> int:
        asked.append(fd)
        raise OSError(errno.EIO, "no")

    world.writer._write = write
    for number in range(5):
        world.writer.append(line(number))

    assert asked == []


def test_only_so_many_wait_and_the_log_tells_how_many_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, max_waiting=3)
    world.disk.is_full = True
    for number in range(5):
        world.writer.append(line(number))
    world.disk.is_full = False
    world.writer.flush()

    world.journals.fold()

    assert numbers(world.table.lines) == [2, 3, 4]
    assert "2 calls are lost" in caplog.text
    world.writer.close()


def test_a_line_of_which_a_part_was_written_is_taken_back(world: World) -> None:
    world.writer.append(line(0))
    world.disk.takes = 4
    world.writer.append(line(1))
    assert world.files[0].read_bytes() == line(0)
    world.disk.takes = None
    world.clock.advance(2)
    world.writer.append(line(2))

    world.journals.fold()

    assert numbers(world.table.lines) == [0, 1, 2]


@pytest.mark.parametrize(("takes", "warned"), [(3, True), (4, True), (5, False)])
def test_a_part_that_cannot_be_taken_back_is_left_out(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    takes: int,
    warned: bool,
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "no")

    world.writer.append(line(0))
    monkeypatch.setattr(os, "ftruncate", refuse)
    world.disk.takes = takes
    world.writer.append(line(1))
    world.disk.takes = None
    world.clock.advance(2)
    world.writer.append(line(2))

    with caplog.at_level(logging.WARNING, "qwen_wsgi.state.call_journal"):
        world.journals.fold()

    assert sorted(numbers(world.table.lines)) == [0, 1, 2]
    assert ("1 lines that cannot be read" in caplog.text) == warned


def test_the_end_of_a_journal_whose_process_died_within_a_line_is_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.writer.append(line(0))
    world.writer.close()
    with world.files[0].open("ab") as file:
        file.write(b"[1,1")

    assert world.journals.fold() == (1, True)
    assert world.files == []
    assert "1 lines that cannot be read" in caplog.text


def test_a_whole_line_without_its_end_is_one_once_its_process_is_gone(world: World) -> None:
    world.writer.append(line(0))
    with world.files[0].open("ab") as file:
        file.write(b"[1,1]")
    world.journals.fold()
    assert numbers(world.table.lines) == [0]

    world.writer.close()
    world.journals.fold()

    assert numbers(world.table.lines) == [0, 1]


def test_garbage_without_an_end_is_passed_over(world: World) -> None:
    world.writer.append(line(0))
    with world.files[0].open("ab") as file:
        file.write(bytes(300_000))
    world.writer.append(b"\n" + line(1))

    while not world.journals.fold().is_whole:
        pass

    assert numbers(world.table.lines) == [0, 1]


def test_a_journal_that_was_cut_is_read_from_its_beginning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.writer.append(line(0))
    world.journals.fold()
    os.truncate(world.files[0], 0)
    world.journals.fold()
    world.writer.append(line(1))
    world.journals.fold()

    assert numbers(world.table.lines) == [0, 1]
    assert "was cut" in caplog.text
    # What another reader has done meanwhile is not undone.
    os.truncate(world.files[0], 0)
    world.table.before_add = lambda: world.table.read.clear()
    assert world.journals.fold() == (0, False)


def test_a_journal_that_was_removed_is_begun_anew(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.writer.append(line(0))
    world.files[0].unlink()
    world.writer.flush()
    assert "was removed" in caplog.text
    world.writer.append(line(1))

    world.journals.fold()

    assert numbers(world.table.lines) == [1]


def test_a_directory_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger").write_text("a file")
    world = World(tmp_path)
    world.writer.append(line(0))
    assert "1 wait in memory" in caplog.text
    (tmp_path / "ledger").unlink()
    world.writer.close()

    world.journals.fold()

    assert numbers(world.table.lines) == [0]


def test_a_file_that_cannot_be_opened_does_not_keep_the_others_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.writer.append(line(0))
    (world.directory / "0-link.jsonl").symlink_to(world.files[0])

    assert world.journals.fold() == (1, False)
    assert "0-link.jsonl" in caplog.text


def test_a_reader_that_comes_between_the_making_of_a_file_and_its_lock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, tries = file_lock.take, list[int]()

    def late(fd: int, *, shared: bool = False) -> bool:
        if shared and not tries:
            tries.append(fd)
            monkeypatch.setattr(file_lock, "take", take)
            world.journals.fold()  # removes the file, which is empty
        return take(fd, shared=shared)

    monkeypatch.setattr(file_lock, "take", late)
    world.writer.append(line(0))
    world.journals.fold()

    assert tries
    assert numbers(world.table.lines) == [0]


# --- the property --------------------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(
        ("write", "write", "fold", "full", "free", "part", "wait", "die", "reader-dies")
    ),
    max_size=40,
)


class Killed(BaseException):
    """A process ends here."""


@given(steps=STEPS)
@examples(50)
def test_whatever_happens_each_call_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    world = World(tmp_path_factory.mktemp("ledger"), max_bytes=40)
    written, waiting = 0, list[int]()
    lost = set[int]()

    def kill() -> None:
        world.table.before_add = lambda: None
        raise Killed

    for step in steps:
        if step == "write":
            world.writer.append(line(written))
            waiting.append(written)
            written += 1
        elif step == "fold":
            world.journals.fold()
        elif step == "full":
            world.disk.is_full = True
        elif step == "free":
            world.disk.is_full, world.disk.takes = False, None
        elif step == "part":
            world.disk.takes = 3
        elif step == "wait":
            world.clock.advance(2)
            world.writer.flush()
        elif step == "reader-dies":
            world.table.before_add = kill
            with suppress(Killed):
                world.journals.fold()
            world.table.before_add = lambda: None
        else:
            # What waited in memory is lost with its process.
            lost |= {int(each[3:-2]) for each in world.writer._waiting}
            world.writer._leave()
            world.writer = world.new_writer(max_bytes=40)
    world.disk.is_full, world.disk.takes = False, None
    world.clock.advance(2)
    world.writer.close()
    world.journals.fold()

    assert sorted(numbers(world.table.lines)) == sorted(set(range(written)) - lost)
    assert world.files == []
