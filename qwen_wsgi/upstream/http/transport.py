"""Sends requests to upstreams: connection pool, headers, proxies, and errors of the connection."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import LocationParseError

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
    RequestHeaders,
    StreamedBody,
    is_stale,
)

#: An error body longer than this says nothing more.
ERROR_BODY_BYTES: Final = 64 * 1024

#: The setting that bounds the wait for an answer's head, and for a whole answer.
FIRST_BYTE: Final = "QWEN_PROXY_FIRST_BYTE_TIMEOUT"

#: The same for a call at Batch Chat.
FLEX: Final = "QWEN_PROXY_FLEX_TIMEOUT"

#: What a request is answered with; `requests` itself is known to this room alone.
Response = requests.Response

USER_AGENT: Final = f"qwen-proxy/{__version__}"


class _Adapter(HTTPAdapter):
    """The pool of connections to all upstreams.

    Requests are sent through the adapter and not through a `Session`: what a session adds (netrc,
    cookies, redirects, merged settings) is not wanted here and costs 170 µs a request (measured).
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": HTTPPool, "https": HTTPSPool}
        self._pools: dict[str, Any] = {}

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """The pool of a host: looked up and given its TLS settings once, not for every request."""
        origin = _origin(request.url)
        pool = self._pools.get(origin)
        if pool is None:
            pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
            super().cert_verify(pool, request.url, verify, cert)  # type: ignore[no-untyped-call]
            self._pools[origin] = pool
        return pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Done when the pool was made."""

    def request_url(self, request: Any, proxies: Any) -> str:
        """The path and query of the request's URL; the whole URL for a plain HTTP proxy."""
        if proxies:
            return super().request_url(request, proxies)
        return "/" + str(request.url).split("/", 3)[3]

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        try:
            response = _Response()
            response.status_code = resp.status
            response.headers = (
                CaseInsensitiveDict(resp.headers)
                if isinstance(resp, urllib3.BaseHTTPResponse)
                else resp.headers  # in lower case, as they are looked up here
            )
            response.raw = resp
            response.reason = resp.reason or ""
            response.request = req
            response.url = req.url or ""
            return response
        except BaseException:
            resp.close()  # nobody else knows it yet
            raise


class _Response(requests.Response):
    """A response without the cookie jar, whose lock costs more than the rest: cookies of an
    upstream are not used."""

    def __init__(self) -> None:
        self._content = False  # type: ignore[assignment]  # as requests marks "not read yet"
        self._content_consumed = False


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
    ) -> requests.Response:
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
        request = self._prepare(method, token, path, headers)
        if isinstance(body, bytes):
            request.body = body
            request.headers["Content-Type"] = "application/json"
            request.headers["Content-Length"] = str(len(body))
        elif body is not None:
            request.body = body  # type: ignore[assignment]  # the pool takes it as well
            request.headers["Content-Type"] = body.content_type
            request.headers["Transfer-Encoding"] = "chunked"
        return self._send(request, read_timeout_s, setting)

    def get(self, token: AccessToken, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        """GET; the status and the body. Both have to be there within `timeout_s`.

        Raises:
            UpstreamError, UpstreamTimeout: as `post`, and `read_all`.
        """
        end_s = time.monotonic() + timeout_s
        response = self._send(self._prepare("GET", token, path, {}), timeout_s)
        reader = BodyReader(response)
        try:
            return response.status_code, self.read_all(
                reader, end_s - time.monotonic(), timeout_s=timeout_s
            )
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
        self._adapter.close()

    def _prepare(
        self, method: str, token: AccessToken, path: str, headers: Mapping[str, str]
    ) -> requests.PreparedRequest:
        request = requests.PreparedRequest()
        request.method = method
        request.url = token.base_url + path
        sent = RequestHeaders(headers)
        sent.setdefault("User-Agent", USER_AGENT)
        sent["Accept-Encoding"] = "identity"  # the relay carries bytes, it does not unpack them
        if token.value:
            sent["Authorization"] = "Bearer " + token.value
        if token.cookies:
            sent["Cookie"] = token.cookies
        request.headers = sent  # type: ignore[assignment]  # a mapping is enough for the adapter
        request.hooks = {"response": []}
        return request

    def _send(
        self, request: requests.PreparedRequest, read_timeout_s: float, setting: str = ""
    ) -> requests.Response:
        headers: Any = request.headers  # ours, of `_prepare`
        try:
            try:
                return self._send_once(request, read_timeout_s, setting)
            except requests.ConnectionError as error:
                if not (headers.kept_connection and _stale(error)):
                    raise
                if not headers.unread and request.method != "GET":
                    raise _lost(error) from error
                forget_frames(error)  # urllib3's know it
            # The server had closed a kept connection: the request reached nobody, or does nothing.
            return self._send_once(request, read_timeout_s, setting)
        except requests.ConnectionError as error:
            if (shortage := shortage_of(error)) is not None:
                raise shortage.error() from error
            raise _unreachable(error) from error

    def _send_once(
        self, request: requests.PreparedRequest, read_timeout_s: float, setting: str
    ) -> requests.Response:
        proxies, verify = self.route(request.url or "")
        try:
            return self._adapter.send(
                request,
                stream=True,
                timeout=_timeout(self._connect_s, read_timeout_s),  # type: ignore[arg-type]  # not in its hints
                verify=verify,
                proxies=proxies,
            )
        except requests.ConnectTimeout:
            raise connection_error(
                "connect_timeout",
                f"The upstream did not accept a connection within {self._connect_s:g} s"
                f"{_by('QWEN_PROXY_CONNECT_TIMEOUT')}.",
            ) from None
        except requests.ReadTimeout:
            raise connection_error(
                "timeout",
                f"The upstream did not answer within {read_timeout_s:g} s{_by(setting)}.",
            ) from None
        except (requests.exceptions.InvalidURL, LocationParseError) as error:
            raise connection_error("bad_url", "The account's base URL cannot be used.") from error
        except requests.RequestException:
            raise
        except OSError as error:
            if (shortage := shortage_of(error)) is not None:
                raise shortage.error() from error
            # requests says so of a CA bundle (REQUESTS_CA_BUNDLE) that is not there.
            raise connection_error(
                "tls",
                "The proxy cannot make TLS connections: a file that its environment names is "
                "missing. The operator of this proxy has to check REQUESTS_CA_BUNDLE.",
            ) from error

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


@functools.lru_cache(maxsize=32)
def _timeout(connect_s: float, read_s: float) -> urllib3.Timeout:
    """urllib3 checks the numbers of each one that is made; there are but a few."""
    return urllib3.Timeout(connect=connect_s, read=read_s)


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


def _stale(error: requests.ConnectionError) -> bool:
    """Whether a connection ended without one byte of a response."""
    cause = error.args[0] if error.args else None
    return isinstance(cause, urllib3.exceptions.ProtocolError) and any(map(is_stale, cause.args))


def _lost(error: requests.ConnectionError) -> UpstreamError:
    """The error for a kept connection that ended when it was used: most likely it had been given
    up by the other end, but the upstream may have read the request."""
    made = _unreachable(error)
    assert made.failure is not None
    made.failure = replace(made.failure, scope=Scope.REQUEST, elsewhere=False, at_once=True)
    return made


def _unreachable(error: requests.ConnectionError) -> UpstreamError:
    if isinstance(error, requests.exceptions.SSLError):
        what, cause = "The TLS connection to the upstream failed", "tls"
    elif isinstance(error, requests.exceptions.ProxyError):
        what, cause = "The HTTP proxy in front of the upstream failed", "proxy"
    elif _stale(error):
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
    if isinstance(inner, urllib3.exceptions.NameResolutionError):
        return "its name does not resolve"
    if isinstance(cause := inner.__cause__ or inner.__context__, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return type(inner).__name__
