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


def certificate(directory: Path) -> Path:
    """A self-signed certificate with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    return self_signed(directory / "both.pem", "DNS:localhost")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reader_gets_what_comes_and_is_not_woken_for_what_is_passed(
    tls: bool, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.processes.reads_user"]
    command += [str(certificate(tmp_path))] if tls else []
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    seen = json.loads(done.stdout)
    assert seen == {
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
    assert done.stderr == "", "nothing is left to the hub, which would print it"
