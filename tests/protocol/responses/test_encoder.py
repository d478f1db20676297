"""Chunks of chat encoded as events of a response."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response

from qwen_wsgi.errors import (
    ApiError,
    BadRequest,
    Overloaded,
    Unauthorized,
    UpstreamError,
    UpstreamTimeout,
)
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.encoder import COMMENT
from qwen_wsgi.protocol.responses import whole
from qwen_wsgi.protocol.responses.content import unpack_thinking
from tests.protocol.responses.support import (
    EVENTS,
    ID,
    MODEL,
    STEM,
    Event,
    answered,
    call,
    chunk,
    encoder,
    read,
    request,
    types,
    usage_chunk,
)

FUNCTION: Any = {"type": "function", "name": "f"}
CUSTOM: Any = {"type": "custom", "name": "apply_patch"}

USUAL = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Let me "}),
    chunk({"reasoning_content": "think."}),
    chunk({"content": "I "}),
    chunk({"content": "look."}),
    chunk(call("", id="call_a", type="function", name="f")),
    chunk(call('{"p":')),
    chunk(call("1}")),
    chunk({}, "tool_calls"),
    usage_chunk(
        prompt_tokens_details={"cached_tokens": 4, "cache_write_tokens": 2},
        completion_tokens_details={"reasoning_tokens": 3},
    ),
]


def test_the_order_of_events() -> None:
    events, _ = answered(USUAL, request("hi", tools=[FUNCTION]))
    assert types(events) == [
        *("created", "in_progress"),
        *("output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
        *("output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_the_whole_response() -> None:
    events, response = answered(USUAL, request("hi", tools=[FUNCTION]))
    assert response["output"] == [
        {
            "id": f"rs_{STEM}_0",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "Let me think."}],
            "status": "completed",
        },
        {
            "id": f"msg_{STEM}_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
            ],
        },
        {
            "id": f"fc_{STEM}_2",
            "type": "function_call",
            "status": "completed",
            "arguments": '{"p":1}',
            "call_id": "call_a",
            "name": "f",
        },
    ]
    assert response["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 16,
    }
    assert (response["id"], response["status"], response["model"]) == (ID, "completed", MODEL)
    assert events[-1]["response"] == response
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["usage"] is None


def test_the_official_sdk_puts_the_same_together() -> None:
    speaks = encoder(request("hi", tools=[FUNCTION, CUSTOM]))
    more = [chunk(call('{"input":"x\\ny"}', 1, id="call_b", name="apply_patch"))]
    encoded = (
        b"".join(speaks.feed(each) for each in [*USUAL[:-2], *more, *USUAL[-2:]]) + speaks.end()
    )
    reader: Any = ResponseStreamState(text_format=omit, input_tools=[FUNCTION, CUSTOM])
    for event in read(encoded):
        reader.handle_event(EVENTS.validate_python(event))
    assert speaks.response is not None
    assert reader._completed_response.output_text == "I look."
    assert [item.id for item in reader._completed_response.output] == [
        item["id"] for item in speaks.response["output"]
    ]


def test_events_come_with_the_chunk_that_tells_them() -> None:
    speaks = encoder()
    assert types(read(speaks.feed(USUAL[0]))) == ["created", "in_progress"]
    assert types(read(speaks.feed(USUAL[1])))[-1] == "reasoning_summary_text.delta"
    encoded = speaks.feed(USUAL[2])
    assert json.loads(encoded.split(b"data: ")[1])["delta"] == "think."
    assert speaks.response is None


TEXT_CHUNK = chunk({"content": "X"})
THOUGHT_CHUNK = chunk({"reasoning_content": "X"})


def like(template: bytes, *texts: bytes) -> list[bytes]:
    """Chunks that differ in their text, given as it stands in JSON."""
    return [template.replace(b'"X"', b'"%b"' % text) for text in texts]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("template", [TEXT_CHUNK, THOUGHT_CHUNK])
def test_chunks_that_differ_in_their_text_only(template: bytes, together: bool) -> None:
    """They are told without being parsed, and mean what they would have meant."""
    texts = (rb"a\n", "é\\u00e9".encode(), rb"\"q\"", rb"\ud83d", rb"\ude00", rb"\\", b"}]}", b"z")
    chunks = like(template, b"first", *texts, b"last")
    speaks = encoder()
    encoded = speaks.feed(chunks[0])
    encoded += (
        speaks.feed(b"".join(chunks[1:])) if together else b"".join(map(speaks.feed, chunks[1:]))
    )
    encoded += speaks.end()

    events = read(encoded, typed=False)
    deltas = [event["delta"] for event in events if event["type"].endswith("_text.delta")]
    assert deltas == ["first", "a\n", "éé", '"q"', "\ud83d", "\ude00", "\\", "}]}", "z", "last"]
    done = next(event for event in events if event["type"].endswith("_text.done"))
    assert done["text"] == 'firsta\néé"q"😀\\}]}zlast'
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.parametrize("broken", [b"a\tb", b"\xff", rb"\x", rb"\u12"])
@pytest.mark.parametrize("together", [False, True])
def test_a_chunk_that_is_no_json_is_passed_over_among_its_like(
    broken: bytes, together: bool
) -> None:
    chunks = like(TEXT_CHUNK, b"one ", b"two ", broken, b"three")
    blocks = [chunks[0], b"".join(chunks[1:])] if together else chunks

    _, response = answered(blocks)

    assert response["output"][0]["content"][0]["text"] == "one two three"


def test_what_does_more_than_add_a_text_is_looked_at() -> None:
    plain = like(TEXT_CHUNK, b"one ", b"two ")
    ends = TEXT_CHUNK.replace(b'"finish_reason":null', b'"finish_reason":"length"')
    events, response = answered([*plain, ends, usage_chunk()])

    assert response["status"] == "incomplete"
    assert response["usage"]["total_tokens"] == 16
    assert types(events)[-1] == "incomplete"
    both = chunk({"content": "X", "reasoning_content": "Y"})
    _, response = answered([both, both, *plain])
    assert [item["type"] for item in response["output"]].count("reasoning") == 2


def test_thinking_is_packed_for_who_asks() -> None:
    events, response = answered(USUAL, request("hi", include=["reasoning.encrypted_content"]))
    assert unpack_thinking(response["output"][0]["encrypted_content"]) == "Let me think."
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert done[0]["item"] == response["output"][0]


def test_an_answer_without_anything_is_complete() -> None:
    events, response = answered([])
    assert types(events) == ["created", "in_progress", "completed"]
    assert response["output"] == []


def test_a_refusal_is_a_part_of_its_own() -> None:
    events, response = answered(
        [chunk({"content": "Well"}), chunk({"refusal": "I "}), chunk({"refusal": "won't"}, "stop")]
    )
    (item,) = response["output"]
    assert [part["type"] for part in item["content"]] == ["output_text", "refusal"]
    assert item["content"][1]["refusal"] == "I won't"
    assert {"refusal.delta", "refusal.done"} <= set(types(events))
    assert [e["content_index"] for e in events if e["type"] == "response.refusal.delta"] == [1, 1]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
def test_an_answer_that_was_cut(finish: str, reason: str) -> None:
    its = request("hi", tools=[FUNCTION])
    events, response = answered(
        [chunk({"content": "I"}), chunk(call('{"p"', id="a", name="f")), chunk({}, finish)], its
    )
    assert events[-1]["type"] == "response.incomplete"
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": reason}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["output"][1]["arguments"] == '{"p"'


def test_text_that_was_cut_is_incomplete() -> None:
    _, response = answered([chunk({"content": "I"}), chunk({}, "length")])
    assert response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("finish", ["stop", "tool_calls", "eos_token", None])
def test_other_ends_are_complete(finish: str | None) -> None:
    _, response = answered([chunk({"content": "I"}), chunk({}, finish)])
    assert response["status"] == "completed"


def test_calls_at_the_same_time() -> None:
    its = request("hi", tools=[FUNCTION, {"type": "function", "name": "g"}])
    events, response = answered(
        [
            chunk(call("", 0, id="a", name="f")),
            chunk(call('{"x"', 0)),
            chunk(call("", 1, id="b", name="g")),
            chunk(call('{"y"', 1)),
            chunk(call(":1}", 0)),
            chunk(call(":2}", 1)),
            chunk({}, "tool_calls"),
        ],
        its,
    )
    assert [item["arguments"] for item in response["output"]] == ['{"x":1}', '{"y":2}']
    assert [item["call_id"] for item in response["output"]] == ["a", "b"]
    deltas = [e for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert [event["output_index"] for event in deltas] == [0, 1, 0, 1]


def test_a_call_waits_for_its_name() -> None:
    speaks = encoder()
    speaks.feed(chunk({}))
    assert speaks.feed(chunk(call('{"a"', id="a"))) == b""
    encoded = read(speaks.feed(chunk(call(":1}", name="f"))))
    assert encoded[0]["item"]["name"] == "f"
    assert encoded[1]["delta"] == '{"a":1}'


def test_a_call_without_an_id_gets_one() -> None:
    _, response = answered([chunk(call("{}", name="f"))])
    assert response["output"][0]["call_id"].startswith("call_")


def test_a_call_without_arguments_has_an_empty_object() -> None:
    events, response = answered([chunk(call("", id="a", name="f")), chunk({}, "tool_calls")])
    assert response["output"][0]["arguments"] == "{}"
    assert [e["delta"] for e in events if "delta" in e] == ["{}"]


def test_a_custom_call_is_unwrapped_while_it_grows() -> None:
    pieces = ['{"in', 'put": "*** Beg', "in\\", 'nx \\"y\\" \\ud83d', '\\ude00"', "}"]
    its = request("hi", tools=[CUSTOM])
    chunks = [chunk(call("", id="a", name="apply_patch")), *(chunk(call(p)) for p in pieces)]
    events, response = answered([*chunks, chunk({}, "tool_calls")], its)
    (item,) = response["output"]
    assert (item["type"], item["id"]) == ("custom_tool_call", f"ctc_{STEM}_0")
    assert item["input"] == '*** Begin\nx "y" \U0001f600'
    deltas = [e["delta"] for e in events if e["type"] == "response.custom_tool_call_input.delta"]
    assert deltas == ["*** Beg", "in", '\nx "y" ', "\U0001f600"]


def test_a_custom_call_that_is_no_such_object_is_told_whole() -> None:
    its = request("hi", tools=[CUSTOM])
    for arguments in ("*** Begin Patch", '{"patch": "x"}', '{"input": 5}'):
        _, response = answered([chunk(call(arguments, id="a", name="apply_patch"))], its)
        assert response["output"][0]["input"] == arguments


def test_text_after_a_call_is_another_message() -> None:
    _, response = answered(
        [chunk({"content": "a"}), chunk(call("{}", id="a", name="f")), chunk({"content": "b"})]
    )
    assert [item["type"] for item in response["output"]] == ["message", "function_call", "message"]
    assert [item["id"][-1] for item in response["output"]] == ["0", "1", "2"]


def test_thinking_under_its_other_name() -> None:
    _, response = answered([chunk({"reasoning": "hm"})])
    assert response["output"][0]["summary"][0]["text"] == "hm"


def test_a_search_that_the_host_did() -> None:
    found = {"search_results": [{"title": "A", "url": "https://example.org/a"}, {"url": 5}, 6]}
    source = {"title": "A", "url": "https://example.org/a", "start_index": 0, "end_index": 2}
    annotations = [{"type": "url_citation", "url_citation": source}, {"type": "other"}, 7]
    chunks = [
        chunk({"role": "assistant"}, search_info=found),
        chunk({"content": "hi"}),
        chunk({"annotations": annotations}, "stop", search_info=found),
    ]
    its = request("hi", include=["web_search_call.action.sources"])
    events, response = answered(chunks, its)
    search, message = response["output"]
    assert search["type"] == "web_search_call"
    assert search["action"]["sources"] == [{"type": "url", "url": "https://example.org/a"}]
    assert message["content"][0]["annotations"] == [{"type": "url_citation", **source}]
    assert "web_search_call.completed" in types(events)
    assert "output_text.annotation.added" in types(events)
    assert "sources" not in answered(chunks)[1]["output"][0]["action"]


def test_log_probabilities() -> None:
    entry = {"token": "hé", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    top = {"token": "a", "logprob": -1.5, "bytes": [97]}
    content = [{**entry, "top_logprobs": [top, None]}, {"token": 5}, None]
    choice = {"index": 0, "delta": {"content": "hé"}, "logprobs": {"content": content}}
    events, response = answered([sse.render({"choices": [choice]}), chunk({"content": "!"})])
    expected = [{**entry, "bytes": [104, 195, 169], "top_logprobs": [top]}]
    assert response["output"][0]["content"][0]["logprobs"] == expected
    encoded = [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"]
    assert encoded == [expected, []]


def test_an_impossible_token_is_told_as_json_can() -> None:
    raw = b'{"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [%s]}}]}'
    raw %= b'{"token": "a", "logprob": -1e999}'
    _, response = answered([b"data: " + raw + b"\n\n"])
    assert response["output"][0]["content"][0]["logprobs"][0]["logprob"] == -9999.0


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({"total_tokens": 5}, None),
        ({"prompt_tokens": 2, "completion_tokens": 3}, [2, 0, 0, 3, 0, 5]),
        (
            {
                "prompt_tokens": 2,
                "completion_tokens": 3,
                "total_tokens": 6,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
            [2, 0, 0, 3, 0, 6],
        ),
    ],
)
def test_usage(usage: Any, expected: list[int] | None) -> None:
    _, response = answered([chunk({"content": "a"}, "stop", usage=usage)])
    encoded = response["usage"]
    if expected is None:
        assert encoded is None
        return
    assert [
        encoded["input_tokens"],
        encoded["input_tokens_details"]["cached_tokens"],
        encoded["input_tokens_details"]["cache_write_tokens"],
        encoded["output_tokens"],
        encoded["output_tokens_details"]["reasoning_tokens"],
        encoded["total_tokens"],
    ] == expected


# --- failures and keep-alives -------------------------------------------------------------------


def failed(error: ApiError, *chunks: bytes) -> tuple[list[Event], dict[str, Any]]:
    speaks = encoder(request("hi", tools=[FUNCTION]))
    encoded = b"".join(speaks.feed(each) for each in chunks) + speaks.fail(error)
    assert speaks.response is not None
    assert speaks.feed(chunk({"content": "x"})) == speaks.end() == speaks.fail(error) == b""
    assert speaks.keep_alive("chunk") == b""
    events = read(encoded, typed=False)
    assert events[-1]["response"] == speaks.response
    return events, speaks.response


def test_a_failure_before_anything_else() -> None:
    events, response = failed(UpstreamTimeout("Too slow."))
    assert types(events) == ["created", "in_progress", "failed"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "Too slow."}
    Response.model_validate(response, strict=True)


def test_a_failure_in_the_middle_leaves_what_was_open_incomplete() -> None:
    events, response = failed(UpstreamError("Gone."), *USUAL[:7])
    assert [item["status"] for item in response["output"]] == [
        *("completed", "completed", "incomplete")
    ]
    assert response["output"][2]["arguments"] == '{"p":'
    assert types(events)[-1] == "failed"
    _, response = failed(UpstreamError("Gone."), *USUAL[:4])
    assert response["output"][1]["content"][0]["text"] == "I "


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UpstreamError("x", status=429, code="rate_limit_exceeded"), "rate_limit_exceeded"),
        (UpstreamError("x", status=429), "rate_limit_exceeded"),
        (UpstreamError("x", status=429, code="insufficient_quota"), "insufficient_quota"),
        (UpstreamError("x", status=429, type="insufficient_quota"), "insufficient_quota"),
        (BadRequest("x", code="context_length_exceeded"), "context_length_exceeded"),
        (BadRequest("x", code="content_filter"), "invalid_prompt"),
        (BadRequest("x"), "invalid_prompt"),
        (Unauthorized("x"), "server_error"),
        (Overloaded("x"), "server_error"),
        (ApiError("x"), "server_error"),
    ],
)
def test_codes_of_failures(error: ApiError, code: str) -> None:
    assert failed(error)[1]["error"] == {"code": code, "message": "x"}


def test_when_to_try_again_is_in_the_text() -> None:
    error = UpstreamError("Throttled.", status=429, retry_after_s=4.2)
    assert failed(error)[1]["error"]["message"] == "Throttled. Please try again in 5s."
    again = UpstreamError("Please try again in 9s.", status=429, retry_after_s=9)
    assert failed(again)[1]["error"]["message"] == "Please try again in 9s."


def test_keep_alives() -> None:
    speaks = encoder()
    assert speaks.keep_alive("comment") == COMMENT
    encoded = speaks.keep_alive("chunk")
    encoded += speaks.keep_alive("chunk") + speaks.keep_alive("comment")
    encoded += speaks.feed(chunk({"content": "a"})) + speaks.keep_alive("chunk") + speaks.end()
    events = read(encoded.replace(COMMENT, b""))
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "in_progress"),
        *("output_item.added", "content_part.added", "output_text.delta", "in_progress"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert speaks.ends_after_failure


def test_a_whole_completion() -> None:
    message = {
        "role": "assistant",
        "content": "I look.",
        "refusal": None,
        "reasoning_content": "Let me think.",
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"p":1}'}}
        ],
    }
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
    }
    its = request("hi", tools=[FUNCTION])
    assert whole(its, completion, id=ID, created=7, model=MODEL) == answered(USUAL, its)[1]
