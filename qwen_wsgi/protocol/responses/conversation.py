"""Translates items to the messages of a chat.

OpenAI's items are a flat list: thinking, a text, each call, each output. A chat has an assistant's
message with all of its calls, and directly after it one answer for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.responses import compaction, content, items
from qwen_wsgi.protocol.responses.server_tools import image_tool, mcp_items
from qwen_wsgi.protocol.responses.tools import Names
from qwen_wsgi.protocol.server_tools.offer import PYTHON
from qwen_wsgi.protocol.server_tools.results import NOT_APPROVED

#: An item with tools, which are added to those of the whole request.
ADDITIONAL_TOOLS: Final = "additional_tools"

_ROLES: Final = ("user", "assistant", "system", "developer")

#: Calls of client tools that are not functions, and the member with their input. They become
#: function calls: the history may come from another model.
_OTHER_CALLS: Final[Mapping[str, str]] = {
    "local_shell_call": "action",
    "shell_call": "action",
    "apply_patch_call": "operation",
}
_OUTPUTS: Final = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
    }
)

#: Items without text for the model: nothing is lost.
_SILENT: Final = frozenset(
    # A trigger of the latest request is a message of its own (`request`); of others there is the
    # summary.
    {"web_search_call", mcp_items.LIST, ADDITIONAL_TOOLS, compaction.TRIGGER}
)
_DROPPED: Final = frozenset(
    {
        "computer_call",
        "computer_call_output",
        "configuration_update",
        "file_search_call",
        "program",
        "program_output",
        "tool_search_call",
        "tool_search_output",
    }
)
_KNOWN: Final = (
    *("message", "reasoning", "function_call", "custom_tool_call"),
    *("function_call_output", "custom_tool_call_output", image_tool.CALL, items.REFERENCE),
)

#: The answer to a call without one, because hosts refuse such a chat. The call itself stays: the
#: tool may have run, and the model would call it again.
INTERRUPTED: Final = "[The call was interrupted. It is not known whether it had an effect.]"
#: The answer to a call that the client did not approve.
DENIED: Final = "[The user has refused this call, so it did not run.]"


@dataclass(eq=False)
class _Call:
    """One call and its outputs."""

    id: str
    name: str
    arguments: str
    message: _Answer
    answers: list[str] = field(default_factory=list)
    media: list[dict[str, Any]] = field(default_factory=list)


@dataclass(eq=False)
class _Answer:
    """A message of the assistant while it grows.

    Attributes:
        over: one of its calls has an output, so further items belong to a later message.
    """

    content: str | None = None
    thoughts: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    over: bool = False


class Conversation:
    """Builds messages from items.

    Args:
        names: the tools' names in chat.
        changes: lists dropped items.
    """

    def __init__(self, names: Names, changes: Changes) -> None:
        self._names, self._changes = names, changes
        self._messages: list[dict[str, Any] | _Answer] = []
        #: Thinking that belongs to the next message of the assistant.
        self._thoughts: list[str] = []
        #: By their ids: the latest call, and those without an output. Some hosts reuse ids.
        self._latest: dict[str, _Call] = {}
        #: The calls that the client must approve, by the ids of their items.
        self._approvals: dict[str, _Call] = {}
        self._open: dict[str, list[_Call]] = {}

    def instruct(self, text: str) -> None:
        """Add a system message."""
        self._messages.append({"role": "system", "content": text})

    def add(self, item: Mapping[str, Any], path: str) -> None:
        """Add the next item, as `items.normalized` returns it.

        Args:
            path: of the item in the request, for refusals: `input[3].`.

        Raises:
            BadRequest: it is invalid, or Qwen's models do not support it.
        """
        item = dict(item)
        kind = items.kind_of(item, path)
        if kind == "message":
            self._message(item, path)
        elif kind == "reasoning":
            if thought := _thought(item):
                self._thoughts.append(thought)
        elif kind in ("function_call", "custom_tool_call") or kind in _OTHER_CALLS:
            self._call(item, kind, path)
        elif kind in _OUTPUTS:
            self._output(item, kind, path)
        elif kind == image_tool.CALL:
            self._picture(item, path)
        elif kind in (mcp_items.CALL, mcp_items.APPROVAL):
            self._mcp(item, kind, path)
        elif kind == mcp_items.ANSWER:
            self._approval(item, path)
        elif kind == mcp_items.CODE:
            self._code(item, path)
        elif kind in compaction.SUMMARIES:
            self._summary(item, kind, path)
        elif kind not in _SILENT:
            self._other(kind, path)

    def _message(self, item: dict[str, Any], path: str) -> None:
        role = validation.required_text(item, "role", path)
        if role not in _ROLES:
            raise validation.bad_value(path + "role", role, _ROLES)
        parts = content.parts_of(item, "content", path, self._changes)
        if role != "assistant":
            self._thoughts.clear()  # of a turn that was interrupted before its message
            self._messages.append({"role": role, "content": parts})
            return
        answer = self._growing()
        if answer is None or answer.content is not None:
            answer = self._begin()
        else:
            self._think(answer)
        answer.content = content.text_of(parts, "")
        for media in content.media_of(parts):
            raise validation.bad_value(path + "content", media["type"], ("output_text", "refusal"))

    def _call(self, item: dict[str, Any], kind: str, path: str) -> None:
        name, arguments = self._called(item, kind, path)
        id = validation.text(item, "call_id", path) or validation.text(item, "id", path)
        if not id:
            raise validation.missing(path + "call_id")
        call = self._called_by(id, name, arguments)
        self._latest[id] = call
        self._open.setdefault(id, []).append(call)

    def _called_by(self, id: str, name: str, arguments: str) -> _Call:
        """Add a call to the assistant's message, or begin one with it."""
        answer = self._growing()
        if answer is None:
            answer = self._begin()
        else:
            self._think(answer)
        call = _Call(id, name, arguments, answer)
        answer.calls.append(call)
        return call

    def _picture(self, item: dict[str, Any], path: str) -> None:
        """Add a picture that the assistant had made: a call and its output, without the picture."""
        id = validation.text(item, "id", path) or ""
        arguments = compact(image_tool.arguments_of(item))
        call = self._called_by(id, self._names.of_server(image_tool.NAME), arguments)
        call.answers.append(image_tool.told_of(item))
        call.message.over = True

    def _mcp(self, item: dict[str, Any], kind: str, path: str) -> None:
        """Add a call of one of the operator's tools, or the question for one. The call that was
        approved is the one that was asked for."""
        output = mcp_items.output_of(item) if kind == mcp_items.CALL else None
        call = self._approvals.get(validation.text(item, "approval_request_id", path) or "")
        if call is None:
            label = validation.required_text(item, "server_label", path)
            name = self._names.of_offered(label, validation.required_name(item, path))
            id = validation.text(item, "id", path) or ""
            call = self._called_by(id, name, mcp_items.valid_arguments(item))
            if kind == mcp_items.APPROVAL:
                self._approvals[id] = call
        if output is not None:
            call.answers.append(output)
            call.message.over = True

    def _approval(self, item: dict[str, Any], path: str) -> None:
        """Add the client's answer to the question for a call: the call itself comes later."""
        call = self._approvals.get(validation.text(item, "approval_request_id", path) or "")
        if call is None:
            return
        call.message.over = True
        if item.get("approve") is False:
            reason = validation.text(item, "reason", path)
            call.answers.append(DENIED + (f" The user's reason: {reason}" if reason else ""))

    def _code(self, item: dict[str, Any], path: str) -> None:
        """Add a run of code."""
        id = validation.text(item, "id", path) or ""
        name = self._names.of_offered(PYTHON, PYTHON)
        call = self._called_by(id, name, mcp_items.code_arguments(item))
        if (output := mcp_items.logs_of(item)) is not None:
            call.answers.append(output)
            call.message.over = True

    def _called(self, item: dict[str, Any], kind: str, path: str) -> tuple[str, str]:
        """A call's name and arguments in chat."""
        if kind in _OTHER_CALLS:
            given = validation.mapping(item, _OTHER_CALLS[kind], path)
            return kind.removesuffix("_call"), compact(given or {})
        name = self._names.in_chat(
            validation.required_name(item, path), validation.text(item, "namespace", path)
        )
        if kind == "custom_tool_call":
            return name, compact({"input": validation.required_text(item, "input", path)})
        return name, validation.required_text(item, "arguments", path)

    def _output(self, item: dict[str, Any], kind: str, path: str) -> None:
        id = validation.text(item, "call_id", path) or validation.text(item, "id", path) or ""
        if "call_id" not in item and kind != "local_shell_call_output":
            raise validation.missing(path + "call_id")
        if id not in self._latest:
            raise BadRequest(
                f"No tool call found for {kind.replace('_', ' ')} with call_id {header_token(id)}.",
                param="input",
            )
        still_open = self._open[id]
        call = still_open.pop() if still_open else self._latest[id]
        if kind in ("shell_call_output", "apply_patch_call_output"):
            parts: str | list[dict[str, Any]] = compact(item.get("output"))
        else:
            parts = content.parts_of(item, "output", path, self._changes)
        call.answers.append(content.text_of(parts, "\n"))
        call.media += content.media_of(parts)
        call.message.over = True

    def _summary(self, item: dict[str, Any], kind: str, path: str) -> None:
        """Add a summary as a message of the user: without it, the conversation is another one."""
        text = compaction.message_of(item)
        if text is None:
            raise validation.unsupported(
                path + "encrypted_content",
                f"This item of type '{kind}' holds a summary that only the server that made it can "
                "read. Send the items instead.",
            )
        self.say(text)

    def say(self, text: str) -> None:
        """Add a message of the user."""
        self._thoughts.clear()
        self._messages.append({"role": "user", "content": text})

    def _other(self, kind: str, path: str) -> None:
        if kind not in _DROPPED:
            raise validation.bad_value(path + "type", kind, _KNOWN)
        self._changes.lose(
            "input",
            f"has an item of type '{kind}', which chat does not have",
            what=f"{kind}-dropped",
        )

    def _unanswered(self, call: _Call) -> str:
        if call is self._approvals.get(call.id):
            return NOT_APPROVED
        self._changes.note("input", "interrupted-call-answered")
        return INTERRUPTED

    def _growing(self) -> _Answer | None:
        """The assistant's message to which the next item of the assistant belongs, or None."""
        last = self._messages[-1] if self._messages else None
        return last if isinstance(last, _Answer) and not last.over else None

    def _begin(self) -> _Answer:
        answer = _Answer()
        self._messages.append(answer)
        self._think(answer)
        return answer

    def _think(self, answer: _Answer) -> None:
        answer.thoughts += self._thoughts
        self._thoughts.clear()

    def messages(self) -> list[dict[str, Any]]:
        """The messages, with the answers to calls directly after them.

        A message between a call and its output is moved after the output.
        """
        return [message for each in self._messages for message in self._rendered(each)]

    def _rendered(self, answer: dict[str, Any] | _Answer) -> Iterator[dict[str, Any]]:
        if isinstance(answer, dict):
            yield answer
            return
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.thoughts:
            message["reasoning_content"] = "\n\n".join(answer.thoughts)
        if answer.calls:
            message["tool_calls"] = [_tool_call(call) for call in answer.calls]
        yield message
        media: list[dict[str, Any]] = []
        for call in answer.calls:
            output = "\n".join(call.answers) if call.answers else self._unanswered(call)
            if call.media:
                # A tool's message takes only text.
                output = output or "[See the next message.]"
                media.append({"type": "text", "text": f"[Output of {call.name}, call {call.id}]"})
                media += call.media
            yield {"role": "tool", "tool_call_id": call.id, "content": output}
        if media:
            yield {"role": "user", "content": media}


def _tool_call(call: _Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _thought(item: Mapping[str, Any]) -> str:
    """The thinking of a reasoning item: the packed one, else its content, else its summary."""
    if (packed := content.unpack_thinking(item.get("encrypted_content"))) is not None:
        return packed
    for name in ("content", "summary"):
        parts = objects(item.get(name))
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        if texts:
            return "\n\n".join(texts)
    return ""
