"""Checks the HTTP request that begins a WebSocket (RFC 6455, section 4.2.1)."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final

from wsproto.utilities import generate_accept_token

from qwen_wsgi.errors import ApiError, BadRequest

#: The version of the WebSocket protocol; there is no other.
VERSION: Final = "13"
_KEY_BYTES: Final = 16

#: The entry of `OpenAI-Beta` with the version of the events, and the versions that are served. The
#: SDKs send none.
_BETA: Final = "responses_websockets"
_SERVED: Final = ("2026-02-06",)

_BY_POST: Final = "Send the request by HTTP POST instead."


def is_begun(environ: Mapping[str, Any]) -> bool:
    """Whether a request begins a WebSocket. A proxy may take `Upgrade` out, but not the key."""
    return "HTTP_SEC_WEBSOCKET_KEY" in environ or is_upgrade(environ)


def is_upgrade(environ: Mapping[str, Any]) -> bool:
    """Whether a request still has the header without which no WebSocket can begin."""
    upgrade: str = environ.get("HTTP_UPGRADE", "")
    return upgrade.lower() == "websocket"


def accepted(environ: Mapping[str, Any]) -> str:
    """Check the request; return the value of `Sec-WebSocket-Accept`.

    Raises:
        ApiError: 426: another version of the protocol or of the events; a proxy in between that
            lets no WebSocket pass.
        BadRequest: the key is not what RFC 6455 says.
    """
    connection: str = environ.get("HTTP_CONNECTION", "")
    words = [word.strip().lower() for word in connection.split(",")]
    if "upgrade" not in words or environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        raise refused(
            "A WebSocket needs 'Connection: Upgrade' and HTTP/1.1, and a proxy in front of this "
            "server seems to have changed the request."
        )
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != VERSION:
        raise refused(f"The only version of the WebSocket protocol is {VERSION}.")
    for entry in environ.get("HTTP_OPENAI_BETA", "").split(","):
        name, _, version = entry.strip().partition("=")
        if name == _BETA and version not in _SERVED:
            raise refused(
                f"Version '{version[:20]}' of Responses over WebSocket is not supported here, "
                f"only {', '.join(_SERVED)}."
            )
    key: str = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    if not _is_key(key):
        raise BadRequest("'Sec-WebSocket-Key' is not the base64 of 16 bytes.")
    return generate_accept_token(key.encode()).decode()


def refused(reason: str, *, code: str = "websocket_not_supported") -> ApiError:
    """The refusal after which a client uses HTTP.

    Codex 0.171 does so at once upon 426, for the rest of its session; upon 404, 405 or 501 it
    tries seven times, which takes 6 to 8 seconds, and warns; upon 400 the turn fails (measured).
    """
    return ApiError(
        f"{reason} {_BY_POST}",
        status=426,
        type="invalid_request_error",
        code=code,
        should_retry=False,
    )


def _is_key(key: str) -> bool:
    try:
        return len(binascii.a2b_base64(key.encode(), strict_mode=True)) == _KEY_BYTES
    except ValueError:  # binascii's own error is one, as is that of characters beyond ASCII
        return False
