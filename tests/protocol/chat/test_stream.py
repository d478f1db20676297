"""A stream of chunks is forwarded; text is never mistaken for structure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.protocol.usage import Usage
from tests.kit.feeding import random_cuts, ways_to_cut
from tests.kit.properties import examples

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse.render({"id": "c", "object": "chat.completion.chunk", "choices": [choice], **extra})


TEXT = chunk({"content": "hi"})
FINISH = chunk({}, "stop")
USAGE_CHUNK = sse.render({"id": "c", "choices": [], "usage": USAGE})


def watch(
    *blocks: bytes, hide_usage: bool = True, normalize: bool = True
) -> tuple[bytes, ChunkStream]:
    stream = ChunkStream(hide_usage=hide_usage, normalize=normalize)
    return b"".join(stream.feed(block) for block in blocks), stream


#: For behaviour that is the same for normalized and other hosts.
EITHER = pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "as it is"])


@EITHER
@pytest.mark.parametrize("hide_usage", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_the_usage_chunk_is_hidden_from_who_did_not_ask(
    hide_usage: bool, together: bool, normalize: bool
) -> None:
    blocks = [TEXT, FINISH, USAGE_CHUNK, sse.DONE]

    out, stream = watch(
        *([b"".join(blocks)] if together else blocks), hide_usage=hide_usage, normalize=normalize
    )

    assert out == TEXT + FINISH + (b"" if hide_usage else USAGE_CHUNK)
    assert stream.usage == Usage(prompt=3, completion=2, total=5)
    assert stream.complete


@pytest.mark.parametrize(
    "text",
    ['{"usage": {"total_tokens": 5}, "choices": []}', '{"choices":[],"usage":{"total_tokens":5}}'],
)
def test_usage_is_seen_with_and_without_a_space(text: str) -> None:
    out, stream = watch(f"data: {text}\n\n".encode())

    assert out == b""
    assert stream.usage == Usage(total=5)


@EITHER
def test_usage_beside_a_finish_is_taken_from_who_did_not_ask(normalize: bool) -> None:
    out, stream = watch(TEXT, chunk({}, "stop", usage=USAGE), sse.DONE, normalize=normalize)

    assert out == TEXT + FINISH
    assert stream.usage == Usage(prompt=3, completion=2, total=5)


def test_usage_beside_a_finish_is_left_there_if_the_host_is_not_normalized() -> None:
    both = chunk({}, "stop", usage=USAGE)

    assert watch(TEXT, both, sse.DONE, hide_usage=False, normalize=False)[0] == TEXT + both


def test_a_null_usage_is_no_usage() -> None:
    out, stream = watch(chunk({"content": "x"}, usage=None))

    assert out
    assert stream.usage is None


def test_the_last_usage_counts() -> None:
    _, stream = watch(
        chunk({"content": "x"}, usage={**USAGE, "total_tokens": 4}),
        USAGE_CHUNK,
        chunk({}, usage=None),
    )

    assert stream.usage is not None
    assert stream.usage.total == 5


def test_done_is_taken_out_and_ends_what_is_listened_to() -> None:
    out, stream = watch(TEXT + FINISH + sse.DONE + TEXT)

    assert out == TEXT + FINISH
    assert stream.done


@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE] \n\n"])
def test_done_is_understood_as_servers_write_it(done: bytes) -> None:
    out, stream = watch(TEXT, FINISH, done)

    assert (out, stream.done) == (TEXT + FINISH, True)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        # finish reason, answer, [DONE] -> finished, answered, done, complete
        ([TEXT, FINISH, sse.DONE], (True, True, True, True)),
        ([TEXT, FINISH], (True, True, False, True)),
        ([TEXT, sse.DONE], (True, True, True, True)),
        ([TEXT], (False, True, False, False)),
        ([FINISH], (True, False, False, True)),
        ([sse.DONE], (False, False, True, False)),
        ([chunk({"role": "assistant", "content": ""})], (False, False, False, False)),
        ([chunk({"content": None, "reasoning_content": None})], (False, False, False, False)),
        ([chunk({"reasoning_content": "hm"})], (False, True, False, False)),
        ([chunk({"reasoning": "hm"})], (False, True, False, False)),
        ([chunk({"refusal": "no"})], (False, True, False, False)),
        (
            [chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]})],
            (False, True, False, False),
        ),
        (
            [chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]})],
            (False, True, False, False),
        ),
        (
            [chunk({"tool_calls": [{"index": 0, "function": {"arguments": None}}]})],
            (False, False, False, False),
        ),
        (
            [b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}\n\n'],
            (True, True, False, True),
        ),
        (
            [b'data: {"choices": [{"delta": {"content": ""}, "finish_reason": null}]}\n\n'],
            (False, False, False, False),
        ),
        ([chunk({"content": '"'})], (False, True, False, False)),
        ([USAGE_CHUNK, sse.DONE], (False, False, True, False)),
        ([], (False, False, False, False)),
    ],
)
def test_what_went_by_tells_whether_the_end_may_be_believed(
    blocks: list[bytes], expected: tuple[bool, bool, bool, bool]
) -> None:
    _, stream = watch(*blocks)

    assert (stream.finished, stream.answered, stream.done, stream.complete) == expected


@pytest.mark.parametrize(
    "frame",
    [
        {"error": {"message": "m", "type": "t", "param": None, "code": "c"}},
        {"error": {"message": "m"}, "choices": []},
        {"error": "m", "request_id": "r"},
        {"id": "x", "error": {"code": 429, "message": "m"}},
    ],
    ids=str,
)
def test_an_error_frame_is_noted_and_ends_the_stream(frame: dict[str, Any]) -> None:
    out, stream = watch(TEXT, FINISH, sse.render(frame) + TEXT)

    assert out == TEXT + FINISH
    assert (stream.failed, stream.error) == (True, frame["error"])
    assert not stream.complete


def test_an_error_that_is_null_is_none() -> None:
    event = chunk({"content": "x"}, error=None)

    out, stream = watch(event)

    assert (out, stream.error) == (event, None)


NATIVE = b'{"code":"InvalidParameter","message":"no","request_id":"r"}'


@pytest.mark.parametrize(
    "event",
    [
        b"event:error\ndata:" + NATIVE + b"\n\n",
        b"event: error\ndata: " + NATIVE + b"\n\n",
        b"id:1\nevent:error\n:HTTP_STATUS/400\ndata:" + NATIVE + b"\n\n",
        b"id: 1\nevent: error\n:HTTP_STATUS/400\ndata: " + NATIVE + b"\n\n",
        b"data: " + NATIVE + b"\n\n",
    ],
)
def test_a_native_error_is_an_error(event: bytes) -> None:
    out, stream = watch(TEXT, event)

    assert out == TEXT
    assert stream.error == {"code": "InvalidParameter", "message": "no"}
    assert not stream.complete


def test_an_openai_error_under_an_event_name_is_one_without_it() -> None:
    _, stream = watch(b'event: error\ndata: {"error":{"message":"m"}}\n\n')

    assert stream.error == {"message": "m"}


TRICKS = [
    '"usage":{"total_tokens":1}',
    '"usage": {',
    "[DONE]",
    "data: [DONE]",
    "\n\ndata: [DONE]\n\n",
    '"error"',
    '{"error":{"message":"m"}}',
    '"finish_reason":"stop"',
    '"content":"x"',
    "\\",
    '\\"error\\"',
    "event: error\n",
    "\r\n\r\n",
    '"code":"x","message":"y"',
]


@pytest.mark.parametrize("text", TRICKS)
@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_content_is_never_taken_for_protocol(text: str, field: str) -> None:
    event = chunk({field: text})

    out, stream = watch(event)

    assert out == event
    assert stream.answered
    assert (stream.usage, stream.error, stream.finished, stream.done) == (None, None, False, False)


@pytest.mark.parametrize("text", TRICKS)
def test_arguments_of_a_tool_call_are_never_taken_for_protocol(text: str) -> None:
    function = {"name": "f", "arguments": json.dumps({"a": text})}
    event = chunk(
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}
    )

    out, stream = watch(event)

    assert out == event
    assert (stream.usage, stream.error, stream.finished, stream.done) == (None, None, False, False)


def test_a_key_or_value_called_error_inside_a_chunk_is_no_error() -> None:
    event = chunk({"content": "x", "annotations": [{"error": "e", "usage": {"a": 1}}]}, "stop")

    out, stream = watch(event, normalize=False)

    assert out == event
    assert stream.error is None
    assert stream.usage is None


BARE = b'data: {"id":"1","choices":[{"delta":{"content":"hi"}}]}'


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (BARE + b"\n\n", BARE + b"\n\n"),
        (b": comment\n\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (BARE + b"\n\n:\n\n", BARE + b"\n\n"),
        (b": comment\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (BARE + b"\n: comment\n\n", BARE + b"\n\n"),
        (b"id: 1\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (b"id:1\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (b"id\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (BARE + b"\nid: 1\n\n", BARE + b"\n\n"),
        (b"retry: 3000\n\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (b"retry\n\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (b"event: message\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (b"event: ping\n\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (b"event: ping\n\n", b""),
        (b": keep-alive\n\n", b""),
        (b"id: 7\nevent: x\n:HTTP_STATUS/200\n" + BARE + b"\nretry: 1\n\n", BARE + b"\n\n"),
        (b"status: 200\n\n" + BARE + b"\n\n", BARE + b"\n\n"),
        (b"data: 1\ndata: 2\nid: 3\n\n", b""),
        (b"", b""),
    ],
)
def test_only_data_lines_reach_the_client(block: bytes, expected: bytes) -> None:
    """The official Python SDK fails on `id:`, `retry:` and events without data."""
    assert watch(block)[0] == expected


@pytest.mark.parametrize(
    "content",
    [": comment", "\n: comment", "\nid: 5\n", "\nretry: 5", "id", "\n\ndata: x\n\n", "\nevent: e"],
)
@pytest.mark.parametrize("beside", [b"", b": a comment\n\n", b"id: 1\n\n"])
def test_content_that_looks_like_a_field_is_left_alone(content: str, beside: bytes) -> None:
    event = sse.render({"choices": [{"delta": {"content": content}}]})

    assert watch(beside + event)[0] == event


@examples(150)
@given(texts=st.lists(st.text(max_size=8) | st.sampled_from(TRICKS), min_size=1), data=st.data())
def test_fields_between_events_never_change_the_data(texts: list[str], data: st.DataObject) -> None:
    extra = st.sampled_from(
        [b"", b": c\n", b"id: 1\n", b"retry: 2\n", b"event: e\n", b"id\n", b":\n", b"x: y\n"]
    )
    events = [chunk({"content": text}) for text in texts]
    block = b"".join(
        data.draw(extra)
        + event.removesuffix(b"\n")
        + data.draw(extra)
        + b"\n"
        + (data.draw(extra) + b"\n")
        for event in events
    )

    out, stream = watch(block)

    assert out == b"".join(events)
    assert stream.answered == any(texts)
    assert (stream.error, stream.done, stream.finished) == (None, False, False)


@pytest.mark.parametrize(
    "beside",
    [
        b": comment\n\n",
        sse.DONE,
    ],
)
def test_a_chunk_that_says_choices_twice_does_not_hide_what_is_beside_it(beside: bytes) -> None:
    event = chunk({"content": "hi", "x": {"choices": []}})

    out, stream = watch(event + beside)

    assert out == event + (FINISH if beside == sse.DONE else b"")
    assert stream.done == (beside == sse.DONE)


CHUNKS = st.lists(
    st.builds(
        lambda text, field, finish: chunk({field: text}, finish),
        st.text(max_size=8) | st.sampled_from(TRICKS),
        st.sampled_from(["content", "reasoning_content", "x"]),
        st.sampled_from([None, None, None, "stop", "length"]),
    )
    | st.just(USAGE_CHUNK)
    | st.just(b": comment\n\n"),
    max_size=8,
)


@examples(150)
@given(data=st.data(), events=CHUNKS, hide_usage=st.booleans(), crlf=st.booleans())
def test_what_a_client_gets_does_not_depend_on_how_the_bytes_came(
    data: st.DataObject, events: list[bytes], hide_usage: bool, crlf: bool
) -> None:
    upstream = b"".join(events) + sse.DONE
    if crlf:
        upstream = upstream.replace(b"\n", b"\r\n")
    whole = ChunkStream(hide_usage=hide_usage, normalize=False)
    expected = whole.feed(upstream.replace(b"\r\n", b"\n"))
    assert_whole(expected, events, usage=not hide_usage)
    pieces = data.draw(random_cuts(upstream))
    blocks = sse.EventBlocks()
    stream = ChunkStream(hide_usage=hide_usage, normalize=False)

    out = b"".join(stream.feed(block) for block in map(blocks.push, pieces) if block)

    assert out == expected
    assert stream.done
    assert (stream.usage is not None) == (USAGE_CHUNK in events)


def assert_whole(out: bytes, events: list[bytes], *, usage: bool) -> None:
    """All text in its order, then one finish, then the usage."""
    values = [sse.parse(event) for event in sse.events(out)]
    choices = [value["choices"][0] for value in values if value["choices"]]
    sent = [value["choices"][0] for value in map(sse.parse, events) if value and value["choices"]]
    for field in ("content", "reasoning_content", "x"):
        texts = ["".join(each["delta"].get(field, "") for each in part) for part in (choices, sent)]
        assert texts[0] == texts[1]
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    theirs = [choice["finish_reason"] for choice in sent if choice["finish_reason"]]
    answered = any(choice["delta"].get(field) for choice in sent for field in TEXTS)
    assert finishes == (theirs or ["stop"] * answered)[:1]
    if values and USAGE_CHUNK in events and usage and finishes:
        assert USAGE in [value.get("usage") for value in values]


TEXTS = ("content", "reasoning_content")


@pytest.mark.parametrize(
    "payload",
    [
        *("", " ", "ping", "{bad json", "[1,2]", '"text"', "5", "null", "{}", '{"usage":{'),
        *('"error"', '[DONE]x"error"', '{"type":"ping"}', '{"id":"c","usage":null}'),
        *('{"choices":null}', '{"choices":[]}', '{"choices": []}', '{"id":"c","choices":[]}'),
        *('{"choices":[null]}', '{"choices":[{}]}', '{"choices":[{"index":0,"delta":null}]}'),
        *('{"choices":[],"usage":{}}', '{"choices":[],"usage":"none"}', '{"choices":{}}'),
    ],
)
@pytest.mark.parametrize("name", ["", "event: ping\n", "event: heartbeat\nid: 4\n"])
@EITHER
@pytest.mark.parametrize("together", [True, False])
def test_an_event_that_is_no_chunk_is_swallowed(
    payload: str, name: str, normalize: bool, together: bool
) -> None:
    """openai-python and opencode end the answer at one."""
    noise = f"{name}data: {payload}\n\n".encode()
    blocks = [noise, TEXT, noise, TEXT, noise, FINISH, noise, USAGE_CHUNK, noise, sse.DONE]

    out, stream = watch(
        *([b"".join(blocks)] if together else blocks), hide_usage=False, normalize=normalize
    )

    assert out == TEXT + TEXT + FINISH + USAGE_CHUNK
    assert (stream.error, stream.usage) == (None, Usage(prompt=3, completion=2, total=5))


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ("Internal server error", "Internal server error"),
        ('{"message":"no","detail":1}', {"message": "no", "detail": 1}),
        ('{"error":{"message":"m"}}', {"message": "m"}),
    ],
)
def test_an_event_that_is_called_an_error_is_one(payload: str, error: Any) -> None:
    out, stream = watch(TEXT, f"event: error\ndata: {payload}\n\n".encode(), FINISH, sse.DONE)

    assert out == TEXT
    assert (stream.failed, stream.error, stream.complete) == (True, error, False)


# --- every choice has one finish -----------------------------------------------------------------

CALL = chunk(
    {
        "tool_calls": [
            {
                "index": 0,
                "id": "c",
                "type": "function",
                "function": {"name": "f", "arguments": "{}"},
            }
        ]
    }
)
CALLED = chunk({}, "tool_calls")


@EITHER
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([TEXT, sse.DONE], [TEXT, FINISH]),
        ([TEXT, USAGE_CHUNK, sse.DONE], [TEXT, FINISH, USAGE_CHUNK]),
        ([TEXT, CALL, sse.DONE], [TEXT, CALL, CALLED]),
        ([TEXT, CALL, USAGE_CHUNK, sse.DONE], [TEXT, CALL, CALLED, USAGE_CHUNK]),
        ([TEXT, FINISH, FINISH, USAGE_CHUNK, sse.DONE], [TEXT, FINISH, USAGE_CHUNK]),
        ([TEXT] * 9 + [sse.DONE], [TEXT] * 9 + [FINISH]),
    ],
    ids=range(6),
)
def test_a_stream_without_a_finish_gets_it_before_the_usage(
    blocks: list[bytes], expected: list[bytes], normalize: bool, together: bool
) -> None:
    """opencode repeats such a turn without end, qwen-code gives up."""
    out, stream = watch(
        *([b"".join(blocks)] if together else blocks), hide_usage=False, normalize=normalize
    )

    assert out == b"".join(expected)
    assert stream.complete


def of_choice(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return sse.render({"id": "c", "choices": [choice]})


@EITHER
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("finished", [[], [0], [1], [2, 0]])
def test_each_choice_without_a_finish_gets_one(
    finished: list[int], normalize: bool, together: bool
) -> None:
    fragment = {"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}
    blocks = [of_choice(i, {"role": "assistant", "content": "x"}) for i in range(3)]
    blocks += [of_choice(i, {"content": "y"}) for i in (0, 1, 2, 0, 1, 2)]
    blocks += [of_choice(1, {"tool_calls": [fragment]})]
    blocks += [of_choice(i, {}, "length") for i in finished]
    blocks += [USAGE_CHUNK, sse.DONE]

    out, _ = watch(
        *([b"".join(blocks)] if together else blocks), hide_usage=False, normalize=normalize
    )

    values = [sse.parse(event) for event in sse.events(out)]
    assert values[-1]["usage"] == USAGE
    ends = [
        (choice["index"], choice["finish_reason"])
        for value in values
        for choice in value["choices"]
        if choice["finish_reason"]
    ]
    owed = {0: "stop", 1: "tool_calls", 2: "stop"}
    assert dict(ends) == {**owed, **dict.fromkeys(finished, "length")}
    assert len(ends) == 3


def test_a_stream_that_breaks_off_gets_no_finish() -> None:
    for blocks in (
        [TEXT],
        [of_choice(0, {"content": "x"}), of_choice(1, {"content": "x"}, "stop")],
    ):
        out, stream = watch(*blocks)

        assert (out + stream.end(), stream.complete) == (b"".join(blocks), False)


# --- values that strictly typed clients refuse ---------------------------------------------------


@EITHER
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "odd",
    [
        {"id": None},
        {"created": "7"},
        {"created": 7.5},
        {"created": None},
        {"model": None},
        {"object": 5},
        {"usage": "none"},
        {"usage": []},
        {"choices": [{"index": "0", "delta": {"content": "x"}, "finish_reason": None}]},
        {"choices": [{"index": None, "delta": {"content": "x"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": False}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": []}]},
        {"choices": [{"index": 0, "delta": {"content": "x", "role": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "x", "role": "model"}}]},
        {"choices": [{"index": 0, "delta": {"content": "x", "role": 7}}]},
        {"choices": [{"index": 0, "delta": {"content": "x", "role": False}}]},
        {"choices": [{"index": 0, "delta": {"content": "x", "refusal": False}}]},
        {"choices": [{"index": 0, "delta": {"content": "x", "tool_calls": {}}}]},
        {"choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "x"}]}}]},
        {"choices": [{"index": 0, "delta": {"content": ["x"]}}, None, {"index": 0}]},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_brought_to_the_clients(
    odd: dict[str, Any], place: int, together: bool, normalize: bool
) -> None:
    good = {
        **{"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m"},
        "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}],
    }
    chunks: list[dict[str, Any]] = [good, good, good]
    chunks[place] = {**good, **odd}
    blocks = [sse.render(each) for each in chunks]

    out, _ = watch(
        *([b"".join(blocks)] if together else blocks), hide_usage=False, normalize=normalize
    )

    values = [sse.parse(event) for event in sse.events(out)]
    texts = [strict(value) for value in values]
    assert "".join(texts) == "xxx"


def test_a_finish_that_is_owed_is_a_chunk_also_where_the_others_are_none() -> None:
    """openai.lib.streaming skips what has no `object`."""
    bare = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
    out, _ = watch(sse.render(bare), sse.DONE)

    last = [sse.parse(event) for event in sse.events(out)][-1]
    assert last["object"] == "chat.completion.chunk"
    assert last["choices"][0]["finish_reason"] == "stop"


def strict(value: dict[str, Any]) -> str:
    """Check a chunk as the AI SDK does, and the openai package's types; return its text."""
    ChatCompletionChunk.model_validate({**value, "object": value["object"] or None} | OBJECT)
    assert isinstance(value["id"], str)
    assert type(value["created"]) is int
    assert value.get("usage") is None
    (choice,) = value["choices"]
    assert type(choice["index"]) is int
    assert choice.get("finish_reason") is None
    delta = choice["delta"]
    assert delta.get("role") in (None, "assistant")
    assert delta.get("tool_calls") is None
    return str(delta["content"])


OBJECT = {"object": "chat.completion.chunk"}


def test_thinking_among_the_parts_of_a_content_is_thinking() -> None:
    """Mistral's reasoning models."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]

    out, _ = watch(chunk({"content": parts}), chunk({"content": "Hi"}), normalize=False)

    first, second = [sse.parse(event)["choices"][0]["delta"] for event in sse.events(out)]
    assert first == {"content": None, "reasoning_content": "Hm."}
    assert second == {"content": "Hi"}


SPREAD = (
    b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":\ndata: "stop"}]}\n\n'
)


def test_json_over_two_data_lines_is_understood() -> None:
    """WHATWG HTML §9.2.6: the data lines of one event are one text, joined by LF."""
    _, stream = watch(SPREAD)

    assert stream.finished


@pytest.mark.parametrize("hide_usage", [True, False])
def test_usage_over_two_data_lines_is_understood(hide_usage: bool) -> None:
    event = b'data: {"choices":[],"usage":{\ndata: "total_tokens":5}}\n\n'

    out, stream = watch(TEXT, FINISH, event, hide_usage=hide_usage)

    assert stream.usage == Usage(total=5)
    values = [sse.parse(each) for each in sse.events(out)][2:]
    assert values == ([] if hide_usage else [{"choices": [], "usage": {"total_tokens": 5}}])


def test_the_keep_alive_chunk_is_a_chunk_that_says_nothing() -> None:
    event = chat.ChatEncoder(id="chatcmpl-1", model="m", created=7).keep_alive("chunk")

    assert sse.parse(event.strip()) == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": None}],
    }
    out, stream = watch(event)
    assert out == event
    assert (stream.answered, stream.finished) == (False, False)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"choices": []}, None),
        ({"error": None, "choices": []}, None),
        ({"error": {"message": "m"}}, {"message": "m"}),
        ({"error": "m"}, "m"),
        ({"code": "C", "message": "m", "request_id": "r"}, {"code": "C", "message": "m"}),
        ({"code": 400, "message": "m", "object": "error"}, {"code": 400, "message": "m"}),
        ({"code": "", "message": "m"}, None),
        ({"code": "C", "message": {"a": 1}}, None),
        ({"code": "C", "message": "m", "choices": []}, None),
        ({"message": "m"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_both_forms_of_an_error_are_told_from_an_answer(value: dict[str, Any], error: Any) -> None:
    assert chat.error_of(value) == error


def test_watching_keeps_up_with_a_block_of_many_events() -> None:
    block = TEXT * 20_000 + USAGE_CHUNK + sse.DONE

    out, stream = watch(block)

    assert out == TEXT * 20_000 + FINISH
    assert stream.done
    assert stream.usage is not None


def test_ways_to_cut_cover_the_whole() -> None:
    """The other tests lean on it."""
    for how, pieces in ways_to_cut(TEXT * 3):
        assert b"".join(pieces) == TEXT * 3, how
