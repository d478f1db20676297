"""The application in front of the sandbox, which it takes for Model Studio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from werkzeug.test import TestResponse

from qwen_wsgi.protocol import sse
from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import App, running
from tests.fakes.clock import FakeClock


@contextmanager
def sandboxed(**environ: Any) -> Iterator[tuple[App, Sandbox]]:
    """The application with one account at a sandbox, both with the same clock."""
    clock = FakeClock()
    with (
        Sandbox(clock=clock.now) as sandbox,
        running(
            clock,
            QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
            QWEN_UPSTREAM_API_KEY="upstream-key",
            QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
            **environ,
        ) as app,
    ):
        yield app, sandbox


def post(app: App, path: str, body: Any, **options: Any) -> TestResponse:
    return app.client.post(path, data=json.dumps(body).encode(), **options)


def events_of(response: TestResponse) -> list[Any]:
    """The values of a stream's events, without `[DONE]`."""
    with response:
        assert response.status_code == 200, response.data
        return [sse.parse(event) for event in sse.events(response.data) if b"[DONE]" not in event]
