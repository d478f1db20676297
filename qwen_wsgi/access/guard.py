"""Who calls, may they, and is what they sent readable."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from qwen_wsgi.errors import ApiError, BadRequest, Forbidden, Unauthorized
from qwen_wsgi.hosts import is_loopback
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError
from qwen_wsgi.redaction import mask
from qwen_wsgi.settings import Settings

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

#: A body is taken in pieces of this size, which stay in the processor's cache.
_PIECE_BYTES: Final = 64 * 1024

_NO_KEY_YET: Final = (
    "This qwen-proxy has no client keys, so it serves its own machine only. To let others in, its "
    "operator sets QWEN_PROXY_API_KEYS (for example to the output of `openssl rand -hex 24`), "
    "restarts it, and hands the key out."
)


class Guard:
    """The rules for callers, from the settings; no state."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [(key.encode(), "key" + mask(key)) for key in settings.all_client_keys]
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._max_body = settings.max_body_bytes
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

    def identify(self, environ: Mapping[str, Any]) -> str:
        """Check the caller; return its name for the log (`key…abcd` or `local`).

        Raises:
            Unauthorized: no key, a wrong key, or no keys exist and the caller is elsewhere.
            Forbidden: a web page tries to use a server that needs no key (DNS rebinding, CSRF).
        """
        if not self._keys:
            self._require_local(environ)
            return "local"
        offered = _offered_key(environ)
        if not offered:
            raise Unauthorized(
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                code="missing_api_key",
            )
        found = ""
        for key, name in self._keys:
            # Every key is compared, in constant time, whether or not one matched before.
            if hmac.compare_digest(key, offered):
                found = name
        if not found:
            raise Unauthorized("Incorrect API key provided.", code="invalid_api_key")
        return found

    def owner(self, environ: Mapping[str, Any]) -> str:
        """Whose things a caller's are, for a caller that `identify` let in: a digest of its key.

        Other than its name it is unique, and it is the same after a restart. It tells nothing of a
        key that cannot be guessed. `local` where no keys are needed.
        """
        if not self._keys:
            return "local"
        return hashlib.sha256(b"qwen-proxy client\0" + _offered_key(environ)).hexdigest()[:32]

    def _require_local(self, environ: Mapping[str, Any]) -> None:
        address = self.client_address(environ)
        if address != "unix" and not _is_local(address):
            raise Unauthorized(_NO_KEY_YET, code="missing_api_key")
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
        if origin and self.allowed_origin(origin) is None:
            # A browser sends a simple cross-origin POST even though it may not read the answer.
            raise Forbidden(
                "Web pages may not call this server while it has no client keys. Set "
                "QWEN_PROXY_API_KEYS, or name the page's origin in QWEN_PROXY_CORS_ORIGINS.",
                code="origin_not_allowed",
            )

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
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._trusted)

    @property
    def origin_matters(self) -> bool:
        """Whether answers differ by the page that asks, so that caches must tell them apart."""
        return bool(self._origins) and "*" not in self._origins

    def allowed_origin(self, origin: str) -> str | None:
        """The value of `Access-Control-Allow-Origin` for a page's origin, or None."""
        if "*" in self._origins:
            return "*"
        return origin if origin in self._origins else None

    def read_body(self, environ: Mapping[str, Any]) -> JsonObject:
        """Read and parse the request body.

        Raises:
            ApiError: 413 above the limit; 400 if it is incomplete or no JSON object.
        """
        declared = environ.get("CONTENT_LENGTH")
        if declared and int(declared) > self._max_body:
            raise self._too_large()
        # One byte more than allowed tells a chunked body that is too long.
        try:
            body = _read(environ["wsgi.input"], int(declared) if declared else self._max_body + 1)
        except OSError as error:  # what gunicorn raises for chunked coding that breaks off
            raise BadRequest("The request body could not be read to its end.") from error
        if declared and len(body) < int(declared):
            raise BadRequest("The request body ended before its Content-Length.")
        if len(body) > self._max_body:
            raise self._too_large()
        try:
            return JsonObject(body)
        except JsonObjectError as error:
            raise BadRequest(
                "We could not parse the JSON body of your request. (HINT: This likely means you "
                "aren't using your HTTP library correctly. The API expects a JSON payload, but "
                f"what was sent was not valid JSON: {error}.)"
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(
            f"The request body is larger than the limit of {self._max_body} bytes "
            "(QWEN_PROXY_MAX_BODY on the server).",
            status=413,
            type="invalid_request_error",
            code="request_too_large",
        )


def _read(source: Any, size: int) -> bytes:
    """At most `size` bytes, piece by piece: gunicorn copies what it has three times over."""
    if size <= _PIECE_BYTES:
        return bytes(source.read(size))
    pieces = []
    while size > 0 and (piece := source.read(min(size, _PIECE_BYTES))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address; an IPv4 one that a socket for both families shows as IPv6 is itself again."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _is_local(address: str) -> bool:
    parsed = _address(address)
    return parsed is not None and parsed.is_loopback


def _host_name(header: str) -> str:
    """The name in a Host header, without its port; "" if it cannot be one."""
    try:
        return urlsplit("//" + header).hostname or ""
    except ValueError:
        return ""


def request_id_of(environ: Mapping[str, Any]) -> str | None:
    """The caller's own `X-Request-Id`, if it is fit for logs and headers."""
    offered = environ.get("HTTP_X_REQUEST_ID", "")
    return offered if _REQUEST_ID.fullmatch(offered) else None


def _offered_key(environ: Mapping[str, Any]) -> bytes:
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return str(value).strip().encode("latin-1")
    return str(environ.get("HTTP_X_API_KEY", "")).strip().encode("latin-1")
