"""Tools of the proxy as functions for the model: their names, descriptions and parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.server_tools.offer import PYTHON, OfferedTool
from qwen_wsgi.protocol.translation.tool_names import fits, fitting

#: Tools of the proxy in one request. Each turn costs all of their descriptions.
MOST_TOOLS: Final = 128
#: Characters of a description: what a server says of its tool goes into every prompt.
_MOST_DESCRIPTION: Final = 2048
#: Bytes of the schema of one tool's arguments.
_MOST_SCHEMA: Final = 32 * 1024

#: Characters that a text for a model must not have: they can hide words from people.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
_NO_PARAMETERS: Final[Mapping[str, object]] = {"type": "object", "properties": {}}


def name_in_chat(server: str, name: str, taken: Container[str] = ()) -> str:
    """The name of a tool's function, the same in every request with the same other functions.

    `time__now`; the tool that runs Python is `python`. A name that chat does not take, or that a
    function of the client has, is cut and ends in a hash.

    Args:
        taken: names of other functions.
    """
    if server == PYTHON:  # one tool, whatever it is named
        name = server
    full = server if server == name else f"{server}__{name}"
    if fits(full) and full not in taken:
        return full
    return fitting(full, f"\0{server}\0{name}")


def description(text: str) -> str:
    """The description of a tool for the model: bounded, and without characters that hide words."""
    text = _HIDDEN.sub("", text)
    return text if len(text) <= _MOST_DESCRIPTION else text[: _MOST_DESCRIPTION - 1] + "…"


def function(tool: OfferedTool, name: str) -> dict[str, Any]:
    """The function that the model may call."""
    schema = tool.schema if tool.schema.get("type") == "object" else _NO_PARAMETERS
    described = {"name": name, "description": description(tool.description), "parameters": schema}
    return {"type": "function", "function": described}


def usable(tools: Iterable[OfferedTool], changes: Changes) -> list[OfferedTool]:
    """The tools that a model can be shown; the others are named in `changes`."""
    found = []
    for tool in tools:
        if len(compact(tool.schema)) <= _MOST_SCHEMA:
            found.append(tool)
        else:
            name = header_token(f"{tool.server}.{tool.name}")
            changes.lose("tools", f"have '{name}', whose schema is too large for a prompt")
    return found


def allowed(
    tools: Sequence[OfferedTool], names: Iterable[str] | None, param: str
) -> list[OfferedTool]:
    """Those tools of a server that a client has named.

    Args:
        names: None for all.

    Raises:
        BadRequest: the server has no such tool.
    """
    if names is None:
        return list(tools)
    by_name = {tool.name: tool for tool in tools}
    found = []
    for name in dict.fromkeys(names):
        if name not in by_name:
            has = ", ".join(list(by_name)[:20])
            raise BadRequest(
                f"'{tools[0].server}' has no tool '{name[:64]}' that you may use. It has: {has}.",
                param=param,
                code="invalid_value",
            )
        found.append(by_name[name])
    return found


def check_count(count: int, param: str) -> None:
    """Refuse a request with too many tools of the proxy.

    Raises:
        BadRequest: there are.
    """
    if count > MOST_TOOLS:
        raise BadRequest(
            f"The request has {count} tools that this server runs; at most {MOST_TOOLS} can be "
            "shown to a model. Name those that you need ('allowed_tools').",
            param=param,
            code="too_many_tools",
        )


class Functions:
    """The functions of one request that are tools of the proxy.

    Args:
        taken: the names of the client's own functions.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = frozenset(taken)
        self._tools: dict[str, OfferedTool] = {}

    def __len__(self) -> int:
        return len(self._tools)

    def add(self, tool: OfferedTool) -> str:
        """Add a tool, once; return its name in chat."""
        for name, known in self._tools.items():
            if (known.server, known.name) == (tool.server, tool.name):
                return name
        name = name_in_chat(tool.server, tool.name, self._taken | self._tools.keys())
        self._tools[name] = tool
        return name

    def tool_of(self, name: str) -> OfferedTool | None:
        """The tool with this name in chat; None if it is a function of the client."""
        return self._tools.get(name)

    def names(self) -> Collection[str]:
        """Their names in chat."""
        return self._tools.keys()

    def name_of(self, server: str, name: str) -> str:
        """The name in chat of a tool, which may be one of an earlier turn only."""
        for known, tool in self._tools.items():
            if (tool.server, tool.name) == (server, name):
                return known
        return name_in_chat(server, name, self._taken)

    def in_chat(self) -> list[dict[str, Any]]:
        """The functions as a chat request has them."""
        return [function(tool, name) for name, tool in self._tools.items()]
