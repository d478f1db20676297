"""What `make lint` and the hooks check of files."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.servers import REPO

_CHECKS: dict[str, Any] = runpy.run_path(str(REPO / ".ci/check_files.py"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("good.py", b"x = 1\n", ""),
        ("empty.py", b"", ""),
        ("a.py", b"x = 1 \n", "1: white space at the end"),
        ("a.py", b"x = 1\r\n", "1: white space at the end"),
        ("a.py", b"x = 1", "no newline at the end"),
        ("a.py", b"x = 1\n\n", "empty lines at the end"),
        ("a.py", b"x = 1\n" + b"<" * 7 + b" HEAD\n", "2: a mark of a merge"),
        ("a.py", b"x = 1\n" + b">" * 7 + b" theirs\n", "2: a mark of a merge"),
        ("a.sse", b"data: cut ", ""),
        ("a.png", b"\0" * (513 * 1024), "513 kB are more than 512"),
        ("a.json", b'{"a": }\n', "cannot be read"),
        ("a.json", b'{"a": 1}\n', ""),
        ("a.toml", b"a = \n", "1: white space at the end|cannot be read"),
        ("a.toml", b"a = 1\n", ""),
        ("a.yaml", b"a: [1\n", "cannot be read"),
        ("a.yaml", b"a: [1]\n", ""),
        ("a.cfg", b"a = 1\n", "cannot be read"),
        ("a.cfg", b"[a]\na = 1\n", ""),
    ],
)
def test_a_file(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    found = "|".join(_CHECKS["complaints"](path))

    if complaint:
        for part in complaint.split("|"):
            assert part in found
    else:
        assert found == ""


def test_the_command_names_file_and_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("x = 1 \n")
    command = [sys.executable, str(REPO / ".ci/check_files.py"), "wrong.py"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, "wrong.py: 1: white space at the end\n")


def test_the_hooks_are_what_make_lint_runs() -> None:
    """And all of them are local: none is fetched."""
    found = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())
    lint = (REPO / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    for repository in found["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["language"] == "system"
            program, *arguments = hook["entry"].replace(" --force-exclude", "").split()
            assert program == ".venv/bin/python"
            assert f"@$(python) {' '.join(arguments)}" in lint
