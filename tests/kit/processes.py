"""Processes seen from outside: their descendants, CPU time and memory; and how they are stopped."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]

_STOP_S: Final = 3.0


class StartError(Exception):
    """A server that is to be measured did not start."""


def raise_open_files_limit(needed: int) -> None:
    """Every stream holds a file here, one in the upstream, and two in between."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = Path("/proc", entry, "stat").read_text()
                # The name in parentheses may hold anything; the parent is the second after it.
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet (Z) has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds that the processes used so far, user and system, all threads."""
    # The kernel's CPU clock of another process (clock_getcpuclockid): what utime + stime in
    # /proc/PID/stat are made of, in nanoseconds and not in ticks of 10 ms.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def starved_s(pids: Sequence[int]) -> float:
    """Seconds that the processes were ready to run but had no CPU, since they started."""
    total = 0
    for pid in pids:
        # Three numbers: nanoseconds on a CPU, nanoseconds waiting for one, time slices.
        total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    return total / 1e9


def starved_each(pids: Sequence[int]) -> list[float]:
    """The same of each of them, all its threads together; 0 for one that is gone.

    A thread that has no CPU may hold the interpreter's lock, for which the others wait.
    """
    found = [0.0] * len(pids)
    for index, pid in enumerate(pids):
        with contextlib.suppress(OSError):
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                found[index] += int(path.read_text().split()[1]) / 1e9
    return found


def memory_kb(pids: Iterable[int]) -> float:
    """Proportional set size of the processes: shared pages are counted once."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return float(total)


def free_port() -> int:
    """A port of the loopback interface on which nobody listens.

    It stays bound until this process ends, so that the system gives it to no other test, which may
    run at the same time. A server can listen there if it sets SO_REUSEADDR, as all of ours do.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    atexit.register(probe.close)
    port: int = probe.getsockname()[1]
    return port


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Stop a server and whatever it started, first politely."""
    pids = tree(process.pid)
    if process.poll() is None:
        process.send_signal(how)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    if process.poll() is None:
        # Descendants of a root that still runs are surely still ours.
        for pid in pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
