"""GET /health: open to everybody, so they tell no hosts and no secrets."""

from __future__ import annotations

from flask import Blueprint, Response

from qwen_wsgi import __version__
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus
from qwen_wsgi.state.redis.connection import SharedStore
from qwen_wsgi.upstream.failures.causes import remedy_of
from qwen_wsgi.upstream.routing.account_status import READY, Summary

blueprint = Blueprint("health", __name__)
blueprint.before_request(lifecycle.refuse_pages)


@blueprint.get("/health")
def health() -> Response:
    """The worker's state: `{"status", "cause"?, "ready", "version", "sandbox", "uptime_s",
    "in_flight", "websockets", "accounts": [{"name", "kind", "state", "ability"?, "cause"?,
    "left_alone_s"?, "remedy"?, "sharing"?, "models"?, "plan"?}]}`; models are those that are left
    alone, as `{"model", "left_alone_s", "cause"}`; a plan is that of `PlanWatch.report`. With a
    Redis also `"redis": {"state": "ok"|"away", "away_s"?, "version"}`: calls go on without it.

    200 while calls can be served; 503 when no account is usable or the worker is draining. Callers
    from elsewhere without a key get `{"status", "ready"}`.
    """
    call = lifecycle.live()
    call.record.quiet = True
    services = call.services
    status, summary = _status()
    if not services.guard.is_known(call.environ):
        return _answer(status, {"status": status, "ready": status in READY})
    body = {
        "status": status,
        **_cause(status, summary),
        "ready": status in READY,
        "version": __version__,
        "sandbox": any(account.kind == "sandbox" for account, _ in summary.accounts),
        "uptime_s": round(services.clock.monotonic() - services.started_at, 1),
        "in_flight": services.admission.in_flight,
        "websockets": len(services.connections),
        "accounts": [_row(account, each) for account, each in summary.accounts],
        **_redis(services.shared_store),
    }
    return _answer(status, body)


def _answer(status: str, body: dict[str, object]) -> Response:
    return http.json_value(body, 200 if status in READY else 503)


def _status() -> tuple[str, Summary]:
    services = lifecycle.live().services
    summary = services.statuses.summary()
    return ("draining" if services.admission.draining else summary.status), summary


def _cause(status: str, summary: Summary) -> dict[str, str]:
    named = status == "no_usable_account" and bool(summary.cause)
    return {"cause": summary.cause} if named else {}


def _redis(store: SharedStore | None) -> dict[str, object]:
    """How the Redis is that boxes share, if there is one; not where it is."""
    if store is None:
        return {}
    away_s = store.away_s()
    found = {"state": "ok"} if away_s is None else {"state": "away", "away_s": round(away_s, 1)}
    return {"redis": {**found, "version": store.version}}


def _row(account: Account, status: CredentialStatus) -> dict[str, object]:
    """One account: no hosts, no secrets, and of remedies only those that name none."""
    row: dict[str, object] = {
        "name": account.name,
        "kind": account.kind,
        "state": status.state.value,
    }
    if status.ability is not None:
        row["ability"] = status.ability.value
    if status.cause:
        row["cause"] = status.cause
    if status.again_s:
        row["left_alone_s"] = round(status.again_s, 1)
    if (remedy := remedy_of(status.cause)) and not status.state.is_usable:
        row["remedy"] = remedy
    if (plan := lifecycle.live().services.plans.report(account.name)) is not None:
        row["plan"] = plan
    if status.sharing:
        row["sharing"] = status.sharing
    if status.models:
        row["models"] = [
            {"model": each.model, "left_alone_s": round(each.seconds, 1), "cause": each.cause}
            for each in status.models
        ]
    return row


@blueprint.get("/health/live")
def live() -> Response:
    """Whether the worker runs at all: for supervisors that restart what does not answer."""
    lifecycle.live().record.quiet = True
    return http.json_value({"status": "ok"})


@blueprint.get("/health/ready")
def ready() -> Response:
    """Whether calls should be sent here: as `/health`, in a word."""
    lifecycle.live().record.quiet = True
    status, summary = _status()
    return _answer(status, {"status": status, **_cause(status, summary)})
