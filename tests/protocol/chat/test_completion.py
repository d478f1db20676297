"""A completion aggregated from chunks is what a client would build from the stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import Completion, chunks_of
from qwen_wsgi.protocol.chat.completion import combined, mended
from qwen_wsgi.protocol.usage import Usage
from tests.kit.properties import examples

EXAMPLES = examples(150)


def chunk(delta: Any, finish: str | None = None, index: int = 0, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish, **choice}]}


def grown(*chunks: dict[str, Any]) -> Completion:
    completion = Completion()
    for each in chunks:
        completion.add(each)
    return completion


def message_of(*chunks: dict[str, Any]) -> dict[str, Any]:
    return dict(rendered(*chunks)["choices"][0]["message"])


def rendered(*chunks: dict[str, Any]) -> dict[str, Any]:
    return grown(*chunks).render(id="id-of-ours", model="model-of-ours", created=1)


def call(
    id: str | None = None, name: str | None = None, arguments: Any = None, **more: Any
) -> dict[str, Any]:
    """A fragment of a tool call; what is None is sent as null, `index` only if given."""
    return {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
        **more,
    }


def whole(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_every_field_that_openai_requires_is_there_even_when_no_chunk_told() -> None:
    assert rendered(chunk({"content": "hi"}, "stop")) == {
        "id": "id-of-ours",
        "object": "chat.completion",
        "created": 1,
        "model": "model-of-ours",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }


def test_what_the_chunks_tell_comes_before_our_own() -> None:
    head = {
        "id": "chatcmpl-9",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "qwen3.7-plus",
        "system_fingerprint": None,
        "service_tier": "default",
        "x_unknown": [1],
    }

    answer = rendered({**head, **chunk({"content": "a"})}, {**head, **chunk({}, "stop")})

    assert answer["object"] == "chat.completion"
    assert {k: v for k, v in answer.items() if k not in ("object", "choices")} == {
        k: v for k, v in head.items() if k != "object"
    }


def test_a_call_that_never_got_an_id_is_given_one_that_stays_the_same() -> None:
    completion = grown(chunk({"tool_calls": [call(None, "f", "{}", index=i) for i in (0, 1)]}))

    ids = [
        [
            c["id"]
            for c in completion.render(id="x", model="", created=0)["choices"][0]["message"][
                "tool_calls"
            ]
        ]
        for _ in range(2)
    ]

    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2
    assert all(id.startswith("call_") for id in ids[0])


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("name", ["id", "model"])
def test_a_head_field_that_is_null_or_empty_is_filled(name: str, value: Any) -> None:
    answer = rendered({name: value, **chunk({"content": "a"}, "stop")})

    assert answer[name] == f"{name}-of-ours"


def test_an_empty_head_field_does_not_replace_a_good_one() -> None:
    answer = rendered(
        {"id": "chatcmpl-9", **chunk({"content": "a"}, "stop")}, {"id": "", "choices": []}
    )

    assert answer["id"] == "chatcmpl-9"


def test_the_usage_comes_last_or_with_the_finish() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "x": None}
    text = chunk({"content": "a"})

    for chunks in (
        [text, chunk({}, "stop"), {"choices": [], "usage": usage}],
        [text, {**chunk({}, "stop"), "usage": usage}],
        [
            {**text, "usage": None},
            {**chunk({}, "stop"), "usage": usage},
            {"choices": [], "usage": None},
        ],
    ):
        completion = grown(*chunks)
        assert completion.render(id="", model="", created=0)["usage"] == usage
        assert completion.usage == Usage(prompt=1, completion=2, total=3)


def test_without_usage_there_is_no_usage() -> None:
    completion = grown(chunk({"content": "a"}, "stop"))

    assert completion.usage is None
    assert "usage" not in completion.render(id="", model="", created=0)


TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")


@EXAMPLES
@given(
    texts=st.fixed_dictionaries({name: st.text(min_size=1, max_size=30) for name in TEXT_FIELDS}),
    data=st.data(),
)
def test_a_text_is_the_same_however_it_was_split(
    texts: dict[str, str], data: st.DataObject
) -> None:
    chunks = [chunk({"role": "assistant", "content": ""})]
    for name, text in texts.items():
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        chunks += [chunk({name: piece, "role": None}) for piece in pieces]
    chunks.append(chunk({}, "stop"))

    assert message_of(*chunks) == {"role": "assistant", **texts}


def test_reasoning_is_kept_beside_the_answer() -> None:
    message = message_of(
        chunk({"role": "assistant", "content": None, "reasoning_content": "I "}),
        chunk({"content": None, "reasoning_content": "think."}),
        chunk({"content": "42", "reasoning_content": None}),
        chunk({}, "stop"),
    )

    assert message == {
        "role": "assistant",
        "content": "42",
        "refusal": None,
        "reasoning_content": "I think.",
    }


def test_an_empty_reasoning_leaves_no_field() -> None:
    assert "reasoning_content" not in message_of(chunk({"content": "a", "reasoning_content": ""}))


def test_content_is_an_empty_text_if_one_was_told_and_null_if_none_was() -> None:
    assert message_of(chunk({"content": ""}, "stop"))["content"] == ""
    assert message_of(chunk({}, "stop"))["content"] is None
    assert message_of(chunk({"content": None, "reasoning_content": "x"}, "stop"))["content"] is None


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        pytest.param(
            [
                [call("a", "f", "", index=0)],
                [call("", None, '{"x":', index=0)],
                [call("", None, "1}", index=0)],
            ],
            [whole("a", "f", '{"x":1}')],
            id="empty ids after the first",
        ),
        pytest.param(
            [
                [call("a", "f", None, index=0)],
                [call(None, None, "{}", index=0)],
                [call(None, None, None, index=0)],
            ],
            [whole("a", "f", "{}")],
            id="null arguments",
        ),
        pytest.param(
            [
                [call("a", "f", "", index=0)],
                [{"index": 0, "function": {"arguments": "{}"}}],
                [{"index": 0}],
            ],
            [whole("a", "f", "{}")],
            id="fields left out",
        ),
        pytest.param(
            [[call("a", "f", "{", index=0)], [call(None, "f", "}", index=0)]],
            [whole("a", "f", "{}")],
            id="the name again in every fragment",
        ),
        pytest.param(
            [[call("", "f", "{", index=0)], [call("late", None, "}", index=0)]],
            [whole("late", "f", "{}")],
            id="the id late",
        ),
        pytest.param(
            [[call("a", "f", '{"x":')], [call(None, None, "1}")]],
            [whole("a", "f", '{"x":1}')],
            id="no index",
        ),
        pytest.param(
            [
                [call("a", "f", "{", index=0)],
                [call("b", "g", "[", index=1)],
                [call("", None, "]", index=1)],
                [call("", None, "}", index=0)],
            ],
            [whole("a", "f", "{}"), whole("b", "g", "[]")],
            id="parallel calls that alternate",
        ),
        pytest.param(
            [[call("a", "f", "{}", index=0), call("b", "g", "{}", index=1)]],
            [whole("a", "f", "{}"), whole("b", "g", "{}")],
            id="parallel calls in one chunk",
        ),
        pytest.param(
            [[call("b", "g", "2", index=1)], [call("a", "f", "1", index=0)]],
            [whole("a", "f", "1"), whole("b", "g", "2")],
            id="the second before the first",
        ),
        pytest.param(
            [[call("a", "f", "1", index=0)], [call("b", "g", "2", index=7)]],
            [whole("a", "f", "1"), whole("b", "g", "2")],
            id="a gap between the indexes",
        ),
        pytest.param(
            [
                [call("a", "f", "{}", index=0)],
                [call("b", "g", None, index=1)],
                [call(None, None, "{}")],
            ],
            [whole("a", "f", "{}"), whole("b", "g", "{}")],
            id="a fragment without index goes on with the last call",
        ),
        pytest.param(
            [[call("a", "f", "", index=0)]], [whole("a", "f", "{}")], id="empty arguments"
        ),
        pytest.param(
            [["junk", None, call("a", "f", "{}", index=0)]],
            [whole("a", "f", "{}")],
            id="junk between",
        ),
        pytest.param(
            [[call("a", "f", "{}"), call("b", "g", "{}")]],
            [whole("a", "f", "{}"), whole("b", "g", "{}")],
            id="parallel calls without index",
        ),
        pytest.param(
            [[call("a", "f", "{}", index=0)], [call("b", "g", "{}", index=0)]],
            [whole("a", "f", "{}"), whole("b", "g", "{}")],
            id="parallel calls that share an index and differ by id",
        ),
    ],
)
def test_tool_calls_are_put_together(
    fragments: list[list[Any]], expected: list[dict[str, Any]]
) -> None:
    answer = rendered(
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": None, "tool_calls": several}) for several in fragments),
        chunk({"tool_calls": None}, "tool_calls"),
    )["choices"][0]

    assert answer["message"]["tool_calls"] == expected
    assert answer["message"]["content"] is None
    assert answer["finish_reason"] == "tool_calls"


@EXAMPLES
@given(
    calls=st.lists(
        st.tuples(
            st.text(min_size=1, max_size=6), st.text(min_size=1, max_size=6), st.text(max_size=20)
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda call: call[0],
    ),
    data=st.data(),
)
def test_tool_calls_are_the_same_however_their_arguments_were_split(
    calls: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    """Fragments of different calls come in any order, those of one call in theirs."""
    queues = []
    for index, (id, name, arguments) in enumerate(calls):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(arguments)), max_size=3)))
        pieces = [arguments[a:b] for a, b in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
        queues.append(
            [call(id, name, "", index=index)]
            + [call("", None, piece, index=index) for piece in pieces]
        )
    chunks = []
    while queues:
        queue = data.draw(st.sampled_from(queues))
        chunks.append(chunk({"tool_calls": [queue.pop(0)]}))
        queues = [q for q in queues if q]

    assert message_of(*chunks)["tool_calls"] == [
        whole(id, name, arguments if arguments.strip() else "{}") for id, name, arguments in calls
    ]


def test_words_before_a_tool_call_are_kept() -> None:
    message = message_of(
        chunk({"content": "I look."}), chunk({"tool_calls": [call("a", "f", "{}", index=0)]})
    )

    assert message["content"] == "I look."
    assert message["tool_calls"] == [whole("a", "f", "{}")]


def test_a_legacy_function_call_is_put_together() -> None:
    message = message_of(
        chunk({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"a"'}}),
        chunk({"function_call": {"arguments": ":1}"}}, "function_call"),
    )

    assert message["function_call"] == {"name": "f", "arguments": '{"a":1}'}


def test_audio_is_put_together() -> None:
    message = message_of(
        chunk({"audio": {"id": "a", "transcript": "Hel"}}),
        chunk({"audio": {"data": "QUJD", "transcript": "lo"}}),
        chunk({"audio": {"data": "REVG", "expires_at": 5}}, "stop"),
    )

    assert message["audio"] == {
        "id": "a",
        "transcript": "Hello",
        "data": "QUJDREVG",
        "expires_at": 5,
    }


def test_lists_of_unknown_fields_are_joined_and_other_values_replaced() -> None:
    message = message_of(
        chunk({"annotations": [1], "x": "a"}),
        chunk({"annotations": [2], "x": "b"}),
        chunk({"x": ""}),
    )

    assert message["annotations"] == [1, 2]
    assert message["x"] == "b"


def test_fields_of_a_choice_that_nobody_knows_survive() -> None:
    choice = rendered(chunk({"content": "a"}, x_filter={"a": 1}), chunk({}, "stop", x_filter=None))

    assert choice["choices"][0]["x_filter"] == {"a": 1}


def test_log_probabilities_are_joined() -> None:
    a, b, no = {"token": "a"}, {"token": "b"}, {"token": "no"}
    choice = rendered(
        chunk({"content": "a"}, logprobs={"content": [a], "refusal": None}),
        chunk({"content": "b"}, logprobs={"content": [b], "refusal": [no]}),
        chunk({}, "stop", logprobs=None),
    )["choices"][0]

    assert choice["logprobs"] == {"content": [a, b], "refusal": [no]}


def test_choices_are_kept_apart_and_in_order() -> None:
    answer = rendered(
        chunk({"content": "two"}, index=1),
        chunk({"content": "one"}, index=0),
        chunk({}, "length", index=1),
        chunk({"content": "!"}, "stop", index=0),
    )

    assert [
        (c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]
    ] == [(0, "one!", "stop"), (1, "two", "length")]


@pytest.mark.parametrize("finish", ["stop", "length", "tool_calls", "content_filter", "strange"])
def test_the_finish_reason_is_the_one_that_was_told(finish: str) -> None:
    answer = rendered(chunk({"content": "a"}, finish), chunk({"content": ""}, None))

    assert answer["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    ("delta", "finish"),
    [({"content": "a"}, "stop"), ({"tool_calls": [call("a", "f", "{}", index=0)]}, "tool_calls")],
    ids=["text", "tool call"],
)
def test_without_a_finish_reason_the_likely_one_stands_in(
    delta: dict[str, Any], finish: str
) -> None:
    assert rendered(chunk(delta))["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    "junk",
    [
        {},
        {"choices": None},
        {"choices": [None, "x", 5]},
        {"choices": [{}]},
        {"choices": [{"index": None, "delta": None, "finish_reason": None}]},
        {"choices": [{"delta": {"content": 5, "tool_calls": [None]}}]},
        {"choices": [{"logprobs": "x"}]},
        {"usage": []},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"tool_calls": 5}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": "f"}]}}]},
        {"choices": [{"delta": {"function_call": "f"}}]},
        {"choices": 5},
        {"choices": [{"index": "1", "delta": {}}]},
    ],
    ids=str,
)
def test_junk_of_an_upstream_does_no_harm(junk: dict[str, Any]) -> None:
    """A fault of theirs must never become a traceback of ours."""
    answer = rendered(chunk({"content": "a"}), junk, chunk({"role": "assistant"}, "stop"))

    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_empty_role_is_filled() -> None:
    assert (
        message_of(chunk({"role": "assistant"}), chunk({"role": "", "content": "a"}))["role"]
        == "assistant"
    )


def test_a_role_that_is_always_empty_is_filled() -> None:
    assert message_of(chunk({"role": "", "content": "a"}))["role"] == "assistant"


def test_an_emoji_in_two_halves_comes_out_whole() -> None:
    """JSON escapes it as two surrogates; an upstream may send them in two chunks."""
    halves = [json.loads('"\\ud83d"'), json.loads('"\\ude00"')]
    message = message_of(*(chunk({"content": half}) for half in halves))

    assert json.loads(json.dumps(message["content"])) == "😀"


def test_rendering_twice_gives_the_same() -> None:
    completion = grown(
        chunk(
            {"role": "assistant", "content": "a", "tool_calls": [call("a", "f", "{}", index=0)]},
            "stop",
        )
    )

    first = completion.render(id="", model="", created=0)

    assert completion.render(id="", model="", created=0) == first


# --- a whole completion as a stream --------------------------------------------------------------


def again(completion: dict[str, Any]) -> dict[str, Any]:
    events = chunks_of(completion, with_usage=True)
    for event in events:
        value = sse.parse(event.strip())
        assert value["object"] == "chat.completion.chunk"
        assert {"id", "created", "model", "choices"} <= value.keys()
        for choice in value["choices"]:
            assert {"index", "delta", "finish_reason"} <= choice.keys()
            assert all("index" in each for each in choice["delta"].get("tool_calls") or ())
    return grown(*(sse.parse(event.strip()) for event in events)).render(
        id="unused", model="unused", created=0
    )


def completion_of(*choices: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": list(choices),
        **extra,
    }


def choice_of(
    message: dict[str, Any], finish: str = "stop", index: int = 0, **extra: Any
) -> dict[str, Any]:
    full = {"role": "assistant", "content": None, "refusal": None, **message}
    return {"index": index, "message": full, "logprobs": None, "finish_reason": finish, **extra}


LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97]}], "refusal": None}


@pytest.mark.parametrize(
    "completion",
    [
        completion_of(choice_of({"content": "hi"})),
        completion_of(choice_of({"content": ""}), system_fingerprint=None, x=[1]),
        completion_of(choice_of({"content": "hi"}, "length"), usage={"total_tokens": 5}),
        completion_of(choice_of({"content": "42", "reasoning_content": "hm"})),
        completion_of(
            choice_of(
                {"tool_calls": [whole("a", "f", "{}"), whole("b", "g", '{"x":1}')]}, "tool_calls"
            )
        ),
        completion_of(choice_of({"content": "a"}), choice_of({"content": "b"}, "length", 1)),
        completion_of(choice_of({"content": "a", "annotations": [{"type": "url_citation"}]})),
        completion_of(choice_of({"content": "a"}, logprobs=LOGPROBS)),
        completion_of(choice_of({"content": "a"}, x_filter={"a": 1})),
    ],
    ids=[
        "text",
        "empty",
        "usage",
        "reasoning",
        "tools",
        "two",
        "annotations",
        "logprobs",
        "unknown",
    ],
)
def test_a_whole_completion_survives_becoming_a_stream_and_back(completion: dict[str, Any]) -> None:
    assert again(completion) == completion


@EXAMPLES
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"content": st.text()}, optional={"reasoning_content": st.text(min_size=1)}
        ),
        min_size=1,
        max_size=3,
    ),
    finish=st.sampled_from(["stop", "length", "content_filter"]),
    usage=st.none() | st.fixed_dictionaries({"total_tokens": st.integers(0)}),
)
def test_any_text_completion_survives_becoming_a_stream_and_back(
    messages: list[dict[str, Any]], finish: str, usage: dict[str, Any] | None
) -> None:
    choices = [choice_of(message, finish, index) for index, message in enumerate(messages)]
    completion = completion_of(*choices, **({"usage": usage} if usage else {}))

    assert again(completion) == completion


def test_usage_is_left_out_of_the_stream_unless_wanted() -> None:
    completion = completion_of(choice_of({"content": "a"}), usage={"total_tokens": 5})

    assert b"total_tokens" not in b"".join(chunks_of(completion, with_usage=False))


@pytest.mark.parametrize(
    "completion",
    [
        {},
        {"choices": None},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [None]},
        {"choices": [{"message": {"tool_calls": [None]}}]},
        {"choices": [{"message": "text"}]},
    ],
    ids=str,
)
def test_junk_of_an_upstream_that_does_not_stream_does_no_harm(completion: dict[str, Any]) -> None:
    for event in chunks_of(completion, with_usage=True):
        assert sse.parse(event.strip())["object"] == "chat.completion.chunk"


# --- several completions as one ------------------------------------------------------------------


def single(text: str, **usage: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": f"id-{text}",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **({"usage": usage} if usage else {}),
    }


def test_choices_are_numbered_and_usage_is_summed() -> None:
    first = single("a", prompt_tokens=5, completion_tokens=1, prompt_tokens_details=None)
    second = single("b", prompt_tokens=5, prompt_tokens_details={"cached_tokens": 4})
    third = single("c", prompt_tokens=5, prompt_tokens_details={"cached_tokens": 2})

    whole = combined([first, second, third])

    assert whole["id"] == "id-a"
    assert [(c["index"], c["message"]["content"]) for c in whole["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]
    assert whole["usage"] == {
        "prompt_tokens": 15,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    assert first["choices"][0]["index"] == 0


def test_unknown_usage_stays_unknown() -> None:
    assert "usage" not in combined([single("a"), single("b")])


# --- a whole answer of an upstream ----------------------------------------------------------------


def answer_of(message: dict[str, Any], finish: Any = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c", "created": 7, "x": 1, "choices": [choice]}


def test_what_openai_would_answer_is_not_touched() -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    for value in (
        answer_of({"role": "assistant", "content": "hi"}),
        answer_of({"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"),
        {"choices": "none"},
        {},
    ):
        assert mended(value) is value


def test_the_calls_of_a_whole_answer_are_mended_as_those_of_a_stream() -> None:
    def call_of(arguments: Any, **more: Any) -> dict[str, Any]:
        return {"id": "call_a", "function": {"name": "f", "arguments": arguments, "y": 2}, **more}

    calls = [call_of('{"x":1}', z=3), call_of(None), call_of("")]
    message = mended(answer_of({"tool_calls": calls}))["choices"][0]["message"]
    streamed = Completion()
    for event in chunks_of(answer_of({"tool_calls": calls}), with_usage=True):
        streamed.add(sse.parse(event))
    choice = streamed.render(id="", model="", created=0)["choices"][0]

    found = message["tool_calls"]
    assert message["content"] is None
    assert [each["function"]["arguments"] for each in found] == ['{"x":1}', "{}", "{}"]
    assert (found[0]["id"], found[0]["z"], found[0]["function"]["y"]) == ("call_a", 3, 2)
    assert len({each["id"] for each in found}) == 3
    assert [each["id"] for each in found] == [
        each["id"] for each in choice["message"]["tool_calls"]
    ]


@pytest.mark.parametrize("arguments", ["", None, " "])
def test_a_legacy_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    function = {"name": "f", "arguments": arguments}
    message = {"role": "assistant", "content": None, "function_call": function}

    whole_choice = mended(answer_of(message, None))["choices"][0]
    summed = message_of(chunk({"function_call": function}))

    assert whole_choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert whole_choice["finish_reason"] == "function_call"
    assert summed["function_call"]["arguments"] == "{}"


@pytest.mark.parametrize(
    ("finish", "expected"),
    [(None, "stop"), ("", "stop"), ("eos", "stop"), ("max_tokens", "length"), (0, "stop")],
)
def test_a_whole_answer_has_one_of_openais_finish_reasons(finish: Any, expected: str) -> None:
    value = mended(answer_of({"role": "assistant", "content": "x"}, finish))

    assert value["choices"][0]["finish_reason"] == expected
