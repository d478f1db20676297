"""POST /v1/embeddings with pictures and videos, and rows that a model does not take."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import error_of, in_front_of, running
from tests.api.behind import post, sandboxed
from tests.fakes.raw_server import whole

MODEL = "qwen3-vl-embedding"
IMAGE = {"type": "image_url", "image_url": {"url": "https://x/1.png"}}
VIDEO = {"type": "video_url", "video_url": {"url": "https://x/1.mp4"}}
ROWS = ["a", IMAGE, [{"type": "text", "text": "a"}, IMAGE], VIDEO, VIDEO, {"text": "a"}]


def sent(sandbox: Sandbox) -> list[tuple[str, Any]]:
    """Route and body of each request, without those for lists of models."""
    return [
        (record.route, json.loads(record.body or b""))
        for record in sandbox.settle()
        if record.route != "models"
    ]


def floats(packed: str) -> list[float]:
    raw = base64.b64decode(packed)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def test_rows_of_every_kind_get_one_vector_each_in_their_order() -> None:
    asked = {"model": MODEL, "input": ROWS, "dimensions": 256}
    with sandboxed() as (app, sandbox):
        plain = post(app, "/v1/embeddings", {**asked, "encoding_format": "float"})
        calls = sent(sandbox)
        packed = post(app, "/v1/embeddings", {**asked, "encoding_format": "base64"})
        (call, _) = app.calls

    answer = json.loads(plain.data)
    vectors = [row["embedding"] for row in answer["data"]]
    assert [row["index"] for row in answer["data"]] == list(range(6))
    assert {len(vector) for vector in vectors} == {256}
    # Equal rows have equal vectors, others have others.
    assert vectors[0] == vectors[5] and vectors[3] == vectors[4]
    assert len({tuple(vector) for vector in vectors}) == 4
    assert [floats(row["embedding"]) for row in json.loads(packed.data)["data"]] == [
        pytest.approx(vector, abs=1e-6) for vector in vectors
    ]
    assert {route for route, _ in calls} == {"multimodal-embeddings"}
    assert len(calls) == 4
    assert sum(body["parameters"].get("enable_fusion", False) for _, body in calls) == 1
    assert answer["usage"]["prompt_tokens"] == 4 * 402 + 3
    assert (answer["model"], call["embeddings"]) == (MODEL, 6)
    assert call["prompt_tokens"] == answer["usage"]["prompt_tokens"]


def test_plain_texts_work_with_a_model_of_pictures() -> None:
    with sandboxed() as (app, sandbox):
        response = post(app, "/v1/embeddings", {"model": MODEL, "input": "a"})
        ((route, body),) = sent(sandbox)

    assert response.status_code == 200
    assert (route, body["input"]) == ("multimodal-embeddings", {"contents": [{"text": "a"}]})


@pytest.mark.parametrize("model", ["text-embedding-v4", "qwen3.7-text-embedding"])
def test_models_of_texts_go_by_the_compatible_route(model: str) -> None:
    with sandboxed() as (app, sandbox):
        response = post(app, "/v1/embeddings", {"model": model, "input": ["a"] * 11})
        calls = sent(sandbox)

    assert response.status_code == 200
    assert len(json.loads(response.data)["data"]) == 11
    assert sorted(len(body["input"]) for _, body in calls) == [1, 10]
    assert {route for route, _ in calls} == {"embeddings"}


def test_a_model_of_texts_with_a_picture_is_a_400_that_names_one_that_can() -> None:
    with sandboxed() as (app, sandbox):
        response = post(app, "/v1/embeddings", {"model": "text-embedding-v4", "input": [IMAGE]})
        calls = sent(sandbox)
        assert app.services.cooldowns.is_clear

    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "unsupported_content")
    assert "qwen3-vl-embedding" in error["message"]
    assert calls == []


def test_what_is_dropped_is_told_and_refused_in_strict_mode() -> None:
    asked = {"model": MODEL, "input": ["a"], "input_type": "query"}
    with sandboxed() as (app, _):
        response = post(app, "/v1/embeddings", asked)
    assert response.headers["x-qwen-proxy-changed"] == "input_type:dropped"
    with sandboxed(QWEN_PROXY_STRICT="1") as (app, _):
        response = post(app, "/v1/embeddings", asked)
    assert (response.status_code, error_of(response)["param"]) == (400, "input_type")


def test_a_refusal_of_the_native_route_is_told_in_openai_form() -> None:
    with sandboxed() as (app, _):
        response = post(app, "/v1/embeddings", {"model": MODEL, "input": "a", "dimensions": 7})

    assert response.status_code == 400
    assert "dimension should be one of" in error_of(response)["message"]


def test_a_broken_answer_is_a_502() -> None:
    models = whole(b'{"object":"list","data":[{"id":"qwen3-vl-embedding"}]}')
    answer = whole(b'{"output":{"embeddings":[{"index":0,"embedding":["x"]}]}}')
    families = {"QWEN_PROXY_HOST_FAMILIES": "127.0.0.1=dashscope"}
    with in_front_of(models, answer, **families) as (app, _):
        response = post(app, "/v1/embeddings", {"model": MODEL, "input": "a"})

    assert (response.status_code, error_of(response)["code"]) == (502, "upstream_bad_answer")


def test_a_host_without_the_native_route_is_left_out_of_the_plan() -> None:
    with Sandbox() as able, Sandbox() as plan:
        with running(
            QWEN_UPSTREAM_BASE_URL=plan.origin.replace("127.0.0.1", "localhost") + "/v1",
            QWEN_UPSTREAM_API_KEY="upstream-key",
            DASHSCOPE_BASE_URL=able.base_url,
            DASHSCOPE_API_KEY="another-key",
            QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope,localhost=coding-plan",
        ) as app:
            response = post(app, "/v1/embeddings", {"model": MODEL, "input": "a"})
        assert sent(plan) == []

    assert response.status_code == 200
    assert response.headers["x-qwen-proxy-account"] == "dashscope"
