"""Files that change, break, recover and vanish."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from qwen_wsgi.credentials.files import watched as files
from qwen_wsgi.credentials.files.watched import FileIdentity, Unusable, WatchedFile
from tests.fakes.clock import FakeClock
from tests.kit.privileges import as_ordinary_user


class Parser:
    """Upper-cases; refuses `bad…`; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, content: bytes, identity: FileIdentity) -> str:
        self.calls += 1
        if content.startswith(b"bad"):
            raise Unusable(f"is {content.decode()}", remedy="Repair it.")
        return content.decode().upper()


@pytest.fixture
def parser() -> Parser:
    return Parser()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def watched(path: Path, parser: Parser, clock: FakeClock) -> WatchedFile[str]:
    return WatchedFile(path, parser, clock, "~/file")


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    os.replace(new, path)


def test_an_unchanged_file_is_read_once(
    watched: WatchedFile[str], path: Path, parser: Parser
) -> None:
    path.write_text("one")

    first = watched.read()

    assert first.value == "ONE"
    assert all(watched.read() is first for _ in range(5))
    assert parser.calls == 1


def test_a_file_that_appears_changes_and_vanishes(watched: WatchedFile[str], path: Path) -> None:
    nothing = watched.read()
    assert (nothing.exists, nothing.value, nothing.problem) == (False, None, "")
    assert watched.read() is nothing

    replace(path, "one")
    assert watched.read().value == "ONE"
    replace(path, "two")
    assert watched.read().value == "TWO"

    path.unlink()
    assert watched.read() is nothing


def test_a_change_is_seen_although_the_mtime_went_back(
    watched: WatchedFile[str], path: Path
) -> None:
    path.write_text("one")
    watched.read()

    replace(path, "two")
    os.utime(path, ns=(1, 1))

    assert watched.read().value == "TWO"


def test_a_change_in_place_is_seen(watched: WatchedFile[str], path: Path) -> None:
    path.write_text("one")
    inode = path.stat().st_ino
    watched.read()

    path.write_text("three")

    assert path.stat().st_ino == inode
    assert watched.read().value == "THREE"


def test_a_broken_file_keeps_the_last_good_content_and_is_logged_once(
    watched: WatchedFile[str],
    path: Path,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path.write_text("one")
    watched.read()

    with caplog.at_level(logging.INFO):
        for text in ("bad", "bad still"):
            replace(path, text)
            reading = watched.read()
            assert (reading.value, reading.problem) == ("ONE", f"is {text}")
            assert reading.remedy == "Repair it."
            assert not reading.unreadable
        replace(path, "good")
        assert watched.read().value == "GOOD"

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "path=~/file" in caplog.messages[0]


def test_a_broken_file_is_read_again_after_a_while_although_it_looks_the_same(
    watched: WatchedFile[str], path: Path, parser: Parser, clock: FakeClock
) -> None:
    path.write_text("bad")
    first = watched.read()
    assert parser.calls == 1

    clock.advance(files.RETRY_S / 2)
    assert watched.read() is first
    assert parser.calls == 1

    clock.advance(files.RETRY_S)
    assert watched.read() is first
    assert parser.calls == 2


def test_a_broken_file_that_vanishes_is_gone(
    watched: WatchedFile[str], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("one")
    watched.read()
    replace(path, "bad")
    watched.read()

    path.unlink()
    with caplog.at_level(logging.INFO):
        reading = watched.read()

    assert (reading.exists, reading.value) == (False, None)
    assert "usable again" not in caplog.text


def test_a_directory_is_no_file(watched: WatchedFile[str], path: Path) -> None:
    path.mkdir()

    reading = watched.read()

    assert reading.problem == "cannot be read (it is a directory)"
    assert reading.unreadable
    assert reading.exists
    assert watched.read() is reading


def test_a_named_pipe_does_not_block(watched: WatchedFile[str], path: Path) -> None:
    os.mkfifo(path)

    assert watched.read().problem == "cannot be read (it is not a regular file)"


def test_a_huge_file_is_a_mistake(watched: WatchedFile[str], path: Path) -> None:
    path.touch()
    os.truncate(path, files.MAX_BYTES + 1)

    assert watched.read().problem == "cannot be read (it is larger than 4 MiB)"


def test_a_path_that_cannot_be_looked_at_is_a_problem_not_an_absence(
    watched: WatchedFile[str], path: Path
) -> None:
    path.symlink_to(path)

    reading = watched.read()

    assert reading.unreadable
    assert reading.exists
    assert watched.read() is reading


@pytest.mark.parametrize("what", ["file", "directory"])
def test_missing_permission_is_a_problem_not_an_absence(
    what: str, tmp_path: Path, parser: Parser, clock: FakeClock
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    path.write_text("one")
    watched = WatchedFile(path, parser, clock, "~/file")
    denied = path if what == "file" else folder
    denied.chmod(0)
    try:
        with as_ordinary_user(tmp_path):
            reading = watched.read()
            user = os.geteuid()
    finally:
        denied.chmod(0o700)

    owner = path.stat().st_uid
    if owner == user:  # no root here, who could become another one
        assert reading.problem == "cannot be read (Permission denied)"
    else:
        assert reading.problem == (
            f"cannot be read: it belongs to user {owner}, and qwen-proxy runs as user {user}"
        )
        assert f"--user {owner}:GROUP" in reading.remedy
    assert reading.unreadable
    clock.advance(1)
    assert watched.read().value == "ONE"


def test_descriptors_are_closed(watched: WatchedFile[str], path: Path) -> None:
    path.mkdir()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        watched.read()
        path.rmdir()
        path.mkdir()
    path.rmdir()
    path.write_text("one")
    watched.read()

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_repr_shows_no_content(watched: WatchedFile[str], path: Path) -> None:
    path.write_text("secret")

    assert "SECRET" not in repr(watched.read())
