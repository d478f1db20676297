"""What metrics cost: for each call, for each second, and for each scrape.

    python -m benchmarks.count_metrics

Goal: at most 8 µs for a call. The best of several rounds counts, as other tenants of the machine
only ever make it slower.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qwen_wsgi.accounting import exposition
from qwen_wsgi.accounting.metrics import Metrics
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.state.counters import SharedCounters
from qwen_wsgi.upstream.failures.causes import CAUSES

GOAL_US: Final = 8.0
_CALLS: Final = 20_000
_ROUNDS: Final = 7


def main() -> int:
    """Measure and print; 1 if the goal is missed."""
    models = [f"qwen-{number}" for number in range(40)]
    clients = {f"id-{number}": f"env-{number}" for number in range(10)}
    metrics = Metrics(causes=CAUSES, models=lambda: models, monotonic=time.monotonic)
    calls = [
        _call(model, client, usage=usage)
        for model, client, usage in itertools.product(models, clients, (True, False))
    ]

    def count() -> None:
        for call in calls:
            metrics.count(call)

    call_us = _best(count, len(calls))
    with tempfile.TemporaryDirectory() as directory:
        shared = SharedCounters(Path(directory))
        write_us = _best(lambda: shared.write(metrics.rows, {}), 1)
        shared.close()
    render_us = _best(lambda: exposition.render(metrics.rows), 1)
    print(f"a call           {call_us:8.2f} µs (goal: at most {GOAL_US:g})")
    print(f"a written block  {write_us:8.0f} µs, of {len(metrics.rows)} rows, once a second")
    print(f"a rendered text  {render_us:8.0f} µs")
    return int(call_us > GOAL_US)


def _call(model: str, client: str, *, usage: bool) -> CallRecord:
    return CallRecord(
        client_id=client,
        method="POST",
        path="/v1/chat/completions",
        started_at=1.0,
        first_byte_at=1.4,
        ended_at=4.0,
        longest_gap_s=0.02,
        account="dashscope",
        model=model,
        upstream_model=model,
        status=200,
        attempts=1,
        outcome="complete",
        usage=Usage(prompt=1000, completion=200, cached=500) if usage else None,
    )


def _best(work: Callable[[], object], times: int) -> float:
    """Microseconds of one of so many."""
    repeated = max(1, _CALLS // times // 20)
    best = float("inf")
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        for _ in range(repeated):
            work()
        best = min(best, time.perf_counter() - begun)
    return best / repeated / times * 1e6


if __name__ == "__main__":
    sys.exit(main())
