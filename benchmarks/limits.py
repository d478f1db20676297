"""What a call pays for its client's limits: booked in the file that workers share, and settled.

    python -m benchmarks.limits

Prints microseconds of CPU per call, the best of several rounds, beside a file in a directory of its
own: for a client with all limits, and for one with none.
"""

from __future__ import annotations

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

#: Of the issue, for a client with limits of requests, tokens, the day and concurrency.
GOAL_US: Final = 60.0
_CALLS: Final = 2_000
_ROUNDS: Final = 15

_LIMITED: Final = Client("limited", "limited")
_FREE: Final = Client("free", "free")
_LIMITS: Final = Limits(rpm=10**8, tpm=10**12, tokens_per_day=10**14, concurrency=100)
_USAGE: Final = Usage(prompt=300, completion=40, total=340)


def measure(directory: Path) -> dict[str, float]:
    """Microseconds of CPU per call, by what is done."""
    clock = SystemClock()
    counters = LimitCounters(directory, clock, Calendar("Europe/Berlin"))
    budgets = Budgets(lambda client: _LIMITS if client is _LIMITED else None, counters)

    def limited(*, headers: bool) -> None:
        budget = budgets.of(_LIMITED)
        assert budget is not None
        budget.expect(300, 1000)
        budget.reserve()
        budget.sent()
        if headers:
            budget.headers(anthropic=False, now=clock.now())
        budget.close(_USAGE)

    found = {
        "reserve and settle": _us(lambda: limited(headers=False)),
        "with the headers": _us(lambda: limited(headers=True)),
        "without limits": _us(lambda: budgets.of(_FREE)),
    }
    counters.close()
    return found


def _us(call: Callable[[], object]) -> float:
    rounds = timeit.repeat(call, number=_CALLS, repeat=_ROUNDS, timer=time.process_time)
    return min(rounds) / _CALLS * 1e6


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="qwen-limits-") as directory:
        found = measure(Path(directory))
    for name, us in found.items():
        print(f"{name:20} {us:6.2f} µs")
    met = found["with the headers"] < GOAL_US
    print(f"goal < {GOAL_US:g} µs {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
