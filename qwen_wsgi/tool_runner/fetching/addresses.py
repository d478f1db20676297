"""Which addresses the tool `fetch` may connect to, and servers of clients may have."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Final

from qwen_wsgi import net

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Networks in whose addresses an IPv4 address is hidden: translation (RFC 6052, RFC 8215).
_TRANSLATED: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
#: Not private and not public either: shared by carriers (RFC 6598), for protocols (RFC 6890; older
#: Pythons know only a part of it), relays of 6to4 (RFC 7526).
_NEITHER: Final = (
    ipaddress.ip_network("100.64.0.0/10"),
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
)
#: All public addresses of IPv6 but the translated ones (RFC 4291).
_PUBLIC6: Final = ipaddress.ip_network("2000::/3")


def is_named(host: str, hosts: Sequence[str]) -> bool:
    """Whether a list of hosts, which may have `*.example`, has a host."""
    return any(fnmatchcase(host.lower().rstrip("."), each) for each in hosts)


def refusal(
    text: str,
    *,
    private: bool = False,
    here: bool = False,
    is_here: Callable[[str], bool] = net.is_here,
) -> str:
    """Why an IP address may not be connected to, as a clause; "" if it may.

    Args:
        private: addresses of private networks may be, because the operator has named the host.
        here: those of this machine may be, for the same reason.
        is_here: whether an address is one of this machine's.
    """
    address = net.ip_address(text)
    if address is None:
        return "is no address"
    for each in (address, *_hidden(address)):
        if each.is_loopback and here:
            continue
        if each.is_loopback or each.is_unspecified:
            return "is this machine"
        if each.is_link_local or each.is_multicast:
            return "is of this machine's own link"
        if not _is_public(each) and not (private and each.is_private):
            return "is no public address"
    return "is this machine" if not here and is_here(str(address)) else ""


def _is_public(address: _Address) -> bool:
    if not address.is_global or any(address in network for network in _NEITHER):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    return address in _PUBLIC6 or any(address in network for network in _TRANSLATED)


def _hidden(address: _Address) -> tuple[_Address, ...]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    found: list[_Address] = []
    if any(address in network for network in _TRANSLATED):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    return tuple(found)
