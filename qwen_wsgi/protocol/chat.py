"""Chat completions: the product's one internal language.

A request in OpenAI's form, the few things that must be understood of it, and its two answers: the
stream of chunks as bytes, and the whole completion put together from chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage


@dataclass(frozen=True)
class ChatRequest:
    """A client's request: what we understood, and the object with everything else untouched."""

    body: JsonObject
    model: str
    stream: bool
    #: The client asked for `stream_options.include_usage` itself.
    wants_usage: bool


def parse_request(body: JsonObject) -> ChatRequest:
    """Check what must be understood; leave the rest to the upstream.

    Raises:
        BadRequest: with OpenAI's `param` and `code`, for a missing or ill-typed `model`,
            `messages`, `stream` or `stream_options`.
    """
    model = body.get("model")
    if not isinstance(model, str | None):
        raise _wrong_type("model", "a string", model)
    _check_messages(body)
    stream = body.get("stream")
    if not isinstance(stream, bool | None):
        raise _wrong_type("stream", "a boolean", stream)
    options = body.get("stream_options")
    if not isinstance(options, dict | None):
        raise _wrong_type("stream_options", "an object", options)
    if options is not None and not stream:
        raise BadRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    return ChatRequest(
        body=body,
        model=model or "",
        stream=bool(stream),
        wants_usage=bool(options and options.get("include_usage")),
    )


def _check_messages(body: JsonObject) -> None:
    if "messages" not in body:
        raise BadRequest(
            "Missing required parameter: 'messages'.",
            param="messages",
            code="missing_required_parameter",
        )
    messages = body["messages"]
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise BadRequest(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong_type(f"messages[{index}]", "an object", message)
        role = message.get("role")
        if role is None:
            raise BadRequest(
                f"Missing required parameter: 'messages[{index}].role'.",
                param=f"messages[{index}].role",
                code="missing_required_parameter",
            )
        if not isinstance(role, str):
            raise _wrong_type(f"messages[{index}].role", "a string", role)


_JSON_TYPES: Final = {
    bool: "a boolean",
    str: "a string",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def _wrong_type(param: str, expected: str, value: object) -> BadRequest:
    got = _JSON_TYPES.get(type(value), "something else")
    return BadRequest(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        param=param,
        code="invalid_type",
    )


def upstream_body(request: ChatRequest, *, model: str, stream: bool) -> bytes:
    """The bytes for the upstream: the client's own, but for model, stream and usage option.

    Usage is always asked of a stream, because the ledger counts every call.
    """
    changes: dict[str, Any] = {}
    drop: tuple[str, ...] = ()
    body = request.body
    if body.get("model") != model:
        changes["model"] = model
    if stream:
        if body.get("stream") is not True:
            changes["stream"] = True
        if not request.wants_usage:
            changes["stream_options"] = {
                **(body.get("stream_options") or {}),
                "include_usage": True,
            }
    elif "stream_options" in body:
        drop = ("stream_options",)  # only a null gets here: refused without a stream elsewhere
    return body.render(changes, drop=drop)


# --- the answer as a stream ---------------------------------------------------------------------

#: Something that a reader would call an answer: text, thinking, or arguments of a tool call.
_CONTENT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|refusal|name)": ?"[^"]'
)
_FINISHES: Final = (b'"finish_reason":"', b'"finish_reason": "')
#: Every usage object has members whose names end so, and DashScope's `"usage":null` has none.
_USAGE: Final = b'_tokens"'
_CHOICES: Final = b'"choices"'


class ChunkStream:
    """Watches a stream of chunks go by, and hides the usage chunk from who did not ask for it.

    An ordinary block (each event one `data:` line that holds a chunk) is searched for the few byte
    strings that matter, and only where one occurs are events parsed: a parsed and re-written chunk
    costs half as much again as carrying it. In JSON text a quote inside a string is escaped, so
    `"error"` with bare quotes is always a token of its own.

    Attributes:
        usage: the last usage that went by, or None.
        error: the upstream's error frame; nothing that came after it is passed on.
        answered: text, thinking or a tool call went by.
        done: `[DONE]` went by.
    """

    __slots__ = ("_hide_usage", "_latest", "answered", "done", "error", "usage")

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self.usage: Usage | None = None
        self.error: Any = None
        #: What went by last: a finish is followed by hardly more than usage and `[DONE]`.
        self._latest: tuple[bytes, ...] = (b"",) * 4
        self.answered = False
        self.done = False

    @property
    def complete(self) -> bool:
        """Whether the end of the stream here would be an end that a client may believe."""
        return self.error is None and (self.finished or (self.done and self.answered))

    def feed(self, block: bytes) -> bytes:
        """Look at a block of whole events; return what the client gets of it.

        That is data and nothing else: comments upset simple parsers (keep-alives are ours to send),
        OpenAI's chat streams name no events, and `id:` and `retry:` lines make the official Python
        SDK fail. `[DONE]` is taken out: the relay ends the stream, once it knows it is complete.
        """
        if _is_ordinary(block):
            self._note(block)
            return block
        # Mostly it is the end of a stream: what came before it in the same read is ordinary.
        cut = _last_events(block)
        head = block[:cut]
        if not head or not _is_ordinary(head):
            return b"".join(self._each(block))
        self._note(head)
        return head + b"".join(self._each(block[cut:]))

    def _note(self, data: bytes) -> None:
        if not self.answered and _CONTENT.search(data):
            self.answered = True
        self._latest = (*self._latest[1:], data)

    @property
    def finished(self) -> bool:
        """Whether a finish reason is among the latest blocks; looked for only at the end."""
        return any(mark in data for data in self._latest for mark in _FINISHES)

    def _each(self, block: bytes) -> Iterator[bytes]:
        for event in sse.events(block):
            payload = sse.data(event)
            if payload is None:
                continue
            if sse.is_done(event):
                self.done = True
                return
            # A line end can only be white space between the tokens of the JSON.
            line = b"data: " + payload.replace(b"\n", b" ")
            if _CHOICES in line and b'"error"' not in line and _USAGE not in line:
                self._note(line)
                yield line + b"\n\n"
                continue
            if (told := self._judge(line)) is not None:
                yield told
            if self.error is not None:
                return

    def _judge(self, line: bytes) -> bytes | None:
        """What the client gets of an event that has to be parsed; None if nothing."""
        chunk = sse.parse(line)
        if not isinstance(chunk, dict):
            return line + b"\n\n"
        if (error := error_of(chunk)) is not None:
            self.error = error
            if "error" in chunk:
                return line + b"\n\n"
            return sse.render({"error": {"type": "upstream_error", "param": None, **error}})
        self._note(line)
        usage = parse_usage(chunk.get("usage"))
        self.usage = usage or self.usage
        hidden = usage is not None and self._hide_usage and not chunk.get("choices")
        return None if hidden else line + b"\n\n"


def _is_ordinary(block: bytes) -> bool:
    """Whether every event is one `data:` line with a chunk, and none of them needs a look.

    If all line ends are accounted for by k-1 borders between `data:` lines and the last blank line,
    there is nothing but k such lines. Each search costs about 0.1 ms per 1000 chunks.
    """
    count = block.count(b"\n\ndata:") + 1
    return (
        block.count(b"\n") == 2 * count
        and block.startswith(b"data:")
        and block.count(_CHOICES) == count
        and b'"error"' not in block
        and _USAGE not in block
        and not block.endswith(b"[DONE]\n\n")
    )


def _last_events(block: bytes) -> int:
    """Where the last few events of a block begin: finish, usage and `[DONE]` are three."""
    cut = len(block) - 2
    for _ in range(4):
        cut = block.rfind(b"\n\n", 0, cut)
        if cut < 0:
            return 0
    return cut + 2


def error_of(chunk: Mapping[str, Any]) -> Any:
    """The error that stands where a chunk or a completion should be, or None.

    Both forms of DashScope: `{"error": {...}}`, and natively `{"code", "message", "request_id"}`.
    """
    if (error := chunk.get("error")) is not None:
        return error
    if "choices" not in chunk and chunk.get("code") and isinstance(chunk.get("message"), str):
        return {"code": chunk["code"], "message": chunk["message"]}
    return None


def keep_alive_chunk(*, id: str, model: str, created: int) -> bytes:
    """An event that says nothing, for clients whose timers count events and not bytes."""
    return sse.render(
        {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "delta": {}, "finish_reason": None}],
        }
    )


# --- the answer as a whole ----------------------------------------------------------------------

#: Delta fields whose fragments are joined; of every other field the last value counts.
_JOINED: Final = frozenset({"content", "reasoning_content", "reasoning", "refusal"})


class Completion:
    """A chat completion that grows from chunks.

    What upstreams send where something else should be is passed over, never a fault of ours.
    """

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Any = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take the next chunk, parsed."""
        for name, value in chunk.items():
            if name == "choices":
                continue
            if name == "usage":
                self._usage = value or self._usage
            elif value not in (None, "") or name not in self._head:
                self._head[name] = value
        for choice in _objects(chunk.get("choices")):
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            self._choices.setdefault(index, _Choice(index)).add(choice)

    @property
    def usage(self) -> Usage | None:
        """What the call used, if the upstream told."""
        return parse_usage(self._usage)

    def render(self, *, id: str, model: str, created: int) -> dict[str, Any]:
        """OpenAI's `chat.completion`; the arguments stand in where no chunk told.

        `refusal` and `logprobs` are there even when null: OpenAI's schema requires them.
        """
        head = self._head
        rendered = {
            **head,
            "id": head.get("id") or id,
            "object": "chat.completion",
            "created": head.get("created") or created,
            "model": head.get("model") or model,
            "choices": [self._choices[index].render() for index in sorted(self._choices)],
        }
        if self._usage is not None:
            rendered["usage"] = self._usage
        return rendered


class _Choice:
    """One choice of a completion while it grows."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._joined: dict[str, list[str]] = {}
        self._message: dict[str, Any] = {}
        self._tool_calls = _ToolCalls()
        self._logprobs: dict[str, list[Any]] = {}
        self._rest: dict[str, Any] = {}
        self._finish: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if name == "finish_reason":
                self._finish = value or self._finish
            elif name == "logprobs":
                self._add_logprobs(value)
            elif name not in ("delta", "index") and value is not None:
                self._rest[name] = value
        delta = choice.get("delta")
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if value is not None:
                self._add_field(name, value)

    def _add_field(self, name: str, value: Any) -> None:
        message = self._message
        if name in _JOINED and isinstance(value, str):
            self._joined.setdefault(name, []).append(value)
        elif name == "tool_calls":
            for fragment in _objects(value):
                self._tool_calls.add(fragment)
        elif name == "function_call" and isinstance(value, dict):
            _join_function(message.setdefault(name, {"name": "", "arguments": ""}), value)
        elif name == "audio" and isinstance(value, dict):
            _join_audio(message.setdefault(name, {}), value)
        elif isinstance(value, list) and isinstance(message.get(name), list):
            message[name] += value
        elif value != "":
            message[name] = value

    def _add_logprobs(self, logprobs: Any) -> None:
        if isinstance(logprobs, dict):
            for name, values in logprobs.items():
                if isinstance(values, list):
                    self._logprobs.setdefault(name, []).extend(values)

    def render(self) -> dict[str, Any]:
        joined = {name: _whole_text(parts) for name, parts in self._joined.items()}
        content, refusal = joined.pop("content", None), joined.pop("refusal", None)
        calls = self._tool_calls.render()
        message: dict[str, Any] = {
            "role": self._message.get("role") or "assistant",
            "content": None if calls and not content else content,
            "refusal": refusal or None,
            **{name: text for name, text in joined.items() if text},
            **{name: value for name, value in self._message.items() if name != "role"},
        }
        if calls:
            message["tool_calls"] = calls
        logprobs = {"content": None, "refusal": None, **self._logprobs} if self._logprobs else None
        return {
            "index": self._index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._finish or ("tool_calls" if calls else "stop"),
            **self._rest,
        }


class _ToolCalls:
    """Tool calls put together from fragments.

    A call is known by its id where a fragment has one, else by its index, else it is the last one.
    Ids and names come with the first fragment; DashScope sends empty ones after it, and some
    models behind it give several calls the same index, or none.
    """

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}

    def add(self, fragment: Mapping[str, Any]) -> None:
        call = self._call_of(fragment)
        call["id"] = call["id"] or fragment.get("id") or ""
        call["type"] = fragment.get("type") or call["type"]
        function = fragment.get("function")
        if isinstance(function, dict):
            _join_function(call["function"], function)

    def _call_of(self, fragment: Mapping[str, Any]) -> dict[str, Any]:
        index, id = fragment.get("index"), fragment.get("id")
        index = index if isinstance(index, int) else None
        known = next((call for call in self._calls if id and call["id"] == id), None)
        if known is not None:
            return known
        if index is not None:
            at_index = self._by_index.get(index)
        else:
            at_index = self._calls[-1] if self._calls else None
        # Without an id it goes on; with one, only a call that still has none may be meant.
        if at_index is not None and (not id or not at_index["id"]):
            return at_index
        call = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call

    def render(self) -> list[dict[str, Any]]:
        placed = {id(call): index for index, call in self._by_index.items()}
        order = sorted(
            enumerate(self._calls), key=lambda item: (placed.get(id(item[1]), item[0]), item[0])
        )
        return [call for _, call in order]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of what should be a list of them."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item


def _whole_text(parts: list[str]) -> str:
    text = "".join(parts)
    try:
        text.encode()
    except UnicodeEncodeError:
        # The halves of one character came in two chunks, each as an escape of its own.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _join_function(call: dict[str, Any], fragment: Mapping[str, Any]) -> None:
    if name := fragment.get("name"):
        # Some servers repeat the whole name with every fragment; none sends it in pieces.
        call["name"] = name
    if isinstance(arguments := fragment.get("arguments"), str):
        call["arguments"] += arguments


def _join_audio(audio: dict[str, Any], fragment: Mapping[str, Any]) -> None:
    for name, value in fragment.items():
        if name in ("data", "transcript") and isinstance(value, str):
            audio[name] = audio.get(name, "") + value
        else:
            audio[name] = value


def chunks_of(completion: Mapping[str, Any], *, with_usage: bool) -> list[bytes]:
    """A whole completion as the events of a stream, for an upstream that does not stream."""
    head = {k: v for k, v in completion.items() if k not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    out = []
    for choice in _objects(completion.get("choices")):
        message = choice.get("message")
        delta = dict(message) if isinstance(message, dict) else {}
        if calls := list(_objects(delta.get("tool_calls"))):
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        rest = {k: v for k, v in choice.items() if k not in ("message", "finish_reason")}
        rest.setdefault("index", 0)
        finish = choice.get("finish_reason") or "stop"
        out.append({**rest, "delta": delta, "finish_reason": None})
        out.append({"index": rest["index"], "delta": {}, "finish_reason": finish})
    events = [sse.render({**head, "choices": [choice]}) for choice in out]
    if with_usage and completion.get("usage"):
        events.append(sse.render({**head, "choices": [], "usage": completion["usage"]}))
    return events
