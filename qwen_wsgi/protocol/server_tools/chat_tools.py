"""The operator's tools in a chat request: what it selects, as functions for the model."""

from __future__ import annotations

from typing import Any, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import json_access, validation
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.chat import ChatRequest, parse_request
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.server_tools import functions
from qwen_wsgi.protocol.server_tools.functions import Functions
from qwen_wsgi.protocol.server_tools.offer import (
    PYTHON,
    Offer,
    OfferedTool,
    needs_trust,
    untrusted,
)
from qwen_wsgi.protocol.server_tools.openai_tools import (
    CODE,
    TYPES,
    allowed_in,
    names_in,
    with_allowed,
)


class ChatTools(NamedTuple):
    """A request whose model may call tools of the operator.

    Attributes:
        chat: with their functions; always a stream, which has its usage.
        functions: those functions.
        tools: all of the request's, as later turns have them.
        stream, wants_usage: what the client wants.
    """

    chat: ChatRequest
    functions: Functions
    tools: list[dict[str, Any]]
    stream: bool
    wants_usage: bool


def selected(
    body: JsonObject, offer: Offer, changes: Changes, *, always: bool = False
) -> ChatTools | None:
    """The request with the tools that it selects, and those that its key always has; None if there
    are none.

    Args:
        always: the key's calls have all that are offered to it. What cannot be used of them is left
            out, and named in `changes`.

    Raises:
        BadRequest: a tool is invalid.
        ApiError: a tool cannot be used, not without an approval, or not with this key.
    """
    given = json_access.items(body.get("tools"))
    others = [each for each in given if json_access.mapping(each).get("type") not in TYPES]
    found = Functions(
        json_access.text(json_access.mapping(json_access.mapping(each).get("function")).get("name"))
        for each in others
    )
    for index, tool in enumerate(given):
        kind = json_access.mapping(tool).get("type")
        if kind in TYPES:
            for offered in _of(tool, f"tools[{index}].", offer, changes):
                found.add(offered)
    if always:
        for offered in _always(offer, changes):
            found.add(offered)
    if not found:
        return None
    functions.check_count(len(found), "tools")
    if has_several_choices(body):
        raise BadRequest(
            "Tools that this server runs work with one choice: leave out 'n'.",
            param="n",
            code="unsupported_value",
        )
    asked = parse_request(body)
    changed = {
        "tools": [*others, *found.in_chat()],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chat = parse_request(JsonObject(body.render(changed)))
    tools = chat.body["tools"]
    if chosen := _chosen(body.get("tool_choice"), found):
        chat = parse_request(JsonObject(body.render(changed | chosen)))
    return ChatTools(chat, found, tools, asked.stream, asked.wants_usage)


def _chosen(choice: Any, found: Functions) -> dict[str, Any]:
    """The members of chat for a `tool_choice` that names the operator's tools; none for others.

    Raises:
        BadRequest: it names a tool that the request does not have.
    """
    if json_access.mapping(choice).get("type") in TYPES:
        names = _names_of(choice, found, "tool_choice")
        if len(names) == 1:
            return {"tool_choice": _function(names[0])}
        # Chat can force one function, or any of those that are offered.
        kept = [each for each in found.in_chat() if each["function"]["name"] in names]
        return {"tools": kept, "tool_choice": "required"}
    allowed = allowed_in(choice)
    if allowed is None:
        return {}
    tools: list[Any] = []
    for index, tool in enumerate(allowed):
        if json_access.mapping(tool).get("type") in TYPES:
            path = f"tool_choice.allowed_tools.tools[{index}]"
            tools += map(_function, _names_of(tool, found, path))
        else:
            tools.append(tool)
    return {"tool_choice": with_allowed(choice, tools=tools)}


def _names_of(choice: dict[str, Any], found: Functions, param: str) -> list[str]:
    """The functions of the tools that a choice names: of a server, of one tool, of Python."""
    is_code = choice["type"] == CODE
    label = PYTHON if is_code else choice.get("server_label")
    name = None if is_code else choice.get("name")
    names = [
        known
        for known in found.names()
        if (tool := found.tool_of(known)) is not None
        and tool.server == label
        and name in (None, tool.name)
    ]
    if not names:
        named = header_token(".".join(str(each) for each in (label, name) if each is not None))
        raise BadRequest(
            f"Tool choice '{named}' not found in 'tools' parameter.",
            param=param,
            code="invalid_value",
        )
    return names


def _function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def has_several_choices(body: JsonObject) -> bool:
    """Whether a request asks for several answers: each of them would call tools of its own."""
    return (json_access.integer(body.get("n")) or 1) > 1


def _always(offer: Offer, changes: Changes) -> list[OfferedTool]:
    usable = [tool for tool in offer.tools if not needs_trust(tool)]
    for label in sorted({tool.server for tool in offer.tools if needs_trust(tool)}):
        changes.note("tools", f"{header_token(label)}-needs-trust")
    for label in sorted(offer.troubles):
        changes.note("tools", f"{header_token(label)}-not-available")
    return functions.usable(usable, changes)


def _of(tool: dict[str, Any], path: str, offer: Offer, changes: Changes) -> list[OfferedTool]:
    if tool["type"] == CODE:
        return list(offer.of_server(PYTHON, path + "type"))
    label = validation.required_text(tool, "server_label", path)
    offer.check_address(validation.text(tool, "server_url", path), label, path + "server_url")
    _check_approval(tool.get("require_approval"), path + "require_approval")
    names = names_in(tool.get("allowed_tools"), path + "allowed_tools", changes)
    tools = functions.allowed(offer.of_server(label, path + "server_label"), names, path)
    if refused := [each for each in tools if needs_trust(each)]:
        raise untrusted(refused, path + "server_label", "chat")
    return functions.usable(tools, changes)


def _check_approval(given: Any, param: str) -> None:
    """Refuse a wish to be asked before calls, instead of passing over it.

    Raises:
        BadRequest: there is one.
    """
    if given == "always" or json_access.mapping(given).get("always"):
        raise BadRequest(
            "Chat has no way to ask for an approval before a call. Use the Responses API, which "
            "asks; or send 'never', if the tools may run unasked.",
            param=param,
            code="unsupported_value",
        )
