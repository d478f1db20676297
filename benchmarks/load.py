"""The client side: cheap connections, many at a time, in this process."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from benchmarks.servers import CLIENT_KEY, Target
from benchmarks.upstream import STAMP_DIGITS, STAMP_MARK

#: No single answer takes longer, however loaded the machine is.
_ANSWER_S: Final = 60.0

_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class LoadError(Exception):
    """A server answered otherwise than it must, so a number would mean nothing."""


def chat(
    model: str,
    *,
    stream: bool = False,
    chunks: int = 1,
    seed: int | None = None,
    content: Any = "Say hello.",
) -> bytes:
    """A whole HTTP request for a chat completion."""
    body: dict[str, Any] = {"model": model, "stream": stream, "max_tokens": chunks}
    if seed is not None:
        body["seed"] = seed
    body["temperature"] = 0.7
    body["messages"] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": content},
    ]
    return request("/v1/chat/completions", body)


def responses(model: str, *, chunks: int) -> bytes:
    """The same as a stream of OpenAI's Responses API."""
    return request(
        "/v1/responses",
        {
            "model": model,
            "stream": True,
            "store": False,
            "max_output_tokens": chunks,
            "instructions": "You are a helpful assistant.",
            "input": "Say hello.",
        },
    )


def messages(model: str, *, chunks: int) -> bytes:
    """The same as a stream of Anthropic's Messages API."""
    return request(
        "/v1/messages",
        {
            "model": model,
            "stream": True,
            "max_tokens": chunks,
            "system": "You are a helpful assistant.",
            "messages": [{"role": "user", "content": "Say hello."}],
        },
    )


def request(path: str, body: dict[str, Any]) -> bytes:
    """A whole HTTP request with this body."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
        "User-Agent: benchmarks/1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {CLIENT_KEY}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def text_content() -> str:
    """One megabyte of text as people write it: a few percent of it is escaped in JSON."""
    line = 'He said "hello", went on\tand the log in C:\\tmp told the rest of the story.\n'
    return line * (1_000_000 // len(json.dumps(line)))


def image_content() -> list[dict[str, Any]]:
    """One megabyte of picture, in base64."""
    return [
        {"type": "text", "text": "What is this?"},
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 125_000},
        },
    ]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time.

    Attributes:
        first_ns: when the first byte of the answer's body came.
        chunks: how many time stamps went by.
        on_delay: called with the delay of every chunk in nanoseconds, if set.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._answered: asyncio.Future[None] | None = None
        self._head = b""
        self._left: int | None = None
        self._in_body = False
        self._tail = b""
        self.closed = False
        self.first_ns = 0
        self.chunks = 0
        self.on_delay: Callable[[int], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._fail("the connection was closed within an answer")

    def _fail(self, why: str) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(LoadError(why))

    def send(self, request: bytes) -> asyncio.Future[None]:
        """Send a request; the future is done when its answer is complete."""
        self._answered = asyncio.get_running_loop().create_future()
        # A stream that is cut on purpose fails unseen.
        self._answered.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._head, self._tail, self._in_body, self.first_ns = b"", b"", False, 0
        self._transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end], self._head[end + 4 :]
            if not head.startswith(b"HTTP/1.1 200"):
                self._fail(f"unexpected answer: {self._head[:500]!r}")
                self.close()
                return
            found = _LENGTH.search(head)
            self._left = int(found[1]) if found else None
            self._in_body = True
        if data:
            self._body(data, now)

    def _body(self, data: bytes, now: int) -> None:
        self.first_ns = self.first_ns or now
        if self.on_delay is not None:
            at = data.find(STAMP_MARK)
            while at >= 0:
                at += len(STAMP_MARK)
                stamp = data[at : at + STAMP_DIGITS]
                if len(stamp) == STAMP_DIGITS and stamp.isdigit():
                    self.on_delay(now - int(stamp))
                self.chunks += 1
                at = data.find(STAMP_MARK, at)
        if self._left is None:
            self._tail = (self._tail + data)[-5:] if len(data) < 5 else data[-5:]
            ended = self._tail == b"0\r\n\r\n"
        else:
            self._left -= len(data)
            ended = self._left <= 0
        if ended and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def close(self) -> int:
        """Close the connection now; when, in nanoseconds."""
        # At once, not at the loop's next turn: this moment is the start of a measurement.
        sock = self._transport.get_extra_info("socket")
        now = time.monotonic_ns()
        if not self.closed:
            sock.shutdown(2)
        self._transport.abort()
        return now


async def connect(target: Target) -> Connection:
    """A new connection to a target."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", target.port)
    return connection


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all of it, then raise the first failure, if any."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def hammer(target: Target, request: bytes, count: int, concurrency: int) -> None:
    """Send the same request `count` times over `concurrency` connections.

    Raises:
        LoadError: an answer was not 200, or incomplete.
    """
    left = count

    async def work() -> None:
        nonlocal left
        connection = await connect(target)
        while left > 0:
            left -= 1
            if connection.closed:
                connection = await connect(target)
            try:
                await asyncio.wait_for(connection.send(request), _ANSWER_S)
            except LoadError:
                left = 0
                raise
        connection.close()

    await _all(work() for _ in range(concurrency))


async def open_streams(
    target: Target,
    request: bytes,
    count: int,
    *,
    every_s: float = 0.002,
    on_delay: Callable[[int], None] | None = None,
) -> list[Connection]:
    """Start `count` streams one after the other, and wait until each has sent something."""
    opened = []
    for _ in range(count):
        connection = await connect(target)
        connection.on_delay = on_delay
        connection.send(request)
        opened.append(connection)
        await asyncio.sleep(every_s)
    deadline = time.monotonic() + _ANSWER_S
    while not all(connection.first_ns for connection in opened):
        if time.monotonic() > deadline or any(connection.closed for connection in opened):
            silent = sum(not connection.first_ns for connection in opened)
            close_all(opened)
            raise LoadError(f"{silent} of {count} streams of {target.name} did not start")
        await asyncio.sleep(0.01)
    return opened


def close_all(connections: Iterable[Connection]) -> None:
    """Close what is open."""
    for connection in connections:
        connection.close()


async def first_bytes_ms(target: Target, request: bytes, streams: int, for_s: float) -> list[float]:
    """Keep `streams` streams going; the times to the first byte of the body."""
    times: list[float] = []
    until = time.monotonic() + for_s

    async def work(index: int) -> None:
        connection = await connect(target)
        # Spread over a second, so that set-ups do not meet.
        await asyncio.sleep(index / streams)
        while time.monotonic() < until:
            sent = time.monotonic_ns()
            await asyncio.wait_for(connection.send(request), _ANSWER_S)
            times.append((connection.first_ns - sent) / 1e6)
        connection.close()

    await _all(work(index) for index in range(streams))
    return times


async def stats(up: Target) -> dict[str, Any]:
    """The upstream's counters."""
    reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
    try:
        writer.write(b"GET /stats HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        assert found is not None
        value: dict[str, Any] = json.loads(await reader.readexactly(int(found[1])))
        return value
    finally:
        writer.close()
