"""The operator's tools in Anthropic's form: what a request selects, and the blocks of their calls.

MCP servers are `mcp_servers` with `mcp_toolset`, or with a `tool_configuration` of their own, as
the first beta had it. Anthropic's tools `code_execution_…` run Python, in the blocks of their
version: the later ones run commands, so the code is shown as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.json_access import Members, mapping, objects, text
from qwen_wsgi.protocol.messages.blocks import Block
from qwen_wsgi.protocol.messages.validation import below, need, want, wrong
from qwen_wsgi.protocol.server_tools import functions
from qwen_wsgi.protocol.server_tools.functions import Functions
from qwen_wsgi.protocol.server_tools.offer import (
    PYTHON,
    Offer,
    OfferedTool,
    needs_trust,
    untrusted,
)
from qwen_wsgi.protocol.server_tools.results import Told, code_in, for_model

TOOLSET: Final = "mcp_toolset"
_CODE: Final = "code_execution"
_BASH: Final = "bash_code_execution"
#: The version of the tool whose blocks have code; those of later ones have commands.
_WITH_CODE: Final = "code_execution_20250522"
_CODE_NAMES: Final = (_CODE, _BASH)

#: Code as a command.
_COMMAND: Final = "python3 - <<'END_OF_CODE'\n"
_COMMAND_END: Final = "\nEND_OF_CODE"

#: Blocks of these tools in a conversation: their calls, and the results.
USES: Final = ("mcp_tool_use", "server_tool_use")
RESULTS: Final = ("mcp_tool_result", *(f"{name}_tool_result" for name in _CODE_NAMES))


class ServerTools(NamedTuple):
    """The operator's tools of one request.

    Attributes:
        functions: the tools as functions of chat.
        code: the name that calls of the tool that runs Python have in answers; "" without it.
        container: in which it does so: the client's, or "" for a new one.
    """

    functions: Functions
    code: str = ""
    container: str = ""


def is_requested(body: Members) -> bool:
    """Whether a request has such a tool, for whoever knows which there are."""
    return bool(body.get("mcp_servers")) or any(
        is_one(text(tool.get("type"))) for tool in objects(body.get("tools"))
    )


def is_one(kind: str) -> bool:
    """Whether a tool's type is of these."""
    return kind == TOOLSET or kind.startswith(_CODE)


def selected(body: Members, offer: Offer | None, changes: Changes) -> ServerTools:
    """The tools that a request selects. Without an offer they are left out, and named.

    Raises:
        BadRequest: a member is invalid.
        ApiError: a server's tools cannot be used, not without an approval, or not with this key.
    """
    tools = [tool for tool in want(body, "tools", list) or () if isinstance(tool, dict)]
    names = [text(tool.get("name")) for tool in tools if not is_one(text(tool.get("type")))]
    found = Functions(names)
    if offer is None:
        _lost(body, tools, changes)
        return ServerTools(found)
    for offered in _of_servers(body, tools, offer, changes):
        found.add(offered)
    code = ""
    for index, tool in enumerate(tools):
        kind = text(tool.get("type"))
        if kind.startswith(_CODE):
            python = offer.python(below("tools", index))
            if python is None:
                _lose(kind, changes)
                continue
            found.add(python)
            code = _CODE if kind == _WITH_CODE else _BASH
    functions.check_count(len(found), "tools")
    return ServerTools(found, code, _container(body) if code else "")


def _lost(body: Members, tools: list[dict[str, Any]], changes: Changes) -> None:
    if body.get("mcp_servers") is not None:
        changes.lose("mcp_servers", "has no counterpart in this translation")
    for tool in tools:
        if is_one(kind := text(tool.get("type"))):
            _lose(kind, changes)


def _lose(kind: str, changes: Changes) -> None:
    changes.lose("tools", f"have '{header_token(kind)}', which this server does not offer")


def _container(body: Members) -> str:
    given = body.get("container")
    if isinstance(given, dict):
        given = given.get("id")
    if given is not None and not isinstance(given, str):
        raise wrong("container", "a valid string")
    return given or ""


def _of_servers(
    body: Members, tools: list[dict[str, Any]], offer: Offer, changes: Changes
) -> Iterator[OfferedTool]:
    toolsets = {
        need(tool, "mcp_server_name", str, below("tools", index)): (below("tools", index), tool)
        for index, tool in enumerate(tools)
        if tool.get("type") == TOOLSET
    }
    servers: dict[str, tuple[str, list[str] | None]] = {}
    for index, server in enumerate(want(body, "mcp_servers", list) or ()):
        path = below("mcp_servers", index)
        if not isinstance(server, dict):
            raise wrong(path, "an object")
        name = need(server, "name", str, path)
        offer.check_address(want(server, "url", str, path), name, below(path, "url"))
        if server.get("authorization_token") and name not in offer.foreign:
            changes.note("mcp_servers", "authorization_token-dropped")
        given = want(server, "tool_configuration", dict, path) or {}
        if given.get("enabled") is not False:
            names = want(given, "allowed_tools", list, below(path, "tool_configuration"))
            servers[name] = (path, names)
    for name in toolsets.keys() - servers.keys():
        servers[name] = (toolsets[name][0], None)
    for name, (path, names) in servers.items():
        offered = functions.allowed(offer.of_server(name, path), names, path)
        if name in toolsets:
            offered = [each for each in offered if _is_enabled(each, *toolsets[name])]
        if refused := [each for each in offered if needs_trust(each)]:
            raise untrusted(refused, path, "this API")
        yield from functions.usable(offered, changes)


def _is_enabled(tool: OfferedTool, path: str, toolset: Mapping[str, Any]) -> bool:
    default = want(toolset, "default_config", dict, path) or {}
    configs = want(toolset, "configs", dict, path) or {}
    own = mapping(configs.get(tool.name)).get("enabled")
    return (default.get("enabled") is not False) if own is None else own is not False


def chosen(tools: ServerTools, name: str) -> str | None:
    """The function in chat of a tool that `tool_choice` names; None if it is none of these."""
    for known in tools.functions.names():
        tool = tools.functions.tool_of(known)
        assert tool is not None, "it is one of them"
        if name in (known, tool.name) or (tool.server == PYTHON and name == _CODE):
            return known
    return None


# --- blocks of an answer --------------------------------------------------------------------------


def use_of(tool: OfferedTool, id: str, tools: ServerTools) -> dict[str, Any]:
    """The block of a call at its beginning."""
    if is_code(tool, tools):
        return {"type": "server_tool_use", "id": id, "name": tools.code, "input": {}}
    named = {"name": tool.name, "server_name": tool.server}
    return {"type": "mcp_tool_use", "id": id, **named, "input": {}}


def is_code(tool: OfferedTool, tools: ServerTools) -> bool:
    """Whether calls of a tool have the blocks of code executions."""
    return tool.server == PYTHON and bool(tools.code)


def id_of(tool: OfferedTool, call_id: str, tools: ServerTools) -> str:
    """The id of such a block, made of the call's."""
    prefix = "srvtoolu_" if is_code(tool, tools) else "mcptoolu_"
    return prefix + call_id.removeprefix("call_")


def shown_input(arguments: str, tools: ServerTools) -> dict[str, str]:
    """The input of the block of a code execution."""
    code = code_in(arguments)
    return {"code": code} if tools.code == _CODE else {"command": _COMMAND + code + _COMMAND_END}


def result_of(
    tool: OfferedTool, id: str, told: Told, failure: ApiError | None, tools: ServerTools
) -> dict[str, Any]:
    """The block of a call's result."""
    if not is_code(tool, tools):
        said = told.text if told.error else for_model(told)
        content = [{"type": "text", "text": said, "citations": None}]
        kind = "mcp_tool_result"
        return {"type": kind, "tool_use_id": id, "is_error": told.error, "content": content}
    kind = f"{tools.code}_tool_result"
    if failure is not None:
        codes = {400: "invalid_tool_input", 429: "too_many_requests"}
        error = {"type": f"{kind}_error", "error_code": codes.get(failure.status, "unavailable")}
        return {"type": kind, "tool_use_id": id, "content": error}
    result = {"type": f"{tools.code}_result", "content": [], **_streams(told)}
    return {"type": kind, "tool_use_id": id, "content": result}


def _streams(told: Told) -> dict[str, Any]:
    """The output of a run: its parts if the interpreter tells them."""
    parts = mapping(told.structured)
    code = parts.get("return_code")
    if isinstance(out := parts.get("stdout"), str) and isinstance(err := parts.get("stderr"), str):
        shown = for_model(told._replace(text=out, error=False)) if told.images else out
    else:
        shown, err = ("", told.text) if told.error else (for_model(told), "")
    return {
        "stdout": shown,
        "stderr": err,
        "return_code": code if isinstance(code, int) else int(told.error),
    }


# --- blocks that come back ------------------------------------------------------------------------


def past_call(block: Block, named: Functions) -> dict[str, Any] | None:
    """The call in chat of an earlier block; None if it is of another server's tool."""
    value = block.value
    given = mapping(value.get("input"))
    if block.kind == "mcp_tool_use":
        label, name = text(value.get("server_name")), text(value.get("name"))
        if not (label and name):
            return None
        function = named.name_of(label, name)
    elif value.get("name") in _CODE_NAMES:
        function, given = named.name_of(PYTHON, PYTHON), {"code": _code_of(given)}
    else:
        return None
    return {
        "id": need(value, "id", str, block.path),
        "type": "function",
        "function": {"name": function, "arguments": json.dumps(given, ensure_ascii=False)},
    }


def _code_of(given: Mapping[str, Any]) -> str:
    if isinstance(code := given.get("code"), str):
        return code
    return text(given.get("command")).removeprefix(_COMMAND).removesuffix(_COMMAND_END)


def past_result(block: Block) -> tuple[str, str]:
    """The id of an earlier call, and what the model is told of its result."""
    id = text(block.value.get("tool_use_id"))
    content = block.value.get("content")
    if block.kind == "mcp_tool_result":
        said = content if isinstance(content, str) else "\n".join(_texts(content))
        return id, for_model(Told(said, error=block.value.get("is_error") is True))
    result = mapping(content)
    if (error := result.get("error_code")) is not None:
        return id, for_model(Told(header_token(str(error)), error=True))
    said = "\n".join(filter(None, (text(result.get("stdout")), text(result.get("stderr")))))
    return id, for_model(Told(said, error=result.get("return_code") not in (0, None)))


def _texts(content: Any) -> Iterator[str]:
    for each in objects(content):
        yield text(each.get("text"))
