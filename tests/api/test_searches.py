"""A web search of the host in every dialect, from the request to what the client is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.behind import events_of, post, sandboxed

MODEL = "qwen3.7-plus"
TEXT = "So they say[1][2]."
TITLES = ["[sandbox] Page 1", "[sandbox] Page 2"]
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "[[sandbox: text=So they say]]"}],
    "web_search_options": {},
}
RESPONSES: dict[str, Any] = {
    "model": MODEL,
    "input": "[[sandbox: text=So they say]]",
    "tools": [{"type": "web_search"}],
    "store": False,
}
MESSAGES: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 99,
    "messages": CHAT["messages"],
    "tools": [{"type": "web_search_20250305", "name": "web_search"}],
}


@pytest.mark.parametrize("stream", [False, True])
def test_chat_has_annotations(stream: bool) -> None:
    with sandboxed() as (app, sandbox):
        response = post(app, "/v1/chat/completions", {**CHAT, "stream": stream})
        if stream:
            deltas = [each["choices"][0]["delta"] for each in events_of(response)]
            text = "".join(delta.get("content") or "" for delta in deltas)
            (found,) = (each["annotations"] for each in deltas if each.get("annotations"))
        else:
            message = json.loads(response.data)["choices"][0]["message"]
            text, found = message["content"], message["annotations"]
        sent = json.loads(sandbox.settle()[-1].body or b"")

    assert sent["search_options"]["enable_citation"] is True
    assert text == TEXT
    cited = [each["url_citation"] for each in found]
    assert [each["title"] for each in cited] == TITLES
    assert [text[each["start_index"] : each["end_index"]] for each in cited] == ["[1]", "[2]"]


@pytest.mark.parametrize("stream", [False, True])
def test_responses_have_annotations(stream: bool) -> None:
    with sandboxed() as (app, _):
        response = post(app, "/v1/responses", {**RESPONSES, "stream": stream})
        value = events_of(response)[-1]["response"] if stream else json.loads(response.data)

    search, message = value["output"]
    assert search["type"] == "web_search_call"
    (part,) = message["content"]
    assert part["text"] == TEXT
    assert [each["title"] for each in part["annotations"]] == TITLES


@pytest.mark.parametrize("stream", [False, True])
def test_messages_have_citations(stream: bool) -> None:
    with sandboxed() as (app, _):
        response = post(app, "/v1/messages", {**MESSAGES, "stream": stream})
        if stream:
            events = events_of(response)
            blocks = [e["content_block"] for e in events if e["type"] == "content_block_start"]
            for event in events:
                if event["type"] == "content_block_delta":
                    block, delta = blocks[event["index"]], event["delta"]
                    if delta["type"] == "citations_delta":
                        block.setdefault("citations", []).append(delta["citation"])
                    else:
                        block["text"] += delta["text"]
        else:
            blocks = json.loads(response.data)["content"]

    use, result, text, rest = blocks
    assert [use["type"], result["type"]] == ["server_tool_use", "web_search_tool_result"]
    assert text["text"] + rest["text"] == TEXT
    assert [each["title"] for each in text["citations"]] == TITLES


@pytest.mark.parametrize("spec", ["no-pages", "pages=0"])
def test_where_the_host_tells_no_pages_there_are_none(spec: str) -> None:
    with sandboxed() as (app, sandbox):
        sandbox.control(faults={"chat": spec})
        chat = json.loads(post(app, "/v1/chat/completions", CHAT).data)
        message = json.loads(post(app, "/v1/messages", MESSAGES).data)
        response = json.loads(post(app, "/v1/responses", RESPONSES).data)

    assert "annotations" not in chat["choices"][0]["message"]
    assert [block["type"] for block in message["content"]] == ["text"]
    assert "citations" not in message["content"][0]
    assert [item["type"] for item in response["output"]] == ["message"]
    assert response["output"][0]["content"][0]["annotations"] == []


def test_a_request_without_a_search_is_sent_and_answered_as_ever() -> None:
    with sandboxed() as (app, sandbox):
        plain = {name: value for name, value in CHAT.items() if name != "web_search_options"}
        value = json.loads(post(app, "/v1/chat/completions", plain).data)
        sent = json.loads(sandbox.settle()[-1].body or b"")

    assert value["choices"][0]["message"]["content"] == "So they say"
    assert not sent.keys() & {"enable_search", "search_options"}


# --- a search that must be made -------------------------------------------------------------------

#: A model that nothing is known of: its host is asked, and says what it has.
UNKNOWN = "qwen9-unheard-of"
FORCED = [
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "web_search"}]}, {"type": "web_search"}),
    ("/v1/responses", RESPONSES, {"type": "web_search"}),
    ("/v1/messages", MESSAGES, {"type": "tool", "name": "web_search"}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "choice"), FORCED, ids=[each[0] for each in FORCED])
def test_a_host_that_refuses_a_forced_search_gives_no_invented_answer(
    path: str, body: dict[str, Any], choice: Any, stream: bool
) -> None:
    forced = {**body, "model": UNKNOWN, "tool_choice": choice, "stream": stream}
    with sandboxed() as (app, sandbox):
        sandbox.control(models=[UNKNOWN], faults={"chat": "no-search"})
        with post(app, path, forced) as response:
            data = response.data
        sent = json.loads(sandbox.settle()[-1].body or b"")
        (call,) = app.calls

    assert sent["search_options"]["forced_search"] is True
    assert call["outcome"] == "upstream_error"
    if path == "/v1/messages":
        assert response.status_code == 200
        assert b'"web_search_tool_result_error"' in data
        assert b"So they say" not in data
        return
    assert response.status_code == 400
    error = json.loads(data)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "web_search_unavailable")
    assert error["message"].startswith("This model does not support enable_search.")


def test_one_that_is_only_offered_is_refused_as_it_is() -> None:
    with sandboxed() as (app, sandbox):
        sandbox.control(models=[UNKNOWN], faults={"chat": "no-search"})
        response = post(app, "/v1/messages", {**MESSAGES, "model": UNKNOWN})

    assert response.status_code == 400
    assert "leave the search out" in json.loads(response.data)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_several_choices_has_its_own_pages(stream: bool) -> None:
    """Each is a call of its own, with a search of its own."""
    with sandboxed() as (app, sandbox):
        response = post(app, "/v1/chat/completions", {**CHAT, "n": 2, "stream": stream})
        if stream:
            choices = [each["choices"][0] for each in events_of(response)]
            found = [c for c in choices if c["delta"].get("annotations")]
            titles = {c["index"]: c["delta"]["annotations"] for c in found}
        else:
            choices = json.loads(response.data)["choices"]
            titles = {c["index"]: c["message"]["annotations"] for c in choices}
        asked = [record for record in sandbox.settle() if record.route == "chat"]

    assert len(asked) == 2
    assert {
        index: [each["url_citation"]["title"] for each in given] for index, given in titles.items()
    } == {0: TITLES, 1: TITLES}
