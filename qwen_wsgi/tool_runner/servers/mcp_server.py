"""One MCP server: connected to, asked for its tools, called, and started again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import anyio
import httpx2
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from qwen_wsgi import __version__
from qwen_wsgi.tool_runner.config import Entry
from qwen_wsgi.tool_runner.results import Result, failed, of_mcp
from qwen_wsgi.tool_runner.sandbox import CannotStart, Process, Program, Sandbox, tail_of

log = logging.getLogger(__name__)

#: Until a server has said what it offers. npx and uvx download it in this time.
_START_S: Final = 60.0
#: Before a server that has ended is started again; doubled each time, until it stays.
_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
#: A server that has run for so long begins with the short pause again.
_STAYS_S: Final = 60.0
#: A server that does not answer a ping in this time, after a call that took too long, is started
#: anew.
_PING_S: Final = 10.0
#: For the reason why a program has ended, after its connection has.
_REASON_S: Final = 1.0
_CONNECT_S: Final = 10.0
#: How often a server behind a URL is asked whether it is still there.
_LOOK_S: Final = 30.0
#: Of its streams, over which it may have nothing to say for long.
_LONGEST_SILENCE_S: Final = 3600.0
_PAGES: Final = 20
#: Tools of a server; a model cannot choose among more anyway.
_MOST_TOOLS: Final = 500
_SCHEMA_BYTES: Final = 256 * 1024

Tool = dict[str, Any]


class McpServer:
    """An MCP server, for as long as `run` runs.

    Attributes:
        tools: what it offers, by their names; empty while it is not connected.
        trouble: why it offers nothing; "" if it does.
    """

    def __init__(self, entry: Entry, sandbox: Sandbox, *, output_bytes: int) -> None:
        self.entry = entry
        self.tools: Mapping[str, Tool] = {}
        self.trouble = "it is starting"
        self._sandbox = sandbox
        self._output_bytes = output_bytes
        self._session: ClientSession | None = None
        #: Set to have the connection closed, and made anew.
        self._renew = asyncio.Event()
        self._list_again = asyncio.Event()
        #: Looks after calls that took too long; a task that nobody holds may be collected.
        self._looks: set[asyncio.Task[None]] = set()
        #: Set once the first attempt to start has succeeded or failed.
        self.is_decided = asyncio.Event()

    async def run(self) -> None:
        """Keep it running until cancelled."""
        pause_s = _PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await self._once()
                why = "it has ended"
            except* Exception as group:
                why = why_of(group)
            finally:
                self._session = None
                self.tools = {}
            self._tell(why)
            if loop.time() - began_s > _STAYS_S:
                pause_s = _PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        seconds: float,
        container: str | None = None,
    ) -> Result:
        """Run a tool; what goes wrong is told in the result."""
        session = self._session
        if session is None or tool not in self.tools:
            return failed(f"The server {self.entry.label} cannot be used now: {self.trouble}")
        try:
            async with asyncio.timeout(seconds):
                answer = await session.call_tool(tool, dict(arguments))
        except TimeoutError:
            self._look_after(session)
            return failed(f"It was given up after {seconds:g} seconds, the longest it may take.")
        except MCPError as error:
            if error.code == types.CONNECTION_CLOSED:
                return self._lost(session)
            return failed(f"The server refuses the call: {error}"[:2000])
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            return self._lost(session)
        except Exception as error:  # such as an answer that does not fit its schema
            return failed(f"The server's answer cannot be used: {error}"[:2000])
        return of_mcp(answer.model_dump(mode="json", by_alias=True), self._output_bytes)

    async def answers(self) -> str:
        """Whether it answers now: "" or why not."""
        session = self._session
        if session is None:
            return self.trouble
        try:
            async with asyncio.timeout(_PING_S):
                await session.send_ping()
        except TimeoutError:
            return f"it does not answer a ping within {_PING_S:g} s"
        except MCPError as error:
            # It has answered. Newer servers know no ping.
            log.debug("ping of %s: %s", self.entry.label, error)
        except Exception as error:
            return f"it does not answer ({type(error).__name__}: {error})"
        return ""

    def _lost(self, session: ClientSession) -> Result:
        """The result of a call in which the server ended; it is offered again when it is back."""
        if self._session is session:
            self._session = None
            self.tools = {}
            self.trouble = "it has ended, and is started anew"
            self._renew.set()
        return failed(f"The server {self.entry.label} ended while it ran the tool.")

    def _look_after(self, session: ClientSession) -> None:
        """After a call that took too long: start a server that hangs anew."""

        async def look() -> None:
            if await self.answers() and self._session is session:
                self._renew.set()

        task = asyncio.create_task(look())
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    def _tell(self, why: str) -> None:
        if why != self.trouble:
            log.warning("tools of %s: %s", self.entry.label, why)
        self.trouble = why
        self.is_decided.set()

    async def _once(self) -> None:
        """Connect, and stay connected.

        Raises:
            Exception: why it cannot be, or the connection's end.
        """
        self._renew.clear()
        async with (
            self._connected() as (read, write, ended),
            ClientSession(
                read,
                write,
                message_handler=self._heard,
                client_info=types.Implementation(name="qwen-proxy", version=__version__),
            ) as session,
        ):
            try:
                async with asyncio.timeout(_START_S):
                    await _unless(ended, session.initialize())
                    self.tools = await _unless(ended, self._listed(session))
            except TimeoutError:
                raise CannotStart(f"it did not say within {_START_S:g} s what it offers") from None
            self._session = session
            self.trouble = ""
            self.is_decided.set()
            log.info("tools of %s: %d", self.entry.label, len(self.tools))
            await self._stay(session, ended)

    async def _stay(self, session: ClientSession, ended: Callable[[], Any]) -> None:
        """Return or raise when the connection is to be made anew; list again when told to."""
        over = asyncio.ensure_future(ended())
        renew = asyncio.ensure_future(self._renew.wait())
        try:
            while True:
                again = asyncio.ensure_future(self._list_again.wait())
                try:
                    await asyncio.wait((over, renew, again), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    again.cancel()
                if renew.done():
                    # A program that has ended tells why.
                    await asyncio.wait((over,), timeout=_REASON_S)
                if over.done():
                    raise CannotStart(over.result())
                if renew.done():
                    raise CannotStart("it did not answer any more, and is started anew")
                self._list_again.clear()
                async with asyncio.timeout(_START_S):
                    self.tools = await self._listed(session)
        finally:
            over.cancel()
            renew.cancel()
            await asyncio.gather(over, renew, return_exceptions=True)

    async def _heard(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._list_again.set()

    async def _listed(self, session: ClientSession) -> Mapping[str, Tool]:
        """The tools that the server has and the operator offers."""
        found = await listed(session, self.entry.offers, "; choose among them with includeTools")
        if self.entry.include is not None:
            missing = [name for name in self.entry.include if name not in found]
            if missing and not found:
                raise CannotStart(f"it has no tool of includeTools: {', '.join(missing)[:500]}")
        return found

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Any, Any, Callable[[], Any]]]:
        """The streams of a connection, and what waits for its end and says why."""
        entry = self.entry
        if entry.command:
            program = Program(
                (entry.command, *entry.args),
                env=entry.env,
                read=entry.read,
                write=entry.write,
                network=entry.network,
                cwd=entry.cwd or "/tmp",
            )
            async with (
                self._sandbox.started(program) as process,
                _over_stdio(process) as (read, write, ended),
            ):
                yield read, write, ended
            return
        async with contextlib.AsyncExitStack() as stack:
            if entry.http_url:
                client = await stack.enter_async_context(_http_client(entry.headers))
                streams = streamable_http_client(entry.http_url, http_client=client)
            else:
                streams = sse_client(
                    entry.sse_url, headers=dict(entry.headers), sse_read_timeout=_LONGEST_SILENCE_S
                )
            read, write = await stack.enter_async_context(streams)
            yield read, write, self._pinged

    async def _pinged(self) -> str:
        """Waits until a server that is no process of ours does not answer any more."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._session is not None and (why := await self.answers()):
                return why


async def listed(
    session: ClientSession, wanted: Callable[[str], bool] = lambda name: True, hint: str = ""
) -> Mapping[str, Tool]:
    """The wanted tools of a server, by their names.

    Args:
        hint: what to do if there are too many.

    Raises:
        CannotStart: there are too many.
    """
    found: dict[str, Tool] = {}
    cursor = None
    for _ in range(_PAGES):
        page = await session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
        for each in page.tools:
            tool = each.model_dump(mode="json", by_alias=True, exclude_none=True)
            if wanted(each.name) and len(str(tool)) <= _SCHEMA_BYTES:
                found[each.name] = tool
        cursor = page.next_cursor
        if not cursor or len(found) > _MOST_TOOLS:
            break
    if len(found) > _MOST_TOOLS:
        raise CannotStart(f"it has more than {_MOST_TOOLS} tools{hint}")
    return found


def _http_client(headers: Mapping[str, str]) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(_CONNECT_S, read=_LONGEST_SILENCE_S)
    return httpx2.AsyncClient(headers=dict(headers), timeout=timeout)


async def _unless(ended: Callable[[], Any], work: Any) -> Any:
    """The result of some work, unless the server ends before.

    Raises:
        CannotStart: it has.
    """
    working, over = asyncio.ensure_future(work), asyncio.ensure_future(ended())
    try:
        await asyncio.wait((working, over), return_when=asyncio.FIRST_COMPLETED)
        if working.done() and working.exception() is not None:
            # Its connection is closed before it is known why it has ended.
            await asyncio.wait((over,), timeout=_REASON_S)
        if over.done() and (not working.done() or working.exception() is not None):
            raise CannotStart(over.result())
        return await working
    finally:
        for each in (working, over):
            each.cancel()
        await asyncio.gather(working, over, return_exceptions=True)


@contextlib.asynccontextmanager
async def _over_stdio(process: Process) -> AsyncIterator[tuple[Any, Any, Callable[[], Any]]]:
    """The streams of a server that speaks over its standard input and output, a message a line."""
    incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    too_long = asyncio.Event()

    async def receive() -> None:
        async with incoming:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                while True:
                    try:
                        line = await process.stdout.readline()
                    except ValueError:
                        too_long.set()
                        return
                    if not line:
                        return
                    try:
                        message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        continue  # some servers greet whoever starts them
                    await incoming.send(SessionMessage(message))

    async def send() -> None:
        async with outgoing:
            async for each in outgoing:
                text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                with contextlib.suppress(OSError):
                    await process.stdin.drain()

    tasks = [asyncio.create_task(receive()), asyncio.create_task(send())]
    complaints = asyncio.create_task(tail_of(process.stderr))

    async def ended() -> str:
        over, cut = asyncio.ensure_future(process.wait()), asyncio.ensure_future(too_long.wait())
        try:
            await asyncio.wait((over, cut), return_when=asyncio.FIRST_COMPLETED)
            if cut.done():
                return "it sent a line that is too long"
            said = await complaints
            return f"{over.result()}: {said}" if said else over.result()
        finally:
            over.cancel()
            cut.cancel()

    try:
        yield read, write, ended
    finally:
        for task in (*tasks, complaints):
            task.cancel()
        await asyncio.gather(*tasks, complaints, return_exceptions=True)
        for stream in (read, write, incoming, outgoing):
            stream.close()


def why_of(error: BaseException) -> str:
    """The first thing that went wrong, as a clause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CannotStart):
        return str(error)
    if isinstance(error, httpx2.HTTPStatusError):
        return f"it answers with HTTP {error.response.status_code}"
    if isinstance(error, httpx2.TransportError):
        return f"it cannot be reached ({type(error).__name__}: {error})"
    if isinstance(error, MCPError):
        return f"it refuses: {error}"[:500]
    return f"it cannot be used ({type(error).__name__}: {error})"[:500]
