"""Checks who calls: client keys, or without any that the caller is this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from qwen_wsgi.errors import Forbidden, Unauthorized
from qwen_wsgi.net import ip_address, is_loopback, is_loopback_address
from qwen_wsgi.redaction import mask
from qwen_wsgi.settings import Settings

_NO_KEY_YET: Final = (
    "This qwen-proxy has no client keys, so it serves its own machine only. To let others in, its "
    "operator sets QWEN_PROXY_API_KEYS (for example to the output of `openssl rand -hex 24`), "
    "restarts it, and hands the key out."
)


class Client(NamedTuple):
    """The caller of a request.

    Attributes:
        id: unique and the same after a restart, for what belongs to a client: a digest of its key.
            It reveals nothing of a key that cannot be guessed. `local` where no keys are needed.
        name: for the log: `key…abcd`, or `local`.
    """

    id: str
    name: str


_LOCAL: Final = Client("local", "local")


class Guard:
    """The rules for callers, from the settings. Keeps no state."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [(key.encode(), _client_of(key)) for key in settings.all_client_keys]
        self._admins = frozenset(_client_of(key).id for key in settings.admin_keys)
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        if settings.public_url:
            self._hosts.add(urlsplit(settings.public_url).hostname or "")
        self._trust_unix = "unix" in settings.trusted_proxies
        self._trusted = [
            ipaddress.ip_network(word, strict=False)
            for word in settings.trusted_proxies
            if word != "unix"
        ]
        origins = settings.cors_origins
        if origins is None:
            origins = ("*",) if self._keys else ()
        self._origins = frozenset(origins)
        #: Whether answers differ by the page that asks, so that caches must tell them apart.
        self.origin_matters = bool(self._origins) and "*" not in self._origins

    def identify(self, environ: Mapping[str, Any]) -> Client:
        """Check the caller's key, or without client keys where it calls from.

        Raises:
            Unauthorized: no key, a wrong key, or no keys exist and the caller is elsewhere.
            Forbidden: a web page tries to use a server that needs no key (DNS rebinding, CSRF).
        """
        if not self._keys:
            self._require_local(environ)
            return _LOCAL
        offered = _offered_key(environ)
        if not offered:
            raise Unauthorized(
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                code="missing_api_key",
            )
        found: Client | None = None
        for key, client in self._keys:
            # Every key is compared, in constant time, whether or not one matched before.
            if hmac.compare_digest(key, offered):
                found = client
        if found is None:
            raise Unauthorized("Incorrect API key provided.", code="invalid_api_key")
        return found

    def _require_local(self, environ: Mapping[str, Any]) -> None:
        if not self._is_local(environ):
            raise Unauthorized(_NO_KEY_YET, code="missing_api_key")
        self.refuse_pages(environ)

    def refuse_pages(self, environ: Mapping[str, Any]) -> None:
        """Refuse web pages while there are no client keys; also on routes that need no key.

        Raises:
            Forbidden: the request comes from a page of another site, or by another name.
        """
        if self._keys:
            return
        host = _host_name(environ.get("HTTP_HOST", ""))
        if not is_loopback(host) and host.lower() not in self._hosts:
            # A page of evil.example whose name was rebound to 127.0.0.1 sends its own name here.
            raise Forbidden(
                f"The Host header names '{host[:100]}', and without client keys only names of "
                "this machine are served. Use http://127.0.0.1, set QWEN_PROXY_API_KEYS, or add "
                "the name to QWEN_PROXY_ALLOWED_HOSTS.",
                code="host_not_allowed",
            )
        origin = environ.get("HTTP_ORIGIN")
        # Pages may leave `Origin` out of some requests; browsers never leave out this one.
        cross = environ.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site") and not origin
        if cross or (origin and self.allowed_origin(origin) is None):
            # A browser sends a simple cross-origin POST even though it may not read the answer.
            raise Forbidden(
                "Web pages may not call this server while it has no client keys. Set "
                "QWEN_PROXY_API_KEYS, or name the page's origin in QWEN_PROXY_CORS_ORIGINS.",
                code="origin_not_allowed",
            )

    def check_page(self, environ: Mapping[str, Any]) -> None:
        """Check that the web page that opens a WebSocket may call.

        Browsers enforce the CORS headers of HTTP answers, but a page may read any WebSocket.

        Raises:
            Forbidden: it may not.
        """
        origin = environ.get("HTTP_ORIGIN")
        if origin and self.allowed_origin(origin) is None:
            raise Forbidden(
                "This web page may not call this server. Name its origin in "
                "QWEN_PROXY_CORS_ORIGINS.",
                code="origin_not_allowed",
            )

    def is_known(self, environ: Mapping[str, Any]) -> bool:
        """Whether somebody calls who may see details: from this machine, or with a key."""
        if self._is_local(environ):
            return True
        try:
            self.identify(environ)
        except (Unauthorized, Forbidden):
            return False
        return True

    def require_admin(self, environ: Mapping[str, Any]) -> Client:
        """Check that the caller may ask for what concerns all clients.

        Raises:
            Unauthorized: as `identify`.
            Forbidden: its key is no admin key.
        """
        client = self.identify(environ)
        if client.id not in self._admins:
            raise Forbidden(
                "This needs an admin key: one of QWEN_PROXY_ADMIN_KEYS.", code="admin_required"
            )
        return client

    def require_this_machine(self, environ: Mapping[str, Any]) -> None:
        """Check that the caller is on this machine, whatever key it has.

        Raises:
            Forbidden: it is elsewhere.
        """
        if not self._is_local(environ):
            raise Forbidden(
                "Only programs on the server's own machine may ask for this.", code="local_only"
            )

    def _is_local(self, environ: Mapping[str, Any]) -> bool:
        """Whether the caller is on this machine."""
        address = self.client_address(environ)
        return address == "unix" or is_loopback_address(address)

    def client_address(self, environ: Mapping[str, Any]) -> str:
        """The caller's address; behind a trusted proxy the one that the proxy saw.

        `unix` for a peer on the unix socket that sent no X-Forwarded-For.
        """
        peer = environ.get("REMOTE_ADDR") or "unix"
        forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        if not forwarded or not self._is_trusted(peer):
            return peer
        # Each proxy appends its peer, so the right end is what our own proxy wrote.
        for hop in reversed(forwarded.split(",")):
            # `unix` names a kind of peer, and is no address that anybody can be forwarded for.
            peer = hop.strip() if hop.strip() != "unix" else "?"
            if not self._is_trusted(peer):
                break
        return peer

    def _is_trusted(self, address: str) -> bool:
        if address == "unix":
            return self._trust_unix
        parsed = ip_address(address)
        return parsed is not None and any(parsed in network for network in self._trusted)

    def allowed_origin(self, origin: str) -> str | None:
        """The value of `Access-Control-Allow-Origin` for a page's origin, or None."""
        if "*" in self._origins:
            return "*"
        return origin if origin in self._origins else None


#: A name or an address, and perhaps a port (RFC 9110 §7.2): no user, path, or other tricks.
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::\d{0,5})?")


def _host_name(header: str) -> str:
    """The name in a Host header, without its port; "" if it cannot be one."""
    if not _HOST.fullmatch(header):
        return ""
    try:
        return urlsplit("//" + header).hostname or ""
    except ValueError:
        return ""


def _client_of(key: str) -> Client:
    digest = hashlib.sha256(b"qwen-proxy client\0" + key.encode()).hexdigest()
    return Client(id=digest[:32], name="key" + mask(key))


def _offered_key(environ: Mapping[str, Any]) -> bytes:
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return str(value).strip().encode("latin-1")
    return str(environ.get("HTTP_X_API_KEY", "")).strip().encode("latin-1")
