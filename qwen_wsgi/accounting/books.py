"""The ledger for those who read it: journals and table, beside a server and without one."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, TypeVar

from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.plans import Use
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.state.call_journal import Journals, JournalWriter
from qwen_wsgi.state.database.calls import By, CallRow, CallTable, ErrorCount, FirstBytes, Quarter
from qwen_wsgi.state.database.plan_windows import KnownWindow, PlanWindowTable
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable
from qwen_wsgi.state.database.tables import database_in
from qwen_wsgi.state.redis.totals import OfOthers

log = logging.getLogger(__name__)

T = TypeVar("T")

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
        others: OfOthers | None = None,
    ) -> dict[str, Any]:
        """The calls of a time, summed up (`usage.report`).

        Args:
            client_id: only those of this client; None for all.
            others: what other boxes have used in this time; None where there are none.
            wait_s: how long another process is waited for that reads the journals now.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        (found,) = self.reports(
            by, [asked], zone=zone, client_id=client_id, wait_s=wait_s, others=[others]
        )
        return found

    def reports(
        self,
        by: By,
        asked: Sequence[Span],
        *,
        zone: tzinfo | None = None,
        client_id: str | None = None,
        wait_s: float = _ROUND_S,
        others: Sequence[OfOthers | None] = (),
    ) -> list[dict[str, Any]]:
        """As `report`, for several times."""
        self.read_all(wait_s=wait_s)
        try:
            return [
                self._report(by, each, zone, client_id, of_others)
                for each, of_others in zip_longest(asked, others)
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

    def errors(self, by: By, asked: Span, zone: tzinfo | None = None) -> list[ErrorCount]:
        """The calls of a time that were refused or failed, with the keys of a report's rows.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        names = self._names(by, asked)
        rows: list[ErrorCount] = self._read(partial(self._table.errors, by, *asked), [])
        found = Counter[tuple[str, str, str]]()
        for each in rows:
            key = usage.key_of(names.get(each.key, each.key), by, zone)
            found[key, each.outcome, each.error] += each.calls
        return [ErrorCount(*kind, calls) for kind, calls in found.items()]

    def first_bytes(self, by: By, asked: Span, zone: tzinfo | None = None) -> list[FirstBytes]:
        """The times to the first byte of the calls of a time, with the keys of a report's rows.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        names = self._names(by, asked)
        rows: list[FirstBytes] = self._read(partial(self._table.first_bytes, by, *asked), [])
        found: dict[str, FirstBytes] = {}
        for each in rows:
            key = usage.key_of(names.get(each.key, each.key), by, zone)
            found[key] = usage.added(found.get(key), each._replace(key=key))
        return list(found.values())

    def latest(self, limit: int) -> list[CallRow]:
        """The calls that ended last, the newest first; what is not yet in the table is read first.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        self.read_all()
        return self._read(partial(self._table.latest, limit), [])

    def find(self, request_id: str) -> list[CallRow]:
        """The calls with an id among those that ended lately, the newest first.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        self.read_all()
        return self._read(partial(self._table.find, request_id), [])

    def at(self, ended_at: float) -> list[CallRow]:
        """The calls that ended at a time.

        Raises:
            BooksUnavailable: they cannot be read now.
        """
        self.read_all()
        return self._read(partial(self._table.at, ended_at), [])

    def _names(self, by: By, asked: Span) -> dict[Any, str]:
        """The latest names of clients, by their ids; nothing for other keys."""
        if by != "client":
            return {}
        return self._read(partial(self._table.names, *asked), {})

    def _read(self, read: Callable[[], T], nothing: T) -> T:
        """What the table says; `nothing` where there is none.

        Raises:
            BooksUnavailable: it cannot be read now.
        """
        try:
            return read() if self._table.exists else nothing
        except DatabaseUnavailable as error:
            raise BooksUnavailable(str(error)) from error

    def changed(self, key: int) -> tuple[int, dict[int, list[Quarter]]]:
        """What has changed since a call, for other boxes (`CallTable.changed`).

        Raises:
            DatabaseUnavailable: it cannot be read now.
        """
        return self._table.changed(key) if self._table.exists else (key, {})

    def _report(
        self,
        by: By,
        asked: Span,
        zone: tzinfo | None,
        client_id: str | None,
        others: OfOthers | None,
    ) -> dict[str, Any]:
        totals = self._totals(by, asked, client_id)
        if others is None:
            return usage.report(totals, by, asked, zone)
        names = self._names(by, asked)
        more = usage.totals_of(others.quarters(), by, client_id=client_id, names=names)
        boxes = {"counted": 1 + others.boxes, "others_unknown": not others.known}
        return {**usage.report([*totals, *more], by, asked, zone), "boxes": boxes}

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
