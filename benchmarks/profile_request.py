"""Where the CPU time of one kind of request goes: samples a real worker under load.

    python -m benchmarks.profile_request setup
    python -m benchmarks.profile_request paced --top 60
    python -m benchmarks.profile_request setup --calls

A timer on the worker's own CPU time interrupts it, and each time the Python stack is noted. Time
in C is its caller's. Two tables: time in a function itself, and with all that it calls, both in
microseconds per request (or per chunk). With `--calls` every call of a Python function is counted
instead: how often per request, and by whom.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import collections
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from benchmarks import load, servers
from benchmarks.calls import Called, counting, name_of
from tests.kit import processes

#: The kernel's tick is the finest that a CPU timer can be.
_INTERVAL_S: Final = 0.001

#: Requests whose calls are counted.
_COUNTED: Final = 1000

_REQUESTS: Final = {
    "request": load.chat("fast"),
    "setup": load.chat("fast", stream=True),
    "burst": load.chat("fast", stream=True, chunks=1000),
    "text": load.chat("fast", content=load.text_content()),
    "image": load.chat("fast", content=load.image_content()),
}


def sample(result: str) -> None:
    """Sample this process from now on; at its exit, write what was found as JSON to `result`."""
    alone: collections.Counter[CodeType] = collections.Counter()
    within: collections.Counter[CodeType] = collections.Counter()
    count = 0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if frame is not None:
            alone[frame.f_code] += 1
        seen = set()
        while frame is not None:
            seen.add(frame.f_code)
            frame = frame.f_back
        within.update(seen)

    def write() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        tables = [{name_of(c): n for c, n in t.most_common(200)} for t in (alone, within)]
        Path(result).write_text(json.dumps({"count": count, "tables": tables}))

    signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL_S, _INTERVAL_S)
    atexit.register(write)


async def _load(kind: str, up: servers.Target, target: servers.Target, for_s: float) -> float:
    """Load the target; microseconds of CPU per request, or per chunk of `paced`."""
    pids = processes.tree(target.pid or 0)
    loop = asyncio.get_running_loop()
    if kind == "paced":
        request = load.chat("paced", stream=True, chunks=100_000)
        opened = await load.open_streams(target, request, 200)
        chunks, before = (await load.stats(up))["chunks"], processes.cpu_s(pids)
        await asyncio.sleep(for_s)
        done = int((await load.stats(up))["chunks"] - chunks)
        load.close_all(opened)
    else:
        until, before, done = loop.time() + for_s, processes.cpu_s(pids), 0
        while loop.time() < until:
            await load.hammer(target, _REQUESTS[kind], 100, 8)
            done += 100
    return (processes.cpu_s(pids) - before) / done * 1e6


def _print(title: str, table: dict[str, int], unit_us: float, top: int) -> None:
    print(f"\n{title}")
    for name, count in sorted(table.items(), key=lambda item: -item[1])[:top]:
        print(f"{count * unit_us:9.1f}  {name}")


def _print_calls(rows: list[Called], requests: int, top: int) -> None:
    print(f"{sum(row[1] for row in rows) / requests:.0f} calls per request")
    for name, times, callers in rows[:top]:
        told = "; ".join(f"{n / requests:.1f} {who}" for who, n in callers[:3])
        print(f"{times / requests:9.1f}  {name}  <- {told}")


def main(argv: Sequence[str] | None = None) -> int:
    """Profile what the arguments ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_request",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=[*_REQUESTS, "paced"])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--top", type=int, default=40, help="lines of each table")
    parser.add_argument("--calls", action="store_true", help="count calls, and no time")
    arguments = parser.parse_args(argv)
    if arguments.calls and arguments.kind == "paced":
        parser.error("--calls is for whole requests")
    processes.raise_open_files_limit(4096)
    if arguments.calls:
        with counting() as counted:
            rows = counted.of(_REQUESTS[arguments.kind], _COUNTED)
        _print_calls(rows, _COUNTED, arguments.top)
        return 0
    with tempfile.TemporaryDirectory(prefix="qwen-proxy-profile-") as name:
        directory = Path(name)
        result, config = directory / "result.json", directory / "gunicorn.conf.py"
        config.write_text(servers.calling("profile_request", "sample", str(result)))
        with servers.upstream() as up:
            with servers.proxy(up, workers=1, directory=directory, config=config) as target:
                unit = asyncio.run(_load(arguments.kind, up, target, arguments.seconds))
            found: Any = json.loads(result.read_text())
    samples: int = found["count"]
    print(f"{arguments.kind}: {unit:.0f} µs of CPU each, {samples} samples")
    for title, table in zip(("itself", "with what it calls"), found["tables"], strict=True):
        _print(f"µs {title}", table, unit / max(samples, 1), arguments.top)
    return 0


if __name__ == "__main__":
    sys.exit(main())
