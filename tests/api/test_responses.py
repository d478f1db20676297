"""/v1/responses: answers, streams, errors, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import CompactedResponse
from werkzeug.test import TestResponse

from tests.api.apps import App, error_of, in_front_of
from tests.api.responding import ADA, BOB, MODELS, USAGE, answer, post
from tests.fakes.raw_server import RawServer, whole
from tests.fakes.raw_server import stream as streamed


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


GOOD_STREAM = streamed(
    event({"role": "assistant", "content": "Good "}),
    event({"content": "morning"}),
    event({}, "stop"),
    b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n",
    b"data: [DONE]\n\n",
)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Where the responses are kept."""
    return {"HOME": str(tmp_path), "QWEN_PROXY_STATE_DIR": str(tmp_path / "state")}


def made(app: App, **members: Any) -> dict[str, Any]:
    """The response to a request that succeeds."""
    found = post(app, **members)
    assert found.status_code == 200, found.data
    body: dict[str, Any] = found.get_json()
    return body


def text_of(response: dict[str, Any]) -> str:
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def events_of(response: TestResponse) -> list[dict[str, Any]]:
    """The events of a stream, which is closed then; each is named after its type."""
    found: list[dict[str, Any]] = []
    with response:
        text = response.data.decode()
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def chats(server: RawServer) -> list[dict[str, Any]]:
    """The bodies of the chats that the upstream got."""
    return [
        json.loads(request.partition(b"\r\n\r\n")[2])
        for request in server.requests
        if request.startswith(b"POST /v1/chat/completions")
    ]


# --- one answer ----------------------------------------------------------------------------------


def test_a_whole_answer(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("Good morning"), **places) as (app, server):
        response = made(app, instructions="Be short.", temperature=0)
        (line,) = app.calls

    assert (response["object"], response["status"]) == ("response", "completed")
    assert response["id"].startswith("resp_")
    assert text_of(response) == "Good morning"
    assert response["usage"]["total_tokens"] == 5
    (sent,) = chats(server)
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]
    assert sent["temperature"] == 0
    assert (line["outcome"], line["completion_tokens"], line["account"]) == (
        "complete",
        2,
        "upstream",
    )


def test_a_stream(places: dict[str, str]) -> None:
    with in_front_of(MODELS, GOOD_STREAM, **places) as (app, _):
        events = events_of(post(app, stream=True))
        kept = app.get(f"/v1/responses/{events[-1]['response']['id']}").get_json()

    assert [each["type"] for each in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed"
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Good morning"
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert kept == events[-1]["response"]


def test_a_stream_that_breaks_fails_the_response_which_is_not_kept(places: dict[str, str]) -> None:
    broken = streamed(event({"content": "Good "}), end=False)

    def cut(peer: Any) -> None:
        peer.send(broken)
        peer.close()

    with in_front_of(MODELS, cut, **places) as (app, _):
        events = events_of(post(app, stream=True))
        id = events[0]["response"]["id"]
        missing = app.get(f"/v1/responses/{id}")
        assert missing.status_code == 404
        assert error_of(missing)["param"] == "id"

    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_upstream_refuses_before_the_first_event_keeps_its_status(
    places: dict[str, str], stream: bool
) -> None:
    refusal = {"error": {"message": "no such tool", "type": "invalid_request_error", "code": "x"}}
    no = whole(json.dumps(refusal).encode(), "400 Bad Request")
    with in_front_of(MODELS, no, **places) as (app, _):
        refused = post(app, stream=stream)

        assert refused.status_code == 400
        assert "no such tool" in error_of(refused)["message"]


def test_a_request_that_cannot_be_read_is_refused_and_nobody_is_asked(
    places: dict[str, str],
) -> None:
    with in_front_of(MODELS, **places) as (app, server):
        refused = post(app, input=7)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "input")
        assert chats(server) == []


def test_tokens_are_counted_without_the_upstream(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, server):
        response = app.client.post("/v1/responses/input_tokens", json={"model": "m", "input": "Hi"})

        body = response.get_json()
        assert body["object"] == "response.input_tokens"
        assert 0 < body["input_tokens"] < 50
        assert chats(server) == []


def counted(app: App, key: str = "", **members: Any) -> tuple[int, str]:
    response = app.client.post(
        "/v1/responses/input_tokens",
        json={"model": "m", **members},
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )
    return response.get_json()["input_tokens"], response.headers["x-qwen-proxy-tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_counts_begin_at_what_the_upstream_counted(stream: bool, places: dict[str, str]) -> None:
    said = {"role": "user", "content": "Hello " * 50}
    upstreams = GOOD_STREAM if stream else answer("Good morning")
    keys = {"QWEN_PROXY_API_KEYS": f"{ADA},{BOB}"}
    with in_front_of(MODELS, upstreams, **places, **keys) as (app, server):
        number, how = counted(app, ADA, input=[said])
        post(app, key=ADA, input=[said], stream=stream).close()
        more = [said, {"role": "assistant", "content": "Good morning"}, said]
        exact = counted(app, ADA, input=[said])
        calibrated, by = counted(app, ADA, input=more)
        others = counted(app, BOB, input=[said])
        elsewhere = counted(app, ADA, input=[said], model="m2")
        assert len(chats(server)) == 1

    assert (how, number > 3) == ("estimated", True)
    assert exact == (3, "exact")
    assert by == "calibrated"
    assert number < calibrated < 3 + 2 * number
    assert others == elsewhere == (number, "estimated")


def test_a_client_that_counts_nothing_has_nothing_remembered(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("yes"), **places) as (app, _):
        made(app, input="Hello")

        assert counted(app, input="Hello")[1] == "estimated"


# --- what is kept --------------------------------------------------------------------------------


def test_a_response_is_kept_until_it_is_deleted(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("Good morning"), **places) as (app, _):
        response = made(app, metadata={"a": "b"})
        path = f"/v1/responses/{response['id']}"

        assert app.get(path).get_json() == response
        deleted = app.client.delete(path).get_json()
        assert deleted == {"id": response["id"], "object": "response", "deleted": True}
        assert app.get(path).status_code == 404
        assert app.client.delete(path).status_code == 404


def test_a_client_may_want_nothing_kept(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("Good morning"), GOOD_STREAM, **places) as (app, _):
        for stream in (False, True):
            told = post(app, store=False, stream=stream)
            response = events_of(told)[-1]["response"] if stream else told.get_json()
            assert response["store"] is False
            assert app.get(f"/v1/responses/{response['id']}").status_code == 404


def test_a_conversation_goes_on_from_a_kept_response(places: dict[str, str]) -> None:
    answers = answer("Hello Ada"), answer("You are Ada")
    with in_front_of(MODELS, *answers, **places) as (app, server):
        first = made(app, input="I am Ada")
        second = made(app, input="Who am I?", previous_response_id=first["id"])

    assert second["previous_response_id"] == first["id"]
    assert [(m["role"], m["content"]) for m in chats(server)[1]["messages"]] == [
        ("user", "I am Ada"),
        ("assistant", "Hello Ada"),
        ("user", "Who am I?"),
    ]


def test_items_of_a_kept_response_can_be_named(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("Hello Ada"), answer("Ada"), **places) as (app, server):
        first = made(app, input="I am Ada")
        named = {"type": "item_reference", "id": first["output"][-1]["id"]}
        made(app, input=[named, {"role": "user", "content": "Who am I?"}])
        unknown = post(app, input=[{"type": "item_reference", "id": "msg_nothing"}])
        assert unknown.status_code == 400

    assert [m["content"] for m in chats(server)[1]["messages"]] == ["Hello Ada", "Who am I?"]


def test_a_conversation_that_is_not_kept_cannot_go_on(places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, server):
        refused = post(app, previous_response_id="resp_nothing")

        assert refused.status_code == 400
        error = error_of(refused)
        assert error["code"] == "previous_response_not_found"
        assert error["param"] == "previous_response_id"
        assert chats(server) == []


def test_each_client_has_its_own(places: dict[str, str]) -> None:
    keys = {"QWEN_PROXY_API_KEYS": f"{ADA},{BOB}"}
    with in_front_of(MODELS, answer("Hello"), **places, **keys) as (app, _):
        path = f"/v1/responses/{made(app, key=ADA)['id']}"

        def ask(method: str, key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return app.client.open(path, method=method, headers=headers).status_code

        assert [ask("GET", BOB), ask("DELETE", BOB), ask("GET", ADA)] == [404, 404, 200]
        assert app.get(path).status_code == 401


# --- what a client may ask of a kept response ----------------------------------------------------


def test_pages_of_what_was_sent(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("Hello"), **places) as (app, _):
        texts = [{"role": "user", "content": f"text {number}"} for number in range(5)]
        path = f"/v1/responses/{made(app, input=texts)['id']}/input_items"

        def page(query: str) -> dict[str, Any]:
            body: dict[str, Any] = app.get(path + query).get_json()
            return body

        whole_list = page("?order=asc")
        ids = [item["id"] for item in whole_list["data"]]
        assert len(set(ids)) == 5
        assert (whole_list["first_id"], whole_list["last_id"]) == (ids[0], ids[-1])
        assert whole_list["has_more"] is False
        assert [item["id"] for item in page("")["data"]] == ids[::-1]
        second = page(f"?order=asc&limit=2&after={ids[1]}")
        assert [item["id"] for item in second["data"]] == ids[2:4]
        assert second["has_more"] is True
        last = page(f"?order=asc&after={ids[-1]}")
        assert (last["data"], last["first_id"], last["has_more"]) == ([], "", False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?limit=many", "limit"),
        ("?order=up", "order"),
        ("?after=msg_nothing", "after"),
    ],
)
def test_a_page_that_there_is_not(places: dict[str, str], query: str, param: str) -> None:
    with in_front_of(MODELS, answer("Hello"), **places) as (app, _):
        refused = app.get(f"/v1/responses/{made(app)['id']}/input_items{query}")

        assert (refused.status_code, error_of(refused)["param"]) == (400, param)


def test_what_only_responses_in_the_background_can(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("Hello"), **places) as (app, _):
        path = f"/v1/responses/{made(app)['id']}"

        again = app.get(path + "?stream=true")
        assert (again.status_code, error_of(again)["param"]) == (400, "stream")
        cancelled = app.client.post(path + "/cancel")
        assert cancelled.status_code == 400
        assert "synchronous" in error_of(cancelled)["message"]
        assert app.client.post("/v1/responses/resp_nothing/cancel").status_code == 404


# --- shortened conversations ---------------------------------------------------------------------


def compacted(app: App, **members: Any) -> TestResponse:
    return app.client.post("/v1/responses/compact", json={"model": "m", **members})


def test_a_conversation_is_shortened(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer("yes"), answer("A summary."), answer("on"), **places) as (
        app,
        server,
    ):
        first = made(app)
        response = compacted(app, previous_response_id=first["id"], input="And?")
        body = response.get_json()
        made(app, input=[*body["output"], {"role": "user", "content": "Go on"}], store=False)
        gone = app.get(f"/v1/responses/{body['id']}")
        sent = chats(server)

    assert response.status_code == 200
    # The package's type has no messages of the user, which OpenAI documents all the same.
    CompactedResponse.model_validate({**body, "output": body["output"][-1:]})
    assert body["object"] == "response.compaction"
    assert [item["type"] for item in body["output"]] == ["message", "message", "compaction"]
    assert body["usage"]["input_tokens"] == 3
    assert [each["content"] for each in sent[1]["messages"][:3]] == ["Hello", "yes", "And?"]
    assert [each["role"] for each in sent[2]["messages"]] == ["user"] * 4
    assert sent[2]["messages"][2]["content"].endswith("A summary.")
    assert gone.status_code == 404


def test_a_summary_that_was_not_written_is_a_failure(places: dict[str, str]) -> None:
    with in_front_of(MODELS, answer(""), **places) as (app, _):
        response = compacted(app, input="Hello")

    assert response.status_code == 502


@pytest.mark.parametrize("members", [{}, {"input": 5}, {"input": []}])
def test_nothing_can_be_shortened_of_nothing(members: Any, places: dict[str, str]) -> None:
    with in_front_of(MODELS, **places) as (app, server):
        response = compacted(app, **members)

        assert error_of(response)["param"] == "input"
        assert chats(server) == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_a_response_says_whether_it_is_stored(
    monkeypatch: pytest.MonkeyPatch, stream: bool, stored: bool
) -> None:
    """The disk may be full: the answer is good all the same, and cannot be continued by its id."""
    text = 'a text with "store":true in it'
    answer = streamed(event({"content": text}, "stop"), b"data: [DONE]\n\n")
    qwen = {"QWEN_PROXY_HOST_FAMILIES": "127.0.0.1=dashscope"}
    with in_front_of(MODELS, answer, **qwen) as (app, _):
        monkeypatch.setattr(app.services.responses, "put", lambda *_: stored)
        tool = {"type": "function", "name": "f", "parameters": {"default": {"store": True}}}
        body = {"model": "m", "input": "hi", "stream": stream, "tools": [tool]}
        with app.client.post("/v1/responses", data=json.dumps(body).encode()) as sent:
            got = sent.data

    if stream:
        last = got.decode().strip().split("\n\n")[-1].partition("data: ")[2]
        response = json.loads(last)["response"]
    else:
        response = json.loads(got)
    assert response["store"] is stored
    assert response["output"][0]["content"][0]["text"] == text
    assert response["tools"][0]["parameters"] == tool["parameters"]
