"""The list of models for clients of Anthropic's API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import ModelInfo

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.messages import models
from tests.api.apps import error_of, in_front_of
from tests.fakes.raw_server import whole

VERSION = {"anthropic-version": "2023-06-01"}
LISTED = [{"id": f"m{n}", "object": "model", "created": 1_700_000_000 + n} for n in range(5)]
MODELS = whole(json.dumps({"object": "list", "data": LISTED}).encode())


def page(**query: str) -> dict[str, Any]:
    return models.page(LISTED, query)


def ids(value: dict[str, Any]) -> list[str]:
    return [each["id"] for each in value["data"]]


def test_all_models_come_at_once() -> None:
    value = page()

    assert ids(value) == ["m0", "m1", "m2", "m3", "m4"]
    assert (value["first_id"], value["last_id"], value["has_more"]) == ("m0", "m4", False)
    for each in value["data"]:
        ModelInfo.model_validate(each)
    assert value["data"][1] == {
        "type": "model",
        "id": "m1",
        "display_name": "m1",
        "created_at": "2023-11-14T22:13:21Z",
        "lifecycle": "active",
        "max_input_tokens": None,
        "max_tokens": None,
    }


def test_what_is_known_of_a_model_is_told() -> None:
    entry = {"id": "q", "name": "Qwen", "context_length": 1000, "max_output_tokens": 10}
    value = models.model(entry)

    assert (value["display_name"], value["max_input_tokens"], value["max_tokens"]) == (
        "Qwen",
        1000,
        10,
    )


@pytest.mark.parametrize("created", [None, "yesterday", 1e30, -1e30, float("nan"), [], {}])
def test_a_time_that_is_none_is_the_epoch(created: Any) -> None:
    value = models.model({"id": "q", "created": created, "name": 7, "context_length": "x"})

    assert value["created_at"] == "1970-01-01T00:00:00Z"
    ModelInfo.model_validate(value)


@pytest.mark.parametrize(
    ("query", "found", "more"),
    [
        ({"limit": "2"}, ["m0", "m1"], True),
        ({"limit": "2", "after_id": "m1"}, ["m2", "m3"], True),
        ({"limit": "2", "after_id": "m3"}, ["m4"], False),
        ({"after_id": "m4"}, [], False),
        ({"limit": "2", "before_id": "m3"}, ["m1", "m2"], True),
        ({"limit": "3", "before_id": "m3"}, ["m0", "m1", "m2"], False),
        ({"before_id": "m0"}, [], False),
        ({"limit": "1000"}, ["m0", "m1", "m2", "m3", "m4"], False),
    ],
)
def test_pages(query: dict[str, str], found: list[str], more: bool) -> None:
    value = page(**query)

    assert (ids(value), value["has_more"]) == (found, more)
    assert value["first_id"] == (found[0] if found else None)
    assert value["last_id"] == (found[-1] if found else None)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "-1"},
        {"limit": "²"},
        {"limit": ""},
        {"limit": "9" * 5000},
        {"after_id": "no"},
        {"before_id": "no"},
    ],
)
def test_pages_that_cannot_be(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest) as caught:
        page(**query)
    assert caught.value.param in query


def test_the_form_follows_the_header() -> None:
    with in_front_of(MODELS) as (app, _):
        theirs = app.get("/v1/models?limit=2&after_id=m0", headers=VERSION)
        ours = app.get("/v1/models?limit=2")
        one = app.get("/v1/models/m3", headers=VERSION)

    assert ids(json.loads(theirs.data)) == ["m1", "m2"]
    assert json.loads(theirs.data)["has_more"]
    assert theirs.headers["request-id"] == theirs.headers["x-request-id"]
    assert json.loads(ours.data)["object"] == "list"
    assert len(json.loads(ours.data)["data"]) == 5
    assert "request-id" not in ours.headers
    assert ModelInfo.model_validate(json.loads(one.data)).id == "m3"


def test_a_model_that_is_not_there() -> None:
    with in_front_of(MODELS) as (app, _):
        theirs = app.get("/v1/models/nope", headers=VERSION)
        ours = app.get("/v1/models/nope")
        calls = app.calls

    body = json.loads(theirs.data)
    assert (theirs.status_code, ours.status_code) == (404, 404)
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    assert body["request_id"] == theirs.headers["request-id"]
    assert error_of(ours)["code"] == "model_not_found"
    assert [(call["outcome"], call["error"]) for call in calls] == [
        ("refused", "model_not_found"),
        ("refused", "model_not_found"),
    ]


def test_claude_code_finds_models_by_ids_in_anthropics_namespace() -> None:
    """Claude Code 2.1.332 shows what matches /claude|anthropic/i of the first 1000."""
    listed = [{"id": "qwen3.8-max", "name": "Qwen"}, {"id": "m"}, {"id": "text-embedding-v4"}]
    with in_front_of(whole(json.dumps({"data": listed}).encode())) as (app, _):
        theirs = json.loads(app.get("/v1/models?limit=1000", headers=VERSION).data)
        ours = json.loads(app.get("/v1/models").data)
        one = json.loads(app.get("/v1/models/anthropic%2Fqwen3.8-max", headers=VERSION).data)
        last = json.loads(
            app.get("/v1/models?after_id=anthropic/qwen3.8-max", headers=VERSION).data
        )
        gone = app.get("/v1/models/anthropic/gone", headers=VERSION)

    plain = ["qwen3.8-max", "m", "text-embedding-v4"]
    assert [each["id"] for each in ours["data"] if "alias_of" not in each] == plain
    assert ids(theirs) == [*ids(ours), "anthropic/qwen3.8-max", "anthropic/m"]
    assert [each["display_name"] for each in theirs["data"][-2:]] == ["Qwen", "m"]
    assert ModelInfo.model_validate(one).id == "anthropic/qwen3.8-max"
    assert ids(last) == ["anthropic/m"]
    assert gone.status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/messages", {"max_tokens": 9}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
    ],
)
def test_ids_of_the_namespace_are_understood_in_every_dialect(
    path: str, body: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    if "input" not in body and "prompt" not in body:
        body = {**body, "messages": messages}
    with in_front_of(MODELS, whole(b"", "400 X")) as (app, server):
        app.client.post(path, json={**body, "model": "anthropic/m3"})

    assert json.loads(server.requests[-1].partition(b"\r\n\r\n")[2])["model"] == "m3"


def test_a_cache_that_cannot_be_kept_alive_costs_no_call() -> None:
    with in_front_of(MODELS) as (app, server):
        response = app.client.post("/v1/messages/cache_touch", json={"model": "m1"})
        bad = app.client.post("/v1/messages/cache_touch", data=b"{")

    assert (response.status_code, bad.status_code) == (200, 400)
    assert json.loads(response.data) == {"type": "cache_touch", "touched": False}
    assert server.requests == []
