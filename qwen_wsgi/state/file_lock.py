"""Locks on open files that the kernel frees when their process ends, however it ends."""

from __future__ import annotations

import fcntl
from typing import Final

#: `change(fd, FREE)` is `free(fd)` without a function of Python, for each call of a client.
change: Final = fcntl.flock
FREE: Final = fcntl.LOCK_UN


def take(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file, without waiting; whether it is locked now.

    Closing the file frees it.

    Args:
        shared: others may have it in the same way.

    Raises:
        OSError: its file system knows no locks, or has no room for one more.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free(fd: int) -> None:
    """Free the lock, of a file that stays open."""
    fcntl.flock(fd, fcntl.LOCK_UN)
