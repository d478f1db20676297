"""The two OAuth endpoints of a Qwen login: one request each, and what its outcome proves.

A refresh token is good for one use (RFC 6749 §6 with rotation), so the question that every failure
must answer is whether the token may have been spent. Nothing here repeats a request, and nothing
here is kept between two: a connection that died idle would make every failure ambiguous.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection

from qwen_wsgi import __version__
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import endpoint
from qwen_wsgi.credentials.document import MAX_DATE_MS
from qwen_wsgi.errors import QwenProxyError
from qwen_wsgi.settings import mask

#: Where the real endpoints are.
DEFAULT_ORIGIN: Final = "https://chat.qwen.ai"
#: qwen-code's, public; a login belongs to the client that it was made with.
CLIENT_ID: Final = "f0304373b74a44d2b584a3fb70ca9e56"
SCOPE: Final = "openid profile email model.completion"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
#: Life of an access token whose answer does not say. Seconds.
DEFAULT_LIFE_S: Final = 30 * 60.0
#: Life of a device code whose answer does not say. Seconds.
DEFAULT_CODE_LIFE_S: Final = 15 * 60.0
#: A clock that is wrong by more is worth a warning: tokens would be used too long. Seconds.
WRONG_CLOCK_S: Final = 60.0
#: No answer of these endpoints is ever longer.
MAX_BODY_BYTES: Final = 1024 * 1024
#: How much of a page in place of an answer is shown.
PREVIEW_CHARS: Final = 256

#: (connect, read); together the longest that a request takes. Seconds.
Timeout = tuple[float, float]
_TIMEOUT_S: Final[Timeout] = (3.05, 15.0)
_USER_AGENT: Final = f"qwen-proxy/{__version__}"
#: What may be a token in a page: longer than any word that helps to understand it.
_TOKEN_LIKE: Final = re.compile(r"[A-Za-z0-9._~+/=%-]{16,}")
_SPACE: Final = re.compile(r"\s+")
_NUMBER: Final = re.compile(r"\s*[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\s*", re.ASCII)
#: The error words of RFC 6749 §5.2 and RFC 8628 §3.5, and what the real service adds. Others are
#: not shown: the word is the server's, and could be anything.
_WORDS: Final = frozenset(
    {
        "access_denied",
        "authorization_pending",
        "expired_token",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "rate_limit_exceeded",
        "server_error",
        "slow_down",
        "temporarily_unavailable",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
#: Errors that say nothing about the token, although they may come with status 400.
_PASSING: Final = frozenset({"server_error", "temporarily_unavailable"})
_TOO_OFTEN: Final = frozenset({"rate_limit_exceeded", "slow_down"})


class OAuthFailure(QwenProxyError):
    """No answer that can be used. `str()` says why, as a clause without a full stop or a secret.

    Attributes:
        status: of the HTTP response; None when there was none.
        page: a web page came in place of JSON: a firewall, a gateway, or a portal.
    """

    def __init__(self, reason: str, *, status: int | None = None, page: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.page = page


class NotSent(OAuthFailure):
    """Not one byte of the request left: the token is as good as before, try again freely."""


class Ambiguous(OAuthFailure):
    """The request may have been carried out, and its answer is lost."""


class Rejected(OAuthFailure):
    """The endpoint says that this token, or device code, is not good.

    Attributes:
        word: OAuth's error code, if it is a known one, else empty.
    """

    def __init__(self, reason: str, *, status: int | None = None, word: str = "") -> None:
        super().__init__(reason, status=status)
        self.word = word


class Denied(Rejected):
    """The person said no."""


class Expired(Rejected):
    """The device code is too old, or was used."""


class Throttled(OAuthFailure):
    """Too many requests; nothing was carried out.

    Attributes:
        retry_after_s: how long to wait, if the endpoint said so.
    """

    def __init__(self, reason: str, *, status: int, retry_after_s: float | None) -> None:
        super().__init__(reason, status=status)
        self.retry_after_s = retry_after_s


class Refused(OAuthFailure):
    """Somebody on the way said no (firewall, wrong address); it says nothing about the token."""


@dataclass(frozen=True, repr=False)
class TokenAnswer:
    """A new pair of tokens. `sent_` is just before the request left, so what is computed from it is
    early rather than late.

    Attributes:
        refresh_token: None: the old one stays good.
        resource_url: None: as before.
        expires_in_s: None when missing or no sensible number; see DEFAULT_LIFE_S.
        clock_skew_s: the server's clock minus ours; None unless they differ by over WRONG_CLOCK_S.
    """

    access_token: str
    token_type: str
    refresh_token: str | None
    resource_url: str | None
    expires_in_s: float | None
    sent_wall_ms: int
    sent_boottime_s: float
    received_wall_ms: int
    clock_skew_s: float | None

    def __repr__(self) -> str:
        refresh = None if self.refresh_token is None else mask(self.refresh_token)
        return (
            f"TokenAnswer({mask(self.access_token)!r}, refresh_token={refresh!r}, "
            f"resource_url={self.resource_url!r}, expires_in_s={self.expires_in_s})"
        )

    @property
    def life_s(self) -> float:
        """How long the access token is good for, counted from `sent_`."""
        return DEFAULT_LIFE_S if self.expires_in_s is None else self.expires_in_s

    @property
    def expires_at_ms(self) -> int:
        """Wall clock, as `expiry_date` has it."""
        return int(min(self.sent_wall_ms + self.life_s * 1000, MAX_DATE_MS))


@dataclass(frozen=True, repr=False)
class DeviceCode:
    """What a person needs to confirm a login, and the secret to ask for it (RFC 8628 §3.2).

    Attributes:
        url: with the code in it, if the service gave such a one.
        interval_s: the least time between two polls; None when the service does not say.
    """

    device_code: str
    user_code: str
    url: str
    expires_in_s: float
    interval_s: float | None

    def __repr__(self) -> str:
        return f"DeviceCode({self.user_code!r}, {self.url!r}, expires_in_s={self.expires_in_s})"


@dataclass(frozen=True)
class Pending:
    """Nobody has confirmed yet."""


@dataclass(frozen=True)
class SlowDown:
    """Poll less often, from now on."""


class TokenEndpoint:
    """Asks for tokens. Holds no state and no connection; safe for any number of threads.

    Every method makes one request on a connection of its own, follows no redirect, reads proxies
    and CA bundle from the environment as `requests` does, and ends within the sum of its timeouts
    (as far as the system's name resolution and TLS handshake do).
    """

    def __init__(
        self,
        origin: str,
        *,
        clock: Clock,
        session_factory: Callable[[], requests.Session] = requests.Session,
        boottime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """
        Args:
            origin: e.g. `https://chat.qwen.ai`; plain http towards this machine only.
            session_factory: gives proxies and TLS settings; nothing is sent through the session.
            boottime: seconds that never step and go on while the machine is suspended.

        Raises:
            ValueError: why the origin cannot be used.
        """
        self._origin = endpoint.base_url(origin)
        if self._origin.startswith("http:") and not endpoint.is_local(self._origin):
            raise ValueError("it is plain http to another machine, which would show tokens to all")
        self._clock = clock
        self._session_factory = session_factory
        self._boottime = boottime

    @property
    def host(self) -> str:
        """Host and port, for people."""
        return endpoint.host_of(self._origin)

    def refresh(
        self,
        refresh_token: str,
        *,
        timeout_s: Timeout = _TIMEOUT_S,
        before_send: Callable[[], None] = lambda: None,
    ) -> TokenAnswer:
        """Spend a refresh token.

        Args:
            before_send: called when the connection stands and before the first byte leaves; it may
                raise `NotSent` to keep the token.

        Raises:
            NotSent, Ambiguous, Rejected, Throttled, Refused: see there.
        """
        fields = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_id": CLIENT_ID,
        }
        reply = self._post("token", fields, timeout_s, before_send)
        if reply.status != HTTPStatus.OK:
            raise reply.failure()
        return self._tokens(reply)

    def device_code(self, challenge: str, *, timeout_s: Timeout = _TIMEOUT_S) -> DeviceCode:
        """Begin a login.

        Args:
            challenge: of PKCE, by method S256 (RFC 7636 §4.2).

        Raises:
            NotSent, Ambiguous, Rejected, Throttled, Refused: see there.
        """
        fields = {
            "client_id": CLIENT_ID,
            "scope": SCOPE,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        reply = self._post("device/code", fields, timeout_s)
        if reply.status != HTTPStatus.OK:
            raise reply.failure()
        code, user_code = _text(reply.json, "device_code"), _text(reply.json, "user_code")
        url = _text(reply.json, "verification_uri_complete") or _text(
            reply.json, "verification_uri"
        )
        # They go to a terminal and to a browser: no control characters, and no other scheme.
        shown = user_code.isprintable() and url.isascii() and url.isprintable() and " " not in url
        if not (code and user_code and shown and url.startswith(("https://", "http://"))):
            raise reply.unusable("without a code and an address that can be used")
        return DeviceCode(
            code,
            user_code,
            url,
            _positive(reply.json.get("expires_in")) or DEFAULT_CODE_LIFE_S,
            _positive(reply.json.get("interval")),
        )

    def poll(
        self, device_code: str, verifier: str, *, timeout_s: Timeout = _TIMEOUT_S
    ) -> TokenAnswer | Pending | SlowDown:
        """Ask whether a login has been confirmed (RFC 8628 §3.4).

        Raises:
            Denied, Expired: the end of this device code.
            NotSent, Ambiguous, Rejected, Throttled, Refused: see there.
        """
        fields = {
            "grant_type": DEVICE_GRANT,
            "client_id": CLIENT_ID,
            "device_code": device_code,
            "code_verifier": verifier,
        }
        reply = self._post("token", fields, timeout_s)
        if reply.status == HTTPStatus.OK:
            if "access_token" not in reply.json and reply.json.get("status") == "pending":
                return Pending()
            return self._tokens(reply)
        if 400 <= reply.status < 500:
            if reply.word == "authorization_pending":
                return Pending()
            # 429 as the service has it, 400 as RFC 8628 §3.5 has it.
            if reply.word == "slow_down":
                return SlowDown()
            if reply.word == "access_denied":
                raise Denied("the login was denied", status=reply.status, word=reply.word)
            unauthorized = reply.status == HTTPStatus.UNAUTHORIZED and reply.json
            if reply.word == "expired_token" or unauthorized:
                raise Expired("the code has expired", status=reply.status, word=reply.word)
        raise reply.failure()

    def _tokens(self, reply: _Reply) -> TokenAnswer:
        access_token = _text(reply.json, "access_token")
        if not access_token:
            raise reply.unusable("without an access token")
        return TokenAnswer(
            access_token,
            _text(reply.json, "token_type") or "Bearer",
            _text(reply.json, "refresh_token") or None,
            _text(reply.json, "resource_url") or None,
            _positive(reply.json.get("expires_in")),
            int(reply.sent.wall_s * 1000),
            reply.sent.boottime_s,
            int(reply.received_s * 1000),
            _skew(reply.date_s, reply.sent.wall_s, reply.received_s),
        )

    def _post(
        self,
        path: str,
        fields: Mapping[str, str],
        timeout_s: Timeout,
        before_send: Callable[[], None] = lambda: None,
    ) -> _Reply:
        begun = self._moment()
        wire = _Wire(before_send, self._moment)
        adapter = _Adapter(wire)
        timer = threading.Timer(sum(timeout_s), wire.end)
        timer.daemon = True
        timer.start()
        try:
            response = self._send(adapter, f"/api/v1/oauth2/{path}", fields, timeout_s)
            body = _read(response.raw)
            return _Reply(
                response.status_code,
                dict(CaseInsensitiveDict(response.headers).lower_items()),
                body,
                secrets=[v for k, v in fields.items() if k in _SECRET_FIELDS],
                sent=wire.sent or begun,
                received_s=self._clock.now(),
            )
        except OAuthFailure:
            raise
        except Exception as error:
            # Whatever it was: what counts is whether the token may have left, and only the wire
            # knows. The exceptions do not: a time-out of the TLS handshake is a ReadTimeout.
            reason = "it took too long" if wire.ended else _reason(error)
        finally:
            timer.cancel()
            adapter.close()
        # Not inside the handler: the exception of `requests` has the request in it, with the token.
        if wire.watched and wire.sent is None:
            raise NotSent(f"{self.host} cannot be reached: {reason}")
        raise Ambiguous(f"{self.host} gave no answer: {reason}")

    def _send(
        self, adapter: _Adapter, path: str, fields: Mapping[str, str], timeout_s: Timeout
    ) -> requests.Response:
        # Prepared by hand and sent through the adapter: a session would add what netrc says for
        # the host, and cookies.
        request = requests.Request(
            "POST",
            self._origin + path,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Content-Type": "application/x-www-form-urlencoded",
                "User-Agent": _USER_AGENT,
                "x-request-id": str(uuid.uuid4()),
            },
            data=urlencode(fields),
        ).prepare()
        with self._session_factory() as session:
            found = session.merge_environment_settings(request.url or "", {}, True, None, None)
        return adapter.send(
            request,
            timeout=timeout_s,
            stream=True,
            verify=True if found["verify"] is None else found["verify"],
            cert=found["cert"],
            proxies=dict(found["proxies"]),
        )

    def _moment(self) -> _Moment:
        return _Moment(self._clock.now(), self._boottime())


#: Fields of our requests that must not be seen in a preview of the answer.
_SECRET_FIELDS: Final = frozenset({"refresh_token", "device_code", "code_verifier"})


@dataclass(frozen=True)
class _Moment:
    wall_s: float
    boottime_s: float


class _Wire:
    """Knows whether the request may have left, and ends one that takes too long.

    A server that sends a byte now and then would otherwise hold the login's locks for ever: the
    timeouts of sockets begin anew with each byte.
    """

    def __init__(self, before_send: Callable[[], None], moment: Callable[[], _Moment]) -> None:
        self._before_send = before_send
        self._moment = moment
        self._lock = threading.Lock()
        self._sock: Any = None
        #: The connection tells us what it sends. Otherwise (a `requests` that makes connections in
        #: another way) `sent` being None proves nothing.
        self.watched = False
        self.sent: _Moment | None = None
        self.ended = False

    def sending(self, sock: Any) -> None:
        """Called before bytes of the request are written.

        Raises:
            NotSent: nothing was written yet, and it is too late now.
        """
        if self.sent is not None:
            return
        self._before_send()
        with self._lock:
            if self.ended:
                raise NotSent("it took too long to connect")
            self._sock = sock
            self.sent = self._moment()

    def end(self) -> None:
        """Stop the exchange; the thread that waits for the answer sees its connection end."""
        with self._lock:
            self.ended = True
            sock = self._sock
        # The plain socket's: that of TLS takes the socket's TLS state away under its reader, which
        # then reads on without. TypeError: TLS inside TLS (an https proxy) is no socket.
        with suppress(OSError, TypeError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Watched(HTTPConnection):
    """Mixed into whatever kind of connection is used, with `wire` as an attribute of the class."""

    wire: _Wire
    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        try:
            super().connect()
        finally:
            self._connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        # While it connects, what is sent is CONNECT to a proxy.
        if not self._connecting:
            self.wire.sending(self.sock)
        super().send(data)


class _Adapter(HTTPAdapter):
    """One connection for one request."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._wire = wire

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        self._wire.watched = True
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        # Made of the pool's own class: that one knows TLS or SOCKS.
        pool.ConnectionCls = type("Watched", (_Watched, pool.ConnectionCls), {"wire": self._wire})
        return pool


class _Reply:
    """A response, and which failure it is."""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        secrets: list[str],
        sent: _Moment,
        received_s: float,
    ) -> None:
        self.status = status
        self.sent = sent
        self.received_s = received_s
        self._headers = headers
        self._secrets = secrets
        self._body = body
        self._is_json = False
        #: Empty when the body is no JSON object.
        self.json: Mapping[str, Any] = {}
        with suppress(ValueError, RecursionError):
            value = json.loads(body.decode("utf-8-sig"))
            self._is_json = True
            self.json = value if isinstance(value, dict) else {}
        error = self.json.get("error")
        #: OAuth's error code, if it is a known one.
        self.word = error if isinstance(error, str) and error in _WORDS else ""

    @property
    def is_page(self) -> bool:
        """Whether it is something to look at in a browser."""
        html = "html" in self._headers.get("content-type", "").lower()
        return not self._is_json and (html or self._body.lstrip()[:1] == b"<")

    @property
    def date_s(self) -> float | None:
        """The server's clock."""
        return _http_date_s(self._headers.get("date", ""))

    def unusable(self, what: str) -> OAuthFailure:
        """What a success that is none means."""
        return Ambiguous(f"{self._shown()} {what}", status=self.status, page=self.is_page)

    def failure(self) -> OAuthFailure:
        """What a response other than 200 means."""
        status, shown = self.status, self._shown()
        if status >= 500 or status < 300 or self.word in _PASSING:
            return Ambiguous(shown, status=status, page=self.is_page)
        if status == HTTPStatus.TOO_MANY_REQUESTS or self.word in _TOO_OFTEN:
            return Throttled(shown, status=status, retry_after_s=self._retry_after_s())
        if self._is_rejection():
            return Rejected(shown, status=status, word=self.word)
        return Refused(shown, status=status, page=self.is_page)

    def _is_rejection(self) -> bool:
        """Only what the endpoint itself says about the token, which it says in JSON.

        A firewall uses 400 and 401, too, and a response cut in its headers may look like an empty
        one. To take a good token for a bad one costs a login; the contrary costs a few requests.
        """
        if self.status == HTTPStatus.BAD_REQUEST:
            error = self.json.get("error")
            return isinstance(error, str) and bool(error)
        return self.status == HTTPStatus.UNAUTHORIZED and bool(self.json)

    def _retry_after_s(self) -> float | None:
        raw = self._headers.get("retry-after", "")
        if (seconds := _positive(raw)) is not None:
            return seconds
        at_s = _http_date_s(raw)
        if at_s is None:
            return 0.0 if raw.strip() == "0" else None
        # The server's date minus the server's clock: ours may be wrong.
        now_s = self.received_s if self.date_s is None else self.date_s
        return max(0.0, at_s - now_s)

    def _shown(self) -> str:
        """The response for a log: status and error code, or a look at what is no JSON."""
        if self._is_json:
            return f"status {self.status}" + (f" {self.word}" if self.word else "")
        kind = _plain(self._headers.get("content-type", "no content type"), 64)
        text = self._body[: 64 * 1024].decode("utf-8", "replace")
        for secret in self._secrets:
            text = text.replace(secret, "…")
        text = _plain(_TOKEN_LIKE.sub("…", text), PREVIEW_CHARS)
        return f"status {self.status} ({kind}" + (f": {text!r})" if text else ", empty)")


def _read(raw: Any) -> bytes:
    """The body, or as much of it as an answer can have."""
    body = b""
    # In pieces: only the read that finds the end of the connection tells that it came too early.
    while len(body) < MAX_BODY_BYTES:
        part = raw.read(min(65_536, MAX_BODY_BYTES - len(body)), decode_content=True)
        if not part:
            break
        body += part
    return body


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) and value.strip() else ""


def _positive(value: object) -> float | None:
    """A number above zero, or a text that is one; None for everything else."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        number = float(value)
        return number if number > 0 and math.isfinite(number) else None
    return None


def _http_date_s(raw: str) -> float | None:
    with suppress(ValueError, TypeError, IndexError, OverflowError):
        return email.utils.parsedate_to_datetime(raw).timestamp()
    return None


def _skew(date_s: float | None, sent_s: float, received_s: float) -> float | None:
    """How far a date lies outside the time in which it was written, if that is much."""
    if date_s is None:
        return None
    skew_s = date_s - min(max(date_s, sent_s), max(sent_s, received_s))
    return skew_s if abs(skew_s) > WRONG_CLOCK_S else None


def _plain(text: str, limit: int) -> str:
    """One line without control characters."""
    text = _SPACE.sub(" ", "".join(c if c.isprintable() else " " for c in text)).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _reason(error: BaseException) -> str:
    """A failure of the transport in a few words; never its text, which may quote an address."""
    chain = [error]
    while True:
        last: Any = chain[-1]
        inner = getattr(last, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((a for a in last.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            inner = last.__cause__
        if inner is None or inner in chain:
            break
        chain.append(inner)
    for kind, words in _REASONS:
        if any(isinstance(each, kind) for each in chain):
            return words
    for each in reversed(chain):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    for kind, words in _REASONS_WITHOUT_WORDS:
        if any(isinstance(each, kind) for each in chain):
            return words
    return type(chain[-1]).__name__


_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (urllib3.exceptions.NameResolutionError, "its name does not resolve"),
    (urllib3.exceptions.ProxyError, "the HTTP proxy on the way failed"),
)
#: Where the system has no words of its own.
_REASONS_WITHOUT_WORDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (urllib3.exceptions.SSLError, "the TLS connection failed"),
    (urllib3.exceptions.ConnectTimeoutError, "no connection in time"),
    (urllib3.exceptions.ReadTimeoutError, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (ConnectionError, "the connection was closed"),
    (urllib3.exceptions.IncompleteRead, "the connection was closed"),
    (http.client.HTTPException, "what came is no HTTP"),
)
