"""MCP servers at addresses that clients bring: a connection for each question, and none is kept.

A name is looked up here, its addresses are checked, and the connection goes to the one that was
checked, so a name that has another address the next time leads nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx2
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from qwen_wsgi import __version__
from qwen_wsgi.tool_runner.fetching import addresses
from qwen_wsgi.tool_runner.results import Result, failed, of_mcp
from qwen_wsgi.tool_runner.servers.foreign_hosts import (
    Failed,
    Foreign,
    NotAllowed,
    Target,
    target_of,
)
from qwen_wsgi.tool_runner.servers.mcp_server import Tool, listed, why_of

T = TypeVar("T")

#: Connections at a time; further ones wait, as long as their own time allows.
_AT_A_TIME: Final = 32
#: Until a server has said what it offers: the client waits for its answer meanwhile.
_LIST_S: Final = 20.0
_CONNECT_S: Final = 10.0
_SPARE_S: Final = 5.0
#: For the end of a session, of which nobody needs to know how it went.
_FAREWELL_S: Final = 3.0
#: Bytes of all answers over one connection.
_MOST_BYTES: Final = 16 * 1024 * 1024
_MOST_REDIRECTS: Final = 5
#: Servers that speak the older transport have addresses that end so.
_SSE: Final = "/sse"

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolved(host: str, port: int) -> Sequence[str]:
    """The addresses of a name."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(where[0]) for *_, where in found]


class ForeignServers:
    """Asks servers of clients.

    Args:
        hosts: those that the operator allows, as `foreign_hosts` reads them.
        timeout_s: of a call.
        output_bytes: most text of one.
        resolve: looks names up.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        timeout_s: float,
        output_bytes: int,
        resolve: Resolve = resolved,
    ) -> None:
        self._hosts = tuple(hosts)
        self._timeout_s = timeout_s
        self._output_bytes = output_bytes
        self._resolve = resolve
        self._places = asyncio.Semaphore(_AT_A_TIME)
        self._trusted = ssl.create_default_context() if hosts else None

    async def listed(self, server: Foreign) -> Mapping[str, Tool]:
        """What a server offers, by the names of its tools.

        Raises:
            NotAllowed: no connection is made to it.
            Failed: it cannot be used.
        """
        return await self._asked(server, listed, _LIST_S)

    async def call(
        self, server: Foreign, tool: str, arguments: Mapping[str, Any], *, seconds: float
    ) -> Result:
        """Run a tool; what goes wrong is told in the result."""

        async def work(session: ClientSession) -> types.CallToolResult:
            return await session.call_tool(tool, dict(arguments))

        try:
            answer = await self._asked(server, work, round(min(seconds, self._timeout_s), 1))
        except (NotAllowed, Failed) as error:
            return failed(str(error)[:2000])
        return of_mcp(answer.model_dump(mode="json", by_alias=True), self._output_bytes)

    async def _asked(
        self, server: Foreign, work: Callable[[ClientSession], Awaitable[T]], seconds: float
    ) -> T:
        target = target_of(server.url, self._hosts)
        assert self._trusted is not None, "a host is allowed"
        transport = _Transport(target, self._resolve, self._trusted)
        try:
            async with (
                asyncio.timeout(seconds),
                self._places,
                _session(server, transport, seconds) as session,
            ):
                await session.initialize()
                return await work(session)
        except TimeoutError:
            raise Failed(f"{target.host} did not answer within {seconds:g} seconds.") from None
        except Exception as error:  # of many kinds, most of them in groups
            if transport.refusal is not None:
                raise transport.refusal from None
            raise Failed(_why(target, transport, error)) from None


def _why(target: Target, transport: _Transport, error: Exception) -> str:
    if transport.status in (401, 403):
        return (
            f"{target.host} answers with HTTP {transport.status}: it wants another authorization "
            "than the request has for it."
        )
    if transport.status:
        return f"{target.host} answers with HTTP {transport.status}."
    return f"{target.host}: {why_of(error)}."


@contextlib.asynccontextmanager
async def _session(
    server: Foreign, transport: _Transport, seconds: float
) -> AsyncIterator[ClientSession]:
    client = httpx2.AsyncClient(
        # What is packed could be a thousand times as large.
        headers={**server.headers, "Accept-Encoding": "identity"},
        transport=transport,
        # mcp 2.0 does not follow any itself. The transport sees to it where they lead.
        follow_redirects=True,
        max_redirects=_MOST_REDIRECTS,
        # Whoever asks ends a wait for an answer.
        timeout=httpx2.Timeout(_CONNECT_S, read=seconds + _SPARE_S),
        trust_env=False,
    )

    def made(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return client

    url = server.url.partition("#")[0]
    if urlsplit(url).path.rstrip("/").endswith(_SSE):
        streams: Any = sse_client(url, httpx_client_factory=made)
    else:
        streams = streamable_http_client(url, http_client=client)
    async with (
        contextlib.aclosing(client),
        streams as (read, write),
        ClientSession(
            read,
            write,
            client_info=types.Implementation(name="qwen-proxy", version=__version__),
        ) as session,
    ):
        yield session


class _Transport(httpx2.AsyncBaseTransport):
    """Carries requests to one target, by an address that was checked, within bounds.

    Attributes:
        refusal: why no connection was made, or None.
        status: of the last answer that was a failure, or 0.
    """

    def __init__(self, target: Target, resolve: Resolve, trusted: ssl.SSLContext) -> None:
        self.refusal: NotAllowed | None = None
        self.status = 0
        self._target = target
        self._resolve = resolve
        self._address = ""
        self._left = _MOST_BYTES
        self._inner = httpx2.AsyncHTTPTransport(trusted, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the target."""
        url, target = request.url, self._target
        port = url.port or (443 if url.scheme == "https" else 80)
        host = url.raw_host.decode("ascii").rstrip(".")  # `host` would be bücher.example
        if (url.scheme, host, port) != (target.scheme, target.host, target.port):
            raise httpx2.UnsupportedProtocol("it leads to another server", request=request)
        if not self._address:
            self._address = await self._checked()
        extensions = {**request.extensions, "sni_hostname": target.host}
        if request.method == "DELETE":
            extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), _FAREWELL_S)
        sent = httpx2.Request(
            request.method,
            url.copy_with(host=self._address),
            headers=request.headers,  # with the name as `Host`
            stream=request.stream,
            extensions=extensions,
        )
        response = await self._inner.handle_async_request(sent)
        # A refused GET only means that the server tells nothing unasked.
        if response.status_code >= 400 and request.method == "POST":
            self.status = response.status_code
        if response.headers.get("Content-Encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("it packs its answers, unasked", request=request)
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_Bounded(response, self._take),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise httpx2.ReadError(f"it sends more than {_MOST_BYTES // 1024**2} MiB")

    async def _checked(self) -> str:
        """An address of the target that may be connected to."""
        target = self._target
        try:
            found = await self._resolve(target.host, target.port)
        except (OSError, UnicodeError):
            raise httpx2.ConnectError(f"no address of {target.host} is known") from None
        why = "has no address"
        for address in found:
            why = addresses.refusal(address, private=target.private, here=target.here)
            if not why:
                return address
        self.refusal = NotAllowed(
            f"This server does not connect to {target.host}: its address {why}. (Only a host that "
            "the operator names in full may be in a private network.)"
        )
        raise self.refusal


class _Bounded(httpx2.AsyncByteStream):
    """The body of an answer, as far as it may go."""

    def __init__(self, response: httpx2.Response, take: Callable[[int], None]) -> None:
        self._response = response
        self._take = take

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = self._response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        async for piece in stream:
            self._take(len(piece))
            yield piece

    async def aclose(self) -> None:
        await self._response.aclose()
