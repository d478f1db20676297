"""CORS: which web pages may call, by the headers of each answer (WHATWG Fetch, "CORS protocol")."""

from __future__ import annotations

from typing import Final

from flask import Response

from qwen_wsgi.api import lifecycle
from qwen_wsgi.api.flask_app import ROUTE_PATH

#: What needs no key is for programs and people, and not for pages of other sites.
_KEYLESS: Final = frozenset({"/", "/health", "/health/live", "/health/ready"})


def preflight() -> Response | None:
    """Answer CORS preflights without a key: browsers never send one with them."""
    record = lifecycle.live().record
    if record.method != "OPTIONS":
        return None
    record.quiet = True
    return Response(status=204)


def allow_origin(response: Response) -> Response:
    """Add the CORS headers that the origin of the request asks for."""
    call = lifecycle.live()
    guard, environ = call.services.guard, call.environ
    if environ[ROUTE_PATH] in _KEYLESS:
        return response
    headers = response.headers
    if guard.origin_matters:
        headers.add("vary", "Origin")
    origin = environ.get("HTTP_ORIGIN")
    if not origin or not (allowed := guard.allowed_origin(origin)):
        return response
    headers["access-control-allow-origin"] = allowed
    headers["access-control-expose-headers"] = (
        "x-request-id, x-upstream-request-id, x-qwen-proxy-account, x-qwen-proxy-attempts, "
        "x-qwen-proxy-changed, x-qwen-proxy-tokens, server-timing, retry-after"
    )
    if call.record.method == "OPTIONS":
        headers["access-control-allow-methods"] = "GET, POST, DELETE, OPTIONS"
        headers["access-control-allow-headers"] = (
            environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS") or "*"
        )
        headers["access-control-max-age"] = "86400"
    return response
