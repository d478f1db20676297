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
import uuid
from pathlib import Path

from tests.processes.journal import Journal

ATTEMPTS = 20
FIRST_PAUSE_S = 0.1
GROWTH = 1.5
LONGEST_PAUSE_S = 2.0


class Lookalike:
    def __init__(self, lock: Path, journal: Journal, stale_s: float, scale: float) -> None:
        self.lock = lock
        self.journal = journal
        self.stale_s = stale_s / scale
        self.scale = scale

    def acquire(self) -> bool:
        pause_s = FIRST_PAUSE_S
        for _ in range(ATTEMPTS):
            try:
                with open(self.lock, "x") as file:
                    file.write(str(uuid.uuid4()))
            except FileExistsError:
                if self.take_over():
                    continue
            else:
                return True
            time.sleep(pause_s / self.scale)
            pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)
        return False

    def take_over(self) -> bool:
        aside = self.lock.with_name(f"{self.lock.name}.stale.{uuid.uuid4()}")
        try:
            if time.time() - self.lock.stat().st_mtime <= self.stale_s:
                return False
            # Whatever is there by now, perhaps a live lock: this is the fault.
            since_ns = time.monotonic_ns()
            self.lock.rename(aside)
            aside.unlink()
        except FileNotFoundError:
            return False
        self.journal.note("take-over", since_ns=since_ns)
        return True

    def remove(self, cause: str) -> None:
        since_ns = time.monotonic_ns()
        try:
            # Whoever's it is: this is the other fault.
            self.lock.unlink()
        except FileNotFoundError:
            return
        self.journal.note(cause, since_ns=since_ns)


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
