"""Cooldowns and circuits of accounts, shared by all workers.

A throttle that one worker meets concerns the others, and a message to them would come too late: so
cooldowns lie in a shared file (`state.shared_files`). A row that is lost there costs one upstream
request that is refused. Times are of CLOCK_BOOTTIME, which no clock step moves.

An incident is one step, however many calls it meets: the failure of an attempt that began before
the end of the pause tells nothing new, and changes nothing (docs/decisions/032).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_files import SharedFiles, Table

_VERSION: Final = "2"

#: A row, as `_Row` says.
_ROW: Final = Struct("=8sdddI20s32s")
_ROWS: Final = 512

#: Failures that count as a row are not further apart than this.
ROW_S: Final = 120.0
#: While one call probes, the others stay away for this long at most. Then one more may try: the
#: first answer of a slow model must not keep everybody waiting.
PROBE_S: Final = 5.0


class Steps(NamedTuple):
    """How failures in a row become pauses.

    Attributes:
        after: so many failures make the first pause.
        first_s: its length, doubled with each further failure up to `longest_s`.
    """

    after: int
    first_s: float
    longest_s: float

    def pause_s(self, failures: int) -> float:
        """The pause after so many failures; 0.0 for none."""
        if failures < self.after:
            return 0.0
        return min(self.first_s * 2.0 ** min(failures - self.after, 8), self.longest_s)


#: After a throttle that names no time: Model Studio's limits recover within a minute ("rate limit"
#: page).
THROTTLED: Final = Steps(1, 1.0, 60.0)
#: After a refused credential or an unpaid bill: a host that errs for a moment says so, too.
REFUSED: Final = Steps(1, 5.0, 60.0)
#: After refusals that may be the fault of the single requests.
DOUBTED: Final = Steps(2, 5.0, 60.0)
#: So many failures of a host in a row open its circuit: it gets no calls, then one as a probe.
BREAKS_AT: Final = 5
BROKEN: Final = Steps(BREAKS_AT, 1.0, 120.0)

#: Evidence of a doubtful failure (see `record_failure`): two halves of so many bytes; and of how
#: many failures it is kept, one less than a host's circuit needs.
_HALF: Final = 4
_WITNESSES: Final = BREAKS_AT - 1
#: A pause that is longer than another one by less than this is not longer.
_SAME_S: Final = 0.01
#: No pause that another box tells of is longer: a month's limit, and a week. Seconds.
_LONGEST_S: Final = 38 * 86_400.0


class _Row(NamedTuple):
    """A row: what is recorded of one key. Times are boot times; 0.0 is never.

    Attributes:
        since: when the latest failure that counts came.
        until: the end of the pause.
        probe: until when the others leave it to one call to find out whether it works again.
        failures: in a row.
        evidence: of the doubtful failures among them, each 8 bytes, the latest last.
    """

    key: bytes
    since: float = 0.0
    until: float = 0.0
    probe: float = 0.0
    failures: int = 0
    cause: bytes = b""
    evidence: bytes = b""

    @property
    def end(self) -> float:
        """Until when it gets no calls."""
        return max(self.until, self.probe)

    def is_current(self, now: float) -> bool:
        """Whether another failure now would be one of the same row."""
        return now - self.since < ROW_S + max(0.0, self.until - self.since)

    def witnesses(self) -> list[bytes]:
        """The evidence, one by one."""
        size = 2 * _HALF
        each = (self.evidence[at : at + size] for at in range(0, len(self.evidence), size))
        return [one for one in each if one != bytes(size)]


class Told(NamedTuple):
    """What one box tells the others of a key.

    Attributes:
        age_s: seconds since the latest failure; of what was cleared, since the call began that
            succeeded.
        pause_s: from the latest failure to the end of the pause; 0.0 without one.
        failures: in a row; 0: it was cleared.
    """

    age_s: float
    pause_s: float
    failures: int = 0
    cause: bytes = b""
    evidence: bytes = b""


class Cooldowns:
    """Who gets no calls for a while, and why. Shared by the greenlets of a worker, and through its
    file by all workers.

    Args:
        files: where it is; None keeps the cooldowns in this process.
        boottime: seconds that never step and go on while the machine is suspended.

    Attributes:
        now: the clock of all times here, `began` included.
        changed: the keys of which other boxes are to be told, each with when it was cleared; None
            where there are no others.
    """

    def __init__(
        self, files: SharedFiles | None, *, boottime: Callable[[], float] = boottime
    ) -> None:
        self.now = boottime
        self.changed: dict[bytes, float] | None = None
        self._table = Table(files, "cooldown", _ROW, version=_VERSION, rows=_ROWS, age=1, numbers=2)
        # Until when any of the rows matters (mostly none does, and nothing is looked up), and when
        # a pause was ended early, the last time.
        self._relevant_until, self._news = self._table.numbers

    @property
    def is_clear(self) -> bool:
        """Whether nothing that still matters is recorded: nearly always, and cheap to ask."""
        return self._relevant_until.get() < self.now()

    def is_clear_at(self, now: float) -> bool:
        """As `is_clear`, for a caller that has the time at hand."""
        return self._relevant_until.get() < now

    @property
    def news(self) -> float:
        """Changes when any worker has ended a pause or a probe before its time."""
        return self._news.get()

    # --- what is recorded --------------------------------------------------------------------

    def remaining_s(self, key: bytes) -> float:
        """For how long `key` is to get no calls; 0.0 if it is not cooling down."""
        row = self._find(key)
        return 0.0 if row is None else max(0.0, row.end - self.now())

    def is_probed(self, key: bytes) -> bool:
        """Whether its pause is over, and one call finds out whether it works again."""
        row = self._find(key)
        return row is not None and row.until <= self.now() < row.probe

    def cause(self, key: bytes) -> str:
        """Why it is cooling down, as recorded; empty if nothing is."""
        row = self._find(key)
        return "" if row is None else row.cause.rstrip(b"\0").decode(errors="replace")

    def failures(self, key: bytes) -> int:
        """How many failures in a row are recorded."""
        row = self._find(key)
        return 0 if row is None else row.failures

    # --- failures ----------------------------------------------------------------------------

    def set_cooldown(
        self,
        key: bytes,
        seconds: float | None,
        cause: str,
        *,
        began: float | None = None,
        steps: Steps = THROTTLED,
    ) -> float:
        """Keep calls away for a while.

        Args:
            seconds: None takes `steps`. During a pause only a time that is longer than the whole
                of it counts: then the upstream has told something new.
            began: when the attempt began that failed, by `now`; None is now.

        Returns:
            For how long from now, if this has set it; 0.0 if it changed nothing.
        """
        now, row = self.now(), self._row(key)
        if (now if began is None else began) < row.until:
            if seconds is None or not _is_news(seconds, row, now):
                return 0.0
            failures = row.failures
        else:
            failures = row.failures + 1 if row.is_current(now) else 1
        pause_s = steps.pause_s(failures) if seconds is None else seconds
        self._write(row, _Row(key, now, now + pause_s, 0.0, failures, _packed(cause)))
        self._change(key)
        return pause_s

    def record_failure(
        self,
        key: bytes,
        cause: str,
        *,
        began: float | None = None,
        evidence: bytes | None = None,
        steps: Steps = BROKEN,
    ) -> float:
        """Count a failure, which makes a pause only together with others before it.

        Args:
            began: as for `set_cooldown`.
            evidence: of a failure that may be the fault of its request: 4 bytes that name the
                conversation and 4 that name the request. It counts only if both are new among the
                failures of this row. None counts always.

        Returns:
            As `set_cooldown`.
        """
        now, row = self.now(), self._row(key)
        if (now if began is None else began) < row.until:
            return 0.0
        current = row.is_current(now)
        told = row.witnesses() if current else []
        if evidence is not None and _is_told(told, evidence):
            self.end_probe(key)
            return 0.0
        failures = row.failures + 1 if current else 1
        pause_s = steps.pause_s(failures)
        until = row.until
        if pause_s:
            # From here on it is enough if another one than this fails.
            told, until = [], now + pause_s
        if evidence is not None:
            told.append(evidence)
        packed = b"".join(told[-_WITNESSES:])
        self._write(row, _Row(key, now, until, 0.0, failures, _packed(cause), packed))
        self._change(key)
        return pause_s

    # --- probes and successes ----------------------------------------------------------------

    def begin_probe(self, key: bytes) -> bool:
        """Leave it to the calling call to try a host whose circuit was open.

        Returns:
            Whether it is the one that probes: then it must call `end_probe`, however it ends.
        """
        row = self._find(key)
        now = self.now()
        if row is None or row.failures < BREAKS_AT or row.probe > now or not row.is_current(now):
            return False
        self._write(row, row._replace(probe=now + PROBE_S))
        return True

    def end_probe(self, key: bytes) -> None:
        """The probing call has ended; harmless when it told how, or none was made."""
        row = self._find(key)
        if row is not None and row.probe:
            self._write(row, row._replace(probe=0.0))

    def clear(self, key: bytes, *, began: float | None = None) -> None:
        """Forget what is recorded: a call succeeded.

        Args:
            began: when it began, by `now`; before the latest failure says nothing of it. None
                counts in any case.
        """
        row = self._find(key)
        if row is not None and (began is None or began >= row.since):
            self._write(row, None)
            self._change(key, self.now() if began is None else began)

    # --- other boxes -------------------------------------------------------------------------

    def told(self, key: bytes, cleared_at: float) -> Told:
        """What other boxes are to know of a key that has changed."""
        now, row = self.now(), self._row(key)
        if not row.failures:
            return Told(now - cleared_at, 0.0)
        pause_s = max(0.0, row.until - row.since)
        return Told(now - row.since, pause_s, row.failures, row.cause, row.evidence)

    def adopt(self, key: bytes, told: Told) -> None:
        """Know what another box has told, unless something newer is known. Who probes is a matter
        of each box."""
        now, row = self.now(), self._row(key)
        since = now - told.age_s
        if not told.failures:
            if row.failures and row.since <= since:
                self._write(row, None)
        elif since > row.since + _SAME_S and told.pause_s < _LONGEST_S:
            until = since + told.pause_s if told.pause_s > 0 else 0.0
            row_now = _Row(key, since, until, 0.0, told.failures, told.cause, told.evidence)
            self._write(row, row_now)

    def _change(self, key: bytes, cleared_at: float = 0.0) -> None:
        if self.changed is not None:
            self.changed[key] = cleared_at
            if len(self.changed) > _ROWS:
                del self.changed[next(iter(self.changed))]

    # --- rows --------------------------------------------------------------------------------

    def _write(self, before: _Row, after: _Row | None) -> None:
        """Replace a row, or remove it; whoever waits for its end learns that it is over, or now
        another one."""
        now = self.now()
        if after is None:
            self._table.remove(before.key)
        else:
            relevant_until = max(after.end, after.since) + ROW_S
            if relevant_until > self._relevant_until.get():
                self._relevant_until.set(relevant_until)
            self._table.put(*after)
        if before.end > now and (after is None or after.end < before.end):
            self._news.set(now)

    def _find(self, key: bytes) -> _Row | None:
        row = None if self.is_clear else self._table.get(key)
        return None if row is None else _Row(*row)

    def _row(self, key: bytes) -> _Row:
        """What is recorded of the key, or a blank row."""
        row = self._table.get(key)
        return _Row(key) if row is None else _Row(*row)


def _packed(cause: str) -> bytes:
    return cause.encode()[:20]


def _is_news(seconds: float, row: _Row, now: float) -> bool:
    """Whether a time that is named during a pause is longer than the whole of it."""
    return seconds > row.until - row.since + _SAME_S and now + seconds > row.until


def _is_told(told: list[bytes], evidence: bytes) -> bool:
    """Whether a conversation, or a request, is among those that failed already."""
    return any(one[:_HALF] == evidence[:_HALF] or one[_HALF:] == evidence[_HALF:] for one in told)
