"""Carries an upstream stream to the client: bytes in, bytes out, and an honest end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError, ClientGone, StreamBroken, forget_frames
from qwen_wsgi.greenlets import Task
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.client import OpenStream, empty, ended_early
from qwen_wsgi.upstream.http.body import ReadTimeout
from qwen_wsgi.upstream.http.transport import silence

log = logging.getLogger(__name__)


class Relay:
    """One client's stream, from the first wait for the upstream to the last byte.

    The work before the first event runs in a task of its own, so that keep-alives can flow
    meanwhile; after it the relay reads the upstream itself, one write per read.

    Used by one greenlet. `close` must be called on every exit, also when iteration never began.

    Attributes:
        outcome: `open` until the stream ends; then `complete`, `upstream_error`, `failed` (a fault
            of ours), `cut_by_stop` or `client_gone`.
        first_byte_at: monotonic time of the first upstream event, or None.
        longest_gap_s: the longest silence of the upstream after it.
        error: the failure that ended the stream, or None.
    """

    def __init__(
        self,
        open_stream: Callable[[], OpenStream],
        *,
        settings: Settings,
        clock: Clock,
        encoder: Encoder,
        call_id: str,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._encoder = encoder
        self._call_id = call_id
        self._stream: OpenStream | None = None
        self._opening = Task(open_stream, discard=OpenStream.close)
        self.outcome = "open"
        self.first_byte_at: float | None = None
        self.longest_gap_s = 0.0
        self.error: ApiError | None = None

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
        self._take()
        return True

    @property
    def usage(self) -> Usage | None:
        """What the call used, if the upstream told so far."""
        return self._stream.chunks.usage if self._stream else None

    @property
    def upstream_request_id(self) -> str:
        """The upstream's own id of the call, or ""."""
        return self._stream.upstream_request_id if self._stream else ""

    def __iter__(self) -> Iterator[bytes]:
        try:
            # The first beat is due at once: wait_first has waited for it already.
            wait_s = 0.0
            while not self._opening.wait(wait_s):
                yield self._keep_alive()
                wait_s = self._settings.keepalive_interval_s
            if self._stream is None:
                self._take()
            yield from self._carry()
        except ApiError as error:
            forget_frames(error)  # this one is among them
            self.outcome, self.error = "upstream_error", error
            if self._stream is not None:
                self._stream.on_failure(error)
            yield self._encoder.fail(error)
        except Exception as fault:  # the outermost frame: after the 200 nobody else can tell
            log.error("fault in a stream call=%s", self._call_id, exc_info=fault)
            self.outcome = "failed"
            self.error = ApiError("The proxy failed on this stream.", code="internal_error")
            yield self._encoder.fail(self.error)
        except (GeneratorExit, ClientGone):
            raise
        except BaseException:  # the worker is stopping, and its time for open streams is over
            self.outcome, self.error = "cut_by_stop", _stopping()
            yield self._encoder.fail(self.error)
        if self.outcome != "complete" and not self._encoder.ends_after_failure:
            raise StreamBroken("the stream failed; its client was told by an error event")

    def close(self) -> None:
        """Stop the upstream, wherever the stream is. Harmless when repeated."""
        if self.outcome == "open":
            self.outcome = "client_gone"
        self._opening.cancel()
        if self._stream is not None:
            self._stream.close()

    def _take(self) -> None:
        try:
            self._stream = self._opening.take()
        except ApiError:
            self.outcome = "upstream_error"
            raise
        self.first_byte_at = self._clock.monotonic()

    def _carry(self) -> Iterator[bytes]:
        stream = self._stream
        assert stream is not None
        # Looked up once: this loop runs for every read of every stream.
        settings, monotonic, encoder = self._settings, self._clock.monotonic, self._encoder
        chunks, feed, patience_s = stream.chunks, encoder.feed, settings.first_byte_timeout_s
        step = wait_s = min(settings.keepalive_interval_s, settings.idle_timeout_s)
        events: bytes | None = stream.first
        written = heard = spoken = monotonic()
        while events is not None:
            if chunks.done and chunks.complete:
                self.outcome = "complete"
                yield feed(events) + encoder.end()  # in one write
                stream.drain()
                return
            if events and (told := feed(events)):
                yield told
                written = heard
            if not events and monotonic() - written >= settings.keepalive_interval_s:
                yield from self._beat()
                written = monotonic()
            try:
                events = stream.read(wait_s)
                now = monotonic()
                if now - heard > self.longest_gap_s:
                    self.longest_gap_s = now - heard
                heard, wait_s = now, step
                if events:
                    spoken = now
                elif now - spoken >= patience_s:
                    # Signs of life and nothing else: no longer than before the first event.
                    raise silence(patience_s)
            except ReadTimeout:
                left = heard + settings.idle_timeout_s - monotonic()
                if left <= 0:
                    raise silence(settings.idle_timeout_s) from None
                events, wait_s = b"", min(step, left)
        yield from self._end(stream)

    def _end(self, stream: OpenStream) -> Iterator[bytes]:
        if not stream.chunks.complete:
            raise ended_early() if stream.chunks.answered else empty()
        self.outcome = "complete"
        yield self._encoder.end()
        stream.drain()

    def _beat(self) -> Iterator[bytes]:
        if self._settings.keepalive != "off":
            yield self._keep_alive()

    def _keep_alive(self) -> bytes:
        return self._encoder.keep_alive(self._settings.keepalive)


def _stopping() -> ApiError:
    return ApiError(
        "The proxy was stopped or restarted before this answer was complete. Please try again.",
        status=503,
        code="proxy_stopping",
    )
