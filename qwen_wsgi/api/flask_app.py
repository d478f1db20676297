"""Flask without what nobody here needs and every call would pay for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

from flask import Flask, Request, Response
from flask.sessions import NullSession, SessionInterface
from werkzeug.datastructures import Headers
from werkzeug.routing import MapAdapter, Rule

from qwen_wsgi.errors import CallCancelled, forget_frames

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_SLASHES: Final = re.compile("//+")
_V1: Final = "/v1"
_REPEATED: Final = re.compile("(?:/v1)+(?=/v1/)")

#: The member of the WSGI environment with the path of the route, as `Application.route_path` spells
#: it; the client's own spelling stays in PATH_INFO.
ROUTE_PATH: Final = "qwen_wsgi.route_path"

#: The member of the WSGI environment with the call that a request is: `closed` and `close`.
CALL: Final = "qwen_wsgi.call"

#: An argument in a rule of Flask's: `<id>`, `<path:id>`.
_ARGUMENT: Final = re.compile(r"<(?:\w+:)?(\w+)>")


@functools.cache
def path_of(rule: str) -> str:
    """The path of a route as people write it: `/v1/responses/{id}`."""
    return _ARGUMENT.sub(r"{\1}", rule)


class _NoSessions(SessionInterface):
    """The same empty session for everybody, that nobody can write to."""

    _session: ClassVar[NullSession] = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._session


class _Rule(Rule):
    """A route that is matched, and never written into a link.

    werkzeug compiles two functions for each route that put its URL together, half a millisecond a
    route: nine tenths of the time in which an application is made. Another name in a later version
    only brings that time back.
    """

    def _compile_builder(self, append_unknown: bool = True) -> Any:
        return _no_url


def _no_url(*values: Any) -> Any:
    raise NotImplementedError("no URLs of routes are made here")


class Application(Flask):
    """Flask without the questions that have one answer here: whether a function is a coroutine
    (seven times a call), which session a client has, and by which host name it came."""

    session_interface = _NoSessions()
    url_rule_class = _Rule

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        """Answer a request. What its call holds is freed if the answer does not even begin: a
        server refuses some headers, and then knows nothing that it could close."""
        try:
            return self.wsgi_app(environ, start_response)
        except BaseException:
            call = environ.get(CALL)
            if call is not None:
                call.close()
            raise

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def dispatch_request(self) -> Any:
        """Answer a request, also one that somebody ends while it is answered."""
        try:
            return super().dispatch_request()
        except CallCancelled as cancelled:
            forget_frames(cancelled)
            raise cancelled.error from None

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Routes are the same under every host, and for every spelling of their paths."""
        if request is None:
            return super().create_url_adapter(None)
        path = request.environ[ROUTE_PATH] = self.route_path(request.path)
        return MapAdapter(self.url_map, "", "/", "", "http", path, request.method)

    def route_path(self, path: str) -> str:
        """The path as the routes spell it.

        A base URL with a slash at its end makes `/v1//chat/completions`; one with or without `/v1`
        where a client wants the other makes `/v1/v1/messages` or `/chat/completions`; some clients
        end each path with a slash. All are understood, and none is redirected: not every client
        sends its body again.
        """
        if "//" in path:
            path = _SLASHES.sub("/", path)
        if path.endswith("/") and len(path) > 1:
            path = path[:-1]
        if path.startswith("/v1/v1/"):
            path = _REPEATED.sub("", path)
        if not path.startswith("/v1/") and path.split("/", 2)[1] in self._below_v1:
            path = _V1 + path
        return path

    @cached_property
    def _below_v1(self) -> frozenset[str]:
        """First segments of paths that exist only below `/v1`: `chat`, `models`, …"""
        segments = [rule.rule.split("/") for rule in self.url_map.iter_rules()]
        return frozenset(each[2] for each in segments if each[1] == "v1") - {
            each[1] for each in segments
        }

    def endpoints(self) -> list[str]:
        """The endpoints by path: `POST /v1/responses`, `GET /v1/responses/{id}`, …"""
        found = {
            (path_of(rule.rule), method)
            for rule in self.url_map.iter_rules()
            for method in rule.methods or ()
            if method not in ("HEAD", "OPTIONS")
        }
        return [f"{method} {path}" for path, method in sorted(found)]


class FinishedResponse(Response):
    """A response whose headers are as they will be sent, its length included: Flask need not copy
    and complete them."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        return self.headers
