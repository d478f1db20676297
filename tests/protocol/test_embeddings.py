"""Embeddings: requests split to Model Studio's limits, and their answers combined."""

from __future__ import annotations

import array
import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest, UpstreamError
from qwen_wsgi.protocol.content_parts import Part
from qwen_wsgi.protocol.embeddings import (
    EmbeddingRequest,
    calls_for,
    combine,
    parse_request,
)
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.validation import model_of
from tests.kit.properties import examples


def request_of(**members: Any) -> EmbeddingRequest:
    return parse_request(JsonObject(json.dumps({"model": "text-embedding-v4", **members}).encode()))


def answer_to(body: bytes, *, model: str | None = "text-embedding-v4") -> dict[str, Any]:
    """What an upstream says; a row's vector is made of its text."""
    rows = json.loads(body)["input"]
    data = [
        {"object": "embedding", "index": index, "embedding": vector_of(row)}
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": len(rows), "total_tokens": len(rows)}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def upstream_bodies(request: EmbeddingRequest, *, model: str) -> list[bytes]:
    """The bodies for a model of texts."""
    calls = calls_for(request, model=model, strict=True)
    assert (calls.native_path, calls.changed) == ("", ())
    return calls.bodies


def vector_of(row: str) -> list[float]:
    return [float(len(row)), sum(map(ord, row)) / 64, -0.5]


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": {"a": 1}}, "input", "invalid_type"),
        ({"input": True}, "input", "invalid_type"),
        ({"input": []}, "input", "invalid_type"),
        ({"input": ""}, "input", "empty_string"),
        ({"input": ["a", ""]}, "input", "empty_string"),
        ({"input": ["a", None]}, "input", "invalid_type"),
        ({"input": [{"text": 5}]}, "input[0].text", "invalid_type"),
        ({"input": [{}]}, "input[0]", "invalid_value"),
        ({"input": [[{"type": "audio"}]]}, "input[0][0].type", "invalid_value"),
        ({"input": ["a", {"text": ""}]}, "input", "empty_string"),
        ({"input": [[{"text": "a"}] * 101]}, "input[0]", "array_above_max_length"),
        ({"input": "a", "dimensions": "64"}, "dimensions", "invalid_type"),
        ({"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"input": [1.5]}, "input", "invalid_type"),
        ({"input": ["x"] * 2049}, "input", "array_above_max_length"),
        ({"input": [1, 2, 3]}, "input", "token_input_unsupported"),
        ({"input": [[1, 2], [3]]}, "input", "token_input_unsupported"),
        ({"input": ["a", [1]]}, "input", "token_input_unsupported"),
        ({"input": [[]]}, "input", "token_input_unsupported"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"input": "a", "encoding_format": ["float"]}, "encoding_format", "invalid_value"),
        ({"input": "a", "encoding_format": 5}, "encoding_format", "invalid_value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_is_refused_with_openai_words(
    members: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        request_of(**members)

    error = caught.value
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert (error.param, error.code) == (param, code)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ([], "expected a string or a non-empty array of strings, but got an empty array instead."),
        (5, "expected a string or a non-empty array of strings, but got an integer instead."),
        (["a", None], "expected an array of strings, but got null instead."),
    ],
)
def test_a_wrong_type_is_named(value: Any, got: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request_of(input=value)

    assert caught.value.message == f"Invalid type for 'input': {got}"


def test_token_ids_are_refused_with_the_way_out() -> None:
    with pytest.raises(BadRequest, match="check_embedding_ctx_length=False"):
        request_of(input=[[1, 2]])


def test_a_model_that_is_no_text_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        model_of(JsonObject(b'{"model":5}'))

    assert caught.value.param == "model"


def test_a_model_that_is_no_text_is_refused_as_by_chat() -> None:
    with pytest.raises(BadRequest) as caught:
        model_of(JsonObject(b'{"model":5}'))

    assert caught.value.code == "invalid_type"


@pytest.mark.parametrize(
    ("text", "model"),
    [('{"model":"m"}', "m"), ('{"model":null}', ""), ("{}", ""), ('{"model":""}', "")],
)
def test_the_model_is_read(text: str, model: str) -> None:
    assert model_of(JsonObject(text.encode())) == model


@pytest.mark.parametrize(
    ("given_format", "as_base64"), [("base64", True), ("float", False), (None, False), ("", False)]
)
def test_the_encoding_is_float_unless_base64_is_asked(given_format: Any, as_base64: bool) -> None:
    assert request_of(input="a", encoding_format=given_format).base64 is as_base64
    assert request_of(input="a").base64 is False


def test_a_text_and_a_list_of_one_text_are_the_same() -> None:
    assert request_of(input="a").rows == request_of(input=["a"]).rows == ((Part("text", "a"),),)


@pytest.mark.parametrize(
    ("model", "rows", "sizes"),
    [
        ("text-embedding-v4", 1, [1]),
        ("text-embedding-v4", 10, [10]),
        ("text-embedding-v4", 11, [10, 1]),
        ("text-embedding-v3", 25, [10, 10, 5]),
        ("text-embedding-v1", 25, [25]),
        ("text-embedding-v2", 51, [25, 25, 1]),
        ("of-the-future", 20, [10, 10]),
        ("text-embedding-v4", 2048, [10] * 204 + [8]),
    ],
)
def test_rows_are_sent_in_batches_that_the_model_takes(
    model: str, rows: int, sizes: list[int]
) -> None:
    texts = [f"row {i}" for i in range(rows)]

    bodies = [json.loads(body) for body in upstream_bodies(request_of(input=texts), model=model)]

    assert [len(body["input"]) for body in bodies] == sizes
    assert [row for body in bodies for row in body["input"]] == texts
    assert {body["model"] for body in bodies} == {model}
    assert {body["encoding_format"] for body in bodies} == {"float"}


def test_other_fields_go_up_to_the_letter() -> None:
    text = '{"input":"é","dimensions":256.0,"x":[1e5],"encoding_format":"base64","user":"\\u00e9"}'
    request = parse_request(JsonObject(text.encode()))

    (body,) = upstream_bodies(request, model="text-embedding-v4")

    assert b'"dimensions":256.0,"x":[1e5]' in body
    assert b'"user":"\\u00e9"' in body
    assert '"input":["é"]'.encode() in body


def test_half_a_surrogate_pair_in_a_row_does_no_harm() -> None:
    request = parse_request(JsonObject(b'{"input":"\\ud83d"}'))

    assert json.loads(upstream_bodies(request, model="m")[0])["input"] == ["\ud83d"]


def answered(rows: list[str], **members: Any) -> dict[str, Any]:
    request = request_of(input=rows, **members)
    answers = [answer_to(body) for body in upstream_bodies(request, model="text-embedding-v4")]
    return combine(request, answers)


@examples(60)
@given(rows=st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=35))
def test_rows_come_back_in_order_with_the_usage_of_all_calls(rows: list[str]) -> None:
    assert answered(rows) == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector_of(row)}
            for index, row in enumerate(rows)
        ],
        "model": "text-embedding-v4",
        "usage": {"prompt_tokens": len(rows), "total_tokens": len(rows)},
    }


def test_rows_that_the_upstream_shuffled_are_put_in_order() -> None:
    request = request_of(input=[f"{i:03}" for i in range(12)])
    answers = [answer_to(body) for body in upstream_bodies(request, model="m")]
    for answer in answers:
        answer["data"].reverse()

    rows = combine(request, answers)["data"]

    assert [row["embedding"] for row in rows] == [vector_of(f"{i:03}") for i in range(12)]
    assert [row["index"] for row in rows] == list(range(12))


def test_rows_without_an_index_are_taken_as_they_come() -> None:
    request = request_of(input=["a", "b"])
    data = [{"embedding": [1.0]}, {"embedding": [2.0]}]

    assert [row["embedding"] for row in combine(request, [{"data": data}])["data"]] == [
        [1.0],
        [2.0],
    ]


@examples(100)
@given(
    vector=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20
    )
)
def test_base64_is_little_endian_float32_and_reads_back_exactly(vector: list[float]) -> None:
    request = request_of(input="a", encoding_format="base64")

    answer = combine(request, [{"data": [{"index": 0, "embedding": vector}]}])

    raw = base64.b64decode(answer["data"][0]["embedding"], validate=True)
    assert list(struct.unpack(f"<{len(vector)}f", raw)) == vector


def test_base64_reads_back_as_the_official_sdk_reads_it() -> None:
    text = answered(["hello"], encoding_format="base64")["data"][0]["embedding"]

    assert array.array("f", base64.b64decode(text)).tolist() == vector_of("hello")


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize(
    "data",
    [
        None,
        "rows",
        {},
        [],
        [None],
        ["x"],
        [{}],
        [{"index": 0}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}],
        [{"index": "a", "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}],
        [{"index": 1, "embedding": [1.0]}],
        [{"index": None, "embedding": [1.0]}],
    ],
    ids=str,
)
def test_an_answer_that_does_not_match_the_rows_is_an_error_of_the_upstream(
    data: Any, encoding: str
) -> None:
    request = request_of(input=["a"], encoding_format=encoding)

    with pytest.raises(UpstreamError) as caught:
        combine(request, [{"data": data}])

    assert (caught.value.status, caught.value.code) == (502, "upstream_bad_answer")


@pytest.mark.parametrize(
    "encoding",
    [
        "base64",
        "float",
    ],
)
@pytest.mark.parametrize(
    "vector",
    [
        *(None, "AAAA", 5, {"a": 1}, [], ["x"], [None], [[1.0]]),
        *([math.nan], [0.5, math.inf], [1e300], [10**400]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_something_that_is_no_vector_is_an_error_of_the_upstream(
    vector: Any, encoding: str
) -> None:
    request = request_of(input=["a"], encoding_format=encoding)

    with pytest.raises(UpstreamError, match="do not match"):
        combine(request, [{"data": [{"index": 0, "embedding": vector}]}])


def test_a_batch_with_too_few_rows_is_not_made_good_by_another_with_too_many() -> None:
    request = request_of(input=[f"{i:03}" for i in range(12)])
    first, second = (answer_to(body) for body in upstream_bodies(request, model="m"))
    second["data"].append(first["data"].pop())

    with pytest.raises(UpstreamError):
        combine(request, [first, second])


@pytest.mark.parametrize("usage", [None, 5, {}, {"prompt_tokens": None}, {"prompt_tokens": "3"}])
def test_a_usage_that_tells_nothing_adds_nothing(usage: Any) -> None:
    request = request_of(input=["a"])

    answer = combine(request, [{"data": [{"embedding": [1.0]}], "usage": usage}])

    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_the_model_is_the_one_that_answered_else_the_one_that_was_asked_for() -> None:
    request = request_of(input=["a"])
    data = [{"embedding": [1.0]}]

    assert combine(request, [{"data": data, "model": "v4-0901"}])["model"] == "v4-0901"
    assert combine(request, [{"data": data}])["model"] == "text-embedding-v4"


def test_an_index_that_comes_twice_is_an_error_of_the_upstream() -> None:
    request = request_of(input=["a", "b"])
    row = {"index": 0, "embedding": [1.0]}

    with pytest.raises(UpstreamError, match="do not match"):
        combine(request, [{"data": [row, row]}])


@pytest.mark.parametrize("row", [{"type": "text", "text": "a"}, {"text": "a"}, [{"text": "a"}]])
def test_a_part_of_text_is_a_text_for_a_model_of_texts(row: Any) -> None:
    (body,) = upstream_bodies(request_of(input=[row, "b"]), model="text-embedding-v4")

    assert json.loads(body)["input"] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"image": "https://x/1.png"}, "takes no images"),
        ([{"text": "a"}, {"video": "https://x/1.mp4"}], "takes no videos"),
        ([{"text": "a"}, {"text": "b"}], "takes one text a row"),
    ],
)
def test_a_model_of_texts_refuses_other_rows_and_names_a_model_that_takes_them(
    row: Any, why: str
) -> None:
    with pytest.raises(BadRequest, match=why) as caught:
        calls_for(request_of(input=["a", row]), model="text-embedding-v4")

    assert "qwen3-vl-embedding" in caught.value.message
    assert "input[1]" in caught.value.message
    assert (caught.value.param, caught.value.code) == ("input", "unsupported_content")
