"""Files that are replaced as a whole, whatever stands in the way."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.files import durable
from tests.kit.privileges import as_ordinary_user

only_as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "qwen"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def path(directory: Path) -> Path:
    file = directory / "oauth_creds.json"
    file.write_bytes(b"old content")
    file.chmod(0o600)
    return file


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("content", [b"", b"new", b"x" * 100_000])
def test_a_file_is_replaced(path: Path, content: bytes) -> None:
    before = path.stat()

    durable.replace_file(path, content)

    after = path.stat()
    assert path.read_bytes() == content
    assert after.st_ino != before.st_ino
    assert after.st_mtime_ns > before.st_mtime_ns + 1_000_000
    assert names(path) == [path.name]


def test_a_file_is_created(directory: Path) -> None:
    path = directory / "new.json"
    before = os.umask(0)
    try:
        durable.replace_file(path, b"new")
    finally:
        os.umask(before)

    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600


def test_a_file_that_all_could_read_is_closed(path: Path) -> None:
    path.chmod(0o644)

    durable.replace_file(path, b"new")
    assert mode(path) == 0o600


def test_a_reservation_holds_room_and_leaves_the_target_alone(path: Path) -> None:
    reservation = durable.reserve(path, path.stat().st_size)

    (temp,) = (path.parent / name for name in names(path) if name != path.name)
    assert temp.name.startswith(f"{durable.PREFIX}{os.getpid()}-")
    assert temp.stat().st_size == len("old content") + 4096
    assert temp.stat().st_blocks * 512 >= 4096
    assert mode(temp) == 0o600
    assert b"old content" not in temp.read_bytes(), "room, and nothing of a login"
    assert path.read_bytes() == b"old content"

    reservation.publish(b"new")
    assert path.read_bytes() == b"new"
    assert reservation.published
    reservation.discard()
    assert names(path) == [path.name]


def test_a_discarded_reservation_leaves_nothing(path: Path) -> None:
    reservation = durable.reserve(path, 0)
    reservation.discard()
    reservation.discard()

    assert names(path) == [path.name]
    assert path.read_bytes() == b"old content"
    with pytest.raises(OSError, match="Bad file descriptor"):
        reservation.publish(b"new")


@pytest.mark.parametrize("ahead_s", [0, 5, 86_400, 80 * 365 * 86_400])
def test_the_mtime_grows_even_from_the_future(path: Path, ahead_s: int) -> None:
    """qwen-code would keep the old refresh token, spend it, and delete the file."""
    future_ns = time.time_ns() + ahead_s * 1_000_000_000
    os.utime(path, ns=(future_ns, future_ns))

    durable.replace_file(path, b"one")
    first_ns = path.stat().st_mtime_ns
    durable.replace_file(path, b"two")

    assert first_ns > future_ns + 1_000_000
    assert path.stat().st_mtime_ns > first_ns + 1_000_000


def test_the_mtime_grows_on_a_file_system_with_whole_seconds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as some network file systems."""
    future_s = int(time.time()) + 1000
    os.utime(path, (future_s, future_s))
    utime = os.utime
    monkeypatch.setattr(
        os, "utime", lambda fd, *, ns: utime(fd, ns=(ns[0], ns[1] // 10**9 * 10**9))
    )

    durable.replace_file(path, b"new")
    assert path.stat().st_mtime_ns > future_s * 10**9


def test_a_symlink_stays_one(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(path)

    reservation = durable.reserve(link, 0)
    assert len(names(path)) == 2, "it must be reserved where the real file is"
    reservation.publish(b"new")

    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_a_symlink_to_nothing_makes_the_file_that_it_names(directory: Path) -> None:
    link = directory / "link.json"
    link.symlink_to("real.json")

    durable.replace_file(link, b"new")

    assert link.is_symlink()
    assert (directory / "real.json").read_bytes() == b"new"


def test_a_symlink_that_became_a_file_is_replaced(path: Path, tmp_path: Path) -> None:
    """As qwen-code 0.24.4 does when it writes; the link's old target is nobody's file now."""
    link = tmp_path / "link.json"
    link.symlink_to(path)
    reservation = durable.reserve(link, 0)
    os.replace(_write(tmp_path / "other", b"theirs"), link)

    reservation.publish(b"new")

    assert link.read_bytes() == b"new"
    assert path.read_bytes() == b"old content"
    assert names(path) == [path.name]


def test_a_file_that_was_deleted_is_made_again(path: Path) -> None:
    reservation = durable.reserve(path, 0)
    path.unlink()

    reservation.publish(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_mount_point_is_rewritten_in_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A single file that is mounted into a container."""

    def refuse(*_args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    path.write_bytes(b"old and longer content")
    before = path.stat()
    os.utime(path, ns=(0, time.time_ns() + 10**12))
    old_ns = path.stat().st_mtime_ns

    durable.replace_file(path, b"new")

    assert path.read_bytes() == b"new"
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns > old_ns + 1_000_000
    assert names(path) == [path.name]


@only_as_root
def test_a_real_mount_point(path: Path, tmp_path: Path) -> None:
    outside = _write(tmp_path / "outside.json", b"old content")
    done = subprocess.run(
        [
            "unshare",
            "-m",
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                import subprocess
                from pathlib import Path
                from qwen_wsgi.credentials.files import durable
                bind = ["mount", "--bind", {str(outside)!r}, {str(path)!r}]
                if subprocess.run(bind, capture_output=True).returncode:
                    raise SystemExit("cannot mount here")
                durable.replace_file(Path({str(path)!r}), b"new")
                remount = ["mount", "-o", "remount,bind,ro", {str(path)!r}]
                subprocess.run(remount, check=True)
                try:
                    durable.reserve(Path({str(path)!r}), 0)
                except OSError as error:
                    print(error.strerror)
            """),
        ],
        capture_output=True,
        text=True,
    )
    if "cannot mount here" in done.stderr or "unshare" in done.stderr:
        pytest.skip("this environment allows no mounts")
    assert (done.stdout, done.stderr) == ("Read-only file system\n", "")
    assert outside.read_bytes() == b"new"
    assert names(path) == [path.name]


def test_a_failed_rename_can_be_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published may exist nowhere else."""

    def refuse(*_args: Any) -> None:
        raise OSError(errno.EIO, "an accident")

    reservation = durable.reserve(path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="an accident"):
            reservation.publish(b"new")
    assert not reservation.published
    assert path.read_bytes() == b"old content"

    reservation.publish(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_directory_that_cannot_be_synced(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raises: bool
) -> None:
    """Some file systems have no such thing; a real fault comes after the file was replaced."""
    sync = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    reservation = durable.reserve(path, 0)
    if raises:
        with pytest.raises(OSError, match=os.strerror(number)):
            reservation.publish(b"new")
    else:
        reservation.publish(b"new")

    assert reservation.published
    assert path.read_bytes() == b"new"


def test_everything_is_synced_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content, then name: a power cut must not leave a new name for an empty file."""
    order: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(fd: int) -> None:
        order.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        sync(fd)

    def replace(*args: Any) -> None:
        order.append("rename")
        rename(*args)

    reservation = durable.reserve(path, 0)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    reservation.publish(b"new")

    assert order == ["file", "rename", "directory"]


def test_a_full_disk_is_found_when_reserving(path: Path) -> None:
    """The kernel's limit on the size of files stands in for a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            durable.reserve(path, path.stat().st_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert path.read_bytes() == b"old content"
    assert names(path) == [path.name]


def test_a_disk_that_fills_up_later_spares_the_target(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    reservation = durable.reserve(path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            reservation.publish(b"new")
    reservation.discard()

    assert path.read_bytes() == b"old content"
    assert names(path) == [path.name]


def test_writes_that_are_cut_short_are_finished(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, bytes(data)[:7], at))

    durable.replace_file(path, b"0123456789" * 10)
    assert path.read_bytes() == b"0123456789" * 10


def test_a_read_only_directory_or_file_is_found_when_reserving(path: Path) -> None:
    path.chmod(0o400)
    with as_ordinary_user(path.parent), pytest.raises(PermissionError):
        durable.reserve(path, 0)
    path.chmod(0o600)
    path.parent.chmod(0o500)
    try:
        with as_ordinary_user(path.parent), pytest.raises(PermissionError):
            durable.reserve(path, 0)
    finally:
        path.parent.chmod(0o700)
    assert names(path) == [path.name]


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@only_as_root
def test_what_nobody_may_not_write_is_found_when_reserving() -> None:
    """A file of root, as of one who once ran the CLI by sudo; and a directory of root."""
    # Not in pytest's directory, which only root may enter.
    with tempfile.TemporaryDirectory() as name:
        path = _write(Path(name) / "oauth_creds.json", b"old content")
        path.chmod(0o600)
        path.parent.chmod(0o777)
        with as_nobody(), pytest.raises(PermissionError, match="Permission denied"):
            durable.reserve(path, 0)
        path.chmod(0o666)
        with as_nobody(), pytest.raises(PermissionError, match="belongs to another user"):
            durable.reserve(path, 0)
        os.chown(path, 65534, 65534)
        path.parent.chmod(0o755)
        with as_nobody(), pytest.raises(PermissionError, match="Permission denied"):
            durable.reserve(path, 0)
        path.parent.chmod(0o777)
        path.chmod(0o400)
        with as_nobody(), pytest.raises(PermissionError, match="Permission denied"):
            durable.reserve(path, 0)
        assert names(path) == [path.name]
        path.chmod(0o600)
        with as_nobody():
            durable.replace_file(path, b"new")
        assert path.stat().st_uid == 65534


@only_as_root
def test_root_keeps_the_owner(path: Path) -> None:
    os.chown(path, 65534, 65533)
    durable.replace_file(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)

    durable.replace_file(path, b"new", keep_owner=False)
    assert path.stat().st_uid == 0


@only_as_root
def test_root_gives_a_new_file_to_the_owner_of_the_directory(directory: Path) -> None:
    os.chown(directory, 65534, 65533)
    path = directory / "new.json"

    durable.replace_file(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)

    durable.make_directory(directory / "inner")
    assert (directory / "inner").stat().st_uid == 65534


@only_as_root
def test_root_follows_no_link_of_somebody_else(directory: Path, tmp_path: Path) -> None:
    """Its owner could have root create and give away files anywhere."""
    target = tmp_path / "target"
    target.mkdir(0o755)
    link = directory / "link"
    link.symlink_to(target)
    os.chown(link, 65534, 65534, follow_symlinks=False)

    with pytest.raises(OSError, match="symbolic link of another user"):
        durable.make_directory(link)

    assert target.stat().st_uid == 0
    os.chown(link, 0, 0, follow_symlinks=False)
    durable.make_directory(link)  # root's own


def test_a_directory_for_secrets_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    durable.make_directory(path)
    assert mode(path) == 0o700

    path.chmod(0o755)
    durable.make_directory(path)
    assert mode(path) == 0o755, "one that is there is somebody's choice"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_file_is_refused(directory: Path, kind: str) -> None:
    path = directory / "odd"
    path.mkdir() if kind == "directory" else os.mkfifo(path)

    with pytest.raises(OSError):  # EISDIR, ENXIO or EINVAL
        durable.reserve(path, 0)
    assert names(path) == ["odd"]


def test_old_left_overs_are_swept(path: Path) -> None:
    left = _write(path.with_name(".qwen-proxy-123-abc"), b"left over")
    os.utime(left, ns=(0, time.time_ns() + 10**15))
    path.with_name(".qwen-proxy-directory").mkdir()
    path.with_name(".qwen-proxy").mkdir()
    mine = durable.reserve(path, 0)

    assert durable.sweep(path.parent, now_s=time.time() + 3500) == 0
    assert durable.sweep(path.parent, now_s=time.time() + 3700) == 2

    assert names(path) == [".qwen-proxy", ".qwen-proxy-directory", path.name]
    mine.discard()
    assert durable.sweep(path.parent / "missing", now_s=time.time()) == 0


def test_those_of_processes_that_ended_are_swept_at_once_where_nobody_else_is_at_work(
    path: Path,
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = _write(path.with_name(f".qwen-proxy-{ended.pid}-abc"), b"left over")
    odd = _write(path.with_name(".qwen-proxy-odd"), b"whose is it?")
    mine = durable.reserve(path, 0)
    now_s = time.time()

    assert durable.sweep(path.parent, now_s=now_s + 5) == 0
    assert durable.sweep(path.parent, now_s=now_s, alone=True) == 0, "it may be written just now"
    assert durable.sweep(path.parent, now_s=now_s + 5, alone=True) == 1
    assert not dead.exists() and odd.exists()
    mine.publish(b"new")
    assert path.read_bytes() == b"new"


def test_a_file_that_has_changed_is_not_replaced(path: Path) -> None:
    reservation = durable.reserve(path, 10)
    with pytest.raises(durable.TargetChanged):
        reservation.publish(b"new", unchanged=lambda: False)
    assert path.read_bytes() == b"old content"
    reservation.publish(b"newer", unchanged=lambda: True)
    assert path.read_bytes() == b"newer"


def test_readers_never_see_half_a_file(path: Path) -> None:
    """A process that reads without pause, while another one writes."""
    code = f"""
        import sys
        from pathlib import Path
        path, seen = Path({str(path)!r}), set()
        print("ready", flush=True)
        while b"end" not in seen:
            content = path.read_bytes()
            assert len(set(content)) == 1 or content in (b"old content", b"end"), content[:50]
            seen.add(content)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout and reader.stdout.readline() == "ready\n"
        for number in range(200):
            durable.replace_file(path, bytes([65 + number % 26]) * (1 + number * 101 % 20_000))
        durable.replace_file(path, b"end")
        assert reader.wait(20) == 0


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
