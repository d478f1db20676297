"""What each worker does at the moment, for all of them to see: calls in flight, calls so far; and
the names by which others know a worker, and find out that it has ended.

What a worker does is advisory, as everything in a shared file; one that was killed is left out
after a few seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_files import SharedFiles, Table, key_of, this_boot

_VERSION: Final = "1"
#: Key, when it was written, process id, calls in flight, calls that ended.
_ROW: Final = Struct("=8sdIIQ")
#: Twice the most workers: after a reload the old ones go on for a while.
_ROWS: Final = 512

#: A worker writes its row every five seconds (`services.MAINTENANCE_S`). One that did not for so
#: long is gone.
STALE_S: Final = 20.0
#: A worker whose event loop stands still for 30 s is killed (gunicorn.conf.py): one that gave no
#: sign for so long does not come back.
SILENT_S: Final = 45.0


class Worker(NamedTuple):
    """One worker, as it described itself within the last seconds."""

    pid: int
    in_flight: int
    ended: int


class Workers:
    """The workers of this server.

    Args:
        files, boottime: as for `cooldown.Cooldowns`.
    """

    def __init__(
        self, files: SharedFiles | None, *, boottime: Callable[[], float] = boottime
    ) -> None:
        self._now = boottime
        self._table = Table(files, "workers", _ROW, version=_VERSION, rows=_ROWS, age=1)

    def write(self, worker: Worker) -> None:
        """Describe a worker: this process's own."""
        self._table.put(_key(worker.pid), self._now(), *worker)

    def remove(self, pid: int) -> None:
        """A worker ends."""
        self._table.remove(_key(pid))

    def all(self) -> list[Worker]:
        """Those that wrote lately, by process id."""
        latest = self._now() - STALE_S
        return sorted(Worker(*values) for _, at, *values in self._table.rows() if at > latest)


def _key(pid: int) -> bytes:
    return key_of("worker", str(pid))


# --- names of workers ----------------------------------------------------------------------------


def this_worker() -> str:
    """A name of this process that no other process has, also after a restart of the machine:
    `<boot>/<namespace of process ids>/<process id>/<its start>`."""
    return f"{this_boot()}/{_namespace()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(worker: str, silent_s: float) -> bool:
    """Whether a worker has ended.

    Args:
        worker: as `this_worker` named it.
        silent_s: how long it gave no sign. Negative after a restart of the machine.
    """
    boot, namespace, pid, started = worker.split("/")
    if boot != this_boot() or silent_s > SILENT_S:
        return True
    # The process ids of another container say nothing here: its silence has to.
    return namespace == _namespace() and _started(int(pid)) != started


def sees(worker: str, other: str) -> bool:
    """Whether a worker can see the process of another one: it is in no other container."""
    return worker.split("/")[1] == other.split("/")[1]


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since boot (proc(5), field 22); "" if there is none, or if it
    has ended and its parent did not notice yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
