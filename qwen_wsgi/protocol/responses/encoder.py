"""Encodes an answer of chat as a response: as a stream of events, or as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from qwen_wsgi.errors import AnswerTooLarge, ApiError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.answer_text import AnswerSize, Text
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.chat.completion import chunks_of
from qwen_wsgi.protocol.chat.normalize import finish_reason
from qwen_wsgi.protocol.chat.template import TextReader
from qwen_wsgi.protocol.chat.tool_calls import ToolCalls, arguments_of, made_up_id
from qwen_wsgi.protocol.encoder import COMMENT, Outcome, ServerCall
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import compact, loads
from qwen_wsgi.protocol.responses import mapping
from qwen_wsgi.protocol.responses.events import Events
from qwen_wsgi.protocol.responses.output import (
    COMPLETED,
    IN_PROGRESS,
    INCOMPLETE,
    Call,
    CitingMessage,
    Compaction,
    CustomCall,
    Item,
    Message,
    ProxyCall,
    Reasoning,
    Search,
)
from qwen_wsgi.protocol.responses.request import ResponsesRequest
from qwen_wsgi.protocol.responses.server_tools import image_tool, turns
from qwen_wsgi.protocol.responses.server_tools.image_item import ImageCall
from qwen_wsgi.protocol.responses.server_tools.image_tool import ImageWork
from qwen_wsgi.protocol.responses.server_tools.mcp_calls import (
    ApprovalRequest,
    CodeCall,
    McpCall,
    ToolCallItem,
    ToolList,
)
from qwen_wsgi.protocol.responses.server_tools.mcp_tool import Approved
from qwen_wsgi.protocol.responses.tools import Tool
from qwen_wsgi.protocol.server_tools import next_turn
from qwen_wsgi.protocol.server_tools.results import (
    RUNNER,
    ToolWork,
    for_model,
    limit_text,
    told_of,
)
from qwen_wsgi.protocol.translation import citations
from qwen_wsgi.protocol.usage import Usage, total
from qwen_wsgi.protocol.usage import parse as parse_usage

Keep = Callable[[dict[str, Any]], bool]

#: Finish reasons of an incomplete answer, and the reasons that a response has for it.
_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseEncoder:
    """Encodes a stream of chat chunks as events of a response.

    Thinking and text end where the other, or a call, begins; calls stay open until the finish,
    because some hosts send several at once. Items are in the order in which they began.

    It can show several turns (`tools.relay.TurnEncoder`): calls of tools that the proxy runs become
    items of their own kind, which stay open until the tool has run.

    Args:
        request: the request that is answered.
        id: of the response, `resp_…`; the ids of its items are made from it.
        created: seconds since 1970.
        model: the client's name for the model.
        keep: is given a response that is complete, before its last event is encoded: a client that
            has that event may ask for the response at once. It returns whether what the client
            wanted of the store is done; else the response says that it is not stored.
        size: what is kept of the answer counts against it.
    """

    ends_after_failure = True
    tells_failures = True

    def __init__(
        self,
        request: ResponsesRequest,
        *,
        id: str,
        created: int,
        model: str,
        keep: Keep = lambda response: True,
        size: AnswerSize | None = None,
    ) -> None:
        self._request = request
        self._keep = keep
        self._head = mapping.head(id, created)
        self._model = model
        self._stem = id.removeprefix("resp_")
        self._events = Events()
        self._size = AnswerSize() if size is None else size
        #: The response at its beginning, as a member in JSON; "" before it was sent.
        self._begun = ""
        self._items: list[Item] = []
        #: The open item of thinking or text.
        self._open_text: Reasoning | Message | None = None
        self._summary: Compaction | None = None
        self._tool_calls = ToolCalls()
        self._calls: dict[int, Call | ProxyCall] = {}
        #: Arguments of calls whose names are not known yet.
        self._early: dict[int, Text] = {}
        self._finish: str | None = None
        self._usage: Usage | None = None
        #: Of the turns that have ended: their usage, the messages of the model and the tools, the
        #: number of calls, and the place of the next turn's first item.
        self._spent: list[Usage | None] = []
        self._said: list[dict[str, Any]] = []
        self._calls_before = self._turn_begins = 0
        #: The chat request of the first turn, and how the calls ended that were made before it.
        self._chat = request.chat
        self._resumed: Sequence[tuple[Approved, Outcome]] = ()
        self._is_listed = not (request.listed or request.approved)
        #: What a search by the host found; None if the client requested none.
        self._sources = citations.Sources() if request.chat.searches else None
        self._searched = False
        #: Reads chunks that only add to the same text as the last one.
        self._reader = TextReader()
        #: Whether the last chunk only adds text.
        self._only_text = False
        self._response: dict[str, Any] | None = None

    @property
    def response(self) -> dict[str, Any] | None:
        """The whole response object after the end of the stream; None before."""
        return self._response

    def feed(self, events: bytes) -> bytes:
        """Encode some whole events of chat; nothing after the end."""
        if self._response is not None:
            return b""
        out, at, reader = [b""], 0, self._reader
        while at < len(events):
            texts, length = reader.texts(events, at)
            if texts and (more := self._more(texts)):
                out.append(more)
                at += length
                continue
            if not at:
                out += self._begin_answer()
            end = events.find(b"\n\n", at) + 2
            event = events[at:end] if end > 1 else events[at:]
            at += len(event)
            if isinstance(chunk := sse.parse(event.strip(b"\n")), dict):
                self._chunk(chunk, out)
                reader.learn(event if self._only_text else None)
        return b"".join(out)

    def _more(self, texts: list[bytes]) -> bytes:
        """Encode chunks like the last one by their texts; nothing if one is not valid JSON."""
        if self._open_text is None:
            return b""
        if b"" in texts:
            texts = [text for text in texts if text]  # no delta for these
        try:
            pieces = loads(b'["%b"]' % b'","'.join(texts))
        except ValueError:
            return b""
        return b"".join(map(self._open_text.more, pieces, texts))

    def end(self) -> bytes:
        """Encode the end of the open items, and the whole response."""
        if self._response is not None:
            return b""
        out = self._begin_answer()
        self._close(out)
        reason = _REASONS.get(self._finish or "")
        status = INCOMPLETE if reason else COMPLETED
        if self._spent:
            self._usage = total(self._spent)
        details = {"reason": reason} if reason else None
        response = self._object(status, details=details)
        if not self._keep(response):
            response["store"] = False
        out.append(self._last(response))
        return b"".join(out)

    def fail(self, error: ApiError) -> bytes:
        """Encode the failed response; without its items if they were too large to be kept."""
        if self._response is not None:
            return b""
        if too_large := isinstance(error, AnswerTooLarge):
            self._items.clear()
        if self._spent:
            self._usage = total([*self._spent, self._usage])
        begun = ([] if self._begun else [self._begin()]) if too_large else self._begin_answer()
        return b"".join(begun) + self._last(self._object("failed", error=mapping.error(error)))

    def keep_alive(self, kind: str) -> bytes:
        """Return a comment, or an `in_progress` event: Codex counts only events."""
        if kind == "comment":
            return COMMENT
        if self._response is not None:
            return b""
        if not self._begun:
            return self._begin()
        return self._events.render_json("response.in_progress", self._begun)

    # --- the response -----------------------------------------------------------------------

    def _begin(self) -> bytes:
        self._begun = '"response":' + compact(self._object(IN_PROGRESS))
        return b"".join(
            self._events.render_json(type, self._begun)
            for type in ("response.created", "response.in_progress")
        )

    def _begin_answer(self) -> list[bytes]:
        """The events before the model's first one: the beginning, unless a keep-alive was it, the
        lists of tools, and the calls that were made before the first turn."""
        if self._items or self._is_listed:
            return [] if self._begun else [self._begin()]
        self._is_listed = True
        out = [] if self._begun else [self._begin()]
        for label, tools in self._request.listed.items():
            listed = ToolList(*self._next("mcpl"), label=label, tools=tools)
            self._add(listed, out)
            out.append(listed.finish(COMPLETED))
        for approved, outcome in self._resumed:
            request, offered = approved.request, approved.tool
            tool = Tool(offered.name, server=True, offered=offered)
            id = str(request["id"])
            item = McpCall(*self._next("mcp"), call_id=id, tool=tool, request=id)
            self._add(item, out)
            out.append(item.grow(str(request.get("arguments") or "")))
            out += (item.running(), item.settle(outcome))
        self._turn_begins = len(self._items)
        return out

    def _object(
        self,
        status: str,
        *,
        error: dict[str, Any] | None = None,
        details: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return mapping.response(
            self._head,
            self._request.echo,
            model=self._model,
            status=status,
            output=[item.object() for item in self._items],
            error=error,
            details=details,
            used=self._usage,
        )

    def _last(self, response: dict[str, Any]) -> bytes:
        self._response = response
        return self._events.render(f"response.{response['status']}", response=response)

    # --- chunks -----------------------------------------------------------------------------

    def _chunk(self, chunk: dict[str, Any], out: list[bytes]) -> None:
        self._only_text = False
        if (usage := chunk.get("usage")) is not None:
            self._usage = parse_usage(usage) or self._usage
        for choice in objects(chunk.get("choices")):
            if choice.get("index") in (0, None):
                self._choice(chunk, choice, out)

    def _choice(self, chunk: dict[str, Any], choice: dict[str, Any], out: list[bytes]) -> None:
        delta, finish = choice.get("delta"), choice.get("finish_reason")
        if isinstance(delta, dict):
            self._delta(chunk, choice, delta, out)
        if finish:
            self._only_text = False
        if finish and (why := finish_reason(finish, called=bool(self._tool_calls))):
            self._finish = self._finish or why
            self._close(out)

    def _delta(
        self,
        chunk: dict[str, Any],
        choice: dict[str, Any],
        delta: dict[str, Any],
        out: list[bytes],
    ) -> None:
        if "search_info" in chunk or "search_info" in delta:
            if self._sources is not None:
                self._sources.take(chunk, delta)
            self._search(mapping.found_urls(chunk, delta), out)
        if self._request.summarizes:
            self._summarize(delta.get("content"), out)
            return
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought and isinstance(thought, str):
            if type(self._open_text) is not Reasoning:
                self._begin_text(
                    Reasoning(*self._next("rs"), packed=self._request.packs_thinking), out
                )
            assert isinstance(self._open_text, Reasoning)
            out.append(self._open_text.add(thought))
        text = delta.get("content")
        if text and isinstance(text, str):
            logprobs = choice.get("logprobs")
            out.append(
                self._message(out).add_text(text, mapping.logprobs(logprobs) if logprobs else [])
            )
        refusal = delta.get("refusal")
        if refusal and isinstance(refusal, str):
            out.append(self._message(out).add_refusal(refusal))
        if "annotations" in delta:
            for citation in citations.given(delta["annotations"]):
                out.append(self._message(out).add_citation(citation))
        fragments = delta.get("tool_calls")
        for fragment in objects(fragments):
            self._fragment(fragment, out)
        others = (refusal, fragments, choice.get("logprobs"), chunk.get("usage"))
        annotated = "annotations" in delta or "search_info" in delta or "search_info" in chunk
        if bool(text) is not bool(thought) and not (any(others) or annotated):
            self._only_text = len(chunk["choices"]) == 1

    def _summarize(self, text: Any, out: list[bytes]) -> None:
        """Collect a summary; the thinking before it is none of the client's items."""
        if text and isinstance(text, str):
            if self._summary is None:
                self._summary = Compaction(*self._next("cmp"))
                self._add(self._summary, out)
            self._summary.add(text)

    # --- items ------------------------------------------------------------------------------

    def _next(self, prefix: str) -> tuple[Events, AnswerSize, str, int]:
        """The arguments of the next item: events, the answer's size, its id, its index."""
        index = len(self._items)
        return self._events, self._size, f"{prefix}_{self._stem}_{index}", index

    def _begin_text(self, item: Reasoning | Message, out: list[bytes]) -> None:
        """Close the open item of thinking or text, and begin another."""
        self._close_text(out)
        self._open_text = item
        self._add(item, out)

    def _add(self, item: Item, out: list[bytes]) -> None:
        self._items.append(item)
        out.append(item.begin())

    def _close_text(self, out: list[bytes], status: str = COMPLETED) -> None:
        if self._open_text is not None:
            out.append(self._open_text.finish(status))
            self._open_text = None

    def _message(self, out: list[bytes]) -> Message:
        if not isinstance(self._open_text, Message):
            kind = Message if self._sources is None else CitingMessage
            self._begin_text(kind(*self._next("msg"), sources=self._sources), out)
        assert isinstance(self._open_text, Message)
        return self._open_text

    def _search(self, urls: list[str] | None, out: list[bytes]) -> None:
        if urls is None or self._searched:
            return
        self._searched = True
        self._close_text(out)
        item = Search(*self._next("ws"), urls=urls if self._request.sends_sources else [])
        self._add(item, out)
        out.append(item.finish(COMPLETED))

    def _fragment(self, fragment: dict[str, Any], out: list[bytes]) -> None:
        """Encode a part of a call; arguments wait for the name, which clients need first."""
        taken = self._tool_calls.take(fragment)
        if taken is None:
            return
        call, function = taken.call, fragment.get("function")
        arguments = arguments_of(function) if isinstance(function, dict) else ""
        item = self._calls.get(call.number)
        if item is not None:
            if not item.finished:
                out.append(item.grow(arguments))
            return
        if call.number not in self._early:
            self._early[call.number] = Text(self._size)
        self._early[call.number].add(arguments)
        if call.name:
            self._close_text(out)
            tool = self._request.names.tool_of(call.name)
            kind, prefix = _kind_of(tool)
            call_id = call.id or made_up_id(self._stem, self._calls_before + call.number)
            item = kind(*self._next(prefix), call_id=call_id, tool=tool)
            self._calls[call.number] = item
            self._add(item, out)
            out.append(item.grow(str(self._early.pop(call.number))))

    def _close(self, out: list[bytes]) -> None:
        """Finish the open items; incomplete if the answer was truncated."""
        status = INCOMPLETE if self._finish in _REASONS else COMPLETED
        self._close_text(out, status)
        if self._summary is not None and not self._summary.finished:
            out.append(self._summary.finish(status))
        for item in self._calls.values():
            # A tool that the proxy runs is run after the turn, unless its call was cut.
            runs = isinstance(item, ProxyCall) and item.is_run
            if not item.finished and (status == INCOMPLETE or not runs):
                out.append(item.finish(status))

    # --- turns ------------------------------------------------------------------------------

    def end_turn(self) -> bytes:
        """Encode the end of a turn: all items are complete but those of `waiting`."""
        out = self._begin_answer()
        self._close(out)
        self._spent.append(self._usage)
        self._usage = None
        return b"".join(out)

    def waiting(self) -> Sequence[ServerCall]:
        """The calls of the turn that the proxy is to carry out. The pictures that one may change
        are the latest ones at the moment when it is begun."""
        return [
            ServerCall(_runner_of(item.tool), number, partial(self._work_of, item))
            for number, item in self._calls.items()
            if isinstance(item, ProxyCall) and not item.finished
        ]

    def _work_of(self, item: ProxyCall) -> ImageWork | ToolWork:
        if isinstance(item, ToolCallItem):
            return item.work()
        assert isinstance(item, ImageCall), "there are no others"
        pictures = () if self._request.image is None else self._request.image.pictures
        for other in self._items:
            if isinstance(other, ImageCall) and other.data:
                pictures = (image_tool.data_url(other.data),)
        return ImageWork(item.arguments, pictures)

    def approved(self) -> Sequence[ServerCall]:
        """The calls that the client has approved with this request."""
        return [
            ServerCall(RUNNER, number, partial(ToolWork, each.tool, str(each.request["arguments"])))
            for number, each in enumerate(self._request.approved)
        ]

    def resume(self, outcomes: Sequence[Outcome]) -> ChatRequest:
        """The request of the first turn, with how those calls ended. Their items are shown with the
        first event of the model."""
        self._resumed = list(zip(self._request.approved, outcomes, strict=True))
        results = {
            str(approved.request["id"]): for_model(told_of(outcome))
            for approved, outcome in self._resumed
        }
        self._chat = next_turn.with_results(self._chat, results)
        return self._chat

    def begin_call(self, call: ServerCall) -> bytes:
        """Encode that a tool runs."""
        return self._proxy_call(call).running()

    def end_call(self, call: ServerCall, outcome: Outcome) -> bytes:
        """Encode what it has made, or why it failed."""
        return self._proxy_call(call).settle(outcome)

    def stop(self, error: ApiError) -> bytes:
        """Encode that no more tools run: the answer is incomplete, and says why."""
        out = [self._proxy_call(call).settle(Outcome(failure=error)) for call in self.waiting()]
        out.append(self._message(out).add_text(limit_text(error).lstrip(), []))
        self._finish = "length"
        return b"".join(out)

    def _proxy_call(self, call: ServerCall) -> ProxyCall:
        item = self._calls[call.number]
        assert isinstance(item, ProxyCall), "it is one of waiting()"
        return item

    def next_turn(self, *, last: bool) -> ChatRequest | None:
        """The next turn's request. None if no tool has run, the answer was cut, or the client has
        to run tools of its own first: it sends their outputs with the next request."""
        ran = [isinstance(item, ProxyCall) and item.is_run for item in self._calls.values()]
        if not ran or not all(ran) or self._finish in _REASONS:
            return None
        items = [item.object() for item in self._items[self._turn_begins :]]
        self._said += turns.messages_of(items, self._request.names)
        self._turn_begins = len(self._items)
        self._calls_before += len(ran)
        self._tool_calls, self._calls, self._early = ToolCalls(), {}, {}
        self._finish, self._reader, self._only_text = None, TextReader(), False
        own = self._request.names.server_names()
        return next_turn.next_request(
            self._chat, self._said, own, last=last, tools=self._request.later_tools
        )


def _kind_of(tool: Tool) -> tuple[type[Call | ProxyCall], str]:
    """The kind of item that a call of a tool is, and the prefix of its id."""
    if not tool.server:
        return (CustomCall, "ctc") if tool.custom else (Call, "fc")
    if tool.offered is None:
        return ImageCall, "ig"
    if tool.container is not None:
        return CodeCall, "ci"
    return (ApprovalRequest, "mcpr") if tool.approve else (McpCall, "mcp")


def _runner_of(tool: Tool) -> str:
    """What runs a tool: `ServerCall.tool`."""
    return image_tool.NAME if tool.offered is None else RUNNER


def whole(
    request: ResponsesRequest,
    completion: Mapping[str, Any],
    *,
    id: str,
    created: int,
    model: str,
    keep: Keep = lambda response: True,
) -> dict[str, Any]:
    """Encode a whole `chat.completion` as a response object; arguments as of `ResponseEncoder`."""
    encoder = ResponseEncoder(request, id=id, created=created, model=model, keep=keep)
    encoder.feed(b"".join(chunks_of(completion, with_usage=True)))
    encoder.end()
    assert encoder.response is not None
    return encoder.response
