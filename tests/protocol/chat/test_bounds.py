"""An answer has so much text, so many choices and tool calls, and no more, in every dialect."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol import completions, messages, responses, sse
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.chat import ChatEncoder, ChunkStream, Completion
from qwen_wsgi.protocol.chat.tool_calls import MOST_CALLS, MOST_CHOICES, ToolCalls
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.translation.citations import Sources
from qwen_wsgi.protocol.translation.free_text import FreeText, input_of

pytestmark = pytest.mark.once

Json = dict[str, Any]
MIB = 1 << 20


def chunk(index: int) -> Json:
    return of({"role": "assistant", "content": "x"}, index=index)


def of(delta: Json, *, index: int = 0, **members: Any) -> Json:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return {"id": "c", "choices": [{**choice, **members}]}


def test_the_choices_of_a_whole_answer_are_bounded() -> None:
    completion = Completion()
    for index in range(MOST_CHOICES):
        completion.add(chunk(index))
    with pytest.raises(AnswerTooLarge, match="128 choices"):
        completion.add(chunk(MOST_CHOICES))


def test_the_choices_of_a_stream_are_bounded() -> None:
    chunks = ChunkStream(hide_usage=False)
    with pytest.raises(AnswerTooLarge, match="128 choices"):
        for index in range(MOST_CHOICES + 1):
            chunks.feed(sse.render(chunk(index)))


def fragment(index: int, **members: Any) -> Json:
    return {"index": index, **members}


def test_the_tool_calls_of_a_choice_are_bounded() -> None:
    calls = ToolCalls()
    for index in range(MOST_CALLS):
        calls.take({"index": index, "id": f"c{index}", "function": {"name": "f"}})
    with pytest.raises(AnswerTooLarge, match="tool calls"):
        calls.take({"index": MOST_CALLS, "id": "x", "function": {"name": "f"}})


def test_the_indexes_that_name_a_call_are_bounded() -> None:
    calls = ToolCalls()
    with pytest.raises(AnswerTooLarge, match="indexes"):
        for index in range(MOST_CALLS + 1):
            calls.take({"index": index, "function": {"arguments": "x"}})


def test_ids_and_names_of_calls_are_bounded() -> None:
    calls = ToolCalls()
    with pytest.raises(AnswerTooLarge, match="ids and names"):
        for index in range(20):
            calls.take({"index": index, "id": str(index), "function": {"name": "f" * 100_000}})


# --- text and items ------------------------------------------------------------------------------

LONG = "a" * 100_000


def call_of(n: int, name: str | None, arguments: str) -> Json:
    function = {"arguments": arguments, **({"name": name} if name and not n else {})}
    first = {"id": "c"} if not n else {}
    return of({"tool_calls": [fragment(0, **first, function=function)]})


#: Chunks of answers without an end, each with something that an upstream can make large.
ENDLESS: dict[str, Callable[[int], Json]] = {
    "text": lambda n: of({"content": LONG}),
    "thinking": lambda n: of({"reasoning_content": "é" * 50_000}),
    "refusal": lambda n: of({"refusal": LONG}),
    "text and thinking": lambda n: of({"content": LONG, "reasoning_content": LONG}),
    "arguments": lambda n: call_of(n, "f", '{"a":"' + LONG),
    "arguments of a custom tool": lambda n: call_of(n, "patch", LONG if n else '{"x":"'),
    "arguments without a name": lambda n: call_of(n, None, LONG),
    "items": lambda n: of({"content": "a"} if n % 2 else {"reasoning_content": "b"}),
    "parts": lambda n: of({"content": "a"} if n % 2 else {"refusal": "b"}),
    "probabilities": lambda n: of(
        {"content": "a"},
        logprobs={"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}] * 200},
    ),
    "annotations": lambda n: of(
        {"content": "a", "annotations": [{"type": "url_citation", "url": "x" * 500}] * 100}
    ),
    "members": lambda n: of({f"member_{n}": [1.5] * 10_000}),
    "members of the choice": lambda n: {
        "choices": [{"index": 0, "delta": {}, f"member_{n}": [[0]] * 10_000}]
    },
    "members of the chunk": lambda n: {f"member_{n}": LONG, "choices": []},
    "sound": lambda n: of({"audio": {"data": LONG}}),
    "a call of the old form": lambda n: of({"function_call": {"name": "f", "arguments": LONG}}),
    "choices": lambda n: of({"content": LONG}, index=n % 100),
}

TOOLS = b'"tools":[{"type":"custom","name":"patch"}]'
RESPONSES_REQUEST = responses.parse_request(
    JsonObject(b'{"model":"m","input":"hi",%b}' % TOOLS), seed="resp_1", strict=False
)
COMPACTING = replace(RESPONSES_REQUEST, summarizes=True)


Make = Callable[[AnswerSize], Completion | Encoder]


def in_responses(request: responses.ResponsesRequest) -> Make:
    return lambda size: responses.ResponseEncoder(
        request, id="resp_1", created=1, model="m", size=size
    )


def in_messages(*, searches: bool = False) -> Make:
    return lambda size: messages.MessagesEncoder(
        id="msg_1", model="m", searches=searches, size=size
    )


def in_completions(size: AnswerSize) -> Encoder:
    return completions.CompletionsEncoder(id="c", model="m", created=1, with_usage=False, size=size)


ALL_BUT_ITEMS = [kind for kind in ENDLESS if kind not in ("items", "parts")]
IN_RESPONSES = [*list(ENDLESS)[:10], "annotations"]
IN_MESSAGES = [*list(ENDLESS)[:8]]

CASES: list[tuple[Make, str]] = [
    *((Completion, kind) for kind in ALL_BUT_ITEMS),
    *((in_responses(RESPONSES_REQUEST), kind) for kind in IN_RESPONSES),
    (in_responses(COMPACTING), "text"),
    *((in_messages(), kind) for kind in IN_MESSAGES),
    (in_messages(searches=True), "text"),
    (in_messages(searches=True), "annotations"),
    (in_completions, "text"),
    (in_completions, "choices"),
]


def take(answer: Completion | Encoder, chunk: Json) -> None:
    if isinstance(answer, Completion):
        answer.add(chunk)
    else:
        answer.feed(sse.render(chunk))


@pytest.mark.once
@pytest.mark.parametrize(("make", "kind"), CASES)
def test_an_answer_without_an_end_is_given_up_before_it_costs_memory(make: Make, kind: str) -> None:
    most = 1 * MIB
    answer = make(AnswerSize(most))
    tracemalloc.start()
    try:
        with pytest.raises(AnswerTooLarge, match="1 MiB of text and items") as caught:
            for n in range(10_000):
                take(answer, ENDLESS[kind](n))
        if not isinstance(answer, Completion):
            assert len(answer.fail(caught.value)) < 10_000
        assert tracemalloc.get_traced_memory()[1] < 3 * most + MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Completion(),
        lambda: responses.ResponseEncoder(RESPONSES_REQUEST, id="resp_1", created=1, model="m"),
        lambda: messages.MessagesEncoder(id="msg_1", model="m"),
        lambda: completions.CompletionsEncoder(id="c", model="m", created=1, with_usage=False),
    ],
)
def test_the_bound_of_every_dialect_is_32_mib(make: Callable[[], Completion | Encoder]) -> None:
    answer, chunk = make(), of({"content": "a" * MIB})
    for _ in range(31):
        take(answer, chunk)
    with pytest.raises(AnswerTooLarge, match="32 MiB of text and items"):
        take(answer, chunk)
        take(answer, chunk)


@pytest.mark.once
def test_what_waits_for_the_end_of_a_call_is_bounded_in_pieces_as_well() -> None:
    """Messages sends blocks one after the other."""
    encoder = messages.MessagesEncoder(id="msg_1", model="m", size=AnswerSize(MIB))
    encoder.feed(sse.render(call_of(0, "f", '{"a":')))
    other = of({"tool_calls": [fragment(1, id="d", function={"name": "g", "arguments": "{"})]})
    encoder.feed(sse.render(other))
    piece = sse.render(of({"tool_calls": [fragment(1, function={"arguments": "x"})]})) * 1000
    with pytest.raises(AnswerTooLarge):
        for _ in range(20):  # 20 kB of text
            encoder.feed(piece)


def test_a_text_in_many_pieces_takes_the_memory_of_one() -> None:
    completion = Completion()
    tracemalloc.start()
    try:
        for n in range(100_000):
            completion.add(of({"content": f"{n:06d}"}))
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()
    answer = completion.render(id="c", model="m", created=1)
    assert answer["choices"][0]["message"]["content"].endswith("099998099999")


def test_a_member_that_every_chunk_repeats_counts_once() -> None:
    completion = Completion()
    for _ in range(5000):
        completion.add({"system_fingerprint": "x" * 10_000, "choices": []})
    for _ in range(5000):
        completion.add(of({}, x_filter={"a": "x" * 10_000}))


def test_answers_that_become_one_share_the_bound() -> None:
    size = AnswerSize(2 * MIB)
    first, second = Completion(size), Completion(size)
    first.add(of({"content": "x" * 1_500_000}))
    with pytest.raises(AnswerTooLarge, match="2 MiB"):
        second.add(of({"content": "x" * 1_500_000}))


def test_a_stream_of_chat_that_passes_through_is_not_cut_and_keeps_nothing() -> None:
    chunks = ChunkStream(hide_usage=False)
    encoder = ChatEncoder(id="c", model="m", created=1)
    text = sse.render(of({"content": LONG}))
    first, more = (sse.render(call_of(n, "f", '{"a":"' if not n else LONG)) for n in (0, 1))
    tracemalloc.start()
    try:
        for block in (text, *[text] * 50, first, *[more] * 50):
            assert encoder.feed(chunks.feed(block))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_pages_of_a_search_are_bounded() -> None:
    sources = Sources()
    for n in range(2000):
        page = {"index": n, "url": f"http://x/{n}/" + "x" * 5000, "title": "t"}
        sources.take({"search_info": {"search_results": [page]}}, {})
    assert 100 < len(sources.pages) < 300


def test_the_opening_of_a_custom_call_is_read_once_and_not_for_each_piece() -> None:
    """However it is cut, the text is the same."""
    for arguments in (" " * 2000 + '{"input":"x"}', "{" + " " * 2000 + '"input":"x"}'):
        text = FreeText()
        assert "".join(map(text.feed, arguments)) + text.end() == input_of(arguments)
