"""What the runner of tools offers to a worker: its tools, and their results.

The runner is a process of its own (`qwen_wsgi.tool_runner`); `runner_client` talks to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwen_wsgi.protocol.server_tools.foreign import ForeignServer


@dataclass(frozen=True)
class ServerTool:
    """One tool that the operator offers.

    Attributes:
        server: its server's label, e.g. `time`; those that are built in are `python` and `fetch`.
        name: as the server names it.
        schema: the JSON schema of its arguments.
        trust: no approval is asked before it runs.
        at: the server, where the client has brought it; None for the operator's.
    """

    server: str
    name: str
    description: str
    schema: Mapping[str, object]
    trust: bool
    at: ForeignServer | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether the client has brought its server."""
        return self.at is not None


@dataclass(frozen=True)
class ToolImage:
    """A picture that a tool has made."""

    media_type: str
    data: bytes


@dataclass(frozen=True)
class ToolResult:
    """What a tool answered, or why it failed.

    Attributes:
        text: what the model reads; a text that was longer than the limit is cut, and says so.
        is_error: the tool failed; `text` says why.
        structured: MCP's `structuredContent`, if there is any.
    """

    text: str
    is_error: bool
    images: tuple[ToolImage, ...] = ()
    structured: object = None


class RunnerUnavailable(Exception):
    """No tool can run now: a fault of ours, and not of a tool.

    Attributes:
        reason: one sentence for a person: what happened, and what to do.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ForeignServerError(Exception):
    """A server that a client has brought cannot be used.

    Attributes:
        reason: one sentence for the client, and what to do.
        is_refused: no connection is made to it.
    """

    def __init__(self, reason: str, *, is_refused: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_refused = is_refused


class ToolRunner(Protocol):
    """Runs tools outside the workers."""

    def offered(self) -> Sequence[ServerTool]:
        """The tools that can be called now. Cached.

        Raises:
            RunnerUnavailable: the runner does not answer.
        """

    def offered_at(self, server: ForeignServer) -> Sequence[ServerTool]:
        """The tools of a server that a client has brought. Asked anew each time.

        Raises:
            ForeignServerError: it cannot be used.
            RunnerUnavailable: the runner does not answer.
        """

    def troubles(self) -> Mapping[str, str]:
        """Why servers offer nothing, by their labels.

        Raises:
            RunnerUnavailable: the runner does not answer.
        """

    def call(
        self,
        tool: ServerTool,
        arguments: Mapping[str, object],
        *,
        seconds: float,
        container: str | None = None,
    ) -> ToolResult:
        """Run a tool, and wait for its result. Cancelled when its greenlet is killed.

        Args:
            seconds: for the whole call; what takes longer is cancelled, and is an error result.
            container: of the tool `python`: calls with the same one share a process and its files.

        Raises:
            RunnerUnavailable: the runner does not answer, or ended meanwhile.
        """
