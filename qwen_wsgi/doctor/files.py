"""The files: may we read and write them, may others, is there room, what kind of disk is it."""

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
#: A renewal that finds less cannot reserve room for the next login.
_NO_ROOM_BYTES: Final = 1 * _MB
_LITTLE_ROOM_BYTES: Final = 50 * _MB

#: File systems whose locks are not to be relied on (docs/credentials.md).
_NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs", "afs")

#: More is no file of settings.
_READ_BYTES: Final = 4 * 1024 * 1024

_GROUP_OR_WORLD: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def check(
    settings: Settings, qwen_home: Path, machine: Machine, secrets: Collection[str]
) -> Iterator[Finding]:
    """Look at qwen-code's directory and at the state directory.

    Args:
        secrets: a file of settings that holds one of them should be nobody else's to read.
    """
    if machine.uid == 0:
        yield TELL.note(
            "user",
            "this is run as root, who may read and write everything: what the server's own user "
            "may is not told here",
            'Run it as that user; docs/operations.md, "qwen-proxy doctor", has the command.',
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
    """qwen-code's directory."""
    if not path.exists():
        yield TELL.note(str(path), "does not exist: nothing of qwen-code is used")
        return
    if not path.is_dir():
        yield TELL.fail(str(path), "is no directory", "Correct QWEN_HOME.")
        return
    if not machine.may(path, os.R_OK | os.X_OK):
        yield TELL.fail(
            str(path),
            f"{machine.user(machine.uid)} may not look into it; it belongs to "
            f"{machine.user(path.stat().st_uid)}",
            'Run the server as its owner: docs/operations.md, "As the owner of ~/.qwen".',
        )
        return
    yield from owner(path, machine) or [TELL.ok(str(path), "can be read")]
    yield from closed_to_writers(path)
    if (kind := machine.filesystem(path)) in _NETWORK:
        yield TELL.warn(
            str(path),
            f"is on a network file system ({kind}), whose locks are not to be relied on",
            "Keep it on a local disk if there is a login in it.",
        )


def settings_files(
    settings: Settings, qwen_home: Path, machine: Machine, secrets: Collection[str]
) -> Iterator[Finding]:
    """qwen-code's settings and `.env` files, as far as they are there."""
    for path in (qwen_home / "settings.json", qwen_home / ".env", settings.home / ".env"):
        if not os.path.lexists(path):
            continue
        faults = [*link(path), *readable(path, machine)]
        if not faults and _holds(path, secrets):
            faults = list(closed_to_readers(path))
        yield from faults or [TELL.ok(str(path), "can be read")]


def logins(qwen_home: Path, machine: Machine) -> Iterator[Finding]:
    """The files of the logins, and whether a renewal could replace them."""
    found = [path for path in login_files(qwen_home) if os.path.lexists(path)]
    for path in found:
        faults = [*link(path), *readable(path, machine)]
        if not faults:
            faults = [*same_owner(path, qwen_home, machine), *closed_to_readers(path)]
        yield from faults or [TELL.ok(str(path), "mode and owner are right")]
    if not found:
        return
    ours = LoginPaths.beside(found[0]).journal.parent
    for directory in (qwen_home, ours):
        if directory.is_dir() and not machine.may(directory, os.W_OK):
            yield TELL.fail(
                str(directory),
                f"{machine.user(machine.uid)} may not write to it, so no login can be renewed",
                "Give the directory to the user who runs the server; under systemd it needs "
                "BindPaths= (docs/credentials.md).",
            )
    yield from _ours(ours, qwen_home, machine)


def _ours(directory: Path, home: Path, machine: Machine) -> Iterator[Finding]:
    """The journals and locks of ours, beside the logins."""
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
    yield from faults or [TELL.ok(str(directory), "journals and locks: mode and owner are right")]


def state_directory(path: Path, machine: Machine) -> Iterator[Finding]:
    """Where the server keeps what it learns."""
    place = nearest(path)
    if not machine.may(place, os.W_OK | os.X_OK):
        yield TELL.fail(
            str(path),
            f"{machine.user(machine.uid)} may not write to {place}",
            "Give it to the user who runs the server, or set QWEN_PROXY_STATE_DIR.",
        )
    elif place != path:
        yield TELL.ok(str(path), "does not exist yet, and can be made")
    elif not path.is_dir():
        yield TELL.fail(str(path), "is no directory", "Remove it, or set QWEN_PROXY_STATE_DIR.")
    else:
        faults = [*owner(path, machine), *closed_to_writers(path)]
        yield from faults or [TELL.ok(str(path), "can be written")]


def room(path: Path, machine: Machine) -> Iterator[Finding]:
    """What is left of the disk."""
    place = nearest(path)
    try:
        left = machine.room(place)
    except OSError as error:
        yield TELL.skipped(str(place), f"its disk tells no free space ({error.strerror})")
        return
    told = f"{left.bytes / _MB:.0f} MB of disk are free"
    if left.files == 0:
        told = "the disk has no inode left for another file"
    if left.bytes < _NO_ROOM_BYTES or left.files == 0:
        yield TELL.fail(str(place), told, "Make room: without it no login is renewed.")
    elif left.bytes < _LITTLE_ROOM_BYTES:
        yield TELL.warn(str(place), told, "Make room before it is used up.")
    else:
        yield TELL.ok(str(place), told)


# --- one file ------------------------------------------------------------------------------------


def link(path: Path) -> Iterator[Finding]:
    """A symbolic link, which leads somewhere or nowhere."""
    if not path.is_symlink():
        return
    if not os.path.exists(path):
        yield TELL.fail(
            str(path), f"is a link to {os.readlink(path)}, which does not exist", f"rm {path}"
        )
    elif path.name.startswith("oauth_creds"):
        yield TELL.note(
            str(path),
            f"is a link to {os.readlink(path)}; a new login of qwen-code puts a file in its place",
        )


def readable(path: Path, machine: Machine) -> Iterator[Finding]:
    """Whether the server can read it."""
    if os.path.exists(path) and not machine.may(path, os.R_OK):
        yield TELL.fail(
            str(path),
            f"{machine.user(machine.uid)} may not read it; it belongs to "
            f"{machine.user(path.stat().st_uid)}",
            _give(path),
        )


def same_owner(path: Path, home: Path, machine: Machine) -> list[Finding]:
    """Whether it is of the owner of qwen-code's directory; what root made there is not."""
    theirs, right = path.lstat().st_uid, home.stat().st_uid
    if theirs == right:
        return []
    name = machine.user(right)
    what = f"belongs to {machine.user(theirs)}, and {home} to {name}"
    return [TELL.warn(str(path), what, f"sudo chown {name} {path}")]


def owner(path: Path, machine: Machine) -> list[Finding]:
    """Whether it is of the user who runs this."""
    uid = path.lstat().st_uid
    if uid == machine.uid:
        return []
    theirs, mine = machine.user(uid), machine.user(machine.uid)
    if machine.uid == 0:
        return [TELL.note(str(path), f"belongs to {theirs}", f"The server has to run as {theirs}.")]
    what = f"belongs to {theirs}, and this is run as {mine}"
    return [TELL.warn(str(path), what, f"Run this, and the server, as {theirs}.")]


def closed_to_readers(path: Path) -> Iterator[Finding]:
    """Whether other users can read a secret."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _GROUP_OR_WORLD:
        yield TELL.warn(
            str(path),
            f"holds a secret, and others may open it (mode {mode:04o})",
            f"chmod 600 {path}",
        )


def closed_to_writers(path: Path) -> Iterator[Finding]:
    """Whether other users can replace what is in a directory."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS_WRITE:
        yield TELL.warn(
            str(path),
            f"others may replace the files in it (mode {mode:04o})",
            f"chmod 700 {path}",
        )


def nearest(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next((each for each in (path, *path.parents) if os.path.exists(each)), Path("/"))


def _give(path: Path) -> str:
    return f"Run the server as its owner, or give it to the server's user: sudo chown USER {path}"


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _holds(path: Path, secrets: Collection[str]) -> bool:
    """Whether one of the secrets stands in a file."""
    try:
        with path.open("rb") as file:
            content = file.read(_READ_BYTES)
    except OSError:
        return False
    return any(secret.encode() in content for secret in secrets if secret)
