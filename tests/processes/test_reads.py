"""How a worker reads an upstream's socket, plain or with TLS, while gevent serves others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.certificates import self_signed
from tests.kit.servers import REPO


def seen_by(way: str, *, tls: bool, directory: Path) -> object:
    """What a reader says that it saw."""
    command = [sys.executable, "-m", "tests.processes.reads_user", way]
    if tls:
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command")
        command.append(str(self_signed(directory / "both.pem", "DNS:localhost")))
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing is left to the hub, which would print it"
    return json.loads(done.stdout)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reader_gets_what_comes_and_is_not_woken_for_what_is_passed(
    tls: bool, tmp_path: Path
) -> None:
    assert seen_by("once", tls=tls, directory=tmp_path) == {
        "silence": "TimeoutError",
        "there": "there already",
        "late": "late",
        "mine": "mine",
        "fault": "ValueError",
        "passed": ["pass 1", "pass 2", "mine"],
        "silence of what is not passed": "TimeoutError",
        "large": True,
        "end": "",
        "again": "",
    }


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reader_of_a_kept_connection_rests_between_its_exchanges(
    tls: bool, tmp_path: Path
) -> None:
    assert seen_by("kept", tls=tls, directory=tmp_path) == {
        "first": "one",
        "second": "two",
        "before it is asked for": "at once",
        "silence": "TimeoutError",
        "quiet": False,
        "spoken to": True,
        "what came meanwhile": "rubbish",
        "end": "",
    }
