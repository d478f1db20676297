"""The sandbox's own routes: control, state, the table of faults, and the login page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final
from urllib.parse import parse_qs

from qwen_wsgi.sandbox import errors, faults
from qwen_wsgi.sandbox.control import BadControl
from qwen_wsgi.sandbox.replies import HTML_TYPE
from qwen_wsgi.sandbox.steps import Step, whole, whole_json
from qwen_wsgi.sandbox.wire import Request
from qwen_wsgi.sandbox.world import Json, World

_PAGE_LOGIN: Final = """<!doctype html><meta charset="utf-8"><title>[sandbox] login</title>
<h1>[sandbox] device login</h1><p>{text}</p>
<form method="post" action="/authorize?user_code={code}"><button>Approve {code}</button></form>
"""


def own_route(world: World, request: Request) -> Iterator[Step]:
    path = (request.method, request.path)
    if path == ("GET", "/_sandbox/state"):
        return whole_json(200, state(world))
    if path == ("GET", "/_sandbox/faults"):
        return whole_json(200, {"faults": list(faults.listing()), "errors": errors.codes()})
    if path == ("POST", "/_sandbox/reset"):
        reset(world)
        return whole_json(200, {"ok": True})
    if path == ("POST", "/_sandbox/control"):
        return _control(world, request)
    if request.path == "/authorize":
        return _login_page(world, request)
    if path == ("GET", "/"):
        return whole(200, b"[sandbox] a fake Qwen service; see /_sandbox/faults\n", "text/plain")
    return whole_json(404, {"error": f"[sandbox] no such route: {request.method} {request.path}"})


def _control(world: World, request: Request) -> Iterator[Step]:
    try:
        results = world.control.apply(json.loads(request.body))
    except (BadControl, ValueError) as error:
        return whole_json(400, {"error": f"[sandbox] {error}"})
    return whole_json(200, {"ok": True, **results})


def _login_page(world: World, request: Request) -> Iterator[Step]:
    """Show the page on which a person approves a device login, or process the approval."""
    code = parse_qs(request.query).get("user_code", [""])[0]
    if request.method == "POST":
        done = world.oauth.decide(code, "approved") if code != "*" else 0
        text = "Approved. You can close this page." if done else "Unknown or used code."
        return whole(
            200 if done else 404, f"[sandbox] {text}\n".encode(), "text/plain; charset=utf-8"
        )
    if code not in world.oauth.pending_user_codes():
        return whole(404, b"[sandbox] Unknown or used code.\n", "text/plain; charset=utf-8")
    text = "A program asks to use your Qwen account. This is a sandbox: nothing real happens."
    return whole(200, _PAGE_LOGIN.format(text=text, code=code).encode(), HTML_TYPE)


def state(world: World) -> Json:
    """Return counters, settings and the log as one JSON object."""
    return {
        "sandbox": "[sandbox]",
        "origin": world.origin(),
        **world.journal.state(),
        "oauth": {
            **asdict(world.oauth.counters),
            "live_refresh_tokens": world.oauth.live_refresh_tokens(),
            "pending_user_codes": world.oauth.pending_user_codes(),
        },
        "control": world.control.describe(),
    }


def reset(world: World) -> None:
    """Return to the initial state; requests in progress continue."""
    world.control.reset()
    world.journal.reset()
    world.media.reset()
    world.storage.clear()
    world.batches.clear()
    world.web.clear()
