"""Keeps the metrics of this worker and those of the others together; measures the event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from qwen_wsgi.accounting import metric_families as families
from qwen_wsgi.accounting.metrics import Key, Metrics, Rows, add_row, is_row, zero_row
from qwen_wsgi.clock import Clock
from qwen_wsgi.state.counters import SharedCounters

log = logging.getLogger(__name__)

#: How often the event loop's delay is measured. Seconds.
LAG_EVERY_S: Final = 0.5
#: Measurements between two writings of what was counted: `kill -9` loses at most a second.
_WRITE_EVERY: Final = 2
#: And between two looks for workers that have ended.
_TAKE_OVER_EVERY: Final = 4

#: What attempts to refresh a login are called among a login's counters.
_REFRESHES: Final = "refresh_total."


class Metering:
    """The metrics of this worker, and of all workers together.

    Args:
        shared: where the workers write what they have counted.
        zeros: keys of rows that are shown before anything was counted.
        gauges: how things are with this worker.
        logins: counters of the login of each account that has one, by the account's name.
    """

    def __init__(
        self,
        metrics: Metrics,
        shared: SharedCounters,
        clock: Clock,
        *,
        zeros: Callable[[], Iterable[Key]],
        gauges: Callable[[], Rows],
        logins: Callable[[], Iterable[tuple[str, Mapping[str, int]]]],
    ) -> None:
        self.metrics = metrics
        self._shared = shared
        self._clock = clock
        self._zeros = zeros
        self._gauges = gauges
        self._logins = logins
        self._since = clock.now()
        #: Of each account: the counters of its login, and what was taken of them.
        self._refreshes: dict[str, tuple[Mapping[str, int], dict[str, int]]] = {}
        self._written: tuple[int, Rows] | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to write what is counted, in this process: after the fork."""
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Write what was counted. The worker may still answer for a moment, and then tells, and
        writes, what it has counted since."""
        self._stop.set()
        self._collect()
        self._shared.write(self.metrics.rows, {})

    def totals(self) -> Rows:
        """What all workers have counted together, and the gauges of those that run.

        What is told here is written first: a later answer of another worker can never tell less.
        """
        self._collect()
        self._write()
        totals = {key: zero_row(families.BY_NAME[key[0]]) for key in self._zeros()}
        for key, row in (*self.metrics.rows.items(), *self._gauges().items()):
            add_row(totals, key, row)
        running, since = 1, self._since
        for block in self._shared.others():
            for key, row in (*block.counts.items(), *block.gauges.items()):
                if is_row(key, row):
                    add_row(totals, key, row)
            if block.since:
                running, since = running + 1, min(since, block.since)
        totals[(families.WORKERS.name,)] = [running]
        totals[(families.START_TIME.name,)] = [since]
        return totals

    # --- in its own thread -------------------------------------------------------------------

    def _run(self) -> None:
        rounds = 0
        due_s = self._clock.monotonic()
        while True:
            try:
                self.work(rounds)
            except Exception as error:  # the thread's top: the next round may go better
                log.error("metrics could not be written", exc_info=error)
            rounds += 1
            due_s = self._clock.monotonic() + LAG_EVERY_S
            if self._stop.wait(LAG_EVERY_S):
                return
            self.metrics.observe_lag(max(0.0, self._clock.monotonic() - due_s))

    def work(self, rounds: int) -> None:
        """What is to be done after so many measurements."""
        if rounds % _WRITE_EVERY:
            return
        self._collect()
        if rounds % _TAKE_OVER_EVERY == 0 and self._shared.take_over(self._take):
            self._written = None
        now = (self.metrics.changes, self._gauges())
        if now != self._written or self._shared.is_due:
            self._write()

    def _take(self, rows: Rows) -> None:
        self.metrics.add((key, row) for key, row in rows.items() if is_row(key, row))

    def _write(self) -> None:
        now = (self.metrics.changes, self._gauges())
        self._shared.write(self.metrics.rows, now[1])
        self._written = now

    def _collect(self) -> None:
        """Count the refreshes of logins since the last time."""
        for account, counters in self._logins():
            known = self._refreshes.get(account)
            if known is None or known[0] is not counters:  # another login by now
                known = self._refreshes[account] = (counters, {})
            for name, count in list(counters.items()):
                if name.startswith(_REFRESHES) and (new := count - known[1].get(name, 0)) > 0:
                    known[1][name] = count
                    outcome = name.removeprefix(_REFRESHES)
                    self.metrics.count_refreshes(account, outcome, new)
