"""Replaces a file that other programs read, too, atomically and durably; readers, also after a
crash, see the old or new content.

What it adds to `whole_files.py` is for them: the file's owner and its links stay, and its time
grows.

In two steps, for content that must not be lost once it exists: `reserve` finds out whether the
file can be written at all, `Reservation.publish` writes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwen_wsgi.whole_files import fill, sync_directory

#: The names of files that a crash of ours leaves behind begin so; no other program's do.
PREFIX: Final = ".qwen-proxy-"
#: Room for longer content, that is longer tokens, than the present one. Bytes.
PADDING_BYTES: Final = 4096
#: No reservation is kept this long, so an older one is left over from a crash. Seconds.
LEFT_OVER_S: Final = 3600.0
#: Who takes no lock (a person's login) has written its file within this time. Seconds.
_UNLOCKED_S: Final = 2.0

#: Only the owner may read a login.
_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
#: qwen-code reads a file again only when its mtime has grown, and may compare whole milliseconds.
_MTIME_STEP_NS: Final = 1_000_000
#: How far beyond the old mtime to set one that did not grow; the later ones are for file systems
#: with coarse time stamps (1 s, FAT 2 s), which round the first one down.
_PUSHES_NS: Final = (2 * _MTIME_STEP_NS, 1_000_000_000, 4_000_000_000)
#: Errors of rename for a file that is a mount point of its own, as in containers.
_MOUNT_POINT: Final = frozenset({errno.EBUSY, errno.EXDEV})
#: The disk or the user's quota is full.
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


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


class TargetChanged(Exception):
    """Somebody else has just changed the file that was about to be replaced."""


class Reservation:
    """A temporary file that will replace another file.

    It belongs to one thread, which ends it by `publish` or `discard`; a process that dies before
    leaves a file with PREFIX behind, for `sweep`.

    Limit: the room is certain on file systems that overwrite in place. On others (btrfs, ZFS) the
    content can still be refused when the disk fills up in between.
    """

    def __init__(self, target: Path, fd: int, path: str, *, mode: int, keep_owner: bool) -> None:
        self._target = target
        self._fd = fd
        self._path = path
        self._mode = mode
        self._keep_owner = keep_owner
        #: The content is at the target, even if `publish` raised an error afterwards.
        self.published = False

    def publish(self, content: bytes, *, unchanged: Callable[[], bool] | None = None) -> None:
        """Write content to the target and return when it is durable. Closes the reservation.

        The target's mtime grows even when it lies in the future. A symlink stays one: the file that
        it points to is replaced. A file that is a mount point is rewritten in place; a crash in the
        middle of that can tear it.

        Args:
            unchanged: asked right before the target is replaced, when the content is on disk.

        Raises:
            TargetChanged: it said no; the reservation stays.
            OSError: it could not be written. The target is unchanged, unless `published` is true
                (the directory could not be synced) or it is a mount point; the reservation stays,
                so that the call can be repeated.
        """
        # Resolved again: qwen-code 0.24.4 replaces a symlink by a file, and nobody would read the
        # file that the old link pointed to.
        real = os.path.realpath(self._target)
        old = _status(real)
        fill(self._fd, content)
        os.fchmod(self._fd, self._mode)
        if self._keep_owner:
            _give_to_owner(self._fd, real, old)
        _advance_mtime(self._fd, old)
        os.fsync(self._fd)
        if unchanged is not None and not unchanged():
            raise TargetChanged
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
        sync_directory(os.path.dirname(real))

    def discard(self) -> None:
        """Remove the temporary file. May be called at any time, and twice."""
        if self._fd >= 0:
            with suppress(OSError):
                os.unlink(self._path)
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)


def reserve(
    target: Path,
    size: int,
    *,
    padding: int = PADDING_BYTES,
    mode: int = _MODE,
    keep_owner: bool = True,
) -> Reservation:
    """Make sure that a file can be replaced, and reserve the room for it: no content of it.

    Args:
        size: how many bytes the new content has, or about as many.
        padding: by how many bytes it may be longer.
        keep_owner: as root, give the new file to the owner of the old one, or of the directory.

    Raises:
        OSError: it cannot be replaced: read-only file or file system, no permission, disk full,
            quota. Nothing is left behind.
    """
    real = os.path.realpath(target)
    _check_writable(real)
    path = os.path.join(os.path.dirname(real), f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    reservation = Reservation(
        target, os.open(path, flags, mode), path, mode=mode, keep_owner=keep_owner
    )
    try:
        # Random bytes: zeros take no room on a file system that compresses.
        fill(reservation._fd, secrets.token_bytes(size + padding))
        if keep_owner:
            # Fails here where root may not do it (a container without CAP_CHOWN).
            _give_to_owner(reservation._fd, real, _status(real))
        os.fsync(reservation._fd)
    except BaseException:
        reservation.discard()
        raise
    return reservation


def replace_file(
    target: Path, content: bytes, *, mode: int = _MODE, keep_owner: bool = True
) -> None:
    """Replace or create a file in one step; see `Reservation.publish` for what is kept.

    Raises:
        OSError: it could not be written.
    """
    reservation = reserve(target, len(content), padding=0, mode=mode, keep_owner=keep_owner)
    try:
        reservation.publish(content)
    finally:
        reservation.discard()


def make_directory(path: Path) -> None:
    """Create a directory for secrets if it is missing; as root, for its parent's owner.

    Raises:
        OSError: it cannot be created; or, as root, it is a symbolic link of somebody else, who
            could have root write anywhere.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made = True
        try:
            os.mkdir(path.name, _DIRECTORY_MODE, dir_fd=parent)
        except FileExistsError:
            made = False
        if os.geteuid() == 0:
            _give_directory(parent, path, made=made)
    finally:
        os.close(parent)


def _give_directory(parent: int, path: Path, *, made: bool) -> None:
    """As root: give a new directory to its parent's owner, by a descriptor, since the owner may put
    a link in its place at any moment; and refuse a link that is there already."""
    status = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        if status.st_uid != 0:
            raise OSError(
                errno.ELOOP,
                "it is a symbolic link of another user, which root does not follow",
                path,
            )
        return
    if not made:
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path.name, flags, dir_fd=parent)
    try:
        owner = os.fstat(parent)
        os.fchown(fd, owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)


def sweep(directory: Path, *, now_s: float, alone: bool = False) -> int:
    """Remove the files that crashes left behind; return how many. Never raises.

    Args:
        now_s: wall clock, seconds since the epoch.
        alone: our lock is held. Then a reservation of a process that has ended is left over,
            however young it is.
    """
    swept = 0
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):
                if not entry.name.startswith(PREFIX):
                    continue
                status = entry.stat(follow_symlinks=False)
                # ctime and not mtime: `publish` may have pushed the mtime into the future.
                age_s = now_s - status.st_ctime
                old = age_s > LEFT_OVER_S or (
                    alone and abs(age_s) > _UNLOCKED_S and not _owner_runs(entry.name)
                )
                if stat.S_ISREG(status.st_mode) and old:
                    os.unlink(entry.path)
                    swept += 1
    return swept


def holds_left_overs(directory: Path) -> bool:
    """Whether there may be something to sweep. Never raises."""
    with suppress(OSError), os.scandir(directory) as entries:
        return any(entry.name.startswith(PREFIX) for entry in entries)
    return False


def _owner_runs(name: str) -> bool:
    """Whether the process that made a reservation still runs, as far as its name tells."""
    pid = name.removeprefix(PREFIX).split("-")[0]
    if not pid.isdecimal() or not int(pid):
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _status(path: str) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return os.stat(path)
    return None


def _check_writable(real: str) -> None:
    """Refuse a file that a rename would replace against its owner's will, or could not replace.

    Opening for writing fails for a file of another user, a read-only one, and a read-only mount of
    a single file, where otherwise only the rename would fail: with the old token spent.
    """
    with suppress(FileNotFoundError):
        # O_NONBLOCK: a named pipe must not stop the process.
        fd = os.open(real, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", real)
        if os.geteuid() not in (0, status.st_uid):
            # Writable through its group, but the new file would be ours and 0600: its owner, the
            # person who logs in, could not read it any more.
            raise PermissionError(errno.EPERM, "it belongs to another user", real)


def _give_to_owner(fd: int, real: str, old: os.stat_result | None) -> None:
    if os.geteuid() == 0:
        owner = old or os.stat(os.path.dirname(real))
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _advance_mtime(fd: int, old: os.stat_result | None) -> None:
    """Make sure that the mtime is later than the old file's, whatever the clock says."""
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
        fill(fd, content)
        os.fchmod(fd, mode)
        _advance_mtime(fd, old)
        os.fsync(fd)
    finally:
        os.close(fd)
