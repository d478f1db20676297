"""Chunks of Qwen's hosts are normalized, and their text is never changed."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream, Completion, chunks_of
from qwen_wsgi.protocol.usage import Usage
from tests.kit.feeding import random_cuts
from tests.kit.properties import examples
from tests.kit.quirks import (
    CALLS,
    HEAD,
    NULLS,
    STYLES,
    USAGE,
    Call,
    calls_chunk,
    chunk,
    fed,
    forwarded,
    fragment,
    quirky_calls,
    stream_of,
    summed,
)

EXAMPLES = examples(80)

ROLE = chunk({"role": "assistant", "content": ""})
TEXT = chunk({"content": "hi", **NULLS})
FINISH = chunk({"content": ""}, "stop")
LAST = {"choices": [], **HEAD, "usage": USAGE}


def text_of(values: list[dict[str, Any]], name: str = "content") -> str:
    deltas = (choice.get("delta", {}) for value in values for choice in value["choices"])
    return "".join(delta.get(name) or "" for delta in deltas)


def finishes_of(values: list[dict[str, Any]]) -> list[str]:
    found = (choice.get("finish_reason") for value in values for choice in value["choices"])
    return [finish for finish in found if finish is not None]


def usages_of(values: list[dict[str, Any]]) -> list[Any]:
    return [value["usage"] for value in values if value.get("usage") is not None]


# --- tool calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@EXAMPLES
@given(calls=CALLS, data=st.data())
def test_the_calls_are_the_same_however_a_host_sends_them(
    style: str, calls: list[Call], data: st.DataObject
) -> None:
    upstream = stream_of(*data.draw(quirky_calls(calls, style)), sse.DONE)

    values, out = forwarded(data.draw(random_cuts(upstream)))

    assert forwarded(upstream)[1] == out
    found = summed(values)
    assert [call[1:] for call in found] == [call[1:] for call in calls]
    if STYLES[style][1]:
        assert [call[0] for call in found] == [call[0] for call in calls]
    else:
        assert len({call[0] for call in found}) == len(calls)
        assert all(call[0].startswith("call_") for call in found)
    assert whole_calls(values) == found
    for value in values:
        ChatCompletionChunk.model_validate(value)


def whole_calls(values: list[dict[str, Any]]) -> list[Call]:
    """The calls in the whole answer that a client without stream gets."""
    completion = Completion()
    for value in values:
        completion.add(value)
    rendered = completion.render(id="unused", model="unused", created=0)
    assert rendered["choices"][0]["finish_reason"] == "tool_calls"
    return [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in rendered["choices"][0]["message"]["tool_calls"]
    ]


@pytest.mark.parametrize("style", STYLES)
@EXAMPLES
@given(calls=CALLS, data=st.data())
def test_a_whole_answer_needs_no_normalized_chunks_for_that(
    style: str, calls: list[Call], data: st.DataObject
) -> None:
    found = whole_calls(data.draw(quirky_calls(calls, style)))

    assert [call[1:] for call in found] == [call[1:] for call in calls]
    if STYLES[style][1] or "late" in style:
        assert [call[0] for call in found] == [call[0] for call in calls]
    assert all(call[0].startswith("call_") for call in found)


@pytest.mark.parametrize("paced", [True, False])
def test_a_fragment_whose_id_is_made_up_anew_is_looked_at_each_time(paced: bool) -> None:
    """Whether it begins another call depends on the arguments before it."""
    events = [
        stream_of(calls_chunk(each))
        for each in (
            fragment(0, "call_a", "f", ""),
            fragment(None, "call_b", None, "{}"),
            fragment(None, "call_b", None, '{"a":1}'),
        )
    ]

    values, _ = forwarded(events if paced else b"".join(events))

    assert summed(values) == [("call_a", "f", "{}"), ("call_b", "", '{"a":1}')]


def test_what_openai_would_send_passes_to_the_letter() -> None:
    upstream = stream_of(
        chunk({"role": "assistant", "content": None}),
        calls_chunk(fragment(0, "call_a", "f", "")),
        calls_chunk({"index": 0, "function": {"arguments": '{"a":'}}),
        calls_chunk({"index": 0, "function": {"arguments": "1}"}}),
        chunk({}, "tool_calls"),
        LAST,
    )

    assert forwarded(upstream)[1] == upstream


def test_a_made_up_id_is_the_same_for_the_same_answer_and_for_no_other() -> None:
    def ids(**head: Any) -> list[str]:
        chunks = [calls_chunk(fragment(i, None, "f", "{}")) for i in range(2)]
        return [
            call[0] for call in summed(forwarded(stream_of(*({**c, **head} for c in chunks)))[0])
        ]

    assert ids() == ids()
    assert len({*ids(), *ids(id="chatcmpl-2"), *ids(id="", created=8), *ids(id=None)}) == 8


def test_the_calls_of_two_choices_are_kept_apart() -> None:
    chunks = []
    for index in (0, 1):
        delta = {"tool_calls": [fragment(0, "", f"f{index}", '{"a":')]}
        chunks.append(chunk(delta, index=index))
    for index in (1, 0):
        delta = {"tool_calls": [fragment(0, "", None, f"{index}}}")]}
        chunks.append(chunk(delta, index=index))

    values, _ = forwarded(stream_of(*chunks))

    for index in (0, 1):
        own = [
            {"choices": [choice for choice in value["choices"] if choice["index"] == index]}
            for value in values
        ]
        ((id, name, arguments),) = summed(own)
        assert (name, arguments) == (f"f{index}", f'{{"a":{index}}}')
        assert id.startswith("call_")


def test_words_beside_a_call_and_members_that_nobody_knows_are_kept() -> None:
    odd = {**fragment(0, "", "f", None), "x": {"y": 1}}
    untyped = {**fragment(0, "", None, "{}"), "type": ""}

    values, _ = forwarded(
        stream_of(
            calls_chunk(odd, content="Hm.", role=None, refusal=None, z=2), calls_chunk(untyped)
        )
    )

    assert "type" not in values[1]["choices"][0]["delta"]["tool_calls"][0]

    delta = values[0]["choices"][0]["delta"]
    assert delta.keys() == {"content", "tool_calls", "z"}
    assert delta["content"] == "Hm."
    assert delta["tool_calls"][0]["x"] == {"y": 1}
    assert delta["tool_calls"][0]["function"] == {"name": "f", "arguments": ""}


def test_words_beside_an_empty_fragment_are_no_arguments() -> None:
    beside = [calls_chunk(fragment(0, "", None, ""), content=text) for text in "xyz"]

    values, _ = forwarded(
        stream_of(
            calls_chunk(fragment(0, "", "f", "{}")),
            *beside,
            calls_chunk(fragment(0, "", "f", "{}")),
        )
    )

    assert [call[1:] for call in summed(values)] == [("f", "{}")] * 2
    assert text_of(values) == "xyz"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("arguments", ["", None, " "])
def test_calls_without_arguments_that_come_with_the_finish_are_whole(
    arguments: str | None, normalize: bool
) -> None:
    """Some hosts send calls and finish in one chunk, which keeps one fragment for each call."""
    fragments = [fragment(0, "a", "f", arguments), fragment(1, "b", "g", '{"x":1}')]
    last = chunk({"tool_calls": [*fragments, fragment(2, "c", "h", arguments)]}, "stop")

    values, _ = forwarded(stream_of(last, sse.DONE), normalize=normalize)

    (choice,) = values[0]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert [each["index"] for each in choice["delta"]["tool_calls"]] == [0, 1, 2]
    assert summed(values) == [("a", "f", "{}"), ("b", "g", '{"x":1}'), ("c", "h", "{}")]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_a_call_that_was_cut_before_its_arguments_gets_none(finish: str) -> None:
    values, _ = forwarded(stream_of(calls_chunk(fragment(0, "a", "f", "")), chunk({}, finish)))

    assert summed(values) == [("a", "f", "")]


def test_arguments_that_are_no_text_are_written_as_such() -> None:
    odd = fragment(0, "call_a", "f", None)
    odd["function"]["arguments"] = {"a": "é"}

    assert summed(forwarded(stream_of(calls_chunk(odd)))[0]) == [("call_a", "f", '{"a":"é"}')]


@pytest.mark.parametrize(
    "junk", [[None], ["x"], [5, {}], [{"function": None}], [{"function": "f", "index": "0"}], []]
)
def test_junk_among_the_calls_does_no_harm(junk: list[Any]) -> None:
    good = fragment(0, "call_a", "f", "{}")

    values, _ = forwarded(stream_of(calls_chunk(good), calls_chunk(*junk), TEXT, FINISH))

    assert summed(values) == [("call_a", "f", "{}")]
    assert (text_of(values), finishes_of(values)) == ("hi", ["tool_calls"])
    for value in values:
        ChatCompletionChunk.model_validate(value)


@pytest.mark.parametrize("junk", [{"a": 1}, "x", 5, True])
def test_calls_that_are_no_list_are_none(junk: Any) -> None:
    odd = chunk({"content": "x", "tool_calls": junk})
    even = chunk({"content": "x", "tool_calls": None})

    assert forwarded(stream_of(odd, FINISH))[0] == [even, FINISH]


# --- finish --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upstream", "client"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("function_call", "function_call"),
        ("max_tokens", "length"),
        ("insufficient_system_resource", "length"),
        ("network_error", "length"),
        ("sensitive", "content_filter"),
        ("tool_use", "tool_calls"),
        ("<|im_end|>", "stop"),
        ("eos", "stop"),
    ],
)
def test_a_finish_is_one_of_openais(upstream: str, client: str) -> None:
    values, _ = forwarded(stream_of(TEXT, chunk({}, upstream)))

    assert finishes_of(values) == [client]


@pytest.mark.parametrize(
    ("upstream", "client"),
    [
        ("stop", "tool_calls"),
        ("function_call", "tool_calls"),
        ("eos", "tool_calls"),
        ("tool_calls", "tool_calls"),
        ("length", "length"),
        ("content_filter", "content_filter"),
    ],
)
def test_after_a_call_the_finish_says_so(upstream: str, client: str) -> None:
    values, _ = forwarded(stream_of(calls_chunk(fragment(0, "a", "f", "{}")), chunk({}, upstream)))

    assert finishes_of(values) == [client]


@pytest.mark.parametrize("finish", ["", "null"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_finish_that_says_nothing_is_none(finish: str, normalize: bool) -> None:
    stream = ChunkStream(hide_usage=True, normalize=normalize)

    out = stream.feed(stream_of(chunk({"role": "assistant", "content": "a"}, finish)))

    assert not stream.finished
    assert sse.parse(out.strip())["choices"][0]["finish_reason"] is None


def test_words_after_a_finish_are_kept_and_a_second_finish_is_not() -> None:
    values, _ = forwarded(stream_of(TEXT, FINISH, chunk({"content": "!"}, "stop"), FINISH))

    assert text_of(values) == "hi!"
    assert finishes_of(values) == ["stop"]
    assert len(values) == 3


def test_a_second_finish_with_other_words_is_no_finish_either() -> None:
    values, _ = forwarded(stream_of(TEXT, *(chunk({"content": text}, "stop") for text in "abc")))

    assert text_of(values) == "hiabc"
    assert finishes_of(values) == ["stop"]


def test_each_choice_has_a_finish_of_its_own() -> None:
    values, _ = forwarded(
        stream_of(*(chunk({"content": "x"}, index=i) for i in (0, 1)))
        + stream_of(*(chunk({}, "stop", index=i) for i in (1, 0, 1)))
    )

    assert finishes_of(values) == ["stop", "stop"]


def test_a_stream_is_not_finished_while_another_choice_goes_on() -> None:
    stream = ChunkStream(hide_usage=True)
    stream.feed(stream_of(*(chunk({"content": "x"}, index=i) for i in (0, 1, 0, 1))))
    stream.feed(stream_of(chunk({}, "stop", index=1)))
    assert stream.finished

    for _ in range(10):
        stream.feed(stream_of(chunk({"content": "x"})))

    assert not stream.complete
    stream.feed(stream_of(FINISH))
    assert stream.complete


@pytest.mark.parametrize("normalize", [True, False])
def test_a_finish_is_seen_however_much_it_is_like_one_before(normalize: bool) -> None:
    stream = ChunkStream(hide_usage=True, normalize=normalize)

    for delta, finish in (({"content": "a"}, "stop"), ({"refusal": "no"}, None)) * 2:
        stream.feed(stream_of(chunk(delta, finish)))
        assert stream.finished == (finish is not None)


# --- errors as a finish --------------------------------------------------------------------------

THROTTLED = 'Throttling.RateQuota: {"code":"Throttling.RateQuota","message":"slow down"}'


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("before", [[ROLE], [ROLE, TEXT]], ids=["at once", "after text"])
def test_an_error_finish_is_an_error(
    before: list[dict[str, Any]], together: bool, normalize: bool
) -> None:
    stream = ChunkStream(hide_usage=True, normalize=normalize)
    blocks = [stream_of(each) for each in (*before, chunk({"content": THROTTLED}, "error_finish"))]

    out = [stream.feed(block) for block in ([b"".join(blocks)] if together else blocks)]

    assert b"".join(out) == b"".join(blocks[:-1])
    assert (stream.failed, stream.error, stream.error_finish) == (True, None, THROTTLED)
    assert stream.answered == (TEXT in before)
    assert not stream.finished
    assert not stream.complete


@pytest.mark.parametrize(
    ("delta", "text"), [({}, ""), (None, ""), ({"content": None}, ""), ({"content": "x"}, "x")]
)
def test_an_error_finish_may_say_nothing(delta: Any, text: str) -> None:
    stream = ChunkStream(hide_usage=True)

    stream.feed(stream_of(chunk(delta, "error_finish")))

    assert (stream.failed, stream.error_finish) == (True, text)


def test_a_whole_answer_that_is_an_error_is_one_as_a_stream_too() -> None:
    choice = {"message": {"content": THROTTLED}, "finish_reason": "error_finish"}
    stream = ChunkStream(hide_usage=True)

    stream.feed(b"".join(chunks_of({**HEAD, "choices": [choice]}, with_usage=True)))

    assert stream.error_finish == THROTTLED
    assert not stream.answered


# --- usage ---------------------------------------------------------------------------------------

WITH_FINISH = {**FINISH, "usage": USAGE}
GROWING = [{**TEXT, "usage": {**USAGE, "total_tokens": n}} for n in (1, 2)]


@pytest.mark.parametrize(
    "chunks",
    [
        [TEXT, FINISH, LAST],
        [TEXT, WITH_FINISH],
        [TEXT, WITH_FINISH, LAST],
        [TEXT, FINISH, WITH_FINISH],
        [TEXT, {**FINISH, "usage": {**USAGE, "total_tokens": 1}}, WITH_FINISH],
        [*GROWING, WITH_FINISH, LAST],
        [*GROWING, WITH_FINISH],
        [TEXT, {**LAST, "usage": {**USAGE, "total_tokens": 1}}, FINISH, LAST],
        [TEXT, LAST, FINISH],
        [TEXT, FINISH, LAST, LAST],
        [TEXT, {**FINISH, "choices": [*FINISH["choices"], {"index": 1}], "usage": USAGE}],
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("end", [sse.DONE, b""], ids=["with [DONE]", "without"])
@pytest.mark.parametrize("paced", [True, False])
def test_usage_is_told_once_and_by_itself_to_who_asked(
    chunks: list[dict[str, Any]], end: bytes, paced: bool
) -> None:
    events = [stream_of(each) for each in chunks] + [end]

    values, _ = forwarded(events if paced else [b"".join(events)])

    assert usages_of(values) == [USAGE]
    assert values[-1]["choices"] == [] and values[-1]["usage"] == USAGE
    assert values[-1].items() >= HEAD.items()
    assert finishes_of(values) == ["stop"]
    hidden, out = forwarded(b"".join(events), hide_usage=True)
    assert usages_of(hidden) == [] and b"_tokens" not in out
    assert hidden == [
        {name: member for name, member in value.items() if name in hidden[0] or name != "usage"}
        for value in values[:-1]
    ]


def test_a_broken_answer_owes_no_usage() -> None:
    stream = ChunkStream(hide_usage=False)

    stream.feed(stream_of(*GROWING))

    assert stream.usage == Usage(prompt=3, completion=2, total=2)
    assert stream.end() == b""


def test_what_is_owed_is_told_once() -> None:
    stream = ChunkStream(hide_usage=False)
    stream.feed(stream_of(TEXT, WITH_FINISH))

    assert usages_of([sse.parse(stream.end())]) == [USAGE]
    assert stream.end() == b""


def test_cache_counts_stand_where_openai_has_them_and_where_they_were() -> None:
    details = {"cache_creation_input_tokens": 7, "text_tokens": 1}
    usage = {**USAGE, "cached_tokens": 8, "prompt_tokens_details": details}

    values, _ = forwarded(stream_of(TEXT, FINISH, {**LAST, "usage": usage}))

    more = {"cached_tokens": 8, "cache_write_tokens": 7}
    assert usages_of(values) == [{**usage, "prompt_tokens_details": {**details, **more}}]
    as_it_is, _ = forwarded(stream_of(TEXT, FINISH, {**LAST, "usage": usage}), normalize=False)
    assert usages_of(as_it_is) == [usage]


# --- text, roles, and what comes twice -----------------------------------------------------------


@st.composite
def quirky_text(draw: st.DrawFn, field: str, texts: list[str]) -> bytes:
    """A stream whose deltas have these texts, in one of the ways that hosts write them."""
    extras: list[dict[str, Any]] = [{}, NULLS, {"role": "assistant"}, {"tool_calls": []}]
    usages: list[dict[str, Any]] = [{}, {"usage": None}, {"usage": USAGE}]
    extra, usage = draw(st.sampled_from(extras)), draw(st.sampled_from(usages))
    finish = draw(st.sampled_from([None, ""]))
    colon = draw(st.sampled_from(["data: ", "data:"]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    escaped = draw(st.booleans())
    first = {"role": "assistant", "content": draw(st.sampled_from(["", None]))}
    chunks = [
        chunk(first),
        *(chunk({field: text, **extra}, finish, **usage) for text in texts),
        chunk({}, "stop", **usage),
    ]
    comment = draw(st.sampled_from(["", ": x\n\n", "id: 1\n"]))
    return "".join(
        f"{comment}{colon}{json.dumps(each, ensure_ascii=escaped, separators=separators)}\n\n"
        for each in chunks
    ).encode("utf-8", "replace")


TEXTS = st.lists(
    st.text(max_size=6) | st.sampled_from(["1", "1", '"', "\\", '\\"', "\n", "data: ", '","x":"']),
    max_size=12,
)


@examples(200)
@given(
    field=st.sampled_from(["content", "reasoning_content", "reasoning"]),
    texts=TEXTS,
    normalize=st.booleans(),
    hide_usage=st.booleans(),
    model=st.sampled_from([None, ("qwen", "mine"), ("qwen", 'm "é"')]),
    data=st.data(),
)
def test_text_is_never_changed(
    field: str,
    texts: list[str],
    normalize: bool,
    hide_usage: bool,
    model: tuple[str, str] | None,
    data: st.DataObject,
) -> None:
    upstream = data.draw(quirky_text(field, texts))
    view: dict[str, Any] = {"normalize": normalize, "hide_usage": hide_usage, "model": model}

    values, out = forwarded(data.draw(random_cuts(upstream)), **view)

    assert forwarded(upstream, **view)[1] == out
    name = "reasoning_content" if normalize and field == "reasoning" else field
    assert text_of(values, name) == "".join(texts)
    assert finishes_of(values)[-1:] == ["stop"]
    assert {value["model"] for value in values} == {model[1] if model else HEAD["model"]}
    if normalize:
        for value in values:
            ChatCompletionChunk.model_validate(value)


FIRST = chunk({"role": "assistant", "content": "1"})


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([FIRST, FIRST, chunk({"content": "8"}), FINISH], "18"),
        ([FIRST, FIRST, chunk({"content": "1"}), chunk({"content": "1"}), FINISH], "111"),
        ([FIRST, FIRST, FINISH], "1"),
        ([ROLE, ROLE, chunk({"content": "8"}), FINISH], "8"),
        # GLM names the role in every chunk
        ([FIRST, FIRST, chunk({"role": "assistant", "content": " of"}), FINISH], "11 of"),
        ([FIRST, FIRST, FIRST, FIRST], "1111"),
        ([FIRST, FIRST, FIRST, chunk({"content": "8"}), FINISH], "1118"),
        # the role is not named, or not all is the same
        ([ROLE, chunk({"content": "1"}), chunk({"content": "1"}), FINISH], "11"),
        ([chunk({"content": "1"}), chunk({"content": "1"}), FINISH], "11"),
        ([FIRST, {**FIRST, "created": 8}, FINISH], "11"),
        ([chunk({"content": "a"}), FIRST, FIRST, chunk({"content": "8"}), FINISH], "a118"),
        ([FIRST, chunk({"role": "assistant", "content": "11"}), FINISH], "111"),
        # nothing after it tells
        ([FIRST, FIRST], "11"),
    ],
)
@pytest.mark.parametrize("paced", [True, False])
@pytest.mark.parametrize("done", [sse.DONE, b""])
def test_only_a_first_chunk_that_names_the_role_is_known_to_come_twice(
    chunks: list[dict[str, Any]], text: str, paced: bool, done: bytes
) -> None:
    events = [*(stream_of(each) for each in chunks), done]

    values, _ = forwarded(events if paced else b"".join(events))

    assert text_of(values) == text
    roles = [choice["delta"].get("role") for value in values for choice in value["choices"]]
    assert [role for role in roles if role] == ["assistant"] * ("role" in str(chunks))


def test_a_first_chunk_twice_is_left_alone_if_the_host_is_not_normalized() -> None:
    upstream = stream_of(FIRST, FIRST, FINISH)

    assert forwarded(upstream, normalize=False)[1] == upstream


def test_reasoning_under_both_names_is_left_alone() -> None:
    both = chunk({"reasoning": "hm", "reasoning_content": "hm"})

    assert forwarded(stream_of(both))[0] == [both]


def test_nulls_of_a_chunk_that_needs_nothing_else_are_left_alone() -> None:
    upstream = stream_of(ROLE, *(chunk({"content": text, **NULLS}) for text in "abc"), FINISH)

    assert forwarded(upstream)[1] == upstream


# --- everything at once --------------------------------------------------------------------------

ANYTHING = st.lists(
    st.sampled_from(
        [
            ROLE,
            FIRST,
            TEXT,
            chunk({"content": "é\n"}),
            chunk({"reasoning": "hm é"}),
            chunk({"reasoning": "é"}, index=1),
            chunk({"content": "x"}, index=1),
            chunk({"content": "", "tool_calls": []}),
            FINISH,
            chunk({}, "tool_calls"),
            chunk({"content": "!"}, "eos", 1),
            LAST,
            WITH_FINISH,
            GROWING[0],
            {"choices": []},
            {"choices": [None, {}, {"delta": "x", "finish_reason": 5}]},
            b": comment\n\n",
            b"data: {bad\n\n",
            b'id: 1\ndata: {"choices":[\ndata: ]}\n\n',
            *(
                calls_chunk(fragment(index, id, name, arguments))
                for index, id, name, arguments in itertools.product(
                    (0, 1, None), ("", "call_a", "call_b"), (None, "f"), ("", '{"é":', "1}", "{}")
                )
            ),
        ]
    ),
    max_size=14,
)


class NoCarrier:
    """Stands for a carrier that never learned anything."""

    is_ready = False

    def carry(self, events: bytes) -> tuple[bytes, int, int]:
        return b"", 0, 0

    def learn(self, *_: Any, alike: bool) -> None: ...
    def forget(self) -> None: ...


@examples(300)
@given(
    events=ANYTHING,
    escaped=st.booleans(),
    view=st.fixed_dictionaries(
        {
            "normalize": st.sampled_from([True, True, False]),
            "hide_usage": st.booleans(),
            "model": st.sampled_from([None, ("qwen", "mine")]),
        }
    ),
    data=st.data(),
)
def test_what_a_client_gets_depends_neither_on_cuts_nor_on_shortcuts(
    events: list[dict[str, Any] | bytes], escaped: bool, view: Any, data: st.DataObject
) -> None:
    upstream = b"".join(
        each
        if isinstance(each, bytes)
        else f"data: {json.dumps(each, ensure_ascii=escaped)}\n\n".encode()
        for each in events
    )
    streams = [ChunkStream(**view) for _ in range(3)]
    streams[0]._carrier = NoCarrier()  # type: ignore[assignment]  # switched off

    slow, whole, cut = [
        fed(stream, pieces)
        for stream, pieces in zip(
            streams, [[upstream], [upstream], data.draw(random_cuts(upstream))], strict=True
        )
    ]

    assert whole == cut
    values = [[sse.parse(event) for event in sse.events(out)] for out in (slow, cut)]
    assert values[0] == values[1]
    states = [
        (each.usage, each.error, each.error_finish, each.answered, each.finished, each.done)
        for each in streams
    ]
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("client", ["mine", 'a "b" \\ é', "qwen3.7-plus"])
@pytest.mark.parametrize("spaced", [True, False])
def test_the_name_of_the_model_is_replaced_and_no_word_about_it(client: str, spaced: bool) -> None:
    quoted = '"model":"qwen3.7-plus-2026-05-26" "model": "qwen3.7-plus"'
    chunks = [
        {**each, "model": "qwen3.7-plus-2026-05-26"}
        for each in (ROLE, *(chunk({"content": quoted}) for _ in range(4)), FINISH, LAST)
    ]
    separators = (", ", ": ") if spaced else (",", ":")
    upstream = "".join(f"data: {json.dumps(c, separators=separators)}\n\n" for c in chunks)

    values, out = forwarded(upstream.encode(), model=("qwen3.7-plus", client))

    named = "qwen3.7-plus-2026-05-26" if client == "qwen3.7-plus" else client
    assert values == [{**each, "model": named} for each in chunks]
    if client == "qwen3.7-plus":
        assert out == upstream.encode()


def test_a_name_deeper_in_a_chunk_is_not_taken_for_the_models() -> None:
    deep = {"x": [{"model": "other"}], **chunk({"content": "x"}), "model": "qwen3.7-plus"}

    values, _ = forwarded(stream_of(deep, deep, deep), model=("qwen3.7-plus", "mine"))

    assert values == [{**deep, "model": "mine"}] * 3


def test_a_spelling_that_changes_within_a_stream_is_followed() -> None:
    names = ["qwen3.7-plus", "qwen3.7-plus", "snapshot", "snapshot", None, "qwen3.7-plus"]
    chunks = [chunk({"content": "x"}, model=name) for name in names]
    upstream = stream_of(*chunks, chunk({"content": "y"}), {"choices": []})

    values, _ = forwarded(upstream, model=("qwen3.7-plus", "mine"))

    assert [value.get("model") for value in values] == ["mine"] * 7


def test_every_chunk_of_a_read_is_named_however_the_others_spell_it() -> None:
    names = ["qwen3.7-plus", "qwen3.7-plus", "snapshot", "qwen3.7-plus"]
    chunks = [chunk({"content": "x"}, index=i, model=name) for i, name in enumerate(names)]

    values, _ = forwarded(
        [stream_of(chunks[0]), stream_of(*chunks[1:])], model=("qwen3.7-plus", "mine")
    )

    assert [value["model"] for value in values] == ["mine"] * 4
