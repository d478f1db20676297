"""Answers whose head is sent before they are complete: slow JSON, and bytes as they come.

No chat: its streams are `upstream.relay`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from flask import Response

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api import http
from qwen_wsgi.api.flask_app import FinishedResponse
from qwen_wsgi.api.lifecycle import LiveCall
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

    def __init__(
        self,
        work: Callable[[], Any],
        *,
        settings: Settings,
        record: CallRecord,
        write_record: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            write_record: writes the record down, before the JSON is sent.
        """
        self._settings = settings
        self._write_record = write_record
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
                record.keepalives += 1
                yield b"\n"
                wait_s = self._settings.keepalive_interval_s
            made = self._work.take()
            record.outcome = "complete"
        except (GeneratorExit, ClientGone):
            raise
        except BaseException as fault:  # the outermost frame: nothing else can report it
            made = failed_late(fault, record).body()
        last = encoded(made)
        self._write_record()
        yield last

    def close(self) -> None:
        """Stop the work. Harmless when repeated."""
        self._record.leave()
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
        write_record: Callable[[], None] = lambda: None,
        holds: bool = False,
    ) -> None:
        """
        Args:
            pieces: of the body, as they come.
            close: frees the upstream; harmless when repeated.
            last_words: what is sent of a failure before the connection breaks.
            write_record: writes the record down, before the end of the body is sent.
            holds: the last piece is the end: each one waits for the next. Else the end comes after
                it, as that of a body without a length does.
        """
        self._pieces = pieces
        self._record = record
        self._close = close
        self._last_words = last_words
        self._write_record = write_record
        self._holds = holds

    def __iter__(self) -> Iterator[bytes]:
        held = b""
        try:
            for piece in self._pieces:
                if not self._holds:
                    yield piece
                    continue
                if held:
                    yield held
                held = piece
            self._record.outcome = "complete"
            self._write_record()
            if held:
                yield held
            return
        except (GeneratorExit, ClientGone):
            raise
        except BaseException as fault:  # the outermost frame: nothing else can report it any more
            last = held + self._last_words(failed_late(fault, self._record))
        self._write_record()
        if last:
            yield last
        raise StreamBroken("the answer failed after its head was sent")

    def close(self) -> None:
        """Stop the upstream. Harmless when repeated."""
        self._record.leave()
        self._close()


class Download(Protocol):
    """Bytes with a known end, as they come from an upstream."""

    def pieces(self) -> Iterator[bytes]:
        """The bytes."""

    def close(self) -> None:
        """Free the upstream. Harmless when repeated."""


def carried_download(call: LiveCall, download: Download) -> Carried:
    """The body that passes a download on, for `LiveCall.relay`."""
    return Carried(
        download.pieces(),
        call.record,
        download.close,
        write_record=call.write_record,
        holds=True,
    )
