"""Flask without what nobody here needs and every call would pay for."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, cast

from flask import Flask, Request, Response, request
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

#: The member with the path of the endpoint, as people write it; "" for an unknown one.
ENDPOINT: Final = "qwen_wsgi.endpoint"

#: The member with a failure that Flask is to answer.
_FAILED: Final = "qwen_wsgi.failed"

#: The request that is being answered; each greenlet has its own. Flask's proxies take four calls.
_ENVIRON: Final[ContextVar[WSGIEnvironment | None]] = ContextVar("environ", default=None)

#: An argument in a rule of Flask's: `<id>`, `<path:id>`.
_ARGUMENT: Final = re.compile(r"<(?:\w+:)?(\w+)>")


@functools.cache
def path_of(rule: str) -> str:
    """The path of a route as people write it: `/v1/responses/{id}`."""
    return _ARGUMENT.sub(r"{\1}", rule)


def is_console(path: str) -> bool:
    """Whether a path is one of the console's pages."""
    return path == "/console" or path.startswith("/console/")


def spelt(path_info: str) -> str:
    """A path as its client spelt it, of the WSGI environment's PATH_INFO."""
    if not path_info.isascii():
        path_info = path_info.encode("latin-1").decode(errors="replace")
    return "/" + path_info.lstrip("/")


def asked() -> WSGIEnvironment:
    """The WSGI environment of the current request."""
    found = _ENVIRON.get()
    assert found is not None, "no request"
    return found


class _Straight(NamedTuple):
    """What Flask would find out anew for each request to a route: whom to call, in order."""

    before: tuple[Callable[[], Any], ...]
    view: Callable[[], Response]
    after: tuple[Callable[[Response], Response], ...]
    teardown: tuple[Callable[[BaseException | None], Any], ...]

    def answer(self) -> Response:
        """The answer to the current request. Raises what the view raises."""
        for first in self.before:
            if (found := first()) is not None:
                break
        else:
            found = self.view()
        response: Response = found
        for then in self.after:
            response = then(response)
        return response


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._straight: dict[tuple[str, str], _Straight] = {}

    def go_straight(self, method: str, paths: Iterable[str]) -> None:
        """Answer these routes without asking Flask whom to call, which it would find out anew for
        each request in a hundred calls. Call it last, when all is registered.

        Their views, and what comes before and after them, must not ask Flask for its `request`.
        What they fail with is answered by Flask, with all that it knows.
        """
        adapter = self.url_map.bind("")
        for path in paths:
            endpoint, arguments = adapter.match(path, method)
            assert not arguments, "a route with arguments"
            names = (None, *_blueprints_of(endpoint))
            self._straight[method, path] = _Straight(
                before=tuple(f for name in names for f in self.before_request_funcs.get(name, ())),
                view=cast(Callable[[], Response], self.view_functions[endpoint]),
                after=tuple(
                    f
                    for name in reversed(names)
                    for f in reversed(self.after_request_funcs.get(name, ()))
                ),
                teardown=tuple(
                    f
                    for name in reversed(names)
                    for f in reversed(self.teardown_request_funcs.get(name, ()))
                ),
            )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        """Answer a request. What its call holds is freed if the answer does not even begin: a
        server refuses some headers, and then knows nothing that it could close."""
        token = _ENVIRON.set(environ)
        try:
            return self.wsgi_app(environ, start_response)
        except BaseException:
            call = environ.get(CALL)
            if call is not None:
                call.close()
            raise
        finally:
            _ENVIRON.reset(token)

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, straight where its route is one of those that can be."""
        path: str = environ["PATH_INFO"]
        straight = self._straight.get((environ["REQUEST_METHOD"], path))
        if straight is None:
            return super().wsgi_app(environ, start_response)
        # A route without arguments.
        environ[ROUTE_PATH] = environ[ENDPOINT] = path
        ending: BaseException | None = None
        try:
            try:
                response = straight.answer()
            except CallCancelled as cancelled:
                forget_frames(cancelled)
                environ[_FAILED] = cancelled.error
            except Exception as error:
                environ[_FAILED] = error
            else:
                return response(environ, start_response)
        except BaseException as error:
            ending = error
            raise
        finally:
            if _FAILED not in environ:
                for end in straight.teardown:
                    end(ending)
            ending = None  # its frames know this one
        return super().wsgi_app(environ, start_response)

    def preprocess_request(self) -> Any:
        environ = request.environ
        failed: Exception | None = environ.pop(_FAILED, None)
        if failed is not None:
            try:
                raise failed
            finally:
                del failed  # its frames know this one
        rule = request.url_rule
        environ[ENDPOINT] = "" if rule is None else path_of(rule.rule)
        return super().preprocess_request()

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
        """The endpoints of the API by path: `POST /v1/responses`, `GET /v1/responses/{id}`, …; the
        pages of the console are for people."""
        found = {
            (path_of(rule.rule), method)
            for rule in self.url_map.iter_rules()
            for method in rule.methods or ()
            if method not in ("HEAD", "OPTIONS") and not is_console(rule.rule)
        }
        return [f"{method} {path}" for path, method in sorted(found)]


def _blueprints_of(endpoint: str) -> list[str]:
    """The blueprints of an endpoint, the outer ones first."""
    *parts, _ = endpoint.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def add_headers(headers: Headers, more: Iterable[tuple[str, str]]) -> None:
    """Add headers that hold no line ends; the server looks at each once more.

    `Headers.add` asks three times what a value may be, a microsecond for each header.
    """
    headers._list.extend(more)


class FinishedResponse(Response):
    """A response whose headers are as they will be sent, its length included: Flask need not copy
    and complete them."""

    @classmethod
    def of(
        cls, body: Iterable[bytes], headers: list[tuple[str, str]], *, status: int = 200
    ) -> FinishedResponse:
        """A response with these headers, which hold no line ends.

        werkzeug's constructor asks a dozen questions that have one answer here.
        """
        made = cls.__new__(cls)
        made.headers = Headers()
        made.headers._list = headers
        made._status, made._status_code = _status(status), status
        made.direct_passthrough = False
        made._on_close = []
        made.response = body
        return made

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        return self.headers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """As Flask's, for bodies of bytes: they are passed on as they are."""
        if environ["REQUEST_METHOD"] == "HEAD" or self.status_code in _BODILESS:
            return super().__call__(environ, start_response)
        start_response(self._status, self.headers._list)
        if self._on_close or not isinstance(self.response, list):
            return _Body(self)
        return self.response  # all of them are bytes


@functools.cache
def _status(code: int) -> str:
    """A status as HTTP writes it: `200 OK`."""
    return Response(status=code).status


#: Statuses whose answers have no body.
_BODILESS: Final = frozenset({*range(100, 200), 204, 304})


class _Body:
    """The body of a response, for the server, which closes it."""

    __slots__ = ("_response",)

    def __init__(self, response: Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response.response)  # type: ignore[arg-type]  # all of them are bytes

    def close(self) -> None:
        self._response.close()
