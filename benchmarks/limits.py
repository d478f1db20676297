"""What a call pays for its client's limits: booked in the file that workers share, and settled.

    python -m benchmarks.limits [--instructions]

Prints microseconds of CPU per call, the best of several rounds, beside a file in a directory of its
own: for a client with all limits, and for one with none. With `--instructions`, how many a call
takes in user space, counted by valgrind (Debian's `valgrind`): other work on the machine does not
move that.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qwen_wsgi.access.budget import Budgets
from qwen_wsgi.access.guard import Client
from qwen_wsgi.access.limits import Calendar, Limits
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.state.limits.counters import LimitCounters

#: Microseconds, for a client with limits of requests, tokens, the day and concurrency.
GOAL_US: Final = 60.0
_CALLS: Final = 2_000
_ROUNDS: Final = 15

_LIMITED: Final = Client("limited", "limited")
_FREE: Final = Client("free", "free")
_LIMITS: Final = Limits(rpm=10**8, tpm=10**12, tokens_per_day=10**14, concurrency=100)
_USAGE: Final = Usage(prompt=300, completion=40, total=340)


class _Calls:
    """Calls of clients with limits and without, beside a file in a directory."""

    def __init__(self, directory: Path) -> None:
        self._clock = SystemClock()
        self.counters = LimitCounters(directory, self._clock, Calendar("Europe/Berlin"))
        self._budgets = Budgets(
            lambda client: _LIMITS if client is _LIMITED else None, self.counters
        )

    def limited(self, *, headers: bool) -> None:
        budget = self._budgets.of(_LIMITED)
        assert budget is not None
        budget.expect(300, 1000)
        budget.reserve()
        budget.sent()
        if headers:
            budget.headers(anthropic=False, now=self._clock.now())
        budget.close(_USAGE)

    def free(self) -> None:
        self._budgets.of(_FREE)


def measure(directory: Path) -> dict[str, float]:
    """Microseconds of CPU per call, by what is done."""
    calls = _Calls(directory)
    found = {
        "reserve and settle": _us(lambda: calls.limited(headers=False)),
        "with the headers": _us(lambda: calls.limited(headers=True)),
        "without limits": _us(calls.free),
    }
    calls.counters.close()
    return found


def _instructions(*, headers: bool) -> float:
    """Those of a call: what a thousand of them take more than none."""
    few, many = (_counted(count, headers=headers) for count in (200, 1200))
    return (many - few) / 1000


def _counted(count: int, *, headers: bool) -> int:
    program = [sys.executable, "-m", "benchmarks.limits", "--calls", str(count)]
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *program]
        + ["--headers"] * headers,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


def _us(call: Callable[[], object]) -> float:
    rounds = timeit.repeat(call, number=_CALLS, repeat=_ROUNDS, timer=time.process_time)
    return min(rounds) / _CALLS * 1e6


def main() -> int:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--calls", type=int, help="only make so many calls, and print nothing")
    parser.add_argument("--headers", action="store_true", help="… with the headers")
    arguments = parser.parse_args()
    if arguments.instructions:
        for name, headers in (("reserve and settle", False), ("with the headers", True)):
            print(f"{name:20} {_instructions(headers=headers):9,.0f} instructions")
        return 0
    with tempfile.TemporaryDirectory(prefix="qwen-limits-") as directory:
        if arguments.calls is not None:
            calls = _Calls(Path(directory))
            for _ in range(arguments.calls):
                calls.limited(headers=arguments.headers)
            return 0
        found = measure(Path(directory))
    for name, us in found.items():
        print(f"{name:20} {us:6.2f} µs")
    met = found["with the headers"] < GOAL_US
    print(f"goal < {GOAL_US:g} µs {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
