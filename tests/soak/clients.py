"""The clients of a soak: they call, wait, read slowly, go away, and judge how each call ended."""

from __future__ import annotations

import asyncio
import enum
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tests.soak.faults import Draw, Faults

#: Client keys: more than one, so that there is something to share out.
CLIENT_KEYS: Final = tuple(f"sk-soak-client-{number}-0123456789abcdef" for number in range(3))

#: The accounts, one of each kind: asked as asked, and a host of Qwen's.
ACCOUNTS: Final = ("upstream", "dashscope")

_TOOLS: Final = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
    for name in ("weather", "calendar")
]

#: So many wrong endings are told in full.
_TOLD: Final = 20
#: To the sandbox, on this machine.
_CONNECT_S: Final = 5.0


class Ending(enum.Enum):
    """How a call ended."""

    COMPLETE = "complete"
    #: Nobody could be asked.
    REFUSED = "refused at once"
    STATUS = "HTTP error"
    EVENT = "error event, and closed"
    ABORTED = "aborted by the client"
    WRONG = "WRONG"


class Kind(enum.Enum):
    """What a client does."""

    STREAM = "stream"
    WHOLE = "not streamed"
    SLOW = "stream, read slowly"
    CHOICES = "two choices"
    LEAVE_EARLY = "leaves before the first byte"
    LEAVE_LATE = "leaves within the stream"


#: Of a hundred calls.
_KINDS: Final = {
    Kind.STREAM: 70,
    Kind.WHOLE: 10,
    Kind.SLOW: 3,
    Kind.CHOICES: 2,
    Kind.LEAVE_EARLY: 6,
    Kind.LEAVE_LATE: 9,
}


class Wrong(Exception):
    """An answer ended in a way that no client should see."""


class _Left(Exception):
    """We went away."""


@dataclass(frozen=True)
class Pace:
    """How long calls are. Seconds.

    Attributes:
        chunks: pieces of an answer, from and to.
        pause_s: between two of them, from and to.
        longest_s: all the pauses of a stream together.
        deadline_s: a call that takes longer hangs.
        long_chars: what clients that read slowly ask for: more than the buffers on the way hold.
    """

    chunks: tuple[int, int]
    pause_s: tuple[float, float]
    longest_s: float
    deadline_s: float
    long_chars: int = 1_500_000


@dataclass
class Tally:
    """What became of the calls.

    Attributes:
        lines: by request id, how many lines the log must have: (least, most).
        told: by request id, how the client saw it end.
    """

    calls: Counter[tuple[Kind, Ending]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    wrong_by: Counter[str] = field(default_factory=Counter)
    lines: dict[str, tuple[int, int]] = field(default_factory=dict)
    told: dict[str, Ending] = field(default_factory=dict)
    broken_json: int = 0
    chunks: int = 0
    running: int = 0
    most_running: int = 0

    def of(self, ending: Ending) -> int:
        """How many calls ended so."""
        return sum(count for (_, each), count in self.calls.items() if each is ending)

    @property
    def total(self) -> int:
        return sum(self.calls.values())


@dataclass
class Call:
    """One call: what is asked, and what is known of the answer."""

    id: str
    kind: Kind
    draw: Draw
    body: dict[str, Any]
    headers: dict[str, str]
    text: str
    long_chars: int
    leave_after: int | None = None
    events: int = 0
    tail: bytes = b""

    def request(self) -> bytes:
        """The bytes of the request."""
        data = json.dumps(self.body).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            f"X-Request-Id: {self.id}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


class Line:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.used = False

    @classmethod
    async def open(cls, port: int, *, small: bool = False) -> Line:
        """Connect; with `small` buffers a client that reads slowly is felt at the other end."""
        sock = socket.socket()
        try:
            if small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            limit = 4096 if small else 65_536
            return cls(*await asyncio.open_connection(sock=sock, limit=limit))
        except BaseException:
            sock.close()
            raise

    def close(self, *, reset: bool = False) -> None:
        """Go away; with `reset` not politely."""
        if reset:
            sock = self.writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers.

        Raises:
            EOFError: the connection ended before them.
        """
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split()[1]), {n.lower(): v.strip() for n, _, v in pairs}

    async def pieces(self, slow: random.Random | None) -> AsyncIterator[bytes]:
        """The chunks of a body; returns at its end.

        Raises:
            EOFError, OSError: the connection ended before it.
            Wrong: this is no chunked coding.
        """
        while True:
            size = await self.reader.readuntil(b"\r\n")
            try:
                length = int(size, 16)
            except ValueError:
                raise Wrong(f"a chunk of the size {size[:20]!r}") from None
            if slow is not None and slow.random() < 0.3:
                await asyncio.sleep(slow.uniform(0.02, 0.15))
            data = await self.reader.readexactly(length + 2)
            if not data.endswith(b"\r\n"):
                raise Wrong("a chunk that is longer than it says")
            if not length:
                return
            yield data[:-2]


class Crowd:
    """Clients that call again and again until they are stopped.

    Args:
        port: the proxy's.
        upstream_port: the sandbox's.
    """

    def __init__(
        self,
        port: int,
        upstream_port: int,
        *,
        faults: Faults,
        pace: Pace,
        dice: random.Random,
        models: tuple[str, ...],
    ) -> None:
        self.tally = Tally()
        self._port = port
        self._upstream_port = upstream_port
        self._faults = faults
        self._pace = pace
        self._dice = dice
        self._models = models
        self._number = 0
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, clients: int, ramp_s: float) -> None:
        """Let so many clients come, one after the other."""
        self._stopping.clear()
        self._tasks = [
            asyncio.create_task(self._client(number, number * ramp_s / clients))
            for number in range(clients)
        ]

    async def stop(self) -> None:
        """Let everybody end the call that they are in; none of them calls again."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        self._tasks = []

    async def _client(self, number: int, delay_s: float) -> None:
        dice, model = self._dice, self._models[number % len(self._models)]
        line: Line | None = None
        await self._pause(delay_s)
        while not self._stopping.is_set():
            call = self._call(number, model)
            ending, line = await self._make(call, line)
            if ending in (Ending.REFUSED, Ending.STATUS):
                await self._pause(dice.uniform(0.3, 1.5))
            else:
                await self._pause(dice.uniform(0.0, 0.3))
        if line is not None:
            line.close()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    # --- what is asked -----------------------------------------------------------------------

    def _call(self, number: int, model: str) -> Call:
        dice, pace = self._dice, self._pace
        self._number += 1
        kind = dice.choices(list(_KINDS), list(_KINDS.values()))[0]
        draw = self._faults.draw(long=kind is Kind.SLOW)
        chunks = dice.randint(*pace.chunks)
        pause_s = min(dice.uniform(*pace.pause_s), pace.longest_s / chunks)
        spec = f"chunks={chunks}, interval={pause_s:.3f}"
        text = "[sandbox] " + "".join(f"word-{i} " for i in range(1, chunks))
        if kind is Kind.SLOW:
            spec, text = f"long={pace.long_chars}, size=8000", ""
        body: dict[str, Any] = {
            "model": model,
            "stream": kind is not Kind.WHOLE and (kind is not Kind.LEAVE_EARLY or number % 4 > 0),
            "messages": [
                {"role": "system", "content": "You are soaked."},
                {"role": "user", "content": f"Hello [[sandbox: {spec}, {draw.always}]]"},
            ],
        }
        if body["stream"] and dice.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        if draw.tools:
            body["tools"] = _TOOLS
        if kind is Kind.CHOICES:
            body["n"] = 2
        headers = {"Authorization": f"Bearer {CLIENT_KEYS[number % len(CLIENT_KEYS)]}"}
        # A third each is pinned to an account; the rest may be moved from one to the other.
        if number % 3 < len(ACCOUNTS):
            headers["X-Qwen-Account"] = ACCOUNTS[number % 3]
        else:
            body["prompt_cache_key"] = f"talk-{number}-{self._number % 5}"
        return Call(
            id=f"soak-{self._number}",
            kind=kind,
            draw=draw,
            body=body,
            headers=headers,
            text=text,
            long_chars=pace.long_chars,
            leave_after=self._leave_after(kind, chunks),
        )

    def _leave_after(self, kind: Kind, chunks: int) -> int | None:
        if kind is Kind.LEAVE_LATE:
            return self._dice.randint(1, chunks)
        if kind is Kind.SLOW and self._dice.random() < 0.3:
            return self._dice.randint(1, 100)
        return None

    async def _arm(self, call: Call) -> None:
        """Have the next attempt for this model, and no other one, meet a fault."""
        if call.draw.once:
            rule = {"spec": call.draw.once, "count": 1, "model": call.body["model"]}
            await post_control(self._upstream_port, {"next": rule})

    # --- what comes back ---------------------------------------------------------------------

    async def _make(self, call: Call, line: Line | None) -> tuple[Ending, Line | None]:
        """Make a call; how it ended, and the connection if it can serve another one."""
        tally = self.tally
        tally.running += 1
        tally.most_running = max(tally.most_running, tally.running)
        began_s = time.monotonic()
        try:
            await self._arm(call)
            async with asyncio.timeout(self._pace.deadline_s):
                ending, line = await self._exchange(call, line)
        except TimeoutError:
            ending, line = self._wrong(call, "it hangs", began_s), None
        except Wrong as error:
            ending, line = self._wrong(call, str(error), began_s), None
        except (EOFError, OSError, asyncio.LimitOverrunError) as error:
            what = "cut off within its answer" if call.events else "closed without an answer"
            ending = self._wrong(call, f"{what} ({type(error).__name__})", began_s)
            line = None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            ending, line = self._wrong(call, f"not as OpenAI's ({error!r})", began_s), None
        finally:
            tally.running -= 1
        tally.calls[call.kind, ending] += 1
        tally.faults.update(call.draw.names)
        tally.told[call.id] = ending
        return ending, line

    def _wrong(self, call: Call, why: str, began_s: float) -> Ending:
        self.tally.wrong_by[why.split(":")[0][:60]] += 1
        if len(self.tally.wrong) < _TOLD:
            self.tally.wrong.append(
                f"{call.id} ({call.kind.value}, {call.headers.get('X-Qwen-Account', 'any')}, "
                f"{time.monotonic() - began_s:.1f} s): {why}\n"
                f"    once [{call.draw.once}] always [{call.draw.always}] "
                f"{call.body['messages'][1]['content'][:100]!r}\n"
                f"    …{call.tail[-300:]!r}"
            )
        return Ending.WRONG

    async def _exchange(self, call: Call, line: Line | None) -> tuple[Ending, Line | None]:
        slow = self._dice if call.kind is Kind.SLOW else None
        if line is None or slow or line.reader.at_eof():
            if line is not None:
                line.close()
            line = await Line.open(self._port, small=slow is not None)
        try:
            return await self._on(line, call, slow)
        except BaseException as error:
            line.close(reset=isinstance(error, _Left) and self._dice.random() < 0.5)
            if isinstance(error, _Left):
                return Ending.ABORTED, None
            raise

    async def _on(
        self, line: Line, call: Call, slow: random.Random | None
    ) -> tuple[Ending, Line | None]:
        dice, request = self._dice, call.request()
        self.tally.lines[call.id] = (0, 1)
        if call.kind is Kind.LEAVE_EARLY:
            # Within the request, right after it, or while it waits for an answer.
            part = len(request) if dice.random() < 0.7 else dice.randrange(len(request))
            line.writer.write(request[:part])
            await asyncio.sleep(dice.choice((0.0, 0.01, 0.3, 2.0)) * dice.random())
            raise _Left
        line.writer.write(request)
        status, headers = await line.head()
        self.tally.lines[call.id] = (1, 1)
        self.tally.statuses[str(status)] += 1
        if status != 200:
            await self._refusal(line, headers, status)
            asked = "x-qwen-proxy-account" in headers
            ending = Ending.STATUS if asked else Ending.REFUSED
        elif call.body["stream"]:
            ending = await self._stream(line, call, headers, slow)
        else:
            ending = await self._whole(line, call, headers)
        keeps = ending is not Ending.EVENT and headers.get("connection", "") != "close"
        if keeps and slow is None and dice.random() < 0.8:
            return ending, line
        line.close()
        return ending, None

    async def _refusal(self, line: Line, headers: dict[str, str], status: int) -> None:
        """An error is an HTTP error with OpenAI's error object."""
        if not 400 <= status < 600:
            raise Wrong(f"status {status}")
        value = json.loads(await self._body(line, headers) or b"null")
        if not _is_error(value):
            raise Wrong(f"status {status} without OpenAI's error object: {str(value)[:200]}")

    async def _body(self, line: Line, headers: dict[str, str]) -> bytes:
        kind = headers.get("content-type", "")
        if kind != "application/json" or "content-length" not in headers:
            raise Wrong(f"a whole answer of the type {kind!r} with headers {sorted(headers)}")
        return await line.reader.readexactly(int(headers["content-length"]))

    async def _whole(self, line: Line, call: Call, headers: dict[str, str]) -> Ending:
        data = await self._body(line, headers)
        call.tail = data
        value = json.loads(data)
        answer = _Answer()
        for choice in value["choices"]:
            answer.add(choice, choice["message"])
        answer.judge(call)
        return Ending.COMPLETE

    async def _stream(
        self, line: Line, call: Call, headers: dict[str, str], slow: random.Random | None
    ) -> Ending:
        if not headers.get("content-type", "").startswith("text/event-stream"):
            raise Wrong(f"a stream of the type {headers.get('content-type')!r}")
        answer, pending = _Answer(), b""
        try:
            async for piece in line.pieces(slow):
                pending += piece
                *events, pending = pending.split(b"\n\n")
                for event in events:
                    self._event(event, call, answer)
                if call.leave_after is not None and call.events >= call.leave_after:
                    raise _Left
        except (EOFError, OSError):
            if not answer.failed:
                raise
            if pending:
                raise Wrong("half an event before the end") from None
            return Ending.EVENT
        if answer.failed:
            raise Wrong("an error event, but the body ended in good order")
        if pending or not answer.done:
            raise Wrong("the body ended in good order, but without [DONE]")
        answer.judge(call)
        return Ending.COMPLETE

    def _event(self, event: bytes, call: Call, answer: _Answer) -> None:
        call.tail = (call.tail + event + b"\n\n")[-400:]
        if event.startswith(b":"):
            return
        if not event.startswith(b"data: ") or b"\n" in event:
            raise Wrong(f"an event that is no data line: {event[:80]!r}")
        if answer.done or answer.failed:
            raise Wrong("an event after the end")
        if event == b"data: [DONE]":
            answer.done = True
            return
        self.tally.chunks += 1
        call.events += 1
        try:
            chunk = json.loads(event[6:])
        except ValueError:
            if "bad-json-event" not in call.draw.names:
                raise Wrong("an event that is no JSON") from None
            self.tally.broken_json += 1
            return
        if "error" in chunk:
            if not isinstance(chunk["error"], dict) or not chunk["error"].get("message"):
                raise Wrong("an error event without a message")
            answer.failed = True
            return
        for choice in chunk["choices"]:
            answer.add(choice, choice["delta"])


class _Answer:
    """What was said in an answer so far."""

    def __init__(self) -> None:
        self.texts: dict[int, list[str]] = {}
        self.finishes: Counter[int] = Counter()
        self.other = False
        self.done = False
        self.failed = False

    def add(self, choice: dict[str, Any], said: dict[str, Any]) -> None:
        """Take a chunk's part of a choice, or a whole one."""
        index = choice["index"]
        texts = self.texts.setdefault(index, [])
        if said.get("content"):
            texts.append(said["content"])
        if said.get("tool_calls") or said.get("reasoning_content") or said.get("reasoning"):
            self.other = True
        if choice.get("finish_reason"):
            self.finishes[index] += 1

    def judge(self, call: Call) -> None:
        """Whether an answer that says that it is complete is so.

        Raises:
            Wrong: it is not.
        """
        if not self.texts or set(self.finishes) != set(self.texts):
            raise Wrong(f"[DONE], but finishes for {set(self.finishes)} of {set(self.texts)}")
        if not self.other and not any(self.texts.values()):
            if "finish-only" in call.draw.names:
                return  # an empty success of the upstream's own
            raise Wrong("an empty success")
        if not call.draw.exact:
            return
        for texts in self.texts.values():
            said = "".join(texts)
            if call.kind is Kind.SLOW:
                if len(said) < call.long_chars:
                    raise Wrong(f"silently cut: {len(said)} of {call.long_chars} characters")
            elif said != call.text:
                raise Wrong(f"not the text: {said[-60:]!r} for {call.text[-60:]!r}")


def _is_error(value: Any) -> bool:
    error = value.get("error") if isinstance(value, dict) else None
    return (
        isinstance(error, dict)
        and set(error) == {"message", "type", "param", "code"}
        and isinstance(error["message"], str)
        and isinstance(error["type"], str)
        and bool(error["message"] and error["type"])
    )


async def get_json(port: int, path: str) -> Any:
    """The JSON of a GET on a connection of its own."""
    return await _json_of(port, f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())


async def post_control(upstream_port: int, change: dict[str, Any]) -> None:
    """A control call to the sandbox.

    Raises:
        RuntimeError: it does not understand.
    """
    data = json.dumps(change).encode()
    head = (
        "POST /_sandbox/control HTTP/1.1\r\nConnection: close\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    answer = await _json_of(upstream_port, head.encode() + data)
    if not answer.get("ok"):
        raise RuntimeError(f"the sandbox refuses {change}: {answer}")


async def _json_of(port: int, request: bytes) -> Any:
    """What is answered. Between connecting and asking no other task gets a turn: on a busy machine
    that takes longer than the sandbox keeps a connection on which nothing comes."""
    sock = socket.create_connection(("127.0.0.1", port), _CONNECT_S)
    try:
        sock.sendall(request)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        data = await reader.read(-1)
        if b"chunked" in head.lower():
            raise RuntimeError("a chunked answer where none was expected")
        return json.loads(data)
    finally:
        writer.close()
