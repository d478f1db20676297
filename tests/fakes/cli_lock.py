"""qwen-code's lock on a login, with its faults."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Final

ATTEMPTS: Final = 20
FIRST_PAUSE_S: Final = 0.1
GROWTH: Final = 1.5
LONGEST_PAUSE_S: Final = 2.0


class CliLock:
    """The program's lock on a login, with its fault: it may take over a live one.

    Args:
        stale_s: how old a lock is that nobody holds.
        scale: by what all times are divided.
    """

    def __init__(self, path: Path, *, stale_s: float, scale: float) -> None:
        self.path = path
        self._stale_s = stale_s / scale
        self._scale = scale

    def acquire(self) -> bool:
        """Wait for the lock; whether it was taken."""
        pause_s = FIRST_PAUSE_S
        for _ in range(ATTEMPTS):
            try:
                with open(self.path, "x") as file:
                    file.write(str(uuid.uuid4()))
            except FileExistsError:
                if self._take_over():
                    continue
            else:
                return True
            time.sleep(pause_s / self._scale)
            pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)
        return False

    def _take_over(self) -> bool:
        aside = self.path.with_name(f"{self.path.name}.stale.{uuid.uuid4()}")
        try:
            if time.time() - self.path.stat().st_mtime <= self._stale_s:
                return False
            # Whatever is there by now, perhaps a live lock: this is the fault.
            since_ns = time.monotonic_ns()
            self.path.rename(aside)
            aside.unlink()
        except FileNotFoundError:
            return False
        self.taken_over(since_ns)
        return True

    def taken_over(self, since_ns: int) -> None:
        """A stale lock was removed; `since_ns` is the monotonic time before that."""
