"""Completions, translated to chat or sent to an upstream that has them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import ApiError, BadRequest, UpstreamError
from qwen_wsgi.protocol import completions, sse
from qwen_wsgi.protocol.completions import (
    CompletionsEncoder,
    CompletionsRequest,
    chat_requests,
    parse_request,
)
from qwen_wsgi.protocol.json_object import JsonObject, compact


def parsed(body: Any = None, **members: Any) -> CompletionsRequest:
    return parse_request(
        JsonObject(compact({"prompt": "Once", **(body or {}), **members}).encode())
    )


def chats(request: CompletionsRequest, *, thinking: bool = False) -> list[dict[str, Any]]:
    return [json.loads(each.body.render()) for each in chat_requests(request, thinking=thinking)[0]]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# --- requests -----------------------------------------------------------------------------------


def test_a_prompt_becomes_a_users_message_and_the_rest_stays_as_it_was() -> None:
    body = b'{ "model":"m", "prompt": "Once", "temperature": 1.0, "max_tokens": 5, "stop":["x"],'
    body += b'"n":2,"seed":7,"presence_penalty":0.50,"user":"u","x_own":{"a": 1}}'

    (request,), changed = chat_requests(parse_request(JsonObject(body)), thinking=False)

    encoded = request.body.render()
    for member in (b'"temperature":1.0', b'"presence_penalty":0.50', b'"x_own":{"a": 1}'):
        assert member in encoded
    assert json.loads(encoded) == {
        "model": "m",
        "temperature": 1.0,
        "max_tokens": 5,
        "stop": ["x"],
        "n": 2,
        "seed": 7,
        "presence_penalty": 0.5,
        "user": "u",
        "x_own": {"a": 1},
        "messages": user("Once"),
        "enable_thinking": False,
    }
    assert changed == ("thinking:off",)
    assert (request.model, request.stream, request.wants_usage) == ("m", False, False)


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_is_asked_for_as_a_stream(usage: bool) -> None:
    parsed_request = parsed(stream=True, stream_options={"include_usage": usage})

    (request,), _ = chat_requests(parsed_request, thinking=False)

    assert (parsed_request.stream, parsed_request.wants_usage) == (True, usage)
    assert (request.stream, request.wants_usage) == (True, usage)


@pytest.mark.parametrize(
    "wish",
    [
        {"enable_thinking": True},
        {"enable_thinking": False},
        {"think": True},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"thinking_budget": 100},
        {"reasoning_effort": "low"},
        {"reasoning": {"effort": "low"}},
    ],
    ids=str,
)
def test_who_says_something_of_thinking_is_believed(wish: dict[str, Any]) -> None:
    parsed_request = parsed(wish)

    assert chats(parsed_request) == [{**wish, "messages": user("Once")}]
    assert chat_requests(parsed_request, thinking=False)[1] == ()


def test_others_than_qwens_hosts_get_nothing_that_the_client_did_not_send() -> None:
    assert chats(parsed(), thinking=True) == [{"messages": user("Once")}]
    assert chat_requests(parsed(), thinking=True)[1] == ()
    assert chats(parsed(enable_thinking=None)) == [
        {"enable_thinking": False, "messages": user("Once")}
    ]


def test_each_prompt_becomes_a_chat_of_its_own() -> None:
    assert [each["messages"] for each in chats(parsed(prompt=["a", "", "c"]))] == [
        user("a"),
        user(""),
        user("c"),
    ]


def test_what_asks_for_nothing_special_is_left_out() -> None:
    parsed_request = parsed(echo=False, best_of=1, logprobs=None, suffix="", messages=["mine"])

    assert chats(parsed_request, thinking=True) == [{"messages": user("Once")}]
    assert not parsed_request.has_gap


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"model": 1}, "model", "invalid_type"),
        ({"suffix": ["x"]}, "suffix", "invalid_type"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": {}}, "prompt", "invalid_type"),
        ({"prompt": 1.5}, "prompt", "invalid_type"),
        ({"prompt": ["a", None]}, "prompt", "invalid_type"),
        ({"prompt": ["a", {}]}, "prompt", "invalid_type"),
        ({"prompt": [1, 2]}, "prompt", "token_input_unsupported"),
        ({"prompt": [[1, 2], [3]]}, "prompt", "token_input_unsupported"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt", "unsupported_parameter"),
        ({"prompt": ["a"] * 65}, "prompt", "array_above_max_length"),
        ({"prompt": ["a"] * 64, "n": 5}, "n", "integer_above_max_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"best_of": "x"}, "best_of", "unsupported_parameter"),
        ({"logprobs": 0}, "logprobs", "unsupported_parameter"),
        ({"logprobs": 5}, "logprobs", "unsupported_parameter"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": []}, "stream_options", "invalid_type"),
        ({"stream_options": {}}, "stream_options", None),
    ],
    ids=str,
)
def test_what_chat_cannot_do_is_refused_by_its_name(
    members: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(BadRequest) as caught:
        chat_requests(parsed(members), thinking=False)

    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert f"'{param}'" in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = ("model", "prompt", "suffix", "echo", "best_of", "logprobs", "stream", "stream_options")


@given(st.dictionaries(st.sampled_from(MEMBERS), JSON, max_size=5))
def test_whatever_is_sent_is_taken_or_refused(body: dict[str, Any]) -> None:
    try:
        parsed_request = parse_request(JsonObject(compact(body).encode()))
        made, _ = chat_requests(parsed_request, thinking=False)
    except BadRequest as error:
        assert error.param in MEMBERS
    else:
        assert [each.body["messages"][0]["content"] for each in made] == (
            [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        )
        assert all(each.stream is parsed_request.stream for each in made)


# --- whole answers ------------------------------------------------------------------------------


def completion(*texts: str | None, usage: Any = None, **members: Any) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "reasoning_content": "hm"},
            "finish_reason": "stop",
            "logprobs": None,
        }
        for index, text in enumerate(texts)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "other",
        "choices": choices,
        **({} if usage is None else {"usage": usage}),
        **members,
    }


def whole(*made: dict[str, Any]) -> dict[str, Any]:
    return completions.whole(made, id="cmpl-7", model="m", created=9)


def test_a_whole_answer_in_the_old_form() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

    assert whole(completion(" upon a time", usage=usage)) == {
        "id": "cmpl-7",
        "object": "text_completion",
        "created": 9,
        "model": "m",
        "choices": [
            {"text": " upon a time", "index": 0, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": usage,
    }


def test_choices_are_numbered_prompt_by_prompt_and_usage_is_summed() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

    encoded = whole(completion("a", "b", usage=usage), completion("c", "d", usage=usage))

    assert [(each["index"], each["text"]) for each in encoded["choices"]] == [
        *((0, "a"), (1, "b"), (2, "c"), (3, "d"))
    ]
    assert encoded["usage"] == {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}


@pytest.mark.parametrize(
    ("reason", "encoded"),
    [
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "stop"),
        (None, "stop"),
        (7, "stop"),
    ],
)
def test_a_finish_is_told_in_the_words_of_completions(reason: Any, encoded: str) -> None:
    made = completion("x")
    made["choices"][0]["finish_reason"] = reason

    assert whole(made)["choices"][0]["finish_reason"] == encoded


@pytest.mark.parametrize(
    "choices", [None, 1, [None], [1, []], [{}], [{"message": 1}], [{"message": {"content": []}}]]
)
def test_an_answer_that_is_none_makes_no_fault(choices: Any) -> None:
    encoded = whole(completion(usage=None, choices=choices))

    assert all(each["text"] == "" for each in encoded["choices"])
    assert "usage" not in encoded


# --- streams ------------------------------------------------------------------------------------


def encoder(*, with_usage: bool = False) -> CompletionsEncoder:
    return CompletionsEncoder(id="cmpl-7", model="m", created=9, with_usage=with_usage)


def chunk(delta: Any = None, finish: Any = None, index: int = 0, **members: Any) -> bytes:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return sse.render({"id": "c", "model": "other", "choices": [choice], **members})


def encoded(events: bytes) -> list[Any]:
    assert events.endswith(b"\n\n") or not events
    return [sse.parse(event) for event in sse.events(events)]


HEAD = {"id": "cmpl-7", "object": "text_completion", "created": 9, "model": "m"}


def text(piece: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"text": piece, "index": index, "logprobs": None, "finish_reason": finish}
    return {**HEAD, "choices": [choice]}


def test_a_stream_in_the_old_form() -> None:
    made = encoder()
    events = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "let me think"}),
        chunk({"content": "Grüße, "}),
        chunk({"content": '世界"\n'}),
        chunk(finish="length"),
    ]

    assert encoded(made.feed(b"".join(events))) == [
        text("Grüße, "),
        text('世界"\n'),
        text("", "length"),
    ]
    assert made.end() == b"data: [DONE]\n\n"


@given(st.lists(st.text(), max_size=20), st.data())
def test_the_text_arrives_however_the_stream_is_cut(pieces: list[str], data: st.DataObject) -> None:
    made, out = encoder(), b""
    rest = [chunk({"content": piece}) for piece in pieces]
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        out += made.feed(b"".join(rest[:count]))
        rest = rest[count:]

    assert "".join(each["choices"][0]["text"] for each in encoded(out)) == "".join(pieces)


def test_a_stream_tells_usage_as_openai_does() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    made = encoder(with_usage=True)

    out = made.feed(
        chunk({"content": "a"}, usage=None)
        + chunk(finish="stop", usage=None)
        + sse.render({"choices": [], "usage": usage})
    )

    assert encoded(out) == [
        {**text("a"), "usage": None},
        {**text("", "stop"), "usage": None},
        {**HEAD, "choices": [], "usage": usage},
    ]


def test_several_choices_keep_their_numbers() -> None:
    out = encoder().feed(
        chunk({"content": "a"}, index=1)
        + chunk({"content": "b"})
        + chunk({"content": "c"}, "stop", index=1)
    )

    assert encoded(out) == [text("a", index=1), text("b"), text("c", "stop", index=1)]


def test_a_failure_is_told_as_the_official_sdks_raise_it() -> None:
    made = encoder()

    assert made.ends_after_failure is False
    assert encoded(made.fail(ApiError("broken", code="x"))) == [ApiError("broken", code="x").body()]


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_keep_alive_says_nothing(with_usage: bool) -> None:
    made = encoder(with_usage=with_usage)

    assert made.keep_alive("comment").startswith(b":")
    expected = {**text(""), "usage": None} if with_usage else text("")
    assert encoded(made.keep_alive("chunk")) == [expected]


@given(JSON)
def test_whatever_a_chunk_holds_makes_no_fault(value: Any) -> None:
    made = encoder()
    for event in (
        sse.render(value),
        sse.render({"choices": value}),
        sse.render({"choices": [value]}),
        sse.render({"choices": [{"delta": value}]}),
        sse.render({"choices": [{"delta": {"content": value}, "finish_reason": value}]}),
        sse.render({"choices": [{"delta": {"content": "x"}, "index": value}]}),
    ):
        assert all(isinstance(each, dict) for each in encoded(made.feed(event)))


# --- natively -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fills"),
    [
        ("qwen2.5-coder-7b-instruct", True),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", True),
        ("qwen-coder-turbo", True),
        ("qwen-coder-turbo-latest", True),
        ("qwen3-coder-plus", False),
        ("qwen-coder-plus", False),
        ("not-qwen2.5-coder-7b", False),
    ],
)
def test_which_models_fill_gaps(model: str, fills: bool) -> None:
    assert completions.fills_in(model) is fills


@pytest.mark.parametrize(
    ("members", "gap"),
    [
        ({"suffix": "end"}, True),
        ({"prompt": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"}, True),
        ({"prompt": ["<|fim_prefix|>a"]}, True),
        ({}, False),
        ({"prompt": [1]}, False),
        ({"prompt": 1}, False),
    ],
    ids=str,
)
def test_where_there_is_a_gap(members: dict[str, Any], gap: bool) -> None:
    assert parsed(members).has_gap is gap


def test_a_gap_is_told_in_the_models_template() -> None:
    parsed_request = parsed(
        model="alias", prompt=["def f():"], suffix="return 1", max_tokens=9, stream=True, echo=False
    )

    assert json.loads(completions.gap_body(parsed_request, model="qwen-coder-turbo")) == {
        "model": "qwen-coder-turbo",
        "prompt": "<|fim_prefix|>def f():<|fim_suffix|>return 1<|fim_middle|>",
        "max_tokens": 9,
        "stream": False,
    }


def test_a_template_of_the_clients_own_stays() -> None:
    prompt = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"

    assert json.loads(completions.gap_body(parsed(prompt=prompt), model="m"))["prompt"] == prompt


@pytest.mark.parametrize("members", [{"prompt": ["a", "b"]}, {"echo": True}, {"prompt": [1]}])
def test_what_a_model_for_gaps_cannot_do_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        completions.gap_body(parsed(suffix="end", **members), model="m")


def test_a_server_that_knows_completions_gets_the_clients_own_bytes() -> None:
    body = b'{"model":"m", "prompt": [1, 2], "echo": true, "logprobs": 3, "best_of": 2}'
    parsed_request = parse_request(JsonObject(body))

    assert completions.native_body(parsed_request, model="m") == body
    streamed = parsed(model="m", stream=True, stream_options={"include_usage": True}, top_p=1.0)
    assert json.loads(completions.native_body(streamed, model="other")) == {
        "prompt": "Once",
        "model": "other",
        "stream": False,
        "top_p": 1.0,
    }


def test_a_native_answer_has_all_that_the_schema_requires() -> None:
    value = {
        "id": "x",
        "model": "upstreams",
        "choices": [{"text": "a", "logprobs": {"tokens": []}}],
    }

    assert completions.native_answer(value, model="mine") == {
        "id": "x",
        "object": "text_completion",
        "model": "mine",
        "choices": [{"text": "a", "index": 0, "logprobs": {"tokens": []}, "finish_reason": "stop"}],
    }


@pytest.mark.parametrize("choices", [None, 1, {}, [1], [None]])
def test_a_native_answer_without_choices_is_none(choices: Any) -> None:
    with pytest.raises(UpstreamError) as caught:
        completions.native_answer({"choices": choices}, model="m")

    assert caught.value.code == "upstream_bad_answer"


@pytest.mark.parametrize("with_usage", [True, False])
def test_a_native_answer_as_a_stream(with_usage: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    answer = {
        **HEAD,
        "choices": [{"text": "a", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": usage,
    }

    out = completions.events_of(answer, with_usage=with_usage)

    body, done = out[: -len(sse.DONE)], out[-len(sse.DONE) :]
    null = {"usage": None} if with_usage else {}
    last = [{**HEAD, "choices": [], "usage": usage}] if with_usage else []
    assert encoded(body) == [{**text("a"), **null}, {**text("", "length"), **null}, *last]
    assert done == sse.DONE
