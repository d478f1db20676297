"""A fast fake of an OpenAI-compatible server, in a process of its own.

The model's name says how it answers: `fast` at once, `brisk` one chunk every 20 ms, `paced`
every 50 ms, `slow` every second, `idle` one at the beginning, `hang` never. `max_tokens` is the
number of chunks, `seed` a number by which `GET /stats` tells when the caller's connection was
closed. Everything else is ignored.

It ends when its standard input does, so that it never outlives the benchmark.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import re
import sys
import time
from typing import Any, Final

MODELS: Final = ("fast", "brisk", "paced", "slow", "idle", "hang")

#: Digits of the time stamp in every chunk: nanoseconds of the monotonic clock.
STAMP_DIGITS: Final = 20

#: What stands before the time stamp.
STAMP_MARK: Final = b'"content":"'

_INTERVAL_MS: Final = {b"brisk": 20, b"paced": 50, b"slow": 1000, b"idle": 600_000}

_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_MODEL: Final = re.compile(rb'"model": ?"([a-z]+)"')
_STREAM: Final = re.compile(rb'"stream": ?true')
_TOKENS: Final = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_SEED: Final = re.compile(rb'"seed": ?(\d+)')
_USAGE: Final = re.compile(rb'"include_usage": ?true')

_HEAD_STREAM: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nX-Request-Id: bench\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def _json_response(value: object) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: bench\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _event(value: object) -> bytes:
    event = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(delta: object, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


_USED: Final = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
_COMPLETION: Final = _json_response(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello! How can I help you today?"},
                "finish_reason": "stop",
            }
        ],
        "usage": _USED,
    }
)
#: As long as a real host's list: what a proxy does with it must not cost every call.
_MODEL_LIST: Final = _json_response(
    {
        "object": "list",
        "data": [
            {"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "bench"}
            for id in (*MODELS, *(f"qwen-bench-{number}" for number in range(150)))
        ],
    }
)
_BEFORE_STAMP, _AFTER_STAMP = _event(_chunk({"content": "9" * STAMP_DIGITS})).split(
    b"9" * STAMP_DIGITS
)
_FINISH: Final = _event(_chunk({}, "stop"))
_USAGE_EVENT: Final = _event({**_chunk({}), "choices": [], "usage": _USED})
_DONE: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _stamped() -> bytes:
    return b"%s%020d%s" % (_BEFORE_STAMP, time.monotonic_ns(), _AFTER_STAMP)


@functools.cache
def _burst(chunks: int, usage: bool) -> bytes:
    return _HEAD_STREAM + _stamped() * chunks + _end(usage)


def _end(usage: bool) -> bytes:
    return _FINISH + (_USAGE_EVENT if usage else b"") + _DONE


class _State:
    """What all connections share: the counters, and the streams that wait for their next chunk."""

    def __init__(self) -> None:
        self.open = 0
        self.requests = 0
        self.chunks = 0
        self.seen: dict[int, int] = {}
        self.closed: dict[int, int] = {}
        self._due: dict[int, list[_Connection]] = {}
        self._done_ms = 0

    def after(self, delay_ms: int, connection: _Connection) -> None:
        """Let the connection write its next chunk `delay_ms` from now: one timer for all."""
        now_ms = time.monotonic_ns() // 1_000_000
        if not self._due:
            self._done_ms = now_ms
            asyncio.get_running_loop().call_later(0.001, self._tick)
        self._due.setdefault(max(now_ms, self._done_ms) + delay_ms, []).append(connection)

    def _tick(self) -> None:
        now_ms = time.monotonic_ns() // 1_000_000
        first, self._done_ms = self._done_ms + 1, now_ms
        for at in range(first, now_ms + 1):
            for connection in self._due.pop(at, ()):
                interval = connection.step()
                if interval:
                    self._due.setdefault(at + interval, []).append(connection)
        if self._due:
            asyncio.get_running_loop().call_later(0.001, self._tick)

    def stats(self) -> bytes:
        return _json_response(
            {
                "open": self.open,
                "requests": self.requests,
                "chunks": self.chunks,
                "seen_ns": self.seen,
                "closed_ns": self.closed,
            }
        )


class _Connection(asyncio.Protocol):
    def __init__(self, state: _State) -> None:
        self._state = state
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._needed = 0  # bytes of the request, head and body, once its head is there
        self._seed: int | None = None
        self._left = 0
        self._interval_ms = 0
        self._usage = False
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._state.open += 1

    def eof_received(self) -> None:
        self._closed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.open -= 1
        self._closed()

    def _closed(self) -> None:
        self._gone = True
        if self._seed is not None:
            self._state.closed.setdefault(self._seed, time.monotonic_ns())
            self._seed = None

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._needed:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            found = _LENGTH.search(buffer, 0, end)
            self._needed = end + 4 + (int(found[1]) if found else 0)
        if len(buffer) >= self._needed:
            # What matters stands at the start or the end, whatever the size of the messages.
            request = bytes(buffer[:1000] + buffer[-1000:])
            buffer.clear()
            self._needed = 0
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        state, write = self._state, self._transport.write
        if request.startswith(b"GET "):
            write(state.stats() if request.startswith(b"GET /stats") else _MODEL_LIST)
            return
        state.requests += 1
        if found := _SEED.search(request):
            self._seed = int(found[1])
            state.seen[self._seed] = time.monotonic_ns()
        named = _MODEL.search(request)
        model = named[1] if named else b"fast"
        if model == b"hang":
            return
        self._seed = self._seed if model in _INTERVAL_MS else None
        if not _STREAM.search(request):
            write(_COMPLETION)
            return
        asked = _TOKENS.search(request)
        chunks = int(asked[1]) if asked else 1
        self._usage = bool(_USAGE.search(request))
        if model == b"fast":
            state.chunks += chunks
            write(_burst(chunks, self._usage))
            return
        self._left = chunks - 1
        self._interval_ms = _INTERVAL_MS[model]
        state.chunks += 1
        write(_HEAD_STREAM + _stamped())
        # The first pause is random, so that the streams do not march in step.
        state.after(random.randint(1, self._interval_ms), self)

    def step(self) -> int:
        """Write the next chunk; the milliseconds until the one after it, 0 at the end."""
        if self._gone:
            return 0
        if self._left <= 0:
            self._seed = None
            self._transport.write(_end(self._usage))
            return 0
        self._left -= 1
        self._state.chunks += 1
        self._transport.write(_stamped())
        return self._interval_ms


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    state = _State()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
