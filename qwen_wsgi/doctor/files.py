"""Checks files: permissions and owners, free disk space, the kind of file system."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from qwen_wsgi.credentials.files.login_store import LoginPaths
from qwen_wsgi.credentials.sources.login_files import login_files
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.settings import Settings

TELL: Final = Teller("files")

_MB: Final = 1_000_000
#: With less, a token refresh cannot reserve space for the new login.
_MIN_FREE_BYTES: Final = 1 * _MB
_LOW_FREE_BYTES: Final = 50 * _MB

#: File systems with unreliable locks (docs/credentials.md).
_NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs", "afs")

#: A larger file is not read to its end: settings are small.
_READ_BYTES: Final = 4 * 1024 * 1024

_GROUP_OR_WORLD: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def check(
    settings: Settings, qwen_home: Path, machine: Machine, secrets: Collection[str]
) -> Iterator[Finding]:
    """Check qwen-code's directory and the state directory.

    Args:
        secrets: a settings file that holds one of them must be private.
    """
    if machine.uid == 0:
        yield TELL.note(
            "user",
            "doctor runs as root, which may read and write everything, so it cannot check the "
            "permissions of the server's user",
            "Run it as that user: the command that `make install` put into /usr/local/bin does.",
        )
    yield from home(qwen_home, machine)
    if os.path.isdir(qwen_home):
        yield from settings_files(settings, qwen_home, machine, secrets)
        yield from logins(qwen_home, machine)
    yield from state_directory(Path(settings.state_dir), machine)
    yield from room(qwen_home, machine)
    state = nearest(Path(settings.state_dir))
    if _device(state) != _device(nearest(qwen_home)):
        yield from room(state, machine)


def home(path: Path, machine: Machine) -> Iterator[Finding]:
    """Check qwen-code's directory."""
    if not path.exists():
        yield TELL.note(str(path), "does not exist, so no login or key of qwen-code is used")
        return
    if not path.is_dir():
        yield TELL.fail(str(path), "is not a directory", "Correct QWEN_HOME.")
        return
    if not machine.may(path, os.R_OK | os.X_OK):
        yield TELL.fail(
            str(path),
            f"{machine.user(machine.uid)} may not read it; it belongs to "
            f"{machine.user(path.stat().st_uid)}",
            'Run the server as its owner: docs/operations.md, "As the owner of ~/.qwen".',
        )
        return
    yield from owner(path, machine) or [TELL.ok(str(path), "is readable")]
    yield from closed_to_writers(path)
    if (kind := machine.filesystem(path)) in _NETWORK:
        yield TELL.warn(
            str(path),
            f"is on a network file system ({kind}), whose locks are unreliable",
            "Move it to a local disk if it holds a login.",
        )


def settings_files(
    settings: Settings, qwen_home: Path, machine: Machine, secrets: Collection[str]
) -> Iterator[Finding]:
    """Check qwen-code's settings and `.env` files, where they exist."""
    for path in (qwen_home / "settings.json", qwen_home / ".env", settings.home / ".env"):
        if not os.path.lexists(path):
            continue
        faults = [*link(path), *readable(path, machine)]
        if not faults and _holds(path, secrets):
            faults = list(closed_to_readers(path))
        yield from faults or [TELL.ok(str(path), "is readable")]


def logins(qwen_home: Path, machine: Machine) -> Iterator[Finding]:
    """Check the login files, and whether a token refresh can replace them."""
    found = [path for path in login_files(qwen_home) if os.path.lexists(path)]
    for path in found:
        faults = [*link(path), *readable(path, machine)]
        if not faults:
            faults = [*same_owner(path, qwen_home, machine), *closed_to_readers(path)]
        yield from faults or [TELL.ok(str(path), "mode and owner are correct")]
    if not found:
        return
    ours = LoginPaths.beside(found[0]).journal.parent
    for directory in (qwen_home, ours):
        if directory.is_dir() and not machine.may(directory, os.W_OK):
            yield TELL.fail(
                str(directory),
                f"{machine.user(machine.uid)} may not write to it, so no login can be refreshed",
                "Make the server's user its owner; under systemd it also needs BindPaths= "
                "(docs/credentials.md).",
            )
    yield from _ours(ours, qwen_home, machine)


def _ours(directory: Path, home: Path, machine: Machine) -> Iterator[Finding]:
    """Check our journals and locks beside the logins."""
    if not directory.is_dir():
        return
    faults = [*same_owner(directory, home, machine), *closed_to_writers(directory)]
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        paths = []
        faults.append(
            TELL.fail(str(directory), f"cannot be listed ({error.strerror})", _give(directory))
        )
    for path in paths:
        faults += same_owner(path, home, machine)
        if path.suffix == ".json":
            faults += [*readable(path, machine), *closed_to_readers(path)]
    yield from faults or [TELL.ok(str(directory), "journals and locks: mode and owner are correct")]


def state_directory(path: Path, machine: Machine) -> Iterator[Finding]:
    """Check the directory of the server's own state."""
    place = nearest(path)
    if not machine.may(place, os.W_OK | os.X_OK):
        yield TELL.fail(
            str(path),
            f"{machine.user(machine.uid)} may not write to {place}",
            "Make the server's user its owner, or set QWEN_PROXY_STATE_DIR.",
        )
    elif place != path:
        yield TELL.ok(str(path), "does not exist yet, and can be created")
    elif not path.is_dir():
        yield TELL.fail(str(path), "is not a directory", "Remove it, or set QWEN_PROXY_STATE_DIR.")
    else:
        faults = [*owner(path, machine), *closed_to_writers(path)]
        yield from faults or [TELL.ok(str(path), "is writable")]


def room(path: Path, machine: Machine) -> Iterator[Finding]:
    """Check the free disk space."""
    place = nearest(path)
    try:
        left = machine.room(place)
    except OSError as error:
        yield TELL.skipped(str(place), f"the free disk space is unknown ({error.strerror})")
        return
    what = f"{left.bytes / _MB:.0f} MB of disk are free"
    if left.files == 0:
        what = "the disk has no free inode for another file"
    if left.bytes < _MIN_FREE_BYTES or left.files == 0:
        yield TELL.fail(str(place), what, "Free some space: without it no login is refreshed.")
    elif left.bytes < _LOW_FREE_BYTES:
        yield TELL.warn(str(place), what, "Free some space soon.")
    else:
        yield TELL.ok(str(place), what)


# --- one file ------------------------------------------------------------------------------------


def link(path: Path) -> Iterator[Finding]:
    """Check whether a path is a symbolic link, and whether its target exists."""
    if not path.is_symlink():
        return
    if not os.path.exists(path):
        yield TELL.fail(
            str(path),
            f"is a symbolic link to {os.readlink(path)}, which does not exist",
            f"rm {path}",
        )
    elif path.name.startswith("oauth_creds"):
        yield TELL.note(
            str(path),
            f"is a symbolic link to {os.readlink(path)}; the next login of qwen-code replaces it",
        )


def readable(path: Path, machine: Machine) -> Iterator[Finding]:
    """Check whether the server can read a file."""
    if os.path.exists(path) and not machine.may(path, os.R_OK):
        yield TELL.fail(
            str(path),
            f"{machine.user(machine.uid)} may not read it; it belongs to "
            f"{machine.user(path.stat().st_uid)}",
            _give(path),
        )


def same_owner(path: Path, home: Path, machine: Machine) -> list[Finding]:
    """Check for another owner than that of qwen-code's directory, e.g. root."""
    uid, right = path.lstat().st_uid, home.stat().st_uid
    if uid == right:
        return []
    name = machine.user(right)
    what = f"belongs to {machine.user(uid)}, but {home} to {name}"
    return [TELL.warn(str(path), what, f"sudo chown {name} {path}")]


def owner(path: Path, machine: Machine) -> list[Finding]:
    """Check for another owner than the user that runs doctor."""
    uid = path.lstat().st_uid
    if uid == machine.uid:
        return []
    theirs, mine = machine.user(uid), machine.user(machine.uid)
    if machine.uid == 0:
        return [TELL.note(str(path), f"belongs to {theirs}", f"Run the server as {theirs}.")]
    what = f"belongs to {theirs}, but doctor runs as {mine}"
    return [TELL.warn(str(path), what, f"Run doctor and the server as {theirs}.")]


def closed_to_readers(path: Path) -> Iterator[Finding]:
    """Check whether other users can read a secret."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _GROUP_OR_WORLD:
        yield TELL.warn(
            str(path),
            f"holds a secret, and other users may read it (mode {mode:04o})",
            f"chmod 600 {path}",
        )


def closed_to_writers(path: Path) -> Iterator[Finding]:
    """Check whether other users can replace files in a directory."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS_WRITE:
        yield TELL.warn(
            str(path),
            f"other users may replace the files in it (mode {mode:04o})",
            f"chmod 700 {path}",
        )


def nearest(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next((each for each in (path, *path.parents) if os.path.exists(each)), Path("/"))


def _give(path: Path) -> str:
    return f"Run the server as its owner, or change the owner: sudo chown USER {path}"


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _holds(path: Path, secrets: Collection[str]) -> bool:
    """Whether a file contains one of the secrets."""
    try:
        with path.open("rb") as file:
            content = file.read(_READ_BYTES)
    except OSError:
        return False
    return any(secret.encode() in content for secret in secrets if secret)
