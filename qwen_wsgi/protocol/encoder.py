"""The interface of a dialect's answer side.

Chat is the one internal language. A dialect is a function that translates its requests to chat
requests (`Changes` lists what is lost), and an `Encoder` that translates chat's answers back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import sse


class Encoder(Protocol):
    """Encodes one answer in a client's dialect. Has state, serves one call, and raises nothing but
    `AnswerTooLarge`, after which `fail` follows.

    The calls come in this order: `feed` and `keep_alive`, any number of times and in any order,
    then `end` or `fail`, once. Each returns bytes for the client, perhaps none.

    Attributes:
        ends_after_failure: an error event ends the stream properly in this dialect; else the
            connection is reset after it, so that no client takes the stream for complete.
    """

    ends_after_failure: bool

    def feed(self, events: bytes) -> bytes:
        """Encode some whole events of chat.

        They are what `ChunkStream.feed` returns: `data:` lines with blank lines, normalized,
        without `[DONE]`.
        """

    def end(self) -> bytes:
        """Encode the end of a complete answer."""

    def fail(self, error: ApiError) -> bytes:
        """Encode the error that ended the answer; `feed` did not get it."""

    def keep_alive(self, kind: str) -> bytes:
        """Return bytes without content.

        Args:
            kind: `comment`, or `chunk` for an event: the operator's setting.
        """


@dataclass(frozen=True)
class ServerCall:
    """A model's call of a tool that the proxy runs.

    Attributes:
        tool: the tool's name, the same in every dialect: `image_generation`.
        number: tells it from the other calls of the answer.
        work: tells what the tool is to do, when it is begun; what that is, is between the dialect
            and the tool.
    """

    tool: str
    number: int
    work: Callable[[], Any]


@dataclass(frozen=True)
class Outcome:
    """How a call of such a tool ended: with a value, or with a failure, which the model is told."""

    value: Any = None
    failure: ApiError | None = None


def error_event(error: ApiError) -> bytes:
    """Render an error in place of a chunk, as the official SDKs expect it.

    Its type and code are OpenAI's, as those of an error before the first byte are.
    """
    return sse.render(error.body())


#: A comment (WHATWG Server-sent events, 9.2.6), which parsers skip.
COMMENT = b": keep-alive\n\n"
