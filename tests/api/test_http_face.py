"""What every answer looks like from outside, whatever went wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest

from qwen_wsgi import __version__
from qwen_wsgi.app import create_app
from qwen_wsgi.credentials.credential import Ability
from qwen_wsgi.errors import StreamBroken
from qwen_wsgi.protocol import sse
from qwen_wsgi.upstream.routing.accounts import AccountPool
from tests.api.apps import HELLO, App, error_of, in_front_of, running
from tests.fakes.raw_server import whole
from tests.fakes.upstream import FakeFinder, account_of, pool_of, settings_of
from tests.kit.secrets import secret

KEY = secret("client-of-api")
AUTH = {"Authorization": f"Bearer {KEY}"}
MODELS = whole(
    json.dumps({"object": "list", "data": [{"id": "m"}, {"id": "Qwen/Qwen3-8B"}]}).encode()
)
ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "created": 7,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/chat/completions/"),
        ("POST", "/v1/v1/chat/completions"),
        ("POST", "//v1///v1/chat/completions//"),
        ("POST", "/completions"),
        ("POST", "/embeddings"),
        ("POST", "/responses"),
        ("POST", "/responses/input_tokens"),
        ("POST", "/messages"),
        ("POST", "/v1/v1/messages"),
        ("POST", "/v1/messages/count_tokens/"),
    ],
)
def test_a_base_url_with_too_much_or_too_little_works(method: str, path: str) -> None:
    """And is no redirect: some clients send no body to where they are redirected."""
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        response = app.client.open(
            "/", method=method, environ_overrides={"PATH_INFO": path}, data=b"{", headers=AUTH
        )
        without_key = app.client.open("/", method=method, environ_overrides={"PATH_INFO": path})
        paths = [call["path"] for call in app.calls]

    assert (response.status_code, without_key.status_code) == (400, 401)
    assert "JSON" in json.loads(response.data)["error"]["message"]
    assert paths == ["/" + path.lstrip("/")] * 2
    # The dialect of the answer is that of the route, however its path is spelled.
    is_anthropic = "messages" in path
    assert (json.loads(response.data).get("type") == "error") == is_anthropic
    assert ("request-id" in response.headers) == is_anthropic


@pytest.mark.parametrize(
    "path", ["/v1/models", "/models", "/models/", "/v1/models/", "/v1/v1/models", "/v1//models"]
)
def test_the_models_are_listed_under_every_spelling(path: str) -> None:
    with in_front_of(MODELS) as (app, _):
        listed = json.loads(app.get(path).data)
        one = json.loads(app.get(path.rstrip("/") + "/Qwen/Qwen3-8B/").data)

    assert [each["id"] for each in listed["data"]] == ["m", "Qwen/Qwen3-8B"]
    assert one["id"] == "Qwen/Qwen3-8B"


def test_codex_gets_the_models_in_its_own_form_beside_openais() -> None:
    """Codex 0.171: `GET <model_catalog_url>?client_version=…`, and it expects `models`."""
    listed = [{"id": "qwen3-coder-plus"}, {"id": "text-embedding-v4"}, {"id": "qwen3.7-plus"}]
    with in_front_of(whole(json.dumps({"data": listed}).encode())) as (app, _):
        theirs = json.loads(app.get("/v1/models?client_version=0.171.0").data)
        ours = json.loads(app.get("/v1/models").data)

    assert {**theirs, "models": ...} == {**ours, "models": ...}
    assert "models" not in ours
    coder, plus = theirs["models"]
    assert (coder["slug"], coder["context_window"]) == ("qwen3-coder-plus", 1_000_000)
    assert coder["supported_reasoning_levels"] == []
    assert plus["input_modalities"] == ["text", "image"]
    assert plus["default_reasoning_level"] == "medium"


def test_a_path_that_is_not_below_v1_is_recognised() -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        told = error_of(app.get("/v1/health"))

    assert "Did you mean /health?" in told["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "x"},
        {"Upgrade": "WebSocket", "Connection": "Upgrade"},
        {"Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"},
    ],
    ids=["direct", "only Upgrade", "behind nginx"],
)
@pytest.mark.parametrize("path", ["/v1/responses", "/responses"])
def test_a_websocket_is_refused_so_that_codex_uses_http_at_once(
    path: str, headers: dict[str, str]
) -> None:
    """Codex 0.171 tries 404, 405 and 501 seven times, and ends the turn at 400."""
    beta = {"OpenAI-Beta": "responses_websockets=2026-02-06"}
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        response = app.get(path, headers={**AUTH, **beta, **headers})
        plain = app.get(path, headers=AUTH)

    assert response.status_code == 426
    assert error_of(response)["code"] == "websocket_not_supported"
    assert plain.status_code == 405


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/nowhere", "/v2/models"])
def test_nothing_is_guessed_of_other_unknown_urls(path: str) -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        told = error_of(app.client.get(path))

    assert told["message"].endswith("GET / lists the endpoints.")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("POST", "/v1/nowhere", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("GET", "/v1/chat", 404, "unknown_url"),
        ("POST", "/chat", 404, "unknown_url"),
        ("GET", "/chat/completions", 405, "method_not_allowed"),
        ("GET", "/favicon.ico", 404, "unknown_url"),
        ("GET", "/static/x", 404, "unknown_url"),
        ("GET", "/%00", 404, "unknown_url"),
        ("GET", "/%ff%fe", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("PATCH", "/health", 405, "method_not_allowed"),
        ("TRACE", "/", 405, "method_not_allowed"),
        ("NONSENSE", "/", 405, "method_not_allowed"),
    ],
)
@pytest.mark.parametrize("keys", ["", KEY], ids=["no keys", "keys"])
def test_an_unknown_road_is_told_in_openai_words_and_without_a_key(
    method: str, path: str, status: int, code: str, keys: str
) -> None:
    with running(QWEN_PROXY_API_KEYS=keys) as app:
        response = app.client.open(path, method=method)

    assert response.status_code == status
    error = error_of(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert ("allow" in response.headers) == (status == 405)


def test_the_allowed_methods_are_told() -> None:
    with running() as app:
        allowed = app.get("/v1/chat/completions").headers["allow"]

    assert set(allowed.split(", ")) == {"OPTIONS", "POST"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, None),
        (b"{", None, None),
        (b"[]", None, None),
        (b'"x"', None, None),
        (b"\xff\xfe", None, None),
        (b'{"model":"m","messages":[{"role":"user"}],"temperature":NaN}', None, None),
        (b"[" * 200_000, None, None),
        (b"{}", "messages", "missing_required_parameter"),
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({**HELLO, "messages": []}, "messages", "empty_array"),
        ({**HELLO, "messages": [5]}, "messages[0]", "invalid_type"),
        ({**HELLO, "model": 5}, "model", "invalid_type"),
        ({**HELLO, "stream": "yes"}, "stream", "invalid_type"),
        ({"messages": HELLO["messages"]}, "model", "missing_required_parameter"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_body_is_a_400_in_openai_form(
    body: Any, param: str | None, code: str | None
) -> None:
    with in_front_of(MODELS) as (app, _):
        response = app.chat(body)

    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_body_above_the_limit_is_a_413(path: str) -> None:
    with running(QWEN_PROXY_MAX_BODY=1024) as app:
        response = app.client.post(path, data=b"x" * 1025)

    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/rerank"),
        ("POST", "/v2/rerank"),
    ],
)
def test_without_a_key_there_is_no_way_in(method: str, path: str) -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        missing = app.client.open(path, method=method, data=b"not even json")
        wrong = app.client.open(path, method=method, headers={"Authorization": "Bearer wrong"})

        for response, code in ((missing, "missing_api_key"), (wrong, "invalid_api_key")):
            assert response.status_code == 401
            error = error_of(response)
            assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert [call["outcome"] for call in app.calls] == ["refused", "refused"]
        assert app.services.admission.in_flight == 0


def test_other_machines_and_other_names_are_refused_without_keys() -> None:
    with in_front_of(MODELS) as (app, _):
        elsewhere = app.get("/v1/models", environ_overrides={"REMOTE_ADDR": "203.0.113.9"})
        renamed = app.get("/v1/models", headers={"Host": "evil.example"})
        page = app.get("/v1/models", headers={"Origin": "https://evil.example"})
        local = app.get("/v1/models")

    assert (elsewhere.status_code, error_of(elsewhere)["code"]) == (401, "missing_api_key")
    assert (renamed.status_code, error_of(renamed)["code"]) == (403, "host_not_allowed")
    assert (page.status_code, error_of(page)["code"]) == (403, "origin_not_allowed")
    assert error_of(page)["type"] == "permission_error"
    assert local.status_code == 200


def test_above_the_limit_of_calls_the_answer_is_503_with_a_time_to_wait() -> None:
    with running() as app:
        app.services.admission.in_flight = app.services.admission.limit
        response = app.chat()

        assert response.status_code == 503
        error = error_of(response)
        assert (error["type"], error["code"]) == ("overloaded_error", "overloaded")
        assert response.headers["retry-after"] == "1"
        assert app.services.admission.in_flight == app.services.admission.limit
        assert app.get("/").status_code == 200


def test_a_place_is_given_back_however_a_call_ends() -> None:
    with in_front_of(MODELS, whole(b"no json"), QWEN_PROXY_MAX_IN_FLIGHT=1) as (app, _):
        for body in (
            b"{",
            {"model": "m"},
            {**HELLO, "model": "gone"},
            HELLO,
            {**HELLO, "stream": True},
        ):
            response = app.chat(body)
            assert response.status_code >= 400
            response.close()
            assert app.services.admission.in_flight == 0


def test_without_any_account_the_answer_says_what_to_do() -> None:
    with running() as app:
        response = app.chat()

    assert response.status_code == 503
    assert error_of(response)["code"] == "no_account"
    assert response.headers["x-should-retry"] == "false"


def test_a_model_that_is_not_there_is_a_404() -> None:
    with in_front_of(MODELS) as (app, _):
        response = app.chat({**HELLO, "model": "gone"})

    assert response.status_code == 404
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_a_model_name_with_half_a_surrogate_pair_is_just_not_there() -> None:
    with in_front_of(MODELS) as (app, _):
        response = app.chat(b'{"model":"\\ud83d","messages":[{"role":"user","content":"x"}]}')

    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_a_fault_of_ours_is_a_500_that_tells_nothing_but_the_id() -> None:
    class Faulty(FakeFinder):
        def accounts(self) -> Any:
            raise RuntimeError(f"boom with {KEY}")

    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        pool = AccountPool(
            app.services.settings, Faulty(), app.services.cooldowns, start_sandbox=lambda: ""
        )
        broken = dataclasses.replace(app.services, pool=pool)
        client = create_app(services=broken).test_client()
        response = client.get("/health", headers={"X-Request-Id": "req-5"})

    assert response.status_code == 500
    error = error_of(response)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "req-5" in error["message"]
    assert "boom" not in error["message"]


# --- request ids and other headers ---------------------------------------------------------------

ROADS = [
    ("GET", "/", 200),
    ("GET", "/health", 503),
    ("GET", "/nowhere", 404),
    ("GET", "/v1/chat/completions", 405),
    ("POST", "/v1/chat/completions", 400),
    ("POST", "/v1/embeddings", 400),
    ("POST", "/v1/rerank", 400),
    ("GET", "/v1/models", 200),
    ("GET", "/v1/models/x", 404),
    ("OPTIONS", "/v1/models", 204),
    ("HEAD", "/", 200),
]


@pytest.mark.parametrize(("method", "path", "status"), ROADS)
def test_every_answer_has_a_request_id_of_its_own(method: str, path: str, status: int) -> None:
    with running() as app:
        responses = [app.client.open(path, method=method) for _ in range(2)]
        logged = [call["request_id"] for call in app.calls]

    assert {response.status_code for response in responses} == {status}
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == 2
    assert ids == logged
    assert all(response.headers["openai-processing-ms"].isdigit() for response in responses)


@pytest.mark.parametrize(("method", "path", "status"), ROADS)
def test_a_callers_own_id_is_kept_when_it_is_sane(method: str, path: str, status: int) -> None:
    with running() as app:
        kept = app.client.open(path, method=method, headers={"X-Request-Id": "caller-1"})
        replaced = app.client.open(path, method=method, headers={"X-Request-Id": "a b<script>"})

    assert kept.headers["x-request-id"] == "caller-1"
    assert replaced.headers["x-request-id"].startswith("req_")


def test_each_call_is_logged_once_with_its_outcome() -> None:
    with in_front_of(MODELS, whole(json.dumps(ANSWER).encode(), x_request_id="up-1")) as (app, _):
        app.chat(headers={"X-Request-Id": "r1"})
        (call,) = app.calls

    assert call["request_id"] == "r1"
    assert call["client"] == "local"
    assert (call["method"], call["path"]) == ("POST", "/v1/chat/completions")
    assert (call["status"], call["outcome"]) == (200, "complete")
    assert (call["account"], call["model"]) == ("upstream", "m")
    assert (call["prompt_tokens"], call["completion_tokens"]) == (3, 2)
    assert call["upstream_request_id"] == "up-1"
    assert call["attempts"] == 1
    assert call["total_ms"] >= 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        whole(b'{"error":{"message":"m","code":"x"}}', "400 X", x_request_id="up-1"),
        whole(b'{"code":"x","message":"m","request_id":"up-1"}', "400 X"),
        whole(b'{"error":{"message":"m","code":"x"}}', x_request_id="up-1"),
        whole(
            b'data: {"error":{"message":"m","code":"x"}}\n\n',
            content_type="text/event-stream",
            x_request_id="up-1",
        ),
    ],
    ids=["refused", "refused natively", "refused in a success", "refused in a stream"],
)
def test_the_upstreams_request_id_of_a_failure_is_in_the_header_and_the_log(
    answer: bytes, stream: bool
) -> None:
    with in_front_of(MODELS, answer) as (app, _):
        response = app.chat({**HELLO, "stream": stream})
        response.close()
        (call,) = app.calls

    assert response.status_code >= 400
    assert response.headers["x-upstream-request-id"] == "up-1"
    assert call["upstream_request_id"] == "up-1"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        ("data_inspection_failed", "invalid_request_error", "content_filter"),
        ("insufficient_quota", "insufficient_quota", "insufficient_quota"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_error_within_a_stream_has_openais_type_and_code(
    path: str, error: str, kind: str, code: str
) -> None:
    text = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}
    events = [
        sse.render(text),
        sse.render({"error": {"code": error, "message": "m", "type": "BadRequest"}}),
    ]
    if path == "/v1/completions":
        # The upstream has no such path, so it is asked for a chat.
        replies = [whole(b'{"error":{"message":"m"}}', "404 X"), chat_stream(*events)]
    else:
        replies = [chat_stream(*events)]
    with in_front_of(MODELS, *replies) as (app, _):
        body = HELLO if path != "/v1/completions" else {"model": "m", "prompt": "hi"}
        response = app.client.post(path, json={**body, "stream": True})
        out = b""
        with contextlib.suppress(StreamBroken):
            for piece in response.response:
                out += piece if isinstance(piece, bytes) else piece.encode()
        response.close()
        (call,) = app.calls

    told = [sse.parse(event) for event in sse.events(out)][-1]["error"]
    assert (told["type"], told["code"]) == (kind, code)
    assert call["upstream_request_id"] == "up-1"
    assert response.headers["x-upstream-request-id"] == "up-1"


def chat_stream(*events: bytes) -> bytes:
    return whole(b"".join(events), content_type="text/event-stream", x_request_id="up-1")


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_call_is_logged_with_the_status_that_the_client_got(stream: bool) -> None:
    refusal = whole(b'{"error":{"message":"m","code":"limit_requests"}}', "429 X", retry_after="7")
    with in_front_of(MODELS, refusal) as (app, _):
        response = app.chat({**HELLO, "stream": stream})
        response.close()
        (call,) = app.calls

    assert response.status_code == 429
    assert error_of(response)["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "7"
    assert (call["status"], call["outcome"], call["error"]) == (
        429,
        "upstream_error",
        "rate_limit_exceeded",
    )


@pytest.mark.parametrize(
    ("told", "passed"), [("0", "1"), ("0.2", "1"), ("1.5", "2"), ("60", "60"), ("3600", "3600")]
)
def test_retry_after_is_true_and_in_whole_seconds(told: str, passed: str) -> None:
    """RFC 9110 §10.2.3; also above a minute, which some SDKs ignore."""
    with in_front_of(MODELS, whole(b"", "503 X", retry_after=told)) as (app, _):
        assert app.chat().headers["retry-after"] == passed


def test_a_refused_account_is_told_without_a_401_and_without_the_key() -> None:
    with in_front_of(MODELS, whole(b'{"error":{"message":"Incorrect API key"}}', "401 X")) as (
        app,
        _,
    ):
        response = app.chat()

    assert response.status_code == 502
    assert error_of(response)["code"] == "upstream_account_refused"
    assert response.headers["x-should-retry"] == "false"


# --- health and the landing page -----------------------------------------------------------------


def health_of(app: App) -> tuple[int, dict[str, Any]]:
    response = app.get("/health")
    body: dict[str, Any] = json.loads(response.data)
    return response.status_code, body


def test_health_tells_the_accounts_and_no_more() -> None:
    with in_front_of(MODELS) as (app, server):
        app.clock.advance(90)
        status, body = health_of(app)
        assert server.requests == []

    assert status == 200
    assert body == {
        "status": "ok",
        "ready": True,
        "version": __version__,
        "sandbox": False,
        "uptime_s": 90.0,
        "in_flight": 0,
        "websockets": 0,
        "accounts": [{"name": "upstream", "kind": "key", "state": "fresh"}],
    }


@pytest.mark.parametrize(
    ("accounts", "status", "word"),
    [
        ((), 503, "no_usable_account"),
        ((account_of(token=None),), 503, "no_usable_account"),
        ((account_of("a", token=None), account_of("b")), 200, "ok"),
    ],
    ids=["none", "unusable", "one of two"],
)
def test_health_is_ready_when_an_account_is_usable(
    accounts: tuple[Any, ...], status: int, word: str
) -> None:
    with running() as app:
        services = dataclasses.replace(app.services, pool=pool_of(*accounts))
        response = create_app(services=services).test_client().get("/health")

    body = json.loads(response.data)
    assert (response.status_code, body["status"], body["ready"]) == (status, word, status == 200)


def test_health_says_that_the_worker_is_draining() -> None:
    with in_front_of(MODELS) as (app, _):
        app.services.admission.draining = True
        status, body = health_of(app)

    assert (status, body["status"], body["ready"]) == (503, "draining", False)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/chat/completions", "server_error"), ("/v1/messages", "overloaded_error")],
)
def test_new_calls_are_refused_while_the_server_stops(path: str, kind: str) -> None:
    with in_front_of(MODELS) as (app, _):
        app.services.admission.draining = True
        answer = app.client.post(path, json={"model": "m", "messages": []})
        listed = app.get("/v1/models")
        call = app.calls[0]

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert json.loads(answer.data)["error"]["type"] == kind
    assert listed.status_code == 503
    assert call["outcome"] == "refused"


def test_liveness_and_readiness_are_apart() -> None:
    with in_front_of(MODELS) as (app, _):
        assert [app.get(f"/health/{what}").status_code for what in ("live", "ready")] == [200, 200]
        app.services.admission.draining = True
        assert [app.get(f"/health/{what}").status_code for what in ("live", "ready")] == [200, 503]
    with in_front_of(MODELS) as (app, _):
        services = app.services
        (account,) = services.pool.accounts()
        services.cooldowns.set_cooldown(services.pool.keys(account).payer, 60, "billing")
        ready = app.get("/health/ready")
        assert (ready.status_code, json.loads(ready.data)) == (
            503,
            {"status": "no_usable_account", "cause": "billing"},
        )
    with running() as app:
        ready = app.get("/health/ready")
        assert (ready.status_code, json.loads(ready.data)) == (503, {"status": "no_usable_account"})
        assert app.get("/health/live").status_code == 200


def test_a_login_in_memory_alone_is_told_and_nobody_restarts_for_it() -> None:
    account = account_of()
    told = dataclasses.replace(
        account.credential.status(), ability=Ability.REFRESHABLE, unsaved=True
    )
    account.credential.status = lambda: told  # type: ignore[method-assign]  # as a test wants it
    with running() as app:
        services = dataclasses.replace(app.services, pool=pool_of(account))
        client = create_app(services=services).test_client()
        body = client.get("/health").get_json()
        assert client.get("/health/ready").status_code == 200

    assert (body["status"], body["ready"]) == ("login_unsaved", True)
    assert body["accounts"][0]["ability"] == "refreshable"


def test_health_tells_why_an_account_is_left_alone() -> None:
    with in_front_of(MODELS) as (app, _):
        services = app.services
        (account,) = services.pool.accounts()
        services.cooldowns.set_cooldown(services.pool.keys(account).payer, 60, "billing")
        status, body = health_of(app)
        (told,) = body["accounts"]

    assert (status, body["status"], body["cause"]) == (503, "no_usable_account", "billing")
    assert 59 < told["left_alone_s"] <= 60
    assert (told["state"], told["cause"]) == ("unpaid", "billing")
    assert "Settle the account's bill" in told["remedy"]


def test_health_tells_which_model_is_left_alone() -> None:
    listed = whole(json.dumps({"object": "list", "data": [{"id": "m"}, {"id": "n"}]}).encode())
    with in_front_of(listed) as (app, _):
        app.get("/v1/models")
        services = app.services
        (account,) = services.pool.accounts()
        key = services.pool.keys(account).of_model("n")
        services.cooldowns.set_cooldown(key, 300, "rate_limited")
        status, body = health_of(app)
        (told,) = body["accounts"]

    assert (status, told["state"]) == (200, "fresh"), "the other one is served"
    (model,) = told["models"]
    assert 299 < model.pop("left_alone_s") <= 300
    assert model == {"model": "n", "cause": "rate_limited"}


def test_health_and_the_landing_page_are_open_to_everybody() -> None:
    """Monitors have no key; so these tell no hosts and no secrets."""
    with in_front_of(MODELS, QWEN_PROXY_API_KEYS=KEY) as (app, server):
        elsewhere = {"environ_overrides": {"REMOTE_ADDR": "203.0.113.9"}}
        for path in ("/health", "/health/live", "/health/ready", "/"):
            response = app.get(path, headers={"Host": "any.example"}, **elsewhere)
            assert response.status_code == 200
            assert str(server.port) not in response.text
            assert "0000" not in response.text


def test_health_checks_are_logged_at_debug_only() -> None:
    with running(LOG_LEVEL="INFO") as app:
        app.get("/health")
        app.get("/")
        app.client.options("/v1/models")
        assert app.calls == []
        app.get("/nowhere")
        assert len(app.calls) == 1


def test_the_landing_page_tells_what_is_here() -> None:
    with running() as app:
        body = json.loads(app.get("/").data)

    assert body["name"] == "qwen-proxy"
    assert {
        "POST /v1/chat/completions",
        "POST /v1/messages",
        "DELETE /v1/responses/{id}",
        "GET /v1/models/{id}",
    } <= set(body["endpoints"])


def test_health_tells_the_sandbox() -> None:
    with running(QWEN_PROXY_SANDBOX="auto") as app:
        status, body = health_of(app)

    assert (status, body["sandbox"]) == (200, True)
    assert body["accounts"] == [{"name": "sandbox", "kind": "sandbox", "state": "fresh"}]


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models/Qwen/Qwen3-8B", "/v1/models/Qwen%2FQwen3-8B"])
def test_a_model_with_a_slash_in_its_id_is_found(path: str) -> None:
    with in_front_of(MODELS) as (app, _):
        response = app.get(path)

    body = json.loads(response.data)
    assert response.status_code == 200
    assert body["id"] == "Qwen/Qwen3-8B"
    assert {"id", "object", "created", "owned_by"} <= body.keys()


def test_models_are_listed() -> None:
    with in_front_of(MODELS) as (app, _):
        body = json.loads(app.get("/v1/models").data)

    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["m", "Qwen/Qwen3-8B"]


@pytest.mark.parametrize("id", ["gone", "Qwen", "Qwen/", "M", "%F0%9F%98%80"])
def test_a_model_that_is_not_listed_is_a_404(id: str) -> None:
    with in_front_of(MODELS) as (app, _):
        response = app.get(f"/v1/models/{id}")

    assert response.status_code == 404
    error = error_of(response)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("query", "asks"),
    [
        ("", 1),
        ("?refresh=0", 1),
        ("?refresh=false", 1),
        ("?refresh=", 1),
        ("?refresh=1", 2),
        ("?refresh=true", 2),
    ],
)
def test_a_list_is_kept_unless_a_refresh_is_asked(query: str, asks: int) -> None:
    with in_front_of(MODELS) as (app, server):
        app.get("/v1/models")
        app.clock.advance(5)
        app.get("/v1/models" + query)

        assert len(server.requests) == asks


# --- pages of other origins ----------------------------------------------------------------------

PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/models", "/v1/models/a/b", "/nowhere"]
)
def test_a_preflight_is_answered_without_a_key(path: str) -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        response = app.client.options(path, headers=PREFLIGHT)

    headers = response.headers
    assert (response.status_code, response.data) == (204, b"")
    assert headers["access-control-allow-origin"] == "*"
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert int(headers["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in headers


def test_without_keys_a_preflight_allows_nothing() -> None:
    with running() as app:
        response = app.client.options("/v1/chat/completions", headers=PREFLIGHT)

    assert not [name for name, _ in response.headers if name.lower().startswith("access-control")]


def test_only_a_named_origin_may_read_answers() -> None:
    with running(QWEN_PROXY_API_KEYS=KEY, QWEN_PROXY_CORS_ORIGINS="https://app.example") as app:
        named = app.client.options("/v1/models", headers=PREFLIGHT)
        other = app.client.options(
            "/v1/models", headers={**PREFLIGHT, "Origin": "https://x.example"}
        )

    assert named.headers["access-control-allow-origin"] == "https://app.example"
    assert "Origin" in named.headers["vary"]
    assert "access-control-allow-origin" not in other.headers


def test_a_cache_never_serves_one_origins_answer_to_another() -> None:
    """Where the answer depends on the origin, it says so on every answer."""
    with running(QWEN_PROXY_API_KEYS=KEY, QWEN_PROXY_CORS_ORIGINS="https://app.example") as app:
        for headers in ({}, {"Origin": "https://x.example"}):
            assert "Origin" in app.get("/v1/models", headers=headers).headers.get("vary", "")


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 401), ("/nowhere", 404)])
def test_a_page_can_read_errors_and_ids_too(path: str, status: int) -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        response = app.get(path, headers={"Origin": "https://app.example"})

    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in response.headers["access-control-expose-headers"]


def test_a_caller_that_is_no_page_gets_no_such_headers() -> None:
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        headers = app.get("/nowhere", headers=AUTH).headers

    assert "access-control-allow-origin" not in headers


# --- whole calls ---------------------------------------------------------------------------------


def test_the_application_can_be_made_from_settings_alone() -> None:
    app = create_app(settings_of(QWEN_PROXY_API_KEYS=KEY))
    client = app.test_client()

    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers=AUTH).status_code == 200
    app.extensions["qwen_wsgi"].close()


def test_what_the_upstream_gets_is_what_the_client_sent() -> None:
    body = (
        b'{ "model":"m", "temperature": 0, "x":1.0,'
        b' "messages":[{"role":"user","content":"\\u00e9"}]}'
    )
    reply = whole(json.dumps(ANSWER).encode())
    with in_front_of(MODELS, reply) as (app, server):
        response = app.chat(
            body,
            headers={
                "User-Agent": "agent/1",
                "X-DashScope-Wait-Timeout": "5",
                "X-DashScope-SSE": "enable",
                "X-DashScope-WorkSpace": "of-somebody-else",
                "X-Custom": "private",
                "Cookie": "a=b",
                "Authorization": "Bearer client-own",
            },
        )
        head, _, sent = server.requests[1].partition(b"\r\n\r\n")

    assert json.loads(response.data) == ANSWER
    assert sent == body
    assert b"User-Agent: agent/1" in head
    assert b"x-dashscope-wait-timeout: 5" in head.lower()
    for private in (
        b"x-dashscope-sse",
        b"x-dashscope-workspace",
        b"x-custom",
        b"cookie",
        b"client-own",
        b"x-forwarded",
    ):
        assert private not in head.lower()


def test_a_stream_reaches_the_client_with_the_headers_that_keep_it_flowing() -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'
    reply = whole(
        chunk + b"data: [DONE]\n\n", content_type="text/event-stream", x_request_id="up-1"
    )
    with in_front_of(MODELS, reply) as (app, _):
        response = app.chat({**HELLO, "stream": True})
        headers = response.headers
        assert response.status_code == 200
        assert response.data == chunk + b"data: [DONE]\n\n"
        response.close()
        (call,) = app.calls

    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-qwen-proxy-account"] == "upstream"
    assert headers["x-upstream-request-id"] == "up-1"
    assert (call["outcome"], call["stream"]) == ("complete", True)
    assert "first_byte_ms" in call
    assert "prompt_tokens" not in call, "numbers are never invented"


def test_embeddings_of_another_server_pass_as_they_are() -> None:
    answer = (
        b'{"object":"list","data":[{"index":0,"embedding":"AAAA"}],"usage":{"prompt_tokens":4}}'
    )
    with in_front_of(MODELS, whole(answer)) as (app, server):
        response = app.client.post("/v1/embeddings", data=b'{"model":"m","input":[1,2],"x":1.0}')
        (call,) = app.calls
        sent = server.requests[1].partition(b"\r\n\r\n")[2]

    assert response.data == answer
    assert sent == b'{"model":"m","input":[1,2],"x":1.0}'
    assert call["prompt_tokens"] == 4


def test_the_sandbox_is_told_in_the_answers_header() -> None:
    with running(QWEN_PROXY_SANDBOX="1") as app:
        response = app.chat({**HELLO, "model": app.services.catalogue.models()[0]["id"]})

    assert response.status_code == 200
    assert response.headers["x-qwen-proxy-account"] == "sandbox"


# --- what needs no key ---------------------------------------------------------------------------


def test_health_tells_details_to_this_machine_and_to_key_holders_alone() -> None:
    far = {"REMOTE_ADDR": "203.0.113.9"}
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        assert "accounts" in json.loads(app.get("/health").data)
        assert json.loads(app.get("/health", environ_base=far).data).keys() == {"status", "ready"}
        known = {"Authorization": f"Bearer {KEY}"}
        told = app.get("/health", environ_base=far, headers=known)
        assert "accounts" in json.loads(told.data)


@pytest.mark.parametrize(
    "path", ["/", "/health", "/health/ready", "/health/live", "/health/", "/health//ready"]
)
def test_pages_of_other_sites_learn_nothing_from_routes_without_a_key(path: str) -> None:
    page = {"Origin": "https://evil.example"}
    with running(QWEN_PROXY_API_KEYS=KEY) as app:
        assert "access-control-allow-origin" not in app.get(path, headers=page).headers
    with running() as app:
        assert app.get(path, headers={"Host": "evil.example"}).status_code == 403
        assert app.get(path, headers=page).status_code == 403
        assert app.get(path).status_code in (200, 503)
