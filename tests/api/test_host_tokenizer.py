"""QWEN_PROXY_TOKENIZER=host: the host's own tokenizer counts, where there is one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.apps import App, in_front_of
from tests.api.behind import post, sandboxed
from tests.fakes.raw_server import whole

HOST = {"QWEN_PROXY_TOKENIZER": "host"}
TEXT = "x" * 400
#: What the sandbox counts for it.
TOKENS = 104
MODEL = "qwen3.7-plus"
MESSAGES = "/v1/messages/count_tokens"
RESPONSES = "/v1/responses/input_tokens"
SAID: list[dict[str, Any]] = [{"role": "user", "content": TEXT}]
ASKED: dict[str, dict[str, Any]] = {MESSAGES: {"messages": SAID}, RESPONSES: {"input": TEXT}}
PATHS = pytest.mark.parametrize("path", ASKED)


def counted(app: App, path: str = MESSAGES, **members: Any) -> tuple[str, int]:
    response = post(app, path, {"model": MODEL, **ASKED[path], **members})
    assert response.status_code == 200, response.data
    return response.headers["x-qwen-proxy-tokens"], json.loads(response.data)["input_tokens"]


@PATHS
def test_texts_are_counted_exactly_and_once(path: str) -> None:
    with sandboxed(**HOST) as (app, sandbox):
        assert counted(app, path) == ("exact", TOKENS)
        assert counted(app, path) == ("exact", TOKENS)
        (record,) = [each for each in sandbox.settle() if each.route == "tokenizer"]
        calls = app.calls

    sent = json.loads(record.body or b"")
    assert sent["model"] == MODEL
    assert sent["input"] == {"messages": [{"role": "user", "content": TEXT}]}
    assert [call["outcome"] for call in calls] == ["complete", "complete"]


@PATHS
def test_unless_the_operator_wants_it_no_host_is_asked(path: str) -> None:
    with sandboxed() as (app, sandbox):
        assert counted(app, path)[0] == "estimated"
        assert sandbox.settle() == ()


def test_tools_and_pictures_are_estimated_beside_it() -> None:
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    image = {"type": "image", "source": {"type": "url", "url": "https://a.example/p.png"}}
    picture = [{"role": "user", "content": [image, {"type": "text", "text": TEXT}]}]
    with sandboxed(**HOST) as (app, _):
        for members in ({"tools": [tool]}, {"messages": picture}):
            how, tokens = counted(app, **members)
            assert how == "calibrated"
            assert TOKENS + 100 < tokens < TOKENS + 1500


def test_a_conversation_with_tools_is_known_better_from_its_calls() -> None:
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    body = {"model": MODEL, "max_tokens": 9, "messages": SAID, "tools": [tool]}
    with sandboxed(**HOST) as (app, sandbox):
        assert counted(app, tools=[tool])[0] == "calibrated"
        assert post(app, "/v1/messages", body).status_code == 200
        more = [*SAID, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
        assert counted(app, tools=[tool], messages=more)[0] == "calibrated"
        routes = [each.route for each in sandbox.settle()]

    assert routes.count("tokenizer") == 1


def test_roles_that_a_tokenizer_does_not_know_are_those_of_the_template() -> None:
    use = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "seen"}
    said = [*SAID, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    with sandboxed(**HOST) as (app, sandbox):
        assert counted(app, messages=said, system="Be brief.")[0] == "calibrated"
        record = sandbox.settle()[-1]

    sent = json.loads(record.body or b"")["input"]["messages"]
    assert [each["role"] for each in sent] == ["system", "user", "user"]
    assert sent[-1]["content"] == "seen"


@pytest.mark.parametrize(
    ("spec", "cause", "rests_s"),
    [("empty-404", "wrong_address", 3600), ("internal", "internal_error", 60)],
)
def test_a_host_that_fails_is_left_alone_for_a_while_and_told_of_once(
    spec: str, cause: str, rests_s: float
) -> None:
    with sandboxed(**HOST) as (app, sandbox):
        sandbox.control(faults={"tokenizer": spec})
        asked = []
        for seconds in (0, 0, rests_s - 1, 2):
            app.clock.advance(seconds)
            assert counted(app)[0] == "estimated"
            asked.append(len([each for each in sandbox.settle() if each.route == "tokenizer"]))
        chat = {"model": MODEL, "messages": SAID}
        assert post(app, "/v1/chat/completions", chat).status_code == 200
        log = app.log

    assert asked == [1, 1, 1, 2]
    assert log.count("the host's tokenizer does not answer") == 1
    assert f"cause={cause}" in log


def test_a_number_that_is_none_is_not_believed() -> None:
    answers = [whole(json.dumps({"usage": {"input_tokens": each}}).encode()) for each in (0, "5")]
    models = whole(json.dumps({"data": [{"id": MODEL}]}).encode())
    named = {"QWEN_PROXY_HOST_FAMILIES": "127.0.0.1=dashscope", **HOST}
    with in_front_of(models, *answers, **named) as (app, server):
        assert counted(app)[0] == "estimated"
        app.clock.advance(61)
        assert counted(app)[0] == "estimated"
        paths = [request.split(b" ", 2)[1] for request in server.requests]

    assert paths == [b"/v1/models", b"/api/v1/tokenizer", b"/api/v1/tokenizer"]


@pytest.mark.parametrize("family", ["coding-plan", "token-plan", "portal", "other"])
def test_hosts_without_one_are_not_asked(family: str) -> None:
    named = {"QWEN_PROXY_HOST_FAMILIES": f"127.0.0.1={family}", **HOST}
    models = whole(json.dumps({"data": [{"id": MODEL}]}).encode())
    with in_front_of(models, **named) as (app, server):
        assert counted(app)[0] == "estimated"
        assert all(b"tokenizer" not in request for request in server.requests)


def test_a_very_long_prompt_is_estimated() -> None:
    with sandboxed(**HOST) as (app, sandbox):
        said = [{"role": "user", "content": "word " * 250_000}]
        assert counted(app, messages=said)[0] == "estimated"
        assert sandbox.settle() == ()


def test_a_model_that_nobody_has_is_estimated() -> None:
    with sandboxed(**HOST) as (app, sandbox):
        assert counted(app, model="gpt-5")[0] == "estimated"
        assert [each.route for each in sandbox.settle() if each.route != "models"] == []
