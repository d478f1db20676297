"""Addresses: where a server listens, which hosts are this machine, and which URLs get a secret."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final, NamedTuple
from urllib.parse import urlsplit

#: Hosts that stand for every interface, and this machine's own name for each.
_EVERYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}

# --- hosts ---------------------------------------------------------------------------------------


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address; None when it is something else.

    An IPv4 address that a socket for both families shows as IPv6 (`::ffff:127.0.0.1`) becomes IPv4
    again.
    """
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def is_loopback_address(text: str) -> bool:
    """Whether a text is an IP address of this machine's loopback interface; no name is."""
    parsed = ip_address(text)
    return parsed is not None and parsed.is_loopback


def is_loopback(host: str) -> bool:
    """Whether a host, name or address, is this machine."""
    host = host.strip("[]").lower().rstrip(".")
    return host == "localhost" or host.endswith(".localhost") or is_loopback_address(host)


def machine_name() -> str:
    """The machine's own name, as its administrator set it."""
    return socket.gethostname()


def is_here(host: str) -> bool:
    """Whether this machine can listen at a host, name or address. Looks names up."""
    host = host.strip("[]")
    if host in _EVERYWHERE:
        return True
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, proto, _, where in found:
        try:
            with socket.socket(family, kind, proto) as probe:
                probe.bind(where)
                return True
        except OSError:
            continue
    return False


# --- listening addresses -------------------------------------------------------------------------


class Address(NamedTuple):
    """A unix socket's path, or host and port."""

    path: str
    host: str
    port: int

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def here(self) -> str:
        """The host under which this machine reaches it."""
        return _EVERYWHERE.get(self.host, self.host)

    @property
    def open_to_lan(self) -> bool:
        """Whether other machines reach it directly."""
        return not self.path and not is_loopback(self.host)

    def is_same(self, other: Address) -> bool:
        """Whether a connection from this machine to `other` arrives here."""
        if self.path or other.path:
            return self.path == other.path
        here = is_loopback(self.here) and is_loopback(other.here)
        return self.port == other.port and (here or self.here == other.here)


def parse(text: str) -> Address:
    """Read a listening address in gunicorn's notation: `unix:PATH` or `HOST:PORT`.

    Raises:
        ValueError: it is neither.
    """
    if text.startswith("unix:"):
        return Address(text.removeprefix("unix:"), "", 0)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{text!r} is neither unix:PATH nor HOST:PORT")
    return Address("", host.strip("[]"), int(port))


# --- base URLs -----------------------------------------------------------------------------------

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
        raise ValueError("its host is not a host name (an unset variable, or a placeholder?)")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it has a user name or password in it, which would show up in logs")
    if parts.query or parts.fragment:
        raise ValueError("it has a ? or # part, behind which no path can be added")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def from_resource_url(raw: str) -> str:
    """Turn a login's `resource_url`, e.g. `portal.qwen.ai`, into a base URL.

    As qwen-code does (https:// unless it has a scheme, /v1 unless it ends so), but slashes at the
    end are stripped, which qwen-code forgets.

    Raises:
        ValueError: why it cannot be used, for example plain http to another machine, where anybody
            on the way could read the token.
    """
    raw = raw.strip()
    url = base_url(raw if _SCHEME.match(raw) else f"https://{raw}")
    if url.startswith("http:") and not is_local(url):
        raise ValueError(
            "it is plain http to another machine, which would expose the token on the network"
        )
    return url if url.endswith("/v1") else f"{url}/v1"


def host_of(url: str) -> str:
    """Host and port of a checked base URL, for messages and for account names."""
    return urlsplit(url).netloc


def is_local(url: str) -> bool:
    """Whether a checked base URL certainly leads to this machine.

    Of the names only `localhost` itself: some systems ask a DNS server for names below it.
    """
    host = urlsplit(url).hostname or ""
    return host == "localhost" or is_loopback_address(host)
