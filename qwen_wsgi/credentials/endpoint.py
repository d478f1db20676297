"""Which addresses a secret may be sent to, and how they are written."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

#: A name, an IPv4 address, or an IPv6 address without its brackets.
_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9._-]*|[0-9a-f:.]*)|::[0-9a-f:.]*")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def base_url(raw: str) -> str:
    """Check and normalise a base URL that the operator wrote: no slash at the end, lower-case host.

    Raises:
        ValueError: why it cannot be used. The text does not quote it: it may hold a password.
    """
    raw = raw.strip()
    if not raw.isascii() or not raw.isprintable() or " " in raw:
        raise ValueError("it has characters that no URL may have")
    try:
        parts = urlsplit(raw)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("its host or port cannot be understood") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("it does not begin with http:// or https:// and a host")
    if not _HOST.fullmatch(host):
        raise ValueError("its host is no host name (an unset variable, or a placeholder?)")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it has a user name or password in it, which would show up in logs")
    if parts.query or parts.fragment:
        raise ValueError("it has a ? or # part, behind which no path can be added")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def from_resource_url(raw: str) -> str:
    """Make a base URL of a login's `resource_url`, e.g. `portal.qwen.ai`.

    As qwen-code does (https:// unless it has a scheme, /v1 unless it ends so), but slashes at the
    end are stripped, which qwen-code forgets.

    Raises:
        ValueError: why it cannot be used; among others plain http to another machine, where
            everybody on the way could read the token.
    """
    raw = raw.strip()
    url = base_url(raw if _SCHEME.match(raw) else f"https://{raw}")
    if url.startswith("http:") and not is_local(url):
        raise ValueError("it is plain http to another machine, which would show the token to all")
    return url if url.endswith("/v1") else f"{url}/v1"


def host_of(url: str) -> str:
    """Host and port of a checked base URL, for people and for account names."""
    return urlsplit(url).netloc


def is_local(url: str) -> bool:
    """Whether a checked base URL surely leads to this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
