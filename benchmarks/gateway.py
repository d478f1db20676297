"""Measure qwen-proxy against nginx in the same run, and print both beside the goals.

    python -m benchmarks                 all of it, about eight minutes
    python -m benchmarks --quick         less of everything, three minutes
    python -m benchmarks --only setup    one measurement (repeatable)

Starts everything that it needs on free ports of the loopback interface, and stops it again.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks import servers, upstream
from benchmarks.load import LoadError
from benchmarks.measures import MEASURES, QUICK, Bench, Measure, Row, Sizes, Values
from benchmarks.servers import Target
from tests.kit import processes
from tests.kit.processes import StartError

#: Values of one row: by target's name, one per round.
Rounds = dict[str, list[float]]


#: The columns of the table.
_ORDER: Final = ("direct", "nginx", "bare", "aiohttp", "qwen-proxy", "LiteLLM")

#: What every measure is for.
_ALWAYS: Final = ("nginx", "qwen-proxy")


class _Fleet:
    """The running servers; each kind is started when it is first needed."""

    def __init__(self, arguments: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self._nginx = None if arguments.no_nginx else servers.find_nginx()
        self._litellm_python: str | None = arguments.litellm_python
        self._aiohttp_python: str | None = arguments.aiohttp_python
        needed = {
            "nginx": self._nginx,
            "aiohttp": self._aiohttp_python,
            "LiteLLM": self._litellm_python,
        }
        self._there = {name for name in _ORDER if needed.get(name, name)}
        self._directory = directory
        self._stack = stack
        self._kept: dict[tuple[str, int], Target] = {}
        self.up = stack.enter_context(servers.upstream())

    def targets(self, measure: Measure, stack: ExitStack) -> list[Target]:
        """What to measure; `stack` takes the servers that are for this round alone."""
        names = [name for name in _ORDER if name in self._there & {*_ALWAYS, *measure.beside}]
        if measure.fresh:
            return [self._start(name, measure.workers, stack) for name in names]
        for name in names:
            if (name, measure.workers) not in self._kept:
                self._kept[name, measure.workers] = self._start(name, measure.workers, self._stack)
        return [self._kept[name, measure.workers] for name in names]

    def _start(self, name: str, workers: int, stack: ExitStack) -> Target:
        up, directory = self.up, self._directory
        if name == "direct":
            return up
        if name == "nginx":
            assert self._nginx is not None
            server = servers.nginx(self._nginx, [up], workers=workers, directory=directory)
        elif name == "bare":
            server = servers.bare(up, workers=workers, directory=directory)
        elif name == "aiohttp":
            assert self._aiohttp_python is not None
            server = servers.aiohttp(self._aiohttp_python, up, workers=workers, directory=directory)
        elif name == "LiteLLM":
            assert self._litellm_python is not None
            server = servers.litellm(
                self._litellm_python, up, upstream.MODELS, workers=workers, directory=directory
            )
        else:
            server = servers.proxy(up, workers=workers, directory=directory)
        return stack.enter_context(server)


async def _measure(fleet: _Fleet, bench: Bench, measure: Measure, rounds: int) -> dict[str, Rounds]:
    """All rounds of one measurement; the targets take turns, so that all see the same noise."""
    found: dict[str, Rounds] = {row.key: {} for row in measure.rows}
    for number in range(min(rounds, measure.rounds)):
        with ExitStack() as stack:
            for target in fleet.targets(measure, stack):
                _progress(f"{measure.name}, round {number + 1}, {target.name}")
                values: Values = await measure.run(bench, target)
                for key, value in values.items():
                    found[key].setdefault(target.name, []).append(value)
    return found


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


# The table


def _verdict(row: Row, median: dict[str, float]) -> tuple[str, bool | None]:
    """The goals in words, and whether they are met; None where that cannot be told."""
    own = median.get("qwen-proxy")
    if own is None:
        return "", None
    told, met = _first_goal(row, median, own)
    if row.aiohttp is not None and (other := median.get("aiohttp")) is not None:
        told += f", ≤ {row.aiohttp:g} × aiohttp"
        if own > row.aiohttp * other:
            met = False
    return told, met


def _first_goal(row: Row, median: dict[str, float], own: float) -> tuple[str, bool | None]:
    floor, other = median.get("nginx"), median.get("LiteLLM")
    if row.part is not None and other is not None:
        return f"≤ 1/{row.part:g} of LiteLLM", own <= other / row.part
    goals: list[tuple[str, float | None]] = []
    if row.limit is not None:
        goals.append((f"{row.limit:g} {row.unit}", row.limit))
    if row.ratio is not None:
        goals.append((f"{row.ratio:g} × nginx", None if floor is None else row.ratio * floor))
    if row.bare is not None and (bare := median.get("bare")) is not None:
        goals.append((f"{row.bare:g} × bare", row.bare * bare))
    known = [limit for _, limit in goals if limit is not None]
    met = own <= max(known) if known else None
    return "≤ " + " or ".join(words for words, _ in goals) if goals else "", met


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == float("inf"):
        return "never"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row], found: dict[str, Rounds], names: Sequence[str]) -> str:
    """The results as Markdown."""
    head = ["", *names, "qwen-proxy ÷ nginx", "goal", ""]
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(names) + 1) + "|---|---|"]
    for row in rows:
        median = {name: statistics.median(values) for name, values in found[row.key].items()}
        own, floor = median.get("qwen-proxy"), median.get("nginx")
        ratio = f"{own / floor:.3g}" if own and floor and floor > 0 and row.ratio else "–"
        goal, met = _verdict(row, median)
        cells = [f"{row.title}, {row.unit}", *(_number(median.get(name)) for name in names), ratio]
        cells += [goal, "" if met is None else "met" if met else "**not met**"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _machine() -> str:
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("flask", "gunicorn", "gevent", "requests", "urllib3")
    )
    nginx = "no nginx"
    if program := servers.find_nginx():
        told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
        nginx = "nginx " + told.strip().rpartition("/")[2]
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores ({cpu}), loopback, no TLS, "
        f"Linux {platform.release()}, Python {platform.python_version()}, {versions}, {nginx}"
    )


# The command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [measure.name for measure in MEASURES]
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", action="append", choices=names, help="repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts")
    parser.add_argument("--json", metavar="FILE", type=Path, help="every round, for programs")
    parser.add_argument("--no-nginx", action="store_true", help="absolute numbers only")
    parser.add_argument(
        "--aiohttp-python",
        metavar="PATH",
        help="interpreter of an environment with aiohttp and uvloop: measures a bare proxy of them",
    )
    parser.add_argument(
        "--litellm-python",
        metavar="PATH",
        help="interpreter of an environment with litellm[proxy]: measures it, too",
    )
    return parser


async def _run(arguments: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    chosen = [m for m in MEASURES if not arguments.only or m.name in arguments.only]
    rows = [row for measure in chosen for row in measure.rows]
    found: dict[str, Rounds] = {row.key: {} for row in rows}
    with (
        tempfile.TemporaryDirectory(prefix="qwen-proxy-bench-") as directory,
        ExitStack() as stack,
    ):
        fleet = _Fleet(arguments, Path(directory), stack)
        bench = Bench(fleet.up, QUICK if arguments.quick else Sizes())
        for measure in chosen:
            found |= await _measure(fleet, bench, measure, arguments.rounds)
    _progress("")
    machine = _machine()
    measured = {name for rounds in found.values() for name in rounds}
    names = [name for name in _ORDER if name in measured]
    if "nginx" not in names:
        print("nginx was not found or not wanted: absolute numbers only.\n", file=sys.stderr)
    print(f"{machine}\n\n{table(rows, found, names)}")
    if arguments.json is not None:
        report = {"machine": machine, "quick": arguments.quick, "rows": found}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; the value is the exit status."""
    arguments = _parser().parse_args(argv)
    processes.raise_open_files_limit(16_384)
    try:
        return asyncio.run(_run(arguments))
    except (StartError, LoadError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


if __name__ == "__main__":
    sys.exit(main())
