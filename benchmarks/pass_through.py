"""A bare proxy of aiohttp and uvloop, which knows nothing but to hand on: what asyncio can do.

    PYTHON benchmarks/pass_through.py PORT UPSTREAM WORKERS

For the interpreter of an environment of its own, with `aiohttp` and `uvloop`; it has nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp  # type: ignore[import-not-found,unused-ignore]  # of another environment
import uvloop  # type: ignore[import-not-found,unused-ignore]  # as above
from aiohttp import web  # type: ignore[import-not-found,unused-ignore]  # as above


def application(upstream: str) -> Any:
    """The proxy: a request's body and a few headers go up, and what is read comes down at once."""
    key: Any = web.AppKey("session", object)

    async def session(app: Any) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as made:
            app[key] = made
            yield

    async def hand_on(request: Any) -> Any:
        body = await request.read()
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        url = upstream + request.path.removeprefix("/v1")
        async with request.app[key].post(url, data=body, headers=headers) as answer:
            told = {"Content-Type": answer.headers["Content-Type"]}
            if answer.content_length is not None:
                return web.Response(body=await answer.read(), status=answer.status, headers=told)
            response = web.StreamResponse(status=answer.status, headers=told)
            response.enable_chunked_encoding()
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(session)
    app.router.add_post("/v1/chat/completions", hand_on)
    return app


def main(port: int, upstream: str, workers: int) -> None:
    """Serve with so many processes, until the first one is told to stop."""
    children: list[int] = []
    for _ in range(workers):
        child = os.fork()
        if not child:
            uvloop.install()
            web.run_app(
                application(upstream),
                host="127.0.0.1",
                port=port,
                reuse_port=True,
                access_log=None,
                print=None,
                backlog=2048,
            )
            os._exit(0)
        children.append(child)

    def stop(signum: int, frame: object) -> None:
        for each in children:
            os.kill(each, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    for each in children:
        os.waitpid(each, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
