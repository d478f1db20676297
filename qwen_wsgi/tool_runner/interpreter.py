"""The tool `python`: runs code in a sandbox, in a process for each call or for each container."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.tool_runner.config import Entry
from qwen_wsgi.tool_runner.results import Result, cut, failed, pictures_of
from qwen_wsgi.tool_runner.sandbox import (
    LONGEST_LINE,
    CannotStart,
    Process,
    Program,
    Sandbox,
)

_PROGRAM: Final = Path(__file__).with_name("interpreter_program.py")
#: Where the sandbox has the program, whatever folder the proxy is in.
_PLACE: Final = "/etc/qwen-proxy-interpreter.py"

_ENVIRONMENT: Final = {
    "PYTHONDONTWRITEBYTECODE": "1",
    # Plots are drawn into memory: there is no screen.
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": "/tmp/matplotlib",
}

#: How long a container without a call is kept, and how many there may be.
IDLE_S: Final = 20 * 60.0
MOST_CONTAINERS: Final = 32
#: Files that a call brings, and what is sent back of those that it has made. Bytes.
_FILES_IN: Final = 10 * 1024 * 1024
_FILES_OUT: Final = 4 * 1024 * 1024
_MOST_FILES: Final = 50
#: Output beyond the limit is thrown away, but not for ever: a program that prints without an end is
#: stopped at this many times the limit.
_ENDLESS: Final = 64
#: For what the program printed last, after it said that it is done.
_DRAIN_S: Final = 0.5

TOOL: Final = "run"
DESCRIPTION: Final = (
    "Runs Python code in a sandbox without network, and returns what it prints, the value of the "
    "last expression, and plots of matplotlib if that is installed. Files are written to the "
    "current folder."
)
SCHEMA: Final = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "The Python code to run."}},
    "required": ["code"],
}


class Stopped(Exception):
    """The interpreter has ended in a call, or was ended. The text says why."""


@dataclass
class _Output:
    """What a process prints, up to a limit."""

    most: int
    kept: bytearray = field(default_factory=bytearray)
    seen: int = 0

    def add(self, piece: bytes) -> None:
        self.seen += len(piece)
        self.kept += piece[: max(0, self.most - len(self.kept))]

    def take(self) -> str:
        """The text until now; the next call begins with none."""
        text = self.kept.decode(errors="replace")
        if self.seen > len(self.kept):
            text += f"\n[cut: this is the first {len(self.kept):,} of {self.seen:,} bytes]"
        self.kept.clear()
        self.seen = 0
        return text


class _Session:
    """One Python process. Calls of it come one after the other."""

    def __init__(
        self, process: Process, ask: int, answers: asyncio.StreamReader, most: int
    ) -> None:
        self._process = process
        self._ask = ask
        self._answers = answers
        self._most = most
        self._out, self._err = _Output(most), _Output(most)
        self._endless = asyncio.Event()
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self._out)),
            asyncio.create_task(self._read(process.stderr, self._err)),
        ]

    async def run(self, code: str, files: Mapping[str, str]) -> Result:
        """Run code.

        Raises:
            Stopped: the process is of no use any more.
        """
        question = {"code": code, "files": dict(files), "room": [_FILES_OUT]}
        line = await self._race(self._exchange(json.dumps(question).encode() + b"\n"))
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            # The code has closed the file, or has written into it itself.
            raise Stopped("the program has disturbed the interpreter that ran it")
        await self._drain()
        return self._result(answer)

    async def _exchange(self, line: bytes) -> bytes:
        await asyncio.to_thread(_write_all, self._ask, line)
        try:
            return await self._answers.readline()
        except ValueError:
            raise Stopped("what it has made is too large") from None

    async def _race(self, exchange: Any) -> bytes:
        """The answer, unless the process ends or prints without an end before."""
        answer = asyncio.ensure_future(exchange)
        ended = asyncio.ensure_future(self._process.wait())
        endless = asyncio.ensure_future(self._endless.wait())
        waiting: tuple[asyncio.Future[Any], ...] = (answer, ended, endless)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if endless.done():
                raise Stopped(self._told("it was stopped, because it printed without an end"))
            if answer.done() and (error := answer.exception()) is None and answer.result():
                return bytes(answer.result())
            if answer.done() and isinstance(error, Stopped):
                raise error
            reason = await self._process.wait()
            await self._drain()
            raise Stopped(self._told(f"the Python process has ended: {reason}"))
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _told(self, why: str) -> str:
        printed = (self._out.take() + self._err.take()).strip()
        return f"{printed}\n[{why}]" if printed else f"[{why}]"

    async def _drain(self) -> None:
        """Read what is still in the pipes: the answer takes another way, and may be faster."""
        end_s = time.monotonic() + _DRAIN_S
        while time.monotonic() < end_s:
            before = self._out.seen + self._err.seen
            await asyncio.sleep(0.01)
            if self._out.seen + self._err.seen == before:
                return

    async def _read(self, stream: asyncio.StreamReader, output: _Output) -> None:
        while piece := await stream.read(65_536):
            output.add(piece)
            if output.seen > self._most * _ENDLESS:
                self._endless.set()

    def _result(self, answer: Mapping[str, Any]) -> Result:
        out, err = self._out.take(), self._err.take()
        pictures, notes = pictures_of(
            [("image/png", str(each)) for each in _list(answer, "pictures")]
        )
        files = [each for each in _list(answer, "files") if isinstance(each, dict)]
        told = [f"{each.get('name')} ({each.get('size')} bytes)" for each in files]
        if told:
            notes.append("[files: " + ", ".join(told)[:2000] + "]")
        text = "\n".join(part for part in (out.rstrip("\n"), err.rstrip("\n"), *notes) if part)
        is_error = answer.get("failed") is True
        structured = {
            "stdout": out,
            "stderr": err,
            "return_code": int(is_error),
            "files": files,
        }
        return Result(
            # Both may be as long as the limit, and say where they were cut.
            cut(text, 2 * self._most + 1000) or "[no output]",
            is_error=is_error,
            pictures=pictures,
            structured=structured,
        )

    async def close(self) -> None:
        await self._process.end()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


def _list(answer: Mapping[str, Any], name: str) -> list[Any]:
    found = answer.get(name)
    return found if isinstance(found, list) else []


def _write_all(number: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(number, view) :]
    except OSError:
        raise Stopped("the Python process has ended") from None


@dataclass
class _Container:
    """A session that several calls share.

    Attributes:
        turn: held by the call that runs.
        waiting: calls that run or wait for their turn.
    """

    session: _Session | None = None
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    used_s: float = 0.0
    waiting: int = 0


class Interpreter:
    """Runs the calls of the tool `python`."""

    def __init__(self, entry: Entry, sandbox: Sandbox, *, output_bytes: int) -> None:
        self._entry = entry
        self._sandbox = sandbox
        self._output_bytes = output_bytes
        self._containers: dict[str, _Container] = {}
        self._is_closed = False

    async def call(
        self, arguments: Mapping[str, Any], *, seconds: float, container: str | None
    ) -> Result:
        """Run the code of a call; what goes wrong is told in the result."""
        code, files = arguments.get("code"), arguments.get("files") or {}
        if not isinstance(code, str):
            return failed('The argument "code" is missing: a text with Python code.')
        if wrong := _wrong_files(files):
            return failed(wrong)
        try:
            async with asyncio.timeout(seconds):
                self._check_open()
                if container is None:
                    async with self._session() as session:
                        return await session.run(code, files)
                return await self._in_container(container, code, files)
        except TimeoutError:
            after = f"{seconds:g} seconds"
            lost = " Its variables and files are gone." if container is not None else ""
            return failed(f"[it was stopped after {after}, the longest that a call may take]{lost}")
        except Stopped as stopped:
            return failed(str(stopped))

    async def _in_container(self, name: str, code: str, files: Mapping[str, str]) -> Result:
        await self._end_idle()
        container = self._containers.get(name)
        if container is None:
            if len(self._containers) >= MOST_CONTAINERS and not await self._end_oldest():
                raise Stopped(f"[all {MOST_CONTAINERS} containers are in use; try again later]")
            container = self._containers[name] = _Container()
        container.waiting += 1
        try:
            async with container.turn:
                try:
                    session = container.session
                    if session is None:
                        self._check_open()
                        made = self._session()
                        session = await container.stack.enter_async_context(made)
                        container.session = session
                        self._check_open()  # nobody would end it any more
                    return await session.run(code, files)
                except BaseException:
                    # Also when it was cancelled: the code still runs there.
                    await self._end(name, container, failed=True)
                    raise
        finally:
            container.waiting -= 1
            container.used_s = time.monotonic()

    async def _end(self, name: str, container: _Container, *, failed: bool = False) -> None:
        """End the process of a container, and forget the container.

        Args:
            failed: by the call that runs. Calls that wait for their turn have the same container
                all the same, with a new process, so it is not forgotten before the last of them.
        """
        container.session = None
        stack, container.stack = container.stack, contextlib.AsyncExitStack()
        is_last = not failed or container.waiting == 1
        if is_last and self._containers.get(name) is container:
            del self._containers[name]
        await stack.aclose()

    async def _end_idle(self) -> None:
        now_s = time.monotonic()
        for name, each in list(self._containers.items()):
            if not each.waiting and now_s - each.used_s > IDLE_S:
                await self._end(name, each)

    async def _end_oldest(self) -> bool:
        idle = [(each.used_s, name) for name, each in self._containers.items() if not each.waiting]
        if not idle:
            return False
        _, name = min(idle)
        await self._end(name, self._containers[name])
        return True

    async def watch(self) -> None:
        """End containers that nobody uses. Runs until it is cancelled, and ends all then."""
        try:
            while True:
                await asyncio.sleep(30)
                await self._end_idle()
        finally:
            await self.close()

    async def close(self) -> None:
        """End all containers; no further one is made, and no further call begins."""
        self._is_closed = True
        for name, each in list(self._containers.items()):
            await self._end(name, each)

    def _check_open(self) -> None:
        """Refuse a call that waited while tools.json was read anew: it may forbid now what this
        interpreter would allow.

        Raises:
            Stopped: it was.
        """
        if self._is_closed:
            raise Stopped("[tools.json was read anew while the call waited; run the code again]")

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[_Session]:
        questions, ask = os.pipe()
        answered, answers = os.pipe()
        try:
            program = Program(
                (python_of(self._entry), "-I", _PLACE, str(questions), str(answers)),
                env={**_ENVIRONMENT, **self._entry.env},
                read=self._entry.read,
                network=self._entry.network,
                texts={_PLACE: _PROGRAM.read_text()},
                pass_files=(questions, answers),
            )
            async with self._sandbox.started(program) as process:
                os.close(questions)
                os.close(answers)
                questions = answers = -1
                process.stdin.close()
                reader, transport = await _reader(answered)
                answered = -1
                session = _Session(process, ask, reader, self._output_bytes)
                try:
                    yield session
                finally:
                    await session.close()
                    transport.close()
        except CannotStart as error:
            raise Stopped(f"the interpreter cannot be started: {error}") from None
        finally:
            for number in (questions, ask, answered, answers):
                if number >= 0:
                    os.close(number)


async def _reader(number: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LONGEST_LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(number, "rb"))
    return reader, transport


def python_of(entry: Entry) -> str:
    """The interpreter: the entry's own, else the system's, which every user can read."""
    if entry.command:
        return entry.command
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.access(path, os.X_OK):
            return path
    return sys.executable


def _wrong_files(files: object) -> str:
    """Why the files of a call cannot be taken; "" if they can."""
    if not isinstance(files, dict) or len(files) > _MOST_FILES:
        return f'The argument "files" must be an object of at most {_MOST_FILES} files in base64.'
    size = 0
    for name, data in files.items():
        plain = isinstance(name, str) and name and name == os.path.basename(name)
        if not plain or name in (".", "..") or "\0" in name or len(name.encode()) > 255:
            return f"The file name {str(name)[:80]!r} must be a plain name."
        try:
            size += len(base64.b64decode(data, validate=True))
        except (TypeError, ValueError, binascii.Error):
            return f"The file {name[:80]!r} is not base64."
        if size > _FILES_IN:
            return f"The files are larger than {_FILES_IN // 1024**2} MiB."
    return ""
