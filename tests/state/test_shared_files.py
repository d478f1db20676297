"""The files that workers share: whatever is done to them, a look and a write go on."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from struct import Struct

import pytest

from qwen_wsgi.state.shared_files import Number, SharedFiles, Table, key_of

ROW = Struct("=8sdI")
KEY = key_of("one")
NAME = "board"


def table(files: SharedFiles | None, *, version: str = "1", rows: int = 64) -> Table:
    return Table(files, NAME, ROW, version=version, rows=rows, age=1, numbers=2)


def file_in(directory: Path) -> Path:
    (found,) = directory.glob(f"{NAME}-*")
    return found


def cut(file: Path) -> None:
    os.truncate(file, 0)


def cut_in_the_middle(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def fill_with_garbage(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(random.Random(1).randbytes(size + 100))


def fill_with_letters(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(b"A" * size)


HARM = [cut, cut_in_the_middle, fill_with_garbage, fill_with_letters]


class TestTable:
    def test_a_row_is_found_by_its_key_until_it_is_removed(self) -> None:
        rows = table(None)
        assert rows.get(KEY) is None
        rows.put(KEY, 1.0, 5)
        rows.put(KEY, 2.0, 6)
        rows.put(key_of("two"), 1.0, 7)
        assert rows.get(KEY) == (KEY, 2.0, 6)
        assert sorted(row[2] for row in rows.rows()) == [6, 7]
        rows.remove(KEY)
        rows.remove(key_of("never written"))
        assert rows.get(KEY) is None
        assert rows.get(key_of("two")) == (key_of("two"), 1.0, 7)

    def test_the_oldest_makes_room(self) -> None:
        rows = table(None, rows=1)
        keys = [key_of(str(number)) for number in range(5)]
        for age, key in zip((30.0, 10.0, 20.0, 40.0, 50.0), keys, strict=True):
            rows.put(key, age, 0)
        assert [rows.get(key) is not None for key in keys] == [True, False, True, True, True]

    def test_every_key_has_a_place(self) -> None:
        """Also those whose first place is the last row."""
        rows = table(None, rows=3)
        for number in range(200):
            key = key_of(str(number))
            rows.put(key, float(number), number)
            assert rows.get(key) == (key, float(number), number)

    def test_numbers_stand_beside_the_rows(self) -> None:
        rows = table(None)
        first, second = rows.numbers
        assert (first.get(), second.get()) == (0.0, 0.0)
        first.set(1.5)
        second.set(-2.5)
        rows.put(KEY, 1.0, 5)
        assert (first.get(), second.get()) == (1.5, -2.5)


class TestFile:
    def test_it_is_shared_and_private(self, tmp_path: Path) -> None:
        state = tmp_path / "new" / "state"
        one, other = table(SharedFiles(state)), table(SharedFiles(state))
        one.put(KEY, 1.0, 5)
        one.numbers[0].set(7.0)
        assert other.get(KEY) == (KEY, 1.0, 5)
        assert other.numbers[0].get() == 7.0
        assert file_in(state).stat().st_mode & 0o777 == 0o600

    def test_a_copy_begins_with_it_and_writes_nothing(self, tmp_path: Path) -> None:
        server = table(SharedFiles(tmp_path))
        server.put(KEY, 1.0, 5)
        copy = table(SharedFiles(tmp_path, copy=True))
        assert copy.get(KEY) == (KEY, 1.0, 5)
        copy.put(KEY, 2.0, 6)
        copy.numbers[1].set(3.0)
        assert copy.get(KEY) == (KEY, 2.0, 6)
        assert server.get(KEY) == (KEY, 1.0, 5)
        assert server.numbers[1].get() == 0.0

    @pytest.mark.parametrize("harm", HARM)
    def test_what_was_harmed_tells_nothing_and_takes_what_is_written(
        self, tmp_path: Path, harm: Callable[[Path], None]
    ) -> None:
        one, other = table(SharedFiles(tmp_path)), table(SharedFiles(tmp_path))
        keys = [key_of(str(number)) for number in range(40)]
        for number, key in enumerate(keys):
            one.put(key, 1.0, number)
        one.numbers[0].set(1.0)

        harm(file_in(tmp_path))

        values = {key: number for number, key in enumerate(keys)}
        for key in keys:
            found = other.get(key)
            assert found is None or found == (key, 1.0, values[key])
        assert other.numbers[0].get() in (0.0, 1.0)
        for key in keys[:10]:
            one.put(key, 2.0, 9)
            assert other.get(key) == (key, 2.0, 9)
        one.numbers[0].set(4.0)
        assert other.numbers[0].get() == 4.0
        assert all(row[:1] and row[1] in (1.0, 2.0) for row in other.rows())

    @pytest.mark.parametrize("harm", HARM)
    def test_the_next_start_takes_it(self, tmp_path: Path, harm: Callable[[Path], None]) -> None:
        table(SharedFiles(tmp_path)).put(KEY, 1.0, 5)
        harm(file_in(tmp_path))
        one, other = table(SharedFiles(tmp_path)), table(SharedFiles(tmp_path))
        one.put(KEY, 3.0, 6)
        assert other.get(KEY) == (KEY, 3.0, 6)

    def test_half_a_row_is_not_there(self, tmp_path: Path) -> None:
        """As it is read while another worker writes it, on file systems that let one see that."""
        rows = table(SharedFiles(tmp_path))
        rows.put(KEY, 1.0, 5)
        content = file_in(tmp_path).read_bytes()
        at = content.index(KEY)
        with file_in(tmp_path).open("r+b") as opened:
            opened.seek(at + 10)
            opened.write(b"\xff\xff")
        assert rows.get(KEY) is None

    def test_a_cut_is_told_and_mended_after_seconds(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        files = SharedFiles(tmp_path)
        table(files)
        file = file_in(tmp_path)
        size = file.stat().st_size
        cut(file)
        for _ in range(2):
            files.look_after()
        assert file.stat().st_size == size
        assert [record.getMessage() for record in caplog.records] == [
            f"a file that workers share was cut path={file}"
        ]

    @pytest.mark.parametrize("how", ["removed", "replaced", "with its directory"])
    def test_a_file_that_is_gone_is_begun_anew_by_all(
        self, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = tmp_path / "state"
        files = [SharedFiles(state), SharedFiles(state)]
        one, other = (table(each) for each in files)
        one.put(KEY, 1.0, 5)
        file = file_in(state)
        if how == "replaced":
            (state / "other").write_bytes(b"")
            (state / "other").rename(file)
        else:
            file.unlink()
            if how == "with its directory":
                state.rmdir()
        assert other.get(KEY) == (KEY, 1.0, 5)

        for each in files:
            each.look_after()

        later = table(SharedFiles(state))
        one.put(KEY, 2.0, 6)
        assert other.get(KEY) == later.get(KEY) == (KEY, 2.0, 6)
        assert [record.getMessage() for record in caplog.records] == [
            f"a file that workers share was replaced, and begins anew path={file}"
        ] * 2
        for each in files:
            each.look_after()
        assert len(caplog.records) == 2

    @pytest.mark.parametrize("obstacle", ["directory", "link", "pipe"])
    def test_what_is_no_file_is_not_used_and_told_once(
        self, tmp_path: Path, obstacle: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        table(SharedFiles(tmp_path))
        file = file_in(tmp_path)
        file.unlink()
        if obstacle == "directory":
            file.mkdir()
        elif obstacle == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(tmp_path / "elsewhere")
        rows = table(SharedFiles(tmp_path))
        for number in range(3):
            rows.put(KEY, 1.0, number)
        assert rows.get(KEY) in (None, (KEY, 1.0, 2))
        assert not (tmp_path / "elsewhere").exists()
        assert len(caplog.records) == 1

    def test_another_version_has_a_file_of_its_own(self, tmp_path: Path) -> None:
        old = table(SharedFiles(tmp_path), version="1")
        old.put(KEY, 1.0, 5)
        new = table(SharedFiles(tmp_path), version="2")
        assert new.get(KEY) is None
        file_in(tmp_path)  # what the older one left is gone

    def test_a_write_that_fails_is_told_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As on a full disk, after a cut."""
        rows = table(SharedFiles(tmp_path))
        number = Number(SharedFiles(tmp_path).open("number", Number.SIZE, version="1"))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            for _ in range(3):
                rows.put(KEY, 1.0, 5)
                number.set(1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert rows.get(KEY) is None
        rows.put(KEY, 1.0, 5)
        assert rows.get(KEY) == (KEY, 1.0, 5)
        assert [os.strerror(errno.EFBIG) in record.getMessage() for record in caplog.records] == [
            True,
            True,
        ]

    def test_descriptors_are_given_back(self, tmp_path: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            table(SharedFiles(tmp_path)).put(KEY, 1.0, 5)
        assert len(os.listdir("/proc/self/fd")) <= before + 2

    def test_a_process_outlives_the_cut_of_what_it_reads(self, tmp_path: Path) -> None:
        """SIGBUS is nothing that a test in this process could see."""
        program = (
            "import os, sys; from pathlib import Path\n"
            "from tests.state.test_shared_files import *\n"
            "directory = Path(sys.argv[1])\n"
            "rows = table(SharedFiles(directory))\n"
            "for number in range(300):\n"
            "    rows.put(KEY, 1.0, number)\n"
            "    HARM[number % len(HARM)](file_in(directory))\n"
            "    rows.get(KEY), list(rows.rows()), rows.numbers[1].get()\n"
            "print('alive')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
