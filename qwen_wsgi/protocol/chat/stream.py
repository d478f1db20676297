"""The answer as a stream of chunks: carried as bytes, looked at where something matters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.client_view import ModelName, UsageView
from qwen_wsgi.protocol.chat.errors import error_finish_of, error_of
from qwen_wsgi.protocol.chat.normalize import ChunkNormalizer, finish_reason
from qwen_wsgi.protocol.chat.template import Carrier
from qwen_wsgi.protocol.encoder import COMMENT, error_event
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage

#: Something that a reader would call an answer: text, thinking, or arguments of a tool call.
_CONTENT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|refusal|name)": ?"[^"]'
)
_ROLE: Final = re.compile(rb'"role": ?"[a-z]')
_CHOICES: Final = b'"choices"'
_OBJECT: Final = "chat.completion.chunk"

#: What makes a chunk worth parsing, whoever sent it. Every usage object has members whose names end
#: so, and DashScope's `"usage":null` has none.
_MARKS: Final = (b'"error"', b'_tokens"', b'"finish_reason":"', b'"finish_reason": "')
#: And of a host that needs mending. Every chunk of DashScope has null for most of these.
_MENDING_MARKS: Final = (
    *_MARKS,
    *(b'"tool_calls":[', b'"tool_calls": [', b'"role":"', b'"role": "', b'"reasoning":'),
)

#: How often the rest of a block is tried with a new template: that may cost a look at all of it.
_TRIES: Final = 8


class ChunkStream:
    """Watches a stream of chunks go by, and changes what a client must not get as it is.

    A chunk is parsed only if one of a few byte strings occurs in it, and chunks like the last one
    are not even searched for those (`template`). In JSON text a quote inside a string is escaped,
    so `"error"` with bare quotes is always a token of its own.

    Args:
        hide_usage: the client did not ask for usage, so it gets none.
        mend: the upstream is a Qwen host, whose chunks are set right (`mend`). The chunks of others
            pass as they are, but for hidden usage and the model's name.
        model: the model's name upstream and the client's name for it (`client_view`).

    Attributes:
        usage: the last usage that went by, or None.
        failed: the upstream told an error. It is not passed on, nor is what came after it.
        error: the error that stood in a chunk's place, or None.
        error_finish: the text of an error that came as a finish reason, or None.
        frame: the event with the error, if it was in OpenAI's form; for who speaks it, too.
        answered: text, thinking or a tool call went by.
        finished: a finish reason went by, and no part of an answer after it.
        done: `[DONE]` went by.
    """

    def __init__(
        self, *, hide_usage: bool, mend: bool = True, model: tuple[str, str] | None = None
    ) -> None:
        self._mender = ChunkNormalizer() if mend else None
        self._opening = _Opening() if mend else None
        self._marks = _MENDING_MARKS if mend else _MARKS
        self._carrier = Carrier()
        self._model = ModelName(model)
        self._usage_view = UsageView(hide=hide_usage, mend=mend)
        self.usage: Usage | None = None
        self.failed = False
        self.error: Any = None
        self.error_finish: str | None = None
        self.frame = b""
        self.answered = False
        self.finished = False
        self.done = False

    @property
    def complete(self) -> bool:
        """Whether the end of the stream here would be an end that a client may believe."""
        return not self.failed and (self.finished or (self.done and self.answered))

    def feed(self, block: bytes) -> bytes:
        """Look at a block of whole events; return what the client gets of it.

        That is data and nothing else: comments upset simple parsers (keep-alives are ours to send),
        OpenAI's chat streams name no events, and `id:` and `retry:` lines make the official Python
        SDK fail. `[DONE]` is taken out: the relay ends the stream, once it knows it is complete.
        """
        told, length = self._carrier.carry(block)
        if length == len(block):
            return told
        rest = block[length:] if length else block
        if (plain := self._plain(rest)) is not None:
            self._opening = None  # none of these names the role
            self._carrier.learn(_last_event(rest), _last_event(plain))
            return told + plain
        return told + b"".join(self._each(rest))

    def end(self) -> bytes:
        """What the client is still to get now that the upstream ended. At `[DONE]`, `feed` asks."""
        told = b""
        if self._opening is not None:
            told = b"".join(self._told(line, line) for line in self._opening.doubtful)
            self._opening = None
        if self.complete and (owed := self._usage_view.owed()) is not None:
            told += sse.render(self._model.in_chunk(owed))
        return told

    def _plain(self, block: bytes) -> bytes | None:
        """What the client gets of a block in which no event needs a look; None if one does.

        If all line ends are accounted for by k-1 borders between `data:` lines and the last blank
        line, there is nothing but k such lines.
        """
        count = block.count(b"\n\ndata: {") + 1
        if (
            block.count(b"\n") != 2 * count
            or not block.startswith(b"data: {")
            or block.count(_CHOICES) != count
            or _any_in(self._marks, block)
        ):
            return None
        told = self._model.in_lines(block, count)
        if told is not None:
            self._note(block)
        return told

    def _each(self, block: bytes) -> Iterator[bytes]:
        """Look at a block's events one by one."""
        at, tries = 0, _TRIES
        while at < len(block) and not (self.done or self.failed):
            told, length = b"", 0
            if self._carrier.fresh and tries:
                tries -= 1
                told, length = self._carrier.carry(block[at:])
            if not length:
                end = block.find(b"\n\n", at)
                length = (end + 2 if end >= 0 else len(block)) - at
                told = self._event(block[at : at + length].strip(b"\n"))
            at += length
            if told:
                yield told

    def _event(self, event: bytes) -> bytes:
        """What the client gets of one event, which comes without its blank line."""
        told, length = self._carrier.carry(event + b"\n\n")
        if length:
            return told
        payload = sse.data(event)
        if payload is None:
            return b""
        if payload.strip() == b"[DONE]":
            self.done = True
            return self.end()
        # A line end can only be white space between the tokens of the JSON.
        line = b"data: " + payload.replace(b"\n", b" ") + b"\n\n"
        if self._opening is None:
            return self._told(event + b"\n\n", line)
        lines = self._opening.take(line)
        if self._opening.over:
            self._opening = None
        return b"".join(self._told(each, each) for each in lines)

    def _told(self, event: bytes, line: bytes) -> bytes:
        """What the client gets of an event, given with its data as one line."""
        if (plain := self._plain(line)) is None:
            return self._judged(event, line)
        self._carrier.learn(event, plain)
        return plain

    def _judged(self, event: bytes, line: bytes) -> bytes:
        """What the client gets of an event that has to be parsed; `b""` if nothing."""
        self._carrier.forget()  # it may be another tool call that goes on from here
        chunk = sse.parse(line[:-2])
        if not isinstance(chunk, dict):
            return line
        if self._fails(chunk, line):
            return b""
        self._note(line)
        finishes = _finishes(chunk)
        self.finished = self.finished or finishes
        self._model.learn(line, chunk)
        mended = self._mended(chunk)
        if mended is None:
            return b""
        renamed = self._model.in_lines(line) if mended is chunk else None
        told = renamed or sse.render(self._model.in_chunk(mended))
        mender = self._mender
        if mender is not None and mender.repeatable:
            self._carrier.learn_mended(event, told, mender.growing)
        elif mender is None and not finishes:
            self._carrier.learn(event, told)
        return told

    def _mended(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """The chunk as this client gets it: itself if nothing is to change, None if not at all."""
        mended: dict[str, Any] | None = chunk
        if (usage := parse_usage(chunk.get("usage"))) is not None:
            self.usage = usage
            mended = self._usage_view.of(chunk, finished=self.finished)
        if self._mender is not None and mended is not None:
            mended = self._mender.mend(mended)
        return mended

    def _fails(self, chunk: dict[str, Any], line: bytes) -> bool:
        """Whether a chunk is an error, which is noted."""
        self.error_finish, self.error = error_finish_of(chunk), error_of(chunk)
        self.failed = self.error_finish is not None or self.error is not None
        if self.failed and "error" in chunk:
            self.frame = line
        return self.failed

    def _note(self, data: bytes) -> None:
        """Note whether there is a part of an answer in some chunks.

        After a finish it belongs to another choice, whose own finish is to come.
        """
        if (self.finished or not self.answered) and _CONTENT.search(data):
            self.answered, self.finished = True, False


class _Opening:
    """Drops a first chunk that is sent twice.

    Only whole chunks are compared, and only one that names the role can be known to be sent again:
    without it, "1" after "1" is how "11" begins. GLM names the role in every chunk; whether this is
    so, the third chunk tells.

    Attributes:
        doubtful: the second line, if it was the first one over again.
        over: the next lines are carried as they come.
    """

    def __init__(self) -> None:
        self._first: bytes | None = None
        self.doubtful: list[bytes] = []
        self.over = False

    def take(self, line: bytes) -> list[bytes]:
        """The lines that are to be carried now."""
        named = _ROLE.search(line) is not None
        if named and self._first is None:
            self._first = line
            return [line]
        if named and line == self._first and not self.doubtful:
            self.doubtful.append(line)
            return []
        self.over = True
        return [*self.doubtful, line] if named else [line]


def _last_event(block: bytes) -> bytes:
    return block[block.rfind(b"\n\n", 0, -2) + 2 :] if block.count(b"\n") > 2 else block


def _any_in(marks: tuple[bytes, ...], data: bytes) -> bool:
    for mark in marks:  # noqa: SIM110  # any() takes twice as long
        if mark in data:
            return True
    return False


def _finishes(chunk: dict[str, Any]) -> bool:
    """Whether a chunk has a finish reason."""
    return any(
        finish_reason(choice.get("finish_reason"), called=False)
        for choice in objects(chunk.get("choices"))
    )


class ChatEncoder:
    """Tells a stream to a client that speaks chat: as it is.

    Args:
        id, model, created: stand in keep-alive chunks, which come before the upstream's own.
    """

    ends_after_failure = False

    def __init__(self, *, id: str, model: str, created: int) -> None:
        self._head = {"id": id, "object": _OBJECT, "created": created, "model": model}

    def feed(self, events: bytes) -> bytes:
        """The events themselves."""
        return events

    def end(self) -> bytes:
        """OpenAI's last line."""
        return sse.DONE

    def fail(self, error: ApiError) -> bytes:
        """An error where a chunk should be, as the official SDKs raise it."""
        return error_event(error)

    def keep_alive(self, kind: str) -> bytes:
        """A comment, or a chunk that says nothing, for clients whose timers count events."""
        if kind == "comment":
            return COMMENT
        choice = {"index": 0, "delta": {}, "finish_reason": None}
        return sse.render({**self._head, "choices": [choice]})
