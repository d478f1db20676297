"""Which addresses of MCP servers a client may bring: those of hosts that the operator names. Pure.

`mcp.example` in the list allows `https://mcp.example`, at the port of https alone, and `*.example`
all hosts below it. `mcp.example:8443` allows that port. A host that is named in full may be in a
private network; with its port it may also speak plain http, and `127.0.0.1:8931` be this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from qwen_wsgi import net
from qwen_wsgi.tool_runner.fetching.addresses import is_named

LONGEST_URL: Final = 2048
_PORTS: Final = {"http": 80, "https": 443}


class NotAllowed(Exception):
    """No connection is made to an address. The text says why, and what to do."""


class Failed(Exception):
    """A server of a client cannot be used. The text says why."""


@dataclass(frozen=True)
class Foreign:
    """A server of a client. Its address may hold a secret, as its headers do."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


class Target(NamedTuple):
    """Where a connection may go.

    Attributes:
        private: also if the host is in a private network.
        here: also if it is this machine.
    """

    scheme: str
    host: str
    port: int
    private: bool
    here: bool


def target_of(url: str, hosts: Sequence[str]) -> Target:
    """Where an address leads.

    Args:
        hosts: those that the operator allows.

    Raises:
        NotAllowed: it is none of theirs, or no address.
    """
    scheme, host, port = _parts(url)
    usual = port == _PORTS["https"]
    is_named_alone = usual and host in hosts
    is_named_with_port = f"{host}:{port}" in hosts
    if not (is_named_alone or is_named_with_port or _is_below(host, port, hosts)):
        raise NotAllowed(
            f"This server does not connect to {_shown(host, port)}: it calls servers at addresses "
            "of clients only where its operator allows the host (QWEN_PROXY_TOOL_HOSTS). Ask the "
            "operator to, or leave the address out and name a server that is offered here."
        )
    if scheme == "http" and not is_named_with_port:
        raise NotAllowed(
            f"The address of {host} must begin with https://: what is sent there may be secret. "
            "(Plain http is for a host that the operator names with its port.)"
        )
    # A name must not become this machine's because its owner says so.
    is_itself = net.is_loopback(host) or net.ip_address(host) is not None
    return Target(
        scheme,
        host,
        port,
        private=is_named_alone or is_named_with_port,
        here=is_named_with_port and is_itself,
    )


def _is_below(host: str, port: int, hosts: Sequence[str]) -> bool:
    patterns = [each for each in hosts if each.startswith("*.")]
    whole = host if port == _PORTS["https"] else f"{host}:{port}"
    return is_named(whole, patterns)


def _parts(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address.

    Raises:
        NotAllowed: it is none. The text does not quote it: it may hold a secret.
    """
    if len(url) > LONGEST_URL or not (url.isascii() and url.isprintable()) or " " in url:
        raise NotAllowed("The address is too long, or has characters that no address may have.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise NotAllowed("The address cannot be understood.") from None
    if parts.scheme not in _PORTS or not host:
        raise NotAllowed("The address must begin with https:// and a host.")
    if parts.username is not None or parts.password is not None:
        raise NotAllowed("The address must have no user name and no password in it.")
    return parts.scheme, host.rstrip("."), port or _PORTS[parts.scheme]


def _shown(host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port == _PORTS["https"] else f"{host}:{port}"
