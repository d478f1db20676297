"""Signing in with a key or a one-time link, signing out, and the list of sessions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from flask import Response

from qwen_wsgi.access.client_key import digest_of
from qwen_wsgi.api import lifecycle
from qwen_wsgi.api.console import page
from qwen_wsgi.console import browser
from qwen_wsgi.console.pages import HOME, page_to_return_to
from qwen_wsgi.errors import ApiError, NotFound
from qwen_wsgi.net import ip_address
from qwen_wsgi.state.database.console_sessions import LINK, MOST_TRIES, SESSION_S, TRIES_S, Person

log = logging.getLogger(__name__)

_LONGEST_KEY: Final = 512

#: What became of a link that does not work.
_LINKS: Final = {
    "used": "This link was used already: each one works once. If it was not you who used it, look "
    "at the list of sessions. Make another one with `qwen-proxy console`.",
    "expired": "This link has expired: each one works for five minutes. Make another one with "
    "`qwen-proxy console`.",
    "unknown": "This is not a link of this server, or a part of it is missing. Make another one on "
    "the server with `qwen-proxy console`.",
}


class Wrong(ApiError):
    """What was offered does not let in."""

    status = 403
    type = "invalid_request_error"


blueprint = page.blueprint("sign_in", signed_in=False)
for_signed_in = page.blueprint("sessions")


@for_signed_in.route("/console/<path:unknown>")
def unknown_page(unknown: str) -> Response:
    """What is no page of the console; told to those who are signed in."""
    raise NotFound("The console has no such page.", code="unknown_url")


@blueprint.get("/console/sign-in")
def ask() -> Response:
    """The page that asks for a key."""
    if page.current() is not None:
        return page.redirect(HOME)
    return _asked()


@blueprint.post("/console/sign-in")
def sign_in() -> Response:
    """Sign in with a key of an admin."""
    fields = page.form()
    key, wanted = fields.get("key", "").strip(), fields.get("wanted", "")
    try:
        with _counted():
            person = _admin(key)
    except Wrong as error:
        return _asked(wanted, error)
    return _let_in(person, page_to_return_to(wanted))


@blueprint.get("/console/link")
def ask_link() -> Response:
    """The page of a one-time link. Its secret is behind the `#`, which browsers send to nobody: the
    page's script moves it into the form, and out of the address."""
    return page.render("link", title="Sign in", problem="")


@blueprint.post("/console/link")
def use_link() -> Response:
    """Spend a one-time link."""
    # Whoever has no script may have copied all of the address.
    secret = page.form().get("code", "").strip().rpartition("#")[2]
    try:
        with _counted():
            outcome = lifecycle.live().services.console_sessions.spend_link(secret)
            if outcome != "spent":
                raise Wrong(_LINKS[outcome], code=f"link_{outcome}")
    except Wrong as error:
        return page.render("link", title="Sign in", status=error.status, problem=error.message)
    return _let_in(LINK, HOME)


@for_signed_in.post("/console/sign-out")
def sign_out() -> Response:
    """End the session of the request."""
    found = page.signed_in()
    lifecycle.live().services.console_sessions.end(found.session.id)
    log.info("console: %s has signed out", found.session.person.client)
    return _forget(page.redirect("/console/sign-in"))


@for_signed_in.get("/console/sessions")
def sessions() -> Response:
    """Who is signed in."""
    return page.render(
        "sessions",
        title="Sessions",
        sessions=lifecycle.live().services.console_sessions.all(),
        own=page.signed_in().session.id,
    )


@for_signed_in.post("/console/sessions/end")
def end_session() -> Response:
    """End one of the sessions."""
    id, own = page.form().get("id", ""), page.signed_in().session
    if lifecycle.live().services.console_sessions.end(id):
        log.info("console: %s has ended the session %s", own.person.client, id)
    if id == own.id:
        return _forget(page.redirect("/console/sign-in"))
    return page.redirect("/console/sessions")


# --- what they share -----------------------------------------------------------------------------


def _asked(wanted: str = "", error: ApiError | None = None) -> Response:
    return page.render(
        "sign_in",
        title="Sign in",
        status=200 if error is None else error.status,
        wanted=wanted,
        problem="" if error is None else error.message,
        unsafe=page.is_unsafe(),
    )


def _admin(key: str) -> Person:
    """Whose key this is.

    Raises:
        Wrong: it is no key of an admin, or may not be used from here.
        ApiError: 503: that cannot be found out now.
    """
    call = lifecycle.live()
    if not key or len(key) > _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise Wrong("Please enter the key of an admin.", code="missing_api_key")
    # The key alone counts, whatever else the browser sends.
    asked: Mapping[str, Any] = {
        **{name: value for name, value in call.environ.items() if name not in _KEY_HEADERS},
        "HTTP_AUTHORIZATION": f"Bearer {key}",
    }
    try:
        client = call.services.guard.require_admin(asked)
    except ApiError as error:
        if error.status >= 500:
            raise
        raise Wrong(error.message, status=error.status, code=error.code) from None
    return Person(client.id, client.name, digest_of(key.encode()))


_KEY_HEADERS: Final = frozenset({"HTTP_X_API_KEY", "HTTP_X_QWEN_TOKEN", "HTTP_AUTHORIZATION"})


def _let_in(person: Person, path: str) -> Response:
    """Begin a session, and go on to a page."""
    call = lifecycle.live()
    environ, address = call.environ, _address()
    secret = call.services.console_sessions.begin(
        person, address=address, agent=str(environ.get("HTTP_USER_AGENT", ""))
    )
    log.info("console: %s has signed in address=%s", person.client, address)
    response = page.redirect(path)
    response.set_cookie(
        browser.cookie_name(environ),
        secret,
        max_age=SESSION_S,
        path="/",
        secure=browser.is_secure(environ),
        httponly=True,
        samesite="Strict",
    )
    return response


def _forget(response: Response) -> Response:
    environ = lifecycle.live().environ
    response.delete_cookie(
        browser.cookie_name(environ),
        path="/",
        secure=browser.is_secure(environ),
        httponly=True,
        samesite="Strict",
    )
    return response


def _address() -> str:
    """The caller's address, for the list of sessions and for counting; this machine is one, and so
    is a network of IPv6, in which one caller may have any number."""
    call = lifecycle.live()
    guard = call.services.guard
    if guard.is_on_this_machine(call.environ):
        return "this machine"
    found = guard.client_address(call.environ)
    parsed = ip_address(found)
    if parsed is not None and parsed.version == 6:
        network = int(parsed) >> 64 << 64
        return f"{type(parsed)(network)}/64"
    return found[:64]


@contextmanager
def _counted() -> Iterator[None]:
    """Count the try to sign in that is made meanwhile, if it is wrong.

    Raises:
        ApiError: 429: there were too many.
    """
    sessions, address = lifecycle.live().services.console_sessions, _address()
    number = sessions.begin_try(address)
    if number is None:
        raise ApiError(
            f"{MOST_TRIES} wrong tries within a minute came from your address. Wait a minute, and "
            "try again.",
            status=429,
            type="invalid_request_error",
            code="too_many_tries",
            retry_after_s=TRIES_S,
        )
    try:
        yield
    except Wrong as error:
        log.warning("console: a sign-in was refused (%s) address=%s", error.code, address)
        raise
    except BaseException:  # nobody knows whether it was wrong
        sessions.forget_try(number)
        raise
    sessions.forget_try(number)
