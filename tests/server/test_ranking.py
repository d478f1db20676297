"""Ranking, and embeddings of pictures, by a running server: official packages, and plain requests
as other clients send them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, Proxy
from tests.kit.raw_client import Exchange

pytestmark = pytest.mark.server

TEXTS = ["a red fox", "snow", "red snow"]
QUERY = "red fox"


def ask(proxy: Proxy, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
    with Exchange(proxy.port, body, path=path, key=CLIENT_KEY, timeout_s=30) as exchange:
        status, headers = exchange.head()
        return status, headers, json.loads(exchange.body())


def test_pictures_and_texts_by_the_openai_package(proxy: Proxy, sandbox: Sandbox) -> None:
    rows: Any = [
        "a red fox",
        {"type": "image_url", "image_url": {"url": "https://x/fox.png"}},
        [{"type": "text", "text": "a red fox"}, {"image": "https://x/fox.png"}],
        *[{"image": f"https://x/{number}.png"} for number in range(12)],
    ]
    with openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0) as client:
        packed = client.embeddings.create(model="qwen3-vl-embedding", input=rows, dimensions=256)
        floats = client.embeddings.create(
            model="qwen3-vl-embedding", input=rows, dimensions=256, encoding_format="float"
        )
    asked = [json.loads(r.body or b"") for r in sandbox.settle() if r.route.startswith("multi")]

    assert [row.index for row in packed.data] == list(range(15))
    for left, right in zip(packed.data, floats.data, strict=True):
        assert left.embedding == pytest.approx(right.embedding, abs=1e-6)
    assert len({tuple(row.embedding) for row in floats.data}) == 15
    assert packed.usage.total_tokens == floats.usage.total_tokens > 13 * 402
    sizes = [len(body["input"]["contents"]) for body in asked]
    assert sorted(sizes) == sorted([2, 2, 5, 2] * 2 + [5, 5])


@pytest.mark.parametrize(
    ("path", "members"),
    [
        # What cohere.Client.rerank, cohere.ClientV2.rerank, and Jina's users send.
        ("/v1/rerank", {"return_documents": True, "rank_fields": ["text"]}),
        ("/v2/rerank", {"max_tokens_per_doc": 4096, "priority": 0}),
        ("/v1/rerank", {}),
        # LiteLLM for Model Studio, with this server as its base URL.
        ("/v1/reranks", {"return_documents": True}),
    ],
)
def test_clients_of_cohere_and_jina(
    proxy: Proxy, sandbox: Sandbox, path: str, members: dict[str, Any]
) -> None:
    body = {"model": "qwen3-rerank", "query": QUERY, "documents": TEXTS, "top_n": 2, **members}
    status, headers, answer = ask(proxy, path, body)

    assert status == 200, answer
    assert [each["index"] for each in answer["results"]] == [0, 2]
    scores = [each["relevance_score"] for each in answer["results"]]
    assert scores == [1.0, 0.5]
    documents = [each.get("document") for each in answer["results"]]
    assert documents == (
        [None] * 2 if path == "/v2/rerank" else [{"text": TEXTS[i]} for i in (0, 2)]
    )
    dropped = sorted(members.keys() & {"rank_fields", "max_tokens_per_doc", "priority"})
    told = headers.get("x-qwen-proxy-changed", "")
    assert sorted(told.split(", ") if told else []) == [f"{name}:dropped" for name in dropped]
    assert answer["meta"]["tokens"]["input_tokens"] == answer["usage"]["total_tokens"] > 0


def test_a_client_that_needs_a_score_for_each_document(proxy: Proxy, sandbox: Sandbox) -> None:
    """Open WebUI asks for all, and takes the scores in the order of the indexes."""
    documents = [f"text {number}" + " fox" * (number % 2) for number in range(500)]
    body = {"model": "qwen3-rerank", "query": "fox", "documents": documents, "top_n": 500}
    status, _, answer = ask(proxy, "/v1/rerank", body)

    assert status == 200
    in_order = sorted(answer["results"], key=lambda each: each["index"])
    assert [each["relevance_score"] for each in in_order] == [0.0, 1.0] * 250


def test_too_many_documents_are_a_400(proxy: Proxy, sandbox: Sandbox) -> None:
    body = {"model": "qwen3-rerank", "query": "x", "documents": ["a"] * 501}
    status, _, answer = ask(proxy, "/v1/rerank", body)

    assert (status, answer["error"]["code"]) == (400, "array_above_max_length")
    assert "500" in answer["error"]["message"]
