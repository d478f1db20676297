"""Copies of the database: a backup while servers use it, and its way back.

A copy is one file, complete by itself: SQLite's log beside it is not needed. It has the tables of
the version that made it; a later version brings them forward at its start.
"""

from __future__ import annotations

import itertools
import os
import pwd
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi import whole_files
from qwen_wsgi.clock import Clock
from qwen_wsgi.state.database import client_keys, in_use
from qwen_wsgi.state.database.migrations import (
    NewerVersion,
    Tables,
    bring_forward,
    check_versions,
    transaction,
)
from qwen_wsgi.state.database.sqlite import FILE, remedy_of

#: How long another process may hold the database, which it does for tenths of a second.
_BUSY_S: Final = 10.0

#: What SQLite keeps beside a database.
_COMPANIONS: Final = ("-wal", "-shm", "-journal")


class CopyFailed(Exception):
    """A copy cannot be made or used. `str()` says why and what to do."""


class Restored(NamedTuple):
    """What was done.

    Attributes:
        replaced: where the database that was there is now; None if there was none.
        size: bytes of the new one.
        keys: client keys that are as they were when the copy was made.
    """

    replaced: Path | None
    size: int
    keys: int = 0


def backup(directory: Path, target: Path, *, overwrite: bool) -> int:
    """Copy the database while servers use it; none of them waits for the copy.

    The copy is written beside the target, and gets its name when it is complete and was checked.

    Args:
        directory: of the database.
        target: the file to make; only its user can read it.
        overwrite: whether the target may be there already.

    Returns:
        Bytes of the copy.

    Raises:
        CopyFailed: there is no database or no room, the target is there already or in the
            database's directory, or the database is damaged.
    """
    source = directory / FILE
    check_user(directory)
    if not source.exists():
        raise CopyFailed(f"There is no database yet: {source} is made by the first start.")
    if target.is_dir():
        raise CopyFailed(f"{target} is a directory: name a file.")
    if target.parent.resolve() == directory.resolve():
        raise CopyFailed(f"{directory} is the database's own directory: choose another one.")
    _refuse_existing(target, overwrite=overwrite)
    with _beside(target) as copy:
        _copy(source, copy, mode="rw")
        _check(copy, ())
        _refuse_existing(target, overwrite=overwrite)
        return _publish(copy, target)


def restore(
    state_dir: Path,
    directory: Path,
    source: Path,
    clock: Clock,
    *,
    tables: Sequence[Tables],
    keep_keys: bool = False,
) -> Restored:
    """Put a copy in the place of the database; no server may run meanwhile.

    Args:
        state_dir: whose lock servers hold.
        directory: of the database, below it.
        source: a copy that `backup` made.
        tables: of all features, to know whether a newer version has made the copy.
        keep_keys: the client keys stay as they are now: else those that were revoked since the copy
            was made are valid again.

    Raises:
        CopyFailed: a server runs, or the copy is damaged, no copy, of a newer version, or cannot be
            read or written; or no keys can be kept.
    """
    check_user(state_dir)
    if not source.is_file():
        raise CopyFailed(f"There is no file {source}.")
    target = directory / FILE
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with in_use.alone(state_dir):
            directory.mkdir(mode=0o700, exist_ok=True)
            with _beside(target) as copy:
                _copy(source, copy, mode="ro")
                _check(copy, tables)
                if keep_keys:
                    _carry_keys(target, copy, tables)
                keys = 0 if keep_keys else _count_keys(copy)
                replaced = _keep(target, clock)
                return Restored(replaced, _publish(copy, target), keys)
    except in_use.InUse:
        raise CopyFailed(
            f"A server uses {state_dir} now. Stop it first (`systemctl stop qwen-proxy`, or as it "
            "was started)."
        ) from None
    except OSError as error:
        raise _failed(target, error) from error


def check_user(directory: Path) -> None:
    """Refuse to work for another user than the server's: what SQLite keeps beside a database would
    belong to the wrong one.

    Raises:
        CopyFailed: the directory belongs to another user.
    """
    try:
        owner = directory.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise CopyFailed(f"{directory} belongs to the user {name}: run this command as that user.")


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    if not overwrite and target.exists():
        raise CopyFailed(f"{target} is there already. Choose another name, or use --force.")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new empty file beside another one, which only its user can read; removed at the end if it
    still has this name.

    Raises:
        CopyFailed: it cannot be made, or there is a failure of the system meanwhile.
    """
    copy = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        copy.unlink(missing_ok=True)  # of a process that was killed
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield copy
    except OSError as error:
        raise _failed(target, error) from error
    finally:
        for name in ("", *_COMPANIONS):
            with suppress(OSError):
                copy.with_name(copy.name + name).unlink()


def _copy(source: Path, copy: Path, *, mode: str) -> None:
    """Copy a database at one moment of its life, with what is in its log still; `mode` as `opened`.

    Raises:
        CopyFailed: it cannot be read, or the copy cannot be written.
    """
    try:
        with closing(opened(source, mode=mode)) as old, closing(sqlite3.connect(copy)) as new:
            # In one step: in several, each write of a server would begin it anew. Readers keep no
            # writer waiting; the log grows meanwhile.
            old.backup(new)
            # Without a log beside it.
            new.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise _failed(source, error) from error


def _check(copy: Path, tables: Sequence[Tables]) -> None:
    """Check that a file is a whole database of ours, of this or an older version.

    Raises:
        CopyFailed: it is not.
    """
    try:
        with closing(opened(copy)) as database:
            problems = [text for (text,) in database.execute("PRAGMA integrity_check(1)")]
            if problems != ["ok"]:
                raise CopyFailed(f"The database is damaged: {problems[0]}")
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if "features" not in names:
                raise CopyFailed("The file is no database of qwen-proxy.")
            check_versions(database, tables)
    except NewerVersion as error:
        raise CopyFailed(f"The file {error}. Install that version first.") from None
    except sqlite3.Error as error:
        raise _failed(copy, error) from error


def _carry_keys(current: Path, copy: Path, tables: Sequence[Tables]) -> None:
    """Give a copy the client keys of the database that it is to replace.

    Raises:
        CopyFailed: there is none, or it cannot be read.
    """
    if not current.exists():
        raise CopyFailed(f"There are no keys to keep: {current} is missing.")
    try:
        with closing(opened(copy)) as database:
            bring_forward(database, tables, None)
            database.execute("ATTACH ? AS now", (f"{current.absolute().as_uri()}?mode=rw",))
            with transaction(database):
                for name in client_keys.NAMES:
                    database.execute(f"DELETE FROM main.{name}")
                    # The names are ours.
                    database.execute(f"INSERT INTO main.{name} SELECT * FROM now.{name}")  # noqa: S608
    except sqlite3.Error as error:
        raise CopyFailed(
            f"The keys of {current} cannot be kept: {error}. Without --keep-keys they are those of "
            "the copy."
        ) from error


def _count_keys(copy: Path) -> int:
    """How many client keys a copy has; 0 if its version had none."""
    with closing(opened(copy)) as database:
        try:
            (count,) = database.execute("SELECT count(*) FROM client_keys").fetchone()
        except sqlite3.Error:
            return 0
    return int(count)


def _keep(target: Path, clock: Clock) -> Path | None:
    """Give the database that is there another name beside it, and its log; None if there is none.

    The file stays at its place until the new one takes it. Its log must not: SQLite would take it
    for that of the new one. Nothing is opened, because the database may be damaged.
    """
    if not target.exists():
        return None
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(clock.now()))
    names = (f"{target.name}.replaced-{when}{'-' * number}" for number in itertools.count())
    kept = next(kept for name in names if not (kept := target.with_name(name)).exists())
    os.link(target, kept)
    for name in _COMPANIONS:
        with suppress(FileNotFoundError):
            companion = target.with_name(target.name + name)
            os.link(companion, kept.with_name(kept.name + name))
            companion.unlink()
    return kept


def _publish(copy: Path, target: Path) -> int:
    """Give a complete copy its name, for good; its bytes."""
    whole_files.publish(copy, target)
    return target.stat().st_size


def opened(file: Path, *, mode: str = "rw") -> sqlite3.Connection:
    """A database to be read; it is not made if there is none.

    Args:
        mode: `ro` for a file that nobody uses and that may not be written. Of another, SQLite would
            not remove what it needs beside it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)


def _failed(file: Path, error: Exception) -> CopyFailed:
    return CopyFailed(f"{file}: {error}. {remedy_of(error)}")
