"""The ledger: one row for each call that has ended. No prompts and no answers are in it.

Rows come from the journals of the workers (`state.call_journal`), in one transaction with how far a
journal is read, so that each call is here once, whoever is killed when.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

from qwen_wsgi.clock import Clock
from qwen_wsgi.protocol.json_object import Summable, plain_bytes, reader
from qwen_wsgi.state.database.migrations import Tables
from qwen_wsgi.state.database.sqlite import Database

log = logging.getLogger(__name__)

By = Literal["client", "model", "account", "endpoint", "day", "hour"]

#: Days and hours are put together of these, in any time zone of the world. Seconds.
QUARTER_S: Final = 900

#: Of all clients together; 2.4 GB. Whoever has no key can have calls refused, and recorded.
MAX_ROWS: Final = 10_000_000
#: Rows that are removed with one transaction; and where there are too many of them.
_AT_A_TIME: Final = 500
_MANY: Final = 20_000
#: Hours that are summed up with one transaction, for other boxes.
_HOURS_AT_A_TIME: Final = 24
_DAY_S: Final = 86_400.0

#: Among how many calls one is looked for by its id, which has no index: each call would pay for it.
_LATELY: Final = 5000
_MOST_OF_ID: Final = 10

#: The year 5138, which can still be written as a date.
_LATEST_S: Final = 1e11

_DAMAGE: Final = (
    "The ledger is lost: `qwen-proxy usage` knows only the calls from now on, and those of the "
    "last seconds."
)

_FIRST: Final = (
    """
    CREATE TABLE calls (
        key INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        client_id TEXT NOT NULL,
        client TEXT NOT NULL,
        account TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        status INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        error TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        input_tokens INTEGER,
        cached_tokens INTEGER,
        cache_written_tokens INTEGER,
        output_tokens INTEGER,
        reasoning_tokens INTEGER,
        units TEXT,
        unknown_usage INTEGER NOT NULL,
        queue_ms REAL NOT NULL,
        connect_ms REAL NOT NULL,
        first_byte_ms REAL,
        longest_gap_ms REAL NOT NULL,
        total_ms REAL NOT NULL,
        stream INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        money_micro INTEGER,
        saved_micro INTEGER,
        currency TEXT
    )
    """,
    """CREATE INDEX calls_by_time ON calls (at)""",
    """CREATE INDEX calls_by_client ON calls (client_id, at)""",
    """CREATE TABLE call_journals (name TEXT PRIMARY KEY, read INTEGER NOT NULL)""",
)

#: Of the response cache.
_SECOND: Final = ("ALTER TABLE calls ADD COLUMN cache_hits INTEGER NOT NULL DEFAULT 0",)

#: What accounts were asked, by the minute: the windows of plans are sums of it, which must not
#: depend on how many calls there are. Kept for longer than the longest window.
_THIRD: Final = (
    "ALTER TABLE calls ADD COLUMN requests TEXT",
    """
    CREATE TABLE account_minutes (
        account TEXT NOT NULL,
        minute INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (account, minute)
    ) WITHOUT ROWID
    """,
    # Of the calls of before it is not known which of their requests went to another account.
    """
    INSERT INTO account_minutes
        SELECT account, CAST(at / 60 AS INTEGER), sum(attempts),
            sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0))
        FROM calls
        WHERE at >= (SELECT max(at) FROM calls) - 3456000 AND account != '' AND attempts > 0
        GROUP BY 1, 2
    """,
)

#: The longest silences within answers.
_FOURTH: Final = ("ALTER TABLE calls ADD COLUMN gaps TEXT",)

TABLES: Final = Tables("calls", (_FIRST, _SECOND, _THIRD, _FOURTH), _DAMAGE)

_MINUTE_S: Final = 60.0
#: How long the minutes of accounts are kept, and how often old ones are looked for. Seconds.
_MINUTES_KEPT_S: Final = 40 * _DAY_S
_LOOK_FOR_OLD_S: Final = 3600.0


class CallRow(NamedTuple):
    """One call. Times are milliseconds, but for `at`.

    Attributes:
        at: when it ended, seconds since 1970.
        client_id, client: `access.guard.Client`; "" and `-` of a caller that was refused.
        model: as the account calls it, else as the client does.
        endpoint: the path of the route: `/v1/responses/{id}`.
        outcome: `complete`, `refused`, `upstream_error`, `client_gone`, `cancelled`, `cut_by_stop`,
            `failed`.
        error: its code, or "".
        input_tokens: those that were cached among them; None is unknown, as of all tokens.
        units: what was made or read besides tokens, as JSON: `{"pictures": 2}`.
        unknown_usage: 1: the account may have counted something, and nobody knows what.
        money_micro: millionths of the currency; None where the price is not known.
        saved_micro: what the cache has saved of it.
        cache_hits: 1: the response cache has answered, and no account was asked.
        requests: how many requests each account got, as JSON: `{"coding-plan": 1, "dashscope": 1}`;
            None where those are the `attempts`, all at `account`.
        gaps: the longest silences of the upstream within its answer, as JSON: when each began after
            the call, and how long it was: `[[1200.0, 850.0]]`; None: none was long.
    """

    at: float
    client_id: str
    client: str
    account: str
    model: str
    endpoint: str
    status: Summable
    outcome: str
    error: str
    attempts: Summable
    input_tokens: Summable | None
    cached_tokens: Summable | None
    cache_written_tokens: Summable | None
    output_tokens: Summable | None
    reasoning_tokens: Summable | None
    units: str | None
    unknown_usage: Summable
    queue_ms: float
    connect_ms: float
    first_byte_ms: float | None
    longest_gap_ms: float
    total_ms: float
    stream: Summable
    request_id: str
    money_micro: Summable | None
    saved_micro: Summable | None
    currency: str | None
    #: Lines of an older version end before this.
    cache_hits: Summable = 0
    requests: str | None = None
    gaps: str | None = None


#: Of the lines: a line of another version is not read.
_VERSION: Final = 1
_read: Final = reader(tuple[int, CallRow])
_read_requests: Final = reader(dict[str, Summable])
_INSERT: Final = (
    f"INSERT INTO calls ({', '.join(CallRow._fields)})"
    f" VALUES ({', '.join('?' * len(CallRow._fields))})"
)
_ADD_MINUTE: Final = (
    "INSERT INTO account_minutes VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
    " SET requests = requests + excluded.requests, tokens = tokens + excluded.tokens"
)


def line_of(row: CallRow) -> bytes:
    """A row as the line of a journal, with its end."""
    try:
        return plain_bytes((_VERSION, row)) + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can write, no database can.
        fit = (v.encode(errors="replace").decode() if type(v) is str else v for v in row)
        return plain_bytes((_VERSION, CallRow._make(fit))) + b"\n"


def row_of(line: bytes) -> CallRow | None:
    """The row of a line; None for anything else than a line of this version."""
    try:
        version, row = _read(line)
    except (ValueError, RecursionError):
        return None
    if version != _VERSION or not 0 <= row.at < _LATEST_S:
        return None
    return row


def _minutes(rows: Sequence[CallRow]) -> list[tuple[str, int, int, int]]:
    """What the rows add to the minutes of accounts: requests, and tokens of those who answered."""
    requests: Counter[tuple[str, int]] = Counter()
    tokens: Counter[tuple[str, int]] = Counter()
    for row in rows:
        minute = int(row.at / _MINUTE_S)
        for account, count in _requests(row).items():
            requests[account, minute] += count
        if row.account:
            tokens[row.account, minute] += (row.input_tokens or 0) + (row.output_tokens or 0)
    return [(*key, requests[key], tokens[key]) for key in {**requests, **(+tokens)}]


def _requests(row: CallRow) -> dict[str, int]:
    if row.requests is None:
        return {row.account: row.attempts} if row.account and row.attempts > 0 else {}
    try:
        return _read_requests(row.requests.encode())
    except ValueError:
        return {}


class Totals(NamedTuple):
    """The calls of one kind, summed up.

    Attributes:
        key: what they have in common: a name, or for times the number of the quarter of an hour
            since 1970 in which they ended.
        priced: the currency of their money; `""`: used something that has no price; None: used
            nothing that is known.
        calls: all of them, the refused ones among them.
    """

    key: str | int
    priced: str | None
    calls: int
    refused: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    unknown_usage: int
    cache_hits: int
    money_micro: int
    saved_micro: int


class ErrorCount(NamedTuple):
    """How many calls of one kind were refused or failed in one way.

    Attributes:
        key: as in `Totals`.
        outcome, error: as in `CallRow`.
    """

    key: Any
    outcome: str
    error: str
    calls: int


#: What times to the first byte are sorted into; one class more is for the longer ones.
FIRST_BYTE_CLASSES_MS: Final = (500, 1000, 2000, 5000, 15_000)


class FirstBytes(NamedTuple):
    """The times to the first byte of the calls of one kind that had one.

    Attributes:
        key: as in `Totals`.
        classes: of those calls, how many are in each class, see `FIRST_BYTE_CLASSES_MS`.
    """

    key: Any
    calls: int
    sum_ms: float
    most_ms: float
    classes: tuple[int, ...]


class Quarter(NamedTuple):
    """The calls of one kind in one quarter of an hour, summed up: what boxes tell each other.

    Attributes:
        number: of the quarter, since 1970.
        client_id, client, account, model, endpoint: as in `CallRow`.
        priced: as in `Totals`.
        counts: the numbers of `Totals`, from its `calls` on.
    """

    number: int
    client_id: str
    client: str
    account: str
    model: str
    endpoint: str
    priced: str | None
    counts: tuple[int, ...]


_SUMS: Final = ", ".join(f"coalesce(sum({name}), 0)" for name in Totals._fields[5:])
_COUNTS: Final = (
    "count(*), sum(outcome = 'refused'),"
    " sum(outcome IN ('upstream_error', 'failed', 'cut_by_stop'))"
)
_FAILED: Final = "outcome IN ('refused', 'upstream_error', 'failed', 'cut_by_stop')"
_CLASSES: Final = ", ".join(
    f"sum(first_byte_ms > {above} AND first_byte_ms <= {most})"
    for above, most in pairwise((-1, *FIRST_BYTE_CLASSES_MS, "9e999"))
)
_PRICED: Final = (
    "coalesce(currency, CASE WHEN coalesce(input_tokens, output_tokens) IS NOT NULL"
    " OR units IS NOT NULL THEN '' END)"
)


class CallTable:
    """The calls of all workers. Shared by the threads of a process.

    Args:
        database: with `TABLES`.
        kept_s: how long they are kept.
        max_rows: of more calls those of refused callers without a name go first, then the oldest.
    """

    def __init__(
        self, database: Database, clock: Clock, *, kept_s: float, max_rows: int = MAX_ROWS
    ) -> None:
        self._database = database
        self._clock = clock
        self._kept_s = kept_s
        self._max_rows = max_rows
        self._looked_for_old_s = -math.inf

    # --- from the journals: `state.call_journal.Target` ------------------------------------------

    def offset(self, journal: str) -> int:
        """How far a journal is in the table; 0 for one that it does not know. Bytes.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        return self._database.run(lambda database: _offset(database, journal))

    def add(self, journal: str, begin: int, end: int, lines: Sequence[bytes]) -> int | None:
        """Add the lines between two places of a journal, in one transaction with the second place.

        Returns:
            How many lines were no calls; None if the journal is not read up to `begin`, and nothing
            was added.

        Raises:
            DatabaseUnavailable: the table cannot be written now; nothing was added.
        """
        found = [row_of(line) for line in lines]
        rows = [row for row in found if row is not None]
        minutes = _minutes(rows)

        def write(database: sqlite3.Connection) -> bool:
            if _offset(database, journal) != begin:
                return False
            database.executemany(_INSERT, rows)
            database.executemany(_ADD_MINUTE, minutes)
            database.execute("INSERT OR REPLACE INTO call_journals VALUES (?, ?)", (journal, end))
            return True

        return len(found) - len(rows) if self._database.run(write, write=True) else None

    def forget(self, journals: Sequence[str]) -> None:
        """Forget how far all other journals than these are read: they are removed.

        Raises:
            DatabaseUnavailable: the table cannot be written now.
        """
        known = {name for (name,) in self._database.run(_journals)}
        if gone := known.difference(journals):
            self._database.run(
                lambda database: database.executemany(
                    "DELETE FROM call_journals WHERE name = ?", [(name,) for name in gone]
                ),
                write=True,
            )

    # --- what becomes of them --------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether there is a database."""
        return self._database.exists

    def prune(self) -> bool:
        """Remove some of the calls that are old enough, or too many; whether there may be more.

        Raises:
            DatabaseUnavailable: the table cannot be written now.
        """
        self._prune_minutes()
        before = self._clock.now() - self._kept_s
        oldest, excess = self._database.run(
            lambda database: (
                database.execute("SELECT min(at) FROM calls").fetchone()[0],
                _excess(database, self._max_rows),
            )
        )
        if excess > 0:
            self._database.run(
                lambda database: _make_room(database, min(excess + _AT_A_TIME, _MANY)), write=True
            )
            return excess > _MANY
        if oldest is None or oldest >= before:
            return False
        removed = self._database.run(
            lambda database: (
                database.execute(
                    "DELETE FROM calls WHERE key IN"
                    " (SELECT key FROM calls WHERE at < ? ORDER BY at LIMIT ?)",
                    (before, _AT_A_TIME),
                ).rowcount
            ),
            write=True,
        )
        return removed == _AT_A_TIME

    def _prune_minutes(self) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._looked_for_old_s < _LOOK_FOR_OLD_S:
            return
        before = int((self._clock.now() - _MINUTES_KEPT_S) / _MINUTE_S)
        self._database.run(
            lambda database: database.execute(
                "DELETE FROM account_minutes WHERE minute < ?", (before,)
            ),
            write=True,
        )
        self._looked_for_old_s = now_s

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def account_uses(
        self, account: str, since: float, *, step_s: float = _MINUTE_S
    ) -> list[tuple[float, int, int]]:
        """What an account was asked from the minute of a time on, the oldest first: the begin of
        each step, its requests, and their tokens. Steps without any are left out.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        step = max(1, round(step_s / _MINUTE_S))
        rows = self._database.rows(
            "SELECT min(minute), sum(requests), sum(tokens) FROM account_minutes"
            " WHERE account = ? AND minute >= ? GROUP BY minute / ? ORDER BY 1",
            (account, int(max(since, 0.0) / _MINUTE_S), step),
        )
        return [(minute * _MINUTE_S, requests, tokens) for minute, requests, tokens in rows]

    def next_use(self, account: str, since: float) -> float | None:
        """The minute in which an account was first asked from a time on; None if it was not.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        minute = math.ceil(max(since, 0.0) / _MINUTE_S)
        (found,) = self._database.run(
            lambda database: database.execute(
                "SELECT min(minute) FROM account_minutes WHERE account = ? AND minute >= ?",
                (account, minute),
            ).fetchone()
        )
        return None if found is None else found * _MINUTE_S

    def totals(
        self, by: By, since: float, until: float, *, client_id: str | None = None
    ) -> list[Totals]:
        """The calls that ended in a time, summed up by what they have in common.

        Args:
            since, until: seconds since 1970, the second one excluded.
            client_id: only those of this client; None for all.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        # A client is one person also after a new name, which is the one that is shown: SQLite takes
        # the other columns from the row of the maximum (lang_select.html, "Bare columns").
        shown, group = {
            "client": ("client", "client_id"),
            "day": (f"CAST(at / {QUARTER_S} AS INTEGER)", "1"),
            "hour": (f"CAST(at / {QUARTER_S} AS INTEGER)", "1"),
        }.get(by, (by, "1"))
        where = "at >= ? AND at < ?"
        values: tuple[Any, ...] = (since, until)
        if client_id is not None:
            where, values = f"client_id = ? AND {where}", (client_id, *values)
        rows = self._database.rows(
            f"SELECT {shown}, {_PRICED}, {_COUNTS}, {_SUMS}, max(at) FROM calls"
            f" WHERE {where} GROUP BY {group}, 2",
            values,
        )
        return [Totals(*row[:-1]) for row in rows]

    def errors(self, by: By, since: float, until: float) -> list[ErrorCount]:
        """The calls of a time that were refused or failed, by how; of clients the key is the id.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        rows = self._database.rows(
            f"SELECT {_key_column(by)}, outcome, error, count(*) FROM calls"
            f" WHERE at >= ? AND at < ? AND {_FAILED} GROUP BY 1, 2, 3",
            (since, until),
        )
        return [ErrorCount(*row) for row in rows]

    def first_bytes(self, by: By, since: float, until: float) -> list[FirstBytes]:
        """The times to the first byte of the calls of a time; of clients the key is the id.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        rows = self._database.rows(
            f"SELECT {_key_column(by)}, count(*), sum(first_byte_ms), max(first_byte_ms),"
            f" {_CLASSES} FROM calls"
            " WHERE at >= ? AND at < ? AND first_byte_ms IS NOT NULL GROUP BY 1",
            (since, until),
        )
        return [FirstBytes._make((*row[:4], tuple(row[4:]))) for row in rows]

    def latest(self, limit: int) -> list[CallRow]:
        """The calls that ended last, the newest first.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        rows = self._database.rows(
            f"SELECT {', '.join(CallRow._fields)} FROM calls ORDER BY at DESC LIMIT ?", (limit,)
        )
        return [CallRow(*row) for row in rows]

    def find(self, request_id: str) -> list[CallRow]:
        """The calls with an id among those that ended lately, the newest first: clients may give
        several calls one id.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        columns = ", ".join(CallRow._fields)
        rows = self._database.rows(
            f"SELECT {columns} FROM (SELECT * FROM calls ORDER BY at DESC LIMIT {_LATELY})"
            f" WHERE request_id = ? ORDER BY at DESC LIMIT {_MOST_OF_ID}",
            (request_id,),
        )
        return [CallRow(*row) for row in rows]

    def at(self, ended_at: float) -> list[CallRow]:
        """The calls that ended at a time: mostly one.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        rows = self._database.rows(
            f"SELECT {', '.join(CallRow._fields)} FROM calls WHERE at = ? LIMIT {_MOST_OF_ID}",
            (ended_at,),
        )
        return [CallRow(*row) for row in rows]

    # --- for other boxes -------------------------------------------------------------------------

    def names(self, since: float, until: float) -> dict[str, str]:
        """The latest name of each client whose calls ended in a time, by its id.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """
        rows = self._database.rows(
            "SELECT client_id, client, max(at) FROM calls WHERE at >= ? AND at < ?"
            " GROUP BY client_id",
            (since, until),
        )
        return {id: name for id, name, _ in rows}

    def changed(self, key: int) -> tuple[int, dict[int, list[Quarter]]]:
        """The hours in which some of the calls ended that came after one, with all their quarters;
        and the last one of those calls.

        Args:
            key: of that call; 0 for all.

        Raises:
            DatabaseUnavailable: the table cannot be read now.
        """

        def read(database: sqlite3.Connection) -> tuple[int, dict[int, list[Quarter]]]:
            (newest,) = database.execute("SELECT max(key) FROM calls").fetchone()
            begin = 0 if newest is None or newest < key else key  # the table was begun anew
            rows = database.execute(
                "SELECT key, CAST(at / 3600 AS INTEGER) FROM calls WHERE key > ?"
                " ORDER BY key LIMIT ?",
                (begin, _MANY),
            )
            last, hours = begin, set[int]()
            for row_key, hour in rows:
                last = row_key
                hours.add(hour)
                if len(hours) >= _HOURS_AT_A_TIME:
                    break
            return last, {hour: _quarters(database, hour) for hour in sorted(hours)}

        return self._database.run(read)


def _key_column(by: By) -> str:
    """What calls are grouped by, as a column."""
    if by in ("day", "hour"):
        return f"CAST(at / {QUARTER_S} AS INTEGER)"
    return "client_id" if by == "client" else by


def _quarters(database: sqlite3.Connection, hour: int) -> list[Quarter]:
    rows = database.execute(
        f"SELECT CAST(at / {QUARTER_S} AS INTEGER), client_id, client, account, model, endpoint,"
        f" {_PRICED}, {_COUNTS}, {_SUMS}, max(at) FROM calls WHERE at >= ? AND at < ?"
        " GROUP BY 1, client_id, account, model, endpoint, 7",
        (hour * 3600, (hour + 1) * 3600),
    )
    own = len(Quarter._fields) - 1
    return [Quarter._make((*row[:own], tuple(row[own:-1]))) for row in rows]


def _offset(database: sqlite3.Connection, journal: str) -> int:
    row = database.execute("SELECT read FROM call_journals WHERE name = ?", (journal,)).fetchone()
    return 0 if row is None else row[0]


def _excess(database: sqlite3.Connection, most: int) -> int:
    """How many rows there are too many; counted only where it can be."""
    first, last = database.execute("SELECT min(key), max(key) FROM calls").fetchone()
    if first is None or last - first < most:
        return 0
    (count,) = database.execute("SELECT count(*) FROM calls").fetchone()
    return max(0, int(count) - most)


def _make_room(database: sqlite3.Connection, count: int) -> None:
    """Remove some rows: those of callers without a name before others, the oldest first."""
    removed = 0
    for where in ("client_id = ''", "1"):
        removed += database.execute(
            f"DELETE FROM calls WHERE key IN"
            f" (SELECT key FROM calls WHERE {where} ORDER BY at LIMIT ?)",
            (count - removed,),
        ).rowcount


def _journals(database: sqlite3.Connection) -> list[tuple[str]]:
    return database.execute("SELECT name FROM call_journals").fetchall()
