"""Looks whether the database is well, for `qwen-proxy state check`. Changes nothing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qwen_wsgi.state.database import in_use
from qwen_wsgi.state.database.copies import CopyFailed, check_user, opened
from qwen_wsgi.state.database.migrations import NewerVersion, Tables, check_versions, versions_of
from qwen_wsgi.state.database.sqlite import FILE, aside, remedy_of

#: The log may take so much, and one more response as much again. Bytes.
_LEAST_FREE: Final = 64 * 1024 * 1024
#: Of what SQLite finds damaged.
_MOST_SHOWN: Final = 5


@dataclass
class Inspection:
    """What was found.

    Attributes:
        file: the database.
        exists: whether there is one.
        in_use: whether a server uses the state directory; None if it cannot be found out.
        size, log: bytes of the file, and of SQLite's log beside it.
        free: bytes of its disk that are free; None if unknown.
        versions: of each feature, what is there (0 for nothing) and what this proxy knows.
        rows: of each table.
        problems: what is wrong, each with what to do.
        notes: what is worth knowing.
    """

    file: Path
    exists: bool = False
    in_use: bool | None = None
    size: int = 0
    log: int = 0
    free: int | None = None
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect(state_dir: Path, directory: Path, *, tables: Sequence[Tables]) -> Inspection:
    """Look at a database, and at what is beside it.

    Args:
        directory: of the database, below the state directory.
        tables: of all features.
    """
    file = directory / FILE
    found = Inspection(file)
    try:
        check_user(state_dir)
        found.in_use = in_use.is_used(state_dir)
        found.exists = file.exists()
        if found.exists:
            found.size, found.log = file.stat().st_size, _size_of(file.with_name(FILE + "-wal"))
        found.free = _free(directory)
        found.notes += _left_behind(directory)
    except CopyFailed as error:
        found.problems.append(str(error))
        return found
    except OSError as error:
        found.problems.append(f"{file}: {error}. {remedy_of(error)}")
        return found
    if found.free is not None and found.free < _LEAST_FREE:
        found.problems.append(
            f"Only {found.free // 1_000_000} MB of its disk are free: free some space, or nothing "
            "more is stored soon."
        )
    if found.exists:
        _look_inside(found, tables)
    else:
        found.notes.append("There is no database yet: the first start makes it.")
    return found


def _look_inside(found: Inspection, tables: Sequence[Tables]) -> None:
    file = found.file
    if not os.access(file, os.W_OK):
        found.problems.append(
            f"{file} may only be read: make it writable for its owner, and check whether its disk "
            "is mounted read-only."
        )
    try:
        with closing(opened(file)) as database:
            found.problems += _damage(database)
            found.versions = _versions(database, tables)
            found.rows = _rows(database)
            check_versions(database, tables)
    except NewerVersion as error:
        found.problems.append(
            f"{file} {error}: this version does not start with it. Install that version again, or "
            "restore a backup of before."
        )
    except sqlite3.Error as error:
        found.problems.append(f"{file} cannot be read: {error}. {remedy_of(error)}")


def _damage(database: sqlite3.Connection) -> Iterator[str]:
    for (text,) in database.execute(f"PRAGMA integrity_check({_MOST_SHOWN})"):
        if text != "ok":
            yield (
                f"The database is damaged: {text}. Restore a backup (`qwen-proxy state restore "
                "FILE`), and check its disk."
            )


def _versions(database: sqlite3.Connection, tables: Sequence[Tables]) -> dict[str, tuple[int, int]]:
    there: Mapping[str, int] = versions_of(database)
    known = {each.feature: len(each.versions) for each in tables}
    return {name: (there.get(name, 0), known.get(name, 0)) for name in {**known, **there}}


def _rows(database: sqlite3.Connection) -> dict[str, int]:
    names = database.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        " ORDER BY name"
    ).fetchall()
    return {
        name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in names
    }


def _left_behind(directory: Path) -> Iterator[str]:
    """Other files with what clients have stored."""
    damaged = aside(directory)
    if damaged.exists():
        yield f"A damaged database is in {damaged}; it is removed a week after it was set aside."
    for file in sorted(directory.glob(f"{FILE}.replaced-*")):
        if not file.name.endswith(("-wal", "-shm", "-journal")):
            yield f"{file} was replaced by `state restore`: remove it when you do not need it."


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _free(directory: Path) -> int | None:
    """Bytes that are free where a directory is, or will be."""
    for place in (directory, *directory.parents):
        try:
            disk = os.statvfs(place)
        except FileNotFoundError:
            continue
        return disk.f_bavail * disk.f_frsize
    return None
