"""What files, sockets and threads other processes have open (Linux)."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

#: As the kernel names it in /proc/net/tcp.
_LISTEN: Final = "0A"


def tcp() -> Iterator[tuple[int, int, str, str]]:
    """Local port, remote port, state and inode of every connection of this machine."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        parts = line.split()
        local, remote = (int(parts[i].rpartition(":")[2], 16) for i in (1, 2))
        yield local, remote, parts[3], parts[9]


def names(pid: int) -> Iterator[str]:
    """What each open file of a process is: `socket:[…]`, `pipe:[…]`, a path."""
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/fd/{entry}")


def kinds(
    pids: Iterable[int], port: int, upstream_ports: Collection[int]
) -> dict[int, Counter[str]]:
    """By worker: how many open files are a `client`'s, an `upstream`'s, or `other`.

    Args:
        port: where the workers listen.
    """
    found: dict[str, str] = {}
    for local, remote, state, inode in tcp():
        if remote in upstream_ports:
            found[f"socket:[{inode}]"] = "upstream"
        elif local == port and state != _LISTEN:
            found[f"socket:[{inode}]"] = "client"
    return {pid: Counter(found.get(name, "other") for name in names(pid)) for pid in pids}


def threads(pid: int) -> int:
    """The operating system's threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))
