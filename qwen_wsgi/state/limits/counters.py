"""The counters of all clients of this worker, and the care for their files."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qwen_wsgi.access.limits import VERSION, Calendar
from qwen_wsgi.clock import Clock, boottime, sleep
from qwen_wsgi.state import file_lock
from qwen_wsgi.state.limits.counter import PATIENCE_S, Common, Counter
from qwen_wsgi.state.workers import is_gone, this_worker

#: Longer than the longest month: nothing in a file that was not written for so long counts.
UNUSED_S: Final = 40 * 86_400.0
#: How often the directory is searched for such files. Seconds.
_PRUNE_S: Final = 3600.0
#: Files that a worker keeps open, and those with calls in flight beyond them.
_MOST_OPEN: Final = 64


class LimitCounters:
    """The counters of all clients. Shared by all greenlets and threads of a worker.

    Args:
        directory: created when it is needed. None counts in this process alone.
        boottime: tells how long workers were silent, also across processes.
        worker, is_gone: as in `state.workers`.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Clock,
        calendar: Calendar,
        *,
        sleep: Callable[[float], None] = sleep,
        boottime: Callable[[], float] = boottime,
        worker: Callable[[], str] = this_worker,
        is_gone: Callable[[str, float], bool] = is_gone,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._is_gone = is_gone
        self._common = Common(
            clock,
            calendar,
            sleep=sleep,
            boottime=boottime,
            name=worker,
            is_gone=is_gone,
            patience_s=patience_s,
        )
        self._counters: dict[str, Counter] = {}
        self._pruned_s = -math.inf

    def of(self, client: str) -> Counter:
        """The counter of a client, by its id."""
        found = self._counters.get(client)
        if found is None:
            if len(self._counters) >= _MOST_OPEN:
                self._close_idle()
            path = None
            if self._directory is not None:
                name = hashlib.sha256(b"qwen-proxy limits\0" + client.encode(errors="replace"))
                path = self._directory / f"{name.hexdigest()[:32]}-{VERSION}"
            found = self._counters[client] = Counter(self._common, path)
        return found

    def look_after(self) -> None:
        """Give back what dead workers held, say that this one lives, go over to files that were
        replaced, and remove those of clients that were not seen for long. To be called every few
        seconds."""
        gone: dict[str, bool] = {}

        def ask(worker: str, silent_s: float) -> bool:
            if worker not in gone:
                gone[worker] = self._is_gone(worker, silent_s)
            return gone[worker]

        for counter in list(self._counters.values()):
            counter.look_after(ask)
        if self._directory is not None and self._is_due():
            self._prune(self._directory)

    def close(self) -> None:
        """Close all files."""
        counters, self._counters = self._counters, {}
        for counter in counters.values():
            counter.close()

    def _close_idle(self) -> None:
        """Close the file of the client that was first seen of those without a call in flight."""
        for client, counter in self._counters.items():
            if counter.is_idle:
                counter.close()
                del self._counters[client]
                return

    def _is_due(self) -> bool:
        now_s = self._clock.monotonic()
        due = now_s - self._pruned_s >= _PRUNE_S
        if due:
            self._pruned_s = now_s
        return due

    def _prune(self, directory: Path) -> None:
        """Remove the files of clients that were not seen for long."""
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if self._is_unused(entry.stat(follow_symlinks=False).st_mtime):
                        self._remove(entry.path)

    def _is_unused(self, written_at: float) -> bool:
        return self._clock.now() - written_at > UNUSED_S

    def _remove(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # Nobody writes while it is locked, and who has it open finds out (`look_after`).
            if file_lock.take(fd) and self._is_unused(os.fstat(fd).st_mtime):
                os.unlink(path)
        finally:
            os.close(fd)
