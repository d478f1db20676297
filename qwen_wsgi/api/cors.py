"""CORS: which web pages may call, by the headers of each answer (WHATWG Fetch, "CORS protocol")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from werkzeug.datastructures import Headers

from qwen_wsgi.access.guard import Guard
from qwen_wsgi.api.flask_app import ROUTE_PATH, is_console
from qwen_wsgi.api.openapi.headers import EXPOSED

#: What needs no key is for programs and people, and not for pages of other sites.
_KEYLESS: Final = frozenset({"/", "/docs", "/health", "/health/live", "/health/ready"})


def allow(headers: Headers, guard: Guard, environ: Mapping[str, Any]) -> None:
    """Add the headers that the origin of the request asks for."""
    path = environ[ROUTE_PATH]
    if path in _KEYLESS or is_console(path):  # its own pages alone call the console
        return
    if guard.origin_matters:
        headers.add("vary", "Origin")
    origin = environ.get("HTTP_ORIGIN")
    if not origin or not (allowed := guard.allowed_origin(origin)):
        return
    headers["access-control-allow-origin"] = allowed
    headers["access-control-expose-headers"] = EXPOSED
    if environ["REQUEST_METHOD"] == "OPTIONS":
        headers["access-control-allow-methods"] = "GET, POST, PATCH, DELETE, OPTIONS"
        headers["access-control-allow-headers"] = (
            environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS") or "*"
        )
        headers["access-control-max-age"] = "86400"
