"""What all of `/admin/v1` shares: the check of the caller, and small bodies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.api import body, lifecycle
from qwen_wsgi.protocol.json_object import JsonObject

#: Of a body. A key with all its lists full has less.
LARGEST: Final = 64 * 1024


def check_admin() -> None:
    """Check that the caller's key is an admin's; for the blueprints of `/admin/v1`.

    Raises:
        ApiError: 401, 403 or 503.
    """
    lifecycle.check_caller(admin=True)


def read_members() -> dict[str, Any]:
    """The members of the request's JSON body; {} where it has none.

    Raises:
        ApiError: 400 or 413.
    """
    call = lifecycle.live()
    if not lifecycle.has_body(call.environ):
        return {}
    call.admit()
    bounded = replace(call.services.settings, max_body_bytes=LARGEST)
    read: JsonObject = body.read_json(call.environ, bounded, take=lambda count: None)
    return {name: read[name] for name in read.names()}
