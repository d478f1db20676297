"""`qwen-proxy usage --plans`: how much of the windows of plans is used, and when they end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TextIO

from qwen_wsgi import text
from qwen_wsgi.accounting.books import Books, BooksUnavailable
from qwen_wsgi.accounting.plan_watch import PlanWatch
from qwen_wsgi.cli import running
from qwen_wsgi.clock import Clock, SystemClock
from qwen_wsgi.services import build_services, configure_logs, plan_accounts
from qwen_wsgi.settings import Settings

#: How long another process is waited for that reads the journals now.
_WAIT_S: Final = 10.0

_HEAD: Final = ["account", "plan", "window", "used", "limit", "", "share", "ends", "forecast"]


def run(
    settings: Settings,
    *,
    json_output: bool,
    out: TextIO,
    err: TextIO,
    clock: Clock | None = None,
) -> int:
    """Print how things are with all plans: as the running server says, else by the ledger; 1 if it
    cannot be read."""
    clock = clock or SystemClock()
    answer = running.ask(settings, "/status", check=_has_plans)
    if answer.value is not None:
        rows = [
            {"account": row["name"], **row["plan"]}
            for row in answer.value["accounts"]
            if row["plan"] is not None
        ]
    else:
        try:
            rows = _own(settings, clock)
        except BooksUnavailable as error:
            print(f"qwen-proxy: {error}", file=err)
            return 1
    if json_output:
        asked = {"server": answer.server if answer.value else None, "why_not": answer.why or None}
        value = {"asked": asked, "accounts": rows, "fallback": list(settings.plan_fallback)}
        print(json.dumps(value, indent=2), file=out)
    else:
        print(shown(rows, settings.plan_fallback, now=clock.now()), file=out)
    return 0


def _has_plans(value: dict[str, Any]) -> bool:
    rows = value.get("accounts")
    return isinstance(rows, list) and all(isinstance(r, dict) and "plan" in r for r in rows)


def _own(settings: Settings, clock: Clock) -> list[dict[str, Any]]:
    """What this command finds by itself, in the form of the server's.

    Raises:
        BooksUnavailable: the ledger cannot be read.
    """
    directory = Path(settings.state_dir)
    configure_logs(settings)
    with closing(build_services(settings, clock, known_in=directory)) as services:
        found = plan_accounts(services.pool)
    if not settings.ledger_days:
        return _reports(PlanWatch(lambda: found, None, clock))
    with closing(Books(directory, clock, days=settings.ledger_days)) as books:
        books.read_all(wait_s=_WAIT_S)
        return _reports(PlanWatch(lambda: found, books, clock))


def _reports(watch: PlanWatch) -> list[dict[str, Any]]:
    watch.look()
    return [{"account": name, **(watch.report(name) or {})} for name in watch.seen]


def shown(rows: Sequence[Mapping[str, Any]], fallback: Sequence[str], *, now: float) -> str:
    """The plans for people: a table, and what is to be said of it."""
    if not rows:
        return (
            "No account belongs to a plan. (QWEN_PROXY_PLANS says what the plan of an account "
            "allows, if its host does not show that it has one.)"
        )
    table = [_HEAD]
    for row in rows:
        table += [_cells(row, window, now) for window in row["windows"]]
    lines = [*text.aligned(table, left=3), ""]
    assumed = [row["account"] for row in rows if row["limits"] == "assumed"]
    if assumed:
        lines.append(
            f"The limits of {', '.join(assumed)} are assumed: state yours in QWEN_PROXY_PLANS."
        )
    if any(window["used"] is None for row in rows for window in row["windows"]):
        lines.append(
            "How many credits were used is unknown: nobody says what a call costs. "
            "`credit=1200tokens` in QWEN_PROXY_PLANS states it."
        )
    if not all(row["counted"] for row in rows):
        lines.append(
            "What was used is unknown: the ledger cannot be read, or none is kept "
            "(QWEN_PROXY_LEDGER_DAYS)."
        )
    lines.append("Counted are the calls of this proxy; other programs with the same key are not.")
    if fallback:
        lines.append(f"While a window is spent: {', '.join(fallback)}.")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], window: Mapping[str, Any], now: float) -> list[str]:
    ends = "–"
    if window["spent"]:
        by = " (its vendor says)" if window["told_by_vendor"] else ""
        ends = f"SPENT until {text.moment(window['free_at'], now=now)}{by}"
    elif window["ends_at"] is not None:
        ends = text.moment(window["ends_at"], now=now)
        ends = f"from {ends} on" if window["kind"] == "rolling" else ends
    forecast = window["forecast_at"]
    used, limit = window["used"], window["limit"]
    unit = window["unit"]
    if used is None:  # what is known of it
        used, unit = window["calls"], f"calls; limit in {unit}"
    return [
        row["account"],
        row["plan"],
        window["window"],
        f"{used:,.0f}",
        "unknown" if limit is None else f"{limit:,.0f}",
        unit,
        "–" if window["share"] is None else f"{window['share']:.0%}",
        ends,
        "–" if forecast is None else f"spent at {text.moment(forecast, now=now)}",
    ]
