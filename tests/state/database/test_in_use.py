"""The lock by which a restore knows that a server runs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.state.database.in_use import FILE, InUse, alone, hold, is_used

CHILD = """
import os, sys
from pathlib import Path
from qwen_wsgi.state.database.in_use import hold
hold(Path(sys.argv[1]))
if os.fork():
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(directory: Path) -> Iterator[None]:
    lock = hold(directory)
    try:
        yield
    finally:
        os.close(lock)


def test_several_servers_share_a_directory_and_keep_a_restore_away(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    assert not is_used(directory)
    with held(directory):
        with held(directory), pytest.raises(InUse), alone(directory):
            pass
        assert is_used(directory)
        with pytest.raises(InUse), alone(directory):
            pass
    assert not is_used(directory)
    with alone(directory):
        assert is_used(directory)
    assert (directory / FILE).stat().st_mode & 0o777 == 0o600


def test_a_server_waits_for_a_restore(tmp_path: Path) -> None:
    with ExitStack() as restore:
        restore.enter_context(alone(tmp_path))
        with pytest.raises(InUse):
            hold(tmp_path, sleep=lambda seconds: None)

        os.close(hold(tmp_path, sleep=lambda seconds: restore.close()))


def test_its_workers_hold_it_when_the_master_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert process.wait(10) == 0
        assert is_used(tmp_path)
    os.close(hold_alone(tmp_path))


def hold_alone(directory: Path) -> int:
    """Wait for the end of the child, which nobody but init is told."""
    lock = os.open(directory / FILE, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        hold(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
