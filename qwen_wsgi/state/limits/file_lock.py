"""A lock on an open file that the kernel frees when its process ends, however it ends."""

from __future__ import annotations

import fcntl


def take(fd: int) -> bool:
    """Lock a file if nobody has locked it by another descriptor; never waits.

    Raises:
        OSError: its file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free(fd: int) -> None:
    """Free the lock."""
    fcntl.flock(fd, fcntl.LOCK_UN)
