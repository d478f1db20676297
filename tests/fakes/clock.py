"""Clocks for tests: one that a test moves, and one in which durations pass faster."""

from __future__ import annotations

import time

#: 2026-11-20 12:00:00 UTC.
NOON_S = 1_795_176_000.0
#: How much faster durations pass for `FastClock` and `fast_sleep`.
SPEED = 20


class FakeClock:
    """Both readings move only when a test says so."""

    def __init__(self) -> None:
        self.wall_s = NOON_S
        self.steady_s = 1000.0

    def now(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.steady_s

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds


class FastClock:
    """The machine's clocks; durations pass at SPEED."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic() * SPEED


def fast_sleep(seconds: float) -> None:
    time.sleep(seconds / SPEED)
