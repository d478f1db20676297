"""Sends requests to upstreams: connection pool, headers, proxies, and errors of the connection."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from qwen_wsgi import __version__
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import AnswerTooLarge, ApiError, Scope, UpstreamError, forget_frames
from qwen_wsgi.protocol.answer_text import AnswerSize, check_values
from qwen_wsgi.settings import Settings
from qwen_wsgi.shortage import shortage_of
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, BodyTooLarge, ReadTimeout
from qwen_wsgi.upstream.http.http1 import (
    HTTPPool,
    HTTPSPool,
    NotAnswered,
    Pool,
    PooledResponse,
    StreamedBody,
    is_stale,
    request_head,
)

#: An error body longer than this says nothing more.
ERROR_BODY_BYTES: Final = 64 * 1024

#: The setting that bounds the wait for an answer's head, and for a whole answer.
FIRST_BYTE: Final = "QWEN_PROXY_FIRST_BYTE_TIMEOUT"

#: A shorter body is not looked at for how much memory its values may take.
_SMALL_BYTES: Final = 64 * 1024

#: The same for a call at Batch Chat.
FLEX: Final = "QWEN_PROXY_FLEX_TIMEOUT"

#: What a request is answered with; `requests` itself is known to this room alone.
Response = PooledResponse | requests.Response

USER_AGENT: Final = f"qwen-proxy/{__version__}"


class _Adapter(HTTPAdapter):
    """Makes the pools of connections, and sends what goes through an HTTP proxy, which wants other
    request lines and headers."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": HTTPPool, "https": HTTPSPool}

    def pool_of(self, url: str, verify: bool | str) -> Any:
        """A pool for the origin of a URL, with its TLS settings."""
        request = requests.PreparedRequest()
        request.url = url
        pool = self.get_connection_with_tls_context(request, verify)
        self.cert_verify(pool, url, verify, None)  # type: ignore[no-untyped-call]
        return pool

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        try:
            response = _Response()
            response.status_code = resp.status
            response.headers = CaseInsensitiveDict(resp.headers)
            response.raw = resp
            response.reason = resp.reason or ""
            response.request = req
            response.url = req.url or ""
            return response
        except BaseException:
            resp.close()  # nobody else knows it yet
            raise


class _Response(requests.Response):
    """A response without the cookie jar: cookies of an upstream are not used."""

    def __init__(self) -> None:
        self._content = False  # type: ignore[assignment]  # as requests marks "not read yet"
        self._content_consumed = False


class _Road(NamedTuple):
    """How a base URL is reached.

    Attributes:
        pool: the connections to its origin; None if they go through an HTTP proxy.
        path: its path, without a slash at its end.
    """

    pool: Pool | None
    path: str


class Transport:
    """Sends requests over pooled connections. Shared by all greenlets of a worker."""

    def __init__(self, settings: Settings) -> None:
        self._connect_s = settings.connect_timeout_s
        self._max_answer_bytes = settings.max_answer_bytes
        self._adapter = _Adapter(
            pool_connections=64,
            # Connections above the pool's size are closed after use, and TLS is set up anew.
            pool_maxsize=settings.max_in_flight,
            max_retries=0,
            pool_block=False,
        )
        self._routes: dict[str, tuple[dict[str, str], bool | str]] = {}
        self._roads: dict[str, _Road] = {}

    def send(
        self,
        method: str,
        token: AccessToken,
        path: str,
        body: bytes | StreamedBody | None = None,
        *,
        headers: Mapping[str, str],
        read_timeout_s: float,
        setting: str = FIRST_BYTE,
    ) -> Response:
        """Send a request; returns as soon as the response's head is there, whatever its status.

        Args:
            body: bytes are JSON. A streamed one is sent as it comes, as fast as the upstream takes
                it; an answer that comes before its end ends it.
            setting: the name of the setting that says how long the head may take.

        Raises:
            UpstreamError: no connection, or it ended before a response (502).
            UpstreamTimeout: no head within `read_timeout_s` (504).
            Overloaded: we have run out of files or memory ourselves (503).
        """
        try:
            road = self._roads.get(token.base_url) or self._road(token.base_url)
            sent = _headers(token, headers, body)
            if road.pool is None:
                return self._send_by_proxy(
                    method, token.base_url + path, sent, body, read_timeout_s
                )
            lines = [f"{method} {road.path}{path} HTTP/1.1", f"Host: {road.pool.named}"]
            lines += [f"{name}: {value}" for name, value in sent.items()]
            head = request_head(lines)
            try:
                return road.pool.exchange(head, body, self._connect_s, read_timeout_s)
            except NotAnswered as error:
                if not (error.kept and _stale(error.failure)):
                    raise
                if not error.unread and method != "GET":
                    raise _lost(_as_requests(error.failure)) from error
                forget_frames(error)
            # The server had closed a kept connection: the request reached nobody, or does nothing.
            return road.pool.exchange(head, body, self._connect_s, read_timeout_s)
        except NotAnswered as error:
            raise self._explained(_as_requests(error.failure), read_timeout_s, setting) from error
        except (requests.RequestException, HTTPError, OSError) as error:
            raise self._explained(_as_requests(error), read_timeout_s, setting) from error

    def get(self, token: AccessToken, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        """GET; the status and the body. Both have to be there within `timeout_s`.

        Raises:
            UpstreamError, UpstreamTimeout: as `post`, and `read_all`.
        """
        end_s = time.monotonic() + timeout_s
        response = self.send("GET", token, path, headers={}, read_timeout_s=timeout_s, setting="")
        left_s = end_s - time.monotonic()
        return response.status_code, self.body_of(response, left_s, timeout_s=timeout_s)

    def body_of(
        self,
        response: Response,
        left_s: float,
        *,
        timeout_s: float,
        setting: str = "",
        size: AnswerSize | None = None,
    ) -> bytes:
        """`read_all` of a response, which is let go of however that ends."""
        if size is None and isinstance(response, PooledResponse):
            body = response.whole(min(self._max_answer_bytes, _SMALL_BYTES))
            if body is not None:
                return body
        reader = BodyReader(response)
        try:
            return self.read_all(reader, left_s, timeout_s=timeout_s, setting=setting, size=size)
        finally:
            reader.close()

    def read_all(
        self,
        reader: BodyReader,
        left_s: float,
        *,
        timeout_s: float,
        setting: str = "",
        size: AnswerSize | None = None,
    ) -> bytes:
        """Read the whole of an answer's body, which is JSON: at most as much as the setting allows,
        and nothing whose values would take a multiple of it.

        Args:
            left_s: how long it may still take, however many pieces it comes in.
            timeout_s: how long the whole answer may take, for the error.
            setting: the name of the setting that says so, if one does.
            size: counts this answer and others, which become one.

        Raises:
            AnswerTooLarge: it is larger, or its values are (502).
            UpstreamError: the connection broke (502).
            UpstreamTimeout: it did not come in time (504).
        """
        limit = self._max_answer_bytes
        try:
            body = reader.read_all(
                max(left_s, 0.001), limit=limit, count=None if size is None else size.add
            )
        except ReadTimeout:
            raise connection_error(
                "timeout",
                f"The upstream's answer was not complete within {timeout_s:g} s{_by(setting)}, so "
                "the call was given up.",
            ) from None
        except BodyTooLarge:
            raise AnswerTooLarge(
                f"is larger than the limit of {limit} bytes (QWEN_PROXY_MAX_ANSWER on the server)"
            ) from None
        except BodyBroken as error:
            raise broken(error) from error
        check_values(body, limit=limit)
        if size is not None:
            size.add_values(body)
        return body

    def close(self) -> None:
        """Close every pooled connection."""
        for road in self._roads.values():
            if road.pool is not None:
                road.pool.close()
        self._adapter.close()

    def _road(self, base_url: str) -> _Road:
        """How a base URL is reached: looked up, and given its TLS settings, once."""
        proxies, verify = self.route(base_url)
        proxied = select_proxy(base_url, proxies) is not None
        pool = None if proxied else self._adapter.pool_of(base_url, verify)
        path = base_url.split("/", 3)[3:]
        road = self._roads[base_url] = _Road(pool, f"/{path[0]}" if path else "")
        return road

    def _send_by_proxy(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | StreamedBody | None,
        read_timeout_s: float,
    ) -> Response:
        request = requests.PreparedRequest()
        request.method = method
        request.url = url
        request.headers = headers  # type: ignore[assignment]  # a mapping is enough for the adapter
        request.body = body  # type: ignore[assignment]  # urllib3 takes pieces as well
        request.hooks = {"response": []}
        proxies, verify = self.route(url)
        timeout = (self._connect_s, read_timeout_s)
        return self._adapter.send(
            request, stream=True, timeout=timeout, verify=verify, proxies=proxies
        )

    def _explained(self, error: Exception, read_timeout_s: float, setting: str) -> ApiError:
        """The client's error for a request without an answer."""
        if isinstance(error, requests.ConnectTimeout):
            return connection_error(
                "connect_timeout",
                f"The upstream did not accept a connection within {self._connect_s:g} s"
                f"{_by('QWEN_PROXY_CONNECT_TIMEOUT')}.",
            )
        if isinstance(error, requests.ReadTimeout):
            return connection_error(
                "timeout",
                f"The upstream did not answer within {read_timeout_s:g} s{_by(setting)}.",
            )
        if isinstance(error, requests.exceptions.InvalidURL | LocationParseError):
            return connection_error("bad_url", "The account's base URL cannot be used.")
        if (shortage := shortage_of(error)) is not None:
            return shortage.error()
        if isinstance(error, requests.RequestException):
            return _unreachable(error)
        # requests says so of a CA bundle (REQUESTS_CA_BUNDLE) that is not there.
        return connection_error(
            "tls",
            "The proxy cannot make TLS connections: a file that its environment names is "
            "missing. The operator of this proxy has to check REQUESTS_CA_BUNDLE.",
        )

    def route(self, url: str) -> tuple[dict[str, str], bool | str]:
        """Proxies and CA bundle for a host, by the usual environment variables; cached."""
        origin = _origin(url)
        route = self._routes.get(origin)
        if route is None:
            merged = requests.Session().merge_environment_settings(url, {}, None, None, None)
            route = (
                dict(merged["proxies"]),
                True if merged["verify"] is None else merged["verify"],
            )
            self._routes[origin] = route
        return route


def _headers(
    token: AccessToken, headers: Mapping[str, str], body: bytes | StreamedBody | None
) -> dict[str, str]:
    """The headers of a request, but Host."""
    sent = dict(headers)
    if "User-Agent" not in sent:
        sent["User-Agent"] = USER_AGENT
    sent["Accept-Encoding"] = "identity"  # the relay carries bytes, it does not unpack them
    if token.value:
        sent["Authorization"] = "Bearer " + token.value
    if token.cookies:
        sent["Cookie"] = token.cookies
    if isinstance(body, bytes):
        sent["Content-Type"] = "application/json"
        sent["Content-Length"] = str(len(body))
    elif body is not None:
        sent["Content-Type"] = body.content_type
        sent["Transfer-Encoding"] = "chunked"
    return sent


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


def silence(timeout_s: float, setting: str = "") -> UpstreamError:
    """The error for an upstream that sent nothing for too long.

    Args:
        setting: the name of the setting that says for how long, if one does.
    """
    return connection_error(
        "timeout",
        f"The upstream was silent for {timeout_s:g} s{_by(setting)}, so the call was given up.",
    )


def _by(setting: str) -> str:
    return f" ({setting} of this proxy)" if setting else ""


def broken(error: Exception) -> ApiError:
    """The error for a connection that ended in the middle of an answer."""
    if (shortage := shortage_of(error)) is not None:
        return shortage.error()
    return connection_error(
        "broken", f"The upstream's answer broke off ({error}). What came before is incomplete."
    )


def _as_requests(error: Exception) -> Exception:
    """A failure as requests says it, which tells what it means; what is none of urllib3's stays."""
    if not isinstance(error, HTTPError) or isinstance(error, LocationParseError):
        return error
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return requests.ConnectTimeout(error)
    if isinstance(error, ReadTimeoutError):
        return requests.ReadTimeout(error)
    if isinstance(error, SSLError):
        return requests.exceptions.SSLError(error)
    return requests.ConnectionError(error)


def _stale(failure: object) -> bool:
    """Whether a connection ended without one byte of a response, by urllib3's failure."""
    return isinstance(failure, ProtocolError) and any(map(is_stale, failure.args))


def _lost(error: Exception) -> UpstreamError:
    """The error for a kept connection that ended when it was used: most likely it had been given
    up by the other end, but the upstream may have read the request."""
    made = _unreachable(error)
    assert made.failure is not None
    made.failure = replace(made.failure, scope=Scope.REQUEST, elsewhere=False, at_once=True)
    return made


def _unreachable(error: Exception) -> UpstreamError:
    if isinstance(error, requests.exceptions.SSLError):
        what, cause = "The TLS connection to the upstream failed", "tls"
    elif isinstance(error, requests.exceptions.ProxyError):
        what, cause = "The HTTP proxy in front of the upstream failed", "proxy"
    elif error.args and _stale(error.args[0]):
        what, cause = "The upstream closed the connection without an answer", "closed"
    else:
        what, cause = "The upstream cannot be reached", "unreachable"
    return connection_error(cause, f"{what} ({_reason(error)}).")


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; never a URL, which may hold a secret."""
    inner: Any = error
    while True:
        deeper = getattr(inner, "reason", None)
        if not isinstance(deeper, BaseException):
            deeper = next((a for a in inner.args if isinstance(a, BaseException)), None)
        if deeper is None:
            break
        inner = deeper
    if isinstance(inner, NameResolutionError):
        return "its name does not resolve"
    if isinstance(cause := inner.__cause__ or inner.__context__, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__
