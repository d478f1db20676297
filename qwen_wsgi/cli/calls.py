"""`qwen-proxy calls`: the calls in flight of the running server, and the end of one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from qwen_wsgi import text
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.in_flight import asked_calls, cancel_in_workers
from qwen_wsgi.settings import Settings

#: Who has cancelled a call, for its client: whoever may use the socket looks after the server.
_BY: Final = "qwen-proxy calls cancel"

_HEAD: Final = ("ID", "CLIENT", "ENDPOINT", "MODEL", "ACCOUNT", "STATE", "SINCE", "RECEIVED")
#: Of a cell; an id is shown whole, because it is what `cancel` wants.
_WIDEST: Final = 40


def run(
    settings: Settings,
    action: str,
    id: str | None,
    *,
    json_output: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """List the calls in flight, or end those with an id.

    It asks the workers by way of their sockets in the state directory, so it needs no key.

    Returns:
        The exit status: 0 if it was done, else 1.

    Raises:
        SettingsError: the arguments do not fit together.
    """
    if (action == "cancel") != (id is not None):
        raise SettingsError("`calls cancel` wants the id of a call, and `calls` wants none")
    state_dir = Path(settings.state_dir).absolute()
    if id is None:
        found = asked_calls(state_dir)
        if not found.workers:
            print("qwen-proxy: no running server was found here.", file=err)
            return 1
        if json_output:
            print(json.dumps(found.json(), indent=2, ensure_ascii=False), file=out)
        else:
            print(shown(found.rows), file=out)
        if found.silent:
            print(f"qwen-proxy: {found.silent} workers did not answer in time.", file=err)
        return 0
    calls, silent = cancel_in_workers(state_dir, id, _BY)
    if not calls:
        why = f" ({silent} workers did not answer in time)" if silent else ""
        print(f"qwen-proxy: no call '{id}' is in flight{why}.", file=err)
        return 1
    if json_output:
        print(json.dumps({"object": "call", "id": id, "cancelled": calls}), file=out)
    else:
        print(f"Cancelled: {'the call' if calls == 1 else f'{calls} calls'} {id}.", file=out)
    return 0


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The calls for people, a line each."""
    if not rows:
        return "No calls are in flight."
    cells = ((row["id"], *map(_cell, _values(row))) for row in rows)
    return text.table([_HEAD, *cells])


def _values(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["client"],
        row["endpoint"],
        row["model"] or "–",
        row["account"] or "–",
        row["state"],
        text.duration(row["seconds"]),
        f"{row['received_bytes']:,} B" if row["received_bytes"] else "–",
    )


def _cell(value: str) -> str:
    value = value if value.isprintable() else repr(value)
    return value if len(value) <= _WIDEST else value[: _WIDEST - 1] + "…"
