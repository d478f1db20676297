"""Time as one object that constructors take, so that tests can move it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol


class Clock(Protocol):
    """Two readings of time; both in seconds."""

    def now(self) -> float:
        """Wall clock, seconds since the epoch: for dates that leave the process."""

    def monotonic(self) -> float:
        """Seconds that never step: for every duration, deadline and age."""


class SystemClock:
    """The machine's clocks: plain functions, because every chunk reads the time."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


#: Seconds since boot that never step and go on while the machine is suspended; the same clock in
#: every process. Not a function of ours: calls read it several times.
boottime: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


def sleep(seconds: float) -> None:
    """Call `time.sleep`; for default arguments, because it is looked up at each call.

    `time.sleep` itself as a default would be the unpatched one whenever its module was imported
    before gevent's patch, and would stop gevent's hub.
    """
    time.sleep(seconds)
