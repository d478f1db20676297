"""Asks the runner of tools, over its unix socket. A connection for each question.

The sockets are ordinary ones, which gevent patches in a worker: whoever waits lets others run, and
a greenlet that is killed closes its connection, by which the runner knows that nobody waits.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.protocol.server_tools.foreign import ForeignServer
from qwen_wsgi.settings import Settings
from qwen_wsgi.tool_runner import child, sources, wire
from qwen_wsgi.tools.runner import (
    ForeignServerError,
    RunnerUnavailable,
    ServerTool,
    ToolImage,
    ToolResult,
)

#: How long a list of tools is used before the runner is asked again.
_LIST_AGE_S: Final = 5.0
_CONNECT_S: Final = 5.0
#: For a list. The runner waits for servers that are starting; on a busy machine it needs a while to
#: load what it needs itself.
_LIST_S: Final = 30.0
_CHECK_S: Final = 120.0
#: Beyond the time of a call itself, for the way there and back.
_SPARE_S: Final = 15.0
_PIECE: Final = 256 * 1024

#: A list of tools: when it came, its tools, and the troubles of servers by their labels.
_Listed = tuple[float, tuple[ServerTool, ...], Mapping[str, str]]


class RunnerClient:
    """The runner of tools, as a `ToolRunner`. Shared by the greenlets of a worker.

    Args:
        path: names its socket; asked each time, because the service's may come later.
    """

    def __init__(self, path: Callable[[], str], clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._listed: _Listed | None = None
        #: How the latest question for a list failed; another object each time.
        self._failure: RunnerUnavailable | None = None

    @classmethod
    def of(cls, settings: Settings, clock: Clock) -> RunnerClient:
        """The runner that the settings name."""
        return cls(lambda: sources.socket_of(settings), clock)

    def offered(self) -> Sequence[ServerTool]:
        """See `ToolRunner`."""
        return self._list()[1]

    def offered_at(self, server: ForeignServer) -> Sequence[ServerTool]:
        """See `ToolRunner`."""
        answer = self._ask({"do": "list", "at": _address(server)}, _LIST_S)
        for name in ("refused", "failed"):
            if name in answer:
                raise ForeignServerError(str(answer[name]), is_refused=name == "refused")
        return tuple(
            replace(tool, server=server.label, at=server) for tool in _tools(answer.get("tools"))
        )

    def troubles(self) -> Mapping[str, str]:
        """See `ToolRunner`."""
        return self._list()[2]

    def check(self) -> Mapping[str, str]:
        """Whether each server answers now, by its label: "" or why not.

        Raises:
            RunnerUnavailable: the runner does not answer.
        """
        return _texts(self._ask({"do": "check"}, _CHECK_S).get("checked"))

    def call(
        self,
        tool: ServerTool,
        arguments: Mapping[str, object],
        *,
        seconds: float,
        container: str | None = None,
    ) -> ToolResult:
        """See `ToolRunner`."""
        question: dict[str, Any] = {
            "do": "call",
            "id": "1",
            "server": tool.server,
            "tool": tool.name,
            "arguments": arguments,
            "seconds": seconds,
            "container": container,
        }
        if tool.at is not None:
            question["at"] = _address(tool.at)
        return _result(self._ask(question, seconds + _SPARE_S))

    def _list(self) -> _Listed:
        if (known := self._fresh()) is not None:
            return known
        # One asks; the others wait for what it learns, also if that is a failure.
        before = self._failure
        with self._lock:
            if (known := self._fresh()) is not None:
                return known
            if self._failure is not None and self._failure is not before:
                raise RunnerUnavailable(self._failure.reason)
            try:
                answer = self._ask({"do": "list"}, _LIST_S)
            except RunnerUnavailable as error:
                self._failure = RunnerUnavailable(error.reason)
                raise
            found = _tools(answer.get("tools")), _texts(answer.get("troubles"))
            self._listed = (self._clock.monotonic(), *found)
            return self._listed

    def _fresh(self) -> _Listed | None:
        """The list, unless it is too old."""
        known = self._listed
        if known is None or self._clock.monotonic() - known[0] > _LIST_AGE_S:
            return None
        return known

    def _ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        data = wire.line(question)
        if len(data) > wire.LONGEST_QUESTION:
            raise RunnerUnavailable("The arguments of the call are too large for a tool.")
        path = self._path()
        end_s = self._clock.monotonic() + seconds
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_CONNECT_S)
            with sources.short_path(path) as short:
                connection.connect(short)
            connection.settimeout(seconds)
            connection.sendall(data)
            line = self._line(connection, end_s)
            answer = wire.read(line)
        except TimeoutError:
            raise RunnerUnavailable(
                "The process that runs tools does not answer. Its log says why; restart it."
            ) from None
        except (OSError, wire.BadLine) as error:
            raise RunnerUnavailable(_why(path, error)) from None
        finally:
            connection.close()
        if "error" in answer:
            raise RunnerUnavailable(f"The process that runs tools refuses: {answer['error']}")
        return answer

    def _line(self, connection: socket.socket, end_s: float) -> bytes:
        pieces, size = [], 0
        while True:
            left_s = end_s - self._clock.monotonic()
            if left_s <= 0:
                raise TimeoutError
            connection.settimeout(left_s)
            piece = connection.recv(_PIECE)
            if not piece:
                raise ConnectionResetError("it ended meanwhile")
            pieces.append(piece)
            size += len(piece)
            if piece.endswith(b"\n"):
                return b"".join(pieces)
            if size > wire.LONGEST_ANSWER:
                raise OSError("its answer is too large")


@contextlib.contextmanager
def asking(settings: Settings, clock: Clock) -> Iterator[RunnerClient]:
    """The runner for a command: the one that is there, or one that is started for the moment.

    Raises:
        SettingsError: none is there, and none can be started.
    """
    if child.listens(sources.socket_of(settings)):
        yield RunnerClient.of(settings, clock)
        return
    with child.temporary(settings) as path:
        yield RunnerClient(lambda: path, clock)


def _why(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return (
            f"The process that runs tools is not there: nobody listens at {path}. The server "
            "starts it anew within a minute; its log says why it ended. As a service: systemctl "
            "status qwen-proxy-tools."
        )
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return (
            "The process that runs tools ended in the middle of the call. It is started anew; try "
            "again in a moment."
        )
    if isinstance(error, PermissionError):
        return f"This user may not use the socket of the process that runs tools: {path}."
    return f"The process that runs tools cannot be asked: {error}."


def _address(server: ForeignServer) -> dict[str, Any]:
    return {"url": server.url, "headers": dict(server.headers)}


def _texts(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _tools(value: object) -> tuple[ServerTool, ...]:
    return tuple(map(_tool, value)) if isinstance(value, list) else ()


def _tool(value: Mapping[str, Any]) -> ServerTool:
    schema = value.get("schema")
    return ServerTool(
        server=str(value.get("server")),
        name=str(value.get("name")),
        description=str(value.get("description") or ""),
        schema=schema if isinstance(schema, dict) else {"type": "object"},
        trust=value.get("trust") is True,
    )


def _result(answer: Mapping[str, Any]) -> ToolResult:
    images = []
    found = answer.get("images")
    for each in found if isinstance(found, list) else ():
        try:
            data = base64.b64decode(each["data"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            continue
        images.append(ToolImage(str(each.get("media_type")), data))
    return ToolResult(
        text=str(answer.get("text", "")),
        is_error=answer.get("is_error") is True,
        images=tuple(images),
        structured=answer.get("structured"),
    )
