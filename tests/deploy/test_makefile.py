"""The Makefile: what it offers, and what it says when something is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.kit.servers import REPO

#: What the scripts use, apart from the things whose absence is tested.
TOOLS = ("make", "sh", "awk", "cat", "cksum", "dirname", "env", "grep", "id", "pwd", "rm", "tail")

Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with nothing on it but the usual tools: no Python, no systemd, no nginx."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in TOOLS:
        (directory / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return directory


@pytest.fixture
def make(tmp_path: Path, tools: Path) -> Make:
    """Runs make in a copy of the checkout, at a path with spaces in it."""
    checkout = tmp_path / "check out"
    checkout.mkdir()
    shutil.copytree(REPO / "install", checkout / "install")
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(REPO / name, checkout)

    def run(
        *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(tools / "make"), *arguments],
            cwd=checkout,
            # Debian's directories and pyenv's are looked at only where a test says so.
            env={"PATH": str(tools), "HOME": str(tmp_path), "PYTHON_PLACES": "", **(env or {})},
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


def program(path: Path, script: str) -> Path:
    path.unlink(missing_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return path


def fake_python(path: Path, change: str) -> Path:
    """A Python in which `change` was executed before the script that it is given to probe it."""
    script = f"import sys; {change}; exec(sys.stdin.read())"
    return program(path, f'shift 2\nexec "{sys.executable}" -c "{script}" "$@"\n')


OLD = "sys.version_info = (3, 9, 2)"
NO_VENV = "sys.modules['ensurepip'] = None"


def found_python(
    make: Make, tools: Path, option: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """What `install/python.sh` says in the copy of the checkout."""
    (tools / "probe.mk").write_text(f"all: ; @sh install/python.sh {option}\n")
    return make("-s", "-f", str(tools / "probe.mk"), env=env)


def test_make_alone_shows_every_target(make: Make) -> None:
    done = make()
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"^  make (\w+) +\S", done.stdout, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert shown == phony.split()
    assert len(shown) <= 17


def test_the_documented_targets_are_there(make: Make) -> None:
    shown = make("help").stdout
    for name in ("run", "test", "fast", "lint", "fix", "bench", "install", "uninstall", "clean"):
        assert f"make {name} " in shown


def test_no_python(make: Make) -> None:
    done = make("run")
    assert done.returncode != 0
    assert "there is no Python 3 on PATH" in done.stderr
    assert "sudo apt-get install python3 python3-venv" in done.stderr


def test_an_old_python(make: Make, tools: Path) -> None:
    fake_python(tools / "python3", OLD)
    done = make("test")
    assert "needs Python 3.11 or newer; found 3.9" in done.stderr
    assert "sudo apt-get install python3 python3-venv" in done.stderr


def test_a_python_without_venv(make: Make, tools: Path) -> None:
    fake_python(tools / "python3", NO_VENV)
    done = make("run")
    assert "cannot create a virtual environment" in done.stderr
    assert "sudo apt-get install python3-venv\n" in done.stderr


def test_a_python_without_venv_beside_the_systems_own(make: Make, tools: Path) -> None:
    fake_python(tools / "python3", OLD)
    fake_python(tools / "python3.12", f"sys.version_info = (3, 12, 1); {NO_VENV}")
    assert "sudo apt-get install python3.12-venv\n" in make("run").stderr


def test_the_newest_usable_python_is_taken(make: Make, tools: Path) -> None:
    for name, change in (
        ("python3", OLD),
        ("python3.11", "sys._base_executable = '/the/3.11'"),
        ("python3.12", "sys._base_executable = '/the/3.12'"),
        ("python3.13", NO_VENV),
    ):
        fake_python(tools / name, change)
    # As a pyenv shim answers for a version that is not switched on.
    program(tools / "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127\n")
    assert found_python(make, tools).stdout == "/the/3.12\n"
    assert found_python(make, tools, PYTHON="python3.11").stdout == "/the/3.11\n"


def test_pyenvs_and_debians_pythons_are_found_beside_path(
    make: Make, tools: Path, tmp_path: Path
) -> None:
    fake_python(tools / "python3.11", "sys.version_info = (3, 11); sys._base_executable = '/11'")
    for place, name, change in (
        ("debian", "python3.12", "sys.version_info = (3, 12); sys._base_executable = '/12'"),
        ("debian", "python3.11", "sys.version_info = (3, 11); sys._base_executable = '/again'"),
        ("pyenv/versions/3.13.0/bin", "python3.13", NO_VENV),
        ("pyenv/versions/3.14.1/bin", "python3.14", "sys.version_info = (3, 14)"),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        fake_python(tmp_path / place / name, change)
    places = f"{tmp_path}/debian {tmp_path}/pyenv/versions/*/bin"

    newest = found_python(make, tools, PYTHON_PLACES=places).stdout
    every = found_python(make, tools, "--all", PYTHON_PLACES=places).stdout

    assert every.splitlines()[0] == newest.strip()
    assert every.splitlines()[1:] == ["/12", "/11"]
    assert found_python(make, tools, "--all", PYTHON="python3.11").stdout == "/11\n"


def test_a_python_that_was_asked_for_is_not_replaced_by_another(make: Make, tools: Path) -> None:
    fake_python(tools / "python3", "sys._base_executable = '/the/3'")
    old = fake_python(tools / "my old python", OLD)
    assert "needs Python 3.11 or newer" in found_python(make, tools, PYTHON=str(old)).stderr
    assert "PYTHON=/nowhere cannot be run" in make("run", "PYTHON=/nowhere").stderr


def test_installing_needs_root(make: Make, tools: Path) -> None:
    program(tools / "id", "echo 1000\n")
    assert "sudo make install" in make("install").stderr
    assert "sudo make uninstall" in make("uninstall").stderr


def test_installing_needs_systemd(make: Make, tools: Path) -> None:
    program(tools / "id", "echo 0\n")
    done = make("install")
    assert done.returncode != 0
    assert "sudo apt-get install systemd" in done.stderr


def test_the_service_cannot_use_a_python_in_a_home(make: Make, tools: Path) -> None:
    program(tools / "id", "echo 0\n")
    program(tools / "systemctl", "exit 1\n")
    mine = fake_python(tools / "mine", "sys.base_prefix = '/home/alice/.pyenv/versions/3.12.1'")
    done = make("install", f"PYTHON={mine}")
    assert done.returncode != 0
    assert "a directory that the service cannot read" in done.stderr
    assert "sudo apt-get install python3 python3-venv" in done.stderr


def test_clean_removes_what_the_targets_make(make: Make, tmp_path: Path, tools: Path) -> None:
    for name in ("find",):
        (tools / name).symlink_to(shutil.which(name) or "/usr/bin/find")
    checkout = tmp_path / "check out"
    for path in (
        ".venv/bin",
        ".venv-3.12/bin",
        "build",
        "a.egg-info",
        ".mypy_cache",
        "package/__pycache__",
    ):
        (checkout / path).mkdir(parents=True)
    before = {"install", "Makefile", "setup.cfg", "pyproject.toml", "package"}
    assert make("clean").returncode == 0
    assert set(os.listdir(checkout)) == before
    assert os.listdir(checkout / "package") == []
