"""Reads files that other programs may change at any time, again only when they have changed."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from qwen_wsgi.clock import Clock
from qwen_wsgi.shortage import by_errno

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Pause before a file that could not be used is read again although it looks unchanged: it may
#: have been caught in the middle of a write. Seconds.
RETRY_S: Final = 0.1
#: None of these files is ever this large. Bytes.
MAX_BYTES: Final = 4 * 1024 * 1024
#: Errors of a disk or a mount that fails, or is not there yet.
_PASSING: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV}
)

_READABLE: Final = "Make it a file that the user who runs qwen-proxy can read."
_OTHERS: Final = (
    "Run qwen-proxy as that user (in a container --user {owner}:GROUP, see docs/docker.md; as a "
    "service see owner.conf.example), or let its user read the file."
)


class FileIdentity(NamedTuple):
    """Identifies one version of a file; compare with `!=`, never with `>`.

    A rename brings a new inode and no program can set ctime, so a clock that stepped back and a
    restored mtime do not hide a change.
    """

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Make the identity from a `stat` or `fstat` result."""
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )


class Unusable(ValueError):
    """A file's content cannot be used.

    Attributes:
        remedy: what the operator should do, as a sentence.
    """

    def __init__(self, cause: str, *, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


@dataclass(frozen=True)
class Reading(Generic[T]):
    """The result of reading a file once.

    Attributes:
        identity: None when there is no file, or `stat` fails.
        value: the last usable content; None when there is no file, or it was never usable.
        problem: why the current file cannot be used, as the end of the sentence "<path> …"; empty
            when `value` is its content.
        remedy: what to do about `problem`.
        unreadable: the problem is access to the file, not its content.
        passing: it is one of the disk, the network or the machine, and may pass by itself.
    """

    identity: FileIdentity | None
    # Secrets: not for a repr.
    value: T | None = field(repr=False)
    problem: str = ""
    remedy: str = ""
    unreadable: bool = False
    passing: bool = False

    @property
    def exists(self) -> bool:
        """Whether there is anything at the path."""
        return self.identity is not None or bool(self.problem)


class WatchedFile(Generic[T]):
    """One file, and what was last read from it.

    For an unusable file the last usable content is kept; it is read again RETRY_S later although it
    looks unchanged, and logged once until it is usable again. A file that is gone has no content.

    Invariant: `read()` returns the same object until the file changes. The state is one reference
    to an immutable `Reading`, replaced in one step: greenlets and threads that race at worst do the
    same work twice, no lock is held over I/O, and a fork copies a consistent state.

    Limit: a rewrite in place, of equal size, in the same tick of the kernel's clock as the read
    before it, is missed. No known program writes these files so.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes, FileIdentity], T], clock: Clock, shown: str
    ) -> None:
        """
        Args:
            parse: turns the content into a value; raises `Unusable`.
            shown: the path for messages.
        """
        self.path = path
        self.shown = shown
        self._name = os.fspath(path)
        self._parse = parse
        self._clock = clock
        self._absent: Reading[T] = Reading(None, None)
        #: Not `_absent` itself: the first read must tell "no file" from "no permission".
        self._reading: Reading[T] = Reading(None, None)
        #: Monotonic time from which on a file with a problem is read again.
        self._retry_at_s = 0.0

    def read(self) -> Reading[T]:
        """Read the file if it has changed since the last call. Never raises."""
        before = self._reading
        if before is self._absent and not os.access(self._name, os.F_OK):
            # Saves an exception: most of the watched files do not exist.
            return before
        try:
            identity = FileIdentity.of(os.stat(self._name))
            if identity == before.identity and not self._retry_is_due(before):
                return before
            after = self._load()
        except (FileNotFoundError, NotADirectoryError):
            after = self._absent
        except OSError as error:
            after = self._unreadable(before, error)
        except Unusable as error:
            after = Reading(identity, before.value, str(error), error.remedy)
        return self._replace(before, after)

    def _retry_is_due(self, reading: Reading[T]) -> bool:
        return bool(reading.problem) and self._clock.monotonic() >= self._retry_at_s

    def _load(self) -> Reading[T]:
        # O_NONBLOCK: opening a named pipe must not stop the process.
        fd = os.open(self._name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            # Taken before reading: after a write meanwhile, the next `stat` differs.
            identity = FileIdentity.of(status)
            if stat.S_ISDIR(status.st_mode):
                raise OSError(errno.EISDIR, "it is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            if status.st_size > MAX_BYTES:
                raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES // 1024 // 1024} MiB")
            with open(fd, "rb", closefd=False) as file:
                content = file.read()
        finally:
            os.close(fd)
        return Reading(identity, self._parse(content, identity))

    def _unreadable(self, before: Reading[T], error: OSError) -> Reading[T]:
        try:
            identity = FileIdentity.of(os.stat(self._name))
        except OSError:
            identity = None
        problem, remedy = f"cannot be read ({error.strerror})", _READABLE
        owner = _owner_of(self.path)
        if (shortage := by_errno(error.errno)) is not None:
            remedy = shortage.remedy
        elif error.errno == errno.EACCES and owner not in (None, os.geteuid()):
            problem = (
                f"cannot be read: it belongs to user {owner}, and qwen-proxy runs as user "
                f"{os.geteuid()}"
            )
            remedy = _OTHERS.format(owner=owner)
        return Reading(
            identity,
            before.value,
            problem,
            remedy,
            unreadable=True,
            passing=error.errno in _PASSING or shortage is not None,
        )

    def _replace(self, before: Reading[T], after: Reading[T]) -> Reading[T]:
        if after.problem:
            self._retry_at_s = self._clock.monotonic() + RETRY_S
        if after == before and after is not self._absent:
            # Nothing new: callers compare readings by identity.
            return before
        if after.problem and not before.problem:
            # Once: during a write the problem's text changes with every read.
            kept = "last-good-content" if after.value is not None else "nothing"
            log.warning(
                "file is unusable path=%s problem=%s kept=%s", self.shown, after.problem, kept
            )
        elif before.problem and not after.problem and after.exists:
            log.info("file is usable again path=%s", self.shown)
        self._reading = after
        return after


def _owner_of(path: Path) -> int | None:
    """The user whose file it is; or whose directory, if that keeps us from looking into it."""
    for each in (path, *path.parents):
        try:
            return os.stat(each).st_uid
        except PermissionError:
            continue
        except OSError:
            break
    return None
