"""GET /health and GET /: open to everybody, so they tell no hosts and no secrets."""

from __future__ import annotations

from typing import cast

from flask import Blueprint, Response, current_app

from qwen_wsgi import __version__
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.flask_app import Application
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus

blueprint = Blueprint("health", __name__)

#: With these calls are served.
_READY = ("ok", "login_unsaved")


@blueprint.get("/health")
def health() -> Response:
    """The worker's state: `{"status", "ready", "version", "sandbox", "uptime_s",
    "in_flight", "websockets", "accounts": [{"name", "kind", "state", "ability"?, "left_alone_s"?,
    "cause"?}]}`.

    200 while calls can be served; 503 when no account is usable or the worker is draining.
    """
    lifecycle.live().record.quiet = True
    services = lifecycle.live().services
    status, accounts, states = _status()
    body = {
        "status": status,
        "ready": status in _READY,
        "version": __version__,
        "sandbox": any(account.kind == "sandbox" for account in accounts),
        "uptime_s": round(services.clock.monotonic() - services.started_at, 1),
        "in_flight": services.admission.in_flight,
        "websockets": len(services.connections),
        "accounts": [
            {
                "name": account.name,
                "kind": account.kind,
                "state": each.state.value,
                **({"ability": each.ability.value} if each.ability else {}),
                **_cooldown(account),
            }
            for account, each in zip(accounts, states, strict=True)
        ],
    }
    return http.json_value(body, 200 if status in _READY else 503)


def _status() -> tuple[str, tuple[Account, ...], list[CredentialStatus]]:
    services = lifecycle.live().services
    accounts = services.pool.accounts()
    states = [account.credential.status() for account in accounts]
    if services.admission.draining:
        status = "draining"
    elif not any(each.state.is_usable for each in states):
        status = "no_usable_account"
    elif any(each.unsaved for each in states):
        # Ready all the same: a supervisor that restarts the server for a 503 would lose the only
        # copy of the login.
        status = "login_unsaved"
    else:
        status = "ok"
    return status, accounts, states


def _cooldown(account: Account) -> dict[str, object]:
    """For how long and why the account gets no calls now, if so; limits of single models are left
    out."""
    services = lifecycle.live().services
    keys, cooldowns = services.pool.keys(account), services.cooldowns
    for key in (keys.payer, keys.host):
        if (seconds := cooldowns.remaining_s(key)) > 0:
            return {"left_alone_s": round(seconds, 1), "cause": cooldowns.cause(key)}
    return {}


@blueprint.get("/health/live")
def live() -> Response:
    """Whether the worker runs at all: for supervisors that restart what does not answer."""
    lifecycle.live().record.quiet = True
    return http.json_value({"status": "ok"})


@blueprint.get("/health/ready")
def ready() -> Response:
    """Whether calls should be sent here: as `/health`, in a word."""
    lifecycle.live().record.quiet = True
    status = _status()[0]
    return http.json_value({"status": status}, 200 if status in _READY else 503)


@blueprint.get("/")
def index() -> Response:
    """Say what this is, and list the endpoints, for a person with a browser."""
    lifecycle.live().record.quiet = True
    return http.json_value(
        {
            "name": "qwen-proxy",
            "version": __version__,
            "what": "Qwen models behind OpenAI's and Anthropic's APIs. OpenAI's clients want this "
            "address + /v1 as their base URL, Anthropic's the address alone.",
            "endpoints": cast(Application, current_app).endpoints(),
        }
    )
