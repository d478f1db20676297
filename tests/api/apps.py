"""The application with settings of a test, and a scripted upstream behind it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from qwen_wsgi.access.guard import Client
from qwen_wsgi.access.limits import Limits
from qwen_wsgi.app import create_app
from qwen_wsgi.logs import Formatter
from qwen_wsgi.redaction import DISCOVERED, Redaction
from qwen_wsgi.services import Services, build_services
from qwen_wsgi.tools.runner import ToolRunner
from tests.fakes.clock import FakeClock
from tests.fakes.raw_server import Answer, RawServer
from tests.fakes.upstream import settings_of
from tests.kit.described import check_described
from tests.kit.secrets import secret

LimitsOf = Callable[[Client], Limits | None]

UPSTREAM_KEY = secret("upstream-of-api")
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


class DescribedClient(FlaskClient):
    """A client whose answers are held to the description of the API."""

    #: An upstream that is none of Qwen's hosts answers as it does, and that is passed on.
    bodies_too = True

    def open(self, *args: Any, **options: Any) -> TestResponse:
        response = super().open(*args, **options)
        asked = response.request.environ
        whole = self.bodies_too and response.content_type == "application/json"
        check_described(
            asked["REQUEST_METHOD"],
            asked["PATH_INFO"],
            response.status_code,
            {name.lower(): value for name, value in response.headers},
            response.data if whole and asked["REQUEST_METHOD"] != "HEAD" else None,
        )
        return response


class App:
    """A client of the application, the application's services, and its log."""

    def __init__(
        self, client: FlaskClient, services: Services, clock: FakeClock, log: io.StringIO
    ) -> None:
        self.client = client
        self.services = services
        self.clock = clock
        self._log = log

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.client.get(path, **options)

    def chat(self, body: Any = HELLO, **options: Any) -> TestResponse:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post("/v1/chat/completions", data=data, **options)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the ledger wrote of each call."""
        lines = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == "call"]

    @property
    def log(self) -> str:
        return self._log.getvalue()


@contextmanager
def running(
    clock: FakeClock | None = None,
    *,
    limits_of: LimitsOf = lambda client: None,
    state_dir: Path | None = None,
    tool_runner: ToolRunner | None = None,
    **environ: Any,
) -> Iterator[App]:
    """The application with these settings; its log is collected as JSON lines.

    Args:
        tool_runner: runs the operator's tools; None offers none.
        state_dir: None keeps all in memory, and no ledger.
    """
    clock = clock or FakeClock()
    # Without a second attempt: what one failure becomes is what most tests are about.
    defaults = {"LOG_LEVEL": "DEBUG", "QWEN_PROXY_RETRY_BUDGET": 0}
    services = build_services(
        settings_of(**{**defaults, **environ}),
        clock,
        state_dir=state_dir,
        sleep=clock.advance,
        limits_of=limits_of,
        tool_runner=tool_runner,
    )
    app = create_app(services=services)
    app.test_client_class = DescribedClient
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(
        Formatter("json", Redaction(services.settings.all_client_keys, DISCOVERED))
    )
    logging.getLogger("qwen_wsgi").handlers[:] = [handler]
    try:
        client = app.test_client()
        assert isinstance(client, DescribedClient)
        client.bodies_too = not services.settings.upstream_base_url
        yield App(client, services, clock, log)
    finally:
        services.close()


@contextmanager
def in_front_of(*answers: Answer, **environ: Any) -> Iterator[tuple[App, RawServer]]:
    """The application with one explicit upstream that answers as scripted."""
    with (
        RawServer(*answers) as server,
        running(
            QWEN_UPSTREAM_BASE_URL=server.url + "/v1",
            **{"QWEN_UPSTREAM_API_KEY": "upstream-key", **environ},
        ) as app,
    ):
        yield app, server


def error_of(response: TestResponse) -> dict[str, Any]:
    """The error of an answer in OpenAI's envelope, which is checked."""
    assert response.content_type == "application/json"
    body = json.loads(response.data)
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert response.headers["x-request-id"]
    return error
