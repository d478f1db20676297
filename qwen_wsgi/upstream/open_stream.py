"""An upstream stream that a call reads: its events, how long to wait for them, how it may end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

from qwen_wsgi.accounting.record import GAP_S, CallRecord
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.chat import ChunkStream, Completion
from qwen_wsgi.protocol.chat.template import Carrier
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.http.body import (
    BodyBroken,
    BodyReader,
    ReadTimeout,
    whole_chunks,
)
from qwen_wsgi.upstream.http.transport import FIRST_BYTE, broken, silence
from qwen_wsgi.upstream.routing.limiter import Slot

#: After `[DONE]` only the last chunk of the framing is to come. If it does not come at once, the
#: connection is given up rather than the client kept waiting for the end of its answer.
_DRAIN_S: Final = 0.1


class Kept(Protocol):
    """Collects what a stream brings, to be kept; `answer_cache.Collecting` is one."""

    def passing(self, feed: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """An encoder's `feed` that also collects."""

    def complete(self, chunks: ChunkStream, *, id: str, model: str, created: int) -> None:
        """Keep it: the stream has ended well."""


class OpenStream:
    """One upstream stream; its owner must `close` it.

    It fails for silence: when nothing at all comes for `idle_s`, or nothing but comments and empty
    chunks for `patience_s`, which is also the limit for the first event. It ends well only where
    `ChunkStream.complete` says so; every other end is an error.

    Args:
        reader: None where all of it is in `first`.
        patience_s: counted from now: make the stream when the request is sent.
        patience_by: the name of the setting that says so.
        explain: makes the error for what the upstream reported inside the stream.
        record: `longest_gap_s` and `usage` are written to it.

    Attributes:
        first: the first events for the client, whole; set by `open`.
        slot: released when the stream is closed.
        kept: collects the answer, to be kept; None as mostly.
        on_failure: called with a failure after the first event.
        heard_at: when the upstream sent something last; monotonic.
        passed_at: when an event was passed on last, see `pass_to`.
    """

    __slots__ = (
        "_blocks",
        "_budget",
        "_carrier",
        "_content_at",
        "_ended",
        "_explain",
        "_idle_s",
        "_left_s",
        "_monotonic",
        "_patience_by",
        "_patience_s",
        "_send",
        "chunks",
        "first",
        "heard_at",
        "kept",
        "on_failure",
        "passed_at",
        "reader",
        "record",
        "slot",
    )

    def __init__(
        self,
        reader: BodyReader | None,
        chunks: ChunkStream,
        record: CallRecord,
        *,
        monotonic: Callable[[], float],
        idle_s: float = math.inf,
        patience_s: float = math.inf,
        patience_by: str = FIRST_BYTE,
        sent_at: float | None = None,
        explain: Callable[[ChunkStream], UpstreamError] = lambda chunks: empty(),
    ) -> None:
        self.reader = reader
        self.chunks = chunks
        self.record = record
        self.first = b""
        self.slot: Slot | None = None
        self.kept: Kept | None = None
        self.on_failure: Callable[[ApiError], None] = lambda error: None
        self._explain = explain
        self._monotonic = monotonic
        self._idle_s = idle_s
        self._patience_s = patience_s
        self._patience_by = patience_by
        self._blocks = sse.EventBlocks()
        self._budget = record.budget
        self._ended = False
        self.heard_at = self._content_at = monotonic() if sent_at is None else sent_at
        self._left_s = 0.0
        self.passed_at = -math.inf
        self._send: Callable[[bytes], bool] | None = None
        self._carrier: Carrier | None = None

    def open(self) -> None:
        """Wait for the first events that say something.

        A beginning without content (only a role) is held back for one more read: throttling may
        come right behind it, and can still be reported by its status.

        Raises:
            UpstreamError: the stream ended, broke or reported an error before.
        """
        idle_s, self._idle_s = self._idle_s, self._patience_s
        sent_at = self._content_at
        chunks, held = self.chunks, b""
        self._left_s = max(sent_at + self._patience_s - self._monotonic(), 0.001)
        while True:
            events = self.read(math.inf)
            if events and (held or chunks.answered or chunks.complete):
                break
            if events is None or (chunks.done and not chunks.complete):
                raise empty()
            held += events
            # What says nothing yet does not extend the time for the first event.
            self._content_at = sent_at
            self._limit(self._monotonic())
        self._idle_s = idle_s
        self.begin(held + events)

    def begin(self, first: bytes) -> None:
        """Start with these events; from here on `longest_gap_s` and `gaps` count."""
        self.first = first
        self.heard_at = self._content_at = self.record.first_byte_at = self._monotonic()
        self.record.longest_gap_s, self.record.gaps, self.record.least_gap_s = 0.0, (), GAP_S
        self._left_s = self._idle_s

    def pass_to(self, send: Callable[[bytes], bool]) -> None:
        """From now on send events like the last one from the event loop, while `read` waits. It
        returns what is left: all others, and all that cannot be sent at once.

        Args:
            send: sends events to the client and says whether it has; it must not wait. A
                TimeoutError says that it has sent a part, and needs the relay for the rest.
        """
        self._carrier = self.chunks.carrier
        if self._carrier is not None:
            self._send = send

    def _pass(self, data: bytes) -> bool:
        """Pass on what was received, if it is whole chunks, each with one event like the last one.

        Runs in the event loop for nearly every read of every stream. It does what `read` does with
        such events, and nothing at all with any others.
        """
        assert self._send is not None and self._carrier is not None
        block, sent, count = b"", b"", 0
        for start, stop in whole_chunks(data):
            event = self._carrier.carry_one(data, start, stop)
            if event is None:
                return False
            # Mostly there is one, and to add it to nothing copies nothing.
            block, sent, count = block + data[start:stop], sent + event, count + 1
        in_part = False
        try:
            if not sent or not self._send(sent):
                return False
        except TimeoutError:
            in_part = True
        self._content_at = self.passed_at = self._note(block, count, len(block))
        self._left_s = self._idle_s
        if in_part:
            raise TimeoutError("sent in part")  # wakes the reader, who lets the rest be sent
        return True

    def read(self, wait_s: float) -> bytes | None:
        """The next events for the client: `b""` if there are none within `wait_s`, None at the end.

        Raises:
            UpstreamError: silence, a broken connection, an error that the upstream reported, or an
                end without a finish.
        """
        chunks, reader = self.chunks, self.reader
        if chunks.failed:
            raise self._explain(chunks)
        if chunks.done or self._ended or reader is None:
            self._check_end()
            return None
        if self._send is not None:
            reader.pass_chunks(self._pass if self._blocks.is_between else None)
        try:
            data = reader.read(wait_s if wait_s < self._left_s else self._left_s)
            block = self._blocks.push(data) if data else self._last_block()
        except ReadTimeout:
            return self._nothing()
        except (BodyBroken, sse.EventTooLarge) as error:
            raise broken(error) from error
        events = chunks.feed(block) if block else b""
        now = self._note(block, chunks.received, len(data))
        if events:
            self._content_at, self._left_s = now, self._idle_s
        elif chunks.failed:
            raise self._explain(chunks)
        elif not chunks.done:
            self._limit(now)
        if data:
            return events
        self._ended = True
        if events := events + chunks.end():
            return events
        self._check_end()
        return None

    def _note(self, block: bytes, count: int, received: int) -> float:
        """Note what was received, and the silence before it, which is over now; what time it is.

        Args:
            block: whole events, perhaps none.
            count: how many events.
            received: how many bytes came.
        """
        record, now = self.record, self._monotonic()
        if block:
            record.note_events(block, count)
            if self._budget is not None:
                self._budget.streamed(block, count)
        record.received_bytes += received
        silent_s = now - self.heard_at
        if silent_s > record.longest_gap_s:
            record.longest_gap_s = silent_s
        if silent_s > record.least_gap_s:  # rarely, so without a call
            record.note_gap(self.heard_at, silent_s)
        self.heard_at = now
        return now

    def _nothing(self) -> bytes:
        """Nothing came in time: go on waiting, unless it has been too long."""
        self._limit(self._monotonic())
        return b""

    def _limit(self, now: float) -> None:
        """How long the next wait may be.

        Raises:
            UpstreamTimeout: the upstream was silent for too long already.
        """
        idle_left_s = self.heard_at + self._idle_s - now
        patience_left_s = self._content_at + self._patience_s - now
        self._left_s = min(idle_left_s, patience_left_s)
        if self._left_s <= 0:
            if idle_left_s < patience_left_s and self._idle_s != self._patience_s:
                raise silence(self._idle_s, "QWEN_PROXY_IDLE_TIMEOUT")
            raise silence(self._patience_s, self._patience_by)

    def _check_end(self) -> None:
        """Fail unless a client may take what came for a whole answer.

        Raises:
            UpstreamError: it ended early, or was empty.
        """
        if not self.chunks.complete:
            raise ended_early() if self.chunks.answered else empty()

    def _last_block(self) -> bytes:
        """The rest without a blank line: an event if it can be parsed, else nothing."""
        rest = self._blocks.rest().strip()
        self._blocks = sse.EventBlocks()
        whole = sse.parse(rest) is not None or sse.is_done(rest)
        return rest + b"\n\n" if whole else b""

    def fail_if_reported(self) -> None:
        """Fail if the upstream reported an error in what was fed so far.

        Raises:
            UpstreamError: what it means.
        """
        if self.chunks.failed:
            raise self._explain(self.chunks)

    def completion(self, size: AnswerSize | None = None) -> Completion:
        """Read to the end, and put the chunks together.

        Args:
            size: what is kept counts against it.

        Raises:
            UpstreamError: the stream broke off, failed, or became too large.
        """
        completion = Completion(size)
        events: bytes | None = self.first
        while events is not None:
            for event in sse.events(events):
                chunk = sse.parse(event)
                if isinstance(chunk, dict):
                    completion.add(chunk)
            events = self.read(math.inf)
        self.drain()
        return completion

    def drain(self) -> None:
        """Read to the end of the framing, so that the connection can serve another call."""
        if self._send is not None and self.reader is not None:
            self.reader.pass_chunks(None)
        try:
            while self.reader is not None and self.reader.read(_DRAIN_S):
                pass
        except (ReadTimeout, BodyBroken):
            return

    def note_usage(self) -> None:
        """Write the usage that was reported so far into the record."""
        self.record.usage = self.chunks.usage

    def close(self) -> None:
        """Stop the upstream and release the slot; harmless when repeated.

        Closes the connection unless the answer was read to its end.
        """
        self.record.usage = self.chunks.usage
        try:
            if self.reader is not None:
                self.reader.close()
        finally:
            if self.slot is not None:
                self.slot.release()


def empty() -> UpstreamError:
    """The error for an answer with neither content nor a finish."""
    return connection_error(
        "empty", "The upstream ended its answer without any content. Nothing was generated."
    )


def ended_early() -> UpstreamError:
    """The error for a stream that ended in good order, but without a finish reason."""
    return connection_error(
        "broken", "The upstream's answer ended without a finish. What came before is incomplete."
    )
