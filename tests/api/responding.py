"""What tests of /v1/responses share: two clients, an upstream's answers, and a request."""

from __future__ import annotations

import json
from typing import Any

from werkzeug.test import TestResponse

from tests.api.apps import App
from tests.fakes.raw_server import whole
from tests.kit.secrets import secret

ADA, BOB = secret("client-ada"), secret("client-bob")
MODELS = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def answer(text: str) -> bytes:
    """A whole chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "c", "object": "chat.completion", "created": 7, "model": "m"}
    return whole(json.dumps({**body, "choices": [choice], "usage": USAGE}).encode())


def post(app: App, *, key: str = "", **members: Any) -> TestResponse:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return app.client.post(
        "/v1/responses", json={"model": "m", "input": "Hello", **members}, headers=headers
    )
