"""The output items of the operator's tools while they grow: `mcp_call`, `mcp_approval_request`,
`mcp_list_tools`, and `code_interpreter_call`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.encoder import Outcome
from qwen_wsgi.protocol.responses.events import Deltas, Events
from qwen_wsgi.protocol.responses.output import COMPLETED, IN_PROGRESS, INCOMPLETE, Item, ProxyCall
from qwen_wsgi.protocol.responses.server_tools.mcp_items import (
    APPROVAL,
    CALL,
    CODE,
    FAILED,
    LIST,
)
from qwen_wsgi.protocol.responses.tools import Tool
from qwen_wsgi.protocol.server_tools import functions
from qwen_wsgi.protocol.server_tools.offer import OfferedTool
from qwen_wsgi.protocol.server_tools.results import (
    Told,
    ToolWork,
    code_in,
    data_url,
    for_model,
    told_of,
)

#: JSON-RPC's code for arguments that are none, and one for failures of ours.
_INVALID, _OURS = -32602, -32000


class ToolCallItem(ProxyCall):
    """A call of one of the operator's tools, while it grows and while it runs."""

    def __init__(
        self, events: Events, size: AnswerSize, id: str, index: int, *, call_id: str, tool: Tool
    ) -> None:
        super().__init__(events, size, id, index, call_id=call_id, tool=tool)
        assert tool.offered is not None, "it is one of the operator's"
        self._offered = tool.offered
        self._told: Told | None = None
        self._failure: ApiError | None = None

    def work(self) -> ToolWork:
        """What is to be done."""
        return ToolWork(self._offered, str(self._arguments), self.tool.container)

    def settle(self, outcome: Outcome) -> bytes:
        """Render how the call ended."""
        self._told, self._failure = told_of(outcome), outcome.failure
        if not self._size.has_room(len(self._told.text)):
            self._told = Told("The result was too large for the answer.", error=True)
        self._size.add_text(self._told.text)
        return self.finish(FAILED if self._told.error else COMPLETED)

    def _named(self) -> dict[str, Any]:
        return {"server_label": self._offered.server, "name": self._offered.name}

    def _text(self) -> str:
        return str(self._arguments) or "{}"


class McpCall(ToolCallItem):
    """A call of a tool of an MCP server.

    Args:
        request: the id of the approval that was asked for it, or None.
    """

    def __init__(
        self,
        events: Events,
        size: AnswerSize,
        id: str,
        index: int,
        *,
        call_id: str,
        tool: Tool,
        request: str | None = None,
    ) -> None:
        super().__init__(events, size, id, index, call_id=call_id, tool=tool)
        self._request = request
        self._deltas = Deltas(events, "response.mcp_call_arguments.delta", self._places)

    def begin(self) -> bytes:
        return super().begin() + self._event("in_progress")

    def grow(self, arguments: str) -> bytes:
        if not arguments:
            return b""
        self._arguments.add(arguments)
        return self._deltas.render(arguments)

    def running(self) -> bytes:
        return self._events.render(
            "response.mcp_call_arguments.done", **self._places, arguments=self._text()
        )

    def _event(self, what: str) -> bytes:
        return self._events.render(f"response.mcp_call.{what}", **self._places)

    def _last(self, status: str) -> bytes:
        return self._event("completed" if status == COMPLETED else "failed")

    def _render(self, status: str) -> dict[str, Any]:
        told, failed = self._told, status not in (IN_PROGRESS, COMPLETED)
        return {
            "id": self._id,
            "type": CALL,
            "status": status,
            **self._named(),
            "arguments": "" if status == IN_PROGRESS else self._text(),
            "approval_request_id": self._request,
            "output": None if told is None or told.error else for_model(told),
            "error": self._error() if failed else None,
        }

    def _error(self) -> dict[str, Any]:
        if self._failure is not None:
            code = _INVALID if self._failure.status == 400 else _OURS
            return {"type": "mcp_protocol_error", "code": code, "message": self._failure.message}
        said = "The call did not run." if self._told is None else self._told.text
        content = [{"type": "text", "text": said}]
        return {"type": "mcp_tool_execution_error", "content": content}


class CodeCall(ToolCallItem):
    """A run of the code interpreter."""

    def begin(self) -> bytes:
        return super().begin() + self._event("in_progress")

    def grow(self, arguments: str) -> bytes:
        """Add to the arguments; the client gets the code in one piece when it is complete."""
        self._arguments.add(arguments)
        return b""

    def running(self) -> bytes:
        code = self._code()
        render = self._events.render
        return (
            render("response.code_interpreter_call_code.delta", **self._places, delta=code)
            + render("response.code_interpreter_call_code.done", **self._places, code=code)
            + self._event("interpreting")
        )

    def _code(self) -> str:
        return code_in(str(self._arguments))

    def _event(self, what: str) -> bytes:
        return self._events.render(f"response.code_interpreter_call.{what}", **self._places)

    def _last(self, status: str) -> bytes:
        return b"" if status == INCOMPLETE else self._event("completed")

    def _render(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": CODE,
            "status": status,
            "code": "" if status == IN_PROGRESS else self._code(),
            "container_id": self.tool.container,
            "outputs": None if self._told is None else self._outputs(self._told),
        }

    def _outputs(self, told: Told) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = [{"type": "logs", "logs": told.text}] if told.text else []
        for image in told.images:
            if self._done is None and self._size.has_room(2 * len(image.data)):
                self._size.add(2 * len(image.data))
                outputs.append({"type": "image", "url": data_url(image)})
        return outputs


class ApprovalRequest(ProxyCall):
    """The question whether a tool may be called: the client answers it with its next request."""

    is_run = False

    def grow(self, arguments: str) -> bytes:
        self._arguments.add(arguments)
        return b""

    def _last(self, status: str) -> bytes:
        return b""

    def _render(self, status: str) -> dict[str, Any]:
        offered = self.tool.offered
        assert offered is not None, "only the operator's tools are approved"
        return {
            "id": self._id,
            "type": APPROVAL,
            "server_label": offered.server,
            "name": offered.name,
            "arguments": "" if status == IN_PROGRESS else str(self._arguments) or "{}",
        }


class ToolList(Item):
    """The tools of a server, as a client of OpenAI's is told them."""

    def __init__(
        self,
        events: Events,
        size: AnswerSize,
        id: str,
        index: int,
        *,
        label: str,
        tools: Sequence[OfferedTool],
    ) -> None:
        super().__init__(events, size, id, index)
        self._label = label
        self._tools = [
            {
                "name": tool.name,
                "description": functions.description(tool.description),
                "input_schema": tool.schema,
                "annotations": None,
            }
            for tool in tools
        ]
        size.add_objects(self._tools)

    def begin(self) -> bytes:
        return super().begin() + self._event("in_progress")

    def _event(self, what: str) -> bytes:
        return self._events.render(f"response.{LIST}.{what}", **self._places)

    def _last(self, status: str) -> bytes:
        return self._event("completed")

    def _render(self, status: str) -> dict[str, Any]:
        tools = [] if status == IN_PROGRESS else self._tools
        return {"id": self._id, "type": LIST, "server_label": self._label, "tools": tools}
