"""GET /status: what the server knows of its accounts, for commands on its own machine."""

from __future__ import annotations

import os
from typing import Any

from flask import Blueprint, Response

from qwen_wsgi import __version__, text
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.services import Services
from qwen_wsgi.upstream.routing.account_status import Summary

blueprint = Blueprint("status", __name__)


@blueprint.get("/status")
def status() -> Response:
    """The server's state: `{"version", "uid", "workers", "in_flight", "calls", "accounts": [row],
    "problems", "notes"}`.

    A row is that of `text.status_row`. It names hosts and files, so it is for this machine, and
    for a client key if there are any.
    """
    lifecycle.live().record.quiet = True
    lifecycle.check_caller()
    call = lifecycle.live()
    services = call.services
    services.guard.require_this_machine(call.environ)
    workers = services.workers.all()
    store = services.shared_store
    told = [] if store is None else [store.told()]
    away = store is not None and store.away
    return http.json_value(
        {
            "version": __version__,
            "uid": os.geteuid(),
            "workers": len(workers),
            "in_flight": sum(each.in_flight for each in workers),
            "calls": sum(each.ended for each in workers),
            "accounts": account_rows(services),
            "problems": [*services.discovery.problems(), *(told if away else ())],
            "notes": [*map(str, services.discovery.notes()), *(() if away else told)],
        }
    )


def account_rows(services: Services, summary: Summary | None = None) -> list[dict[str, Any]]:
    """The accounts as `text.status_row` describes them.

    Args:
        summary: their states; None to ask for them now.
    """
    summary = summary or services.statuses.summary()
    return [
        text.status_row(
            account,
            status,
            services.outcomes.latest(account),
            services.plans.report(account.name),
        )
        for account, status in summary.accounts
    ]
