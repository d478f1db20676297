"""All tools of the runner: those of MCP servers, and those that are built in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Protocol

from qwen_wsgi.tool_runner import interpreter as interpreter_module
from qwen_wsgi.tool_runner.config import FETCH, PYTHON, Entry
from qwen_wsgi.tool_runner.fetching import fetch as fetch_module
from qwen_wsgi.tool_runner.fetching.fetch import Fetch
from qwen_wsgi.tool_runner.interpreter import Interpreter
from qwen_wsgi.tool_runner.results import Result, failed
from qwen_wsgi.tool_runner.sandbox import CannotStart, Program, Sandbox, tail_of
from qwen_wsgi.tool_runner.servers.foreign_hosts import Failed, Foreign, NotAllowed

#: For a check that a sandbox works at all.
_TRIAL_S: Final = 20.0
NO_MCP: Final = (
    "the Python package `mcp` is not installed, which it needs (pip install 'qwen-wsgi[tools]')"
)


class Server(Protocol):
    """A server of tools, from the toolbox's view."""

    entry: Entry
    trouble: str

    @property
    def tools(self) -> Mapping[str, Mapping[str, Any]]:
        """Its tools by name, each as MCP describes one; none while it is in trouble."""

    is_decided: asyncio.Event

    async def run(self) -> None:
        """Keep it ready, until cancelled."""

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, seconds: float, container: str | None
    ) -> Result:
        """Run a tool; what goes wrong is told in the result."""

    async def answers(self) -> str:
        """Whether it works now: "" or why not."""


class Foreigners(Protocol):
    """Servers at addresses that clients bring, from the toolbox's view."""

    async def listed(self, server: Foreign) -> Mapping[str, Mapping[str, Any]]:
        """What a server offers, by the names of its tools.

        Raises:
            NotAllowed: no connection is made to it.
            Failed: it cannot be used.
        """

    async def call(
        self, server: Foreign, tool: str, arguments: Mapping[str, Any], *, seconds: float
    ) -> Result:
        """Run a tool; what goes wrong is told in the result."""


class Toolbox:
    """The servers of a tools.json, for as long as `run` runs.

    Args:
        foreign: servers at addresses that clients bring; None where there can be none.
        timeout_s: of calls whose entry has none of its own.
        calls: that run at a time; others wait.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        foreign: Foreigners | None = None,
        *,
        timeout_s: float,
        calls: int,
    ) -> None:
        self._foreign = foreign
        self._servers = {each.entry.label: each for each in servers}
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(calls)

    async def run(self) -> None:
        """Keep all servers ready, until cancelled."""
        tasks = [asyncio.create_task(each.run()) for each in self._servers.values()]
        try:
            await asyncio.gather(*tasks)
            await asyncio.Event().wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def decided(self, seconds: float) -> None:
        """Wait, not for too long, until each server has started or failed to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for each in self._servers.values():
                    await each.is_decided.wait()

    def listed(self) -> dict[str, Any]:
        """The members of an answer of `wire`: all tools, and why servers have none."""
        tools = [
            {"server": label, **_shown(name, tool), "trust": each.entry.trust}
            for label, each in self._servers.items()
            for name, tool in each.tools.items()
        ]
        troubles = {label: each.trouble for label, each in self._servers.items() if each.trouble}
        return {"tools": tools, "troubles": troubles}

    async def listed_at(self, foreign: Foreign) -> dict[str, Any]:
        """The members of an answer of `wire`: the tools of a server of a client; or why no
        connection is made to it, or why it cannot be used."""
        if self._foreign is None:
            return {"failed": NO_MCP}
        try:
            found = await self._foreign.listed(foreign)
        except NotAllowed as error:
            return {"refused": str(error)}
        except Failed as error:
            return {"failed": str(error)}
        return {"tools": [_shown(name, tool) for name, tool in found.items()]}

    async def check(self) -> dict[str, str]:
        """Whether each server works now, by its label: "" or why not."""
        await self.decided(_TRIAL_S)
        each = [(label, server.answers()) for label, server in self._servers.items()]
        answers = await asyncio.gather(*(answer for _, answer in each), return_exceptions=True)
        return {
            label: found if isinstance(found, str) else f"the check failed ({found!r})"
            for (label, _), found in zip(each, answers, strict=True)
        }

    async def call(
        self,
        server: str,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        seconds: float,
        container: str | None,
        foreign: Foreign | None = None,
    ) -> Result:
        """Run a tool. Waits for a place, as long as the call's own time allows.

        Args:
            foreign: the server, if it is a client's; its label means nothing here.
        """
        found = self._servers.get(server)
        if found is None and foreign is None:
            return failed(f"There is no server of tools named {server!r} here.")
        end_s = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError:
            return failed(
                f"All places for tools were taken for {seconds:g} seconds; try again later."
            )
        try:
            left_s = max(0.1, end_s - time.monotonic())
            if foreign is not None:
                if self._foreign is None:
                    return failed(NO_MCP)
                return await self._foreign.call(foreign, tool, arguments, seconds=left_s)
            assert found is not None, "it is a client's otherwise"
            most = round(min(left_s, found.entry.timeout_s or self._timeout_s), 1)
            return await found.call(tool, arguments, seconds=most, container=container)
        finally:
            self._places.release()


def _shown(name: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "description": tool.get("description", ""),
        "schema": tool.get("inputSchema", {"type": "object"}),
    }


class _BuiltIn:
    """What the built-in servers share."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.trouble = "it is starting"
        self.is_decided = asyncio.Event()

    def _decide(self, trouble: str) -> None:
        self.trouble = trouble
        self.is_decided.set()


class PythonServer(_BuiltIn):
    """The tool `python`, as a server with one tool."""

    def __init__(self, entry: Entry, sandbox: Sandbox, *, output_bytes: int) -> None:
        super().__init__(entry)
        self._sandbox = sandbox
        self._interpreter = Interpreter(entry, sandbox, output_bytes=output_bytes)

    @property
    def tools(self) -> Mapping[str, Mapping[str, Any]]:
        if self.trouble:
            return {}
        tool = interpreter_module
        return {tool.TOOL: {"description": tool.DESCRIPTION, "inputSchema": tool.SCHEMA}}

    async def run(self) -> None:
        self._decide(await works(self._sandbox))
        if not self.trouble:
            self._decide(await self.answers())
        await self._interpreter.watch()

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, seconds: float, container: str | None
    ) -> Result:
        if self.trouble:
            return failed(f"Python cannot be used now: {self.trouble}")
        if tool != interpreter_module.TOOL:
            return failed(f"{PYTHON} has no tool {tool!r}; it has {interpreter_module.TOOL}.")
        return await self._interpreter.call(arguments, seconds=seconds, container=container)

    async def answers(self) -> str:
        result = await self._interpreter.call({"code": "6 * 7"}, seconds=_TRIAL_S, container=None)
        return "" if result.text == "42" else result.text


class FetchServer(_BuiltIn):
    """The tool `fetch`, as a server with one tool."""

    def __init__(self, entry: Entry, fetch: Fetch) -> None:
        super().__init__(entry)
        self._fetch = fetch
        self._decide("")

    @property
    def tools(self) -> Mapping[str, Mapping[str, Any]]:
        tool = fetch_module
        return {tool.TOOL: {"description": tool.DESCRIPTION, "inputSchema": tool.SCHEMA}}

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, seconds: float, container: str | None
    ) -> Result:
        if tool != fetch_module.TOOL:
            return failed(f"{FETCH} has no tool {tool!r}; it has {fetch_module.TOOL}.")
        return await self._fetch.call(arguments, seconds=seconds)

    async def answers(self) -> str:
        return ""


class Broken(_BuiltIn):
    """A server that cannot be offered, and why."""

    tools: Mapping[str, Mapping[str, Any]] = {}

    def __init__(self, entry: Entry, trouble: str) -> None:
        super().__init__(entry)
        self._decide(trouble)

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def call(
        self, tool: str, arguments: Mapping[str, Any], *, seconds: float, container: str | None
    ) -> Result:
        return failed(f"The server {self.entry.label} cannot be used now: {self.trouble}")

    async def answers(self) -> str:
        return self.trouble


def server_of(entry: Entry, sandbox: Sandbox, *, output_bytes: int, hosts: Sequence[str]) -> Server:
    """The server of an entry."""
    if entry.trouble:
        return Broken(entry, entry.trouble)
    if entry.label == PYTHON:
        return PythonServer(entry, sandbox, output_bytes=output_bytes)
    if entry.label == FETCH:
        return FetchServer(entry, Fetch(hosts, output_bytes=output_bytes))
    if find_spec("mcp") is None:
        return Broken(entry, NO_MCP)
    from qwen_wsgi.tool_runner.servers.mcp_server import McpServer

    return McpServer(entry, sandbox, output_bytes=output_bytes)


def foreign_servers(
    hosts: Sequence[str], *, timeout_s: float, output_bytes: int
) -> Foreigners | None:
    """Servers at addresses that clients bring; None where the package is missing that asks them."""
    if find_spec("mcp") is None:
        return None
    from qwen_wsgi.tool_runner.servers.foreign import ForeignServers

    return ForeignServers(hosts, timeout_s=timeout_s, output_bytes=output_bytes)


async def works(sandbox: Sandbox) -> str:
    """Whether programs can be started in a sandbox here: "" or why not."""
    try:
        async with asyncio.timeout(_TRIAL_S), sandbox.started(Program(("/bin/true",))) as process:
            process.stdin.close()
            said = await tail_of(process.stderr)
            reason = await process.wait()
    except CannotStart as error:
        return str(error)
    except TimeoutError:
        return f"a sandbox did not start within {_TRIAL_S:g} s"
    if reason == "it ended with status 0":
        return ""
    return f"bubblewrap cannot work here: {said or reason}"
