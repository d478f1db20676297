"""A runner of tools without processes: what its tools do is a test's own function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_wsgi.tools.runner import RunnerUnavailable, ServerTool, ToolResult

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
        down: why nothing can run; "" if it can.
    """

    def __init__(
        self,
        *tools: ServerTool,
        does: Callable[[ServerTool, Mapping[str, object]], ToolResult] = says_what,
        troubles: Mapping[str, str] | None = None,
    ) -> None:
        self.tools: Sequence[ServerTool] = tools or (NOW, ZONES, WRITE, PYTHON)
        self.ran: list[Ran] = []
        self.down = ""
        self._does = does
        self._troubles = troubles or {}

    def offered(self) -> Sequence[ServerTool]:
        if self.down:
            raise RunnerUnavailable(self.down)
        return self.tools

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
