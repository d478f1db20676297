"""Files of our own: whole or as they were, whatever fails and whenever the process is killed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import whole_files
from tests.kit.privileges import as_ordinary_user
from tests.kit.processes import REPOSITORY

Write = Callable[[Path], Any]

WAYS: dict[str, Write] = {
    "replace": lambda path: whole_files.replace(path, b"new"),
    "replace what is only a view": lambda path: whole_files.replace(path, b"new", durable=False),
    "make": lambda path: whole_files.make(path, b"new", mode=0o600),
    "make once": lambda path: whole_files.make_once(path, b"new"),
}
#: Those that wait for the disk.
DURABLE = [name for name in WAYS if "view" not in name]


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory."""
    made = tmp_path / "place"
    made.mkdir()
    return made


def failing(number: int, *, of_directories: bool = False) -> Callable[[int], None]:
    """An fsync that fails, for files or for directories."""
    sync = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == of_directories:
            raise OSError(number, os.strerror(number))
        sync(fd)

    return fsync


@pytest.mark.parametrize("way", WAYS)
def test_a_file_is_made_for_its_user_alone(place: Path, way: str) -> None:
    path = place / "file"
    before = os.umask(0o777)
    try:
        WAYS[way](path)
    finally:
        os.umask(before)

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(place) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced(place: Path, durable: bool) -> None:
    path = place / "file"
    path.write_bytes(b"old and longer")

    whole_files.replace(path, b"x" * 100_000, durable=durable)

    assert path.read_bytes() == b"x" * 100_000
    assert os.listdir(place) == ["file"]


def test_what_is_there_is_not_made(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"old")

    assert not whole_files.make_once(path, b"new")
    with pytest.raises(FileExistsError):
        whole_files.make(path, b"new", mode=0o600)

    assert path.read_bytes() == b"old"
    assert os.listdir(place) == ["file"]
    path.unlink()
    assert whole_files.make_once(path, b"new")


def test_a_file_that_its_user_may_not_read_is_made_too(place: Path) -> None:
    with as_ordinary_user(place):
        whole_files.make(place / "file", b"new", mode=0o040)

    assert stat.S_IMODE((place / "file").stat().st_mode) == 0o040


def test_a_complete_file_gets_its_name(place: Path) -> None:
    aside, target = place / "aside", place / "target"
    aside.write_bytes(b"new")
    target.write_bytes(b"old")

    whole_files.publish(aside, target)

    assert target.read_bytes() == b"new"
    assert os.listdir(place) == ["target"]


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        WAYS[way](place / "file")

    assert os.listdir(place) == []


@pytest.mark.parametrize("way", DURABLE)
def test_a_disk_that_fails_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        WAYS[way](place / "file")

    assert os.listdir(place) == []


@pytest.mark.parametrize("way", WAYS)
def test_where_nobody_may_write_nothing_is_changed(place: Path, way: str) -> None:
    (place / "old").touch()
    place.chmod(0o500)
    with as_ordinary_user(place), pytest.raises(PermissionError):
        WAYS[way](place / "file")
    place.chmod(0o700)

    assert os.listdir(place) == ["old"]


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(place: Path) -> None:
    (place / "file" / "in the way").mkdir(parents=True)

    with pytest.raises(OSError, match="irectory"):
        whole_files.replace(place / "file", b"new")

    assert os.listdir(place) == ["file"]


@pytest.mark.parametrize("way", DURABLE)
def test_a_file_system_that_cannot_sync_names_is_good_enough(
    place: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Some network and FUSE file systems."""
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL, of_directories=True))

    WAYS[way](place / "file")

    assert (place / "file").read_bytes() == b"new"


@pytest.mark.parametrize("way", DURABLE)
def test_a_disk_that_does_not_keep_the_name_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, of_directories=True))

    with pytest.raises(OSError, match="Input/output"):
        WAYS[way](place / "file")

    assert os.listdir(place) in ([], ["file"]), "nothing aside"


def test_everything_is_synced_in_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name: a power cut must not leave a new name for an empty file."""
    order: list[str] = []
    calls = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def noted(name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            of_directory = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            order.append("directory" if of_directory else name)
            calls[name](*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, noted(name))

    def taken(way: Write) -> list[str]:
        order.clear()
        way(place / "file")
        (place / "file").unlink()
        return order.copy()

    def published(path: Path) -> None:
        aside = path.with_name("aside")
        aside.write_bytes(b"new")
        whole_files.publish(aside, path)

    assert taken(WAYS["replace"]) == ["fsync", "replace", "directory"]
    assert taken(published) == ["fsync", "replace", "directory"]
    assert taken(WAYS["make"]) == ["fsync", "directory"]
    assert taken(WAYS["make once"]) == ["fsync", "link", "directory"]
    assert taken(WAYS["replace what is only a view"]) == ["replace"]


#: Kills itself at the nth of the calls that change something on the disk.
_KILLED = """
import os, signal, sys
from pathlib import Path
from qwen_wsgi import whole_files
left = int(sys.argv[3])
def at(name):
    call = getattr(os, name)
    def counted(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    setattr(os, name, counted)
for name in ("open", "pwrite", "ftruncate", "fsync", "replace", "link", "unlink"):
    at(name)
getattr(whole_files, sys.argv[1])(Path(sys.argv[2]), b"new")
"""


@pytest.mark.once
@pytest.mark.parametrize(("way", "old"), [("replace", b"old"), ("make_once", None)])
def test_a_process_that_is_killed_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, way: str, old: bytes | None
) -> None:
    seen = set()
    for step in range(20):
        place = tmp_path / str(step)
        place.mkdir()
        path = place / "file"
        if old is not None:
            path.write_bytes(old)
        command = [sys.executable, "-c", _KILLED, way, str(path), str(step)]
        done = subprocess.run(command, cwd=REPOSITORY, timeout=30)
        found = path.read_bytes() if path.exists() else None
        seen.add(found)
        assert found in (old, b"new")
        assert all(name.startswith(".file.") for name in os.listdir(place) if name != "file")
        if done.returncode == 0:
            break
    assert seen == {old, b"new"}
    assert os.listdir(place) == ["file"]
