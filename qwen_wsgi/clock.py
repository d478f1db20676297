"""Time, as one object that constructors take, so that tests can move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of time; both in seconds."""

    def now(self) -> float:
        """Wall clock, seconds since the epoch: for dates that leave the process."""

    def monotonic(self) -> float:
        """Seconds that never step: for every duration, deadline and age."""


class SystemClock:
    """The machine's clocks: their functions as they are, because every chunk asks for the time."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


def sleep(seconds: float) -> None:
    """`time.sleep`, for defaults: it is looked up at each call, so that gevent's patch counts. As a
    default itself it would be the one from before, if its module was imported first, and would stop
    gevent's hub."""
    time.sleep(seconds)


def boottime() -> float:
    """CLOCK_BOOTTIME in seconds: never steps, and goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
