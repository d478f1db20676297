"""Renders chunks as server-sent events, with all stream faults. Pure: scripts, no I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from qwen_wsgi.sandbox.errors import Refusal, in_stream
from qwen_wsgi.sandbox.faults import Spec
from qwen_wsgi.sandbox.steps import FOREVER_S, SSE_TYPE, Close, Data, Head, Pause, Raw, Step

_COMMENT: Final = ": sandbox keep-alive"
_BOM: Final = b"\xef\xbb\xbf"


class EventWriter:
    """Renders events in the style that a spec selects."""

    def __init__(self, spec: Spec) -> None:
        self._eol = "\r\n" if "crlf" in spec else "\r" if "cr" in spec else "\n"
        self._colon = "data:" if "no-space" in spec else "data: "
        self._multi = "multi-data" in spec
        self._ids = "ids" in spec
        self._comments = "comments" in spec
        self._number = 0

    def event(self, payload: str) -> bytes:
        """Return one event; `payload` must not contain line breaks."""
        lines = [_COMMENT, ""] if self._comments else []
        self._number += 1
        if self._ids:
            lines += [f"id: {self._number}", "event: message", "retry: 3000"]
        # There a line break is white space for JSON; inside a string it would not be.
        parts = payload.split('","', 1) if self._multi and payload.startswith("{") else [payload]
        if len(parts) == 2:
            parts = [parts[0] + '",', '"' + parts[1]]
        lines += [self._colon + part for part in parts]
        return self._join([*lines, "", ""])

    def native_error(self, refusal: Refusal) -> bytes:
        """Return an error event of DashScope's native (not OpenAI-like) protocol."""
        self._number += 1
        body = json.dumps(Refusal(0, refusal.code, refusal.message, form="native").body())
        status = f":HTTP_STATUS/{refusal.status}"
        return self._join([f"id:{self._number}", "event:error", status, f"data:{body}", "", ""])

    def comment(self) -> bytes:
        return self._join([_COMMENT, "", ""])

    def _join(self, lines: list[str]) -> bytes:
        return self._eol.join(lines).encode("utf-8", "replace")


def payloads(chunks: Iterable[dict[str, Any]], spec: Spec) -> Iterator[str]:
    """Yield the data of the events, with `[DONE]` unless the spec omits it."""
    if "empty-stream" in spec:
        return
    if "done-only" not in spec:
        for chunk in chunks:
            yield json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    if not {"no-done", "no-finish"}.intersection(spec.items):
        yield "[DONE]"


def script(events: Iterable[str], spec: Spec, interval_s: float) -> Iterator[Step]:
    """Turn event payloads into the steps of a streamed answer.

    A fault `…-after=N` happens after N events, or after the last one if there are fewer.

    Args:
        interval_s: pause between events, unless the spec has its own.

    Raises:
        BadSpec: the spec names an error code that does not exist.
    """
    failure = in_stream(spec)
    writer = EventWriter(spec)
    interval_s = spec.number("interval", interval_s)
    yield Head(200, SSE_TYPE, until_close="close" in spec, headers=(("cache-control", "no-cache"),))
    if "bom" in spec:
        yield Data(_BOM)
    yield from _waiting(spec.number("slow-first"), spec, writer)
    last = b""
    sent = 0
    for sent, payload in enumerate(events):
        if sent and interval_s:
            yield Pause(interval_s)
        yield from _before(sent, spec, writer)
        if failure is not None and failure[0] == sent:
            yield _error_event(failure[1], spec, writer)
            return
        rendered = writer.event(payload)
        ending = _ending(sent, spec, rendered)
        if ending is not None:
            yield from ending
            return
        if last:
            yield Data(last, event=True)
        last = rendered
        if "no-blank-end" not in spec:
            yield Data(last, event=True)
            last = b""
        sent += 1
    if last:
        yield Data(last.rstrip(b"\r\n"), event=True)
    yield from _unreached(sent, spec, writer, failure)


def _unreached(
    sent: int, spec: Spec, writer: EventWriter, failure: tuple[int, Refusal] | None
) -> Iterator[Step]:
    """Apply the faults that were due after more events than there were."""
    if failure is not None:
        yield _error_event(failure[1], spec, writer)
    for name in ("stall-after", "bad-json-event"):
        position = spec.position(name)
        if position is not None and position >= sent:
            yield from _before(position, spec, writer)
    for name in ("cut-after", "reset-after", "bad-chunk"):
        position = spec.position(name)
        if position is not None and position >= sent:
            yield from _ending(position, spec, b"") or ()


def _before(sent: int, spec: Spec, writer: EventWriter) -> Iterator[Step]:
    """Yield the faults after `sent` events that do not end the stream."""
    if spec.position("stall-after") == sent:
        yield from _waiting(spec.number("stall-for", FOREVER_S), spec, writer)
    if spec.position("bad-json-event") == sent:
        yield Data(writer.event('{"choices":[{"delta":{"content":"[sandbox'), event=True)


def _ending(sent: int, spec: Spec, rendered: bytes) -> list[Step] | None:
    """Return the fault that ends the stream after `sent` events, instead of `rendered`; or None."""
    if spec.position("cut-after") == sent:
        return [Close()]
    if spec.position("reset-after") == sent:
        return [Close(reset=True)]
    if spec.position("bad-chunk") == sent:
        return [Raw(b"zz\r\nsandbox\r\n"), Close()]
    if spec.position("cut-mid-event") == sent:
        return [Data(rendered[: len(rendered) // 2]), Close()]
    return None


def _error_event(refusal: Refusal, spec: Spec, writer: EventWriter) -> Data:
    if "native-error-event" in spec:
        return Data(writer.native_error(refusal), event=True)
    body = json.dumps({"error": refusal.envelope}, ensure_ascii=False, separators=(",", ":"))
    return Data(writer.event(body), event=True)


def _waiting(seconds: float, spec: Spec, writer: EventWriter) -> Iterator[Step]:
    """Wait, with regular comments if the spec has a heartbeat."""
    beat_s = spec.number("heartbeat")
    if beat_s > 0:
        while seconds > beat_s:
            yield Pause(beat_s)
            yield Data(writer.comment())
            seconds -= beat_s
    if seconds > 0:
        yield Pause(seconds)
