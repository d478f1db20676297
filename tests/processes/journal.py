"""What several processes did, in one file, by the clock that they share."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """Something that happened at some time from `since_ns` to `at_ns`."""

    since_ns: int
    at_ns: int
    who: str
    what: str


class Journal:
    """Lines "since at who what"; written in one append each, so that they do not mix."""

    def __init__(self, path: Path, who: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._who = who

    def note(self, what: str, *, since_ns: int | None = None, at_ns: int | None = None) -> None:
        at_ns = at_ns or time.monotonic_ns()
        os.write(self._fd, f"{since_ns or at_ns} {at_ns} {self._who} {what}\n".encode())


def read(path: Path) -> list[Note]:
    """All notes; those of one process in the order in which it wrote them."""
    notes = (line.split() for line in path.read_text().splitlines())
    return [Note(int(since_ns), int(at_ns), who, what) for since_ns, at_ns, who, what in notes]
