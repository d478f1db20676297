"""Refuses requests that web pages make."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from qwen_wsgi.sandbox.wire import Request

#: A name or an address, and perhaps a port (RFC 9110 §7.2).
_HOST: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9.-]+))(?::\d{0,5})?")


def refused(request: Request) -> str:
    """Why a request is refused, as a sentence; "" if it is served.

    Programs send no `Origin`, and `Host` as it stands in their base URL. A page of another site
    sends its origin, and one whose name was rebound to this machine that name.
    """
    if not _is_loopback(request.header("host") or ""):
        return "The Host header names no loopback address. Use http://127.0.0.1."
    own = f"http://{request.header('host')}"
    if (request.header("origin") or own) != own:
        return "Web pages of other sites may not call this server."
    if request.header("sec-fetch-site") in ("cross-site", "same-site"):
        return "Web pages of other sites may not call this server."
    return ""


def _is_loopback(host: str) -> bool:
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["six"] or found["name"]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
