"""Replaces a file so that every reader sees the old content or the new one, and a crash keeps one.

In two steps, for content that must not be lost once it exists: `reserve` finds out whether the
file can be written at all, `Reservation.publish` writes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Every file that we leave behind in a crash begins so; nobody else's does.
PREFIX: Final = ".qwen-proxy-"
#: Room for what the next content is longer than the present one: longer tokens. Bytes.
PADDING_BYTES: Final = 4096
#: Nobody keeps a reservation this long, so an older one is left over from a crash. Seconds.
LEFT_OVER_S: Final = 3600.0

#: Only the owner may read a login.
_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
#: qwen-code reads a file again only when its mtime has grown, and may compare whole milliseconds.
_MTIME_STEP_NS: Final = 1_000_000
#: How far to push an mtime that did not grow; the later ones are for file systems with coarse
#: time stamps (1 s, FAT 2 s), which round the first one down.
_PUSHES_NS: Final = (2 * _MTIME_STEP_NS, 1_000_000_000, 4_000_000_000)
#: What rename says on a file that is a mount point of its own, as in containers.
_MOUNT_POINT: Final = frozenset({errno.EBUSY, errno.EXDEV})
#: The disk or the user's quota is full.
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: What fsync says on the directories of some network and FUSE file systems.
_NO_DIRECTORY_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS})


@dataclass(frozen=True)
class WriteProblem:
    """Why a file cannot be written.

    Attributes:
        errno: None when the system gave none.
        text: a clause for people.
    """

    errno: int | None
    text: str

    @classmethod
    def of(cls, error: OSError) -> WriteProblem:
        """The problem that an exception of a write stands for."""
        return cls(error.errno, error.strerror or type(error).__name__)

    @property
    def is_disk_full(self) -> bool:
        """Whether it needs room on the disk, and not permission."""
        return self.errno in _DISK_FULL


class Reservation:
    """A file that waits to take the place of another one.

    It belongs to one thread. Whoever has one ends it by `publish` or `discard`; a process that dies
    before leaves a file of PREFIX behind, for `sweep`.

    Limit: the room is sure on file systems that overwrite in place. On those that never do (btrfs,
    ZFS) a disk that fills up in between can still refuse the content.
    """

    def __init__(self, target: Path, fd: int, path: str, *, mode: int, keep_owner: bool) -> None:
        self._target = target
        self._fd = fd
        self._path = path
        self._mode = mode
        self._keep_owner = keep_owner
        #: The content is at the target, whatever `publish` raised afterwards.
        self.published = False

    def publish(self, content: bytes) -> None:
        """Put content at the target and return when it is durable. Closes the reservation.

        The target's mtime grows even when it lies in the future. A symlink stays one: the file that
        it names is replaced. A file that is a mount point is rewritten in place; a crash in the
        middle of that can tear it.

        Raises:
            OSError: it could not be written. The target is as before, unless `published` is true
                (the directory could not be synced) or it is a mount point; the reservation is
                still there, so that the call can be repeated.
        """
        # Looked up again: qwen-code 0.24.4 puts a file in the place of a symlink, and content that
        # followed the link would then be seen by nobody.
        real = os.path.realpath(self._target)
        old = _status(real)
        _fill(self._fd, content)
        os.fchmod(self._fd, self._mode)
        if self._keep_owner:
            _give_to_owner(self._fd, real, old)
        _advance_mtime(self._fd, old)
        os.fsync(self._fd)
        try:
            os.replace(self._path, real)
        except OSError as error:
            if error.errno not in _MOUNT_POINT:
                raise
            _rewrite(real, content, old, self._mode)
            self.published = True
            self.discard()
            return
        self.published = True
        self._close()
        _sync_directory(os.path.dirname(real))

    def discard(self) -> None:
        """Give it up; nothing is left behind. May be called at any time, and twice."""
        if self._fd >= 0:
            with suppress(OSError):
                os.unlink(self._path)
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)


def reserve(
    target: Path,
    content: bytes,
    *,
    padding: int = PADDING_BYTES,
    mode: int = _MODE,
    keep_owner: bool = True,
) -> Reservation:
    """Make sure that a file can be replaced, and keep the room for it.

    Args:
        content: what the file has now, or about as much.
        padding: bytes that the new content may be longer.
        keep_owner: as root, give the new file to the owner of the old one, or of the directory.

    Raises:
        OSError: it cannot: read-only file or file system, no permission, disk full, quota. Nothing
            is left behind.
    """
    real = os.path.realpath(target)
    _check_writable(real)
    path = os.path.join(os.path.dirname(real), f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    reservation = Reservation(
        target, os.open(path, flags, mode), path, mode=mode, keep_owner=keep_owner
    )
    try:
        # Random bytes: zeros would take no room on a file system that compresses.
        _fill(reservation._fd, content + secrets.token_bytes(padding))
        if keep_owner:
            # Found out here that this root may not (a container without CAP_CHOWN).
            _give_to_owner(reservation._fd, real, _status(real))
        os.fsync(reservation._fd)
    except BaseException:
        reservation.discard()
        raise
    return reservation


def replace_file(
    target: Path, content: bytes, *, mode: int = _MODE, keep_owner: bool = True
) -> None:
    """Replace a file, or create it, in one go; see `Reservation.publish` for what is kept.

    Raises:
        OSError: it could not be written.
    """
    reservation = reserve(target, content, padding=0, mode=mode, keep_owner=keep_owner)
    try:
        reservation.publish(content)
    finally:
        reservation.discard()


def make_directory(path: Path) -> None:
    """Make a directory for secrets if there is none; as root, its parent's owner gets it.

    Raises:
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(_DIRECTORY_MODE)
        parent = path.parent.stat()
        if os.geteuid() == 0:
            os.chown(path, parent.st_uid, parent.st_gid)


def sweep(directory: Path, *, now_s: float) -> int:
    """Remove what crashes left behind; return how many files. Never raises.

    Args:
        now_s: wall clock, seconds since the epoch.
    """
    swept = 0
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):
                if not entry.name.startswith(PREFIX):
                    continue
                status = entry.stat(follow_symlinks=False)
                # ctime and not mtime: `publish` may have pushed the mtime into the future.
                if stat.S_ISREG(status.st_mode) and now_s - status.st_ctime > LEFT_OVER_S:
                    os.unlink(entry.path)
                    swept += 1
    return swept


def _status(path: str) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return os.stat(path)
    return None


def _check_writable(real: str) -> None:
    """Refuse what a rename would replace against its owner's will, or fail at too late.

    Opening for writing finds a file of somebody else, one that was made read-only, and one that is
    a read-only mount of its own, where only the rename would fail: with the old token spent.
    """
    with suppress(FileNotFoundError):
        # O_NONBLOCK: a named pipe must not stop the process.
        fd = os.open(real, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", real)
        if os.geteuid() not in (0, status.st_uid):
            # Writable through its group, but the new file would be ours and 0600: the owner, who
            # is the one that logs in, could not read it any more.
            raise PermissionError(errno.EPERM, "it belongs to another user", real)


def _fill(fd: int, content: bytes) -> None:
    """Make content all that the file has."""
    view, offset = memoryview(content), 0
    while offset < len(content):
        offset += os.pwrite(fd, view[offset:], offset)
    os.ftruncate(fd, len(content))


def _give_to_owner(fd: int, real: str, old: os.stat_result | None) -> None:
    if os.geteuid() == 0:
        owner = old or os.stat(os.path.dirname(real))
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _advance_mtime(fd: int, old: os.stat_result | None) -> None:
    """Make sure that the mtime is later than the old file's, by the clock or without it."""
    if old is None:
        return
    for push_ns in _PUSHES_NS:
        status = os.fstat(fd)
        if status.st_mtime_ns > old.st_mtime_ns + _MTIME_STEP_NS:
            return
        os.utime(fd, ns=(status.st_atime_ns, old.st_mtime_ns + push_ns))


def _rewrite(real: str, content: bytes, old: os.stat_result | None, mode: int) -> None:
    """Write in place. O_CREAT: across file systems there may be no file yet."""
    fd = os.open(real, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        _fill(fd, content)
        os.fchmod(fd, mode)
        _advance_mtime(fd, old)
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(fd)
