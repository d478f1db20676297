"""`qwen-proxy record` has the running server record calls; `replay` sends one of them again."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from qwen_wsgi import local_http
from qwen_wsgi.cli import running
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.key_copy import keys_in
from qwen_wsgi.state.recordings import (
    LONGEST_MINUTES,
    LOOK_EVERY_S,
    MOST_CALLS,
    Order,
    Recordings,
    read,
)

#: An answer may take long, and is silent until then if it is not streamed.
_ANSWER_S: Final = 600.0
#: The names of keys of the environment, for people.
_OF_THE_ENVIRONMENT: Final = "env-1, env-2, …, and `local` where there is no key at all"
#: Headers of a recorded request that the connection of the replay has of its own.
_OF_THE_CONNECTION: Final = frozenset(
    {
        *("host", "connection", "content-length", "transfer-encoding", "accept-encoding"),
        *("content-encoding", "x-request-id", "x-forwarded-for", "x-forwarded-proto", "forwarded"),
    }
)


def record(
    settings: Settings,
    *,
    key: str | None,
    calls: int,
    minutes: float,
    listing: bool,
    stop: bool,
    json_output: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """Order that calls are recorded, list what was, or take all orders back.

    Returns:
        The exit status: 0 if it was done, else 1.

    Raises:
        SettingsError: the arguments do not fit together.
    """
    if sum((key is not None, listing, stop)) != 1:
        raise SettingsError("`record` wants one of --key NAME, --list and --stop")
    if not (1 <= calls <= MOST_CALLS and 0 < minutes <= LONGEST_MINUTES):
        raise SettingsError(
            f"`record` wants 1 to {MOST_CALLS} --calls, and up to {LONGEST_MINUTES} --minutes"
        )
    recordings = Recordings(_directory(settings), SystemClock())
    try:
        if key is not None:
            order = recordings.order(key, calls, minutes)
            if key not in _clients(settings):
                err.write(
                    f"Note: there is no client key {key!r} now; `qwen-proxy keys list` shows the "
                    f"keys, and those of the environment are called {_OF_THE_ENVIRONMENT}.\n"
                )
            shown, text = _order(order, recordings), _ordered(settings, order, recordings)
        elif stop:
            shown = {"stopped": recordings.stop()}
            text = f"Nothing is recorded any more ({shown['stopped']} orders were taken back)."
        else:
            orders = recordings.orders()
            shown = {
                "directory": str(recordings.directory),
                "orders": [_order(order, recordings) for order in orders],
                "files": [str(path) for path in recordings.files()],
            }
            text = _listed(shown)
    except OSError as error:
        err.write(f"qwen-proxy: {recordings.directory}: {error.strerror or error}\n")
        return 1
    out.write((json.dumps(shown, indent=2) if json_output else text) + "\n")
    return 0


def replay(settings: Settings, file: str, *, account: str, out: BinaryIO, err: TextIO) -> int:
    """Send a recorded request to the running server, and print the answer's body as it comes.

    Returns:
        The exit status: 0 for an answer that is no error, else 1.
    """
    try:
        recording = read(Path(file))
    except OSError as error:
        err.write(f"qwen-proxy: {file}: {error.strerror or error}\n")
        return 1
    if recording is None:
        err.write(f"qwen-proxy: {file} is no recording, or its call has not ended.\n")
        return 1
    request = recording["request"]
    headers = {
        name: value for name, value in request["headers"].items() if name not in _OF_THE_CONNECTION
    }
    headers["content-type"] = "application/json"
    if account:
        headers["x-qwen-account"] = account
    status = 0
    try:
        address, key = running.find(settings)
        with running.explained(_ANSWER_S):
            pieces = local_http.post(
                address,
                request["path"],
                json.dumps(request["body"]).encode(),
                timeout_s=_ANSWER_S,
                headers={**headers, **key},
            )
            for answered, told, piece in pieces:
                if not status:
                    status = answered
                    err.write(f"{_head(status, told)}\n")
                out.write(piece)
                out.flush()
    except running.Unreachable as error:
        err.write(f"qwen-proxy: the running server cannot be asked: {error}\n")
        return 1
    return int(status >= 400)


def _clients(settings: Settings) -> frozenset[str]:
    """What the log calls those who may call now, as far as it can be seen here."""
    keys = (key.name for key in keys_in(Path(settings.state_dir)) if key.revoked_at is None)
    return frozenset(("local", *keys, *(name for _, name in settings.named_client_keys)))


def _directory(settings: Settings) -> Path:
    return Path(settings.state_dir).absolute() / "recordings"


def _order(order: Order, recordings: Recordings) -> dict[str, Any]:
    return {
        "id": order.id,
        "key": order.client,
        "calls": order.calls,
        "recorded": len(recordings.files(order)),
        "until": int(order.until),
        "directory": str(recordings.directory),
    }


def _ordered(settings: Settings, order: Order, recordings: Recordings) -> str:
    lines = [
        f"The next {order.calls} calls of the key `{order.client}` that begin from "
        f"{LOOK_EVERY_S:g} s on, until {_time(order.until)}, are recorded with their bodies in:",
        f"    {recordings.directory}/call-{order.id}-*.json",
        "Known secrets in them are masked, but they hold what people wrote: remove them when you "
        "do not need them. `qwen-proxy record --stop` ends it early.",
    ]
    answer = running.ask(settings, "/health/live")
    if answer.value is None:
        lines.append(f"No running server was found ({answer.why}); one that starts does it, too.")
    return "\n".join(lines)


def _listed(shown: dict[str, Any]) -> str:
    lines = [
        f"{each['recorded']} of {each['calls']} calls of the key `{each['key']}`, "
        f"until {_time(each['until'])}"
        for each in shown["orders"]
    ]
    lines = lines or ["Nothing is being recorded."]
    return "\n".join([*lines, *shown["files"]])


def _head(status: int, headers: Any) -> str:
    account = headers.get("x-qwen-proxy-account")
    return f"HTTP {status}" + (f" from the account {account}" if account else "")


def _time(at: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at):%H:%M:%S}"
