"""Composition root: settings → services → Flask application."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from qwen_wsgi import logs
from qwen_wsgi import settings as settings_module
from qwen_wsgi.access.guard import Guard
from qwen_wsgi.accounting.ledger import Ledger
from qwen_wsgi.api import (
    chat,
    completions,
    embeddings,
    health,
    http,
    lifecycle,
    messages,
    models,
    responses,
)
from qwen_wsgi.api.flask_app import Application
from qwen_wsgi.api.lifecycle import Admission
from qwen_wsgi.cli import text
from qwen_wsgi.clock import Clock, SystemClock
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import ApiError, NotFound
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.responses import ResponseStore
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.executor import Executor
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.retry import Retrier
from qwen_wsgi.upstream.routing.accounts import AccountBook
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from qwen_wsgi.upstream.routing.cooldown import Board
from qwen_wsgi.upstream.routing.router import Router

log = logging.getLogger(__name__)

#: How often logins are looked at while nobody calls; two `stat`s each.
MAINTENANCE_S: Final = 5.0
#: A renewal that was sent ends within its timeouts: 18 s, and 8 s for the repetition.
DRAIN_S: Final = 27.0
#: How soon a change of qwen-code's settings is seen. A look costs 12 µs, which a call need not pay.
LOOK_EVERY_S: Final = 0.25


class SandboxHost:
    """Starts the built-in sandbox in this process, once, when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None

    def base_url(self) -> str:
        """The running sandbox's OpenAI base URL."""
        with self._lock:
            if self._sandbox is None:
                # A visible pace for people; tests that need speed run their own sandbox.
                self._sandbox = Sandbox(chunk_interval_s=0.03).start()
            return self._sandbox.base_url

    def close(self) -> None:
        """Stop it, if it runs."""
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.stop()
                self._sandbox = None


class Maintenance:
    """Keeps the logins of an idle proxy fresh, so that the first call after a night need not wait.

    One thread per worker; which worker renews a login is settled by the login's locks.
    """

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin, in this process: after the fork."""
        threading.Thread(target=self._run, name="login-maintenance", daemon=True).start()

    def stop(self) -> None:
        """Make no further round."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(MAINTENANCE_S):
            try:
                for login in self._discovery.logins():
                    login.maintain()
            except Exception as error:  # the thread's top: the next round may go better
                log.error("login maintenance failed", exc_info=error)


@dataclass(frozen=True)
class Services:
    """Everything that requests share in one worker; kept in `app.extensions["qwen_wsgi"]`."""

    settings: Settings
    clock: Clock
    guard: Guard
    admission: Admission
    discovery: Discovery
    book: AccountBook
    catalogue: Catalogue
    router: Router
    client: UpstreamClient
    board: Board
    attempts: Retrier
    dispatcher: Executor
    transport: Transport
    ledger: Ledger
    responses: ResponseStore
    sandbox: SandboxHost
    maintenance: Maintenance

    def close(self) -> None:
        """The worker is going away: finish a renewal that was sent, free the rest."""
        self.maintenance.stop()
        logins = self.discovery.logins()
        for login in logins:
            login.refresher.drain(0)  # none of them starts anything more
        deadline = self.clock.monotonic() + DRAIN_S
        for login in logins:
            if not login.refresher.drain(max(0, deadline - self.clock.monotonic())):
                log.error("stopped in the middle of renewing the login %s", login.shown)
        self.transport.close()
        self.responses.close()
        self.sandbox.close()


def build_services(
    settings: Settings,
    clock: Clock | None = None,
    *,
    board: Board | None = None,
    responses_dir: Path | None = None,
) -> Services:
    """Wire everything together; opens no connection and starts no thread.

    Args:
        board: what workers share; None for who is no worker and must leave no file behind.
        responses_dir: where stored responses are; None keeps them in memory.
    """
    clock = clock or SystemClock()
    sandbox = SandboxHost()
    discovery = Discovery(settings, clock, look_every_s=LOOK_EVERY_S)
    book = AccountBook(discovery, sandbox=settings.sandbox, start_sandbox=sandbox.base_url)
    transport = Transport(settings)
    board = board or Board(None)
    catalogue = Catalogue(
        settings,
        book,
        transport,
        clock,
        refused=lambda account, model: router.has_refused(account, model),
    )
    router = Router(settings, book, catalogue, board)
    client = UpstreamClient(settings, transport, clock)
    attempts = Retrier(settings, router, board, clock)
    return Services(
        settings=settings,
        clock=clock,
        guard=Guard(settings),
        admission=Admission(settings.max_in_flight),
        discovery=discovery,
        book=book,
        catalogue=catalogue,
        router=router,
        client=client,
        board=board,
        attempts=attempts,
        dispatcher=Executor(settings, router, attempts, client, clock),
        transport=transport,
        ledger=Ledger(),
        responses=ResponseStore(
            responses_dir,
            clock,
            ttl_s=settings.responses_ttl_s,
            max_bytes=settings.responses_max_bytes,
        ),
        sandbox=sandbox,
        maintenance=Maintenance(discovery),
    )


def create_app(settings: Settings | None = None, *, services: Services | None = None) -> Flask:
    """Build the WSGI application.

    Args:
        settings: None reads the environment.
        services: None builds them from the settings.

    Raises:
        SettingsError: a setting is bad.
    """
    if services is None:
        settings = settings or settings_module.load()
        state = Path(settings.state_dir)
        services = build_services(settings, board=Board(state), responses_dir=state / "responses")
    configure_logs(services.settings)
    app = Application("qwen_wsgi", static_folder=None)
    app.extensions["qwen_wsgi"] = services
    app.before_request(partial(lifecycle.begin, services))
    app.before_request(_preflight)
    app.after_request(_allow_origin)
    app.after_request(lifecycle.finish_response)
    app.teardown_request(lifecycle.end)
    for module in (chat, completions, responses, messages, models, embeddings, health):
        app.register_blueprint(module.blueprint)
    app.register_error_handler(ApiError, _api_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _fault)
    return app


def started(app: Any) -> None:
    """Begin what a worker does by itself: keep logins fresh. `app` is as gunicorn holds it."""
    app.extensions["qwen_wsgi"].maintenance.start()


def announce(app: Any) -> None:
    """Print the start-up banner from a thread, once the model lists are known.

    Fetching them here also spares the first call that wait. `app` is the application, as gunicorn
    holds it.
    """
    threading.Thread(target=_print_banner, args=(app.extensions["qwen_wsgi"],), daemon=True).start()


def _print_banner(services: Services) -> None:
    accounts = services.book.accounts()
    models = services.catalogue.models()
    problems = services.discovery.problems()
    print(text.banner(services.settings, accounts, models, problems), file=sys.stderr, flush=True)


def configure_logs(settings: Settings) -> None:
    """Send the package's log to standard error, without the secrets that the settings hold."""
    logs.configure(
        level=settings.log_level,
        style=settings.log_format,
        secrets=(*settings.all_client_keys, settings.upstream_api_key),
    )


def _preflight() -> Response | None:
    """Answer CORS preflights without a key: browsers never send one with them."""
    call = lifecycle.live().call
    if call.method != "OPTIONS":
        return None
    call.quiet = True
    return Response(status=204)


def _allow_origin(response: Response) -> Response:
    live = lifecycle.live()
    guard, environ = live.services.guard, live.environ
    headers = response.headers
    if guard.origin_matters:
        headers.add("vary", "Origin")
    origin = environ.get("HTTP_ORIGIN")
    if not origin or not (allowed := guard.allowed_origin(origin)):
        return response
    headers["access-control-allow-origin"] = allowed
    headers["access-control-expose-headers"] = (
        "x-request-id, x-upstream-request-id, x-qwen-proxy-account, x-qwen-proxy-attempts, "
        "x-qwen-proxy-changed, server-timing, retry-after"
    )
    if live.call.method == "OPTIONS":
        headers["access-control-allow-methods"] = "GET, POST, DELETE, OPTIONS"
        headers["access-control-allow-headers"] = (
            environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS") or "*"
        )
        headers["access-control-max-age"] = "86400"
    return response


def _api_error(error: ApiError) -> Response:
    live = lifecycle.live()
    live.fail(error)
    return messages.error(live, error) if live.is_anthropic else http.error(error)


def _http_error(error: HTTPException) -> Response:
    """Unknown routes and methods, and what Flask itself finds wrong with a request."""
    if isinstance(error, MethodNotAllowed):
        response = _api_error(
            ApiError(
                f"Not allowed to {request.method} on {request.path}.",
                status=405,
                type="invalid_request_error",
                code="method_not_allowed",
            )
        )
        if error.valid_methods:
            response.headers["allow"] = ", ".join(sorted(error.valid_methods))
        return response
    if error.code == 404:
        return _api_error(
            NotFound(
                f"Invalid URL ({request.method} {request.path}). {_way_out()}",
                code="unknown_url",
            )
        )
    status = error.code or 500
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return _api_error(ApiError(error.description or error.name, status=status, type=kind))


def _way_out() -> str:
    """What the caller of an unknown URL may have meant: base URLs with and without `/v1` are easily
    mistaken for one another."""
    routes = current_app.url_map.bind("")
    for path in ("/v1" + request.path, request.path.removeprefix("/v1")):
        if len(path) > 1 and routes.test(path, request.method):
            return (
                f"Did you mean {path}? OpenAI's clients want the address of this server + /v1 as "
                "their base URL, Anthropic's the address alone."
            )
    return "GET / lists the endpoints."


def _fault(error: Exception) -> Response:
    """A fault of ours: the log has the traceback, the client the id to ask about."""
    call = lifecycle.live().call
    log.error("fault request_id=%s", call.request_id, exc_info=error)
    return _api_error(
        ApiError(
            "The proxy failed on this request. Its log has the details under request id "
            f"{call.request_id}.",
            code="internal_error",
        )
    )
