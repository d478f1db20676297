"""A WSGI application for the deployment tests: stands in for the proxy behind gunicorn and nginx.

It has what the hooks of gunicorn.conf.py look for: `extensions["qwen_wsgi"]` with `begin()`,
`close()`, `admission`, `background`, and the parts that the start-up banner reads.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

from gevent import monkey

from qwen_wsgi import settings


def say(*words: object) -> None:
    """Into the server's log."""
    print("demo:", *words, file=sys.stderr, flush=True)


class Application:
    """Routes by path; what a route does is told by its query."""

    def __init__(self) -> None:
        services: Any = SimpleNamespace(
            settings=settings.load(),
            pool=SimpleNamespace(accounts=lambda: []),
            catalogue=SimpleNamespace(models=lambda refresh: []),
            discovery=SimpleNamespace(problems=lambda: [], notes=lambda: []),
            admission=SimpleNamespace(draining=False),
            connections=SimpleNamespace(stop=lambda: None),
            guard=SimpleNamespace(needs_key=False),
            price_problem="",
            begin=lambda: None,
            background=SimpleNamespace(drain=lambda: None, stop=lambda notify: None),
            close=lambda: say("closed", os.getpid(), f"draining={services.admission.draining}"),
        )
        self.extensions = {"qwen_wsgi": services}

    def endpoints(self) -> list[str]:
        return ["GET /environ", "GET /process", "GET /slow", "GET /stream"]

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        query = dict(parse_qsl(environ.get("QUERY_STRING", "")))
        route = environ["PATH_INFO"].strip("/")
        if route == "stream":
            start("200 OK", [("Content-Type", "text/event-stream")])
            return self.stream(int(query["chunks"]), float(query["every"]))
        if route == "slow":
            time.sleep(float(query["s"]))
        status = "200 OK"
        body: Any = os.getpid()
        if route == "environ":
            body = {k: v for k, v in environ.items() if isinstance(v, str)}
        elif route == "process":
            body = {
                "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                "patched": [
                    name
                    for name in ("socket", "ssl", "threading", "queue", "time")
                    if monkey.is_module_patched(name)
                ],
            }
        elif route == "read":
            body = len(environ["wsgi.input"].read())
        elif route.endswith("files"):
            body = len(environ["wsgi.input"].read(1))
            say("files: the first byte")
            while piece := environ["wsgi.input"].read(65536):
                body += len(piece)
        elif route == "refuse":
            # As the proxy refuses: without reading the body.
            status = query["status"] + " Refused"
            body = {"error": {"message": "by the application"}}
        data = json.dumps(body).encode()
        start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
        return [data]

    def stream(self, chunks: int, every: float) -> Iterator[bytes]:
        try:
            for number in range(chunks):
                yield b"data: %d\n\n" % number
                time.sleep(every)
            yield b"data: [DONE]\n\n"
        finally:
            say("stream closed")


application = Application()
