"""Checks that no dependency is older than the version that `make install` installs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from packaging.version import InvalidVersion, Version

from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine

TELL: Final = Teller("dependencies")

#: Written by install/requirements.py.
CONSTRAINTS: Final = Path(__file__).resolve().parent.parent / "constraints.txt"
_PIN: Final = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)


def check(machine: Machine) -> Iterator[Finding]:
    """Compare what is installed beside this program with the constraints file.

    Raises:
        OSError: the file cannot be read.
    """
    pins = pinned(CONSTRAINTS.read_text())
    older = outdated(pins, machine.installed_version)
    if older:
        named = ", ".join(f"{name} {has} (now {now})" for name, (has, now) in older.items())
        yield TELL.warn(
            "versions",
            f"older than this release was tested with, perhaps with known flaws: {named}",
            "In the checkout: sudo make install, then sudo systemctl restart qwen-proxy."
            f" Without make install: {shlex.quote(sys.executable)} -m pip install --require-hashes"
            f" -r {shlex.quote(str(CONSTRAINTS))}",
        )
    elif not any(machine.installed_version(name) for name in pins):
        yield TELL.skipped("versions", "nothing tells which versions are installed")
    else:
        yield TELL.ok("versions", "all are as pinned, or newer")


def pinned(text: str) -> dict[str, str]:
    """The versions of a constraints file, by name."""
    return dict(_PIN.findall(text))


def outdated(
    pins: Mapping[str, str], installed: Callable[[str], str | None]
) -> dict[str, tuple[str, str]]:
    """Those that are installed and older than pinned: both versions, by name.

    What is not installed is not needed here: the reader of PDFs, or pip beside pipx. A version that
    is none by PEP 440 was built by somebody who knows why.
    """
    found = {}
    for name, now in pins.items():
        has = installed(name)
        if has is not None and _older(has, now):
            found[name] = (has, now)
    return found


def _older(has: str, now: str) -> bool:
    try:
        return Version(has) < Version(now)
    except InvalidVersion:
        return False
