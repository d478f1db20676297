"""Cooldowns and circuits of accounts, shared by all workers.

A throttle that one worker meets concerns the others, and a message to them would come too late: so
cooldowns lie in shared memory (`state.shared_memory`). A row that is lost there costs one upstream
request that is refused. Times are of CLOCK_BOOTTIME, which no clock step moves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Final

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_memory import NO_KEY, Table, map_shared

_VERSION: Final = "1"

#: Before the rows: until when any of them matters. Mostly none does, and nothing is looked up.
_RELEVANT_UNTIL: Final = Struct("=d")
#: Key, end of the cooldown, failures in a row, time of the latest one, cause.
_ROW: Final = Struct("=8sdId20s")
_ROWS: Final = 512
_SIZE: Final = _RELEVANT_UNTIL.size + _ROWS * _ROW.size

#: The first cooldown after a throttle that names none, doubled up to the longest: Model Studio's
#: limits recover within a minute ("rate limit" page).
COOLDOWN_S: Final = 1.0
LONGEST_COOLDOWN_S: Final = 60.0
#: Failures that count as a row are not further apart than this.
ROW_S: Final = 120.0
#: So many in a row open the circuit: the host gets no calls, then one at a time as a probe.
BREAKS_AT: Final = 5
#: How long an open circuit stays open; doubled with every probe that fails, up to the longest.
OPEN_S: Final = 5.0
LONGEST_OPEN_S: Final = 120.0
#: While one call probes, the others stay away for this long at most.
PROBE_S: Final = 30.0


class Cooldowns:
    """Who gets no calls for a while, and why. Shared by the greenlets of a worker, and through its
    file by all workers.

    Args:
        directory: where the file is; None keeps the cooldowns in this process.
        boottime: seconds that never step and go on while the machine is suspended.
        boot_id: changes with every boot of the machine.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        boottime: Callable[[], float] = boottime,
        boot_id: str | None = None,
    ) -> None:
        self._now = boottime
        self._memory = map_shared(
            directory, "cooldown", version=_VERSION, size=_SIZE, boot_id=boot_id
        )
        self._table = Table(self._memory, _ROW, start=_RELEVANT_UNTIL.size, rows=_ROWS, age=3)

    @property
    def is_clear(self) -> bool:
        """Whether nothing that still matters is recorded: nearly always, and cheap to ask."""
        until: float = _RELEVANT_UNTIL.unpack_from(self._memory)[0]
        return until < self._now()

    def remaining_s(self, key: bytes) -> float:
        """For how long `key` is to get no calls; 0.0 if it is not cooling down."""
        at = self._find(key)
        if at is None:
            return 0.0
        until: float = self._table.read(at)[1]
        return max(0.0, until - self._now())

    def cause(self, key: bytes) -> str:
        """Why it is cooling down, as recorded; empty if nothing is."""
        at = self._find(key)
        if at is None:
            return ""
        cause: bytes = self._table.read(at)[4]
        return cause.rstrip(b"\0").decode(errors="replace")

    def failures(self, key: bytes) -> int:
        """How many failures in a row are recorded."""
        at = self._find(key)
        return 0 if at is None else int(self._table.read(at)[2])

    def set_cooldown(self, key: bytes, seconds: float | None, cause: str) -> float:
        """Keep calls away for a while; a longer cooldown that is set already stays.

        Args:
            seconds: None doubles the cooldown with every failure in a row.

        Returns:
            For how long it is cooling down now.
        """
        at, now = self._row(key), self._now()
        until, failures = self._counted(at, now)
        if seconds is None:
            seconds = min(COOLDOWN_S * 2.0 ** min(failures - 1, 8), LONGEST_COOLDOWN_S)
        until = max(until, now + seconds)
        self._write(at, key, until, failures, now, cause)
        return until - now

    def record_failure(self, key: bytes, cause: str) -> float:
        """Count a failure of a host; for how long its circuit is open now, 0.0 if it is closed."""
        at, now = self._row(key), self._now()
        until, failures = self._counted(at, now)
        opened_s = 0.0
        if failures >= BREAKS_AT:
            opened_s = min(OPEN_S * 2.0 ** min(failures - BREAKS_AT, 8), LONGEST_OPEN_S)
            until = now + opened_s
        self._write(at, key, until, failures, now, cause)
        return opened_s

    def begin_probe(self, key: bytes) -> None:
        """A call tries a host whose circuit was open: until it ends the others stay away."""
        at = self._find(key)
        if at is not None and self.failures(key) >= BREAKS_AT:
            _, _, failures, latest, cause = self._table.read(at)
            self._write(at, key, self._now() + PROBE_S, failures, latest, cause)

    def clear(self, key: bytes) -> None:
        """Forget what is recorded: a call succeeded."""
        at = self._find(key)
        if at is not None:
            self._write(at, NO_KEY, 0.0, 0, 0.0, "")

    def _counted(self, at: int, now: float) -> tuple[float, int]:
        """The end of the cooldown, and the failures in a row with one more."""
        _, until, failures, latest, _ = self._table.read(at)
        in_a_row = now - latest < ROW_S + max(0.0, until - latest)
        return until, failures + 1 if in_a_row else 1

    def _write(
        self, at: int, key: bytes, until: float, failures: int, latest: float, cause: str | bytes
    ) -> None:
        packed = cause.encode()[:20] if isinstance(cause, str) else cause
        relevant = max(_RELEVANT_UNTIL.unpack_from(self._memory)[0], max(until, latest) + ROW_S)
        _RELEVANT_UNTIL.pack_into(self._memory, 0, relevant)
        self._table.write(at, key, until, failures, latest, packed)

    def _find(self, key: bytes) -> int | None:
        return None if self.is_clear else self._table.find(key)

    def _row(self, key: bytes) -> int:
        """The key's row; one that it takes over from another key is blank."""
        at, found = self._table.find_or_oldest(key)
        if not found:
            self._write(at, key, 0.0, 0, 0.0, "")
        return at
