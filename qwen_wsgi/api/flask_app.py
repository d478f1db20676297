"""Flask without what nobody here needs and every call would pay for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from flask import Flask, Request, Response
from flask.sessions import NullSession, SessionInterface
from werkzeug.datastructures import Headers
from werkzeug.routing import MapAdapter

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

_SLASHES: Final = re.compile("//+")


class _NoSessions(SessionInterface):
    """The same empty session for everybody, that nobody can write to."""

    _session: ClassVar[NullSession] = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._session


class Application(Flask):
    """Flask without the questions that have one answer here: whether a function is a coroutine
    (seven times a call), which session a client has, and by which host name it came."""

    session_interface = _NoSessions()

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Routes are the same under every host.

        A base URL with a slash at its end makes `/v1//chat/completions`. It is understood, and not
        redirected: not every client sends its body again.
        """
        if request is None:
            return super().create_url_adapter(None)
        path = request.path
        if "//" in path:
            path = _SLASHES.sub("/", path)
        return MapAdapter(self.url_map, "", "/", "", "http", path, request.method)


class FinishedResponse(Response):
    """A response whose headers are as they will be sent, its length included: Flask need not copy
    and complete them."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        return self.headers
