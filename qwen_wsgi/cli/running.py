"""Asks the running server, before a command looks for itself.

A server knows more than a command can find out: which keys were tried, which account is left alone,
and what its own environment is.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from qwen_wsgi import local_http, net
from qwen_wsgi.errors import ApiError
from qwen_wsgi.settings import Settings
from qwen_wsgi.state import key_copy
from qwen_wsgi.state.state_key import StateKey, command_key

#: A worker answers within milliseconds, unless it stands still.
_TIMEOUT_S: Final = 5.0

_OTHER_VERSION: Final = "it is of another version, or another program"


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


class Unreachable(Exception):
    """The server cannot be asked. `str()` of it is half a sentence that says why.

    Attributes:
        server: where it was looked for; "" where that could not be found out.
    """

    def __init__(self, why: str, server: str = "") -> None:
        super().__init__(why)
        self.server = server


def find(settings: Settings) -> tuple[net.Address, dict[str, str]]:
    """Where the server of these settings listens, and the headers with a client key, if need be.

    Raises:
        Unreachable: that is unknown, or whoever listens there must not get a key.
    """
    try:
        address = net.parse(settings.bind_address)
    except ValueError as error:
        raise Unreachable(str(error)) from None
    if not address.path and not address.port:
        raise Unreachable("with PORT=0 its port is unknown", str(address))
    keys = settings.all_client_keys or _command_key(settings)
    if keys and not address.path and not local_http.listeners(address.port) <= {0, os.geteuid()}:
        # On a port that is free any user's program may listen.
        why = "a program of another user listens there; it gets no client key"
        raise Unreachable(why, str(address))
    return address, {"Authorization": f"Bearer {keys[0]}"} if keys else {}


@contextmanager
def explained(timeout_s: float) -> Iterator[None]:
    """Failures of a connection as `Unreachable`, with the reason in words."""
    try:
        yield
    except PermissionError:
        why = "this user may not connect to its socket (root may: `qwen-proxy status`)"
        raise Unreachable(why) from None
    except TimeoutError:
        raise Unreachable(f"it did not answer within {timeout_s:g} s") from None
    except (ConnectionRefusedError, FileNotFoundError):
        raise Unreachable("no server listens there") from None
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from None
    except http.client.HTTPException:
        raise Unreachable("another program listens there") from None


def ask(
    settings: Settings,
    path: str,
    *,
    timeout_s: float = _TIMEOUT_S,
    check: Callable[[dict[str, Any]], bool] = lambda value: True,
) -> Answer:
    """GET a path of the server that these settings describe; never raises.

    Args:
        check: whether the answer has the expected form.
    """
    shown = settings.bind_address
    try:
        address, headers = find(settings)
        shown = str(address)
        with explained(timeout_s):
            status, body = local_http.get(address, path, timeout_s=timeout_s, headers=headers)
    except Unreachable as error:
        return Answer(error.server or shown, None, str(error))
    answer = _read(shown, status, body)
    if answer.value is not None and not check(answer.value):
        return Answer(shown, None, _OTHER_VERSION)
    return answer


def _command_key(settings: Settings) -> tuple[str, ...]:
    """The key for commands, where the server has no keys but those of its database."""
    directory = Path(settings.state_dir)
    if not key_copy.exists(directory):
        return ()
    try:
        return (command_key(StateKey(settings.state_key, directory).get()),)
    except ApiError:
        return ()  # another user's server


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
        return Answer(shown, None, _OTHER_VERSION)
    if isinstance(value, dict):
        said = value.get("status")
        word = f": {said}" if isinstance(said, str) else ""
        return Answer(shown, None, f"it answered {status}{word}")
    return Answer(shown, None, "another program listens there")
