"""Limits of clients in every dialect: what counts, what is told, and how a call is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.wrappers import Response

from qwen_wsgi.access.guard import Client
from qwen_wsgi.access.limits import Limits
from qwen_wsgi.errors import StreamBroken
from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import HELLO, App, error_of, in_front_of, running
from tests.api.behind import post, sandboxed
from tests.api.responding import MODELS, answer
from tests.fakes.raw_server import Peer, stream, whole

CHAT = "/v1/chat/completions"
MODEL = "qwen3.7-plus"
#: Ten tokens of an answer for a prompt that the sandbox counts as 11.
SHORT = "[[sandbox: chunks=3]] hello"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": SHORT}]}
LOCAL = Client("local", "local")
ALL = Limits(rpm=10, tpm=10_000, tokens_per_day=50_000, concurrency=3)


@contextmanager
def limited(limits: Limits = ALL, **environ: Any) -> Iterator[tuple[App, Sandbox]]:
    with sandboxed(limits_of=lambda client: limits, **environ) as made:
        yield made


def taken(app: App, limits: Limits = ALL) -> tuple[float, float, float]:
    """Requests, tokens and places that are taken."""
    rooms = app.services.budgets.remaining(LOCAL)
    return (
        limits.rpm - rooms["rpm"].left,  # type: ignore[operator]  # a number
        limits.tpm - rooms["tpm"].left,  # type: ignore[operator]  # a number
        limits.concurrency - rooms["concurrency"].left,  # type: ignore[operator]  # a number
    )


def told(response: Response) -> dict[str, str]:
    """The headers about limits, without their common beginning."""
    return {
        name.lower().removeprefix("x-ratelimit-"): value
        for name, value in response.headers.items()
        if "ratelimit" in name.lower()
    }


def asked_of_models(sandbox: Sandbox) -> int:
    return len([each for each in sandbox.settle() if each.route != "models"])


# --- one call ------------------------------------------------------------------------------------


def test_a_whole_answer_is_settled_before_its_headers_tell_what_is_left() -> None:
    with limited() as (app, _):
        response = post(app, CHAT, {**ASKED, "max_tokens": 500})
        used = response.get_json()["usage"]["total_tokens"]

        assert told(response) == {
            "limit-requests": "10",
            "remaining-requests": "9",
            "reset-requests": "1m0s",
            "limit-tokens": "10000",
            "remaining-tokens": str(10_000 - used),
            "reset-tokens": "1m0s",
        }
        assert taken(app) == (1, used, 0)
        assert app.services.budgets.remaining(LOCAL)["tokens_per_day"].left == 50_000 - used


def test_a_stream_tells_what_is_reserved_and_is_settled_at_its_end() -> None:
    with limited() as (app, _):
        with post(app, CHAT, {**ASKED, "max_tokens": 500, "stream": True}) as response:
            reserved = 10_000 - int(told(response)["remaining-tokens"])
            assert taken(app) == (1, reserved, 1)
            assert b"[DONE]" in response.data
        assert 500 < reserved < 560
        assert taken(app) == (1, 17, 0)


def test_without_limits_nothing_is_told_and_no_file_is_made(tmp_path: Path) -> None:
    with sandboxed(HOME=str(tmp_path)) as (app, _):
        assert told(post(app, CHAT, ASKED)) == {}
        assert app.services.budgets.of(LOCAL) is None


def test_a_dimension_without_a_limit_has_no_headers() -> None:
    with limited(Limits(tpm=10_000)) as (app, _):
        assert set(told(post(app, CHAT, ASKED))) == {
            "limit-tokens",
            "remaining-tokens",
            "reset-tokens",
        }
    with limited(Limits(concurrency=2)) as (app, _):
        assert told(post(app, CHAT, ASKED)) == {}


def test_a_call_without_a_maximum_reserves_a_bounded_guess() -> None:
    with limited() as (app, _), post(app, CHAT, {**ASKED, "stream": True}) as response:
        assert 2_000 < 10_000 - int(told(response)["remaining-tokens"]) < 2_060


@pytest.mark.parametrize(
    ("path", "members"),
    [
        (CHAT, {"max_completion_tokens": 300}),
        ("/v1/messages", {"max_tokens": 300}),
        ("/v1/responses", {"max_output_tokens": 300, "input": SHORT}),
        ("/v1/completions", {"max_tokens": 300, "prompt": SHORT}),
    ],
)
def test_each_dialect_reserves_its_maximum(path: str, members: dict[str, Any]) -> None:
    body = {**ASKED, **members, "stream": True}
    if path != CHAT and path != "/v1/messages":
        del body["messages"]
    with limited() as (app, _):
        with post(app, path, body) as response:
            assert response.status_code == 200
            assert 300 < 10_000 - int(told(response)["remaining-tokens"]) < 400
            assert response.data
        assert taken(app) == (1, 17, 0)


def test_a_stream_that_its_client_leaves_is_charged_what_was_seen_of_it() -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "[[sandbox: chunks=500]]"}]}
    with limited() as (app, _):
        response = post(app, CHAT, {**asked, "max_tokens": 5000, "stream": True})
        next(iter(response.iter_encoded()))
        response.close()
        requests, tokens, places = taken(app)

    assert (requests, places) == (1, 0)
    assert 10 < tokens < 2000


def test_a_call_of_unknown_usage_is_charged_its_prompt() -> None:
    body = {"id": "c", "object": "chat.completion", "created": 7, "model": "m", "choices": []}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    silent = whole(json.dumps({**body, "choices": [choice]}).encode())
    chat = {"model": "m", "messages": [{"role": "user", "content": "word " * 400}]}
    with in_front_of(MODELS, silent, limits_of=lambda client: ALL) as (app, _):
        assert app.chat(chat).status_code == 200
        assert taken(app)[0] == 1
        assert 500 <= taken(app)[1] < 550


def test_what_an_upstream_refused_counts_as_a_request_with_its_prompt() -> None:
    refusal = whole(b'{"error": {"message": "no", "code": "bad"}}', "400 Bad Request")
    with in_front_of(MODELS, refusal, limits_of=lambda client: ALL) as (app, _):
        response = app.chat()
        assert response.status_code == 400
        assert taken(app)[0] == 1
        assert 0 < taken(app)[1] < 50
        assert told(response)["remaining-requests"] == "9"


def test_a_call_that_reaches_no_upstream_costs_nothing() -> None:
    with running(
        limits_of=lambda client: ALL,
        QWEN_UPSTREAM_BASE_URL="http://127.0.0.1:9/v1",
        QWEN_UPSTREAM_API_KEY="k",
    ) as app:
        assert app.chat().status_code == 502
        assert taken(app) == (0, 0, 0)
        assert told(app.chat({"model": "m"}))["remaining-requests"] == "10"  # refused by us: 400


def test_further_attempts_count() -> None:
    broken = whole(b"{}", "500 Internal Server Error")
    with in_front_of(
        MODELS, broken, answer("at last"), limits_of=lambda client: ALL, QWEN_PROXY_RETRY_BUDGET=30
    ) as (app, _):
        response = app.chat()
        assert response.status_code == 200
        assert response.headers["x-qwen-proxy-attempts"] == "2"
        assert taken(app) == (2, 5, 0)


def test_a_stream_that_breaks_off_is_charged_what_was_seen_of_it() -> None:
    chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": "a word or two"}}]}
    cut = stream(b"data: %b\n\n" % json.dumps(chunk).encode(), end=False)

    def break_off(peer: Peer) -> None:
        peer.send(cut)
        peer.close()

    with in_front_of(MODELS, break_off, limits_of=lambda client: ALL) as (app, _):
        with (
            app.chat({**HELLO, "stream": True, "max_tokens": 700}) as found,
            pytest.raises(StreamBroken),
        ):
            found.get_data()
        assert taken(app)[0] == 1
        assert 0 < taken(app)[1] < 60


# --- refusals ------------------------------------------------------------------------------------


def test_over_the_limit_of_requests_the_answer_is_openais_429() -> None:
    with limited(Limits(rpm=2)) as (app, sandbox):
        for _ in range(2):
            assert post(app, CHAT, ASKED).status_code == 200
            app.clock.advance(0.5)
        refused = [post(app, CHAT, {**ASKED, "stream": stream}) for stream in (False, True, False)]
        (line,) = {(call["outcome"], call["status"], call["error"]) for call in app.calls[2:]}
        assert asked_of_models(sandbox) == 2
        # Those that were refused do not count: the first call leaves the window, and one may pass.
        app.clock.advance(59.0)
        assert post(app, CHAT, ASKED).status_code == 200
        assert post(app, CHAT, ASKED).headers["retry-after"] == "1"

    for each in refused:
        assert each.status_code == 429
        assert each.headers["retry-after"] == "59"
        assert "x-should-retry" not in each.headers
        assert told(each) == {
            "limit-requests": "2",
            "remaining-requests": "0",
            "reset-requests": "1m0s",
        }
    error = error_of(refused[0])
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert "the limit is 2 requests in 60 seconds (rpm)" in error["message"]
    assert "try again in 59s" in error["message"]
    assert line == ("refused", 429, "rate_limit_exceeded")


def test_over_the_limit_of_tokens_the_answer_names_what_was_needed() -> None:
    with limited(Limits(tpm=3000)) as (app, sandbox):
        with post(app, CHAT, {**ASKED, "stream": True, "max_tokens": 2000}):
            response = post(app, CHAT, {**ASKED, "max_tokens": 1500})
        assert post(app, CHAT, {**ASKED, "max_tokens": 1500}).status_code == 200
        large = post(app, CHAT, {**ASKED, "max_tokens": 4000})
        assert asked_of_models(sandbox) == 2

    assert response.status_code == 429
    error = error_of(response)
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "the limit is 3000 tokens in 60 seconds (tpm)" in error["message"]
    assert (large.status_code, large.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in large.headers
    assert "can never be allowed" in error_of(large)["message"]


def test_over_the_limit_of_the_day_it_is_free_at_midnight() -> None:
    with limited(Limits(tokens_per_day=40), QWEN_PROXY_TIMEZONE="Asia/Shanghai") as (app, _):
        assert post(app, CHAT, {**ASKED, "max_tokens": 1}).status_code == 200
        response = post(app, CHAT, {**ASKED, "max_tokens": 1})
        # Noon in London is eight in the evening there.
        assert response.headers["retry-after"] == str(4 * 3600)
        assert told(response)["reset-tokens"] == "4h0m0s"
        assert response.headers["x-should-retry"] == "false"
        assert "tokens_per_day" in error_of(response)["message"]
        app.clock.advance(4 * 3600)
        assert post(app, CHAT, {**ASKED, "max_tokens": 1}).status_code == 200


def test_over_the_limit_of_calls_at_a_time_one_may_come_when_another_has_ended() -> None:
    with limited(Limits(concurrency=1)) as (app, _):
        with post(app, CHAT, {**ASKED, "stream": True}):
            refused = post(app, CHAT, ASKED)
            assert app.get("/v1/models").status_code == 200
        assert post(app, CHAT, ASKED).status_code == 200

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "1 calls at the same time (concurrency)" in error_of(refused)["message"]


def test_messages_have_anthropics_form_and_headers() -> None:
    with limited(Limits(rpm=1, tpm=10_000)) as (app, _):
        first = post(app, "/v1/messages", {**ASKED, "max_tokens": 50})
        second = post(app, "/v1/messages", {**ASKED, "max_tokens": 50})

    assert told(first) == {
        "limit-requests": "1",
        "remaining-requests": "0",
        "reset-requests": "1m0s",
        "anthropic-ratelimit-requests-limit": "1",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-20T12:01:00Z",
        "limit-tokens": "10000",
        "remaining-tokens": "9983",
        "reset-tokens": "1m0s",
        "anthropic-ratelimit-tokens-limit": "10000",
        "anthropic-ratelimit-tokens-remaining": "9983",
        "anthropic-ratelimit-tokens-reset": "2026-11-20T12:01:00Z",
    }
    body = second.get_json()
    assert (second.status_code, body["type"]) == (429, "error")
    assert body["error"]["type"] == "rate_limit_error"
    assert "(rpm)" in body["error"]["message"]
    assert second.headers["retry-after"] == "60"
    assert told(second) == told(first)


def test_each_client_has_limits_of_its_own() -> None:
    keys = "key-of-ada-0123456789,key-of-bob-0123456789"

    def limits_of(client: Client) -> Limits | None:
        return Limits(rpm=1) if client.id in ada else None

    ada: set[str] = set()
    with sandboxed(limits_of=limits_of, QWEN_PROXY_API_KEYS=keys) as (app, _):
        headers = [{"Authorization": f"Bearer {key}"} for key in keys.split(",")]
        ada.add(app.services.guard.identify({"HTTP_AUTHORIZATION": headers[0]["Authorization"]}).id)
        statuses = [
            [post(app, CHAT, ASKED, headers=each).status_code for each in headers] for _ in range(2)
        ]
        unknown = post(app, CHAT, ASKED)

    assert statuses == [[200, 200], [429, 200]]
    assert (unknown.status_code, told(unknown)) == (401, {})


# --- what counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_each_choice_counts(streamed: bool) -> None:
    with limited() as (app, sandbox):
        with post(app, CHAT, {**ASKED, "n": 3, "stream": streamed, "max_tokens": 100}) as response:
            assert response.status_code == 200
            assert told(response)["remaining-requests"] == "7"
            assert response.data
        assert taken(app) == (3, 51, 0)
        assert asked_of_models(sandbox) == 3


def test_more_choices_than_are_left_are_refused_before_the_first_is_asked_for() -> None:
    with limited(ALL._replace(rpm=3)) as (app, sandbox):
        assert post(app, CHAT, {**ASKED, "n": 2}).status_code == 200
        refused = post(app, CHAT, {**ASKED, "n": 2})
        never = post(app, CHAT, {**ASKED, "n": 4})
        assert post(app, CHAT, {**ASKED, "n": 1}).status_code == 200
        assert asked_of_models(sandbox) == 3

    assert "2 are used, this call needs 2" in error_of(refused)["message"]
    assert "Each choice (n)" in error_of(never)["message"]


def test_each_prompt_counts() -> None:
    body = {"model": MODEL, "prompt": [SHORT] * 3, "max_tokens": 100}
    with limited() as (app, sandbox):
        assert post(app, "/v1/completions", body).status_code == 200
        assert taken(app) == (3, 51, 0)
        assert asked_of_models(sandbox) == 3


def test_each_request_of_a_long_list_of_texts_counts() -> None:
    body = {"model": "text-embedding-v4", "input": ["a"] * 25}
    with limited() as (app, sandbox):
        found = post(app, "/v1/embeddings", body)
        assert found.status_code == 200
        assert taken(app) == (3, found.get_json()["usage"]["total_tokens"], 0)
        for _ in range(2):
            assert post(app, "/v1/embeddings", body).status_code == 200
        refused = post(app, "/v1/embeddings", body)
        assert taken(app)[0] == 9
        assert asked_of_models(sandbox) == 9

    assert refused.status_code == 429
    assert "9 are used, this call needs 3" in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("path", "body", "requests"),
    [
        ("/v1/images/generations", {"model": "qwen-image-2.0", "prompt": "a cat"}, 1),
        ("/v1/audio/speech", {"model": "qwen3-tts-flash", "input": "Hello", "voice": "Cherry"}, 1),
        ("/v1/rerank", {"model": "qwen3-rerank", "query": "a", "documents": ["a", "b"]}, 1),
        ("/v1/videos", {"model": "wan2.6-t2v", "prompt": "a cat"}, 1),
    ],
)
def test_media_count_as_requests_and_hold_a_place(
    path: str, body: dict[str, Any], requests: int
) -> None:
    with limited() as (app, _):
        with post(app, path, body) as response:
            assert response.status_code == 200, response.data
            assert response.data
        assert (taken(app)[0], taken(app)[2]) == (requests, 0)
    with limited(ALL._replace(concurrency=0)) as (app, _):
        assert post(app, path, body).status_code == 429


@pytest.mark.parametrize("tokenizer", ["local", "host"])
def test_questions_count_nothing_and_are_told_what_is_left(tokenizer: str) -> None:
    with limited(ALL, QWEN_PROXY_TOKENIZER=tokenizer) as (app, _):
        found = [
            app.get("/v1/models"),
            app.get(f"/v1/models/{MODEL}"),
            app.get("/v1/responses/resp_unknown"),
            post(app, "/v1/messages/count_tokens", ASKED),
            post(app, "/v1/responses/input_tokens", {"model": MODEL, "input": "a"}),
            app.chat(b"no json"),
        ]
        assert taken(app) == (0, 0, 0)

    assert {told(each)["remaining-requests"] for each in found} == {"10"}
    assert [each.status_code for each in found] == [200, 200, 404, 200, 200, 400]


def test_health_knows_no_client() -> None:
    with limited() as (app, _):
        assert told(app.get("/health")) == {}


def test_what_an_upstream_has_counted_of_a_prompt_is_not_estimated_again() -> None:
    said = [{"role": "user", "content": "[[sandbox: chunks=3]]" + "x" * 4000}]
    body = {"model": MODEL, "messages": said, "max_tokens": 1, "stream": True}
    with limited() as (app, _):
        post(app, "/v1/messages/count_tokens", {"model": MODEL, "messages": said})
        reserved = []
        for _ in range(2):
            before = taken(app)[1]
            with post(app, "/v1/messages", body) as response:
                reserved.append(10_000 - int(told(response)["remaining-tokens"]) - before)
                assert response.data
            used = taken(app)[1] - before

    assert reserved[0] > 1000
    # Exactly: the prompt as it was counted, and the maximum of the answer.
    assert reserved[1] == used


def test_a_response_in_the_background_is_a_call_of_its_own(tmp_path: Path) -> None:
    places = {"HOME": str(tmp_path)}
    asked = {"model": "m", "input": "Hello", "background": True}
    with in_front_of(MODELS, answer("done"), limits_of=lambda client: Limits(rpm=1), **places) as (
        app,
        server,
    ):
        begun = [post(app, "/v1/responses", asked).get_json()["id"] for _ in range(2)]
        assert app.services.budgets.remaining(LOCAL)["rpm"].left == 1
        app.services.background.look()
        app.services.background.wait(5)
        ended = [app.get(f"/v1/responses/{id}").get_json() for id in begun]
        assert len(server.requests) == 2  # with the list of models

    (done,) = [each for each in ended if each["status"] == "completed"]
    (failed,) = [each for each in ended if each["status"] == "failed"]
    assert done["output"]
    assert failed["error"]["code"] == "rate_limit_exceeded"
    assert "(rpm)" in failed["error"]["message"]


def test_workers_with_a_state_directory_share_what_is_taken(tmp_path: Path) -> None:
    """As `create_app` wires it: two sets of services are two workers."""
    from qwen_wsgi.services import build_services
    from tests.fakes.clock import FakeClock
    from tests.fakes.upstream import settings_of

    clock = FakeClock()
    workers = [
        build_services(
            settings_of(HOME=str(tmp_path)),
            clock,
            state_dir=tmp_path,
            limits_of=lambda client: ALL,
        )
        for _ in range(2)
    ]
    budget = workers[0].budgets.of(LOCAL)
    assert budget is not None
    budget.reserve(2)
    assert workers[1].budgets.remaining(LOCAL)["rpm"].left == 8
    for worker in workers:
        worker.close()
    assert [path.name for path in tmp_path.iterdir() if path.name == "limits"] == ["limits"]
