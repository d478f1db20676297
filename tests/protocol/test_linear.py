"""Each list that a client or an upstream controls costs in proportion to its length, and not to its
square.

Measured as a ratio: four times the length takes about four times as long, and not sixteen times.
Absolute times are never compared. What looks worse is measured again, and the smallest times count.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import changes, messages, responses, sse, tokens
from qwen_wsgi.protocol.chat import ChatRequest, ChunkStream, Completion, parse_request
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.transcription.answer import Transcript
from qwen_wsgi.upstream.adapt import Options, Target, adapt

pytestmark = pytest.mark.once

Json = dict[str, Any]

#: A square of this is seen, and what is linear takes some tenths of a second.
COUNT = 8_000
RUNS = 3

TARGET = Target(Family.DASHSCOPE, "qwen3.7-plus")
TEXT_MODEL = Target(Family.DASHSCOPE, "qwen3-coder-plus")
OTHER = Target(Family.OTHER, "m")


def body_of(value: Json) -> JsonObject:
    return JsonObject(json.dumps(value).encode())


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def call(index: int) -> Json:
    return {"id": f"call_{index}", "type": "function", "function": {"name": "f", "arguments": ""}}


def tool(index: int) -> Json:
    return {"type": "function", "function": {"name": f"tool {index}", "parameters": {}}}


CHAT: dict[str, Callable[[int], Json]] = {
    "messages": lambda n: {"messages": [user("a")] * n},
    "turns": lambda n: {"messages": [user("a"), {"role": "assistant", "content": "b"}] * n},
    "systems": lambda n: {"messages": [{"role": "system", "content": "a"}] * n + [user("a")]},
    "parts": lambda n: {"messages": [user([{"type": "text", "text": "a"}] * n)]},
    "pictures": lambda n: {
        "messages": [user([{"type": "image_url", "image_url": {"url": "data:,"}}] * n)]
    },
    "calls": lambda n: {
        "messages": [
            user("a"),
            {"role": "assistant", "tool_calls": [call(i) for i in range(n)]},
            *({"role": "tool", "tool_call_id": f"call_{i}", "content": "x"} for i in range(n)),
            user("b"),
        ]
    },
    "calls without results": lambda n: {
        "messages": [
            user("a"),
            {"role": "assistant", "tool_calls": [call(i) for i in range(n)]},
            user("b"),
        ]
    },
    "results without calls": lambda n: {
        "messages": [
            user("a"),
            *({"role": "tool", "tool_call_id": f"call_{i}", "content": "x"} for i in range(n)),
        ]
    },
    "calls of one id": lambda n: {
        "messages": [
            user("a"),
            {"role": "assistant", "tool_calls": [call(1) for i in range(n)]},
            *({"role": "tool", "tool_call_id": "call_1", "content": "x"} for i in range(n)),
        ]
    },
    "tools": lambda n: {"messages": [user("a")], "tools": [tool(i) for i in range(n)]},
    "members": lambda n: {"messages": [user("a")], **{f"member_{i}": 1 for i in range(n)}},
    "stops": lambda n: {"messages": [user("a")], "stop": [str(i) for i in range(n)]},
}

MESSAGES: dict[str, Callable[[int], Json]] = {
    "messages": lambda n: {"messages": [user("a")] * n},
    "turns": lambda n: {"messages": [user("a"), {"role": "assistant", "content": "b"}] * n},
    "blocks": lambda n: {"messages": [user([{"type": "text", "text": "a"}] * n)]},
    "calls": lambda n: {
        "messages": [
            user("a"),
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": f"t{i}", "name": "f", "input": {}} for i in range(n)
                ],
            },
            user([{"type": "tool_result", "tool_use_id": f"t{i}"} for i in range(n)]),
        ]
    },
    "system": lambda n: {
        "messages": [user("a")],
        "system": [{"type": "text", "text": "a"}] * n,
    },
    "tools": lambda n: {
        "messages": [user("a")],
        "tools": [{"name": f"t{i}", "input_schema": {}} for i in range(n)],
    },
    "built-in tools": lambda n: {
        "messages": [user("a")],
        "tools": [{"type": f"bash_{i}", "name": f"t{i}"} for i in range(n)],
    },
    "members": lambda n: {"messages": [user("a")], **{f"member_{i}": 1 for i in range(n)}},
    "stops": lambda n: {"messages": [user("a")], "stop_sequences": [str(i) for i in range(n)]},
}

RESPONSES: dict[str, Callable[[int], Json]] = {
    "items": lambda n: {"input": [user("a")] * n},
    "parts": lambda n: {"input": [user([{"type": "input_text", "text": "a"}] * n)]},
    "calls": lambda n: {
        "input": [
            *(
                {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"}
                for i in range(n)
            ),
            *(
                {"type": "function_call_output", "call_id": f"c{i}", "output": "x"}
                for i in range(n)
            ),
        ]
    },
    "calls of one id": lambda n: {
        "input": [
            *(
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
                for i in range(n)
            ),
            *({"type": "function_call_output", "call_id": "c", "output": "x"} for i in range(n)),
        ]
    },
    "reasoning": lambda n: {
        "input": [
            *({"type": "reasoning", "id": f"r{i}", "summary": []} for i in range(n)),
            user("a"),
        ]
    },
    "tools": lambda n: {
        "input": "a",
        "tools": [{"type": "function", "name": f"t {i}", "parameters": {}} for i in range(n)],
    },
    "custom tools": lambda n: {
        "input": "a",
        "tools": [{"type": "custom", "name": f"t{i}"} for i in range(n)],
    },
    "members": lambda n: {"input": "a", **{f"member_{i}": 1 for i in range(n)}},
    "include": lambda n: {"input": "a", "include": [f"x{i}" for i in range(n)]},
}


def of_chat(value: Json) -> Callable[[], object]:
    request = parse_request(body_of({"model": "m", **value}))
    return lambda: adapted(request)


def adapted(request: ChatRequest) -> None:
    for target in (TARGET, TEXT_MODEL, OTHER):
        made = adapt(request, target, Options(), stream=True)
        request.body.render(made.changes, drop=made.drop)
        changes.header(made.changed)
    tokens.estimate(request.body)


def of_messages(value: Json) -> Callable[[], object]:
    body = body_of({"model": "m", "max_tokens": 9, **value})
    return lambda: adapted(messages.parse_request(body, strict=False).chat)


def of_responses(value: Json) -> Callable[[], object]:
    body = body_of({"model": "m", **value})
    return lambda: adapted(responses.parse_request(body, seed="resp_1", strict=False).chat)


# --- answers -------------------------------------------------------------------------------------


def part(index: int, **members: Any) -> Json:
    return {"index": index, **members}


def calls_chunk(*fragments: Json) -> Json:
    return {"choices": [{"index": 0, "delta": {"tool_calls": list(fragments)}}]}


def begun(index: int, arguments: str) -> Json:
    return part(index, id=f"c{index}", function={"name": "f", "arguments": arguments})


def grown(index: int, arguments: str, **more: Any) -> Json:
    return part(index, function={"arguments": arguments}, **more)


def texts(member: str) -> Callable[[int], list[Json]]:
    return lambda n: [{"choices": [{"index": 0, "delta": {member: "a"}}]}] * n


#: Chunks of an answer; what is quadratic in them was, or could easily be.
ANSWERS: dict[str, Callable[[int], list[Json]]] = {
    "arguments that seem to end with each piece, before another call": lambda n: [
        calls_chunk(begun(0, '{"a":[')),
        calls_chunk(begun(1, "{")),
        *[calls_chunk(grown(0, "{},{}"))] * n,
    ],
    "arguments that end with each piece, with an id": lambda n: [
        calls_chunk(begun(0, '{"a":[')),
        *(calls_chunk(grown(0, "{},{}", id=f"x{i}")) for i in range(n)),
    ],
    "a complete call once more": lambda n: [
        calls_chunk(begun(0, json.dumps({"a": "x" * 10 * n}))),
        *[calls_chunk(begun(0, '{"a":1}')), calls_chunk(begun(0, '{"a":2}'))] * 100,
        *[calls_chunk(begun(0, json.dumps({"a": "x"})))] * 100,
    ],
    "white space in arguments": lambda n: [
        calls_chunk(begun(0, "{")),
        *[calls_chunk(grown(0, " " * 50))] * n,
    ],
    "calls": lambda n: [calls_chunk(begun(i % 1000, "{")) for i in range(n)],
    "text and thinking by turns behind a call": lambda n: [
        calls_chunk(begun(0, "{")),
        *(texts("content")(1) + texts("reasoning_content")(1)) * (n // 4),
    ],
    "sound": lambda n: [{"choices": [{"index": 0, "delta": {"audio": {"data": "x" * 200}}}]}] * n,
    "a call of the old form": lambda n: (
        [{"choices": [{"index": 0, "delta": {"function_call": {"arguments": "x" * 200}}}]}] * n
    ),
    "a search in each chunk": lambda n: [
        {
            "search_info": {"search_results": [{"index": 1, "url": "http://a"}]},
            "choices": [{"index": 0, "delta": {"content" if i % 2 else "reasoning_content": "a"}}],
        }
        for i in range(n // 4)
    ],
}

CUSTOM = responses.parse_request(
    body_of({"model": "m", "input": "a", "tools": [{"type": "custom", "name": "f"}]}),
    seed="resp_1",
    strict=False,
)
PLAIN = responses.parse_request(body_of({"model": "m", "input": "a"}), seed="r", strict=False)


def aggregated(chunks: list[Json]) -> None:
    completion = Completion()
    for chunk in chunks:
        completion.add(chunk)
    completion.render(id="c", model="m", created=1)


def passed_through(chunks: list[Json]) -> None:
    stream = ChunkStream(hide_usage=False)
    for chunk in chunks:
        stream.feed(sse.render(chunk))
    stream.end()


def encoded(make: Callable[[], Encoder]) -> Callable[[list[Json]], None]:
    def work(chunks: list[Json]) -> None:
        encoder = make()
        for chunk in chunks:
            encoder.feed(sse.render(chunk))
        encoder.end()

    return work


READERS: dict[str, Callable[[list[Json]], None]] = {
    "aggregate": aggregated,
    "chat": passed_through,
    "messages": encoded(lambda: messages.MessagesEncoder(id="msg_1", model="m", searches=True)),
    "responses": encoded(
        lambda: responses.ResponseEncoder(PLAIN, id="resp_1", created=1, model="m")
    ),
    "custom": encoded(lambda: responses.ResponseEncoder(CUSTOM, id="resp_1", created=1, model="m")),
}


def of_answer(reader: str) -> Callable[[list[Json]], Callable[[], object]]:
    return lambda chunks: lambda: READERS[reader](chunks)


CASES = [
    *(
        (of_answer(reader), make, f"{reader}: {name}")
        for reader in READERS
        for name, make in ANSWERS.items()
    ),
    *((of_chat, value, f"chat-{name}") for name, value in CHAT.items()),
    *((of_messages, value, f"messages-{name}") for name, value in MESSAGES.items()),
    *((of_responses, value, f"responses-{name}") for name, value in RESPONSES.items()),
]


def of_transcript(events: list[Json]) -> Callable[[], object]:
    def work() -> None:
        transcript = Transcript(most_characters=10_000_000)
        for event in events:
            transcript.see(event)

    return work


CASES.append(
    (of_transcript, lambda n: [{"output": {"text": f"word {i} "}} for i in range(n)], "transcript")
)


def seconds(work: Callable[[], object]) -> float:
    # The collector's full rounds depend on all objects of the process, also of other tests.
    gc.collect()
    gc.disable()
    try:
        began = time.process_time()
        work()
        return time.process_time() - began
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("prepared", "value"), [case[:2] for case in CASES], ids=[case[2] for case in CASES]
)
def test_four_times_the_length_costs_about_four_times(
    prepared: Callable[[Any], Callable[[], object]], value: Callable[[int], Any]
) -> None:
    quarter, whole = prepared(value(COUNT // 4)), prepared(value(COUNT))

    short_s = long_s = math.inf
    for _ in range(RUNS):
        # Twice: a first run also pays for what is made once.
        short_s = min(short_s, seconds(quarter), seconds(quarter))
        long_s = min(long_s, seconds(whole))
        if long_s < 9 * short_s + 0.02:
            return
    pytest.fail(f"{COUNT // 4} cost {short_s:.3f} s of the CPU, and {COUNT} cost {long_s:.3f} s")


def test_the_header_of_changes_is_bounded() -> None:
    entries = [f"member_{i}:dropped" for i in range(60_000)]

    assert changes.header(entries).endswith("member_19:dropped, and 59980 more")
    assert changes.header(entries[:3]) == "member_0:dropped, member_1:dropped, member_2:dropped"
    assert len(changes.header(["x" * 150] * 20)) < 2048
