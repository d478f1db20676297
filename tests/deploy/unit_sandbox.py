"""Runs a command under the system call rules of the systemd unit, without systemd.

    python unit_sandbox.py UNIT COMMAND...

Does with libseccomp what systemd does for SystemCallFilter=, MemoryDenyWriteExecute= and
RestrictAddressFamilies=.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

# From seccomp.h and sys/prctl.h.
_ALLOW: Final = 0x7FFF0000
_EQUAL: Final = 4
_MASKED_EQUAL: Final = 7
_NO_NEW_PRIVILEGES: Final = 38

_WRITE: Final = 2
_EXECUTE: Final = 4


class _Argument(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


_Rule = tuple[int, str, list[_Argument]]


def _refuse(number: int) -> int:
    return 0x00050000 | number


def _load(library: ctypes.CDLL, default: int, rules: Iterable[_Rule]) -> None:
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    for action, name, arguments in rules:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            # Of another architecture or a newer kernel.
            continue
        array = (_Argument * len(arguments))(*arguments)
        failed = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), number, len(arguments), array
        )
        assert not failed, name
    assert library.seccomp_load(context) == 0


def _groups() -> dict[str, set[str]]:
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True
    ).stdout
    groups: dict[str, set[str]] = {}
    group = ""
    for line in listing.splitlines():
        word = line.strip()
        if line.startswith("@"):
            group = word
            groups[group] = set()
        elif group and word and not word.startswith("#"):
            groups[group].add(word)
    return groups


def allowed_calls(unit: str) -> set[str]:
    """The system calls that the unit's SystemCallFilter= lines leave, in their order."""
    groups = _groups()

    def expand(word: str) -> set[str]:
        if not word.startswith("@"):
            return {word}
        return {name for member in groups[word] for name in expand(member)}

    allowed = expand("@default")
    for value in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        names = {name for word in value.lstrip("~").split() for name in expand(word)}
        allowed = allowed - names if value.startswith("~") else allowed | names
    # systemd lets the process that it prepared start its program.
    return allowed | {"execve"}


def main() -> None:
    """Apply the rules to this process, then become the command."""
    unit = Path(sys.argv[1]).read_text()
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    calls = sorted(allowed_calls(unit))
    if ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError("no_new_privs")
    if "MemoryDenyWriteExecute=yes" in unit:
        both = _WRITE | _EXECUTE
        no = _refuse(errno.EPERM)
        _load(
            library,
            _ALLOW,
            [
                (no, "mmap", [_Argument(2, _MASKED_EQUAL, both, both)]),
                (no, "mprotect", [_Argument(2, _MASKED_EQUAL, _EXECUTE, _EXECUTE)]),
                (no, "pkey_mprotect", [_Argument(2, _MASKED_EQUAL, _EXECUTE, _EXECUTE)]),
            ],
        )
    (families,) = re.findall(r"^RestrictAddressFamilies=(.*)$", unit, re.MULTILINE)
    kept = {int(getattr(socket, name)) for name in families.split()}
    _load(
        library,
        _ALLOW,
        [
            (_refuse(errno.EAFNOSUPPORT), "socket", [_Argument(0, _EQUAL, family, 0)])
            for family in range(64)
            if family not in kept
        ],
    )
    _load(library, _refuse(errno.EPERM), [(_ALLOW, name, []) for name in calls])
    os.execv(sys.argv[2], sys.argv[2:])


def available() -> bool:
    """Whether this machine can do it."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return shutil.which("systemd-analyze") is not None


if __name__ == "__main__":
    main()
