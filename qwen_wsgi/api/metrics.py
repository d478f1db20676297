"""GET /metrics: what all workers have counted, for Prometheus; see docs/metrics.md."""

from __future__ import annotations

import platform

from flask import Blueprint, Response

from qwen_wsgi import __version__
from qwen_wsgi.accounting import exposition
from qwen_wsgi.accounting import metric_families as families
from qwen_wsgi.accounting.metrics import Rows
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.services import Services

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """The metrics of all workers, in Prometheus' text format or in OpenMetrics.

    They name accounts, models and clients, so they are for this machine, and for client keys that
    allow it.
    """
    call = lifecycle.live()
    call.record.quiet = True
    services = call.services
    call.client = client = services.guard.require_metrics(call.environ)
    if client is not None:
        call.record.client, call.record.client_id = client.name, client.id
    form = exposition.content_type(call.environ.get("HTTP_ACCEPT", ""))
    rows = {**services.metering.totals(), **_of_accounts(services)}
    rows[families.BUILD_INFO.name, __version__, platform.python_version()] = [1]
    text = exposition.render(rows, openmetrics=form == exposition.OPENMETRICS)
    return http.text(text, form)


def _of_accounts(services: Services) -> Rows:
    """How things are with each account, which all workers know."""
    rows: Rows = {}
    now_ms = services.clock.now() * 1000
    for account, status in services.statuses.summary().accounts:
        name = account.name
        rows[families.ACCOUNT_USABLE.name, name] = [status.state.is_usable]
        for state in type(status.state):
            rows[families.ACCOUNT_STATE.name, name, state.value] = [state is status.state]
        if status.expires_at_ms is not None:
            left_s = (status.expires_at_ms - now_ms) / 1000
            rows[families.CREDENTIAL_LEFT.name, name] = [max(0.0, left_s)]
        rows[families.COOLDOWN.name, name] = [status.again_s or 0.0]
        rows[families.PAUSED_MODELS.name, name] = [len(status.models)]
        for window in (services.plans.report(name) or {"windows": ()})["windows"]:
            labels = (name, window["window"], window["unit"])
            rows[families.PLAN_SPENT.name, *labels] = [window["spent"]]
            for family, value in (
                (families.PLAN_USED, window["used"]),
                (families.PLAN_LIMIT, window["limit"]),
            ):
                if value is not None:
                    rows[family.name, *labels] = [value]
            if (end := window["free_at"] or window["ends_at"]) is not None:
                rows[families.PLAN_LEFT.name, *labels] = [max(0.0, end - now_ms / 1000)]
    return rows
