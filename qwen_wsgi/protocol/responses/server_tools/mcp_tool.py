"""OpenAI's built-in tools `mcp` and `code_interpreter`, as a request has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import json_access, validation
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.responses.server_tools import mcp_items
from qwen_wsgi.protocol.server_tools import functions
from qwen_wsgi.protocol.server_tools.offer import Offer, OfferedTool
from qwen_wsgi.protocol.server_tools.openai_tools import CODE, names_in
from qwen_wsgi.protocol.validation import wrong_type

_WORDS: Final = ("always", "never")
#: Members that mean another server than the operator's.
_ELSEWHERE: Final = ("connector_id", "tunnel_id")


class Selected(NamedTuple):
    """A tool that a request selects.

    Attributes:
        approve: the client wants to be asked before each call.
    """

    tool: OfferedTool
    approve: bool


def selected(given: Mapping[str, Any], path: str, offer: Offer, changes: Changes) -> list[Selected]:
    """The tools of one server that a request selects.

    Raises:
        BadRequest: the tool is invalid, or means a server that is not the operator's.
        ApiError: the server's tools cannot be used, or not with this key.
    """
    label = validation.required_text(given, "server_label", path)
    for name in _ELSEWHERE:
        if given.get(name) is not None:
            raise validation.unsupported(
                path + name,
                f"'{name}' means a service of OpenAI's. Name a server that the operator of this "
                "one offers, as 'server_label' alone.",
            )
    offer.check_address(validation.text(given, "server_url", path), label, path + "server_url")
    for name in ("authorization", "headers"):
        if given.get(name) and label not in offer.foreign:
            changes.note("tools", f"mcp-{name}-dropped")  # the operator's server has its own
    tools = offer.of_server(label, path + "server_label")
    wanted = names_in(given.get("allowed_tools"), path + "allowed_tools", changes)
    found = functions.usable(functions.allowed(tools, wanted, path + "allowed_tools"), changes)
    asks = _Approval(given.get("require_approval"), path + "require_approval", changes)
    return [Selected(tool, asks.before(tool)) for tool in found]


class _Approval:
    """Before which calls the client wants to be asked: its own word, else the operator's trust."""

    def __init__(self, given: Any, param: str, changes: Changes) -> None:
        self._word: str | None = None
        self._by_name: dict[str, bool] = {}
        if isinstance(given, dict):
            for word in ("never", "always"):  # who is named in both is asked for
                inner = given.get(word)
                if inner is not None and not isinstance(inner, dict):
                    raise wrong_type(f"{param}.{word}", "an object", inner)
                for name in names_in(inner, f"{param}.{word}", changes) or ():
                    self._by_name[name] = word == "always"
        elif given is not None:
            if given not in _WORDS:
                raise validation.bad_value(param, given, _WORDS)
            self._word = given

    def before(self, tool: OfferedTool) -> bool:
        """Whether calls of a tool are asked for."""
        if self._word is not None:
            return self._word == "always"
        return self._by_name.get(tool.name, not tool.trust)


def container_of(
    given: Mapping[str, Any], path: str, items: Sequence[Mapping[str, Any]], changes: Changes
) -> str | None:
    """The container in which code is to run; None for a new one.

    Args:
        items: of the conversation.
    """
    container = given.get("container")
    if isinstance(container, str):
        return container
    if container is not None and not isinstance(container, dict):
        raise wrong_type(path + "container", "a string or an object", container)
    for name in ("file_ids", "memory_limit", "network_policy"):
        if (container or {}).get(name):
            changes.lose("tools", f"of type '{CODE}' take no '{name}'", what=f"{CODE}-{name}")
    return mcp_items.container_in(items)


# --- approvals ------------------------------------------------------------------------------------


class Approved(NamedTuple):
    """A call that the client has approved.

    Attributes:
        request: the item by which it was asked.
        tool: as this request offers it.
    """

    request: Mapping[str, Any]
    tool: OfferedTool


def approved(
    history: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]],
    offered: Mapping[tuple[str, str], OfferedTool],
) -> list[Approved]:
    """The calls that a request approves, and that were not carried out before.

    Args:
        offered: the tools of the request, by label and name.

    Raises:
        BadRequest: an approval belongs to nothing, or its tool is not one of the request's.
    """
    items = [*history, *own]
    requests = {
        str(each.get("id")): each for each in items if each.get("type") == mcp_items.APPROVAL
    }
    done = {each.get("approval_request_id") for each in items if each.get("type") == mcp_items.CALL}
    # What was answered in an earlier request is over, also where its answer failed.
    done |= {
        each.get("approval_request_id") for each in history if each.get("type") == mcp_items.ANSWER
    }
    found: dict[str, Approved] = {}
    for index, item in enumerate(own):
        if item.get("type") != mcp_items.ANSWER:
            continue
        path = f"input[{index}]."
        id = validation.required_text(item, "approval_request_id", path)
        approve = item.get("approve")
        if not isinstance(approve, bool):
            raise wrong_type(path + "approve", "a boolean", approve)
        if id not in requests:
            raise BadRequest(
                f"No approval was asked for with the id '{header_token(id)}' in this conversation. "
                "Send 'previous_response_id', or the item of the question before its answer.",
                param=path + "approval_request_id",
                code="approval_request_not_found",
            )
        if not approve or id in done:
            continue
        request = requests[id]
        label = json_access.text(request.get("server_label"))
        name = json_access.text(request.get("name"))
        if (label, name) not in offered:
            raise BadRequest(
                f"The approved tool '{header_token(f'{label}.{name}')}' is not among the tools of "
                "this request. Send the same tool of type 'mcp' again.",
                param=path + "approval_request_id",
                code="tool_not_offered",
            )
        found[id] = Approved(request, offered[label, name])
    return list(found.values())
