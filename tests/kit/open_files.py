"""What files, sockets and threads other processes have open (Linux)."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

#: As the kernel names it in /proc/net/tcp.
_LISTEN: Final = "0A"


def tcp() -> Iterator[tuple[int, int, str, str]]:
    """Local port, remote port, state and inode of every connection of this machine."""
    for parts in _rows("tcp"):
        local, remote = (int(parts[i].rpartition(":")[2], 16) for i in (1, 2))
        yield local, remote, parts[3], parts[9]


def names(pid: int) -> Iterator[str]:
    """What each open file of a process is: `socket:[…]`, `pipe:[…]`, a path."""
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/fd/{entry}")


class OpenFiles(NamedTuple):
    """What a process has open.

    Attributes:
        client: connections of clients.
        upstream: connections to upstreams.
        other: the names of all others, with what a socket is.
    """

    client: int
    upstream: int
    other: Counter[str]

    @property
    def total(self) -> int:
        return self.client + self.upstream + self.other.total()

    def more_than(self, before: OpenFiles) -> str:
        """The other files that were not there before, for a person."""
        return ", ".join(sorted((self.other - before.other).elements()))


def look(pids: Iterable[int], port: int, upstream_ports: Collection[int]) -> dict[int, OpenFiles]:
    """What each worker has open for longer than this look takes.

    Only what is open before and after the system's list of connections was read: of a connection
    that began or ended meanwhile the list may say nothing, and it would count as another file.

    Args:
        port: where the workers listen.
    """
    before = {pid: Counter(names(pid)) for pid in pids}
    kinds = {}
    for local, remote, state, inode in tcp():
        if remote in upstream_ports:
            kinds[f"socket:[{inode}]"] = "upstream"
        elif local == port and state != _LISTEN:
            kinds[f"socket:[{inode}]"] = "client"
    found = {}
    for pid in before:
        stayed = before[pid] & Counter(names(pid))
        count = Counter(kinds.get(name, "other") for name in stayed.elements())
        others = [name for name in stayed.elements() if name not in kinds]
        found[pid] = OpenFiles(count["client"], count["upstream"], Counter(_told(others)))
    return found


def _told(files: Iterable[str]) -> Iterator[str]:
    """Names that tell a person what it is: the system's name of a socket is a number."""
    sockets = {f"socket:[{inode}]": what for inode, what in _sockets()}
    for name in files:
        yield f"{name} ({sockets.get(name, '?')})" if name.startswith("socket:") else name


def _sockets() -> Iterator[tuple[str, str]]:
    """The inode of every socket of this machine, and what it is: nothing that changes later."""
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for parts in _rows(kind):
            ports = " to ".join(str(int(each.rpartition(":")[2], 16)) for each in parts[1:3])
            yield parts[9], f"{kind}, port {ports}"
    for parts in _rows("unix"):
        yield parts[6], " ".join(("unix", *parts[7:]))


def _rows(table: str) -> Iterator[list[str]]:
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            yield line.split()


def threads(pid: int) -> int:
    """The operating system's threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))
