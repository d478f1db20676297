"""Writes files that are made from the code and kept in the checkout, or says which are old."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent


def outdated(directory: Path, texts: Mapping[str, str]) -> list[str]:
    """The files that are not as they would be written, and those that nobody writes.

    Args:
        texts: all files of the directory, by their places in it.
    """
    there = {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }
    return sorted(
        place for place in there.keys() | texts.keys() if there.get(place) != texts.get(place)
    )


def run(
    directory: Path, texts: Callable[[], Mapping[str, str]], *, again: str, usage: str | None
) -> None:
    """Do what the command line asks for: write a directory anew, or with `--check` only look.

    Args:
        again: the command that writes it, for who is told to.
        usage: of the program, for other words.

    Raises:
        SystemExit: a file is old, or the words are others.
    """
    if sys.argv[1:] == ["--check"]:
        if found := outdated(directory, texts()):
            shown = directory.relative_to(ROOT)
            sys.exit(f"{shown}/ is not up to date: {', '.join(found)}; run `{again}`")
    elif sys.argv[1:]:
        sys.exit(usage)
    else:
        for place, text in texts().items():
            path = directory / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
