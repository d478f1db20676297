"""The log files of servers under test, which are searched for secrets when the run ends."""

from __future__ import annotations

from pathlib import Path

_noted: list[Path] = []


def note_log_file(path: Path) -> None:
    """Have a server's log searched for secrets at the end of the run."""
    _noted.append(path)


def texts() -> list[str]:
    """What the files hold that are still there."""
    return [path.read_text(errors="replace") for path in _noted if path.exists()]
