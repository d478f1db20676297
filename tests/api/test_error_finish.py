"""A whole answer that is the text of an error: an error in every dialect, from any host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.apps import in_front_of
from tests.fakes.raw_server import whole

MODELS = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
THROTTLED = "Throttling.RateQuota: Requests rate limit exceeded, please try again later."
HELLO = [{"role": "user", "content": "hello"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "hello", "store": False},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/v1/completions": {"prompt": "hello"},
}
GOOD = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}


def failed(choice: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"index": index, "finish_reason": "error_finish", **choice}


BY_CHAT = failed({"message": {"role": "assistant", "content": THROTTLED}})
BY_TEXT = failed({"text": THROTTLED})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", REQUESTS)
def test_it_is_the_error_that_its_text_means(path: str, stream: bool) -> None:
    choice = BY_TEXT if path == "/v1/completions" else BY_CHAT
    answer = {"id": "c", "created": 1, "model": "m", "choices": [choice]}
    with in_front_of(MODELS, whole(json.dumps(answer).encode())) as (app, _):
        body = {"model": "m", "stream": stream, **REQUESTS[path]}
        with app.client.post(path, data=json.dumps(body).encode()) as response:
            error = json.loads(response.data)["error"]
        (call,) = app.calls

    assert response.status_code == 429
    assert error["type"] == "rate_limit_error"
    assert THROTTLED in error["message"]
    assert call["outcome"] == "upstream_error"


def test_it_may_be_the_second_of_two_choices() -> None:
    answer = {"id": "c", "choices": [GOOD, failed({"message": {"content": THROTTLED}}, 1)]}
    with in_front_of(MODELS, whole(json.dumps(answer).encode())) as (app, _):
        response = app.chat({"model": "m", "n": 2, "messages": HELLO})

    assert response.status_code == 429
