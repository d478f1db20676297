"""Which URLs of results are fetched: those that a vendor's answer may name, and no other.

A result's URL comes from an upstream's answer. Without these rules, whoever controls that answer
could make the proxy fetch from the network behind it. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from qwen_wsgi.net import ip_address

#: Model Studio's results are on OSS, under bucket names of any kind.
_VENDOR = "*.aliyuncs.com"
#: And those of chat.qwen.ai's web API are here as well.
WEB_HOSTS: Final = ("cdn.qwenlm.ai", "*.qwenlm.ai")
#: A name of DNS; without a dot it would be a name of the local network.
_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9-]{1,63}(?<!-))+")
_MOST_CHARACTERS = 8192


class RefusedURL(Exception):
    """The URL is not fetched; the text says why, and quotes nothing of the URL but its host."""


def checked(url: object, base_url: str, hosts: Collection[str] = ()) -> str:
    """The URL as it is fetched: `http://` becomes `https://` where the account's own is.

    Args:
        url: of an upstream's answer, or of a redirect.
        base_url: of the account whose answer it is.
        hosts: further hosts (QWEN_PROXY_RESULT_HOSTS); `*.example.com` is every host below it.

    Raises:
        RefusedURL: it leads elsewhere.
    """
    if not isinstance(url, str) or len(url) > _MOST_CHARACTERS or not url.isascii():
        raise RefusedURL("it is no URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RefusedURL("it is no URL") from None
    own = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RefusedURL("it is no HTTP URL")
    if parts.username is not None or parts.password is not None or "\\" in url:
        raise RefusedURL("it has a user name")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise RefusedURL("it has control characters")
    plain_allowed = own.scheme == "http"
    if (parts.hostname, port) == (own.hostname, own.port):
        if parts.scheme == "http" and not plain_allowed:
            raise RefusedURL("it is not encrypted")
        return url
    host = parts.hostname.lower()
    if ip_address(host) is not None or not _NAME.fullmatch(host):
        raise RefusedURL(f"its host {host[:64]!r} is no name")
    if not _is_below(host, _VENDOR) and not any(_is_below(host, each) for each in hosts):
        raise RefusedURL(
            f"its host {host[:64]} is no host for results (QWEN_PROXY_RESULT_HOSTS on the server)"
        )
    if parts.scheme == "http" and not plain_allowed:
        if port not in (None, 80):
            raise RefusedURL("it is not encrypted")
        return "https://" + host + url.split("/", 2)[2].removeprefix(parts.netloc)
    return url


def _is_below(host: str, domain: str) -> bool:
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not private, local, shared (CGNAT), mapped to
    such a one, or for something else than hosts."""
    parsed = ip_address(address.partition("%")[0])
    if parsed is None:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        # Addresses of translators lead to the IPv4 address inside.
        inner = parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is None and parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF)
        if inner is not None and not inner.is_global:
            return False
    return parsed.is_global and not parsed.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
