"""GET /status: what the server knows of its accounts, for commands on its own machine."""

from __future__ import annotations

import os
from typing import Any

from flask import Blueprint, Response

from qwen_wsgi import __version__, text
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus

blueprint = Blueprint("status", __name__)


@blueprint.get("/status")
def status() -> Response:
    """The server's state: `{"version", "uid", "workers", "in_flight", "calls", "accounts": [row],
    "problems", "notes"}`.

    A row is `text.account_row` with `last_call`, `left_alone_s` and `cause`. It names hosts and
    files, so it is for this machine, and for a client key if there are any.
    """
    lifecycle.live().record.quiet = True
    lifecycle.check_caller()
    call = lifecycle.live()
    services = call.services
    services.guard.require_this_machine(call.environ)
    workers = services.workers.all()
    return http.json_value(
        {
            "version": __version__,
            "uid": os.geteuid(),
            "workers": len(workers),
            "in_flight": sum(each.in_flight for each in workers),
            "calls": sum(each.ended for each in workers),
            "accounts": [_row(*each) for each in services.statuses.summary().accounts],
            "problems": list(services.discovery.problems()),
            "notes": list(map(str, services.discovery.notes())),
        }
    )


def _row(account: Account, status: CredentialStatus) -> dict[str, Any]:
    row: dict[str, Any] = {**text.account_row(account, status), "last_call": None}
    if (latest := lifecycle.live().services.outcomes.latest(account)) is not None:
        row["last_call"] = {
            "age_s": round(latest.age_s, 1),
            "cause": latest.cause,
            "answered_s": None if latest.answered_s is None else round(latest.answered_s, 1),
        }
    if status.again_s:
        row |= {"left_alone_s": round(status.again_s, 1), "cause": status.cause}
    return row
