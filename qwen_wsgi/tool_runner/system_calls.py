"""The filter of system calls that no tool needs: a program for the kernel. Pure.

bubblewrap takes from a program what it could do to this machine. What is left is the kernel itself,
whose flaws were found in these calls again and again: they are complicated, and almost no program
makes them. Each fails as if it were not allowed (EPERM), which programs expect, because containers
refuse the same ones.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Final

#: Their numbers on x86-64 and on 64-bit ARM. From 424 on the numbers are the same everywhere.
DENIED: Final[Mapping[str, tuple[int, int]]] = {
    # Keys of the kernel, which all sandboxes of a user could share.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Programs in the kernel, its measurements, and page faults as events.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Further namespaces and mounts.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # Files by handles, and all accesses as events.
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # The kernel's own parts, and memory of several processors.
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "kcmp": (312, 272),
}

#: By `uname -m`: the column of `DENIED`, and linux/audit.h's word for the architecture.
_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

#: linux/filter.h and linux/seccomp.h.
_LOAD, _RETURN, _EQUAL, _AT_LEAST = 0x20, 0x06, 0x15, 0x35
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_ALLOW, _EPERM, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000
#: Calls of x86-64 in its variant with short pointers.
_X32: Final = 0x40000000


def program(machine: str = "") -> bytes:
    """The program for `bwrap --seccomp`; empty where the numbers of the calls are not known.

    Args:
        machine: as `uname -m` says; this one's by default.
    """
    found = _MACHINES.get(machine or os.uname().machine)
    if found is None:
        return b""
    column, architecture = found
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        # Programs of another architecture, whose calls have other numbers.
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _EPERM),
    ]
    for numbers in DENIED.values():
        steps += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _EPERM)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
