"""What a call costs more than in another checkout of this project, in the same run.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.compare /tmp/before [--rounds 30] [--requests 300]

Starts the server of both checkouts with the key of the environment, and this one's a second time
with a key of the database that has all limits. They take turns in short rounds, so that all see the
same noise; what is printed are medians of the CPU of the process tree per call, and the median of
the differences within a round, with its quartiles. Both need this environment's packages alone.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import load, servers
from benchmarks.servers import CLIENT_KEY, Target
from tests.kit import processes

_SETTLE_S: Final = 0.1
_CONCURRENCY: Final = 16


async def _cpu_us(target: Target, request: bytes, count: int) -> float:
    pids = processes.tree(target.pid or 0)
    before = processes.cpu_s(pids)
    await load.hammer(target, request, count, _CONCURRENCY)
    await asyncio.sleep(_SETTLE_S)
    return (processes.cpu_s(pids) - before) / count * 1e6


async def _rounds(
    asked: dict[str, tuple[Target, bytes]], *, rounds: int, requests: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in asked}
    for target, request in asked.values():
        await load.hammer(target, request, 4 * requests, _CONCURRENCY)
    for number in range(rounds):
        # In turns from both ends: what a round's order does to the cache is the same for all.
        names = list(asked) if number % 2 else list(asked)[::-1]
        for name in names:
            found[name].append(await _cpu_us(*asked[name], requests))
    return found


def _print(kind: str, found: dict[str, list[float]]) -> None:
    first, *others = found
    print(f"{kind}: {first} {statistics.median(found[first]):.0f} µs of CPU")
    for name in others:
        more = [now - then for now, then in zip(found[name], found[first], strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        print(
            f"{kind}: {name} {statistics.median(found[name]):.0f} µs, "
            f"more than {first} by {middle:.0f} (quartiles {low:.0f} and {high:.0f})"
        )


def main() -> int:
    """Measure both, and print the differences."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=300, help="of a round")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        up = stack.enter_context(servers.upstream())
        started = {"workers": arguments.workers, "directory": directory}
        before = stack.enter_context(servers.proxy(up, root=arguments.before, **started))
        now = stack.enter_context(servers.proxy(up, **started))
        limited, key = stack.enter_context(servers.limited(up, **started))
        for kind, stream in (("request", False), ("stream of one chunk", True)):
            request = load.chat("fast", stream=stream)
            asked = {
                "before": (before, request),
                "now": (now, request),
                "with limits": (limited, request.replace(CLIENT_KEY.encode(), key.encode())),
            }
            for_all = {"rounds": arguments.rounds, "requests": arguments.requests}
            _print(kind, asyncio.run(_rounds(asked, **for_all)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
