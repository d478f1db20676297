"""The protocol between a worker and the runner of tools: JSON objects, one a line. Pure.

Asked is with `{"do": "list"}`, `{"do": "check"}`, `{"do": "call", "id", "server", "tool",
"arguments", "seconds", "container"}` or `{"do": "cancel", "id"}`. Each but the last is answered
with one line, which has the question's `id`; a call that was cancelled is not answered.

`list` and `call` may have `{"at": {"url", "headers"}}`, the address of a server that a client has
brought; a list of its tools may be answered with `refused` or `failed`, and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

#: Bytes of a line to the runner: the arguments of a call, with files for the interpreter.
LONGEST_QUESTION: Final = 16 * 1024 * 1024
#: Bytes of a line from it: texts and pictures.
LONGEST_ANSWER: Final = 32 * 1024 * 1024


class BadLine(Exception):
    """A line is not one of this protocol. The text says what is wrong with it."""


def line(value: Mapping[str, Any]) -> bytes:
    """An object as a line."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def read(raw: bytes) -> dict[str, Any]:
    """The object of a line.

    Raises:
        BadLine: it is none.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadLine("a line is not JSON") from None
    if not isinstance(value, dict):
        raise BadLine("a line is not an object")
    return value
