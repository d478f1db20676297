"""An account's key that its upstream quotes reaches neither clients nor the log, whatever it looks
like, in every dialect."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from tests.api.apps import in_front_of
from tests.fakes.raw_server import Answer, stream, whole
from tests.kit.calls import EMBEDDINGS, GENERATIONS, Call

#: Like no vendor's keys. Its end may be shown.
KEY = "Zq9!odd/key+of=any.shape'7"
CORE = KEY[:-4]

CALLS: dict[str, Call] = {
    **GENERATIONS,
    "embeddings": EMBEDDINGS,
    "models": ("/v1/models?refresh=1", {}),
}

ERROR = {
    "message": f"Incorrect API key provided: {KEY}. {KEY}",
    "code": f"bad_{KEY}",
    "type": f"type_{KEY}",
    "param": KEY,
}
BODY = json.dumps({"error": ERROR}).encode()


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text_chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return event({"id": "c", "created": 1, "model": "m", "choices": [choice]})


FINISH = f"<429> Throttling: {'x' * 2030} key {KEY}"
ANSWERS: dict[str, Answer] = {
    "a refused key": whole(BODY, "401 Unauthorized", x_request_id=KEY.replace("!", "")),
    "a refused request": whole(BODY, "400 Bad Request"),
    "an id in the body": whole(
        json.dumps({"request_id": KEY, "message": KEY, "code": KEY}).encode(), "500 Oops"
    ),
    "a message that is no text": whole(
        json.dumps({"error": {"message": {"key": KEY}, "code": [KEY]}}).encode(), "400 Bad Request"
    ),
    "an error in a message": whole(
        json.dumps({"error": {"message": BODY.decode()}}).encode(), "400 Bad Request"
    ),
    "a page": whole(f"<html>{KEY}</html>".encode(), "502 Bad Gateway", "text/html"),
    "a content type": whole(b"no", "502 Bad Gateway", f"x/{KEY.partition('!')[0]}; a={KEY}"),
    "an error in a success": whole(BODY),
    "an error at the beginning of a stream": stream(event({"error": ERROR})),
    "an error in a stream": stream(
        text_chunk("a"), text_chunk("b"), event({"error": ERROR}), b"data: [DONE]\n\n"
    ),
    "a named event": stream(text_chunk("a"), b"event: error\ndata: " + KEY.encode() + b"\n\n"),
    "the text of an error": stream(text_chunk(FINISH, "error_finish"), b"data: [DONE]\n\n"),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("call", CALLS)
def test_a_key_of_any_shape_is_masked(call: str, answer: str) -> None:
    path, body = CALLS[call]
    method = "GET" if call == "models" else "POST"
    with in_front_of(ANSWERS[answer], QWEN_UPSTREAM_API_KEY=KEY) as (app, server):
        reply = app.client.open(path, method=method, json=body or None, buffered=False)
        shown = str(reply.status_code) + str(reply.headers)
        with suppress(ConnectionError):  # some streams are cut where they fail
            for piece in reply.iter_encoded():
                shown += piece.decode()
        reply.close()
        health = app.get("/health").text + app.get("/status").text

        assert KEY.encode() in server.requests[0]
        for part in (CORE, json.dumps(CORE)[1:-1], KEY[4:-4]):
            assert part not in shown, shown
            assert part not in app.log
            assert part not in health
