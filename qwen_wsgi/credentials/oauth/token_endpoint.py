"""Sends requests to the two OAuth endpoints of a Qwen login.

A refresh token is good for one use (RFC 6749 §6 with rotation), so every failure must tell whether
the token may have been spent. No request is repeated here, and no connection is kept: one that
died idle would make every failure ambiguous.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

import requests
from requests.structures import CaseInsensitiveDict

from qwen_wsgi import __version__, net
from qwen_wsgi.clock import Clock, boottime
from qwen_wsgi.credentials.files.document import MAX_DATE_MS
from qwen_wsgi.credentials.oauth import wire as oauth_wire
from qwen_wsgi.credentials.oauth.errors import (
    Ambiguous,
    Denied,
    Expired,
    NotSent,
    OAuthFailure,
)
from qwen_wsgi.credentials.oauth.reply import Reply
from qwen_wsgi.credentials.oauth.wire import Adapter, Moment, Wire
from qwen_wsgi.redaction import DISCOVERED, mask
from qwen_wsgi.shortage import shortage_of

#: qwen-code's client id; it is public. A login belongs to the client that it was made with.
CLIENT_ID: Final = "f0304373b74a44d2b584a3fb70ca9e56"
SCOPE: Final = "openid profile email model.completion"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
#: The assumed life of an access token when the answer names none. Seconds.
DEFAULT_LIFE_S: Final = 30 * 60.0
#: The assumed life of a device code when the answer names none. Seconds.
DEFAULT_CODE_LIFE_S: Final = 15 * 60.0

#: (connect, read); a request takes no longer than both together. Seconds.
Timeout = tuple[float, float]
_TIMEOUT_S: Final[Timeout] = (3.05, 15.0)
_USER_AGENT: Final = f"qwen-proxy/{__version__}"
#: Fields of our requests that are removed from a preview of the answer.
_SECRET_FIELDS: Final = frozenset({"refresh_token", "device_code", "code_verifier"})


@dataclass(frozen=True, repr=False)
class TokenAnswer:
    """A new pair of tokens. `sent_` is the time right before the request was sent, so an expiry
    computed from it is early rather than late.

    Attributes:
        refresh_token: None: the old one stays good.
        resource_url: None: as before.
        expires_in_s: None when missing or unusable; see DEFAULT_LIFE_S.
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

    def __post_init__(self) -> None:
        DISCOVERED.add(self.access_token, self.refresh_token)

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
    """What a person needs to confirm a login, and the secret to poll with (RFC 8628 §3.2).

    Attributes:
        url: with the code in it, if the service sent such a URL.
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
    """Requests tokens. Holds no state and no connection; safe for any number of threads.

    Every method makes one request on a connection of its own, follows no redirect, uses proxies
    and CA bundle of the environment as `requests` does, and ends within the sum of its timeouts
    (if the system's name resolution and TLS handshake do).
    """

    def __init__(
        self,
        origin: str,
        *,
        clock: Clock,
        session_factory: Callable[[], requests.Session] = requests.Session,
        boottime: Callable[[], float] = boottime,
    ) -> None:
        """
        Args:
            origin: e.g. `https://chat.qwen.ai`; plain http only to this machine.
            session_factory: its proxies and TLS settings are used; nothing is sent through it.
            boottime: seconds that never step and go on while the machine is suspended.

        Raises:
            ValueError: why the origin cannot be used.
        """
        self._origin = net.base_url(origin)
        if self._origin.startswith("http:") and not net.is_local(self._origin):
            raise ValueError(
                "it is plain http to another machine, which would expose tokens on the network"
            )
        self._clock = clock
        self._session_factory = session_factory
        self._boottime = boottime

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return net.host_of(self._origin)

    def refresh(
        self,
        refresh_token: str,
        *,
        timeout_s: Timeout = _TIMEOUT_S,
        before_send: Callable[[], None] = lambda: None,
    ) -> TokenAnswer:
        """Spend a refresh token.

        Args:
            before_send: called when the connection is established and before the first byte is
                sent; it may raise `NotSent` to keep the token.

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
        code, user_code = reply.text("device_code"), reply.text("user_code")
        url = reply.text("verification_uri_complete") or reply.text("verification_uri")
        # They go to a terminal and a browser: refuse control characters and other schemes.
        shown = user_code.isprintable() and url.isascii() and url.isprintable() and " " not in url
        if not (code and user_code and shown and url.startswith(("https://", "http://"))):
            raise reply.unusable("without a usable code and address")
        return DeviceCode(
            code,
            user_code,
            url,
            reply.positive("expires_in") or DEFAULT_CODE_LIFE_S,
            reply.positive("interval"),
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
            # The service sends 429, RFC 8628 §3.5 says 400.
            if reply.word == "slow_down":
                return SlowDown()
            if reply.word == "access_denied":
                raise Denied("the login was denied", status=reply.status, word=reply.word)
            unauthorized = reply.status == HTTPStatus.UNAUTHORIZED and reply.json
            if reply.word == "expired_token" or unauthorized:
                raise Expired("the code has expired", status=reply.status, word=reply.word)
        raise reply.failure()

    def _tokens(self, reply: Reply) -> TokenAnswer:
        access_token = reply.text("access_token")
        if not access_token:
            raise reply.unusable("without an access token")
        return TokenAnswer(
            access_token,
            reply.text("token_type") or "Bearer",
            reply.text("refresh_token") or None,
            reply.text("resource_url") or None,
            reply.positive("expires_in"),
            int(reply.sent.wall_s * 1000),
            reply.sent.boottime_s,
            int(reply.received_s * 1000),
            reply.skew_s,
        )

    def _post(
        self,
        path: str,
        fields: Mapping[str, str],
        timeout_s: Timeout,
        before_send: Callable[[], None] = lambda: None,
    ) -> Reply:
        begun = self._moment()
        wire = Wire(before_send, self._moment)
        adapter = Adapter(wire)
        timer = threading.Timer(sum(timeout_s), wire.end)
        timer.daemon = True
        timer.start()
        try:
            response = self._send(adapter, f"/api/v1/oauth2/{path}", fields, timeout_s)
            body = oauth_wire.read(response.raw)
            return Reply(
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
            # What counts is whether the token may have been sent, which only the wire knows. The
            # exceptions do not: a timeout of the TLS handshake is a ReadTimeout.
            reason = "it took too long" if wire.ended else oauth_wire.reason(error)
            shortage = shortage_of(error)
        finally:
            timer.cancel()
            adapter.close()
        # Not inside the handler: the exception of `requests` contains the request, with the token.
        if wire.watched and wire.sent is None:
            if shortage is not None:
                raise NotSent(f"the proxy has {shortage.what}. {shortage.remedy.rstrip('.')}")
            raise NotSent(f"{self.host} cannot be reached: {reason}")
        raise Ambiguous(f"{self.host} gave no answer: {reason}")

    def _send(
        self, adapter: Adapter, path: str, fields: Mapping[str, str], timeout_s: Timeout
    ) -> requests.Response:
        # Prepared by hand and sent through the adapter: a session would add cookies, and netrc's
        # password for the host.
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

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._boottime())
