"""Carries an upstream stream to the client: events in, bytes out, and an honest end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import (
    ApiError,
    ClientGone,
    InternalError,
    StreamBroken,
    UpstreamError,
    forget_frames,
)
from qwen_wsgi.greenlets import Task
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.settings import Settings
from qwen_wsgi.shortage import shortage_of
from qwen_wsgi.upstream.open_stream import OpenStream

log = logging.getLogger(__name__)


class Relay:
    """One client's stream, from the first wait for the upstream to the last byte.

    The work before the first event runs in a task of its own, so that keep-alives can flow
    meanwhile; after it the relay reads the upstream itself, one write per read.

    Used by one greenlet. `close` must be called on every exit, also when iteration never began.
    How the stream ended is written to the record: `outcome`, `error_code`.
    """

    def __init__(
        self,
        open_stream: Callable[[], OpenStream],
        *,
        settings: Settings,
        clock: Clock,
        encoder: Encoder,
        record: CallRecord,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._encoder = encoder
        self._record = record
        self._stream: OpenStream | None = None
        self._opening = Task(open_stream, discard=OpenStream.close)

    def wait_first(self) -> bool:
        """Wait for the first event, as long as silence towards the client is allowed.

        Returns False if it is time to answer 200 and send keep-alives. After True the stream is
        ready, and iteration begins with its first event.

        Raises:
            ApiError: the call failed before its first event; answer with its status.
        """
        off = self._settings.keepalive == "off"
        if not self._opening.wait(None if off else self._settings.keepalive_interval_s):
            return False
        try:
            self._stream = self._opening.take()
        except ApiError as error:
            self._record.fail(error)
            raise
        return True

    def __iter__(self) -> Iterator[bytes]:
        record = self._record
        try:
            # The first keep-alive is due at once: wait_first has waited for it already.
            wait_s = 0.0
            while not self._opening.wait(wait_s):
                yield self._encoder.keep_alive(self._settings.keepalive)
                wait_s = self._settings.keepalive_interval_s
            if self._stream is None:
                self._stream = self._opening.take()
            yield from self._carry(self._stream)
        except ApiError as error:
            forget_frames(error)  # this one is among them
            record.outcome = "upstream_error" if isinstance(error, UpstreamError) else "refused"
            if self._stream is not None:
                self._stream.on_failure(error)
            yield self._failed(error)
        except Exception as fault:  # the outermost frame: after the 200 nothing else can report it
            shortage = shortage_of(fault)
            log.error("fault in a stream call=%s", record.request_id, exc_info=fault)
            record.outcome = "failed"
            yield self._failed(
                InternalError("The proxy failed on this stream.")
                if shortage is None
                else shortage.error()
            )
        except (GeneratorExit, ClientGone):
            raise
        except BaseException:  # the worker is stopping, and its time for open streams is over
            record.outcome = "cut_by_stop"
            yield self._failed(stopping())
        if record.outcome != "complete" and not self._encoder.ends_after_failure:
            raise StreamBroken("the stream failed; its client was sent an error event")

    def close(self) -> None:
        """Stop the upstream, wherever the stream is. Harmless when repeated."""
        if self._record.outcome == "open":
            self._record.outcome = "client_gone"
        try:
            self._opening.cancel()
        finally:
            if self._stream is not None:
                self._stream.close()

    def _failed(self, error: ApiError) -> bytes:
        """Record the failure; the bytes that report it to the client."""
        record = self._record
        record.error_code = error.code or error.type
        if isinstance(error, UpstreamError):
            record.upstream_request_id = error.upstream_request_id or record.upstream_request_id
        return self._encoder.fail(error)

    def _carry(self, stream: OpenStream) -> Iterator[bytes]:
        # Looked up once: this loop runs for every read of every stream.
        settings, monotonic = self._settings, self._clock.monotonic
        chunks, feed, read = stream.chunks, self._encoder.feed, stream.read
        beats = settings.keepalive != "off"
        interval_s = settings.keepalive_interval_s
        events: bytes | None = stream.first
        written_at = monotonic()
        while events is not None:
            if chunks.done and chunks.complete:
                break
            if events and (rendered := feed(events)):
                yield rendered
                written_at = stream.heard_at
            elif beats and monotonic() - written_at >= interval_s:
                yield self._encoder.keep_alive(settings.keepalive)
                written_at = monotonic()
            events = read(interval_s)
        self._record.outcome = "complete"
        # In one write.
        yield (feed(events) if events else b"") + self._encoder.end()
        stream.drain()


def stopping() -> ApiError:
    """The error for an answer that a stop of the server cuts off."""
    return ApiError(
        "The proxy was stopped or restarted before this answer was complete. Please try again.",
        status=503,
        code="proxy_stopping",
    )
