"""What each worker does at the moment, for all of them to see: calls in flight, calls so far.

Advisory, as everything in shared memory; a worker that was killed is left out after a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_memory import NO_KEY, Table, key_of

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
        directory, boottime, boot_id: as for `cooldown.Cooldowns`.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        boottime: Callable[[], float] = boottime,
        boot_id: str | None = None,
    ) -> None:
        self._now = boottime
        self._table = Table.shared(
            directory, "workers", _ROW, version=_VERSION, rows=_ROWS, age=1, boot_id=boot_id
        )

    def write(self, worker: Worker) -> None:
        """Describe a worker: this process's own."""
        key = key_of("worker", str(worker.pid))
        at, _ = self._table.find_or_oldest(key)
        self._table.write(at, key, self._now(), *worker)

    def remove(self, pid: int) -> None:
        """A worker ends."""
        at = self._table.find(key_of("worker", str(pid)))
        if at is not None:
            self._table.write(at, NO_KEY, 0.0, 0, 0, 0)

    def all(self) -> list[Worker]:
        """Those that wrote lately, by process id."""
        latest = self._now() - STALE_S
        rows = (self._table.read(number * _ROW.size) for number in range(_ROWS))
        found = [Worker(*values) for key, at, *values in rows if key != NO_KEY and at > latest]
        return sorted(found)
