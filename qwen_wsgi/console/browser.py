"""What a browser says of a request: whether a page of ours made it, and what it brings along. Pure.

A page of another site may send requests here with the cookie of this one only where a browser is
old or at fault; what it may not do is refused here all the same, before anything is done.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

#: The browser sends it over TLS alone, and no other host can have set it (RFC 6265bis).
_SECURE_COOKIE: Final = "__Host-qwen-proxy-console"
_PLAIN_COOKIE: Final = "qwen-proxy-console"

#: The field of a form, and the header of a script's request, with the token against forged ones.
TOKEN_FIELD: Final = "csrf"
TOKEN_HEADER: Final = "HTTP_X_CSRF_TOKEN"

#: What changes nothing.
_READING: Final = ("GET", "HEAD")


def is_secure(environ: Mapping[str, Any]) -> bool:
    """Whether the browser's connection has TLS: to this server, or to a trusted proxy."""
    return str(environ.get("wsgi.url_scheme")) == "https"


def cookie_name(environ: Mapping[str, Any]) -> str:
    """The cookie with the secret of a session."""
    return _SECURE_COOKIE if is_secure(environ) else _PLAIN_COOKIE


def token_of(secret: str) -> str:
    """The token that each change in a session brings along; it reveals nothing of the secret."""
    return hashlib.sha256(b"console change\0" + secret.encode()).hexdigest()[:40]


def has_token(environ: Mapping[str, Any], form: Mapping[str, str], secret: str) -> bool:
    """Whether a request has the token of its session, in a form or a header."""
    offered = str(environ.get(TOKEN_HEADER) or form.get(TOKEN_FIELD, ""))
    return hmac.compare_digest(offered.encode(errors="replace"), token_of(secret).encode())


def forgery(environ: Mapping[str, Any]) -> str:
    """Why a request is not one of our own pages, nor of a person who opens one; "" if it is.

    Reading by navigation is allowed from anywhere: a link in a message leads here. The page that
    has the link sees nothing of the answer, and the cookie is not sent.
    """
    method, site = environ["REQUEST_METHOD"], environ.get("HTTP_SEC_FETCH_SITE", "")
    if environ.get("HTTP_SEC_FETCH_DEST", "") in ("iframe", "frame", "embed", "object"):
        return "it is to be shown inside of another page"
    if method in _READING:
        opened = environ.get("HTTP_SEC_FETCH_MODE", "navigate") == "navigate"
        if site in ("cross-site", "same-site") and not opened:
            return "a page of another site asks for it"
        return ""
    if site not in ("", "same-origin"):
        return "a page of another site sends it"
    origin = environ.get("HTTP_ORIGIN", "")
    if not origin:
        return "it does not say which page sends it (header Origin)"
    own = own_origin(environ)
    if origin == own.replace("http:", "https:", 1) != own:
        return (
            "its page has TLS, and the proxy in front of this server does not say so (it must send "
            "X-Forwarded-Proto, and be one of QWEN_PROXY_TRUSTED_PROXIES)"
        )
    if origin != own:
        return f"it comes from a page of {origin[:100]}"
    return ""


def own_origin(environ: Mapping[str, Any]) -> str:
    """The origin of our pages, as the browser sees it: `https://qwen.lan`."""
    scheme = "https" if is_secure(environ) else "http"
    host = str(environ.get("HTTP_HOST", "")).lower()
    try:
        port = urlsplit("//" + host).port
    except ValueError:
        return ""
    usual = {"http": 80, "https": 443}[scheme]
    if port == usual:
        host = host.removesuffix(f":{port}")  # browsers leave it out
    return f"{scheme}://{host.removesuffix(':')}"
