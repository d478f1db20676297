"""Carries an upstream stream to the client: events in, bytes out, and an honest end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import (
    ApiError,
    CallCancelled,
    ClientGone,
    StreamBroken,
    UpstreamError,
    forget_frames,
)
from qwen_wsgi.greenlets import Task
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.settings import Settings
from qwen_wsgi.shortage import fault_error
from qwen_wsgi.upstream.open_stream import Kept, OpenStream

#: How an answer's events may leave besides being yielded.
Passage = Callable[[], Callable[[bytes], bool] | None]


def no_passage() -> None:
    """All events are yielded."""
    return


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
        write_record: Callable[[], None] = lambda: None,
        passage: Passage = no_passage,
    ) -> None:
        """
        Args:
            write_record: writes the record down, before the last event leaves.
            passage: asked once, after the first piece was sent: a way to send an event to the
                client that goes as it came, see `OpenStream.pass_to`; None: there is none, and all
                of it is yielded. Where there is one, a piece without bytes is a chance for the
                server to send what could not be sent at once.
        """
        self._settings = settings
        self._clock = clock
        self._encoder = encoder
        self._record = record
        self._write_record = write_record
        self._passage = passage
        self._stream: OpenStream | None = None
        self._is_closed = False
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
            if self._stream is None:
                # The first keep-alive is due at once: wait_first has waited for it already.
                wait_s = 0.0
                while not self._opening.wait(wait_s):
                    record.keepalives += 1
                    yield self._encoder.keep_alive(self._settings.keepalive)
                    wait_s = self._settings.keepalive_interval_s
                self._stream = self._opening.take()
            yield from self._carry(self._stream)
        except (GeneratorExit, ClientGone):
            raise
        except BaseException as fault:  # the outermost frame: nothing else can report it
            if self._stream is not None and isinstance(fault, ApiError):
                self._stream.on_failure(fault)
            error = failed_late(fault, record)
            if self._stream is not None:
                self._stream.note_usage()
            self._settle()
            yield self._encoder.fail(error)
        if record.outcome != "complete" and not self._encoder.ends_after_failure:
            raise StreamBroken("the stream failed; its client was sent an error event")

    def close(self) -> None:
        """Stop the upstream, wherever the stream is. Harmless when repeated."""
        if self._is_closed:
            return
        # What opens nothing has nothing more to close.
        self._is_closed = self._stream is not None
        self._record.leave()
        try:
            self._opening.cancel()
        finally:
            if self._stream is not None:
                self._stream.close()

    def _settle(self) -> None:
        """Write down how the stream has ended: its last event comes next."""
        self._write_record()

    def _keep(self, stream: OpenStream, kept: Kept) -> None:
        """Keep the answer of a stream, before its client knows that it is complete."""
        record = self._record
        kept.complete(
            stream.chunks,
            id=record.completion_id,
            model=record.model or record.upstream_model,
            created=int(self._clock.now()),
        )

    def _carry(self, stream: OpenStream, end: Callable[[], bytes] | None = None) -> Iterator[bytes]:
        """Carry one stream to its end.

        Args:
            end: renders what comes last; None for a stream that is the whole answer.
        """
        # Looked up once: this loop runs for every read of every stream.
        settings, monotonic = self._settings, self._clock.monotonic
        last: bytes
        chunks, read = stream.chunks, stream.read
        feed: Callable[[bytes], bytes] = self._encoder.feed
        beats = settings.keepalive != "off"
        interval_s = settings.keepalive_interval_s
        if stream.kept is not None:
            feed = stream.kept.passing(feed)
        events: bytes | None = stream.first
        written_at, may_pass = monotonic(), stream.kept is None
        while events is not None:
            if chunks.done and chunks.complete:
                break
            if events and (rendered := feed(events)):
                yield rendered
                written_at = stream.heard_at
                if may_pass and (send := self._passage()) is not None:
                    stream.pass_to(send)
                may_pass = False
            elif beats and monotonic() - max(written_at, stream.passed_at) >= interval_s:
                self._record.keepalives += 1
                yield self._encoder.keep_alive(settings.keepalive)
                written_at = monotonic()
            elif stream.passed_at >= written_at:
                yield b""
                if beats:
                    # Silence began with the last event that was passed on: it is over sooner.
                    events = read(max(interval_s - monotonic() + stream.passed_at, 0.001))
                    continue
            events = read(interval_s)
        if end is None:
            last = sse.LastPiece((feed(events) if events else b"") + self._encoder.end())
            self._record.outcome, self._record.usage = "complete", chunks.usage
            if stream.kept is not None:
                self._keep(stream, stream.kept)
            self._settle()
        else:
            last = (feed(events) if events else b"") + end()
        # In one write.
        yield last
        stream.drain()


def failed_late(fault: BaseException, record: CallRecord) -> ApiError:
    """Note why an answer failed after its head was sent; the error that can still be told.

    The record keeps the status that was sent.

    Args:
        fault: other than that the client is gone. One that is not an `Exception` comes from a stop
            of the worker whose time for open answers is over, or from an admin.
    """
    if isinstance(fault, CallCancelled):
        forget_frames(fault)
        error: ApiError = fault.error
        outcome = "cancelled"
    elif isinstance(fault, ApiError):
        forget_frames(fault)  # the caller's frame is among them
        error, outcome = fault, "refused"
        if isinstance(fault, UpstreamError):
            outcome = "upstream_error"
            record.upstream_request_id = fault.upstream_request_id or record.upstream_request_id
    elif isinstance(fault, Exception):
        error, outcome = fault_error(fault, record.request_id), "failed"
    else:
        error, outcome = stopping(), "cut_by_stop"
    record.outcome = outcome
    record.note(error)
    return error


def stopping() -> ApiError:
    """The error for an answer that a stop of the server cuts off."""
    return ApiError(
        "The proxy was stopped or restarted before this answer was complete. Please try again.",
        status=503,
        code="proxy_stopping",
    )
