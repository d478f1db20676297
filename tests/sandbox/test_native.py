"""The look-alike's native routes, and the compatible one for ranking: forms, quirks, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import KEY, call

RERANKS = "/compatible-api/v1/reranks"
RERANK = "/api/v1/services/rerank/text-rerank/text-rerank"
EMBED = "/api/v1/services/embeddings/multimodal-embedding/multimodal-embedding"
DOCUMENTS = ["a red fox", "snow", "red snow"]
PICTURE = {"image": "https://x/1.png"}


def post(sandbox: Sandbox, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"authorization": f"Bearer {KEY}", **named}
    answer = call(sandbox, "POST", path, json.dumps(body).encode(), sent)
    return answer.status, answer.json() if answer.body else None


def ranked(sandbox: Sandbox, model: str, **parameters: Any) -> tuple[int, Any]:
    asked = {"query": "red fox", "documents": DOCUMENTS}
    return post(sandbox, RERANK, {"model": model, "input": asked, "parameters": parameters})


def embedded(sandbox: Sandbox, model: str, contents: Any, **parameters: Any) -> tuple[int, Any]:
    body = {"model": model, "input": {"contents": contents}, "parameters": parameters}
    return post(sandbox, EMBED, body)


def test_both_routes_rank_alike_in_their_own_forms(sandbox: Sandbox) -> None:
    body = {"model": "qwen3-rerank", "query": "red fox", "documents": DOCUMENTS, "top_n": 2}
    status, plain = post(sandbox, RERANKS, {**body, "return_documents": True})
    native_status, native = ranked(sandbox, "gte-rerank-v2", top_n=2)

    assert (status, native_status) == (200, 200)
    expected = [{"index": 0, "relevance_score": 1.0}, {"index": 2, "relevance_score": 0.5}]
    assert plain["results"] == native["output"]["results"] == expected
    assert plain["usage"] == native["usage"]
    assert [record.route for record in sandbox.settle()] == ["reranks", "native-rerank"]


def test_the_native_route_returns_documents_and_the_compatible_one_does_not(
    sandbox: Sandbox,
) -> None:
    _, native = ranked(sandbox, "qwen3-vl-rerank", top_n=1, return_documents=True)

    assert native["output"]["results"][0]["document"] == {"text": "a red fox"}


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (RERANKS, {"model": "qwen3-vl-rerank"}, 404, "model_not_supported"),
        (RERANKS, {"model": "qwen3-rerank", "query": "q"}, 400, "InvalidParameter"),
        (RERANKS, {"model": "qwen3-rerank", "documents": ["a"]}, 400, "InvalidParameter"),
        (
            RERANKS,
            {"model": "qwen3-rerank", "query": "q", "documents": ["a"] * 501},
            400,
            "InvalidParameter",
        ),
        (
            RERANKS,
            {"model": "qwen3-rerank", "query": "q", "documents": [{"text": "a"}]},
            400,
            "InvalidParameter",
        ),
        (RERANK, {"model": "qwen3-rerank"}, 400, "InvalidParameter"),
        (RERANK, {"model": "gte-rerank-v2", "query": "q"}, 400, "InvalidParameter"),
        (
            RERANK,
            {"model": "gte-rerank-v2", "input": {"query": "q", "documents": [PICTURE]}},
            400,
            "InvalidParameter",
        ),
        (
            RERANK,
            {"model": "qwen3-vl-rerank", "input": {"query": "q", "documents": [PICTURE] * 41}},
            400,
            "InvalidParameter",
        ),
        (EMBED, {"model": "text-embedding-v4"}, 400, "InvalidParameter"),
        (EMBED, {"model": "qwen3-vl-embedding", "input": {}}, 400, "InvalidParameter"),
        (
            EMBED,
            {"model": "qwen3-vl-embedding", "input": {"contents": [{"type": "text"}]}},
            500,
            "InternalError.Algo",
        ),
    ],
    ids=lambda value: str(value)[-50:],
)
def test_refusals_are_those_of_the_route(
    sandbox: Sandbox, path: str, body: Any, status: int, code: str
) -> None:
    got, answer = post(sandbox, path, body)

    assert got == status
    assert answer.get("error", answer)["code"] == code


@pytest.mark.parametrize("path", [RERANK, EMBED])
def test_native_routes_that_are_not_asynchronous_say_so(sandbox: Sandbox, path: str) -> None:
    status, answer = post(sandbox, path, {"model": "x"}, x_dashscope_async="enable")

    assert (status, answer["code"]) == (403, "AccessDenied")
    assert "asynchronous" in answer["message"]


def test_a_key_is_needed_and_faults_can_be_asked_for(sandbox: Sandbox) -> None:
    assert call(sandbox, "POST", RERANK, b"{}").status == 401
    sandbox.control(faults={"native-rerank": "internal"})
    assert ranked(sandbox, "gte-rerank-v2")[0] == 500


def test_contents_are_embedded_one_by_one_or_fused(sandbox: Sandbox) -> None:
    contents = [{"text": "a"}, PICTURE]
    _, alone = embedded(sandbox, "qwen3-vl-embedding", contents, dimension=256)
    _, fused = embedded(sandbox, "qwen3-vl-embedding", contents, enable_fusion=True)
    _, always = embedded(sandbox, "qwen2.5-vl-embedding", contents)
    _, one = embedded(
        sandbox, "tongyi-embedding-vision-plus-2026-03-06", [{"text": "a", **PICTURE}]
    )

    rows = [answer["output"]["embeddings"] for answer in (alone, fused, always, one)]
    assert [[row["type"] for row in each] for each in rows] == [
        ["text", "image"],
        ["fusion"],
        ["fusion"],
        ["fused"],
    ]
    assert [len(each[0]["embedding"]) for each in rows] == [256, 2560, 1024, 1152]
    assert rows[0][0]["embedding"] != rows[0][1]["embedding"]
    assert alone["usage"]["total_tokens"] == alone["usage"]["image_tokens"] + 1
    assert "total_tokens" not in always["usage"]
    assert one["usage"]["input_tokens_details"]["text_tokens"] == 1


@pytest.mark.parametrize(
    ("model", "contents", "parameters", "status"),
    [
        ("qwen3-vl-embedding", [PICTURE] * 6, {}, 400),
        ("qwen3-vl-embedding", ["a"] * 21, {}, 400),
        ("qwen3-vl-embedding", ["a"], {"dimension": 3}, 400),
        ("qwen2.5-vl-embedding", ["a", "b"], {}, 400),
        ("multimodal-embedding-v1", ["a"], {"dimension": 1024}, 400),
        ("tongyi-embedding-vision-plus", ["a"], {"enable_fusion": True}, 400),
        ("tongyi-embedding-vision-plus", [{"text": "a", **PICTURE}], {}, 500),
        ("qwen3-vl-embedding", [{"video": "data:video/mp4;base64,AA"}], {}, 500),
    ],
    ids=lambda value: str(value)[:40],
)
def test_limits_of_models_of_pictures(
    sandbox: Sandbox, model: str, contents: Any, parameters: Any, status: int
) -> None:
    assert embedded(sandbox, model, contents, **parameters)[0] == status
