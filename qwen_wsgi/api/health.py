"""GET /health and GET /: open to everybody, so they tell no hosts and no secrets."""

from __future__ import annotations

from flask import Blueprint, Response

from qwen_wsgi import __version__
from qwen_wsgi.api import calls, replies
from qwen_wsgi.credentials.policy import State

blueprint = Blueprint("health", __name__)

_USABLE = (State.FRESH, State.STALE, State.EXPIRING)


@blueprint.get("/health")
def health() -> Response:
    """The worker's state: `{"status", "ready", "version", "sandbox", "in_flight", "accounts":
    [{"name", "kind", "state", "ability"?}]}`.

    200 while calls can be served; 503 when no account is usable or the worker is draining.
    """
    calls.live().call.quiet = True
    services = calls.services()
    accounts = services.book.accounts()
    states = [account.credential.status() for account in accounts]
    usable = any(each.state in _USABLE for each in states)
    if services.admission.draining:
        status = "draining"
    elif not usable:
        status = "no_usable_account"
    elif any(each.unsaved for each in states):
        # With 200 all the same: who restarts a server for a 503 would lose the only copy.
        status = "login_unsaved"
    else:
        status = "ok"
    ready = status in ("ok", "login_unsaved")
    body = {
        "status": status,
        "ready": ready,
        "version": __version__,
        "sandbox": any(account.kind == "sandbox" for account in accounts),
        "in_flight": services.admission.in_flight,
        "accounts": [
            {
                "name": account.name,
                "kind": account.kind,
                "state": each.state.value,
                **({"ability": each.ability.value} if each.ability else {}),
            }
            for account, each in zip(accounts, states, strict=True)
        ],
    }
    return replies.json_value(body, 200 if ready else 503)


@blueprint.get("/")
def index() -> Response:
    """A word to whoever opens the address in a browser."""
    calls.live().call.quiet = True
    return replies.json_value(
        {
            "name": "qwen-proxy",
            "version": __version__,
            "what": "Qwen models behind an OpenAI-compatible API; base_url is this address + /v1",
            "endpoints": [
                "POST /v1/chat/completions",
                "POST /v1/embeddings",
                "GET /v1/models",
                "GET /v1/models/{id}",
                "GET /health",
            ],
        }
    )
