"""Writes files that are whole or as they were: after a failure, a crash, and a power cut.

For files of our own. Those of other programs, such as a login, need more: their owner, links and
times (`credentials/files/durable.py`).

What a failure leaves is the same for all of them. Without room or permission the file is as it was,
and nothing lies beside it. A process that is killed meanwhile may leave a hidden file beside it,
which nobody reads. Only where the disk fails to keep a name that it has taken (EIO) is the error
told with the new file in its place.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from typing import Final

#: Only the server's user may read what the server keeps.
_MODE: Final = 0o600
#: Errors of fsync for the directories of some network and FUSE file systems, which have no such
#: thing: no reason to refuse what is written already.
_NO_DIRECTORY_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS})


def replace(target: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace or make a file in one step: whoever reads it sees all of the old or of the new one.

    Args:
        durable: whether it outlasts a power cut. False for what only shows how things are now, and
            should not wait for the disk.

    Raises:
        OSError: it cannot be written.
    """
    aside = _beside(target)
    _write_new(aside, content, _MODE, durable=durable)
    try:
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(target.parent)


def publish(aside: Path, target: Path) -> None:
    """Give a complete file its name, for good; it lies in the same directory.

    Raises:
        OSError: it cannot; the file that lies aside is its maker's to remove.
    """
    _sync(aside)
    os.replace(aside, target)
    sync_directory(target.parent)


def make(path: Path, content: bytes, *, mode: int) -> None:
    """Make a file that must not be there yet. A crash in the middle can leave a part of it.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written; nothing is left of it.
    """
    _write_new(path, content, mode)
    try:
        sync_directory(path.parent)
    except BaseException:
        path.unlink()
        raise


def make_once(path: Path, content: bytes) -> bool:
    """Make a file unless it is there: of several processes at the same time, one makes it.

    Returns:
        False if it is there.

    Raises:
        OSError: it cannot be made.
    """
    aside = _beside(path)
    _write_new(aside, content, _MODE)
    try:
        os.link(aside, path)  # unlike a rename, never over one that is there
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    sync_directory(path.parent)
    return True


def fill(fd: int, content: bytes) -> None:
    """Make the content of an open file exactly this, however little one write takes."""
    view, offset = memoryview(content), 0
    while offset < len(content):
        offset += os.pwrite(fd, view[offset:], offset)
    os.ftruncate(fd, len(content))


def sync_directory(directory: str | Path) -> None:
    """Have the disk keep the names of a directory, where its file system can.

    Raises:
        OSError: the disk failed.
    """
    try:
        _sync(directory)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def _beside(target: Path) -> Path:
    """A name for a file that is to become another one: of no other process and thread."""
    return target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")


def _write_new(path: Path, content: bytes, mode: int, *, durable: bool = True) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(fd, mode)  # whatever the umask is
            fill(fd, content)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:  # also Ctrl-C: half a file would be taken for a whole one
        path.unlink()
        raise


def _sync(path: str | Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
