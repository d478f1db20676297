"""What the ledger costs: a call, bringing calls into the table, and a question.

    python -m benchmarks.usage [--rows 200000] [--directory DIR]

A call: the CPU time of `Ledger.write` with a journal, less the same without one, for the record of
a usual chat completion; so the log line, which was there before, does not count. The journal is in
a temporary directory, or in one of another disk. Exits with 1 if a call pays more than the goal.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from qwen_wsgi.accounting import prices
from qwen_wsgi.accounting.books import Books, journal_in
from qwen_wsgi.accounting.ledger import Ledger
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.accounting.usage import BY, Span
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.state.database.calls import CallRow, line_of

#: Microseconds of CPU. Limits and metrics get the rest of the 25 that a call may pay for all three.
GOAL_US: Final = 15.0
_CALLS: Final = 20_000
_ROUNDS: Final = 5
_CLOCK: Final = SystemClock()


def _record(number: int) -> CallRecord:
    return CallRecord(
        request_id=f"req_{number:032x}",
        client="key…abcd",
        client_id="0123456789abcdef",
        method="POST",
        path="/v1/chat/completions",
        endpoint="/v1/chat/completions",
        started_at=_CLOCK.monotonic(),
        account="dashscope",
        model="qwen3.8-max",
        upstream_model="qwen3.8-max",
        stream=True,
        status=200,
        attempts=1,
        first_byte_at=_CLOCK.monotonic(),
        longest_gap_s=0.05,
        usage=Usage(1200, 80, 1280, cached=1024, reasoning=20),
        outcome="complete",
    )


def _per_call_us(ledger: Ledger) -> float:
    """Microseconds of CPU of a call, the least of some rounds."""
    best = float("inf")
    for _ in range(_ROUNDS):
        calls = [_record(number) for number in range(_CALLS)]
        begun = time.process_time()
        for call in calls:
            ledger.write(call)
        best = min(best, (time.process_time() - begun) / _CALLS * 1e6)
    return best


def _rows(count: int, now: float) -> list[CallRow]:
    chance = random.Random(1)
    models = ["qwen3.8-max", "qwen3.8-flash", "qwen3.7-plus", "qwen3.7-max"]
    rows = []
    for number in range(count):
        client = chance.randrange(40)
        rows.append(
            CallRow(
                at=now - chance.random() * 90 * 86_400,
                client_id=f"{client:016x}",
                client=f"person-{client}",
                account="dashscope",
                model=chance.choice(models),
                endpoint="/v1/chat/completions",
                status=200,
                outcome="complete" if chance.random() < 0.95 else "refused",
                error="",
                attempts=1,
                input_tokens=chance.randrange(50_000),
                cached_tokens=chance.randrange(20_000),
                cache_written_tokens=None,
                output_tokens=chance.randrange(2_000),
                reasoning_tokens=0,
                units=None,
                unknown_usage=0,
                queue_ms=0.0,
                connect_ms=0.0,
                first_byte_ms=300.0,
                longest_gap_ms=50.0,
                total_ms=4_000.0,
                stream=1,
                request_id=f"req_{number:032x}",
                money_micro=chance.randrange(100_000),
                saved_micro=chance.randrange(10_000),
                currency="USD",
            )
        )
    return sorted(rows, key=lambda row: row.at)  # as they end


def _took_s(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> int:
    """Print what each of them takes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    logging.getLogger("qwen_wsgi").addHandler(logging.NullHandler())
    logging.getLogger("qwen_wsgi").propagate = False
    with tempfile.TemporaryDirectory(prefix="qwen-usage-", dir=arguments.directory) as place:
        directory, now = Path(place), _CLOCK.now()
        cost = prices.load().cost
        without = _per_call_us(Ledger(_CLOCK))
        with closing(journal_in(directory / "calls", _CLOCK)) as journal:
            added = _per_call_us(Ledger(_CLOCK, journal, cost=cost)) - without
        met = added <= GOAL_US
        print(
            f"a call pays {added:.1f} µs of CPU (its log line: {without:.1f}); "
            f"goal ≤ {GOAL_US:g}: {'met' if met else 'NOT met'}"
        )
        with closing(journal_in(directory, _CLOCK)) as journal:
            for row in _rows(arguments.rows, now):
                journal.append(line_of(row))
        with closing(Books(directory, _CLOCK, days=400)) as books:
            took_s = _took_s(partial(books.report, "model", Span(0, 1)))
            each_us = took_s / arguments.rows * 1e6
            print(f"{arguments.rows} calls come into the table in {took_s:.1f} s: {each_us:.0f} µs")
            for days in (90, 1):
                asked = Span(now - days * 86_400, now)
                shown = [f"{by} {_took_s(partial(books.report, by, asked)):.2f}" for by in BY]
                print(f"a question about {days} days, s: {', '.join(shown)}")
            own = partial(books.report, "model", Span(now - 30 * 86_400, now), client_id="0" * 16)
            print(f"one client's own month: {_took_s(own):.3f} s")
        files = (directory / "database").glob("*")
        size = sum(file.stat().st_size for file in files)
        print(f"the table has {size / max(1, arguments.rows):.0f} bytes a call")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
