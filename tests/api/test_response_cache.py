"""The response cache in one process: what is answered from it, what is not, and who sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.access.budget import limits_of
from qwen_wsgi.access.client_key import changes_of
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.state.database import cached_answers
from tests.api.apps import App, in_front_of, running
from tests.api.behind import events_of
from tests.fakes.raw_server import whole
from tests.kit.call_rows import rows
from tests.kit.secrets import secret

MODEL = "qwen3.8-max"
TEXT = "Tell me something [[sandbox: chunks=4, interval=0.001, think]]"
MESSAGES = [{"role": "user", "content": TEXT}]
FIXED: dict[str, Any] = {"model": MODEL, "temperature": 0}
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {**FIXED, "messages": MESSAGES}),
    "messages": ("/v1/messages", {**FIXED, "messages": MESSAGES, "max_tokens": 99}),
    "responses": ("/v1/responses", {**FIXED, "input": TEXT}),
    "completions": ("/v1/completions", {**FIXED, "prompt": TEXT}),
}
EMBEDDED = ("/v1/embeddings", {"model": "text-embedding-v4", "input": ["a", "b"]})
RANKED = ("/v1/rerank", {"model": "qwen3-rerank", "query": "a", "documents": ["a b", "c"]})
CHAT = DIALECTS["chat"]
FIRST, SECOND = secret("first-of-the-cache"), secret("second-of-the-cache")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture
def app(sandbox: Sandbox, tmp_path: Path) -> Iterator[App]:
    sandbox.settle()
    sandbox.reset()
    with served(sandbox, tmp_path) as made:
        yield made


def served(sandbox: Sandbox, state_dir: Path, **more: Any) -> Any:
    environ = {"QWEN_PROXY_RESPONSE_CACHE": "1h", **more}
    return running(
        state_dir=state_dir,
        limits_of=limits_of,
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY="upstream-key",
        QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
        **environ,
    )


def ask(
    app: App, path: str, body: Any, *, key: str = "", cache_control: str = "", **members: Any
) -> TestResponse:
    headers = {"Cache-Control": cache_control} if cache_control else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    response = app.client.post(path, json={**body, **members}, headers=headers)
    said = response.data  # to its end
    response.close()
    assert response.status_code == 200, said
    return response


def cache_of(response: TestResponse) -> str | None:
    return response.headers.get("x-qwen-proxy-cache")


def asked(sandbox: Sandbox) -> int:
    """Requests that have reached the upstream, without those for lists of models."""
    return sum(record.route != "models" for record in sandbox.settle())


def text_of(value: Any) -> str:
    """The text of an answer in any dialect; of events the sum of theirs."""
    if isinstance(value, list):
        return "".join(map(text_of, value))
    if value.get("type", "").endswith("output_text.delta"):
        return str(value["delta"])
    if value.get("type") == "content_block_delta":
        return str(value["delta"].get("text", ""))
    if "choices" in value:
        choices = value["choices"]
        parts = [each.get("message") or each.get("delta") or each for each in choices]
        return "".join(part.get("content") or part.get("text") or "" for part in parts)
    if value.get("object") == "response":
        return "".join(p["text"] for i in value["output"] for p in i.get("content") or ())
    if value.get("type") == "message":
        return "".join(part.get("text", "") for part in value["content"])
    return ""


def usage_of(value: Any) -> Any:
    if isinstance(value, list):
        found = [usage for each in value if (usage := usage_of(each))]
        return found[-1] if found else None
    if "response" in value:
        return value["response"].get("usage")
    return value.get("usage")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_whole_answer_and_a_stream_of_it(app: App, sandbox: Sandbox, dialect: str) -> None:
    path, body = DIALECTS[dialect]
    first = ask(app, path, body)
    again = ask(app, path, dict(reversed(body.items())))
    streamed = ask(app, path, body, stream=True)

    assert [cache_of(each) for each in (first, again, streamed)] == ["miss", "hit", "hit"]
    assert asked(sandbox) == 1
    told = text_of(first.get_json())
    assert told
    assert text_of(again.get_json()) == told
    assert usage_of(again.get_json()) == usage_of(first.get_json())
    assert text_of(events_of(streamed)) == told
    assert again.headers["x-qwen-proxy-account"] == first.headers["x-qwen-proxy-account"]
    assert again.headers["x-qwen-proxy-attempts"] == "0"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_and_a_whole_answer_of_it(app: App, sandbox: Sandbox, dialect: str) -> None:
    path, body = DIALECTS[dialect]
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if "comp" in path else {}
    first = ask(app, path, body, stream=True)
    again = ask(app, path, body, stream=True, **options)
    in_one = ask(app, path, body)

    assert [cache_of(each) for each in (first, again, in_one)] == ["miss", "hit", "hit"]
    assert asked(sandbox) == 1
    told = text_of(events_of(first))
    assert told
    assert text_of(events_of(again)) == told
    assert text_of(in_one.get_json()) == told
    assert usage_of(events_of(again))
    if path == "/v1/chat/completions":
        # What the first client did not ask for, the others get all the same.
        assert usage_of(events_of(first)) is None
        message = in_one.get_json()["choices"][0]["message"]
        assert message["reasoning_content"]
    assert usage_of(in_one.get_json())


@pytest.mark.parametrize(("path", "body"), [EMBEDDED, RANKED], ids=["embeddings", "rerank"])
def test_vectors_and_rankings(app: App, sandbox: Sandbox, path: str, body: Any) -> None:
    first, again = ask(app, path, body), ask(app, path, body)
    assert [cache_of(each) for each in (first, again)] == ["miss", "hit"]
    assert asked(sandbox) == 1

    def without_id(response: TestResponse) -> Any:
        return {name: value for name, value in response.get_json().items() if name != "id"}

    assert without_id(again) == without_id(first)


def test_calls_of_tools_and_several_choices(app: App, sandbox: Sandbox) -> None:
    path, body = CHAT
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    called = {**body, "messages": [{"role": "user", "content": "look"}], "tools": [tool]}
    several = {**body, "n": 2, "seed": 7}
    for each in (called, several):
        answers = [ask(app, path, each), ask(app, path, each), ask(app, path, each, stream=True)]
        assert [cache_of(answer) for answer in answers] == ["miss", "hit", "hit"]
        assert answers[0].get_json()["choices"] == answers[1].get_json()["choices"]


def test_what_the_ledger_has_of_hits(app: App, tmp_path: Path) -> None:
    for path, body in (*DIALECTS.values(), EMBEDDED, RANKED):
        cache_of(ask(app, path, body))
        cache_of(ask(app, path, body))
        if path in [each for each, _ in DIALECTS.values()]:
            cache_of(ask(app, path, body, stream=True))
    hits = [row for row in rows(tmp_path) if row.cache_hits]
    assert len(hits) == 4 * 2 + 2
    for row in hits:
        assert (row.attempts, row.input_tokens, row.output_tokens) == (0, 0, 0)
        assert (row.outcome, row.unknown_usage, row.money_micro or 0) == ("complete", 0, 0)
        assert (row.account, row.first_byte_ms, row.units) == ("upstream", None, None)
    app.services.ledger.flush()
    books = app.services.books
    assert books is not None
    books.maintain()
    now = app.clock.now()
    found = books.report("client", Span(now - 60, now + 60))
    assert sum(row["cache_hits"] for row in found["rows"]) == len(hits)
    assert sum(row["calls"] for row in found["rows"]) == len(hits) + 6
    assert [call["cache"] for call in app.calls][:2] == ["miss", "hit"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"temperature": 0.1}, id="not-fixed"),
        pytest.param({"temperature": None}, id="no-temperature"),
        pytest.param({"temperature": False}, id="no-number"),
        pytest.param({"enable_search": True}, id="the-web"),
        pytest.param({"functions": [{"name": "f", "parameters": {}}]}, id="old-functions"),
    ],
)
def test_where_the_cache_does_not_apply(app: App, sandbox: Sandbox, change: Any) -> None:
    path, body = CHAT
    for _ in range(2):
        response = app.client.post(path, json={**body, **change})
        assert "x-qwen-proxy-cache" not in response.headers
    assert not app.services.database.run(
        lambda database: database.execute("SELECT count(*) FROM cached_answers").fetchone()[0]
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seed": 1}, id="a-seed"),
        pytest.param({"temperature": 0.0}, id="another-number"),
        pytest.param({"max_tokens": 50}, id="another-limit"),
        pytest.param({"user": "anna"}, id="what-no-model-sees"),
        pytest.param({"messages": [*MESSAGES, {"role": "user", "content": "x"}]}, id="messages"),
        pytest.param({"model": "qwen3.8-flash"}, id="another-model"),
    ],
)
def test_everything_else_makes_another_request(app: App, sandbox: Sandbox, change: Any) -> None:
    path, body = CHAT
    assert cache_of(ask(app, path, body)) == "miss"
    assert cache_of(ask(app, path, body, **change)) == "miss"
    assert cache_of(ask(app, path, body, **change)) == "hit"
    assert asked(sandbox) == 2


def test_what_is_refused_is_refused_with_the_cache_as_well(app: App, sandbox: Sandbox) -> None:
    path, body = EMBEDDED
    response = app.client.post(path, json={**body, "dimensions": "many"})
    assert response.status_code == 400
    assert response.get_json()["error"]["param"] == "dimensions"
    assert asked(sandbox) == 0


def test_a_client_goes_past_it(app: App, sandbox: Sandbox) -> None:
    path, body = CHAT
    assert cache_of(ask(app, path, body, cache_control="no-store")) == "miss"
    assert cache_of(ask(app, path, body)) == "miss"
    assert cache_of(ask(app, path, body, cache_control="no-store")) == "hit"
    fresh = ask(app, path, body, cache_control="max-age=5, No-Cache")
    assert cache_of(fresh) == "miss"
    assert cache_of(ask(app, path, body, cache_control="no-cache, no-store")) is None
    # What was fetched past it takes the place of what was there.
    assert ask(app, path, body).get_json()["id"] == fresh.get_json()["id"]
    assert asked(sandbox) == 4


def test_never_across_keys_and_as_the_key_says(sandbox: Sandbox, tmp_path: Path) -> None:
    path, body = CHAT
    with served(
        sandbox, tmp_path, QWEN_PROXY_RESPONSE_CACHE="0", QWEN_PROXY_API_KEYS=f"{FIRST},{SECOND}"
    ) as app:
        assert cache_of(ask(app, path, body, key=FIRST)) is None
        for name, cache in (("with", "1h"), ("also", 7200), ("without", "off"), ("server's", None)):
            changes = changes_of({"name": name.rstrip("'s"), "cache": cache}, now=app.clock.now())
            made = app.services.client_keys.add(changes)
            app.services.key_ring.look_again()
            results = [cache_of(ask(app, path, body, key=made.secret)) for _ in range(2)]
            assert results == (["miss", "hit"] if cache in ("1h", 7200) else [None, None])


def test_a_key_that_is_revoked_leaves_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    path, body = CHAT
    with served(sandbox, tmp_path) as app:

        def count() -> int:
            found: tuple[int] = app.services.database.run(
                lambda database: database.execute("SELECT count(*) FROM cached_answers").fetchone()
            )
            return found[0]

        made = app.services.client_keys.add({"name": "anna"})
        app.services.key_ring.look_again()
        ask(app, path, body, key=made.secret)
        assert count() == 1
        answers = app.services.maintenance._cached_answers
        answers.look_after()
        assert count() == 1
        app.services.client_keys.revoke("anna")
        app.clock.advance(61)
        answers.look_after()
        assert count() == 0


def test_its_age(app: App, sandbox: Sandbox) -> None:
    path, body = CHAT
    cache_of(ask(app, path, body))
    app.clock.advance(3599)
    assert cache_of(ask(app, path, body)) == "hit"
    app.clock.advance(2)
    assert cache_of(ask(app, path, body)) == "miss"


def test_limits_count_what_reaches_an_upstream(sandbox: Sandbox, tmp_path: Path) -> None:
    path, body = CHAT
    with served(sandbox, tmp_path) as app:
        made = app.services.client_keys.add({"name": "anna", "rpm": 1, "cache": 3600})
        app.services.key_ring.look_again()
        first = ask(app, path, body, key=made.secret)
        again = [ask(app, path, body, key=made.secret) for _ in range(3)]
        left = [r.headers["x-ratelimit-remaining-requests"] for r in (first, *again)]
        assert left == ["0"] * 4
        assert [cache_of(each) for each in again] == ["hit"] * 3
        headers = {"Authorization": f"Bearer {made.secret}"}
        refused = app.client.post(path, json={**body, "seed": 5}, headers=headers)
        assert refused.status_code == 429


@pytest.mark.parametrize(
    "answer",
    [
        b'{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"x"},'
        b'"finish_reason":"content_filter"}]}',
        b'{"id":"1","choices":[]}',
        b'{"error":{"message":"no"}}',
    ],
)
def test_what_is_no_whole_answer_is_not_kept(answer: bytes) -> None:
    models = whole(b'{"object":"list","data":[{"id":"m"}]}')
    with in_front_of(models, whole(answer), QWEN_PROXY_RESPONSE_CACHE="1h") as (app, server):
        for _ in range(2):
            response = app.chat({"model": "m", "temperature": 0, "messages": MESSAGES})
            assert response.headers.get("x-qwen-proxy-cache") in ("miss", None)
        assert len([each for each in server.requests if b"POST" in each]) == 2


@pytest.mark.parametrize("spec", ["error-frame-after=2", "no-finish", "finish=content_filter"])
def test_a_stream_that_is_no_whole_answer_is_not_kept(
    app: App, sandbox: Sandbox, spec: str
) -> None:
    path, body = DIALECTS["messages"]  # its streams end in order, whatever comes
    content = f"[[sandbox: chunks=4, interval=0.001, {spec}]]"
    for _ in range(2):
        messages = [{"role": "user", "content": content}]
        assert cache_of(ask(app, path, body, messages=messages, stream=True)) == "miss"


def test_a_client_that_leaves_has_nothing_kept(app: App, sandbox: Sandbox) -> None:
    path, body = CHAT
    with app.client.post(path, json={**body, "stream": True}, buffered=False) as response:
        next(iter(response.response))
    assert app.calls[-1]["outcome"] == "client_gone"
    assert cache_of(ask(app, path, body)) == "miss"


def test_an_answer_that_is_too_large_is_not_kept(
    app: App, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_answers, "LARGEST", 100)
    path, body = CHAT
    for stream in (True, False):
        for _ in range(2):
            assert cache_of(ask(app, path, body, stream=stream)) == "miss"


def test_it_is_there_after_a_restart_and_off_by_default(sandbox: Sandbox, tmp_path: Path) -> None:
    path, body = CHAT
    with served(sandbox, tmp_path) as app:
        told = ask(app, path, body).get_json()
    with served(sandbox, tmp_path) as app:
        again = ask(app, path, body)
        assert cache_of(again) == "hit"
        assert again.get_json() == told
    with served(sandbox, tmp_path, QWEN_PROXY_RESPONSE_CACHE="0") as app:
        assert cache_of(ask(app, path, body)) is None
    files = list((tmp_path / "database").iterdir())
    assert files
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_a_damaged_or_foreign_body_is_a_miss(app: App, sandbox: Sandbox) -> None:
    path, body = CHAT
    cache_of(ask(app, path, body))
    app.services.database.run(
        lambda database: database.execute("UPDATE cached_answers SET body = X'78'"), write=True
    )
    assert cache_of(ask(app, path, body)) == "miss"
    assert cache_of(ask(app, path, body)) == "hit"


def test_a_response_in_the_background_and_a_stored_one(app: App, sandbox: Sandbox) -> None:
    path, body = DIALECTS["responses"]
    first, again = (ask(app, path, body).get_json() for _ in range(2))
    assert first["id"] != again["id"]
    assert asked(sandbox) == 1
    # Both are stored, and the same continuation of both is one request.
    more = {**body, "input": "go on"}
    for value, expected in ((first, "miss"), (again, "hit")):
        answer = ask(app, path, more, previous_response_id=value["id"])
        assert cache_of(answer) == expected
    assert json.loads(answer.data)["previous_response_id"] == again["id"]
