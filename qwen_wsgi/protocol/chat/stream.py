"""The answer as a stream of chunks: forwarded as bytes, parsed where they are not like others."""

from __future__ import annotations

import re
from typing import Any, Final

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.client_view import ModelName, UsageView
from qwen_wsgi.protocol.chat.errors import error_finish_of, error_of
from qwen_wsgi.protocol.chat.normalize import ChunkNormalizer
from qwen_wsgi.protocol.chat.template import Carrier
from qwen_wsgi.protocol.chat.types import typed
from qwen_wsgi.protocol.encoder import COMMENT, error_event
from qwen_wsgi.protocol.json_object import loads
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage

#: A part of an answer: text, thinking, or a tool call.
_CONTENT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|refusal|name)": ?"[^"]'
)
_ROLE: Final = re.compile(rb'"role": ?"[a-z]')
_OBJECT: Final = "chat.completion.chunk"

#: More than text in the bytes of a chunk.
_MORE: Final = re.compile(
    rb'"error"|_tokens"|"finish_reason": ?"|"tool_calls": ?\[|"function_call": ?\{'
)
#: The name of an event that is an error whatever its data are.
_ERROR_NAME: Final = re.compile(rb"^event: ?error\s*$", re.MULTILINE)
#: Members of a chunk that all chunks of a stream have.
_HEAD: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier")

#: How often a template is tried on the rest of a block, which may cost a search of all of it.
_TRIES: Final = 8
#: It was worth it if so many events fitted.
_MANY: Final = 8


class ChunkStream:
    """Reads a stream of chunks and returns what the client gets.

    Chunks like the last one are not parsed (`template`); all others are, and are forwarded as they
    came where nothing has to be changed.

    Args:
        hide_usage: the client did not ask for usage, so it gets none.
        normalize: the upstream is a Qwen host, whose chunks are normalized in full. Of other hosts'
            only what clients cannot use is changed: values of a wrong type (`types`), tool calls
            and finishes (`normalize`), hidden usage and the model's name.
        model: the model's name upstream and the client's name for it (`client_view`).

    Attributes:
        usage: the last usage, or None.
        failed: the upstream sent an error. Neither it nor what follows is passed on.
        error: the error that was sent in place of a chunk, or None.
        error_finish: the text of an error that came as a finish reason, or None.
        answered: text, thinking or a tool call was received.
        finished: a finish reason was received, and no part of an answer after it. At `[DONE]` each
            choice gets the one that it lacks.
        done: `[DONE]` was received.
        received: how many events the last block had.
    """

    def __init__(
        self, *, hide_usage: bool, normalize: bool = True, model: tuple[str, str] | None = None
    ) -> None:
        self._normalizer = ChunkNormalizer(qwen=normalize)
        self._opening = _Opening() if normalize else None
        #: The last parsed chunk with choices.
        self._last: dict[str, Any] = {}
        self._carrier = Carrier()
        self._model = ModelName(model)
        self._usage_view = UsageView(hide=hide_usage, normalize=normalize)
        self.usage: Usage | None = None
        self.failed = False
        self.error: Any = None
        self.error_finish: str | None = None
        self.answered = False
        self.finished = False
        self.done = False
        self.received = 0

    @property
    def complete(self) -> bool:
        """Whether the answer would be complete if the stream ended here."""
        if self.failed:
            return False
        if self.done:
            return self.finished or self.answered
        return self.finished and not self._normalizer.unfinished

    @property
    def hidden_usage(self) -> Any:
        """The usage object that was hidden from the client, or None."""
        return self._usage_view.hidden

    @property
    def carrier(self) -> Carrier | None:
        """Forwards single events for whoever has no need of `feed`; None where a kind of stream
        does more than that with each of them."""
        return self._carrier if type(self).feed is ChunkStream.feed else None

    def feed(self, block: bytes) -> bytes:
        """Take a block of whole events; return what the client gets of it.

        That is only data: comments break simple parsers (the proxy sends its own keep-alives),
        OpenAI's chat streams name no events, and `id:` and `retry:` lines make the official Python
        SDK fail. `[DONE]` is removed: the relay ends the stream when it knows it is complete.
        """
        sent, at, self.received = self._carrier.carry(block)
        if at == len(block):
            return sent
        pieces = [sent]
        at = self._each(block, at, pieces)
        if at < len(block):
            self.received += block.count(b"\n\n", at)
        return b"".join(pieces)

    def end(self) -> bytes:
        """Return what the client must still get at the end; `feed` calls it at `[DONE]`."""
        sent = b""
        if self._opening is not None:
            sent = b"".join(self._parsed(line, line) for line in self._opening.doubtful)
            self._opening = None
        if not self.complete:
            return sent
        if self._normalizer.unfinished:
            last = self._last
            head: dict[str, Any] = {name: last[name] for name in _HEAD if name in last}
            # openai.lib.streaming takes no chunk without it.
            head["object"] = "chat.completion.chunk"
            for choice in self._normalizer.endings():
                sent += sse.render(self._model.in_chunk({**head, "choices": [choice]}))
            self.finished = True
        if (owed := self._usage_view.owed()) is not None:
            sent += sse.render(self._model.in_chunk(owed))
        return sent

    def _each(self, block: bytes, at: int, pieces: list[bytes]) -> int:
        """Handle a block's events one by one, from a place on; tell where that ended.

        Args:
            pieces: gets what the client gets.
        """
        carrier, size, tries = self._carrier, len(block), _TRIES
        while at < size and not (self.done or self.failed):
            end = block.find(b"\n\n", at) + 2
            is_event = end > 1  # a line end more is none
            end = end if is_event else size
            if carrier.is_ready:
                place = (block, at) if tries else (block[at:end], 0)
                sent, length, count = carrier.carry(*place)
                if tries and count < _MANY:
                    tries -= 1
                if count:
                    pieces.append(sent)
                    at += length
                    self.received += count
                    continue
            pieces.append(self._event(block[at:end]))
            self.received += is_event
            at = end
        return at

    def _event(self, event: bytes) -> bytes:
        """Return what the client gets of one event, given with its blank line."""
        line = event
        if not event.startswith(b"data: {") or event.find(b"\n") != len(event) - 2:
            if event == sse.DONE:
                self.done = True
                return self.end()
            payload = sse.data(stripped := event.strip(b"\n"))
            if payload is None:
                return b""
            if payload.strip() == b"[DONE]":
                self.done = True
                return self.end()
            if not stripped.startswith(b"data:") and _ERROR_NAME.search(stripped):
                return self._error_event(payload)
            # A line end can only be white space between tokens of the JSON.
            line = b"data: " + payload.replace(b"\n", b" ") + b"\n\n"
            event = stripped + b"\n\n"
        if self._opening is None:
            return self._parsed(event, line)
        lines = self._opening.take(line)
        if self._opening.over:
            self._opening = None
        return b"".join(self._parsed(each, each) for each in lines)

    def _error_event(self, payload: bytes) -> bytes:
        """Keep the error of an event that is one by its name; nothing is sent for it."""
        value = sse.parse(b"data: " + payload)
        text = payload.decode(errors="replace").strip()
        error = error_of(value) if isinstance(value, dict) else None
        self.failed, self.error = True, error or value or text
        return b""

    def _parsed(self, event: bytes, line: bytes) -> bytes:
        """Parse an event; return what the client gets of it, `b""` for nothing."""
        self._carrier.forget()  # another tool call may continue after this event
        try:
            chunk = loads(line[6:-2])
        except (ValueError, RecursionError):
            return self._unreadable(line)
        if chunk.__class__ is not dict:
            return b""
        if (b"error" in line or "choices" not in chunk) and self._fails(chunk, line):
            return b""
        if self._model.is_another:
            self._model.learn(line, chunk)
        if self.finished or not self.answered:
            self._note(line)
        changed = self._for_client(chunk)
        if changed is None:
            return b""
        sent: bytes | None = line if changed is chunk else None
        if sent and self._model.is_another:
            sent = self._model.in_line(line)
        if not sent:
            sent = sse.render(self._model.in_chunk(changed))
        if self._normalizer.repeatable:
            growing = self._normalizer.growing
            self._carrier.learn(event, sent, growing, alike=sent is line)
        return sent

    def _unreadable(self, line: bytes) -> bytes:
        """Return what the client gets of an event that cannot be parsed: text as it came, since a
        piece that is missing would not be noticed. Mostly its UTF-8 is broken."""
        if b'"choices"' not in line or b'"delta":' not in line or _MORE.search(line):
            return b""
        if not self._normalizer.indexes:
            self._normalizer.begin(0)
        if self.finished or not self.answered:
            self._note(line)
        return (self._model.in_line(line) if self._model.is_another else None) or line

    def _for_client(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """Change a chunk for this client: itself if nothing changed, None if it gets nothing."""
        changed = typed(chunk)
        if changed is None:
            return None
        if changed["choices"]:
            self._last = changed
        told = changed.get("usage")
        if told is not None and (usage := parse_usage(told)) is not None:
            self.usage = usage
            finished = self.finished and not self._normalizer.unfinished
            changed = self._usage_view.of(changed, finished=finished)
        if changed is not None:
            changed = self._normalizer.normalize(changed)
            self.finished = self.finished or self._normalizer.finishes
        return changed

    def _fails(self, chunk: dict[str, Any], line: bytes) -> bool:
        """Whether a chunk is an error; keep the error."""
        if b"error_finish" in line:
            self.error_finish = error_finish_of(chunk)
        if b'"error"' in line or "choices" not in chunk:
            self.error = error_of(chunk)
        self.failed = self.error_finish is not None or self.error is not None
        return self.failed

    def _note(self, data: bytes) -> None:
        """Note whether chunks have a part of an answer, where that is not known.

        After a finish it belongs to another choice, whose own finish will follow.
        """
        if _CONTENT.search(data):
            self.answered, self.finished = True, False


class _Opening:
    """Drops a first chunk that is sent twice.

    Only whole chunks are compared, and only a chunk with a role can be recognized as repeated:
    without it, "1" after "1" may be the start of "11". GLM sends the role in every chunk, which
    shows in the third chunk.

    Attributes:
        doubtful: the second line, if it is equal to the first.
        over: all further lines are forwarded.
    """

    def __init__(self) -> None:
        self._first: bytes | None = None
        self.doubtful: list[bytes] = []
        self.over = False

    def take(self, line: bytes) -> list[bytes]:
        """Take a line; return the lines to forward now."""
        named = _ROLE.search(line) is not None
        if named and self._first is None:
            self._first = line
            return [line]
        if named and line == self._first and not self.doubtful:
            self.doubtful.append(line)
            return []
        self.over = True
        return [*self.doubtful, line] if named else [line]


class ChatEncoder:
    """Encodes a stream for a client of chat: without any change.

    Args:
        id, model, created: for keep-alive chunks, which come before the upstream's chunks.
    """

    ends_after_failure = False

    def __init__(self, *, id: str, model: str, created: int) -> None:
        self._head = {"id": id, "object": _OBJECT, "created": created, "model": model}

    def feed(self, events: bytes) -> bytes:
        """Return the events themselves."""
        return events

    def end(self) -> bytes:
        """Encode OpenAI's last line."""
        return sse.DONE

    def fail(self, error: ApiError) -> bytes:
        """Encode an error in place of a chunk, as the official SDKs expect it."""
        return error_event(error)

    def keep_alive(self, kind: str) -> bytes:
        """Return a comment, or an empty chunk for clients whose timeouts count events."""
        if kind == "comment":
            return COMMENT
        choice = {"index": 0, "delta": {}, "finish_reason": None}
        return sse.render({**self._head, "choices": [choice]})
