"""The versions of the dependencies: the lowest that setup.cfg allows, and the pinned ones."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from qwen_wsgi.doctor.dependencies import CONSTRAINTS, pinned
from tests.kit.servers import REPO

_SCRIPT: dict[str, Any] = runpy.run_path(str(REPO / "install/requirements.py"))
TEXT = CONSTRAINTS.read_text()
PINS = pinned(TEXT)


def test_every_requirement_has_a_lower_bound(tmp_path: Path) -> None:
    found = _SCRIPT["lowest"]()
    assert len(found) > 20
    assert "flask == 3.0" in found
    assert any(line.startswith("gunicorn == ") for line in found), "its extra is left out"

    text = (REPO / "setup.cfg").read_text()
    (tmp_path / "setup.cfg").write_text(text.replace("flask >= 3.0, < 4", "flask < 4"))
    with pytest.raises(ValueError, match="'flask < 4' has no lower bound"):
        _SCRIPT["lowest"](tmp_path / "setup.cfg")


@pytest.mark.parametrize("line", _SCRIPT["to_pin"]())
def test_each_requirement_is_pinned_within_its_bounds(line: str) -> None:
    """If this fails: python install/requirements.py pin."""
    requirement = Requirement(line)

    version = Version(PINS[canonicalize_name(requirement.name)])

    assert version in requirement.specifier
    assert not version.is_prerelease


def test_pip_and_what_builds_the_package_and_the_extras_are_pinned_too() -> None:
    assert {"pip", "setuptools", "pypdf", "redis", "cryptography"} <= PINS.keys()


@pytest.mark.once  # the lowest versions require other packages than those that are pinned
def test_what_the_requirements_require_is_pinned_too() -> None:
    """As far as it is installed here, where the versions may be others."""
    of_older_pythons = set(
        re.findall(r"^([\w-]+)==\S+ ; python_full_version <", TEXT, re.MULTILINE)
    )
    for name in PINS.keys() - {"pip", "setuptools"} - of_older_pythons:
        for text in metadata.distribution(name).requires or []:
            below = Requirement(text)
            if below.marker is None or below.marker.evaluate({"extra": ""}):
                assert canonicalize_name(below.name) in PINS, f"{name} requires {text}"


def test_every_entry_has_hashes_and_nothing_else_is_in_the_file() -> None:
    entry = r"[a-z0-9-]+==[0-9][0-9a-z.]*(?: ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    entries = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)

    assert re.fullmatch(f"(?:{entry})+", entries)
    assert len(re.findall(entry, entries)) == len(PINS) > 20
    assert "//" not in TEXT, "an index is not the repository's choice"


@pytest.mark.once  # the lowest versions require other packages than those that are pinned
def test_what_only_an_extra_brings_can_go_and_nothing_else_misses_it() -> None:
    """The image leaves out what only [tools] brings."""
    command = [sys.executable, "-B", str(REPO / "install/requirements.py"), "only", "tools"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    gone = set(done.stdout.split())

    assert {"mcp", "anyio", "httpx2", "pydantic", "starlette"} <= gone <= PINS.keys()
    for line in _SCRIPT["required"]("pdf", "redis"):
        assert canonicalize_name(Requirement(line).name) not in gone
    for name in PINS.keys() - gone - {"pip", "setuptools"}:
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of older Pythons
        for below in map(Requirement, required):
            if below.marker is None or below.marker.evaluate({"extra": ""}):
                assert canonicalize_name(below.name) not in gone, f"{name} requires {below}"


def test_the_command_without_a_word_explains_itself() -> None:
    command = [sys.executable, "-B", str(REPO / "install/requirements.py")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert done.returncode == 1
    assert "requirements.py pin" in done.stderr
