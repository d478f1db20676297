"""Ranking: requests of Cohere's and Jina's form, both routes of Model Studio, and the answers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest, UpstreamError
from qwen_wsgi.protocol import rerank
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.rerank import RerankRequest
from tests.kit.properties import examples

TEXTS = ["a", "b", "c"]
PICTURE = {"image": "https://x/1.png"}


def request_of(documents: Any = TEXTS, **members: Any) -> RerankRequest:
    body = {"model": "qwen3-rerank", "query": "q", "documents": documents, **members}
    return rerank.parse_request(JsonObject(json.dumps(body).encode()))


def called(
    request: RerankRequest, model: str = "qwen3-rerank", *, strict: bool = False
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    path, body, changed = rerank.call_for(request, model=model, strict=strict)
    return path, json.loads(body), changed


def answered(request: RerankRequest, told: Any, *, with_texts: bool = False) -> dict[str, Any]:
    return rerank.answer(
        request, told, model="client's name", fallback_id="rerank-1", with_texts=with_texts
    )


def results(*scores: Any) -> list[dict[str, Any]]:
    return [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]


# --- the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"query": None}, "query", "missing_required_parameter"),
        ({"query": ""}, "query", "empty_string"),
        ({"query": {"text": ""}}, "query", "empty_string"),
        ({"query": 5}, "query", "invalid_type"),
        ({"query": ["q"]}, "query", "invalid_type"),
        ({"query": {"text": "q", **PICTURE}}, "query", "invalid_value"),
        ({"documents": None}, "documents", "missing_required_parameter"),
        ({"documents": []}, "documents", "invalid_type"),
        ({"documents": "a"}, "documents", "invalid_type"),
        ({"documents": {"text": "a"}}, "documents", "invalid_type"),
        ({"documents": ["a", 5]}, "documents[1]", "invalid_type"),
        ({"documents": ["a", None]}, "documents[1]", "invalid_type"),
        ({"documents": [{"title": "a"}]}, "documents[0]", "invalid_value"),
        ({"documents": [{"text": "a", **PICTURE}]}, "documents[0]", "invalid_value"),
        ({"documents": [{"image": "here"}]}, "documents[0].image", "invalid_value"),
        ({"documents": ["a"] * 501}, "documents", "array_above_max_length"),
        ({"top_n": 0}, "top_n", "integer_below_min_value"),
        ({"top_n": "3"}, "top_n", "invalid_type"),
        ({"top_n": True}, "top_n", "invalid_type"),
        ({"return_documents": "yes"}, "return_documents", "invalid_type"),
        ({"instruct": 5}, "instruct", "invalid_type"),
        ({"instruction": ["x"]}, "instruction", "invalid_type"),
        ({"model": 5}, "model", "invalid_type"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_is_refused_with_its_member(
    members: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        request_of(**members)

    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.parametrize("model", ["qwen3-rerank", "qwen3.7-text-rerank", "qwen4-rerank"])
def test_models_of_texts_are_called_by_the_compatible_route(model: str) -> None:
    request = request_of(["a", {"text": "b"}, {"type": "text", "text": "c"}], top_n=2, instruct="i")

    assert called(request, model) == (
        "/compatible-api/v1/reranks",
        {"model": model, "query": "q", "documents": TEXTS, "top_n": 2, "instruct": "i"},
        (),
    )


def test_a_model_of_pictures_is_called_by_the_native_route() -> None:
    documents = ["a", PICTURE, {"type": "image_url", "image_url": {"url": "https://x/2.png"}}]
    request = request_of(documents, query=PICTURE, instruction="i", fps=0.5)

    assert called(request, "qwen3-vl-rerank") == (
        "/api/v1/services/rerank/text-rerank/text-rerank",
        {
            "model": "qwen3-vl-rerank",
            "input": {
                "query": PICTURE,
                "documents": [{"text": "a"}, PICTURE, {"image": "https://x/2.png"}],
            },
            "parameters": {"top_n": 3, "instruct": "i", "fps": 0.5},
        },
        ("instruction:as-instruct",),
    )


def test_gte_gets_texts_by_the_native_route_and_no_instruction() -> None:
    path, body, changed = called(request_of(instruct="i"), "gte-rerank-v2")

    assert path == "/api/v1/services/rerank/text-rerank/text-rerank"
    assert body["input"] == {"query": "q", "documents": TEXTS}
    assert body["parameters"] == {"top_n": 3}
    assert changed == ("instruct:dropped",)
    with pytest.raises(BadRequest, match="is not read by gte-rerank-v2"):
        called(request_of(instruct="i"), "gte-rerank-v2", strict=True)


@pytest.mark.parametrize(
    ("documents", "model", "why"),
    [
        (["a"] * 101, "qwen3-vl-rerank", "at most 100 texts, 101 were sent"),
        ([PICTURE] * 41, "qwen3-vl-rerank", "at most 40 images, 41 were sent"),
        ([{"video": "https://x/1.mp4"}] * 5, "qwen3-vl-rerank", "at most 4 videos, 5 were sent"),
        (["a", PICTURE], "qwen3-rerank", "ranks texts only; `qwen3-vl-rerank` ranks pictures"),
        ([PICTURE], "gte-rerank-v2", "ranks texts only"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_documents_that_a_model_does_not_rank_are_refused(
    documents: Any, model: str, why: str
) -> None:
    with pytest.raises(BadRequest, match=why) as caught:
        called(request_of(documents), model)

    assert caught.value.param == "documents"


def test_a_query_that_a_model_does_not_take_is_refused() -> None:
    with pytest.raises(BadRequest, match="`qwen3-vl-rerank`") as caught:
        called(request_of(query=PICTURE))
    assert caught.value.param == "query"
    with pytest.raises(BadRequest, match="takes no video as a query"):
        called(request_of(query={"video": "https://x/1.mp4"}), "qwen3-vl-rerank")


def test_what_has_no_counterpart_is_dropped_and_told_or_refused() -> None:
    members = {"max_tokens_per_doc": 512, "rank_fields": ["text"], "priority": 0, "unset": None}
    request = request_of(**members, user="u", fps=1.0)

    _, body, changed = called(request)

    assert body.keys() == {"model", "query", "documents", "top_n"}
    dropped = ("max_tokens_per_doc", "rank_fields", "priority", "user", "fps")
    assert changed == tuple(f"{name}:dropped" for name in dropped)
    with pytest.raises(BadRequest, match="QWEN_PROXY_STRICT") as caught:
        called(request, strict=True)
    assert caught.value.param == "max_tokens_per_doc"
    assert called(request_of(user="u", priority=1), strict=True)[2] == (
        "user:dropped",
        "priority:dropped",
    )


def test_more_results_than_documents_are_not_asked_for() -> None:
    assert called(request_of(top_n=99))[1]["top_n"] == 3
    assert called(request_of(top_n=None))[1]["top_n"] == 3


# --- the answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [False, True])
def test_an_answer_of_either_route_has_the_form_of_cohere_and_jina(native: bool) -> None:
    told: dict[str, Any] = {"results": results(0.1, 0.9, 0.5), "id": "up-1"}
    if native:
        told = {"output": {"results": results(0.1, 0.9, 0.5)}, "request_id": "up-1"}

    assert answered(request_of(top_n=2), {**told, "usage": {"total_tokens": 79}}) == {
        "id": "up-1",
        "object": "list",
        "model": "client's name",
        "results": [
            {"index": 1, "relevance_score": 0.9},
            {"index": 2, "relevance_score": 0.5},
        ],
        "usage": {"prompt_tokens": 79, "total_tokens": 79},
        "meta": {"tokens": {"input_tokens": 79, "output_tokens": 0}},
    }


@pytest.mark.parametrize("usage", [None, 5, {}, {"total_tokens": "3"}, {"total_tokens": True}])
def test_a_usage_that_tells_nothing_and_no_id_do_no_harm(usage: Any) -> None:
    answer = answered(request_of(), {"results": results(1, 1, 1), "usage": usage, "id": 5})

    assert answer["usage"]["total_tokens"] == 0
    assert answer["id"] == "rerank-1"


@pytest.mark.parametrize(
    ("wanted", "with_texts", "returned"),
    [
        (True, False, [{"text": "a"}, {"text": "b", "n": 1}, PICTURE]),
        (False, True, [None, None, None]),
        (None, False, [None, None, None]),
        (None, True, [{"text": "a"}, {"text": "b", "n": 1}, None]),
    ],
)
def test_documents_come_back_as_they_were_sent(
    wanted: bool | None, with_texts: bool, returned: list[Any]
) -> None:
    request = request_of(["a", {"text": "b", "n": 1}, PICTURE], return_documents=wanted)

    answer = answered(request, {"results": results(3, 2, 1)}, with_texts=with_texts)

    assert [result.get("document") for result in answer["results"]] == returned


@pytest.mark.parametrize(
    "told",
    [
        None,
        "x",
        [],
        results(1, 2),
        [*results(1, 2, 3), {"index": 2, "relevance_score": 1}],
        [*results(1, 2), {"index": 1, "relevance_score": 1}],
        [*results(1, 2), {"index": 3, "relevance_score": 1}],
        [*results(1, 2), {"index": -1, "relevance_score": 1}],
        [*results(1, 2), {"index": "2", "relevance_score": 1}],
        [*results(1, 2), {"index": True, "relevance_score": 1}],
        [*results(1, 2), {"relevance_score": 1}],
        [*results(1, 2), {"index": 2}],
        [*results(1, 2), None],
        results(1, 2, math.nan),
        results(1, 2, math.inf),
        results(1, 2, "0.5"),
        results(1, 2, True),
        results(1, 2, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("native", [False, True])
def test_a_ranking_that_does_not_match_the_documents_is_an_error_of_the_upstream(
    told: Any, native: bool
) -> None:
    answer = {"output": {"results": told}} if native else {"results": told}

    with pytest.raises(UpstreamError) as caught:
        answered(request_of(), answer)

    assert (caught.value.status, caught.value.code) == (502, "upstream_bad_answer")


def test_a_number_of_any_size_is_a_score() -> None:
    answer = answered(request_of(), {"results": results(10**400, -1, 0)})

    assert [each["index"] for each in answer["results"]] == [0, 2, 1]


@examples(100)
@given(
    scores=st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 3), min_size=1
    ),
    data=st.data(),
)
def test_results_are_the_best_documents_in_order_whatever_the_upstreams_order(
    scores: list[float], data: st.DataObject
) -> None:
    top_n = data.draw(st.integers(1, len(scores) + 2))
    told = data.draw(st.permutations(results(*scores)))

    answer = answered(
        request_of([str(n) for n in range(len(scores))], top_n=top_n), {"results": told}
    )

    got = [(each["relevance_score"], each["index"]) for each in answer["results"]]
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:top_n]
    assert [index for _, index in got] == best
    assert [score for score, _ in got] == [scores[index] for index in best]
