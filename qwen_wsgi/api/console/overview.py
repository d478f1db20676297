"""`/console`: the accounts and the box at a glance."""

from __future__ import annotations

from flask import Response

from qwen_wsgi.api import lifecycle, status
from qwen_wsgi.api.console import page
from qwen_wsgi.console import accounts

blueprint = page.blueprint("overview")


@blueprint.get("/console")
def overview() -> Response:
    """The page."""
    services = lifecycle.live().services
    workers = services.workers.all()
    store = services.shared_store
    summary = services.statuses.summary()
    rows = status.account_rows(services, summary)
    calls = services.in_flight.counts()
    return page.render(
        "overview",
        title="Overview",
        accounts=[
            accounts.shown(row, in_flight=calls.accounts[row["name"]], paused=each.models)
            for row, (_, each) in zip(rows, summary.accounts, strict=True)
        ],
        workers=len(workers),
        in_flight=calls.accounts.total(),
        silent=calls.silent,
        calls=sum(each.ended for each in workers),
        uptime_s=services.clock.monotonic() - services.started_at,
        sandbox=any(row["kind"] == "sandbox" for row in rows),
        redis="" if store is None else store.told(),
        problems=[*services.discovery.problems()],
        notes=[*map(str, services.discovery.notes())],
    )
