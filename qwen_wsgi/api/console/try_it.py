"""`/console/try`: a chat with any model in any of the four dialects, as whoever signed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from flask import Response, request

from qwen_wsgi.access.guard import Client
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.admin.access import read_members
from qwen_wsgi.api.console import page
from qwen_wsgi.api.console.live import rows_of
from qwen_wsgi.api.dialects import chat, completions, generation, messages, responses
from qwen_wsgi.api.flask_app import ROUTE_PATH
from qwen_wsgi.capabilities import is_chat_model
from qwen_wsgi.console import browser, live, snippets, timeline
from qwen_wsgi.console.snippets import DIALECTS
from qwen_wsgi.errors import BadRequest, NotFound

blueprint = page.blueprint("try")
for_scripts = page.blueprint_for_scripts("try_calls")

_ANSWERS: Final[Mapping[str, Callable[[], Response]]] = {
    "chat": chat.create,
    "responses": responses.create,
    "messages": messages.create,
    "completions": completions.create,
}
#: Models that the page offers.
_MOST_MODELS: Final = 1000


@blueprint.get("/console/try")
def shown() -> Response:
    """The page."""
    call = lifecycle.live()
    call.client = _person()
    models = call.services.catalogue.models(permit=generation.permit_of(call))
    names = [str(entry["id"]) for entry in models][:_MOST_MODELS]
    return page.render(
        "try",
        title="Try it",
        dialects=DIALECTS,
        chat_models=[name for name in names if is_chat_model(name)],
        other_models=[name for name in names if not is_chat_model(name)],
    )


@for_scripts.post("/console/try/<name>")
def answer(name: str) -> Response:
    """Answer a request as the endpoint of its dialect does. It is a call like any other: with its
    person's limits, in the ledger and in the list of calls in flight."""
    if name not in DIALECTS:
        raise NotFound(f"There is no dialect '{name[:40]}' to be tried.", code="unknown_url")
    call = lifecycle.live()
    call.record.quiet = False
    call.record.endpoint = call.environ[ROUTE_PATH] = DIALECTS[name].path
    call.know(_person())
    return _ANSWERS[name]()


def _person() -> Client:
    """Who has signed in, as a client: an admin's key with its limits, or `console` for a link."""
    person = page.signed_in().session.person
    key = lifecycle.live().services.key_ring.by_id(person.client_id)
    return Client(person.client_id, person.client, key)


@for_scripts.post("/console/try/snippets")
def as_snippets() -> Response:
    """A request as a command and as a program: `{"curl", "python"}`."""
    given = read_members()
    name, body = str(given.get("dialect")), given.get("body")
    if name not in DIALECTS or not isinstance(body, dict):
        raise BadRequest("A dialect and a body were expected.")
    origin = browser.own_origin(lifecycle.live().environ)
    return http.json_value(
        {
            "curl": snippets.curl(name, body, origin),
            "python": snippets.python(name, body, origin),
        }
    )


@for_scripts.get("/console/try/call")
def facts() -> Response:
    """What the ledger knows of a call that was tried: `{"found", "address", "why", "stages",
    "total", "tokens", "money", "account"}`; `{"found"}` alone if it does not know it. A call is
    written down before its last byte, so it is there when the page asks."""
    rows = rows_of(request.args.get("id", "")[:200])
    if not rows:
        return http.json_value({"found": False})
    row = rows[0]
    line = timeline.of_row(row)
    told = {
        "found": True,
        "address": live.address(row.request_id),
        "why": timeline.why(row.outcome, row.error),
        "stages": [(stage.name, timeline.spoken(stage.ms)) for stage in line.stages],
        "total": timeline.spoken(line.total_ms),
        "tokens": live.tokens(row),
        "money": live.money(row),
        "account": row.account,
    }
    return http.json_value(told)
