"""A stream of Model Studio's native API: JSON objects, one for each event."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.http.body import BodyBroken, BodyReader, ReadTimeout
from qwen_wsgi.upstream.http.transport import broken, silence
from qwen_wsgi.upstream.routing.limiter import Slot


class NativeStream:
    """One stream whose first event has arrived, once `open` has returned; its owner must close it.

    Attributes:
        slot: is released by `close`.
        on_failure: told of a failure after the first event.
    """

    def __init__(
        self,
        reader: BodyReader,
        record: CallRecord,
        *,
        monotonic: Callable[[], float],
        first_s: float,
        idle_s: float,
        explain: Callable[[Any], UpstreamError],
        whole: bool = False,
    ) -> None:
        """
        Args:
            first_s: how long the first event may take.
            idle_s: how long it may be silent after that.
            explain: makes the error that an event reports.
            whole: the upstream answers with one JSON object instead of events.
        """
        self.slot: Slot | None = None
        self.on_failure: Callable[[ApiError], None] = lambda error: None
        self._reader = reader
        self._record = record
        self._monotonic = monotonic
        self._wait_s = first_s
        self._idle_s = idle_s
        self._explain = explain
        self._whole = whole
        self._events = self._read()
        self._first: dict[str, Any] | None = None

    def open(self) -> None:
        """Wait for the first event.

        Raises:
            UpstreamError: it is an error, or does not come.
        """
        self._first = next(self._events, None)
        if self._first is None:
            raise connection_error("empty", "The upstream ended its answer without any event.")
        self._record.first_byte_at = self._monotonic()
        self._wait_s = self._idle_s

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The events, the first one included.

        Raises:
            UpstreamError: one is an error, or the upstream breaks off or is silent for too long.
        """
        first, self._first = self._first, None
        if first is not None:
            yield first
        try:
            yield from self._events
        except UpstreamError as error:
            self.on_failure(error)
            raise

    def close(self) -> None:
        """Stop the upstream and release the slot; harmless when repeated."""
        try:
            self._events.close()
            self._reader.close()
        finally:
            if self.slot is not None:
                self.slot.release()

    def _read(self) -> Generator[dict[str, Any]]:
        blocks = sse.EventBlocks()
        held: list[bytes] = []
        while data := self._received():
            if self._whole:
                held.append(data)
                continue
            try:
                block = blocks.push(data)
            except sse.EventTooLarge as error:
                raise broken(error) from error
            for event in sse.events(block):
                if (value := self._value(sse.data(event))) is not None:
                    yield value
        rest = b"".join(held) if self._whole else sse.data(blocks.rest().strip(b"\n"))
        if (value := self._value(rest)) is not None:
            yield value

    def _received(self) -> bytes:
        try:
            data = self._reader.read(self._wait_s)
        except ReadTimeout:
            raise silence(self._wait_s) from None
        except BodyBroken as error:
            raise broken(error) from error
        return data

    def _value(self, payload: bytes | None) -> dict[str, Any] | None:
        """The object of an event; None for what says nothing.

        Raises:
            UpstreamError: it reports an error.
        """
        value = None
        with suppress(ValueError, RecursionError):
            value = json.loads(payload or b"null")
        if not isinstance(value, dict):
            return None
        if (error := chat.error_of(value)) is not None:
            raise self._explain(error)
        return value
