"""How calls per second and their delay grow with workers, and what idle streams cost.

    python -m benchmarks.scale                 2, 4 and 8 workers; two boxes; 10 000 idle streams
    python -m benchmarks.scale --only idle --streams 10000

The load, the upstream and nginx share the machine with what is measured, so that only as many
workers as there are cores left can add anything. The last column says what a call takes of a core,
which is what decides on a larger machine: cores divided by it are calls per second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import load, measures, servers
from benchmarks.load import LoadError
from benchmarks.measures import STREAM_KB
from benchmarks.servers import Target
from tests.kit import processes
from tests.kit.processes import StartError

#: Calls at a time, for each number of workers the same.
_AT_A_TIME: Final = 64

#: Descriptors of one worker: a stream has two, one to each side.
_FILES: Final = 65_536

#: The workers of a box.
_BOX_WORKERS: Final = 2

#: A stream takes a port to the proxy and one from there to the upstream. An address has 28 000 for
#: each server that it connects to; some are left for connections that have just ended.
_MOST_STREAMS: Final = 12_000


@dataclass(frozen=True)
class Measured:
    """One row of the table.

    Attributes:
        per_s: calls per second.
        p50_ms, p99_ms: from a call's first byte to its answer's last.
        cpu_us: of all processes of the servers, per call.
    """

    name: str
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


async def _calls(target: Target, pids: Sequence[int], *, name: str, for_s: float) -> Measured:
    """Keep calls going for a while, and time each of them."""
    request = load.chat("fast")
    await load.hammer(target, request, 20 * _AT_A_TIME, _AT_A_TIME)
    times: list[float] = []
    cpu, began = processes.cpu_s(pids), time.monotonic()

    async def work() -> None:
        connection = await load.connect(target)
        while time.monotonic() - began < for_s:
            sent = time.monotonic()
            await asyncio.wait_for(connection.send(request), 60)
            times.append((time.monotonic() - sent) * 1e3)
        connection.close()

    await asyncio.gather(*(work() for _ in range(_AT_A_TIME)))
    took = time.monotonic() - began
    used = processes.cpu_s(pids) - cpu
    cuts = statistics.quantiles(times, n=100)
    return Measured(name, len(times) / took, cuts[49], cuts[98], used / len(times) * 1e6)


async def _grow(workers: Sequence[int], directory: Path, for_s: float) -> list[Measured]:
    rows = []
    with ExitStack() as stack:
        up = stack.enter_context(servers.upstream())
        for count in workers:
            with servers.proxy(up, workers=count, directory=directory) as target:
                pids = processes.tree(target.pid or 0)
                name = f"{count} workers"
                rows.append(await _calls(target, pids, name=name, for_s=for_s))
        if (program := servers.find_nginx()) is not None:
            boxes = [
                stack.enter_context(servers.proxy(up, workers=_BOX_WORKERS, directory=directory))
                for _ in range(2)
            ]
            front = stack.enter_context(
                servers.nginx(program, boxes, workers=1, directory=directory)
            )
            pids = [pid for box in boxes for pid in processes.tree(box.pid or 0)]
            name = f"two boxes of {_BOX_WORKERS} workers, behind nginx (its CPU is not counted)"
            rows.append(await _calls(front, pids, name=name, for_s=for_s))
    return rows


async def _idle(streams: int, directory: Path) -> float:
    """The memory of a stream that waits, in kB."""
    with ExitStack() as stack:
        up = stack.enter_context(servers.upstream())
        most = {"QWEN_PROXY_MAX_IN_FLIGHT": str(streams + 200)}
        target = stack.enter_context(
            servers.proxy(up, workers=_BOX_WORKERS, directory=directory, settings=most)
        )
        request = load.chat("idle", stream=True, chunks=100_000)
        return await measures.memory_of_a_stream(target, request, streams)


def _print(rows: Sequence[Measured]) -> None:
    print("| | calls per second | p50, ms | p99, ms | CPU per call, µs |\n|---|--:|--:|--:|--:|")
    for row in rows:
        cells = f"{row.per_s:.0f} | {row.p50_ms:.1f} | {row.p99_ms:.1f} | {row.cpu_us:.0f}"
        print(f"| {row.name} | {cells} |")
    cores, us = os.cpu_count() or 1, statistics.median(row.cpu_us for row in rows)
    print(
        f"\nThis machine has {cores} cores, which the load and the upstream share. A core has room "
        f"for {1e6 / us:.0f} calls per second: n cores that are the proxy's own have room for n "
        "times as many with n workers. More workers than cores only make p99 longer."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=["workers", "idle"])
    parser.add_argument("--workers", type=int, action="append", help="repeatable")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    parser.add_argument("--streams", type=int, default=10_000, help="that are idle")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print; the value is the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.streams > _MOST_STREAMS:
        print(f"no more than {_MOST_STREAMS} streams", file=sys.stderr)
        return 2
    processes.raise_open_files_limit(_FILES)
    try:
        with tempfile.TemporaryDirectory(prefix="qwen-proxy-scale-") as made:
            directory = Path(made)
            if arguments.only != "idle":
                counts = arguments.workers or [2, 4, 8]
                _print(asyncio.run(_grow(counts, directory, arguments.seconds)))
            if arguments.only != "workers":
                found = asyncio.run(_idle(arguments.streams, directory))
                met = "met" if found <= STREAM_KB else "not met"
                print(
                    f"\n{arguments.streams} idle streams on {_BOX_WORKERS} workers: {found:.1f} kB "
                    f"each (goal ≤ {STREAM_KB:g}: {met})"
                )
    except (StartError, LoadError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
