"""Answers workers on a unix socket: lists tools, runs calls, cancels those whose worker left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.tool_runner import wire
from qwen_wsgi.tool_runner.servers.foreign_hosts import Foreign
from qwen_wsgi.tool_runner.toolbox import Toolbox

log = logging.getLogger(__name__)

#: Connections at a time, and calls of one. A worker makes a connection for each call.
_MOST_CONNECTIONS: Final = 2000
_MOST_CALLS: Final = 100
#: The longest that a worker may ask for.
_LONGEST_S: Final = 3600.0
#: How long the first `list` waits for servers that are starting.
_DECIDED_S: Final = 5.0
#: A worker that does not read its answer for so long has no use for it.
_WRITE_S: Final = 30.0


class Service:
    """The conversation with workers.

    Attributes:
        toolbox: changes at a reload; calls that run go on with the old one until it is ended.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        self.toolbox = toolbox
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection, until its other side closes it."""
        self._connections += 1
        try:
            if self._connections <= _MOST_CONNECTIONS:
                await _Conversation(self, reader, writer).run()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever asked has left
        except Exception as error:  # the connection's top: the next one may go better
            log.error("a question of a worker failed", exc_info=error)
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


class _Conversation:
    """One connection."""

    def __init__(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._writing = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            while True:
                try:
                    line = await self._reader.readline()
                except ValueError:
                    await self._say({"error": "a line is longer than this server reads"})
                    return
                if not line.endswith(b"\n"):
                    return
                try:
                    await self._one(wire.read(line))
                except wire.BadLine as error:
                    await self._say({"error": str(error)})
                    return
        finally:
            # Nobody waits for them any more.
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _one(self, question: Mapping[str, Any]) -> None:
        id, what = str(question.get("id", "")), question.get("do")
        if what == "cancel":
            if id in self._tasks:
                self._tasks[id].cancel()
            return
        work = {"list": self._list, "check": self._check, "call": self._call}.get(str(what))
        if work is None:
            raise wire.BadLine(f"{what!r} is nothing that this server does")
        if id in self._tasks or len(self._tasks) >= _MOST_CALLS:
            raise wire.BadLine(f"{id!r} is in use, or there are more than {_MOST_CALLS} calls")
        task = asyncio.create_task(self._answer(id, work(question)))
        self._tasks[id] = task
        task.add_done_callback(lambda _: self._tasks.pop(id, None))

    async def _answer(self, id: str, work: Any) -> None:
        try:
            answer = await work
        except wire.BadLine as error:
            answer = {"error": str(error)}
        except Exception as error:  # one call's top: the others go on
            log.error("a call of a tool failed", exc_info=error)
            answer = {"error": f"the runner of tools has a fault: {type(error).__name__}"}
        await self._say({"id": id, **answer})

    async def _say(self, answer: Mapping[str, Any]) -> None:
        data = wire.line(answer)
        if len(data) > wire.LONGEST_ANSWER:
            data = wire.line({"id": answer.get("id", ""), "error": "the answer is too large"})
        async with self._writing:
            self._writer.write(data)
            try:
                async with asyncio.timeout(_WRITE_S):
                    await self._writer.drain()
            except (TimeoutError, OSError):
                self._writer.transport.abort()

    async def _list(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if (foreign := _foreign(question)) is not None:
            return await self._service.toolbox.listed_at(foreign)
        await self._service.toolbox.decided(_DECIDED_S)
        return self._service.toolbox.listed()

    async def _check(self, question: Mapping[str, Any]) -> dict[str, Any]:
        return {"checked": await self._service.toolbox.check()}

    async def _call(self, question: Mapping[str, Any]) -> dict[str, Any]:
        server, tool = question.get("server"), question.get("tool")
        arguments, seconds = question.get("arguments"), question.get("seconds")
        container = question.get("container")
        if not (
            isinstance(server, str)
            and isinstance(tool, str)
            and isinstance(arguments, dict)
            and isinstance(seconds, int | float)
            and 0 < seconds <= _LONGEST_S
            and (container is None or (isinstance(container, str) and len(container) <= 256))
        ):
            raise wire.BadLine("the call has members that are missing or wrong")
        result = await self._service.toolbox.call(
            server,
            tool,
            arguments,
            seconds=seconds,
            container=container,
            foreign=_foreign(question),
        )
        return result.as_json()


def _foreign(question: Mapping[str, Any]) -> Foreign | None:
    """The server of a client that a question is for; None without one.

    Raises:
        wire.BadLine: its address is none.
    """
    at = question.get("at")
    if at is None:
        return None
    headers = at.get("headers") if isinstance(at, dict) else None
    if not (
        isinstance(headers, dict)
        and isinstance(at.get("url"), str)
        and all(isinstance(value, str) for value in headers.values())
    ):
        raise wire.BadLine("the address has members that are missing or wrong")
    return Foreign(at["url"], headers)
