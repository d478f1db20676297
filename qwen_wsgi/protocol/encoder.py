"""The seam between chat, our one internal language, and the dialects that clients speak.

A dialect is a pure function that makes a chat request of its own requests, and an `Encoder` that
tells chat's answer in its own words. `Losses` collects what the former could not keep.
"""

from __future__ import annotations

from typing import Protocol

from qwen_wsgi.errors import ApiError, BadRequest, UpstreamError
from qwen_wsgi.protocol import sse


class Encoder(Protocol):
    """Tells one answer in a client's dialect. Has state and serves one call; never fails.

    The calls come in this order: `feed` and `keep_alive`, any number of times and in any order,
    then `end` or `fail`, once. Each returns bytes for the client, perhaps none.

    Attributes:
        ends_after_failure: the event that tells a failure is an end of the stream in this dialect;
            else the connection is broken off behind it, so that nobody takes it for an end.
    """

    ends_after_failure: bool

    def feed(self, events: bytes) -> bytes:
        """Tell some whole events of chat.

        They are what `ChunkStream.feed` returns: `data:` lines with blank lines, mended, usage
        where OpenAI has it, without `[DONE]`.
        """

    def end(self) -> bytes:
        """Tell that the answer is complete."""

    def fail(self, error: ApiError) -> bytes:
        """Tell why there will be no more; `feed` was not told of it."""

    def keep_alive(self, kind: str) -> bytes:
        """Something that says nothing.

        Args:
            kind: `comment`, or `chunk` for an event, as the operator wants it.
        """


def error_event(error: ApiError) -> bytes:
    """An error where a chunk should be, as the official SDKs raise it; an upstream's own, if it is
    of that form, as it came."""
    frame = error.frame if isinstance(error, UpstreamError) else b""
    return frame or sse.render(error.body())


#: A comment (WHATWG Server-sent events, 9.2.6), which parsers skip.
COMMENT = b": keep-alive\n\n"


class Changes:
    """What a translation changed or dropped, for the header `x-qwen-proxy-changed`.

    Args:
        strict: the operator wants requests refused of which something would be lost.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._changed: list[str] = []

    @property
    def changed(self) -> tuple[str, ...]:
        """An entry `field:what` for each, printable ASCII without commas."""
        return tuple(self._changed)

    def note(self, field: str, what: str) -> None:
        """Note a change that loses nothing that the client would miss."""
        entry = f"{field}:{what}"
        if entry not in self._changed:
            self._changed.append(entry)

    def lose(self, field: str, why: str, *, what: str = "dropped") -> None:
        """Note that what the client asked for with `field` will not be had.

        Args:
            why: a sentence without its subject and its end: `has no counterpart in Qwen's API`.

        Raises:
            BadRequest: the operator wants such requests refused.
        """
        if self._strict:
            raise BadRequest(
                f"'{field}' {why}. With QWEN_PROXY_STRICT=1 such a request is refused instead of "
                "changed.",
                param=field,
                code="unsupported_parameter",
            )
        self.note(field, what)
