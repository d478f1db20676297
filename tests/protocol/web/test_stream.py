"""Events of the web API as chat chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.protocol.web.errors import CHALLENGE, INTERNAL, RATE_LIMITED
from qwen_wsgi.protocol.web.stream import WebChunkStream


def event(
    content: str = "", phase: str | None = "answer", status: str = "typing", **more: Any
) -> dict[str, Any]:
    delta = {"role": "assistant", "content": content, "status": status, **more}
    if phase is not None:
        delta["phase"] = phase
    return {"choices": [{"delta": delta}]}


def stream_of() -> WebChunkStream:
    return WebChunkStream(id="chatcmpl-1", model="m", created=1, hide_usage=False)


def told(*events: Any, end: bool = True) -> tuple[list[dict[str, Any]], WebChunkStream]:
    stream = stream_of()
    data = b"".join(stream.feed(b"data: " + json.dumps(each).encode() + b"\n\n") for each in events)
    if end and not stream.done:
        data += stream.end()
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines], stream


def text_of(chunks: list[dict[str, Any]], name: str) -> str:
    return "".join(c["choices"][0]["delta"].get(name) or "" for c in chunks if c["choices"])


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("answer", "content"),
        (None, "content"),
        ("image_gen", "content"),
        ("think", "reasoning_content"),
        ("thinking_summary", "reasoning_content"),
        ("ResearchPlanning", "reasoning_content"),
    ],
)
def test_the_phase_says_what_a_text_is(phase: str | None, name: str) -> None:
    chunks, _ = told(event("a", phase), event("b"), event(status="finished"))

    assert text_of(chunks, name) == ("ab" if name == "content" else "a")


def test_a_phase_of_thoughts_has_an_end_of_its_own() -> None:
    chunks, stream = told(
        event("hm", "think"), event("", "think", "finished"), event("yes"), event(status="finished")
    )

    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert reasons == [None, None, "stop"]
    assert stream.complete


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "odd"])
def test_a_finish_reason_ends_it_as_well(reason: str) -> None:
    last = event("x")
    last["choices"][0]["finish_reason"] = reason
    chunks, stream = told(last, event("more"))

    assert chunks[-1]["choices"][0]["finish_reason"] == ("stop" if reason == "odd" else reason)
    assert text_of(chunks, "content") == "x"
    assert stream.complete


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": 3, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 1}},
        {"prompt_tokens": 3, "completion_tokens": 4},
        {"prompt_tokens": 3},
        {"input_tokens": "3", "output_tokens": True},
    ],
)
def test_usage_is_told_where_there_are_numbers(usage: dict[str, Any]) -> None:
    chunks, stream = told({**event("x"), "usage": usage}, event(status="finished"))

    if "input_tokens" in usage and usage["input_tokens"] == 3:
        assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    if len(usage) > 1 and usage.get("input_tokens") != "3":
        assert chunks[-1]["usage"]["total_tokens"] == 7
        assert stream.usage is not None
    else:
        assert stream.usage is None


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ({"ret": ["FAIL_SYS_USER_VALIDATE"], "data": {}}, CHALLENGE),
        ({"error": {"code": "RateLimited", "details": "no more"}}, RATE_LIMITED),
        (
            {"success": False, "data": {"code": "Bad_Request", "details": "internal error"}},
            INTERNAL,
        ),
    ],
)
def test_a_reported_failure_ends_it(value: dict[str, Any], cause: str) -> None:
    chunks, stream = told(event("x"), value, event("y"), event(status="finished"))

    assert text_of(chunks, "content") == "x"
    assert stream.failed
    assert stream.reported is not None
    assert stream.reported.cause == cause
    assert not stream.complete


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"response.created": {"chat_id": "c"}}],
        [event("hm", "think")],
        [event(status="finished")],
        [5, {"choices": 5}, {"choices": [{"delta": 5}]}, {"choices": [{"delta": {"content": 5}}]}],
    ],
    ids=range(5),
)
def test_without_a_word_of_an_answer_there_is_no_end(events: list[Any]) -> None:
    _, stream = told(*events)

    assert not stream.complete


def test_an_end_in_good_order_behind_a_word_is_one() -> None:
    chunks, stream = told(event("x", status=""))

    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert stream.complete


@pytest.mark.parametrize(
    "events",
    [
        [event("x")],
        [event("x"), event("", "think", "finished")],
        [event("", "think", "finished"), event("x", None)],
    ],
    ids=range(3),
)
def test_an_answer_that_is_being_typed_ends_with_its_finish_alone(events: list[Any]) -> None:
    _, stream = told(*events)
    assert not stream.complete

    chunks, stream = told(*events, event(status="finished"))
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert stream.complete


def test_done_ends_it() -> None:
    stream = stream_of()
    stream.feed(b'data: {"choices":[{"delta":{"content":"x"}}]}\r\n\r\n'.replace(b"\r", b""))
    stream.feed(b"data:[DONE]\n\n")

    assert stream.done
    assert stream.complete


def test_pages_are_told_once_in_the_form_that_dialects_know() -> None:
    found = [{"title": "T", "url": "https://a.example"}, {"url": "https://b.example"}, {"url": 5}]
    search = event(
        "", "web_search", "finished", name="web_search", extra={"web_search_info": found}
    )
    chunks, _ = told(search, search, event("x"), event(status="finished"))

    infos = [d for c in chunks if "search_info" in (d := c["choices"][0]["delta"])]
    assert [each["search_info"]["search_results"] for each in infos] == [
        [
            {"index": 1, "title": "T", "url": "https://a.example"},
            {"index": 2, "title": "https://b.example", "url": "https://b.example"},
        ]
    ]


REFUSAL = {"error": {"code": "RateLimited", "details": "no more"}}


@pytest.mark.parametrize(
    "events",
    [
        [event("a"), event("b"), REFUSAL],
        [event("a"), REFUSAL, event("b")],
        [REFUSAL],
        [event("hm", "think"), event("a"), event(status="finished")],
        [event("a"), event("b"), event("c"), event(status="finished"), event("d")],
    ],
)
def test_events_that_come_in_one_read_are_told_as_if_they_came_one_by_one(
    events: list[dict[str, Any]],
) -> None:
    expected, one_by_one = told(*events)

    stream = stream_of()
    data = stream.feed(b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in events))
    if not stream.done:
        data += stream.end()
    found = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]

    assert found == expected
    assert (stream.failed, stream.error) == (one_by_one.failed, one_by_one.error)
