"""The operator's tools in one answer: MCP servers, Python; the runner runs them."""

from __future__ import annotations

import hashlib

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.encoder import Outcome, ServerCall
from qwen_wsgi.protocol.json_access import read
from qwen_wsgi.protocol.server_tools.results import ToolWork
from qwen_wsgi.tools.relay import AT_A_TIME, Bounds, ToolsUnavailable
from qwen_wsgi.tools.runner import RunnerUnavailable, ServerTool, ToolRunner


class RunnerTools:
    """Has the runner run the tools of one answer.

    Args:
        owner: the client: nobody gets into a container of somebody else's.
        most: calls of the whole answer.
    """

    unit = "tool_calls"
    at_a_time = AT_A_TIME

    def __init__(self, runner: ToolRunner, bounds: Bounds, *, owner: str, most: int) -> None:
        self.most = most
        self._runner = runner
        self._bounds = bounds
        self._owner = owner

    def run(self, call: ServerCall, record: CallRecord) -> Outcome:
        """Have a tool run. Raises as `TurnTool.run`."""
        work: ToolWork = call.work()
        tool = work.tool
        assert isinstance(tool, ServerTool), "the runner has offered it"
        arguments = _arguments(work.arguments)
        record.count_tools({f"{tool.server}.{tool.name}": 1})
        container = work.container and _container(self._owner, work.container)
        seconds = max(1.0, self._bounds.left_s())
        try:
            result = self._runner.call(tool, arguments, seconds=seconds, container=container)
        except RunnerUnavailable as error:
            raise ToolsUnavailable(error.reason) from None
        return Outcome(result)


def _container(owner: str, id: str) -> str:
    """The name of a client's container at the runner."""
    return hashlib.sha256(f"{owner}\0{id}".encode(errors="replace")).hexdigest()[:32]


def _arguments(text: str) -> dict[str, object]:
    """The arguments of a call.

    Raises:
        BadRequest: they are no JSON object. The text is for the model.
    """
    given = read(text.encode("utf-8", "surrogatepass")) if text.strip() else {}
    if not isinstance(given, dict):
        raise BadRequest("The arguments must be a JSON object. Call the tool again with one.")
    return given
