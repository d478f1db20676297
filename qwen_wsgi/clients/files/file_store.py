"""Reads and replaces the files of clients: links stay links, and nobody's edit is lost."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwen_wsgi import whole_files
from qwen_wsgi.clients.files.texts import Refused
from qwen_wsgi.credentials.files import durable

#: No set-up of a client is as large.
_LARGEST_BYTES: Final = 4 * 1024 * 1024
#: Behind the name of a file, for the copy of what was there.
_BACKUP: Final = ".before-qwen-proxy"
_MOST_BACKUPS: Final = 20
#: For a file that is not there yet.
_NEW_MODE: Final = 0o600


@dataclass(frozen=True)
class Content:
    """A file as it was read.

    Attributes:
        raw: None if it is not there.
        mode: None if it is not there.
    """

    raw: bytes | None
    mode: int | None

    @property
    def text(self) -> str:
        """The text; "" if it is not there.

        Raises:
            Refused: it is not UTF-8.
        """
        try:
            return (self.raw or b"").decode()
        except UnicodeDecodeError:
            raise Refused("it is not a text in UTF-8") from None


def digest(raw: bytes | None) -> str:
    """SHA-256 of a file's content; "" if it is not there."""
    return "" if raw is None else hashlib.sha256(raw).hexdigest()


def read(path: Path) -> Content:
    """Read a file, or the one that a link leads to.

    Raises:
        Refused: it is too large, or no ordinary file.
        OSError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise Refused("it is a link to a file that does not exist") from None
        return Content(None, None)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("it is not an ordinary file")
        raw = file.read(_LARGEST_BYTES + 1)
    if len(raw) > _LARGEST_BYTES:
        raise Refused(f"it is larger than {_LARGEST_BYTES // 1024**2} MB")
    return Content(raw, stat.S_IMODE(status.st_mode))


def replace(path: Path, before: Content, raw: bytes, *, mode: int | None = None) -> None:
    """Replace or make a file, if it is still as it was read.

    Args:
        mode: None for that of before.

    Raises:
        Refused: it has changed.
        OSError: it cannot be written; it is as it was.
    """
    if mode is None:
        mode = _NEW_MODE if before.mode is None else before.mode

    def unchanged() -> bool:
        return read(path).raw == before.raw

    reservation = durable.reserve(path, len(raw), padding=0, mode=mode)
    try:
        reservation.publish(raw, unchanged=unchanged)
    except durable.TargetChanged:
        raise Refused("another program has just changed it; try again") from None
    finally:
        reservation.discard()


def back_up(path: Path, content: Content) -> Path:
    """Copy what was read to a new file beside it, with its mode.

    Raises:
        OSError: it cannot be written.
    """
    assert content.raw is not None and content.mode is not None
    for number in range(1, _MOST_BACKUPS + 1):
        backup = path.with_name(f"{path.name}{_BACKUP}{f'-{number}' if number > 1 else ''}")
        with contextlib.suppress(FileExistsError):
            whole_files.make(backup, content.raw, mode=content.mode)
            return backup
    raise OSError(errno.EEXIST, f"there are {_MOST_BACKUPS} copies beside it; remove old ones")


def make_directories(path: Path) -> tuple[str, ...]:
    """Make the directories of a file; those that were missing, the deepest first.

    Raises:
        OSError: one cannot be made.
    """
    missing = [each for each in path.parents if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return tuple(map(str, missing))
