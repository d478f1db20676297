"""Properties of every answer and every request."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.completion import Completion
from qwen_wsgi.protocol.encoder import COMMENT
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.responses import parse_request, previous_of, whole
from tests.kit.properties import examples
from tests.protocol.responses.support import (
    ID,
    MODEL,
    answered,
    call,
    chunk,
    encoder,
    read,
    request,
    usage_chunk,
)

EXAMPLES = examples(120)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
SPACE = {"type": "namespace", "name": "mail", "description": "d"}
TOOLS = [
    {"type": "function", "name": "f"},
    {"type": "custom", "name": "apply_patch"},
    {**SPACE, "tools": [{"type": "function", "name": "send"}]},
]
ITS = request("hi", tools=TOOLS)
NAMES = ("f", "apply_patch", "mail__send")


@st.composite
def completions(draw: st.DrawFn) -> dict[str, Any]:
    """A whole answer of chat."""
    message: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | TEXTS)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(TEXTS)
    calls = []
    for number in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(NAMES))
        value: Any = draw(st.dictionaries(TEXTS, TEXTS, max_size=2))
        if name == "apply_patch":
            value = {"input": draw(TEXTS)}
        function = {"name": name, "arguments": compact(value)}
        calls.append({"id": f"call_{number}", "type": "function", "function": function})
    if calls:
        message["tool_calls"] = calls
    finish = draw(st.sampled_from(["length", "tool_calls" if calls else "stop"]))
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"choices": [choice], "usage": usage}


def deltas_of(draw: st.DrawFn, message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message as deltas, its texts cut anywhere, its calls told at the same time."""
    deltas: list[dict[str, Any]] = []
    for name in ("reasoning_content", "content"):
        deltas += [{name: piece} for piece in cut(draw, message.get(name) or "")]
    calls = message.get("tool_calls") or []
    for index, each in enumerate(calls):
        name = each["function"]["name"]
        deltas.append(call("", index, id=each["id"], type="function", name=name))
    waiting = [
        [call(piece, index) for piece in cut(draw, each["function"]["arguments"])]
        for index, each in enumerate(calls)
    ]
    while any(waiting):
        queue = draw(st.sampled_from([queue for queue in waiting if queue]))
        deltas.append(queue.pop(0))
    return deltas


def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    marks = [0, *places, len(text)]
    return [text[a:b] for a, b in zip(marks, marks[1:], strict=False) if a < b]


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes]]:
    """An answer, and a way to stream it: chunks, several of them in one block at times."""
    completion = draw(completions())
    choice = completion["choices"][0]
    chunks = [chunk(delta) for delta in deltas_of(draw, choice["message"])]
    chunks += [chunk({}, choice["finish_reason"]), usage_chunk()]
    blocks = [b""]
    for each in chunks:
        blocks[-1] += each
        if draw(st.booleans()):
            blocks.append(b"")
    return completion, [block for block in blocks if block]


@EXAMPLES
@given(streams())
def test_every_way_to_stream_an_answer_ends_in_the_same_response(
    stream: tuple[dict[str, Any], list[bytes]],
) -> None:
    completion, blocks = stream
    events, response = answered(blocks, ITS)
    assert response == whole(ITS, completion, id=ID, created=7, model=MODEL)
    assert events[-1]["response"] == response


@EXAMPLES
@given(streams())
def test_events_agree_with_each_other(stream: tuple[dict[str, Any], list[bytes]]) -> None:
    events, response = answered(stream[1], ITS)
    added = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    done = {
        e["output_index"]: e["item"] for e in events if e["type"] == "response.output_item.done"
    }
    assert added == list(range(len(response["output"])))
    assert [done[index] for index in added] == response["output"]
    assert len(done) == sum(e["type"] == "response.output_item.done" for e in events)
    grown: dict[tuple[str, str], str] = {}
    for event in events:
        kind = event["type"].removeprefix("response.")
        key = (event.get("item_id", ""), kind.rpartition(".")[0])
        if kind.endswith(".delta"):
            grown[key] = grown.get(key, "") + event["delta"]
        elif kind.endswith(".done") and key in grown:
            names = ("text", "arguments", "input", "refusal")
            assert grown.pop(key) == next(event[name] for name in names if name in event)
    assert grown == {}


@EXAMPLES
@given(completions())
def test_the_output_is_the_same_message_in_the_next_turn(completion: dict[str, Any]) -> None:
    its = request("hi", tools=TOOLS, include=["reasoning.encrypted_content"])
    response = whole(its, completion, id=ID, created=7, model=MODEL)
    message = completion["choices"][0]["message"]
    outputs = [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "ok"}
        for item in response["output"]
        if "call_id" in item
    ]
    again = request([*outputs, {"role": "user", "content": "on"}], history=response["output"])
    encoded = again.chat.body["messages"]
    assert encoded[-1] == {"role": "user", "content": "on"}
    if message["content"] is None and "tool_calls" not in message:
        assert len(encoded) == 1  # thinking alone is no message
        return
    assert encoded[0] == message
    assert [each["tool_call_id"] for each in encoded[1:-1]] == [
        each["id"] for each in message.get("tool_calls", ())
    ]


# --- junk ---------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("message", "reasoning", "function_call", "function_call_output", "custom_tool_call"),
        *("custom_tool_call_output", "item_reference", "web_search_call", "local_shell_call"),
        *("shell_call_output", "compaction", "additional_tools", "input_text", "input_image"),
        *("output_text", "refusal", "input_file", "input_audio", "function", "custom"),
        *("namespace", "web_search", "allowed_tools", "json_schema", "grammar", "mcp"),
        *("user", "assistant", "system", "a", "", "auto", "required"),
    ]
)
FIELDS = st.sampled_from(
    [
        *("type", "role", "content", "text", "id", "call_id", "name", "arguments", "output"),
        *("input", "summary", "encrypted_content", "tools", "mode", "namespace", "format"),
        *("image_url", "file_id", "parameters", "action", "effort", "schema", "definition"),
        *("choices", "delta", "finish_reason", "tool_calls", "function", "index", "usage"),
        *("reasoning_content", "refusal", "annotations", "search_info", "error", "logprobs"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text()
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=25,
)
MEMBERS = st.sampled_from(
    [
        *("input", "instructions", "tools", "tool_choice", "text", "reasoning", "stream", "store"),
        *("previous_response_id", "metadata", "include", "top_logprobs", "max_output_tokens"),
        *("parallel_tool_calls", "truncation", "stream_options", "model", "user", "seed", "more"),
    ]
)
ITEMS = st.lists(st.dictionaries(FIELDS, JUNK, max_size=6), max_size=5)


@pytest.mark.timeout(300)
@examples(400)
@given(st.dictionaries(MEMBERS, JUNK, max_size=4), ITEMS | JUNK, ITEMS, st.booleans())
def test_any_request_is_refused_or_translated(
    members: dict[str, Any], input: Any, history: list[dict[str, Any]], strict: bool
) -> None:
    raw = json.dumps({"input": input, **members})
    if "Infinity" in raw:
        raw = raw.replace("-Infinity", "-1e999").replace("Infinity", "1e999")
    body = JsonObject(raw.encode())
    with contextlib.suppress(ApiError):
        previous_of(body)
    with contextlib.suppress(ApiError):
        its = parse_request(body, history=history, stored={"a": {}}, strict=strict)
        assert its.chat.body["messages"]
        assert all(text.isascii() and text.isprintable() for text in its.changed)
        assert all("," not in text for text in its.changed)


@pytest.mark.timeout(300)
@examples(400)
@given(
    st.lists(
        JUNK.map(sse.render)
        | st.dictionaries(FIELDS, JUNK).map(lambda delta: chunk(delta))
        | st.lists(JUNK, max_size=3).map(lambda calls: chunk({"tool_calls": calls}))
        | st.tuples(JUNK, JUNK).map(lambda pair: chunk({"content": "x"}, pair[0], usage=pair[1]))
        | st.binary(max_size=20).map(lambda raw: b"data: " + raw + b"\n\n"),
        max_size=6,
    ),
    st.sampled_from(["end", "fail", "beat"]),
)
def test_any_chunks_are_told_or_passed_over(chunks: list[bytes], last: str) -> None:
    speaks = encoder(ITS)
    encoded = b"".join(speaks.feed(each) for each in chunks)
    if last == "beat":
        encoded += speaks.keep_alive("chunk") + speaks.keep_alive("comment")
    encoded += speaks.fail(UpstreamError("Gone.")) if last == "fail" else speaks.end()
    events = read(encoded.replace(COMMENT, b""), typed=False)
    assert events[0]["type"] == "response.created"
    assert sum("response" in e and e["response"]["status"] != "in_progress" for e in events) == 1
    assert events[-1]["response"] == json.loads(compact(speaks.response))


@EXAMPLES
@given(streams())
def test_a_stream_and_its_completion_tell_the_same(
    stream: tuple[dict[str, Any], list[bytes]],
) -> None:
    """The same chunks put together by the chat road and told whole."""
    grown = Completion()
    for event in sse.events(b"".join(stream[1])):
        grown.add(sse.parse(event))
    completion = grown.render(id="c", model=MODEL, created=7)
    assert whole(ITS, completion, id=ID, created=7, model=MODEL) == answered(stream[1], ITS)[1]
