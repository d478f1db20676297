"""A request of the page Try as a command for curl, and as a program in Python. Pure.

The key is a variable of the environment: a snippet can be shown to others.
"""

from __future__ import annotations

import json
import pprint
import re
import shlex
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

KEY: Final = "QWEN_PROXY_KEY"

#: What stands in the place of a picture's bytes, which would fill the page.
PICTURE: Final = "PUT-BASE64-HERE"
_DATA_URL: Final = re.compile(r"(data:[\w.+/-]{1,100};base64,)[A-Za-z0-9+/=]{200,}")
#: Of one line of Python.
_WIDTH: Final = 92


class Dialect(NamedTuple):
    """An API that can be tried.

    Attributes:
        path: of its endpoint.
        title: for people.
        call: its function in the official Python library.
        known: members that this function takes by name; others go into `extra_body`.
    """

    path: str
    title: str
    call: str
    known: frozenset[str]


DIALECTS: Final[Mapping[str, Dialect]] = {
    "chat": Dialect(
        "/v1/chat/completions",
        "Chat Completions (OpenAI)",
        "client.chat.completions.create",
        frozenset({"model", "messages", "max_tokens", "stream", "stream_options", "tools"}),
    ),
    "responses": Dialect(
        "/v1/responses",
        "Responses (OpenAI)",
        "client.responses.create",
        frozenset(
            {"model", "input", "instructions", "max_output_tokens", "stream", "store", "tools"}
            | {"reasoning"}
        ),
    ),
    "messages": Dialect(
        "/v1/messages",
        "Messages (Anthropic)",
        "client.messages.create",
        frozenset({"model", "messages", "max_tokens", "stream", "system", "tools", "thinking"}),
    ),
    "completions": Dialect(
        "/v1/completions",
        "Completions (OpenAI, old)",
        "client.completions.create",
        frozenset({"model", "prompt", "max_tokens", "stream", "stream_options"}),
    ),
}


def without_pictures(value: Any) -> Any:
    """A body with its pictures' bytes left out."""
    if isinstance(value, str):
        return _DATA_URL.sub(rf"\g<1>{PICTURE}", value)
    if isinstance(value, list):
        return [without_pictures(each) for each in value]
    if isinstance(value, dict):
        if value.get("type") == "base64" and len(str(value.get("data", ""))) > 200:
            return {**value, "data": PICTURE}
        return {name: without_pictures(each) for name, each in value.items()}
    return value


def curl(name: str, body: Mapping[str, Any], origin: str) -> str:
    """A request as a command for a POSIX shell."""
    dialect = DIALECTS[name]
    if name == "messages":
        headers = [f'-H "x-api-key: ${KEY}"', "-H 'anthropic-version: 2023-06-01'"]
    else:
        headers = [f'-H "Authorization: Bearer ${KEY}"']
    text = json.dumps(without_pictures(dict(body)), ensure_ascii=False, indent=1)
    lines = [
        f"curl -N {shlex.quote(origin + dialect.path)}",
        *headers,
        "-H 'Content-Type: application/json'",
        f"-d {shlex.quote(text)}",
    ]
    return " \\\n  ".join(lines)


def python(name: str, body: Mapping[str, Any], origin: str) -> str:
    """A request as a program with the official library."""
    dialect, given = DIALECTS[name], without_pictures(dict(body))
    known = {key: value for key, value in given.items() if key in dialect.known}
    if extra := {key: value for key, value in given.items() if key not in dialect.known}:
        known["extra_body"] = extra
    library, base = ("anthropic", origin) if name == "messages" else ("openai", f"{origin}/v1")
    client = "Anthropic" if name == "messages" else "OpenAI"
    return "\n".join(
        [
            "import os",
            "",
            f"from {library} import {client}",
            "",
            f'client = {client}(base_url={base!r}, api_key=os.environ["{KEY}"])',
            f"answer = {dialect.call}(",
            *(f"    {key}={_literal(value, key)}," for key, value in known.items()),
            ")",
            *(_STREAMED if given.get("stream") else _WHOLE),
            "",
        ]
    )


_STREAMED: Final = ("for event in answer:", "    print(event.model_dump_json())")
_WHOLE: Final = ("print(answer.model_dump_json(indent=2))",)


def _literal(value: Any, key: str) -> str:
    """A value in Python's notation, its further lines beneath the first one."""
    text = pprint.pformat(value, width=_WIDTH - len(key) - 5, sort_dicts=False)
    return text.replace("\n", "\n" + " " * (len(key) + 5))
