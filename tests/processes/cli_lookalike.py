"""A program that locks as qwen-code does, with all its faults; run by test_lock_processes.

    python -m tests.processes.cli_lookalike LOCK LOG STALE_S SCALE lock UNTIL_S [--drop-on-exit]
    python -m tests.processes.cli_lookalike LOCK LOG STALE_S SCALE read AFTER_S

`lock` takes the lock again and again; `read` never takes it, and removes it when it ends. STALE_S
is that of the real program; all times are divided by SCALE.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from tests.fakes.cli_lock import CliLock
from tests.processes.journal import Journal


class Lookalike(CliLock):
    def __init__(self, lock: Path, journal: Journal, stale_s: float, scale: float) -> None:
        super().__init__(lock, stale_s=stale_s, scale=scale)
        self._journal = journal

    def taken_over(self, since_ns: int) -> None:
        self._journal.note("take-over", since_ns=since_ns)

    def remove(self, cause: str) -> None:
        since_ns = time.monotonic_ns()
        try:
            # Whoever's it is: this is the other fault.
            self.path.unlink()
        except FileNotFoundError:
            return
        self._journal.note(cause, since_ns=since_ns)


def main() -> None:
    lock, log, stale_s, scale, what, seconds, *flags = sys.argv[1:]
    journal = Journal(Path(log), f"cli-{os.getpid()}")
    program = Lookalike(Path(lock), journal, float(stale_s), float(scale))
    end_s = time.monotonic() + float(seconds)
    try:
        while what == "lock" and time.monotonic() < end_s:
            if not program.acquire():
                journal.note("timeout")
                continue
            journal.note("enter")
            time.sleep(random.uniform(0.02, 0.1))
            journal.note("leave")
            program.remove("release")
            time.sleep(random.uniform(0.1, 0.3))
        if what == "read":
            time.sleep(float(seconds))
    finally:
        if what == "read" or "--drop-on-exit" in flags:
            program.remove("exit")


if __name__ == "__main__":
    main()
