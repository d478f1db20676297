"""What all pages of the console share: who may see them, how they are made, and their headers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from flask import Blueprint, Response, g, render_template
from markupsafe import Markup, escape
from werkzeug.http import parse_cookie

from qwen_wsgi import __version__, text
from qwen_wsgi.access import connections
from qwen_wsgi.access.client_key import KeysUnavailable
from qwen_wsgi.api import body, http, lifecycle
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.console import browser, files
from qwen_wsgi.console.pages import PAGES
from qwen_wsgi.errors import ApiError, Forbidden, Unauthorized
from qwen_wsgi.settings import with_command
from qwen_wsgi.shortage import fault_error
from qwen_wsgi.state.database.console_sessions import LINK, Session
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable

log = logging.getLogger(__name__)

#: Of a form; the largest one has a few lists of models.
_LARGEST_FORM: Final = 64 * 1024
_MOST_FIELDS: Final = 200

#: Pages load what is here, and nothing else; nothing in a page is code; nobody shows them in a
#: frame. Pictures may be in the page itself (a QR code, what somebody attaches).
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; media-src 'self' data: blob:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

#: Of every page.
HEADERS: Final = {
    "content-security-policy": _POLICY,
    "cache-control": "no-store",
    # Not `no-referrer`: then browsers would not tell from where a form comes, either.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


#: Escaped: there is no tag in it.
_CODE: Final = re.compile(r"`([^`]+)`")


class SignedIn(NamedTuple):
    """The session of a request.

    Attributes:
        secret: of the cookie.
    """

    session: Session
    secret: str


class Unsigned(Exception):
    """Nobody is signed in: the page for that is shown."""


def blueprint(name: str, *, signed_in: bool = True) -> Blueprint:
    """A blueprint for a page.

    Args:
        signed_in: only for those who are.
    """
    made = _blueprint(name, signed_in)
    made.register_error_handler(ApiError, _failed)
    made.register_error_handler(DatabaseUnavailable, _database_failed)
    made.register_error_handler(Unsigned, _not_signed_in)
    made.register_error_handler(Exception, _fault)
    return made


def blueprint_for_scripts(name: str) -> Blueprint:
    """A blueprint for what the scripts of pages ask: failures are those of the API, in JSON."""
    made = _blueprint(name, signed_in=True)
    made.register_error_handler(Unsigned, _not_signed_in_script)
    return made


def _blueprint(name: str, signed_in: bool) -> Blueprint:
    made = Blueprint(f"console_{name}", __name__, template_folder=str(files.TEMPLATES))
    made.before_request(_check_request)
    if signed_in:
        made.before_request(_check_session)
    return made


# --- who may -------------------------------------------------------------------------------------


def _check_request() -> None:
    """Check where a request comes from, whoever makes it.

    Raises:
        ApiError: 403, or 503 while the server stops.
    """
    call = lifecycle.live()
    call.record.quiet = True
    check_browser()
    guard = call.services.guard
    if not guard.is_on_this_machine(call.environ) and not guard.has_admin():
        raise Forbidden(
            "The console is open to the server's own machine only, because there is no key of an "
            "admin. To open it to the network, make one on the server: "
            "`qwen-proxy keys add NAME --admin`. Then sign in with it, or by a link that "
            "`qwen-proxy console` makes.",
            code="admin_key_required",
        )
    if call.services.admission.draining:
        raise connections.stopping()


def check_browser() -> None:
    """Check that a request is for this server, and not made by another site's page.

    Raises:
        Forbidden: it is not.
    """
    call = lifecycle.live()
    if not call.services.guard.is_own_name(call.environ):
        host = str(call.environ.get("HTTP_HOST", ""))[:100]
        raise Forbidden(
            f"The console is not served by the name '{host}', because a page of another site could "
            "have given this server that name. Use its address, or add the name to "
            "QWEN_PROXY_ALLOWED_HOSTS (or QWEN_PROXY_PUBLIC_URL) and reload the server.",
            code="host_not_allowed",
        )
    if why := browser.forgery(call.environ):
        log.warning("console: a request was refused: %s path=%s", why, call.record.path)
        raise Forbidden(
            f"This request was refused, because {why}. Open the console by its address, and try "
            "again there.",
            code="origin_not_allowed",
        )


def _check_session() -> None:
    """Check that somebody is signed in, and that each change has the token of the session.

    Raises:
        Unsigned: nobody is.
        ApiError: 403: the token is missing; 400 or 413: as `form`.
    """
    found = current(active=True)
    if found is None:
        raise Unsigned
    g.signed_in = found
    call = lifecycle.live()
    if call.record.method in ("GET", "HEAD"):
        return
    # A script that sends something else than a form has the token in a header.
    fields = {} if browser.TOKEN_HEADER in call.environ else form()
    if not browser.has_token(call.environ, fields, found.secret):
        raise Forbidden(
            "This page is older than your session, so nothing was changed. Open it again, and "
            "repeat what you did.",
            code="csrf_token_wrong",
        )


def current(*, active: bool = False) -> SignedIn | None:
    """The session of the request, if there is one and its admin still is one.

    Args:
        active: a person asks; see `ConsoleSessions.find`.
    """
    return _session_of(lifecycle.live(), active)


def session_of(call: LiveCall) -> Callable[[], bool]:
    """Whether the session of a call goes on; for streams, which go on after their request."""
    return lambda: _session_of(call, False) is not None


def _session_of(call: LiveCall, active: bool) -> SignedIn | None:
    cookies = parse_cookie(call.environ.get("HTTP_COOKIE", ""))
    secret = cookies.get(browser.cookie_name(call.environ), "")
    if not secret or len(secret) > 100:
        return None
    services = call.services
    session = services.console_sessions.find(secret, active=active)
    if session is None:
        return None
    person = session.person
    if person != LINK and not services.guard.is_admin_still(
        person.client_id, person.key_digest, call.environ
    ):
        services.console_sessions.end(session.id)
        log.info("console: the session of %s ended, because its key did", person.client)
        return None
    return SignedIn(session, secret)


def signed_in() -> SignedIn:
    """The session of the request, on pages that need one."""
    found: SignedIn = g.signed_in
    return found


def form() -> Mapping[str, str]:
    """The fields of the request's form.

    Raises:
        ApiError: 400 or 413.
    """
    if "form" not in g:
        g.form = _read_form()
    found: Mapping[str, str] = g.form
    return found


def _read_form() -> dict[str, str]:
    call = lifecycle.live()
    if not lifecycle.has_body(call.environ):
        return {}
    call.admit()
    return body.page_form(
        call.environ,
        call.services.settings,
        max_bytes=_LARGEST_FORM,
        most_fields=_MOST_FIELDS,
    )


# --- what they get -------------------------------------------------------------------------------


def render(template: str, *, title: str, status: int = 200, **values: Any) -> Response:
    """A page.

    Args:
        title: of the window.
        values: for the template, besides those of all.
    """
    call = lifecycle.live()
    found: SignedIn | None = g.get("signed_in")
    html = render_template(
        f"{template}.html",
        title=title,
        pages=PAGES,
        path=call.environ["PATH_INFO"].rstrip("/"),
        person="" if found is None else found.session.person.client,
        token="" if found is None else browser.token_of(found.secret),
        asset=files.address_of,
        version=__version__,
        now=call.services.clock.now(),
        moment=text.moment,
        duration=text.duration,
        prose=prose,
        **values,
    )
    response = http.text(html, "text/html; charset=utf-8")
    response.status_code = status
    response.headers.extend(HEADERS)
    return response


def prose(text: str) -> Markup:
    """A text of ours or of anybody, with what stands in `backticks` as code: commands as their
    reader has to type them."""
    typed = with_command(text, lifecycle.live().services.settings.command)
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(typed))))


def redirect(path: str) -> Response:
    """Send the browser to one of our pages, by GET."""
    response = http.text("", "text/plain; charset=utf-8")
    response.status_code = 303
    response.headers.extend(HEADERS)
    response.headers["location"] = path
    return response


def _not_signed_in(error: Unsigned) -> Response:
    call = lifecycle.live()
    return render(
        "sign_in",
        title="Sign in",
        status=401,
        wanted=call.record.path if call.record.method == "GET" else "",
        problem="" if call.record.method == "GET" else _GONE,
        unsafe=is_unsafe(),
    )


def _not_signed_in_script(error: Unsigned) -> Response:
    failure = Unauthorized("Your session has ended. Sign in again.", code="session_ended")
    lifecycle.live().record.fail(failure)
    return http.error(failure)


_GONE: Final = "Your session has ended, so nothing was changed. Sign in and repeat what you did."


def is_unsafe() -> bool:
    """Whether what is typed here crosses a network that others may read."""
    call = lifecycle.live()
    here = call.services.guard.is_on_this_machine(call.environ)
    return not here and not browser.is_secure(call.environ)


def _failed(error: ApiError) -> Response:
    """A failure as a page: its message says what happened, what it means, what to do."""
    lifecycle.live().record.fail(error)
    if isinstance(error, KeysUnavailable):
        log.error("console: client keys cannot be used: %s", error)
    response = render("problem", title="Problem", status=error.status, message=error.message)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = http.retry_after(error.retry_after_s)
    return response


def _database_failed(error: DatabaseUnavailable) -> Response:
    log.error("console: %s", error)
    return _failed(
        ApiError(
            "The console cannot use the server's database now, so nobody can be signed in. The "
            f"server goes on serving its clients. {error}",
            status=503,
            retry_after_s=1 if error.passing else None,
        )
    )


def _fault(error: Exception) -> Response:
    from werkzeug.exceptions import HTTPException

    if isinstance(error, HTTPException):
        status = error.code or 500
        return _failed(ApiError(error.description or error.name, status=status))
    return _failed(fault_error(error, lifecycle.live().record.request_id))
