"""The proxy never sends what it would refuse to take back: answers are input of the next turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import chat, messages, responses, sse
from qwen_wsgi.protocol.chat import ChunkStream, Completion, functions
from qwen_wsgi.protocol.chat.completion import mended
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.upstream.adapt import Options, Target, adapt
from tests.kit import messages_sdk
from tests.kit.properties import examples
from tests.kit.quirks import CALLS, STYLES, Call, chunk, quirky_calls, stream_of

CORPUS = Path(__file__).parents[1] / "corpus/sse"
STREAMS = [
    path
    for path in sorted(CORPUS.glob("*.sse"))
    if json.loads(path.with_suffix(".json").read_text())["completion"] is not None
]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("look", "listen", "f")]
ID = "resp_0123456789abcdef"


def body(**members: Any) -> JsonObject:
    return JsonObject(compact({"model": "qwen3.7-plus", **members}).encode())


# --- what a client makes of an answer -------------------------------------------------------------


def chat_messages(upstream: bytes, *, normalize: bool, **kind: Any) -> Iterator[dict[str, Any]]:
    """The assistant's message of each choice: summed from the stream, and of the whole answer."""
    stream = ChunkStream(hide_usage=False, normalize=normalize)
    out = stream.feed(upstream) + stream.end()
    assert stream.complete
    completion = Completion()
    for event in sse.events(out):
        completion.add(sse.parse(event))
    rendered = completion.render(id="c", model="m", created=1)
    for choice in rendered["choices"]:
        yield choice["message"]
    assert mended(rendered) is rendered
    for choice in functions.completion(rendered)["choices"]:
        yield choice["message"]


def accept_chat(message: dict[str, Any]) -> None:
    """Take a message back with the results of its calls, and adapt it for a Qwen host."""
    calls = message.get("tool_calls") or []
    assert len({call["id"] for call in calls}) == len(calls)
    for call in calls:
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
    if (function := message.get("function_call")) is not None:
        assert isinstance(json.loads(function["arguments"]), dict)
        results.append({"role": "function", "name": function["name"], "content": "ok"})
    history = [{"role": "user", "content": "hi"}, message, *results]
    history.append({"role": "user", "content": "go on"})
    request = chat.parse_request(body(messages=history, tools=TOOLS))
    for family in (Family.DASHSCOPE, Family.OTHER):
        target = Target(family=family, model="qwen3.7-plus")
        adapt(request, target, Options(strict=False), stream=True)


def accept_messages(upstream: bytes, *, normalize: bool) -> None:
    """Take the content back that Anthropic's dialect makes of a stream, and of the whole answer."""
    stream = ChunkStream(hide_usage=False, normalize=normalize)
    out = stream.feed(upstream) + stream.end()
    encoder = messages_sdk.encoder()
    streamed = messages_sdk.accumulated(encoder.feed(out) + encoder.end())
    completion = Completion()
    for event in sse.events(out):
        completion.add(sse.parse(event))
    first = messages.parse_request(_anthropic([]))
    whole = messages.whole(first, completion.render(id="c", model="m", created=1), id="msg_1")
    ids = []
    for content in (streamed["content"], whole["content"]):
        used = [block["id"] for block in content if block["type"] == "tool_use"]
        assert len(set(used)) == len(used)
        results = [{"type": "tool_result", "tool_use_id": id, "content": "ok"} for id in used]
        turn = [{"role": "assistant", "content": content}] if content else []
        turn.append({"role": "user", "content": [*results, {"type": "text", "text": "go on"}]})
        messages.parse_request(_anthropic(turn))
        ids.append(used)
    assert ids[0] == ids[1]


def _anthropic(turn: list[dict[str, Any]]) -> JsonObject:
    return body(max_tokens=9, messages=[{"role": "user", "content": "hi"}, *turn])


def accept_responses(upstream: bytes, *, normalize: bool) -> None:
    """Take the output items back that Responses makes of a stream, and of the whole answer."""
    stream = ChunkStream(hide_usage=False, normalize=normalize)
    out = stream.feed(upstream) + stream.end()
    first = _responses([{"role": "user", "content": "hi"}])
    encoder = responses.ResponseEncoder(first, id=ID, created=1, model="m")
    encoder.feed(out)
    encoder.end()
    assert encoder.response is not None
    completion = Completion()
    for event in sse.events(out):
        completion.add(sse.parse(event))
    value = completion.render(id="c", model="m", created=1)
    whole = responses.whole(first, value, id=ID, created=1, model="m")
    ids = []
    for response in (encoder.response, whole):
        output = response["output"]
        called = [item["call_id"] for item in output if item["type"] == "function_call"]
        assert len(set(called)) == len(called)
        results = [{"type": "function_call_output", "call_id": id, "output": "ok"} for id in called]
        _responses([{"role": "user", "content": "hi"}, *output, *results])
        ids.append(sorted(called))
    assert ids[0] == ids[1]


def _responses(items: list[dict[str, Any]]) -> responses.ResponsesRequest:
    return responses.parse_request(body(input=items), history=(), stored={}, seed=ID, strict=False)


def accept_all(upstream: bytes, *, normalize: bool) -> None:
    for message in chat_messages(upstream, normalize=normalize):
        accept_chat(message)
    accept_messages(upstream, normalize=normalize)
    accept_responses(upstream, normalize=normalize)


# --- for every answer -----------------------------------------------------------------------------

HOSTS = pytest.mark.parametrize("normalize", [True, False], ids=["a Qwen host", "another host"])


@HOSTS
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_an_answer_of_the_corpus_is_input_of_the_next_turn(path: Path, normalize: bool) -> None:
    accept_all(path.read_bytes().replace(b"\r\n", b"\n"), normalize=normalize)


@HOSTS
@examples(60)
@given(calls=CALLS, style=st.sampled_from(sorted(STYLES)), text=st.text(max_size=5), data=st.data())
def test_a_generated_answer_is_input_of_the_next_turn(
    normalize: bool, calls: list[Call], style: str, text: str, data: st.DataObject
) -> None:
    chunks = data.draw(quirky_calls(calls, style))
    if data.draw(st.booleans()):
        del chunks[-1]  # the finish
    words = [chunk({"reasoning_content": text}), chunk({"content": text})]

    accept_all(stream_of(*words, *chunks, sse.DONE), normalize=normalize)
