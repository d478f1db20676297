"""Who uses a state directory: a server holds a lock as long as it runs; a restore needs it alone.

The lock is an flock on a file beside the database, which its holder's children inherit: it is free
when gunicorn's master and all its workers are gone, however they ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from qwen_wsgi.clock import sleep

#: In the state directory, not in the database's own, which is moved as a whole when it is damaged.
FILE: Final = "database.lock"

#: How often a server tries, and after what pauses: a restore does not take long, and whoever looks
#: whether a server runs holds the lock for an instant.
_TRIES: Final = 100
_PAUSE_S: Final = 0.1


class InUse(Exception):
    """Somebody else uses the state directory."""


def hold(state_dir: Path, *, sleep: Callable[[float], None] = sleep) -> int:
    """Note that a server uses a state directory, until it and all its children have ended. Waits
    ten seconds for a restore.

    Returns:
        A file descriptor; closing it gives the lock up.

    Raises:
        InUse: it is being restored now.
        OSError: the lock cannot be made.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(_TRIES - 1):
        try:
            return _locked(state_dir / FILE, fcntl.LOCK_SH)
        except InUse:
            sleep(_PAUSE_S)
    return _locked(state_dir / FILE, fcntl.LOCK_SH)


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """Keep servers away from a state directory for as long as this lasts.

    Raises:
        InUse: a server uses it.
        OSError: the lock cannot be made.
    """
    lock = _locked(state_dir / FILE, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def is_used(state_dir: Path) -> bool:
    """Whether a server uses a state directory. Makes nothing.

    Raises:
        OSError: it cannot be found out.
    """
    try:
        lock = os.open(state_dir / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _locked(file: Path, how: int) -> int:
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise InUse from None
        raise
    return lock
