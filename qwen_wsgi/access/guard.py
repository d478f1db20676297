"""Checks who calls: client keys, of the environment and of the database; or without any that the
caller is this machine."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from qwen_wsgi.access.client_key import ID_PREFIX, ClientKey, KeysUnavailable
from qwen_wsgi.access.key_ring import Held, KeyRing
from qwen_wsgi.clock import Clock, SystemClock
from qwen_wsgi.errors import ApiError, Forbidden, Unauthorized
from qwen_wsgi.net import ip_address, is_loopback, is_loopback_address
from qwen_wsgi.protocol.web import token as web_token
from qwen_wsgi.protocol.web.token import BadWebToken, WebToken
from qwen_wsgi.settings import Settings

_NO_KEY_YET: Final = (
    "This qwen-proxy has no client keys, so it serves its own machine only. To let others in, its "
    "operator makes one with `qwen-proxy keys add NAME`, or sets QWEN_PROXY_API_KEYS and restarts "
    "it, and hands the key out."
)


class Client(NamedTuple):
    """The caller of a request.

    Attributes:
        id: unique and the same after a restart, for what belongs to a client: of a key of the
            database its id, of one of the environment a digest, which reveals nothing of a key
            that cannot be guessed. `local` where no keys are needed.
        name: for the log: of a key of the database its name; `env-1`, `env-2`, … and
            `env-admin-1`, … of those of the environment; `local`; `command` of this program's own
            commands.
        key: of the database, with its limits; None for all others.
        web: a login of its own at the web API, which it brought with the request; then `id` and
            `name` are of that login (`web-…`), and `key` is what let it in.
        let_in_by: the id of the client that was let in with such a login; "" for all others.
    """

    id: str
    name: str
    key: ClientKey | None = None
    web: WebToken | None = None
    let_in_by: str = ""

    @property
    def payer(self) -> str:
        """Whose limits and places its calls take: also of many web tokens those of one client."""
        return self.let_in_by or self.id


_LOCAL: Final = Client("local", "local")
_COMMAND: Final = Client("command", "command")


class Guard:
    """The rules for callers, from the settings and the keys of the database.

    Args:
        ring: what this worker knows of the database's keys; None has none.
        command_key: the key of commands on this machine, where the database has keys and the
            environment none that they could use; "" for none. Raises ApiError.
    """

    def __init__(
        self,
        settings: Settings,
        ring: KeyRing | None = None,
        clock: Clock | None = None,
        *,
        command_key: Callable[[], str] = lambda: "",
    ) -> None:
        self._command_key = command_key
        self._web = settings.web
        self._clock = clock or SystemClock()
        self._ring = ring or KeyRing(None, self._clock)
        self._keys = [
            (key.encode(), _client_of(key, name)) for key, name in settings.named_client_keys
        ]
        self._admins = frozenset(
            client.id for key, client in self._keys if key.decode() in settings.admin_keys
        )
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        if settings.public_url:
            self._hosts.add(urlsplit(settings.public_url).hostname or "")
        self._trust_unix = "unix" in settings.trusted_proxies
        self._trusted = [
            ipaddress.ip_network(word, strict=False)
            for word in settings.trusted_proxies
            if word != "unix"
        ]
        #: Of the setting; None leaves it to whether there are keys.
        self._origins = None if settings.cors_origins is None else frozenset(settings.cors_origins)
        #: Whether answers differ by the page that asks, so that caches must tell them apart.
        self.origin_matters = bool(self._origins) and "*" not in (self._origins or ())

    @property
    def needs_key(self) -> bool:
        """Whether nobody is served without a client key: there are some, or there were."""
        return bool(self._keys) or self._ring.is_closed

    def count_keys(self) -> int:
        """How many client keys are valid now."""
        return len(self._keys) + self._ring.count()

    def identify(self, environ: Mapping[str, Any]) -> Client:
        """Check the caller's key, or without client keys where it calls from.

        Raises:
            Unauthorized: no key, a wrong key, one that was revoked or has expired, or no keys exist
                and the caller is elsewhere.
            Forbidden: the key may not be used from the caller's network; or a web page tries to use
                a server that needs no key (DNS rebinding, CSRF).
            ApiError: 503 `keys_unavailable`: the key is not known, and the database that might know
                it cannot be read.
        """
        if self._web and (where := _web_token_in(environ)):
            return self._web_holder(environ, where)
        if "HTTP_X_QWEN_TOKEN" in environ and not self._web:
            raise Forbidden(
                "This server takes no web tokens (header x-qwen-token): its operator has to set "
                "QWEN_PROXY_WEB=1.",
                code="web_account_off",
            )
        if not self._keys and not self._ring.is_closed:
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
        return self._of_database(offered, environ) if found is None else found

    def _web_holder(self, environ: Mapping[str, Any], where: str) -> Client:
        """The caller that brings a web token in one header, and lets itself in by another one; or
        without client keys by calling from this machine. Raises as `identify`."""
        offered = _value_of(environ, where)
        others = {name: value for name, value in environ.items() if name != where}
        client = self.identify(others)
        if client.web is not None:
            raise Unauthorized("Send one web token, not two.", code="invalid_web_token")
        try:
            token = web_token.parse(offered)
        except BadWebToken as error:
            raise Unauthorized(
                f"The web token cannot be used: {error}.", code="invalid_web_token"
            ) from None
        if token.expires_at is not None and token.expires_at <= self._clock.now():
            raise Unauthorized(
                "The web token has expired. Log in at chat.qwen.ai with a browser again, and make "
                "a new one.",
                code="expired_web_token",
            )
        digest = token.digest
        return Client(f"web_{digest}", f"web-{digest[:8]}", client.key, token, client.id)

    def _of_database(self, offered: bytes, environ: Mapping[str, Any]) -> Client:
        """The holder of a key of the database; raises as `identify`."""
        held = self._ring.find(offered)
        if held is None:
            if self._is_command(offered, environ):
                return _COMMAND
            if not self._ring.is_certain:
                raise KeysUnavailable("").told()
            raise Unauthorized("Incorrect API key provided.", code="invalid_api_key")
        key = held.key
        if (refusal := self._refusal(held)) is not None:
            raise refusal
        if key.cidr and not key.allows_address(address := self.client_address(environ)):
            raise Forbidden(
                f"This key may not be used from {address[:64]}: its operator has bound it to "
                "certain networks.",
                code="network_not_allowed",
            )
        self._ring.used(key)
        return Client(key.id, key.name, key)

    def _is_command(self, offered: bytes, environ: Mapping[str, Any]) -> bool:
        """Whether a command of this server's user calls, from this machine."""
        if not self._ring.is_closed or not self.is_local(environ):
            return False
        try:
            key = self._command_key().encode()
        except ApiError:
            return False  # the log says why
        return bool(key) and hmac.compare_digest(key, offered)

    def _refusal(self, held: Held) -> ApiError | None:
        """Why a key that is known is not valid now; None if it is."""
        if held.key.revoked_at is held.key.expires_at is held.until is None:
            return None  # as most are
        if held.key.revoked_at is not None:
            return Unauthorized(
                f"Your API key ('{held.key.name}') was revoked. Ask the operator of this proxy for "
                "a new one.",
                code="revoked_api_key",
            )
        if not held.is_over(self._clock.now()):
            return None
        if held.key.expired(self._clock.now()):
            why = "has expired. Ask the operator of this proxy for more time, or for a new one."
        else:
            why = "was replaced by a new one, and its time is over. Use the new one."
        return Unauthorized(f"Your API key ('{held.key.name}') {why}", code="expired_api_key")

    def client_again(self, id: str, name: str) -> Client:
        """A client whose request was made a while ago, with its key as it is now.

        Args:
            id, name: of the client as `identify` then told it.

        Raises:
            Unauthorized: its key was revoked, or has expired.
            ApiError: 503: its key is not known, and the database cannot be read.
        """
        if not id.startswith(ID_PREFIX):
            return Client(id, name)
        key = self._ring.by_id(id)
        if key is None:
            if not self._ring.is_certain:
                raise KeysUnavailable("").told()
            raise Unauthorized("The key of this request is gone.", code="invalid_api_key")
        if (refusal := self._refusal(Held(key, None))) is not None:
            raise refusal
        return Client(key.id, key.name, key)

    def holder(self, environ: Mapping[str, Any]) -> Client | None:
        """Who a refused caller is, where its key is known; for the log."""
        offered = _offered_key(environ)
        held = self._ring.find(offered) if offered else None
        return None if held is None else Client(held.key.id, held.key.name, held.key)

    def require_admin(self, environ: Mapping[str, Any]) -> Client:
        """Check that the caller's key is one of an admin.

        Raises:
            Unauthorized: no key, or none that is valid.
            Forbidden: it is no admin's, or may not be used from here.
            ApiError: 503 `keys_unavailable`, as `identify`.
        """
        client = self.identify(environ)
        admin = client.id in self._admins if client.key is None else client.key.admin
        if not admin:
            raise Forbidden(
                "This needs a key of an admin. The operator of this proxy makes one with "
                "`qwen-proxy keys add NAME --admin`, or sets QWEN_PROXY_ADMIN_KEYS.",
                code="admin_key_required",
            )
        return client

    def _require_local(self, environ: Mapping[str, Any]) -> None:
        if not self.is_local(environ):
            raise Unauthorized(_NO_KEY_YET, code="missing_api_key")
        self.refuse_pages(environ)

    def refuse_pages(self, environ: Mapping[str, Any]) -> None:
        """Refuse web pages while there are no client keys; also on routes that need no key.

        Raises:
            Forbidden: the request comes from a page of another site, or by another name.
        """
        if not self.needs_key:
            self._refuse_page(environ)

    def _refuse_page(self, environ: Mapping[str, Any]) -> None:
        host = _host_name(environ.get("HTTP_HOST", ""))
        if not is_loopback(host) and host.lower() not in self._hosts:
            # A page of evil.example whose name was rebound to 127.0.0.1 sends its own name here.
            raise Forbidden(
                f"The Host header names '{host[:100]}', and without client keys only names of "
                "this machine are served. Use http://127.0.0.1, make a client key, or add "
                "the name to QWEN_PROXY_ALLOWED_HOSTS.",
                code="host_not_allowed",
            )
        origin = environ.get("HTTP_ORIGIN")
        # Pages may leave `Origin` out of some requests; browsers never leave out this one.
        cross = environ.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site") and not origin
        if cross or (origin and self.allowed_origin(origin) is None):
            # A browser sends a simple cross-origin POST even though it may not read the answer.
            raise Forbidden(
                "Web pages may not call this server while it has no client keys. Make one, or "
                "name the page's origin in QWEN_PROXY_CORS_ORIGINS.",
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
        if self.is_local(environ):
            return True
        try:
            self.identify(environ)
        except ApiError:
            return False
        return True

    def require_this_machine(self, environ: Mapping[str, Any]) -> None:
        """Check that the caller is on this machine, whatever key it has.

        Raises:
            Forbidden: it is elsewhere.
        """
        if not self.is_local(environ):
            raise Forbidden(
                "Only programs on the server's own machine may ask for this.", code="local_only"
            )

    def require_metrics(self, environ: Mapping[str, Any]) -> Client | None:
        """Check that the caller may read the metrics: it is on this machine, and no web page, or
        has a key that says so. Its client; None for this machine, which needs no key.

        Raises:
            Unauthorized: it is elsewhere, and has no key or a wrong one.
            Forbidden: its key does not allow it, or it is a web page.
        """
        if self.is_local(environ) and not self._is_forwarded_by_a_stranger(environ):
            self._refuse_page(environ)
            if "HTTP_ORIGIN" in environ:
                raise Forbidden("Web pages may not read the metrics.", code="origin_not_allowed")
            return None
        client = self.identify(environ)
        if not _reads_metrics(client):
            raise Forbidden(
                "Metrics are for programs on the server's own machine, and for client keys that "
                "allow it. Yours does not.",
                code="metrics_not_allowed",
            )
        return client

    # --- the console -------------------------------------------------------------------------

    def has_admin(self) -> bool:
        """Whether there is a key of an admin."""
        return bool(self._admins) or self._ring.has_admin()

    def is_admin_still(self, id: str, digest: bytes, environ: Mapping[str, Any]) -> bool:
        """Whether the key that somebody has signed in with is still one of an admin, and may be
        used from the caller's network.

        Args:
            id: of the client.
            digest: of the key (`client_key.digest_of`); of a key of the environment it is not used.
        """
        if not id.startswith(ID_PREFIX):
            return id in self._admins
        held = self._ring.of_digest(digest)
        if held is None or held.key.id != id or not held.key.admin or self._refusal(held):
            return False
        return held.key.allows_address(self.client_address(environ))

    def is_on_this_machine(self, environ: Mapping[str, Any]) -> bool:
        """Whether the caller is surely on this machine: also no proxy of unknown callers is."""
        return self.is_local(environ) and not self._is_forwarded_by_a_stranger(environ)

    def is_own_name(self, environ: Mapping[str, Any]) -> bool:
        """Whether the Host header names this server by an address, or by a name that nobody outside
        of its network can point at it (DNS rebinding), or that the settings have."""
        host = _host_name(environ.get("HTTP_HOST", "")).lower()
        if is_loopback(host) or ip_address(host) is not None or host in self._hosts:
            return True
        last = host.rpartition(".")[2]
        return bool(host) and (last == host or last in _PRIVATE)

    def _is_forwarded_by_a_stranger(self, environ: Mapping[str, Any]) -> bool:
        """Whether a proxy passed the request on whose word on the caller's address is not trusted:
        the caller may be anywhere, although the proxy is on this machine."""
        peer = environ.get("REMOTE_ADDR") or "unix"
        return "HTTP_X_FORWARDED_FOR" in environ and not self._is_trusted(peer)

    def is_local(self, environ: Mapping[str, Any]) -> bool:
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
        origins = self._origins
        if origins is None:
            return "*" if self.needs_key else None
        if "*" in origins:
            return "*"
        return origin if origin in origins else None


def _reads_metrics(client: Client) -> bool:
    """Whether a client's key allows it to read the metrics from elsewhere; those of the environment
    do not."""
    return client.key is not None and client.key.metrics


#: A name or an address, and perhaps a port (RFC 9110 §7.2): no user, path, or other tricks.
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::\d{0,5})?")

#: Ends of names that the public DNS does not have (RFC 6762, 8375, ICANN's reserved `internal`).
_PRIVATE: Final = frozenset({"local", "lan", "home", "internal", "arpa", "localdomain"})


def _host_name(header: str) -> str:
    """The name in a Host header, without its port; "" if it cannot be one."""
    if not _HOST.fullmatch(header):
        return ""
    try:
        return urlsplit("//" + header).hostname or ""
    except ValueError:
        return ""


def _client_of(key: str, name: str) -> Client:
    digest = hashlib.sha256(b"qwen-proxy client\0" + key.encode()).hexdigest()
    return Client(id=digest[:32], name=name)


#: Where a web token may stand, by WSGI's names; the first one that has one counts.
_WEB_TOKEN_IN: Final = ("HTTP_X_QWEN_TOKEN", "HTTP_AUTHORIZATION", "HTTP_X_API_KEY")


def _web_token_in(environ: Mapping[str, Any]) -> str:
    """The header that holds a web token, by WSGI's name; "" if none does. What stands in
    `x-qwen-token` is meant as one, whatever it looks like."""
    for name in _WEB_TOKEN_IN:
        value = _value_of(environ, name)
        if value and (name == "HTTP_X_QWEN_TOKEN" or web_token.looks_like(value)):
            return name
    return ""


def _value_of(environ: Mapping[str, Any], name: str) -> str:
    value = str(environ.get(name, "")).strip()
    if name != "HTTP_AUTHORIZATION":
        return value
    scheme, _, rest = value.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else ""


def _offered_key(environ: Mapping[str, Any]) -> bytes:
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return str(value).strip().encode("latin-1")
    return str(environ.get("HTTP_X_API_KEY", "")).strip().encode("latin-1")
