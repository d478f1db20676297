"""A runner of tools without processes: what its tools do is a test's own function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_wsgi.protocol.server_tools.foreign import ForeignServer
from qwen_wsgi.tool_runner.servers.foreign_hosts import NotAllowed, target_of
from qwen_wsgi.tools.runner import (
    ForeignServerError,
    RunnerUnavailable,
    ServerTool,
    ToolResult,
)

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string"}},
    "required": ["zone"],
}
CODE: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "string"}},
    "required": ["code"],
}

NOW = ServerTool("time", "now", "Tells the time in a zone.", CITY, trust=True)
ZONES = ServerTool("time", "zones", "Lists the zones.", {"type": "object"}, trust=True)
WRITE = ServerTool("files", "write", "Writes a file.", CITY, trust=False)
PYTHON = ServerTool("python", "run", "Runs Python.", CODE, trust=False)


@dataclass(frozen=True)
class Ran:
    """One call that the runner got."""

    tool: str
    arguments: Mapping[str, object]
    seconds: float
    container: str | None


def says_what(tool: ServerTool, arguments: Mapping[str, object]) -> ToolResult:
    """A result that names the call."""
    given = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return ToolResult(f"{tool.name}({given}) is done", is_error=False)


class FakeRunner:
    """Offers tools, and does with a call what `does` does.

    Attributes:
        ran: the calls, in their order.
        asked: the servers of clients that were asked what they offer.
        down: why nothing can run; "" if it can.
    """

    def __init__(
        self,
        *tools: ServerTool,
        does: Callable[[ServerTool, Mapping[str, object]], ToolResult] = says_what,
        troubles: Mapping[str, str] | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        self.tools: Sequence[ServerTool] = tools or (NOW, ZONES, WRITE, PYTHON)
        self.ran: list[Ran] = []
        self.down = ""
        self._does = does
        self._troubles = troubles or {}
        self._hosts = hosts
        self.asked: list[ForeignServer] = []

    def offered(self) -> Sequence[ServerTool]:
        if self.down:
            raise RunnerUnavailable(self.down)
        return self.tools

    def offered_at(self, server: ForeignServer) -> Sequence[ServerTool]:
        if self.down:
            raise RunnerUnavailable(self.down)
        try:
            target = target_of(server.url, self._hosts)
        except NotAllowed as error:
            raise ForeignServerError(str(error), is_refused=True) from None
        self.asked.append(server)
        if target.host.startswith("broken"):
            raise ForeignServerError(f"{target.host} answers with HTTP 401.", is_refused=False)
        return [replace(each, server=server.label, trust=False, at=server) for each in (NOW, ZONES)]

    def troubles(self) -> Mapping[str, str]:
        return self._troubles

    def call(
        self,
        tool: ServerTool,
        arguments: Mapping[str, object],
        *,
        seconds: float,
        container: str | None = None,
    ) -> ToolResult:
        self.ran.append(Ran(f"{tool.server}.{tool.name}", arguments, seconds, container))
        if self.down:
            raise RunnerUnavailable(self.down)
        return self._does(tool, arguments)
