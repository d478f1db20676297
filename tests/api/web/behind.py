"""The application in front of the sandbox's web API, and callers with tokens of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from werkzeug.test import TestResponse

from qwen_wsgi.protocol.web.token import WebToken, packed
from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import App, running


class Caller:
    """Somebody with a login at the sandbox's web API."""

    def __init__(self, app: App, site: Sandbox, user: str, **more: str) -> None:
        self.app = app
        self.session = site.web.token(user)
        self.token = packed(WebToken(self.session, more.pop("cookies", "")))
        self.headers = {"Authorization": f"Bearer {self.token}", **more}

    def chat(self, text: str = "hello", **members: Any) -> TestResponse:
        body = {"model": "qwen3-max", "messages": [{"role": "user", "content": text}], **members}
        return self.post("/v1/chat/completions", body)

    def post(self, path: str, body: Any, **headers: str) -> TestResponse:
        data = json.dumps(body).encode()
        return self.app.client.post(path, data=data, headers={**self.headers, **headers})

    def get(self, path: str) -> TestResponse:
        return self.app.client.get(path, headers=self.headers)

    def delete(self, body: Any) -> TestResponse:
        data = json.dumps(body).encode()
        return self.app.client.delete("/v1/chats/delete", data=data, headers=self.headers)


@contextmanager
def web_app(**environ: Any) -> Iterator[tuple[App, Sandbox]]:
    """The application with web tokens on, in front of a sandbox."""
    with (
        Sandbox() as site,
        running(QWEN_PROXY_WEB=1, QWEN_WEB_BASE_URL=site.origin, **environ) as app,
    ):
        site.web.clock = app.clock.now
        yield app, site


def routes(site: Sandbox) -> list[str]:
    """What was asked for, in order."""
    return [f"{each.method} {each.route}" for each in site.settle()]
