"""POST /v1/rerank: what clients of Cohere, Jina and others send and read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import App, error_of, in_front_of, running
from tests.api.behind import post, sandboxed
from tests.fakes.raw_server import Answer, whole

TEXTS = ["a red fox", "snow", "red snow"]
ASKED = {"model": "qwen3-rerank", "query": "red fox", "documents": TEXTS}
PICTURE = {"image": "https://x/1.png"}
MODELS = whole(b'{"object":"list","data":[{"id":"qwen3-rerank"},{"id":"qwen3-vl-rerank"}]}')


def sent(sandbox: Sandbox) -> tuple[str, Any]:
    """Route and body of the latest request."""
    record = sandbox.settle()[-1]
    return record.route, json.loads(record.body or b"")


def test_documents_are_ranked_and_the_call_is_logged() -> None:
    with sandboxed() as (app, sandbox):
        response = post(app, "/v1/rerank", {**ASKED, "top_n": 2})
        (call,) = app.calls
        route, body = sent(sandbox)

    answer = json.loads(response.data)
    assert [(each["index"], each["relevance_score"]) for each in answer["results"]] == [
        (0, 1.0),
        (2, 0.5),
    ]
    assert answer["model"] == "qwen3-rerank"
    assert answer["usage"]["total_tokens"] > 0
    assert (route, body["documents"], body["top_n"]) == ("reranks", TEXTS, 2)
    assert (call["outcome"], call["documents"]) == ("complete", 3)
    assert call["prompt_tokens"] == answer["usage"]["total_tokens"]
    assert response.headers["x-upstream-request-id"]
    assert "x-qwen-proxy-changed" not in response.headers


@pytest.mark.parametrize("path", ["/rerank", "/v1/reranks", "/reranks", "/v1/v1/rerank/"])
def test_other_spellings_of_the_path_are_understood(path: str) -> None:
    with sandboxed() as (app, _):
        response = post(app, path, ASKED)

    assert response.status_code == 200
    # Jina returns texts unless it is told not to, and Dify's provider for it relies on that.
    assert [each["document"] for each in json.loads(response.data)["results"]] == [
        {"text": TEXTS[index]} for index in (0, 2, 1)
    ]


def test_coheres_second_version_returns_no_documents() -> None:
    with sandboxed() as (app, _):
        response = post(app, "/v2/rerank", {**ASKED, "max_tokens_per_doc": 4096})

    assert all("document" not in each for each in json.loads(response.data)["results"])
    assert response.headers["x-qwen-proxy-changed"] == "max_tokens_per_doc:dropped"


def test_a_model_of_pictures_is_asked_by_the_native_route() -> None:
    documents = [{"text": "a red fox"}, PICTURE]
    with sandboxed() as (app, sandbox):
        response = post(
            app,
            "/v1/rerank",
            {**ASKED, "model": "qwen3-vl-rerank", "documents": documents, "return_documents": True},
        )
        route, body = sent(sandbox)

    assert route == "native-rerank"
    assert body["input"] == {"query": {"text": "red fox"}, "documents": documents}
    results = json.loads(response.data)["results"]
    assert [each["document"] for each in results] == documents


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"documents": ["a"] * 501}, "array_above_max_length"),
        ({"documents": [PICTURE]}, "unsupported_content"),
        ({"model": None}, "missing_required_parameter"),
        ({"model": "qwen3.7-plus"}, "wrong_endpoint_for_model"),
        ({"model": "text-embedding-v4"}, "wrong_endpoint_for_model"),
    ],
)
def test_a_wrong_request_is_a_400_and_asks_nobody(members: dict[str, Any], code: str) -> None:
    with sandboxed() as (app, sandbox):
        response = post(app, "/v1/rerank", {**ASKED, **members})
        asked = [record.route for record in sandbox.settle() if record.route != "models"]
        assert app.services.admission.in_flight == 0

    assert (response.status_code, error_of(response)["code"]) == (400, code)
    assert asked == []


def test_strict_refuses_to_drop_what_changes_scores() -> None:
    with sandboxed(QWEN_PROXY_STRICT="1") as (app, _):
        response = post(app, "/v1/rerank", {**ASKED, "max_tokens_per_doc": 4096})

    assert response.status_code == 400
    assert error_of(response)["param"] == "max_tokens_per_doc"


@pytest.mark.parametrize(
    ("fault", "status"), [("throttle", 429), ("internal", 500), ("invalid-key", 502), ("drop", 502)]
)
def test_a_refusal_of_the_upstream_is_told_as_elsewhere(fault: str, status: int) -> None:
    with sandboxed() as (app, sandbox):
        sandbox.control(faults={"reranks": fault})
        response = post(app, "/v1/rerank", ASKED)
        sandbox.control(faults={"chat": fault})
        chat = app.chat({"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "x"}]})

    assert response.status_code == chat.status_code == status
    assert error_of(response)["code"] == error_of(chat)["code"]


@pytest.mark.parametrize("fault", ["throttle", "status=500", "drop", "model-not-found"])
def test_another_account_answers_where_one_does_not(fault: str) -> None:
    with sandboxed_twice() as (app, first, second):
        first.control(faults={"reranks": fault})
        response = post(app, "/v1/rerank", ASKED)
        asked = [r.route for r in second.settle() if r.route != "models"]

    assert response.status_code == 200
    assert response.headers["x-qwen-proxy-account"] == "dashscope"
    assert asked == ["reranks"]


@contextmanager
def sandboxed_twice() -> Iterator[tuple[App, Sandbox, Sandbox]]:
    """The application with two accounts; the first one is preferred."""
    with (
        Sandbox() as first,
        Sandbox() as second,
        running(
            QWEN_UPSTREAM_BASE_URL=first.base_url,
            QWEN_UPSTREAM_API_KEY="upstream-key",
            DASHSCOPE_BASE_URL=second.base_url,
            DASHSCOPE_API_KEY="another-key",
            QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
            QWEN_PROXY_RETRY_BUDGET=4,
        ) as app,
    ):
        yield app, first, second


def broken(results: bytes) -> Answer:
    return whole(b'{"results":[' + results + b'],"usage":{"total_tokens":3}}')


@pytest.mark.parametrize(
    "results",
    [
        b"",
        b'{"index":0,"relevance_score":"x"},{"index":1,"relevance_score":0.5}',
        b'{"index":0,"relevance_score":1},{"index":0,"relevance_score":0.5}',
        b'{"index":0,"relevance_score":1},{"index":7,"relevance_score":0.5}',
        b'{"index":0,"relevance_score":1},{"relevance_score":0.5}',
        b'{"index":0,"relevance_score":1}',
        b"[]",
    ],
)
def test_a_broken_answer_is_a_502(results: bytes) -> None:
    with in_front_of(MODELS, broken(results), QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope") as (
        app,
        _,
    ):
        response = post(app, "/v1/rerank", {**ASKED, "documents": ["a", "b"]})
        (call,) = app.calls

    assert (response.status_code, error_of(response)["code"]) == (502, "upstream_bad_answer")
    assert (call["outcome"], call["error"]) == ("upstream_error", "upstream_bad_answer")
    assert "documents" not in call, "nothing was ranked"


# --- models that do something else, and boxes that cannot ----------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_other_endpoints_name_the_one_for_ranking(path: str, body: Any, stream: bool) -> None:
    with sandboxed() as (app, sandbox):
        members = {"stream": True} if stream and path != "/v1/embeddings" else {}
        response = post(app, path, {"model": "qwen3-rerank", **body, **members})
        asked = [record.route for record in sandbox.settle() if record.route != "models"]

    assert response.status_code == 400
    assert "POST /v1/rerank" in json.loads(response.data)["error"]["message"]
    assert asked == []


def test_the_list_tells_what_models_can_do() -> None:
    with sandboxed() as (app, _):
        models = {each["id"]: each for each in json.loads(app.get("/v1/models").data)["data"]}

    assert models["qwen3-rerank"]["capabilities"] == ["rerank"]
    assert models["qwen3-vl-embedding"]["capabilities"] == ["embedding"]
    assert models["qwen3.7-plus"]["capabilities"] == ["chat"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", ASKED),
        ("/v1/embeddings", {"model": "qwen3-vl-embedding", "input": [PICTURE]}),
    ],
)
def test_a_box_with_a_coding_plan_alone_says_what_it_lacks(path: str, body: Any) -> None:
    with Sandbox() as sandbox, on_a_plan(sandbox) as app:
        response = post(app, path, body)
        chat = app.chat({"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "x"}]})
        (call, _) = app.calls

    assert (response.status_code, error_of(response)["code"]) == (501, "not_available_here")
    assert "DASHSCOPE_API_KEY" in error_of(response)["message"]
    assert response.headers["x-should-retry"] == "false"
    assert call["outcome"] == "refused"
    assert chat.status_code == 200


def on_a_plan(sandbox: Sandbox) -> Any:
    """The application with one account at a host that it takes for the Coding Plan's."""
    return running(
        QWEN_UPSTREAM_BASE_URL=sandbox.origin + "/v1",
        QWEN_UPSTREAM_API_KEY="upstream-key",
        QWEN_PROXY_HOST_FAMILIES="127.0.0.1=coding-plan",
    )
