"""Tools that the proxy runs for a call: which ones its client may use, and the turns with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flask import Response

from qwen_wsgi.accounting.call_log import told_tools
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.protocol.server_tools.offer import Offer
from qwen_wsgi.protocol.server_tools.results import RUNNER
from qwen_wsgi.tools.relay import Bounds, ToolsUnavailable, TurnTool
from qwen_wsgi.tools.runner import RunnerUnavailable
from qwen_wsgi.tools.runner_tools import RunnerTools

#: Calls of tools in one answer, where the client sets no limit of its own.
MOST_CALLS: Final = 100

_HEADER: Final = "x-qwen-proxy-tools"


def offer_of(call: LiveCall) -> Offer | None:
    """The operator's tools that the client may use; None if the operator offers none.

    Keys of the environment may use all of them, keys of the database those of `--tools`. A caller
    that only brought a login of its own gets none.

    Raises:
        ToolsUnavailable: what runs them does not answer.
    """
    runner = call.services.tool_runner
    if runner is None:
        return None
    try:
        offered, troubles = tuple(runner.offered()), runner.troubles()
    except RunnerUnavailable as error:
        raise ToolsUnavailable(error.reason) from None
    client = call.client
    key = None if client is None else client.key
    is_guest = client is not None and client.web is not None and key is None

    def may_use(server: str, name: str = "") -> bool:
        return not is_guest and (key is None or key.allows_tool(server, name))

    tools = tuple(tool for tool in offered if may_use(tool.server, tool.name))
    labels = {tool.server for tool in offered} | troubles.keys()
    others = labels - {tool.server for tool in tools}
    refused = frozenset(label for label in others if not may_use(label))
    return Offer(tools, refused, troubles)


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
