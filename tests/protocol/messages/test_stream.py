"""Chat's stream encoded as Anthropic's events, read with the official SDK."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol import sse
from tests.kit.messages_sdk import (
    Chunk,
    accumulated,
    call,
    check_order,
    chunk,
    encode,
    encoder,
    events,
    usage,
)
from tests.protocol.messages.strategies import JUNK, answers

HELLO = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"})]
HELLO += [chunk({"content": "lo"}), chunk({}, "stop"), usage()]


def one_by_one(chunks: list[Chunk]) -> list[list[Chunk]]:
    return [[each] for each in chunks]


def test_a_text() -> None:
    encoded = events(encode(one_by_one(HELLO)))

    check_order(encoded)
    assert [event["type"] for event in encoded] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert encoded[0]["message"] == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "qwen3.7-plus",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }
    assert encoded[1]["content_block"] == {"type": "text", "text": ""}
    assert encoded[2]["delta"] == {"type": "text_delta", "text": "Hel"}
    assert encoded[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_the_first_feed_says_that_a_message_begins_and_a_ping_follows() -> None:
    encoded = encoder().feed(sse.render(HELLO[0]))

    assert encoded.startswith(b"event: message_start\n")
    assert encoded.endswith(b'event: ping\ndata: {"type":"ping"}\n\n')


def test_what_a_chunk_says_is_told_in_the_same_feed() -> None:
    made = encoder()
    made.feed(sse.render(HELLO[0]))

    for text in ("eins", " zwei", "\n\n", "三", '"\\'):
        encoded = events(made.feed(sse.render(chunk({"content": text}))))
        assert encoded[-1]["delta"]["text"] == text


def test_thinking_comes_first_and_is_signed_as_our_own() -> None:
    chunks = [chunk({"reasoning_content": "Hm"}), chunk({"reasoning_content": "m."}), *HELLO]
    stream = encode(one_by_one(chunks))

    check_order(events(stream))
    assert accumulated(stream)["content"] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": "qwen-proxy"},
        {"type": "text", "text": "Hello"},
    ]


def test_thinking_between_texts_makes_blocks_of_its_own() -> None:
    chunks = [chunk({"content": "a"}), chunk({"reasoning_content": "b"}), chunk({"content": "c"})]

    assert [block["type"] for block in accumulated(encode([chunks]))["content"]] == [
        "text",
        "thinking",
        "text",
    ]


def test_vllms_name_for_thinking_is_understood() -> None:
    chunks = [chunk({"reasoning": "Hm"}), chunk({"content": "x"})]

    assert accumulated(encode([chunks]))["content"][0]["thinking"] == "Hm"


def test_parallel_tool_calls_behind_a_text() -> None:
    chunks = [
        chunk({"content": "I look."}),
        call(0, "", "call_a", "read"),
        call(0, '{"path": "a'),
        call(0, '.py"}'),
        call(1, "", "call_b", "list"),
        call(1, "{}"),
        chunk({}, "tool_calls"),
        usage(),
    ]
    stream = encode(one_by_one(chunks))

    check_order(events(stream))
    message = accumulated(stream)
    assert message["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_a", "name": "read", "input": {"path": "a.py"}},
        {"type": "tool_use", "id": "call_b", "name": "list", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"


def test_arguments_are_told_as_they_come() -> None:
    made = encoder()
    made.feed(sse.render(call(0, "", "call_a", "read")))

    for piece in ('{"path"', ': "', "a.py", '"}'):
        encoded = events(made.feed(sse.render(call(0, piece))))
        assert [event["delta"] for event in encoded] == [
            {"type": "input_json_delta", "partial_json": piece}
        ]


def test_calls_that_take_turns_are_told_one_after_the_other() -> None:
    chunks = [
        call(0, "", "call_a", "read"),
        call(1, "", "call_b", "list"),
        call(0, '{"path":'),
        call(1, '{"dir":'),
        call(1, '"/"}'),
        call(0, '"x"}'),
        chunk({}, "tool_calls"),
    ]
    stream = encode(one_by_one(chunks))

    check_order(events(stream))
    assert [block["input"] for block in accumulated(stream)["content"]] == [
        {"path": "x"},
        {"dir": "/"},
    ]


def test_a_call_that_is_whole_is_ended_when_the_next_begins() -> None:
    made = encoder()
    made.feed(sse.render(call(0, '{"a":1}', "call_a", "read")))
    encoded = events(made.feed(sse.render(call(1, "", "call_b", "list"))))

    assert [(event["type"], event["index"]) for event in encoded] == [
        ("content_block_stop", 0),
        ("content_block_start", 1),
    ]


def test_a_text_after_half_a_call_waits_for_the_other_half() -> None:
    chunks = [call(0, '{"a":', "call_a", "read"), chunk({"content": "so"}), call(0, "1}")]
    stream = encode(one_by_one([*chunks, chunk({}, "tool_calls")]))

    check_order(events(stream))
    assert accumulated(stream)["content"] == [
        {"type": "tool_use", "id": "call_a", "name": "read", "input": {"a": 1}},
        {"type": "text", "text": "so"},
    ]


def test_a_call_waits_for_its_name_and_gets_an_id_if_none_comes() -> None:
    late = {"index": 0, "id": "call_late", "function": {"name": "list", "arguments": "{}"}}
    chunks = [
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ""}}]}),
        chunk({"tool_calls": [late]}),
    ]
    assert accumulated(encode(one_by_one(chunks)))["content"][0]["id"] == "call_late"

    nameless = chunk({"tool_calls": [{"index": 0, "function": {"name": "x", "arguments": "{}"}}]})
    (block,) = accumulated(encode([[nameless]]))["content"]
    assert block["id"].startswith("call_")
    assert block["name"] == "x"


def test_a_call_without_a_name_is_no_call() -> None:
    nameless = chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]})
    message = accumulated(encode([[nameless, chunk({}, "tool_calls")]]))

    assert message["content"] == []
    assert message["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("tool_calls", "end_turn"),
        ("an unknown word", "end_turn"),
    ],
)
def test_why_a_text_ended(finish: str, reason: str) -> None:
    assert accumulated(encode([[HELLO[1], chunk({}, finish)]]))["stop_reason"] == reason


def test_a_call_that_was_cut_off_is_no_call_to_be_made() -> None:
    message = accumulated(encode([[call(0, '{"a": "b', "i", "f"), chunk({}, "length")]]))

    assert message["stop_reason"] == "max_tokens"


def test_the_stop_sequence_is_told_where_the_upstream_tells_it() -> None:
    end = chunk({}, "stop")
    end["choices"][0]["stop_reason"] = "END"

    for stops, reason, sequence in (
        (("END",), "stop_sequence", "END"),
        (("other",), "end_turn", None),
        ((), "end_turn", None),
    ):
        message = accumulated(encode([[HELLO[1], end]], stops=stops))
        assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_usage_leaves_out_of_the_input_what_the_cache_had() -> None:
    last = usage(100, 7, cached_tokens=60, cache_write_tokens=30)
    last["usage"]["completion_tokens_details"] = {"reasoning_tokens": 5}

    assert accumulated(encode([HELLO[:-1], [last]]))["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 5},
    }


def test_usage_beside_a_choice_counts_too() -> None:
    beside = chunk({"content": "x"}, usage=usage(9, 3)["usage"])

    assert accumulated(encode([[beside]]))["usage"]["input_tokens"] == 9


def test_without_usage_nothing_is_made_up() -> None:
    delta = events(encode([HELLO[:-1]]))[-2]

    assert delta["usage"] == {"output_tokens": 0}


def test_an_answer_that_says_nothing_is_a_message_without_content() -> None:
    message = accumulated(encode([]))

    assert message["content"] == []
    assert message["stop_reason"] == "end_turn"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ApiError("no", status=502), "api_error"),
        (ApiError("no", status=503), "overloaded_error"),
        (ApiError("no", status=504), "timeout_error"),
        (ApiError("no", status=429), "rate_limit_error"),
        (BadRequest("no"), "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("feeds", [0, 2])
def test_a_failure_is_an_error_event(error: ApiError, kind: str, feeds: int) -> None:
    made = encoder()
    for each in HELLO[:feeds]:
        made.feed(sse.render(each))
    (encoded,) = events(made.fail(error))

    assert encoded == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "req_1",
    }
    assert made.ends_after_failure


def test_a_keep_alive_is_a_ping_of_either_kind() -> None:
    made = encoder()

    assert made.keep_alive("comment") == made.keep_alive("chunk")
    assert made.keep_alive("chunk") == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert events(made.keep_alive("chunk") + made.feed(sse.render(HELLO[1])))


# --- properties ---------------------------------------------------------------------------------


def cut(draw: st.DrawFn, chunks: list[Chunk]) -> list[list[Chunk]]:
    """Some chunks in groups, as they may come in one read."""
    groups: list[list[Chunk]] = [[]]
    for each in chunks:
        if draw(st.booleans()):
            groups.append([])
        groups[-1].append(each)
    return groups


@settings(deadline=None)
@given(st.data())
def test_the_message_does_not_depend_on_how_the_chunks_come(data: st.DataObject) -> None:
    chunks = data.draw(answers())
    groups = data.draw(st.composite(cut)(chunks))
    stream = encode(groups)

    encoded = events(stream)
    check_order(encoded)
    assert accumulated(stream) == accumulated(encode([chunks]))
    content = accumulated(stream)["content"]
    for kind, member in (("thinking", "reasoning_content"), ("text", "content")):
        expected = "".join(c["choices"][0]["delta"].get(member, "") for c in chunks if c["choices"])
        assert "".join(b[kind] for b in content if b["type"] == kind) == expected


@settings(deadline=None)
@given(answers())
def test_every_call_comes_whole(chunks: list[Chunk]) -> None:
    arguments: dict[str, str] = {}
    for each in chunks:
        for choice in each["choices"]:
            for fragment in choice["delta"].get("tool_calls", ()):
                name = f"call_{fragment['index']}"
                arguments[name] = arguments.get(name, "") + fragment["function"]["arguments"]
    content = accumulated(encode(one_by_one(chunks)))["content"]

    found = {block["id"]: block["input"] for block in content if block["type"] == "tool_use"}
    assert found == {name: json.loads(text) for name, text in arguments.items()}


@st.composite
def junk_chunks(draw: st.DrawFn) -> Any:
    if draw(st.booleans()):
        return draw(JUNK)
    delta = draw(
        st.dictionaries(
            st.sampled_from(["content", "reasoning_content", "tool_calls"]), JUNK, max_size=3
        )
    )
    choice = {
        "index": draw(st.sampled_from([0, None, 1])),
        "delta": delta,
        "finish_reason": draw(JUNK),
    }
    return {"choices": [choice], "usage": draw(JUNK)}


@settings(deadline=None)
@given(st.lists(junk_chunks(), max_size=6))
def test_no_chunk_makes_a_fault_or_an_order_that_no_client_takes(chunks: list[Any]) -> None:
    made = encoder()
    stream = b"".join(made.feed(sse.render(each)) for each in chunks) + made.end()

    if stream:
        check_order(events(stream))


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_make_a_fault(block: bytes) -> None:
    made = encoder()

    check_order(events(made.feed(block) + made.end()))


@settings(deadline=None)
@given(st.lists(st.sampled_from(HELLO), max_size=5), st.integers(0, 5))
def test_pings_may_come_anywhere(chunks: list[Chunk], at: int) -> None:
    made = encoder()
    stream = b""
    for index, each in enumerate(chunks):
        if index == at:
            stream += made.keep_alive("chunk")
        stream += made.feed(sse.render(each))

    check_order(events(stream + made.end()))
