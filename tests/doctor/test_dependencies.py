"""What doctor says of dependencies that are older than the constraints file."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_wsgi.doctor import dependencies
from qwen_wsgi.doctor.dependencies import CONSTRAINTS, outdated, pinned
from qwen_wsgi.doctor.findings import Level
from qwen_wsgi.doctor.machine import Machine
from tests.fakes.machine import FakeMachine, one

PINS = pinned(CONSTRAINTS.read_text())


def test_nothing_is_said_against_what_is_as_pinned_or_newer(machine: FakeMachine) -> None:
    machine.installed = {**PINS, "urllib3": "99.0"}

    found = one(dependencies.check(machine))

    assert (found.level, found.remedy) == (Level.OK, "")


def test_each_older_one_is_named_with_both_versions_and_the_remedy(machine: FakeMachine) -> None:
    machine.installed = {**PINS, "urllib3": "2.0.7", "pip": "23.0.1"}

    found = one(dependencies.check(machine))

    assert found.level is Level.WARN
    assert f"pip 23.0.1 (now {PINS['pip']}), urllib3 2.0.7 (now {PINS['urllib3']})" in found.what
    assert "werkzeug" not in found.what
    assert "sudo make install" in found.remedy


def test_what_is_not_installed_is_not_missed(machine: FakeMachine) -> None:
    machine.installed = {name: PINS[name] for name in PINS if name not in ("pip", "pypdf")}

    assert one(dependencies.check(machine)).level is Level.OK


def test_versions_that_nothing_tells_are_not_called_good(machine: FakeMachine) -> None:
    assert one(dependencies.check(machine)).level is Level.SKIPPED


@pytest.mark.parametrize(
    ("has", "now", "older"),
    [
        ("2.9", "2.10", True),
        ("2.10", "2.9", False),
        ("1.0rc1", "1.0", True),
        ("2026.10.19", "2026.10.19.post1", True),
        ("1.0+local", "1.0", False),
        ("of our own", "1.0", False),
        (None, "1.0", False),
    ],
)
def test_versions_are_compared_by_pep_440(has: str | None, now: str, older: bool) -> None:
    found = outdated({"a": now}, {"a": has}.get)

    assert found == ({"a": (has, now)} if older else {})


def test_the_file_is_read_entry_by_entry() -> None:
    text = (
        "# a==1\nzope-event==6.2 \\\n    --hash=sha256:00==\nb==1.0 ; sys_platform == 'linux' \\\n"
    )

    assert pinned(text) == {"zope-event": "6.2", "b": "1.0"}


def test_the_real_machine_knows_its_packages() -> None:
    machine = Machine({})

    assert machine.installed_version("flask") is not None
    assert machine.installed_version("no-such-package-anywhere") is None


def test_the_command_of_the_remedy_is_one_that_pip_takes(machine: FakeMachine) -> None:
    machine.installed = {"pip": "1.0"}
    remedy = one(dependencies.check(machine)).remedy
    command = shlex.split(remedy.partition("Without make install: ")[2])

    assert command[0] == sys.executable
    assert Path(command[-1]) == CONSTRAINTS
    # With no index, and into a place where nothing is: it must get as far as looking for the files.
    done = subprocess.run(
        [*command, "--no-index", "--dry-run", "--ignore-installed"],
        env={"PIP_CONFIG_FILE": "/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "No matching distribution found for" in done.stderr
