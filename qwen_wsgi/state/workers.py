"""What each worker does at the moment, for all of them to see: calls in flight, calls so far.

Advisory, as everything in a shared file; a worker that was killed is left out after a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_files import SharedFiles, Table, key_of

_VERSION: Final = "1"
#: Key, when it was written, process id, calls in flight, calls that ended.
_ROW: Final = Struct("=8sdIIQ")
#: Twice the most workers: after a reload the old ones go on for a while.
_ROWS: Final = 512

#: A worker writes its row every five seconds (`services.MAINTENANCE_S`). One that did not for so
#: long is gone.
STALE_S: Final = 20.0


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
