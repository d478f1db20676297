"""Answers whose head is sent before they are complete: slow JSON, and bytes as they come.

No chat: its streams are `upstream.relay`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Response

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api import http
from qwen_wsgi.api.flask_app import FinishedResponse
from qwen_wsgi.errors import ApiError, ClientGone, StreamBroken
from qwen_wsgi.greenlets import Task
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.json_object import encoded
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.relay import failed_late


class LateJson:
    """JSON whose work runs in a task of its own; white space comes before it, which JSON may
    begin with (RFC 8259 §2).

    Used by one greenlet. `close` must be called on every exit; it stops the work.
    """

    def __init__(self, work: Callable[[], Any], *, settings: Settings, record: CallRecord) -> None:
        self._settings = settings
        self._record = record
        self._work = Task(work, discard=lambda made: None)

    def response(self) -> Response:
        """The answer, or its beginning once the silence has been long enough.

        Raises:
            ApiError: the work failed before that; answer with its status.
        """
        off = self._settings.keepalive == "off"
        if self._work.wait(None if off else self._settings.keepalive_interval_s):
            made = self._work.take()
            self._record.outcome = "complete"
            return http.json_value(made)
        response = FinishedResponse(self, content_type="application/json")
        response.headers.add("cache-control", "no-cache")
        response.headers.add("x-accel-buffering", "no")
        return response

    def __iter__(self) -> Iterator[bytes]:
        record, wait_s = self._record, 0.0
        try:
            while not self._work.wait(wait_s):
                yield b"\n"
                wait_s = self._settings.keepalive_interval_s
            made = self._work.take()
            record.outcome = "complete"
        except (GeneratorExit, ClientGone):
            raise
        except BaseException as fault:  # the outermost frame: nothing else can report it
            made = failed_late(fault, record).body()
        yield encoded(made)

    def close(self) -> None:
        """Stop the work. Harmless when repeated."""
        if self._record.outcome == "open":
            self._record.outcome = "client_gone"
        self._work.cancel()


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that failed, as OpenAI's endpoints of sound have it."""
    return sse.render(error.body())


class Carried:
    """A body that is sent as it comes: sound, a video, a file.

    A failure in its middle breaks the connection, so that the client cannot take what came for the
    whole. `close` must be called on every exit; how it ended is written to the record.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        record: CallRecord,
        close: Callable[[], None],
        *,
        last_words: Callable[[ApiError], bytes] = lambda error: b"",
    ) -> None:
        """
        Args:
            pieces: of the body, as they come.
            close: frees the upstream; harmless when repeated.
            last_words: what is sent of a failure before the connection breaks.
        """
        self._pieces = pieces
        self._record = record
        self._close = close
        self._last_words = last_words

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
            self._record.outcome = "complete"
            return
        except (GeneratorExit, ClientGone):
            raise
        except BaseException as fault:  # the outermost frame: nothing else can report it any more
            last = self._last_words(failed_late(fault, self._record))
        if last:
            yield last
        raise StreamBroken("the answer failed after its head was sent")

    def close(self) -> None:
        """Stop the upstream. Harmless when repeated."""
        if self._record.outcome == "open":
            self._record.outcome = "client_gone"
        self._close()
