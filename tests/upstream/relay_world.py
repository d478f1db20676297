"""A relay between a scripted upstream and its client, in a time that a test moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gevent

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import ApiError, StreamBroken, UpstreamError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChatEncoder, ChunkStream
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.http.body import ReadTimeout
from qwen_wsgi.upstream.open_stream import OpenStream
from qwen_wsgi.upstream.relay import Relay
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import settings_of


def error_in(block: bytes) -> dict[str, Any]:
    assert block.endswith(b"\n\n")
    error: dict[str, Any] = json.loads(sse.data(block.strip()) or b"")["error"]
    return error


KEEP_ALIVE = b": keep-alive\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return sse.render({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


TEXT = chunk({"content": "hi"})
MORE = chunk({"content": " you"})
FINISH = chunk({}, "stop")
USAGE_CHUNK = sse.render({"choices": [], "usage": {"total_tokens": 5}})

#: What an upstream does next: events, silence for so many seconds, or a failure. The end is None.
Step = bytes | float | Exception | None


class FakeReader:
    """An upstream's body, in a time that is faked."""

    def __init__(self, clock: FakeClock, *steps: Step) -> None:
        self._clock = clock
        self._steps = [*steps, None]
        self.closed = 0
        self.at_end = False
        self._passing: Callable[[bytes], bool] | None = None

    def pass_chunks(self, passing: Callable[[bytes], bool] | None) -> None:
        self._passing = passing

    def read(self, timeout_s: float) -> bytes:
        step = self._steps[0]
        if isinstance(step, int | float):
            if step > timeout_s:
                self._steps[0] = step - timeout_s
                self._clock.advance(timeout_s)
                raise ReadTimeout
            self._clock.advance(step)
            self._steps.pop(0)
            return self.read(timeout_s - step)
        if step is None:
            self.at_end = True
            return b""
        self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if self._passing is not None:
            try:
                if self._passing(b"%x\r\n%b\r\n" % (len(step), step)):
                    return self.read(timeout_s)
            except TimeoutError:
                raise ReadTimeout from None
        return step

    def close(self) -> None:
        self.closed += 1


def stream_of(
    clock: FakeClock,
    first: bytes,
    *steps: Step,
    settings: Settings | None = None,
    record: CallRecord | None = None,
) -> OpenStream:
    chunks = ChunkStream(hide_usage=True)
    stream = OpenStream(
        FakeReader(clock, *steps),  # type: ignore[arg-type]  # all of it that is used
        chunks,
        record or CallRecord(),
        monotonic=clock.monotonic,
        idle_s=settings.idle_timeout_s if settings else 300.0,
        patience_s=settings.first_byte_timeout_s if settings else 300.0,
        explain=reported,
    )
    stream.begin(chunks.feed(first))
    return stream


def reported(chunks: ChunkStream) -> UpstreamError:
    return UpstreamError("what it means", code="understood")


class World:
    """A relay with everything around it, and what its client got.

    Attributes:
        passes: there is a way to send events that are not yielded.
        passed: the events that went there.
    """

    passes = False

    def __init__(self, *steps: Step, first: bytes = TEXT, **environ: Any) -> None:
        self.clock = FakeClock()
        settings = settings_of(
            **{"QWEN_PROXY_KEEPALIVE_INTERVAL": 15, "QWEN_PROXY_IDLE_TIMEOUT": 100, **environ}
        )
        self.record = CallRecord(request_id="req_1")
        self.stream = stream_of(self.clock, first, *steps, settings=settings, record=self.record)
        self.reader: Any = self.stream.reader
        self.late: list[ApiError] = []
        self.stream.on_failure = self.late.append
        self.opening: Callable[[], OpenStream] = lambda: self.stream
        self.relay = Relay(
            lambda: self.opening(),
            settings=settings,
            clock=self.clock,
            encoder=ChatEncoder(id="chatcmpl-1", model="m", created=0),
            record=self.record,
            passage=lambda: self.send if self.passes else None,
        )
        self.passed: list[bytes] = []
        self._out: list[bytes] = []

    def send(self, events: bytes) -> bool:
        self.passed.append(events)
        self._out.append(events)
        return True

    def run(self) -> list[bytes]:
        """Everything that the client gets; a broken end is noted in `broken`."""
        self.broken = False
        # Once in a while gevent looks at the timers before it begins what was spawned, and a wait
        # of no time would be over before the stream is open.
        gevent.sleep(0)
        try:
            for block in self.relay:
                if block:
                    self._out.append(block)
        except StreamBroken:
            self.broken = True
        finally:
            self.relay.close()
        return self._out
