"""Asks the running server, before a command looks for itself.

A server knows more than a command can find out: which keys were tried, which account is left alone,
and what its own environment is.
"""

from __future__ import annotations

import http.client
import json
from typing import Any, Final, NamedTuple

from qwen_wsgi import local_http, net
from qwen_wsgi.net import Address
from qwen_wsgi.settings import Settings

#: A worker answers within milliseconds, unless it stands still.
_TIMEOUT_S: Final = 5.0


class Answer(NamedTuple):
    """What the running server said.

    Attributes:
        server: where it was looked for.
        value: the JSON object; None if there is none.
        why: why there is none, as half a sentence; "" otherwise.
    """

    server: str
    value: dict[str, Any] | None
    why: str


def ask(settings: Settings, path: str, *, timeout_s: float = _TIMEOUT_S) -> Answer:
    """GET a path of the server that these settings describe; never raises."""
    shown = settings.bind_address
    try:
        address = net.parse(shown)
    except ValueError as error:
        return Answer(shown, None, str(error))
    shown = str(address)
    if not address.path and not address.port:
        return Answer(shown, None, "with PORT=0 its port is unknown")
    try:
        status, body = _get(settings, address, path, timeout_s)
    except PermissionError:
        why = "this user may not connect to its socket (root may: `qwen-proxy status`)"
        return Answer(shown, None, why)
    except TimeoutError:
        return Answer(shown, None, f"it did not answer within {timeout_s:g} s")
    except (ConnectionRefusedError, FileNotFoundError):
        return Answer(shown, None, "no server listens there")
    except OSError as error:
        return Answer(shown, None, error.strerror or str(error))
    except http.client.HTTPException:
        return Answer(shown, None, "another program listens there")
    return _read(shown, status, body)


def _get(settings: Settings, address: Address, path: str, timeout_s: float) -> tuple[int, bytes]:
    keys = settings.all_client_keys
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    return local_http.get(address, path, timeout_s=timeout_s, headers=headers)


def _read(shown: str, status: int, body: bytes) -> Answer:
    if status in (401, 403):
        return Answer(shown, None, "it wants one of its client keys, which this command has not")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if status == 200 and isinstance(value, dict):
        return Answer(shown, value, "")
    if status == 404 and isinstance(value, dict) and "error" in value:
        return Answer(shown, None, "it is of another version, or another program")
    if isinstance(value, dict):
        return Answer(shown, None, f"it answered {status}")
    return Answer(shown, None, "another program listens there")
