"""Tools that the proxy runs for a call: which ones its client may use, and the turns with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Final

from flask import Response

from qwen_wsgi.accounting.call_log import told_tools
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import BadRequest
from qwen_wsgi.greenlets import in_order
from qwen_wsgi.protocol.server_tools.foreign import ForeignServer
from qwen_wsgi.protocol.server_tools.offer import PYTHON, Offer, refused_address, unusable
from qwen_wsgi.protocol.server_tools.results import RUNNER
from qwen_wsgi.tools.relay import AT_A_TIME, Bounds, ToolsUnavailable, TurnTool
from qwen_wsgi.tools.runner import ForeignServerError, RunnerUnavailable, ServerTool, ToolRunner
from qwen_wsgi.tools.runner_tools import RunnerTools

#: Calls of tools in one answer, where the client sets no limit of its own.
MOST_CALLS: Final = 100

_HEADER: Final = "x-qwen-proxy-tools"

#: Labels that mean the proxy's own tools, also where they are not offered.
_BUILT_IN: Final = frozenset({PYTHON, "fetch"})


def offer_of(call: LiveCall, foreign: Sequence[ForeignServer] = ()) -> Offer | None:
    """The tools that the client may use: the operator's, and those of servers that it has brought;
    None if the operator offers none.

    Keys of the environment may use all of them, keys of the database those of `--tools`. A caller
    that only brought a login of its own gets none.

    Raises:
        ToolsUnavailable: what runs them does not answer.
        ApiError: a server that the client has brought cannot be used, or not with its key.
    """
    runner = call.services.tool_runner
    if runner is None:
        return None
    try:
        offered, troubles = tuple(runner.offered()), runner.troubles()
        labels = {tool.server for tool in offered} | troubles.keys()
        brought = _brought(call, runner, foreign, labels)
    except RunnerUnavailable as error:
        raise ToolsUnavailable(error.reason) from None
    may_use = partial(_may_use, call)
    tools = tuple(tool for tool in offered if may_use(tool.server, tool.name))
    others = labels - {tool.server for tool in tools}
    refused = frozenset(label for label in others if not may_use(label))
    addresses = {each.label: each.url for each in foreign}
    return Offer((*tools, *brought), refused, troubles, addresses)


def _may_use(call: LiveCall, server: str, name: str = "") -> bool:
    client = call.client
    key = None if client is None else client.key
    is_guest = client is not None and client.web is not None and key is None
    return not is_guest and (key is None or key.allows_tool(server, name))


def _brought(
    call: LiveCall, runner: ToolRunner, foreign: Sequence[ForeignServer], labels: Set[str]
) -> list[ServerTool]:
    """The tools of servers that the client has brought.

    Args:
        labels: of the operator's servers.
    """
    for each in foreign:
        if each.label in labels | _BUILT_IN:
            raise BadRequest(
                f"'{each.label}' is the label of a server that the operator of this one offers. "
                "Give yours another one.",
                param=each.param,
                code="invalid_value",
            )
        if not _may_use(call, each.origin):
            raise refused_address(each.origin, each.param)
    asks = (partial(_asked, runner, each) for each in foreign)
    return [tool for tools in in_order(asks, at_a_time=AT_A_TIME) for tool in tools]


def _asked(runner: ToolRunner, server: ForeignServer) -> Sequence[ServerTool]:
    try:
        found = runner.offered_at(server)
    except ForeignServerError as error:
        if error.is_refused:
            raise BadRequest(
                error.reason, param=server.param, code="tool_host_not_allowed"
            ) from None
        raise unusable(server, error.reason) from None
    if not found:
        raise unusable(server, "It offers no tools.")
    return found


def runner_tools(call: LiveCall, most: int | None) -> tuple[Mapping[str, TurnTool], Bounds]:
    """What runs the operator's tools in one answer, and what limits them.

    Args:
        most: calls that the client allows, or None.
    """
    services = call.services
    assert services.tool_runner is not None, "the request was offered some"
    settings = services.settings
    bounds = Bounds(settings.tool_rounds, settings.tool_time_s, services.clock)
    most = MOST_CALLS if most is None else min(most, MOST_CALLS)
    tools = RunnerTools(services.tool_runner, bounds, owner=call.owner, most=most)
    return {RUNNER: tools}, bounds


def told(call: LiveCall, response: Response) -> Response:
    """The response for a whole answer, with a header that names the tools that have run."""
    if call.record.tools:
        response.headers.add(_HEADER, told_tools(call.record.tools))
    return response
