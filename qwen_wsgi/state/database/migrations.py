"""Makes the tables of a database what this version of the proxy needs, whichever version made them.

Each feature has tables of its own, and a version of its own; versions go forward only. What
features had in files of their own, before there was a common one, moves in.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

#: What SQLite says of a file that is no database, or another one than it should be.
DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})


class Tables(NamedTuple):
    """The tables of one feature.

    Attributes:
        feature: its name, for people and in the table of versions.
        versions: for each version, the statements that make it out of the one before; for the
            first one, out of nothing.
        damage: what it means that they are lost, as a sentence for the log.
        old_file: where they were before there was a common file, below the state directory, in a
            directory of its own.
        moves: the statements that copy everything from there into the tables of the first version;
            the old file is called `old` in them.
    """

    feature: str
    versions: Sequence[Sequence[str]]
    damage: str
    old_file: str = ""
    moves: Sequence[str] = ()


class NewerVersion(Exception):
    """A newer version of the proxy made some of the tables: this one would harm them."""


def code_of(error: Exception) -> int:
    """What SQLite calls a failure, without the details; 0 for one of the system's."""
    if isinstance(error, OSError):
        return 0
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF


@contextmanager
def transaction(database: sqlite3.Connection, *, write: bool = True) -> Iterator[None]:
    """Do what is done meanwhile in one transaction; of a failure nothing is left.

    Raises:
        sqlite3.Error: it cannot be done now.
    """
    try:
        database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
        raise


def bring_forward(
    database: sqlite3.Connection, every: Sequence[Tables], directory: Path | None
) -> None:
    """Make all tables, or bring them to their latest version, in one transaction.

    Args:
        directory: of old files; None where there can be none.

    Raises:
        NewerVersion: a newer version of the proxy made some of them.
        sqlite3.Error: it cannot be done now; nothing was changed.
    """
    if not _behind(database, every):
        return
    old: dict[Tables, Path] = {}
    moved: list[Path] = []
    try:
        for each in every:
            if file := _attached(database, each, directory):
                old[each] = file
        with transaction(database):
            for tables, version in _behind(database, every):  # another process may have done it
                for number, statements in enumerate(tables.versions[version:], version):
                    _execute(database, statements)
                    if not number and tables in old and _move(database, tables, old[tables]):
                        moved.append(old[tables])
                row = (tables.feature, len(tables.versions))
                database.execute("INSERT OR REPLACE INTO features VALUES (?, ?)", row)
    except sqlite3.Error:
        # Another process that has moved the old files deletes them while they are opened here.
        if _behind(database, every):
            raise
    finally:
        for each in every:
            with suppress(sqlite3.Error):
                database.execute("DETACH " + _schema_of(each))
    for file in moved:
        log.info("its content is in the common database now path=%s", file)
        shutil.rmtree(file.parent, ignore_errors=True)


def versions_of(database: sqlite3.Connection) -> Mapping[str, int]:
    """The version of each feature's tables.

    Raises:
        sqlite3.Error: they cannot be read; also if there are none.
    """
    return dict(database.execute("SELECT name, version FROM features"))


def check_versions(database: sqlite3.Connection, every: Sequence[Tables]) -> None:
    """Check that no newer version of the proxy made any of the tables.

    Raises:
        NewerVersion: one did.
        sqlite3.Error: they cannot be read.
    """
    found = versions_of(database)
    for tables in every:
        if (version := found.get(tables.feature, 0)) > len(tables.versions):
            raise NewerVersion(
                f"was written by a newer version of qwen-proxy (version {version} of its "
                f"{tables.feature}; this one knows {len(tables.versions)})"
            )


def _behind(database: sqlite3.Connection, every: Sequence[Tables]) -> list[tuple[Tables, int]]:
    """The tables that are not what they should be, each with the version that is there."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS features (name TEXT PRIMARY KEY, version INTEGER NOT NULL)"
    )
    check_versions(database, every)
    found = versions_of(database)
    versions = ((each, found.get(each.feature, 0)) for each in every)
    return [(each, version) for each, version in versions if version < len(each.versions)]


def _execute(database: sqlite3.Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        database.execute(statement)


# --- old files -----------------------------------------------------------------------------------


def _attached(database: sqlite3.Connection, tables: Tables, directory: Path | None) -> Path | None:
    """The old file of a feature, opened beside the database; None if there is none."""
    if directory is None or not tables.old_file:
        return None
    file = directory / tables.old_file
    if not file.exists():
        return None
    schema = _schema_of(tables)
    try:
        # By URI: by its name it would be made anew if another process has moved it just now.
        database.execute(f"ATTACH ? AS {schema}", (f"{file.absolute().as_uri()}?mode=rw",))
        database.execute(f"SELECT count(*) FROM {schema}.sqlite_master")
    except sqlite3.Error as error:
        if code_of(error) not in DAMAGED:
            raise
        _tell_lost(tables, file, error)
        with suppress(sqlite3.Error):
            database.execute(f"DETACH {schema}")
        return None
    return file


def _move(database: sqlite3.Connection, tables: Tables, file: Path) -> bool:
    """Copy the content of an old file; False if it is damaged: it is left where it is."""
    database.execute("SAVEPOINT moving")
    try:
        schema = _schema_of(tables)
        _execute(database, [each.replace(" old.", f" {schema}.") for each in tables.moves])
    except sqlite3.Error as error:
        if code_of(error) not in DAMAGED:
            raise
        database.execute("ROLLBACK TO moving")
        _tell_lost(tables, file, error)
        return False
    finally:
        with suppress(sqlite3.Error):
            database.execute("RELEASE moving")
    return True


def _tell_lost(tables: Tables, file: Path, error: Exception) -> None:
    log.error("%s Their file is damaged, and left as it is path=%s: %s", tables.damage, file, error)


def _schema_of(tables: Tables) -> str:
    return f"old_{tables.feature.replace(' ', '_')}"
