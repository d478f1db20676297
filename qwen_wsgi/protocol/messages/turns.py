"""Encodes an answer of several turns for a client of Anthropic's API.

The model, the operator's tools, the model again: all of it is one message.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.answer_text import Text
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.chat.normalize import TRUNCATED
from qwen_wsgi.protocol.chat.tool_calls import ToolCall, ToolCalls, made_up_id
from qwen_wsgi.protocol.encoder import Outcome, ServerCall
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.messages import server_tools
from qwen_wsgi.protocol.messages.answer import head, input_of
from qwen_wsgi.protocol.messages.history import messages_of
from qwen_wsgi.protocol.messages.request import MessagesRequest
from qwen_wsgi.protocol.messages.stream import WHOLE, GrowingBlock, MessagesEncoder
from qwen_wsgi.protocol.server_tools import next_turn
from qwen_wsgi.protocol.server_tools.offer import OfferedTool
from qwen_wsgi.protocol.server_tools.results import RUNNER, ToolWork, limit_text, told_of
from qwen_wsgi.protocol.usage import Usage, total

_PAUSED: Final = "pause_turn"


class _OwnCall(NamedTuple):
    """A call of one of the operator's tools.

    Attributes:
        id: of its block.
        arguments: as the model wrote them.
    """

    tool: OfferedTool
    id: str
    arguments: Text


class TurnsEncoder(MessagesEncoder):
    """Encodes several turns as one message; it keeps the blocks, which the next turn needs.

    Args:
        request: with tools of the operator.
        id: of the message: `msg_…`.
        model: the client's name for it.
        expires: until when the container of a new run of code stays, as RFC 3339 has times.
        request_id: for errors.
    """

    tells_failures = False

    def __init__(
        self, request: MessagesRequest, *, id: str, model: str, expires: str, request_id: str
    ) -> None:
        super().__init__(
            id=id,
            model=model,
            stops=request.stops,
            request_id=request_id,
            searches=request.searches,
        )
        assert request.own is not None, "others have one turn"
        self._own = request.own
        self._chat = request.chat
        self._container = {
            "id": self._own.container or "container_" + id.removeprefix("msg_"),
            "expires_at": expires,
        }
        #: The finished blocks of the message, and the one that grows.
        self._content: list[dict[str, Any]] = []
        self._open: dict[str, Any] = {}
        self._grown = Text(self._size)
        #: The calls of this turn that the proxy carries out, and how many there were before it.
        self._own_calls: dict[ToolCall, _OwnCall] = {}
        self._calls_before = 0
        self._spent: list[Usage | None] = []
        self._paused = self._ran_code = False

    def message(self) -> dict[str, Any]:
        """The whole message, after the end."""
        usage = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return {
            **head(self._id, self._model),
            "content": self._content,
            **self._stop(),
            "usage": {**usage, **self._used()},
        }

    # --- blocks, which are kept as they are sent --------------------------------------------------

    def _event(self, value: dict[str, Any]) -> None:
        kind = value["type"]
        if kind == "content_block_start":
            self._open, self._grown = {**value["content_block"]}, Text(self._size)
        elif kind == "content_block_delta":
            self._add_delta(value["delta"])
        elif kind == "content_block_stop":
            self._content.append(self._finished())
        super()._event(value)

    def _add_delta(self, delta: dict[str, Any]) -> None:
        if "signature" in delta:
            self._open["signature"] = delta["signature"]
        elif "citation" in delta:
            self._open.setdefault("citations", []).append(delta["citation"])
        elif "partial_json" in delta:
            self._grown.add(delta["partial_json"])

    def _finished(self) -> dict[str, Any]:
        block, grown = self._open, str(self._grown)
        kind = block["type"]
        if kind in ("text", "thinking"):
            block[kind] = grown or block[kind]
        elif kind in ("tool_use", *server_tools.USES) and not block["input"]:
            block["input"] = input_of(grown)
        return block

    def _send(self, block: GrowingBlock) -> None:
        own = self._own_calls.get(block.call) if block.call is not None else None
        if own is not None:
            for text in block.held:
                own.arguments.add(text)
            if server_tools.is_code(own.tool, self._own):
                block.held.clear()  # it has another form, of the whole
        for text in block.held:
            self._grown.add(text)
        super()._send(block)

    def _close(self, block: GrowingBlock) -> None:
        own = self._own_calls.get(block.call) if block.call is not None else None
        if own is not None and server_tools.is_code(own.tool, self._own):
            block.held.append(compact(server_tools.shown_input(str(own.arguments), self._own)))
            for text in block.held:
                self._grown.add(text)
            super()._send(block)
        super()._close(block)

    def _use_of(self, call: ToolCall) -> dict[str, Any]:
        tool = self._own.functions.tool_of(call.name)
        if tool is None:
            return super()._use_of(call)
        call_id = call.id or made_up_id(self._id, self._calls_before + call.number)
        id = server_tools.id_of(tool, call_id, self._own)
        self._own_calls[call] = _OwnCall(tool, id, Text(self._size))
        return server_tools.use_of(tool, id, self._own)

    # --- turns ------------------------------------------------------------------------------------

    def end_turn(self) -> bytes:
        """Encode the end of a turn's blocks."""
        if not self._started:
            self._start()
        self._close_all()
        self._spent.append(self._usage)
        self._usage = None
        return self._flush()

    def waiting(self) -> Sequence[ServerCall]:
        """The calls of the turn that the proxy is to carry out."""
        if self._finish in TRUNCATED:  # a call may be cut
            return []
        return [
            ServerCall(RUNNER, call.number, partial(self._work_of, own))
            for call, own in self._own_calls.items()
        ]

    def _work_of(self, own: _OwnCall) -> ToolWork:
        is_code = server_tools.is_code(own.tool, self._own)
        self._ran_code = self._ran_code or is_code
        return ToolWork(
            own.tool, str(own.arguments), str(self._container["id"]) if is_code else None
        )

    def begin_call(self, call: ServerCall) -> bytes:
        """Nothing is shown: the client has the block of the call."""
        return b""

    def end_call(self, call: ServerCall, outcome: Outcome) -> bytes:
        """Encode the block of a result."""
        (own,) = (own for known, own in self._own_calls.items() if known.number == call.number)
        told = told_of(outcome)
        block = server_tools.result_of(own.tool, own.id, told, outcome.failure, self._own)
        self._size.add_objects(block)
        self._append(GrowingBlock(WHOLE, whole=block))
        self._advance()
        return self._flush()

    def stop(self, error: ApiError) -> bytes:
        """Encode that no more tools run: the client may send the message back, and it goes on."""
        sent = b"".join(self.end_call(each, Outcome(failure=error)) for each in self.waiting())
        self._paused = True
        self._add("text", limit_text(error).lstrip())
        self._close_all()
        return sent + self._flush()

    def next_turn(self, *, last: bool) -> ChatRequest | None:
        """The next turn's request. None if no tool has run, the answer was cut, or the client has
        to run tools of its own first."""
        if not self._own_calls or self._called or self._finish in TRUNCATED:
            return None
        said = messages_of(
            [{"role": "assistant", "content": self._content}], Changes(), self._own.functions
        )
        self._calls_before += len(self._own_calls)
        self._calls, self._by_call, self._own_calls = ToolCalls(), {}, {}
        self._finish = self._matched = None
        own = self._own.functions.names()
        return next_turn.next_request(self._chat, list(said), own, last=last)

    def approved(self) -> Sequence[ServerCall]:
        """None: clients of this API are not asked."""
        return ()

    def resume(self, outcomes: Sequence[Outcome]) -> ChatRequest:
        """The first request as it is."""
        return self._chat

    def _stop(self) -> dict[str, Any]:
        stop = super()._stop()
        if self._paused:
            stop["stop_reason"] = _PAUSED
        if self._ran_code:
            stop["container"] = self._container
        return stop

    def _used(self) -> dict[str, Any]:
        if self._spent:
            self._usage = total([*self._spent, *([self._usage] if self._usage else [])])
            self._spent = []
        return super()._used()
