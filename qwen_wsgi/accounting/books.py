"""The ledger for those who read it: journals and table, beside a server and without one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.plans import Use
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.state.call_journal import Journals, JournalWriter
from qwen_wsgi.state.database.calls import By, CallTable
from qwen_wsgi.state.database.plan_windows import KnownWindow, PlanWindowTable
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable
from qwen_wsgi.state.database.tables import database_in

log = logging.getLogger(__name__)

#: Of the journals, below the state directory.
DIRECTORY: Final = "ledger"

_DAY_S: Final = 86_400.0
#: Of one round beside calls: it shares a thread with large bodies.
_ROUND_S: Final = 0.25
#: How often the log is told that the table cannot be used.
_TELL_S: Final = 60.0


class BooksUnavailable(Exception):
    """The ledger cannot be read now. `str()` says why and what to do, for the log and commands."""


class Books:
    """The calls of all workers of a box.

    Args:
        state_dir: of the server.
        days: how long calls are kept.
    """

    def __init__(
        self,
        state_dir: Path,
        clock: Clock,
        *,
        days: int,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._clock = clock
        # A database of its own: others' work in this process does not wait for a round.
        database = database_in(state_dir, clock, sleep=sleep)
        self._table = CallTable(database, clock, kept_s=days * _DAY_S)
        self._windows = PlanWindowTable(database)
        self._journals = Journals(
            state_dir / DIRECTORY, self._table, monotonic=clock.monotonic, sleep=sleep
        )
        self._told_s = -math.inf

    def maintain(self) -> None:
        """Bring what was written lately into the table, and remove what is old; some of it, if it
        is much. What cannot be done now is told in the log, and done later."""
        until_s = self._clock.monotonic() + _ROUND_S
        try:
            self._journals.fold(work_s=_ROUND_S)
            if self._table.exists:
                while self._table.prune() and self._clock.monotonic() < until_s:
                    pass
        except (DatabaseUnavailable, OSError) as error:
            now_s = self._clock.monotonic()
            if now_s - self._told_s >= _TELL_S:
                self._told_s = now_s
                log.error("the ledger is behind; calls wait in %s: %s", DIRECTORY, error)

    def report(
        self,
        by: By,
        asked: Span,
        *,
        zone: tzinfo | None = None,
        client_id: str | None = None,
        wait_s: float = _ROUND_S,
    ) -> dict[str, Any]:
        """The calls of a time, summed up (`usage.report`).

        Args:
            client_id: only those of this client; None for all.
            wait_s: how long another process is waited for that reads the journals now.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        (found,) = self.reports(by, [asked], zone=zone, client_id=client_id, wait_s=wait_s)
        return found

    def reports(
        self,
        by: By,
        asked: Sequence[Span],
        *,
        zone: tzinfo | None = None,
        client_id: str | None = None,
        wait_s: float = _ROUND_S,
    ) -> list[dict[str, Any]]:
        """As `report`, for several times."""
        self.read_all(wait_s=wait_s)
        try:
            return [
                usage.report(self._totals(by, each, client_id), by, each, zone) for each in asked
            ]
        except DatabaseUnavailable as error:
            raise BooksUnavailable(str(error)) from error

    def read_all(self, *, wait_s: float = _ROUND_S) -> None:
        """Bring all that was written into the table, before a question.

        Args:
            wait_s: how long another process is waited for that reads the journals now.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        try:
            if self._journals.exist:
                self._journals.fold(wait_s=wait_s)
        except DatabaseUnavailable as error:
            raise BooksUnavailable(str(error)) from error
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            raise BooksUnavailable(
                f"the ledger{where} cannot be used: {error.strerror or error}. It belongs to the "
                "user who runs the server."
            ) from error

    def _totals(self, by: By, asked: Span, client_id: str | None) -> Any:
        if not self._table.exists:
            return []  # and none is made, only to look
        return self._table.totals(by, asked.since, asked.until, client_id=client_id)

    # --- for `plan_watch.PlanWatch`; raise DatabaseUnavailable or OSError -------------------------

    def fold(self) -> None:
        """Bring what was written lately into the table, some of it, if it is much."""
        if self._journals.exist:
            self._journals.fold(work_s=_ROUND_S)

    def account_uses(self, account: str, since: float, *, step_s: float) -> list[Use]:
        """What an account was asked from a time on, by steps, the oldest first."""
        if not self._table.exists:
            return []
        return [Use(*row) for row in self._table.account_uses(account, since, step_s=step_s)]

    def next_use(self, account: str, since: float) -> float | None:
        """When an account was first asked from a time on; None if it was not."""
        return self._table.next_use(account, since) if self._table.exists else None

    def known_windows(self) -> dict[tuple[str, str], KnownWindow]:
        """What is known of the windows of plans, by account and window."""
        return self._windows.all()

    def put_windows(self, known: Mapping[tuple[str, str], KnownWindow]) -> None:
        """Write down what has become known of windows of plans."""
        self._windows.put(known)

    def close(self) -> None:
        """Close the database."""
        self._table.close()


def journal_in(state_dir: Path, clock: Clock) -> JournalWriter:
    """What writes the journal of this worker."""
    return JournalWriter(state_dir / DIRECTORY, monotonic=clock.monotonic)
