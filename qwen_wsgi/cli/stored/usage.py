"""`qwen-proxy usage`: what was used, by whom, and what caches have saved."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

from qwen_wsgi import text
from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.books import Books, BooksUnavailable
from qwen_wsgi.accounting.usage import COLUMNS, Span
from qwen_wsgi.boxes import shared_store_of, usage_totals_of
from qwen_wsgi.clock import Clock, SystemClock
from qwen_wsgi.console.usage import table as spreadsheet
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.calls import By
from qwen_wsgi.state.redis.totals import OfOthers

#: How long another process is waited for that reads the journals now.
_WAIT_S: Final = 10.0

#: The columns for people: the member, and its heading.
_SHOWN: Final = (
    ("calls", "calls"),
    ("refused", "refused"),
    ("failed", "failed"),
    ("input_tokens", "input"),
    ("cached_tokens", "cached"),
    ("output_tokens", "output"),
    ("reasoning_tokens", "reasoning"),
    ("unknown_usage", "unknown"),
    ("cache_hits", "hits"),
    ("money", "money"),
    ("saved_by_cache", "saved"),
)
_WIDEST: Final = 48
_ALONE: Final = (
    "The numbers are those of this box alone: the Redis that the boxes share does not answer "
    "(QWEN_PROXY_REDIS_URL)."
)


def run(
    settings: Settings,
    *,
    by: By,
    since: str,
    until: str,
    json_output: bool,
    csv_output: bool,
    out: TextIO,
    err: TextIO,
    clock: Clock | None = None,
) -> int:
    """Print the numbers of a time; 2 if the question is wrong, 1 if there is no answer."""
    clock = clock or SystemClock()
    try:
        asked = usage.span(since, until, now=clock.now(), zone=settings.zone)
    except ValueError as error:
        print(f"qwen-proxy: --{error}", file=err)
        return 2
    if not settings.ledger_days:
        print("qwen-proxy: no calls are recorded (QWEN_PROXY_LEDGER_DAYS=0)", file=err)
        return 1
    others = _of_others(settings, clock, asked)
    books = Books(Path(settings.state_dir), clock, days=settings.ledger_days)
    try:
        found = books.report(by, asked, zone=settings.zone, wait_s=_WAIT_S, others=others)
    except BooksUnavailable as error:
        print(f"qwen-proxy: {error}", file=err)
        return 1
    finally:
        books.close()
    if csv_output and others is not None and not others.known:
        print(f"qwen-proxy: {_ALONE}", file=err)  # its lines have no place for it
    if json_output:
        print(json.dumps(found, indent=2, ensure_ascii=False), file=out)
    elif csv_output:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_harmless, found["rows"]))
    else:
        print(shown(found), file=out)
    return 0


def _of_others(settings: Settings, clock: Clock, asked: Span) -> OfOthers | None:
    """What other boxes have used; None where there are none."""
    store = shared_store_of(settings, clock, Path(settings.state_dir))
    if store is None:
        return None
    try:
        return usage_totals_of(settings, store).of_others(asked.since, asked.until)
    finally:
        store.close()


def _harmless(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for spreadsheets, which would take some texts for formulas: clients choose models."""
    return {**row, "key": spreadsheet.harmless(row["key"])}


def shown(found: Mapping[str, Any]) -> str:
    """A report for people: a table, its total, and the cache receipt."""
    rows, by = found["rows"], found["by"]
    head = f"Calls from {_time(found['since'])} to {_time(found['until'])}, by {by}"
    if not rows:
        return "\n".join([f"{head}: none.", *_of_boxes(found)])
    table = [[by, *(heading for _, heading in _SHOWN)], *(_cells(row) for row in rows)]
    if len(rows) > 1:
        table.append(_total(rows))
    notes = [*_of_boxes(found), *_notes(rows)]
    return "\n".join([head, "", *text.aligned(table), "", *_receipt(rows), *notes])


def _of_boxes(found: Mapping[str, Any]) -> list[str]:
    """Of which boxes the numbers are, where there are several."""
    boxes = found.get("boxes")
    if boxes is None:
        return []
    if boxes["others_unknown"]:
        return [_ALONE]
    count = boxes["counted"]
    return [f"The numbers are those of {count} boxes." if count > 1 else "No other box has told."]


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    key = row["key"] if row["key"].isprintable() else repr(row["key"])
    return [
        (key if len(key) <= _WIDEST else key[: _WIDEST - 1] + "…") or "–",
        *(_cell(name, row[name], row["currency"]) for name, _ in _SHOWN),
    ]


def _cell(name: str, value: Any, currency: str | None) -> str:
    if name in ("money", "saved_by_cache"):
        return "–" if value is None else money(value, currency)
    return f"{value:,}"


def money(amount: float, currency: str | None) -> str:
    """An amount with its currency; small ones with the digits that tell something."""
    digits = 2 if amount == 0 or abs(amount) >= 1 else 4
    return f"{amount:,.{digits}f} {currency or ''}".rstrip()


def _total(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = ["total"]
    currencies = {row["currency"] for row in rows if row["currency"]}
    for name, _ in _SHOWN:
        if name not in ("money", "saved_by_cache"):
            cells.append(f"{sum(row[name] for row in rows):,}")
        elif len(currencies) == 1:
            (currency,) = currencies
            cells.append(money(sum(row[name] or 0.0 for row in rows), currency))
        else:
            cells.append("–")  # two currencies have no sum: the receipt has each
    return cells


def _receipt(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = usage.receipt(rows)
    lines = [
        f"Cache receipt: {found.cached_tokens:,} of {found.input_tokens:,} input tokens "
        f"({found.share:.0%}) were read from a cache."
    ]
    for currency, (paid, saved) in found.money.items():
        what = "saved" if saved >= 0 else "cost"
        lines.append(
            f"  It {what} {money(abs(saved), currency)}: {money(paid, currency)} by list prices "
            f"instead of {money(paid + saved, currency)}."
        )
    return lines


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if unknown := sum(row["unknown_usage"] for row in rows):
        notes.append(
            f"Of {unknown:,} calls it is unknown what they used: they broke off, or their upstream "
            "did not say."
        )
    if any(row["money"] is None and row["input_tokens"] + row["output_tokens"] for row in rows):
        notes.append("No money stands where a price is not known (QWEN_PROXY_PRICES adds prices).")
    return notes
