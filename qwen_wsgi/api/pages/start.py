"""GET /: what this server is; for browsers a page, for programs JSON.

The page tells everybody the state in a word and each client's recipe. Accounts and models are for
this machine and for holders of a key, who type it into the page: it comes in the body of a POST, so
that it stands in no address, and no page has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from flask import Blueprint, Response, current_app, request

from qwen_wsgi import __version__, text
from qwen_wsgi.access.permit import EVERYTHING, Permit
from qwen_wsgi.api import body, http, lifecycle
from qwen_wsgi.api.flask_app import Application
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.api.pages import html
from qwen_wsgi.api.pages.html import Html, between, joined, prose, table, tag
from qwen_wsgi.clients import known
from qwen_wsgi.clients.recipe import Client, origin_of
from qwen_wsgi.console import browser
from qwen_wsgi.errors import ApiError, Forbidden, Unauthorized
from qwen_wsgi.upstream.routing.account_status import READY

blueprint = Blueprint("start", __name__)
blueprint.before_request(lifecycle.refuse_pages)

#: Of the form with a key.
_FORM_BYTES: Final = 4096
_MOST_FIELDS: Final = 10
#: Of the list, so that the page stays small.
_MOST_MODELS: Final = 300

_WHAT: Final = (
    "Qwen models behind OpenAI's and Anthropic's APIs. OpenAI's clients want this address + /v1 as "
    "their base URL, Anthropic's the address alone."
)


@blueprint.get("/")
def index() -> Response:
    """Say what this is: JSON with the endpoints, or a page if a browser asks."""
    call = lifecycle.live()
    call.record.quiet = True
    accept = request.accept_mimetypes
    if accept["text/html"] > accept["application/json"]:
        response = _page(call)
    else:
        endpoints = cast(Application, current_app).endpoints()
        told = {"name": "qwen-proxy", "version": __version__, "what": _WHAT}
        response = http.json_value({**told, "endpoints": endpoints})
    response.headers.add("vary", "Accept")
    return response


@blueprint.post("/")
def with_key() -> Response:
    """The page for the holder of a key, which comes as the form's `key`."""
    call = lifecycle.live()
    call.record.quiet = True
    if not lifecycle.has_body(call.environ):
        return _page(call)
    call.admit()
    fields = body.page_form(
        call.environ, call.services.settings, max_bytes=_FORM_BYTES, most_fields=_MOST_FIELDS
    )
    return _page(call, fields.get("key", "").strip())


def _page(call: LiveCall, key: str = "") -> Response:
    refusal = None
    permit = None
    try:
        permit = _permit(call, key)
    except (Unauthorized, Forbidden) as error:
        refusal = error
    content = [*_state(call), *_recipes(call, permit)]
    if permit is not None:
        content += [*_accounts(call, permit), *_models(call, permit)]
    else:
        content += _form(refusal)
    response = html.response(
        html.page("qwen-proxy", *content), status=200 if refusal is None else refusal.status
    )
    response.headers.add("cache-control", "no-store")
    return response


def _permit(call: LiveCall, key: str) -> Permit | None:
    """What the caller may see; None if it may see nothing.

    Raises:
        ApiError: 401 or 403: its key is refused; 503: it cannot be checked now.
    """
    guard = call.services.guard
    environ = dict(call.environ)
    if key:
        environ.pop("HTTP_X_API_KEY", None)
        # As WSGI has the bytes of a header.
        environ["HTTP_AUTHORIZATION"] = f"Bearer {key}".encode().decode("latin-1")
    try:
        client = guard.identify(environ)
    except ApiError:
        if key:
            raise
        return EVERYTHING if guard.is_local(environ) else None
    if client.key is None:
        return EVERYTHING
    return Permit("", client.key.accounts, client.key.models)


def _state(call: LiveCall) -> list[Html]:
    services = call.services
    summary = services.statuses.summary()
    word = "draining" if services.admission.draining else summary.status
    kind = "good" if word in READY else "bad"
    state = tag("span", word.replace("_", " "), class_=f"state {kind}")
    places = {"/docs": "the API", "/openapi.json": "the same for programs", "/health": "health"}
    rules = {rule.rule.rstrip("/") for rule in current_app.url_map.iter_rules()}
    if "/console" in rules:
        places = {"/console": "console", **places}
    links = [tag("a", words, href=place) for place, words in places.items()]
    return [
        tag("h1", "qwen-proxy"),
        tag("p", state, f" · version {__version__} · ", *between(links, " · ")),
        tag("p", _WHAT),
    ]


def address_of(call: LiveCall) -> str:
    """The server's address as the browser knows it; the scheme is that of a trusted proxy, if there
    is one. Where the `Host` is no plain name, the operator's."""
    settings = call.services.settings
    try:
        return origin_of(browser.own_origin(call.environ))
    except ValueError:
        return settings.public_url or origin_of(text.base_url(settings))


def _recipes(call: LiveCall, permit: Permit | None) -> list[Html]:
    """How each client is set up, with this server's address."""
    origin = address_of(call)
    models = [] if permit is None else call.services.catalogue.models(permit=permit)
    return [
        tag("h2", "Clients"),
        tag("p", "The address of this server is ", tag("code", origin), "."),
        *(_recipe(client, origin, models) for client in known.CLIENTS.values()),
    ]


def _recipe(client: Client, origin: str, models: Iterable[Mapping[str, Any]]) -> Html:
    recipe = client.recipe(known.target_for(client, origin, models))
    parts: list[Html] = []
    for snippet in recipe.snippets:
        parts += [tag("p", snippet.place), tag("pre", tag("code", snippet.text))]
    parts += [tag("p", "Try it"), tag("pre", tag("code", recipe.command))]
    parts += [tag("p", prose(note)) for note in recipe.notes]
    return tag("details", tag("summary", client.title), *parts)


def _accounts(call: LiveCall, permit: Permit) -> list[Html]:
    services = call.services
    rows: list[tuple[str, ...]] = []
    for account, status in services.statuses.summary().accounts:
        if not permit.allows_account(account.name):
            continue
        again = _countdown(status.again_s) if status.again_s else Html()
        plan = (services.plans.report(account.name) or {"windows": ()})["windows"]
        told = [text.window_text(window) for window in plan]
        told += [
            joined(f"{each.model}: {each.cause}, again ", _countdown(each.seconds))
            for each in status.models
        ]
        state = tag("span", status.state.value, class_="good" if status.state.is_usable else "bad")
        cause = status.cause.replace("_", " ")
        rows.append((account.name, account.kind, state, joined(cause, " ", again), _lines(told)))
    return [
        tag("h2", "Accounts"),
        table(("Name", "Kind", "State", "Pause", "Plan and models"), rows)
        or tag("p", "There is none yet."),
    ]


def _lines(told: Iterable[str]) -> Html:
    return joined(*(tag("div", each) for each in told))


def _countdown(seconds: float) -> Html:
    return tag("time", f"in {text.duration(seconds)}", data_left=f"{seconds:.0f}")


def _models(call: LiveCall, permit: Permit) -> list[Html]:
    ids = [str(entry["id"]) for entry in call.services.catalogue.models(permit=permit)]
    shown = [tag("li", tag("code", id)) for id in ids[:_MOST_MODELS]]
    more = len(ids) - len(shown)
    return [
        tag("h2", f"Models ({len(ids)})"),
        tag("ul", *shown, class_="models"),
        *([tag("p", f"And {more} more: GET /v1/models.")] if more else []),
    ]


def _form(refusal: ApiError | None) -> list[Html]:
    told = [] if refusal is None else [tag("p", refusal.message, class_="bad", role="alert")]
    field = Html('<input name="key" type="password" autocomplete="off" required>')
    label = tag("label", "Your client key: ", field)
    return [
        tag("h2", "Accounts and models"),
        tag("p", "They are shown to holders of a client key. The key is not kept."),
        *told,
        tag("form", label, " ", tag("button", "Show"), method="post", action="/"),
    ]
