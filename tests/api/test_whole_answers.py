"""Whole answers that are too large to become events, or whose JSON is of an uncommon kind."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import pytest

from tests.api.apps import error_of, in_front_of
from tests.fakes.raw_server import COMPLETION, whole
from tests.kit.calls import GENERATIONS

#: Where a whole answer is turned into events.
AS_EVENTS = [name for name in GENERATIONS if "streamed" in name or name == "responses, whole"]
MODELS = whole(b'{"object":"list","data":[{"id":"m"}]}')


def completion(content: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "text": content}
    return json.dumps({**COMPLETION, "choices": [{**choice, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize("name", AS_EVENTS)
def test_7_mib_in_one_piece_are_too_much_for_events(name: str) -> None:
    path, body = GENERATIONS[name]
    with in_front_of(MODELS, whole(completion("x" * (7 << 20)))) as (app, server):
        response = app.client.post(path, data=json.dumps(body).encode())
        assert response.status_code == 502
        assert response.headers["x-should-retry"] == "false"
        if path == "/v1/messages":
            assert response.json is not None
            assert response.json["type"] == "error"
            error = response.json["error"]
            assert error["type"] == "api_error"
        else:
            error = error_of(response)
            assert error["code"] == "upstream_too_large"
        assert len(server.requests) == 2, "nobody is asked again"
    assert "in one piece of more than 4 MiB" in error["message"]
    assert "Ask for less at a time" in error["message"]


def _no_json(name: str) -> NoReturn:
    raise ValueError(name)


def read(data: bytes) -> Any:
    """As strict clients read JSON."""
    return json.loads(data, parse_constant=_no_json)


@pytest.mark.parametrize("alias", ["", "mine=m"], ids=["untouched", "renamed"])
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("NaN", None),
        ("[-Infinity]", [None]),
        ('[NaN,"\\ud83d"]', [None, "\ud83d"]),
        ('"\\ud83d"', "\ud83d"),
        ("36893488147419103233", 36893488147419103233),
        ("[1.0,1,1e2,1e-7]", [1.0, 1, 100.0, 1e-7]),
    ],
)
def test_numbers_and_texts_of_uncommon_kinds_reach_the_client_as_json(
    written: str, value: Any, alias: str
) -> None:
    answer = completion("hi").replace(b'"object"', b'"more":%b,"object"' % written.encode())
    model = "mine" if alias else "m"
    with in_front_of(MODELS, whole(answer), QWEN_PROXY_MODEL_ALIASES=alias) as (app, _):
        response = app.chat({"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert response.status_code == 200
    found = read(response.data)
    assert (found["more"], found["model"]) == (value, model)
    assert repr(found["more"]) == repr(value)  # 1.0 is not 1


def test_a_number_too_large_for_one_keeps_its_text_where_nothing_is_changed() -> None:
    answer = completion("hi").replace(b'"object"', b'"more":1e400,"object"')
    with in_front_of(MODELS, whole(answer)) as (app, _):
        assert b'"more":1e400' in app.chat().data


def test_what_comes_as_a_stream_and_is_kept_is_json_as_well() -> None:
    chunk = completion("hi").replace(b'"message"', b'"logprobs":{"content":[1e400]},"delta"')
    stream = whole(b"data: %b\n\ndata: [DONE]\n\n" % chunk, content_type="text/event-stream")
    with in_front_of(MODELS, stream, QWEN_PROXY_UPSTREAM_STREAM="always") as (app, _):
        response = app.chat()
    assert response.status_code == 200, response.data
    assert read(response.data)["choices"][0]["logprobs"]["content"] == [None]


def test_what_only_the_standard_library_reads_may_have_2_mib() -> None:
    for size, status in ((1 << 19, 200), (3 << 19, 502)):
        answer = completion("x" * size + "\ud83d")
        with in_front_of(MODELS, whole(answer)) as (app, _):
            response = app.chat()
            assert response.status_code == status
    error = error_of(response)
    assert error["code"] == "upstream_too_large"
    assert "unpaired surrogates" in error["message"]


def test_values_of_many_parts_of_a_call_are_counted_together() -> None:
    """Each has a tenth of the bytes that one answer may have."""
    row = b'{"index":%d,"embedding":[0.5]}'
    rows = b",".join(row % i for i in range(10))
    more = b"[" + b"[]," * 30_000 + b"0]"
    answer = whole(b'{"data":[' + rows + b'],"usage":{},"more":%b}' % more)
    with in_front_of(
        MODELS,
        *[answer] * 20,
        QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
        QWEN_PROXY_MAX_ANSWER="2m",
    ) as (app, _):
        statuses = []
        for count in (10, 150):
            body = {"model": "text-embedding-v4", "input": ["hi"] * count}
            response = app.client.post("/v1/embeddings", data=json.dumps(body).encode())
            statuses.append(response.status_code)
    assert statuses == [200, 502]
    assert error_of(response)["code"] == "upstream_too_large"
