"""A stream of chunks as Anthropic's events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.normalize import finish_reason
from qwen_wsgi.protocol.chat.tool_calls import (
    ToolCall,
    ToolCalls,
    arguments_of,
    made_up_id,
)
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.messages import errors
from qwen_wsgi.protocol.messages.answer import SIGNATURE, THINKING, head, stop_of, usage_of
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage

_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

#: A delta up to its text, and behind it.
_DELTA: Final = (
    "event: content_block_delta\n"
    'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":'
)
_DELTA_END: Final = b"}}\n\n"

_TEXT, _THINKING = "text", "thinking"
#: The type of a delta and the member that its text is in.
_DELTAS: Final = {_TEXT: ("text_delta", "text"), _THINKING: ("thinking_delta", "thinking")}
_TOOL_DELTA: Final = ("input_json_delta", "partial_json")


class _Block:
    """A content block: a text, a thinking, or a tool call while it grows.

    Attributes:
        call: None for the first two.
        held: what came of it and is not told yet.
        before: its deltas up to their text; empty until it is begun.
    """

    __slots__ = ("before", "call", "held", "index", "kind")

    def __init__(self, kind: str, call: ToolCall | None = None) -> None:
        self.kind = kind
        self.call = call
        self.held: list[str] = []
        self.before = b""
        self.index = 0

    @property
    def ready(self) -> bool:
        """Whether enough is known to begin it."""
        return self.call is None or bool(self.call.id and self.call.name)

    @property
    def over(self) -> bool:
        """Whether nothing more can come that belongs to it."""
        return self.call is None or self.call.complete


class MessagesEncoder:
    """Tells a stream to a client of Anthropic's API.

    There, blocks come one after the other. Chat may go on with a tool call after another one, or a
    text, began: what belongs to a later block is held back until the call before it is a whole
    object of JSON. What the upstream sends in another form than it should is passed over.

    The truth about usage comes with the last chunk, so `message_start` says 0 and `message_delta`
    corrects it, as SDKs expect. SDKs raise at an `error` event, so the stream may end behind it.

    Args:
        id: of the message, as in `msg_…`.
        model: as the client named it.
        stops: the client's stop sequences.
        request_id: stands in errors.
    """

    ends_after_failure = True

    def __init__(
        self, *, id: str, model: str, stops: Sequence[str] = (), request_id: str = ""
    ) -> None:
        self._id, self._model, self._stops, self._request_id = id, model, stops, request_id
        self._out: list[bytes] = []
        self._started = False
        #: The open block first, then those that wait for it.
        self._blocks: list[_Block] = []
        self._count = 0
        self._calls = ToolCalls()
        self._by_call: dict[ToolCall, _Block] = {}
        self._called = False
        self._finish: str | None = None
        self._matched: Any = None
        self._usage: Usage | None = None

    def feed(self, events: bytes) -> bytes:
        """The blocks that grow by some chunks; the first time after the message's own beginning."""
        if not self._started:
            self._start()
        for event in sse.events(events):
            chunk = sse.parse(event)
            if isinstance(chunk, dict):
                self._take(chunk)
        return self._told()

    def end(self) -> bytes:
        """Why the answer ended and what it used."""
        if not self._started:
            self._start()
        self._close_all()
        stop = stop_of(self._finish, self._matched, stops=self._stops, called=self._called)
        self._event({"type": "message_delta", "delta": stop, "usage": usage_of(self._usage)})
        self._out.append(_STOP)
        return self._told()

    def fail(self, error: ApiError) -> bytes:
        """An error event; blocks that are open stay so, because they are not whole."""
        self._event(errors.body(error, request_id=self._request_id))
        return self._told()

    def keep_alive(self, kind: str) -> bytes:
        """A ping, which SDKs pass over, wherever it comes."""
        return _PING

    def _told(self) -> bytes:
        told = b"".join(self._out)
        self._out.clear()
        return told

    def _event(self, value: dict[str, Any]) -> None:
        self._out.append(b"event: " + value["type"].encode() + b"\n" + sse.render(value))

    def _start(self) -> None:
        self._started = True
        usage = {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        message = {**head(self._id, self._model), "usage": usage}
        self._event({"type": "message_start", "message": message})
        self._out.append(_PING)

    # --- chunks ---------------------------------------------------------------------------------

    def _take(self, chunk: dict[str, Any]) -> None:
        choices = chunk.get("choices")
        if choices.__class__ is list and choices:
            choice = choices[0]
            if choice.__class__ is dict and not choice.get("index"):
                delta = choice.get("delta")
                if delta.__class__ is dict:
                    self._grow(delta)
                if choice.get("finish_reason"):
                    self._end_choice(choice)
        if (usage := chunk.get("usage")) is not None:
            self._usage = parse_usage(usage) or self._usage

    def _end_choice(self, choice: dict[str, Any]) -> None:
        finish = finish_reason(choice["finish_reason"], called=bool(self._calls))
        if finish is not None:
            self._finish, self._matched = finish, choice.get("stop_reason")
            self._close_all()

    def _grow(self, delta: dict[str, Any]) -> None:
        for name in THINKING:
            text = delta.get(name)
            if text and text.__class__ is str:
                self._add(_THINKING, text)
                break
        text = delta.get("content") or delta.get("refusal")
        if text and text.__class__ is str:
            self._add(_TEXT, text)
        fragments = delta.get("tool_calls")
        if fragments and fragments.__class__ is list:
            for fragment in fragments:
                if isinstance(fragment, dict):
                    self._add_to_call(fragment)

    def _add(self, kind: str, text: str) -> None:
        blocks = self._blocks
        if not blocks or blocks[-1].kind != kind:
            blocks.append(_Block(kind))
        blocks[-1].held.append(text)
        self._advance()

    def _add_to_call(self, fragment: dict[str, Any]) -> None:
        taken = self._calls.take(fragment)
        if taken is None:
            return
        block = self._by_call.get(taken.call)
        if block is None:
            block = self._by_call[taken.call] = _Block("tool_use", taken.call)
            self._blocks.append(block)
        function = fragment.get("function")
        if isinstance(function, dict) and (arguments := arguments_of(function)):
            block.held.append(arguments)
        self._advance()

    # --- blocks ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Tell what may be told now of the blocks, in their order."""
        blocks = self._blocks
        while blocks:
            block = blocks[0]
            if not block.before:
                if not block.ready:
                    return
                self._begin(block)
            self._tell(block)
            if len(blocks) == 1 or not block.over:
                return
            self._close(block)

    def _close_all(self) -> None:
        """Nothing more comes: begin and end what is left. A call without a name cannot be made."""
        for block in tuple(self._blocks):
            if block.call is not None and not block.call.name:
                self._blocks.remove(block)
                continue
            if not block.before:
                self._begin(block)
            self._tell(block)
            self._close(block)

    def _begin(self, block: _Block) -> None:
        content: dict[str, Any]
        if block.call is not None:
            call = block.call
            id = call.id or made_up_id(self._id, call.number)
            content = {"type": "tool_use", "id": id, "name": call.name, "input": {}}
            self._called = True
        elif block.kind == _THINKING:
            content = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            content = {"type": "text", "text": ""}
        block.index = self._count
        self._count += 1
        kind = _DELTAS.get(block.kind, _TOOL_DELTA)
        block.before = (_DELTA % (block.index, *kind)).encode()
        self._event({"type": "content_block_start", "index": block.index, "content_block": content})

    def _tell(self, block: _Block) -> None:
        for text in block.held:
            self._out.append(block.before + compact(text).encode() + _DELTA_END)
        block.held.clear()

    def _close(self, block: _Block) -> None:
        if block.kind == _THINKING:
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            self._event({"type": "content_block_delta", "index": block.index, "delta": delta})
        self._event({"type": "content_block_stop", "index": block.index})
        self._blocks.remove(block)
