"""Processes of ours that count one client's calls; run by test_limit_processes.

python -m tests.processes.limit_user reserve DIRECTORY LIMIT CALLS
python -m tests.processes.limit_user hold DIRECTORY CALLS TOKENS
python -m tests.processes.limit_user lock DIRECTORY
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from qwen_wsgi.access.limits import Calendar, Granted, Limits
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.state import file_lock
from qwen_wsgi.state.limits.counters import LimitCounters

CLIENT = "client"


def counters(directory: Path, patience_s: float = 20) -> LimitCounters:
    """Those of this process. Patient: a machine that has other things to do is not the subject."""
    return LimitCounters(directory, SystemClock(), Calendar("UTC"), patience_s=patience_s)


def reserve(directory: Path, limit: int, calls: int) -> None:
    """Wait for a line, make the calls, and print how many were allowed."""
    counter = counters(directory).of(CLIENT)
    print("ready", flush=True)
    sys.stdin.readline()
    allowed = 0
    for number in range(calls):
        found = counter.reserve(Limits(rpm=limit), tokens=10)
        if isinstance(found, Granted):
            allowed += 1
            if number % 2:
                counter.settle(found, 7)
    print(allowed, flush=True)


def hold(directory: Path, calls: int, tokens: int) -> None:
    """Reserve, say so, and never end."""
    counter = counters(directory).of(CLIENT)
    for _ in range(calls):
        assert isinstance(counter.reserve(Limits(concurrency=calls), tokens=tokens), Granted)
    print("held", flush=True)
    time.sleep(60)


def lock(directory: Path) -> None:
    """Take the lock of the only file, and stop as by SIGSTOP in the middle of a change."""
    (file,) = directory.iterdir()
    fd = os.open(file, os.O_RDWR)
    assert file_lock.take(fd)
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    os.close(fd)


def main() -> None:
    what, path, *more = sys.argv[1:]
    numbers = [int(each) for each in more]
    if what == "reserve":
        reserve(Path(path), *numbers)
    elif what == "hold":
        hold(Path(path), *numbers)
    elif what == "lock":
        lock(Path(path))


if __name__ == "__main__":
    main()
