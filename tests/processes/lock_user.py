"""Processes of ours that use the locks; run by test_lock_processes.

python -m tests.processes.lock_user count FILE ROUNDS
python -m tests.processes.lock_user hold DIRECTORY
python -m tests.processes.lock_user contend DIRECTORY LOG UNTIL_S HOLD_S SCALE
python -m tests.processes.lock_user hub DIRECTORY
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.locks.cli_lock import HEARTBEAT_S, CliLock
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.locks.stale import SEEN_S, STALE_S
from tests.processes.journal import Journal


def proxy_path(directory: Path) -> Path:
    return directory / ".qwen-proxy/refresh.lock"


def cli_path(directory: Path) -> Path:
    return directory / "oauth_creds.lock"


def count(file: Path, rounds: int) -> None:
    """Add to a number in a file, in a way that loses whatever happens at the same time."""
    lock = ProxyLock(proxy_path(file.parent))
    for _ in range(rounds):
        assert lock.acquire(30)
        number = int(file.read_text())
        time.sleep(random.uniform(0, 0.004))
        file.write_text(str(number + 1))
        lock.release()
        time.sleep(random.uniform(0, 0.02))


def hold(directory: Path) -> None:
    """Take both locks, say so, and keep them until killed."""
    proxy = ProxyLock(proxy_path(directory))
    cli = CliLock(cli_path(directory), clock=SystemClock())
    assert proxy.acquire(10)
    assert cli.acquire(10)
    print("held", flush=True)
    time.sleep(60)


def contend(directory: Path, log: Path, until_s: float, hold_s: float, scale: float) -> None:
    """Take both locks again and again, and note what happened to the second one."""
    journal = Journal(log, f"own-{os.getpid()}")
    proxy = ProxyLock(proxy_path(directory))
    cli = CliLock(
        cli_path(directory),
        clock=SystemClock(),
        stale_s=STALE_S / scale,
        seen_s=SEEN_S / scale,
        heartbeat_s=HEARTBEAT_S / scale,
        on_event=lambda name, fields: journal.note(name),
    )
    end_s = time.monotonic() + until_s
    while time.monotonic() < end_s:
        if not proxy.acquire(20):
            journal.note("lock_a_timeout")
            continue
        try:
            if cli.acquire(15):
                journal.note("enter")
                time.sleep(hold_s * random.uniform(0.8, 1.2))
                # Whoever comes in after this time does not come in beside us; whoever did before
                # is found out by the check.
                left_ns = time.monotonic_ns()
                cli.check()
                journal.note("lost" if cli.lost else "kept")
                journal.note("leave", at_ns=left_ns)
        finally:
            cli.release()
            proxy.release()
        time.sleep(random.uniform(0.05, 0.2))


def hub(directory: Path) -> None:
    """Wait for both locks under gevent, while a greenlet ticks; print what came of it."""
    # After the locks, on purpose: who imports first must not decide whether the hub stalls.
    from gevent import monkey

    monkey.patch_all()
    import gevent

    gaps: list[float] = []

    def tick() -> None:
        before = time.monotonic()
        while True:
            gevent.sleep(0.01)
            now = time.monotonic()
            gaps.append(now - before)
            before = now

    def longest_gap() -> float:
        longest = max(gaps)
        gaps.clear()
        return longest

    ticker = gevent.spawn(tick)
    proxy = ProxyLock(proxy_path(directory))
    cli = CliLock(cli_path(directory), clock=SystemClock(), heartbeat_s=0.05)
    result: dict[str, object] = {"proxy": proxy.acquire(1.0), "proxy_gap_s": longest_gap()}
    result |= {"cli": cli.acquire(1.0), "cli_gap_s": longest_gap()}

    # A greenlet survives a fork where a thread does not: also that of the heartbeat.
    own = CliLock(directory / "own.lock", clock=SystemClock(), heartbeat_s=0.05)
    assert own.acquire(0)
    os.utime(own.path, (1, 1))
    gevent.sleep(0.3)
    result["touched"] = own.path.stat().st_mtime > 1
    pid = os.fork()
    if pid == 0:
        own.path.unlink()
        gevent.sleep(0.5)
        own.release()
        os._exit(0 if own.path.read_text().split()[1] == str(os.getppid()) else 1)
    result["child"] = os.waitpid(pid, 0)[1]
    result["held"] = own.check()
    own.release()
    result["released"] = not own.path.exists()
    result["all_gap_s"] = longest_gap()
    ticker.kill()
    print(json.dumps(result), flush=True)


def main() -> None:
    what, path, *more = sys.argv[1:]
    if what == "count":
        count(Path(path), int(more[0]))
    elif what == "hold":
        hold(Path(path))
    elif what == "contend":
        contend(Path(path), Path(more[0]), *map(float, more[1:]))
    elif what == "hub":
        hub(Path(path))


if __name__ == "__main__":
    main()
