"""Encodes a stream of chunks as Anthropic's events."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.answer_text import ITEM_BYTES, AnswerSize
from qwen_wsgi.protocol.chat.normalize import finish_reason
from qwen_wsgi.protocol.chat.tool_calls import (
    ToolCall,
    ToolCalls,
    arguments_of,
    made_up_id,
)
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.messages import errors
from qwen_wsgi.protocol.messages.answer import (
    ONE_SEARCH,
    SIGNATURE,
    THINKING,
    citation_of,
    head,
    search_blocks,
    stop_of,
    usage_of,
)
from qwen_wsgi.protocol.translation import citations
from qwen_wsgi.protocol.translation.search import Page
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage

_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

#: A delta before its text, and after it.
_DELTA: Final = (
    "event: content_block_delta\n"
    'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%s","%s":'
)
_DELTA_END: Final = b"}}\n\n"

_TEXT, _THINKING, WHOLE = "text", "thinking", "whole"
#: The type of a delta and the member with its text.
_DELTAS: Final = {_TEXT: ("text_delta", "text"), _THINKING: ("thinking_delta", "thinking")}
#: What a piece takes in memory that waits for the end of another block.
_HELD_BYTES: Final = 80
_TOOL_DELTA: Final = ("input_json_delta", "partial_json")


class GrowingBlock:
    """A content block while it grows: a text, thinking, or a tool call; or one that is whole.

    Attributes:
        call: None for all but tool calls.
        whole: the block, if it does not grow.
        held: pieces that were not sent yet.
        before: the bytes of its deltas before the text; empty until the block was begun.
        closed: nothing is added to it any more.
        cited: numbers of pages that the text names; what follows is another block if one is known.
        pages: pages that the host itself named for the text.
    """

    __slots__ = ("before", "call", "cited", "closed", "held", "index", "kind", "pages", "whole")

    def __init__(
        self, kind: str, call: ToolCall | None = None, whole: dict[str, Any] | None = None
    ) -> None:
        self.kind = kind
        self.call = call
        self.whole = whole
        self.held: list[str] = []
        self.before = b""
        self.index = 0
        self.closed = False
        self.cited: list[int] = []
        self.pages: list[Page] = []

    @property
    def ready(self) -> bool:
        """Whether the block can be begun: a call needs its id and name."""
        return self.call is None or bool(self.call.id and self.call.name)

    @property
    def over(self) -> bool:
        """Whether the block is complete once another one begins."""
        return self.call is None or self.call.complete


class MessagesEncoder:
    """Encodes a stream for a client of Anthropic's API.

    There, blocks follow one after the other. Chat may continue a tool call after another one, or a
    text, began: pieces of a later block are held back until the call before it is a complete JSON
    object. Values of the wrong type are ignored.

    Usage comes with the last chunk, so `message_start` has 0 and `message_delta` corrects it, as
    SDKs expect. SDKs raise at an `error` event, so the stream may end after it.

    Args:
        id: of the message: `msg_…`.
        model: the client's name for it.
        stops: the client's stop sequences.
        request_id: for errors.
        searches: show what a web search of the host found.
        size: the text and the blocks count against it.
    """

    ends_after_failure = True

    def __init__(
        self,
        *,
        id: str,
        model: str,
        stops: Sequence[str] = (),
        request_id: str = "",
        searches: bool = False,
        size: AnswerSize | None = None,
    ) -> None:
        self._id, self._model, self._stops, self._request_id = id, model, stops, request_id
        self._size = AnswerSize() if size is None else size
        self._out: list[bytes] = []
        self._started = False
        #: The open block first, then those that wait for it.
        self._blocks: deque[GrowingBlock] = deque()
        self._count = 0
        self._calls = ToolCalls()
        self._by_call: dict[ToolCall, GrowingBlock] = {}
        self._called = False
        self._finish: str | None = None
        self._matched: Any = None
        self._usage: Usage | None = None
        #: A search may still be reported; hosts may repeat it in every chunk.
        self._searches = searches
        self._searched = False
        #: What the search found, and the reader of the marks that name it.
        self._sources = citations.Sources()
        self._marks = citations.MarkReader() if searches else None

    def feed(self, events: bytes) -> bytes:
        """Encode some chunks; the first call also begins the message."""
        if not self._started:
            self._start()
        for event in sse.events(events):
            chunk = sse.parse(event)
            if isinstance(chunk, dict):
                self._take(chunk)
        return self._flush()

    def end(self) -> bytes:
        """Encode the end of the blocks, the stop reason and the usage."""
        if not self._started:
            self._start()
        self._close_all()
        self._event({"type": "message_delta", "delta": self._stop(), "usage": self._used()})
        self._out.append(_STOP)
        return self._flush()

    def _stop(self) -> dict[str, Any]:
        """Why the answer ended."""
        return {**stop_of(self._finish, self._matched, stops=self._stops, called=self._called)}

    def _used(self) -> dict[str, Any]:
        return {**usage_of(self._usage), **(ONE_SEARCH if self._searched else {})}

    def fail(self, error: ApiError) -> bytes:
        """Encode an error event; open blocks are not closed, because they are incomplete."""
        self._event(errors.body(error, request_id=self._request_id))
        return self._flush()

    def keep_alive(self, kind: str) -> bytes:
        """Return a ping, which SDKs ignore everywhere."""
        return _PING

    def _flush(self) -> bytes:
        sent = b"".join(self._out)
        self._out.clear()
        return sent

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
                    if self._marks is not None:
                        self._search(chunk, delta)
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

    def _search(self, chunk: dict[str, Any], delta: dict[str, Any]) -> None:
        self._sources.take(chunk, delta)
        if not self._searches:
            return
        if found := search_blocks(chunk, delta, self._id):
            self._searches, self._searched = False, True
            self._end_text()
            self._size.add_objects(found)
            self._blocks += [GrowingBlock(WHOLE, whole=whole) for whole in found]
            self._advance()

    def _grow(self, delta: dict[str, Any]) -> None:
        for name in THINKING:
            text = delta.get(name)
            if text and text.__class__ is str:
                self._end_text()
                self._add(_THINKING, text)
                break
        text = delta.get("content") or delta.get("refusal")
        if text and text.__class__ is str:
            if self._marks is None:
                self._add(_TEXT, text)
            else:
                self._add_text(self._marks.feed(text))
        if "annotations" in delta:
            self._add_pages(delta["annotations"])
        fragments = delta.get("tool_calls")
        if fragments and fragments.__class__ is list:
            self._end_text()
            for fragment in fragments:
                if isinstance(fragment, dict):
                    self._add_to_call(fragment)

    def _add(self, kind: str, text: str) -> GrowingBlock:
        blocks = self._blocks
        if not blocks or blocks[-1].kind != kind:
            self._append(GrowingBlock(kind))
        block = blocks[-1]
        self._hold(block, text)
        self._advance()
        return block

    def _append(self, block: GrowingBlock) -> None:
        self._size.add(ITEM_BYTES)
        self._blocks.append(block)

    def _hold(self, block: GrowingBlock, text: str) -> None:
        """Count a piece, and hold it until its block may be sent."""
        self._size.add_text(text)
        if block is not self._blocks[0]:
            self._size.add(_HELD_BYTES)
        block.held.append(text)

    def _add_text(self, examined: citations.Examined) -> None:
        """Add a text with its marks. A block ends behind the marks that name its pages."""
        for piece, number in examined.cut():
            cited = self._blocks[-1].cited if self._blocks else ()
            if number is None and not piece.isspace() and self._sources.knows(cited):
                self._append(GrowingBlock(_TEXT))
            block = self._add(_TEXT, piece)
            if number is not None:
                block.cited.append(number)

    def _end_text(self) -> None:
        """Add the end of a text, before something else."""
        if self._marks is not None:
            self._add_text(self._marks.flush())

    def _add_pages(self, annotations: Any) -> None:
        """Add the pages that the host itself names for the last text."""
        last = self._blocks[-1] if self._blocks else None
        if last is not None and last.kind == _TEXT:
            pages = [each.page for each in citations.given(annotations)]
            self._size.add_objects(pages)
            last.pages += pages

    def _add_to_call(self, fragment: dict[str, Any]) -> None:
        taken = self._calls.take(fragment)
        if taken is None:
            return
        block = self._by_call.get(taken.call)
        if block is None:
            block = self._by_call[taken.call] = GrowingBlock("tool_use", taken.call)
            self._append(block)
        function = fragment.get("function")
        arguments = arguments_of(function) if isinstance(function, dict) else ""
        if arguments and not block.closed:
            self._hold(block, arguments)
        self._advance()

    # --- blocks ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Encode what can be sent of the blocks now, in their order."""
        blocks = self._blocks
        while blocks:
            block = blocks[0]
            if block.whole is not None:
                self._send_whole(block)
                continue
            if not block.before:
                if not block.ready:
                    return
                self._begin(block)
            self._send(block)
            if len(blocks) == 1 or not block.over:
                return
            self._close(block)

    def _close_all(self) -> None:
        """Begin and end all blocks at the end of the answer. A call without a name is dropped."""
        self._end_text()
        while self._blocks:
            block = self._blocks[0]
            if block.call is not None and not block.call.name:
                self._blocks.popleft()
                continue
            if block.whole is not None:
                self._send_whole(block)
                continue
            if not block.before:
                self._begin(block)
            self._send(block)
            self._close(block)

    def _begin(self, block: GrowingBlock) -> None:
        content: dict[str, Any]
        if block.call is not None:
            content = self._use_of(block.call)
        elif block.kind == _THINKING:
            content = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            content = {"type": "text", "text": ""}
        block.index = self._count
        self._count += 1
        kind = _DELTAS.get(block.kind, _TOOL_DELTA)
        block.before = (_DELTA % (block.index, *kind)).encode()
        self._event({"type": "content_block_start", "index": block.index, "content_block": content})

    def _use_of(self, call: ToolCall) -> dict[str, Any]:
        """The block of a call at its beginning."""
        self._called = True
        id = call.id or made_up_id(self._id, call.number)
        return {"type": "tool_use", "id": id, "name": call.name, "input": {}}

    def _send_whole(self, block: GrowingBlock) -> None:
        """Encode the first block, which is whole."""
        self._event(
            {
                "type": "content_block_start",
                "index": self._count,
                "content_block": block.whole,
            }
        )
        self._event({"type": "content_block_stop", "index": self._count})
        self._count += 1
        self._blocks.popleft()

    def _send(self, block: GrowingBlock) -> None:
        for text in block.held:
            self._out.append(block.before + compact(text).encode() + _DELTA_END)
        block.held.clear()

    def _close(self, block: GrowingBlock) -> None:
        """Encode the end of the first block."""
        if block.kind == _THINKING:
            delta: dict[str, Any] = {"type": "signature_delta", "signature": SIGNATURE}
            self._event({"type": "content_block_delta", "index": block.index, "delta": delta})
        for page in self._sources.named(block.cited) or dict.fromkeys(block.pages):
            delta = {"type": "citations_delta", "citation": citation_of(page)}
            self._event({"type": "content_block_delta", "index": block.index, "delta": delta})
        self._event({"type": "content_block_stop", "index": block.index})
        block.closed = True
        self._blocks.popleft()
