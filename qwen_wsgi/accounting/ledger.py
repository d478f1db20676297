"""The record of calls: each one once, in the log and in the ledger, before its answer has ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from qwen_wsgi.accounting import call_log
from qwen_wsgi.accounting.prices import Cost
from qwen_wsgi.accounting.recent import Recent
from qwen_wsgi.accounting.record import HIT, CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.protocol.json_object import MOST, compact
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.state.database.calls import CallRow, line_of

log = logging.getLogger(__name__)

#: Characters of what a client or an upstream made up; each may take six bytes. With all of them a
#: line stays below `call_journal.MAX_LINE`.
_LONGEST: Final = 100
#: Kinds of things that one call made.
_MOST_UNITS: Final = 8
#: Accounts that one call may have asked.
_MOST_ACCOUNTS: Final = 8

#: Outcomes after which an account may have counted tokens that it has not told.
_USES: Final = frozenset({"complete", "client_gone", "cancelled", "cut_by_stop"})
#: What asks a model is sent; the rest looks at what is there.
_ASKING: Final = frozenset({"POST", "BACKGROUND", "WS"})


class Writer(Protocol):
    """Where lines of calls go; `state.call_journal.JournalWriter` is one."""

    def append(self, line: bytes) -> None:
        """Write a line, which has its end."""

    def flush(self) -> None:
        """Write what could not be written before; to be called every few seconds."""

    def close(self) -> None:
        """Write no more."""


class Ledger:
    """Receives every call exactly once: before the last byte of its answer, or when its client has
    gone.

    Args:
        writer: None keeps no ledger: there is the log alone.
        cost: what a call costs, by its record and its time.
        recent: gets each row while somebody watches.

    Attributes:
        calls: how many there were, without health checks and the like.
    """

    def __init__(
        self,
        clock: Clock,
        writer: Writer | None = None,
        *,
        cost: Callable[[CallRecord, float], Cost | None] = lambda call, at: None,
        recent: Recent | None = None,
    ) -> None:
        self._recent = recent
        self.calls = 0
        self._clock = clock
        self._writer = writer
        self._cost = cost

    def write(self, call: CallRecord) -> None:
        """End the record, and write it down. Harmless when repeated; a fault of ours here must not
        cost a client its answer, and is told in the log."""
        if call.is_written:
            return
        call.is_written = True
        call.end(self._clock.monotonic())
        if not call.quiet:
            self.calls += 1
            try:
                self._put(call)
            except Exception as error:
                log.error("a call is not in the ledger: %s", call.request_id, exc_info=error)
        call_log.write(call)

    def _put(self, call: CallRecord) -> None:
        """Give the row of a call to those who want it."""
        recent = self._recent
        if recent is not None and not (recent.until_s and recent.is_watched):
            recent = None
        if self._writer is None and recent is None:
            return
        at = self._clock.now()
        made = row(call, at, self._cost(call, at))
        if self._writer is not None:
            self._writer.append(line_of(made))
        if recent is not None:
            recent.add(made)

    def cost_of(self, call: CallRecord) -> Cost | None:
        """What a call has cost by the prices of now; None where a price is unknown."""
        return self._cost(call, self._clock.now())

    def flush(self) -> None:
        """Write down what could not be written before; to be called every few seconds."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Leave the journal to who reads it."""
        if self._writer is not None:
            self._writer.close()


def row(call: CallRecord, at: float, cost: Cost | None) -> CallRow:
    """The row of a call that has ended.

    Args:
        at: the time now, seconds since 1970.
    """
    units = requests = gaps = money = saved = currency = None
    if call.units:
        units = compact(dict(call.units[:_MOST_UNITS]))
    if call.requests and call.requests != {call.account: call.attempts}:
        asked = [(name[:_LONGEST], n) for name, n in call.requests.items() if n > 0]
        requests = compact(dict(asked[:_MOST_ACCOUNTS]))
    usage, begun = call.usage or _NOTHING, call.started_at
    first, ended = call.first_byte_at, call.ended_at
    if call.gaps:
        gaps = compact([_ms(begin - begun, seconds) for begin, seconds in call.gaps])
    if cost is not None:
        money, saved, currency = cost
        money, saved = min(money, MOST), max(-MOST, min(saved, MOST))
    # Counts that can be added up: upstreams send any number.
    tokens = [
        None if each is None or not 0 <= each <= MOST else each
        for each in (
            *(usage.prompt, usage.cached, usage.cache_written),
            *(usage.completion, usage.reasoning),
        )
    ]
    # As `_ms` has them.
    first_ms = None if first is None else int((first - begun) * 1e4) / 10
    total_ms = 0.0 if ended is None else int((ended - begun) * 1e4) / 10
    # Its own constructor is a function of Python.
    return tuple.__new__(
        CallRow,
        (
            at,
            call.client_id,
            call.client[:_LONGEST],
            call.account[:_LONGEST],
            (call.upstream_model or call.model)[:_LONGEST],
            call.endpoint,
            call.status,
            call.outcome,
            call.error_code[:_LONGEST],
            call.attempts,
            *tokens,
            units,
            int(usage.prompt is None and _is_unknown(call)),
            int(call.queued_s * 1e4) / 10,
            int(call.connect_s * 1e4) / 10,
            first_ms,
            int(call.longest_gap_s * 1e4) / 10,
            total_ms,
            int(call.stream),
            call.request_id,
            money,
            saved,
            currency,
            int(call.cache == HIT),
            requests,
            gaps,
        ),
    )


_NOTHING: Final = Usage()


def _is_unknown(call: CallRecord) -> bool:
    """Whether an account may have counted something for the call, and nobody knows what."""
    usage = call.usage
    if call.units or (usage is not None and (usage.prompt, usage.completion) != (None, None)):
        return False
    asked = call.attempts > 0 and bool(call.model) and call.method in _ASKING
    return asked and (call.first_byte_at is not None or call.outcome in _USES)


def _ms(*seconds: float) -> list[float]:
    """Milliseconds with one digit; `round` takes five times as long."""
    return [int(each * 1e4) / 10 for each in seconds]
