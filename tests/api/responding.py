"""What tests of /v1/responses share: two clients, an upstream's answers, and a request."""

from __future__ import annotations

import json
from typing import Any, Final

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from werkzeug.test import TestResponse

from tests.api.apps import App
from tests.fakes.raw_server import whole
from tests.kit.secrets import secret

ADA, BOB = secret("client-ada"), secret("client-bob")
MODELS = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
EVENT: Final[TypeAdapter[Any]] = TypeAdapter(ResponseStreamEvent)
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


def response_of(answer: TestResponse) -> dict[str, Any]:
    """The response of a whole answer, which OpenAI's SDK takes."""
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.get_json()
    Response.model_validate(body)
    return body


def events_of(answer: TestResponse) -> list[dict[str, Any]]:
    """The events of a stream, which OpenAI's SDK takes, and which are numbered."""
    with answer:
        blocks = answer.data.decode().split("\n\n")
    found = [json.loads(block.split("data: ", 1)[1]) for block in blocks if "data: " in block]
    for event in found:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def kinds(response: dict[str, Any]) -> list[str]:
    """The types of the items of a response."""
    return [item["type"] for item in response["output"]]
