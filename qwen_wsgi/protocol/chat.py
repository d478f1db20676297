"""Chat completions: the product's one internal language.

A request in OpenAI's form, the few things that must be understood of it, and its two answers: the
stream of chunks as bytes, and the whole completion put together from chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
_USAGES: Final = (b'"usage":{', b'"usage": {')


class ChunkStream:
    """Watches a stream of chunks go by, and hides the usage chunk from who did not ask for it.

    Looks for the few byte strings that matter and parses only the events that hold one, because a
    parsed and re-written chunk costs half as much again as carrying it. In JSON text a quote
    inside a string is escaped, so `"error"` with bare quotes is always a token of its own.

    Attributes:
        usage: the last usage that went by, or None.
        error: the upstream's error frame, if one went by.
        finished: a finish reason went by.
        answered: text, thinking or a tool call went by.
        done: `[DONE]` went by.
    """

    __slots__ = ("_hide_usage", "answered", "done", "error", "finished", "usage")

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self.usage: Usage | None = None
        self.error: Any = None
        self.finished = False
        self.answered = False
        self.done = False

    @property
    def complete(self) -> bool:
        """Whether the end of the stream here would be an end that a client may believe."""
        return self.error is None and (self.finished or (self.done and self.answered))

    def feed(self, block: bytes) -> bytes:
        """Look at a block of whole events; return what the client gets of it.

        `[DONE]` is taken out: the relay ends the stream itself, once it knows that it is complete.
        """
        if b"event:" in block:
            block = b"".join(_native_error_as_openai(event) for event in sse.events(block))
        block = sse.only_data(block)
        if not self.answered and _CONTENT.search(block):
            self.answered = True
        if not self.finished and (_FINISHES[0] in block or _FINISHES[1] in block):
            self.finished = True
        if b'"error"' in block or _USAGES[0] in block or _USAGES[1] in block:
            block = b"".join(event + b"\n\n" for event in sse.events(block) if self._passes(event))
        if b"[DONE]" in block:
            block = self._without_done(block)
        return block

    def _passes(self, event: bytes) -> bool:
        if not (b'"error"' in event or _USAGES[0] in event or _USAGES[1] in event):
            return True
        chunk = sse.parse(event)
        if not isinstance(chunk, dict):
            return True
        if (error := error_of(chunk)) is not None:
            self.error = error
            return True
        if (usage := parse_usage(chunk.get("usage"))) is None:
            return True
        self.usage = usage
        return not (self._hide_usage and not chunk.get("choices"))

    def _without_done(self, block: bytes) -> bytes:
        kept = []
        for event in sse.events(block):
            if (sse.data(event) or b"").strip() == b"[DONE]":
                self.done = True
                break
            kept.append(event + b"\n\n")
        return b"".join(kept)


def _native_error_as_openai(event: bytes) -> bytes:
    """DashScope's native streams send `event:error` with `{"code", "message"}`, which no OpenAI
    client takes for an error; every other event passes."""
    if event.startswith((b"event:error", b"event: error")) or b"\nevent:error" in event:
        payload = sse.parse(event)
        if isinstance(payload, dict) and "error" not in payload and (error := error_of(payload)):
            return sse.render({"error": {"type": "upstream_error", "param": None, **error}})
    return event + b"\n\n"


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

    Tool calls are told apart by their index; a fragment without one continues the last call. Ids
    and names come with the first fragment, and empty or null ones after it are ignored, as
    DashScope sends them.
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
            elif value is not None or name not in self._head:
                self._head[name] = value
        for choice in chunk.get("choices") or ():
            if isinstance(choice, dict):
                index = choice.get("index") or 0
                self._choices.setdefault(index, _Choice(index)).add(choice)

    @property
    def complete(self) -> bool:
        """Whether a finish reason came for every choice, or at least something to show."""
        return bool(self._choices) and all(c.ended for c in self._choices.values())

    @property
    def usage(self) -> Usage | None:
        """What the call used, if the upstream told."""
        return parse_usage(self._usage)

    def render(self, *, id: str, model: str, created: int) -> dict[str, Any]:
        """OpenAI's `chat.completion`; the arguments stand in where no chunk told.

        `refusal` and `logprobs` are there even when null: OpenAI's schema requires them.
        """
        head = {**self._head, "object": "chat.completion"}
        head.setdefault("id", id)
        head.setdefault("model", model)
        head.setdefault("created", created)
        rendered = {
            "id": head.pop("id"),
            "object": head.pop("object"),
            "created": head.pop("created"),
            "model": head.pop("model"),
            "choices": [self._choices[index].render() for index in sorted(self._choices)],
            **head,
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
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._last_tool = 0
        self._logprobs: dict[str, list[Any]] = {}
        self._rest: dict[str, Any] = {}
        self._finish: str | None = None

    @property
    def ended(self) -> bool:
        return bool(self._finish or self._tool_calls or any(map(any, self._joined.values())))

    def add(self, choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if name == "finish_reason":
                self._finish = value or self._finish
            elif name == "logprobs":
                self._add_logprobs(value)
            elif name not in ("delta", "index") and value is not None:
                self._rest[name] = value
        for name, value in (choice.get("delta") or {}).items():
            if value is None:
                continue
            if name in _JOINED and isinstance(value, str):
                self._joined.setdefault(name, []).append(value)
            elif name == "tool_calls":
                self._add_tool_calls(value)
            elif name == "function_call":
                call = self._message.setdefault(name, {"name": "", "arguments": ""})
                _join_function(call, value)
            elif name == "audio" and isinstance(value, dict):
                _join_audio(self._message.setdefault(name, {}), value)
            elif isinstance(value, list) and isinstance(self._message.get(name), list):
                self._message[name] += value
            elif not (value == "" and name in self._message):
                self._message[name] = value

    def _add_tool_calls(self, fragments: Iterable[Any]) -> None:
        for fragment in fragments:
            if not isinstance(fragment, dict):
                continue
            index = fragment.get("index")
            self._last_tool = index if isinstance(index, int) else self._last_tool
            call = self._tool_calls.setdefault(
                self._last_tool,
                {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
            )
            call["id"] = call["id"] or fragment.get("id") or ""
            call["type"] = fragment.get("type") or call["type"]
            _join_function(call["function"], fragment.get("function") or {})

    def _add_logprobs(self, logprobs: Any) -> None:
        if isinstance(logprobs, dict):
            for name, values in logprobs.items():
                if isinstance(values, list):
                    self._logprobs.setdefault(name, []).extend(values)

    def render(self) -> dict[str, Any]:
        joined = {name: "".join(parts) for name, parts in self._joined.items()}
        content = joined.pop("content", None)
        if self._tool_calls and not content:
            content = None
        message: dict[str, Any] = {
            "role": self._message.pop("role", "assistant"),
            "content": content,
            "refusal": joined.pop("refusal", None) or None,
            **{name: text for name, text in joined.items() if text},
            **self._message,
        }
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[i] for i in sorted(self._tool_calls)]
        logprobs = {"content": None, "refusal": None, **self._logprobs} if self._logprobs else None
        finish = self._finish or ("tool_calls" if self._tool_calls else "stop")
        return {
            "index": self._index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish,
            **self._rest,
        }


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
    for choice in completion.get("choices") or ():
        message = dict(choice.get("message") or {})
        if message.get("tool_calls"):
            message["tool_calls"] = [
                {"index": i, **call} for i, call in enumerate(message["tool_calls"])
            ]
        index = choice.get("index", 0)
        delta = {"index": index, "delta": message, "finish_reason": None}
        end = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}
        out += [sse.render({**head, "choices": [part]}) for part in (delta, end)]
    if with_usage and completion.get("usage"):
        out.append(sse.render({**head, "choices": [], "usage": completion["usage"]}))
    return out
