"""What a key of the database may use: models, accounts and networks, on every road."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.protocol.files import file_object
from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import UPSTREAM_KEY, App, error_of, running
from tests.kit.secrets import secret

PLUS, CODER, IMAGES = "qwen3.7-plus", "qwen3-coder-plus", "qwen-image-3.0"
OTHER_UPSTREAM_KEY = secret("other-upstream-of-policy")
SAID = [{"role": "user", "content": "hello"}]


class Caller:
    """A client with a key of its own."""

    def __init__(self, app: App, **members: Any) -> None:
        self.app = app
        made = app.services.client_keys.add({"name": "anna", **members})
        app.services.key_ring.look_again()
        self.id, self._key = made.key.id, made.secret

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.app.get(path, headers={"Authorization": f"Bearer {self._key}", **headers})

    def post(self, path: str, body: Any, **headers: str) -> TestResponse:
        sent = {"Authorization": f"Bearer {self._key}", **headers}
        return self.app.client.post(path, json=body, headers=sent)

    def chat(self, model: str, **headers: str) -> TestResponse:
        return self.post("/v1/chat/completions", {"model": model, "messages": SAID}, **headers)

    def edit(self, **changes: Any) -> None:
        self.app.services.client_keys.edit(self.id, changes)
        self.app.services.key_ring.look_again()


@contextmanager
def in_front_of(sandbox: Sandbox, **environ: Any) -> Iterator[App]:
    """Two accounts at the sandbox: `dashscope` and `modelstudio`."""
    with running(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        MODELSTUDIO_BASE_URL=sandbox.base_url,
        MODELSTUDIO_API_KEY=OTHER_UPSTREAM_KEY,
        QWEN_PROXY_MODEL_ALIASES=f"fast={CODER},pinned=dashscope:{PLUS}",
        **environ,
    ) as app:
        yield app


@pytest.fixture
def app(sandbox: Sandbox) -> Iterator[App]:
    with in_front_of(sandbox) as made:
        yield made


def refused(response: TestResponse) -> tuple[int, str]:
    return response.status_code, error_of(response)["code"]


MODEL_NOT_ALLOWED = (403, "model_not_allowed")
ACCOUNT_NOT_ALLOWED = (403, "account_not_allowed")


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        (PLUS, True),
        (f"openai/{PLUS}", True),
        (f"dashscope:{PLUS}", True),
        (f"{PLUS}-thinking", True),
        ("pinned", True),
        (CODER, False),
        ("fast", False),
        (f"dashscope:{CODER}", False),
        (f"{CODER}-search", False),
    ],
)
def test_a_model_is_checked_by_the_name_that_is_asked_for(
    app: App, sandbox: Sandbox, model: str, allowed: bool
) -> None:
    anna = Caller(app, models=("qwen3.7*",))
    answer = anna.chat(model)

    if allowed:
        assert answer.status_code == 200, answer.data
        return
    assert refused(answer) == MODEL_NOT_ALLOWED
    message = error_of(answer)["message"]
    assert "qwen3.7*" in message and CODER in message
    assert error_of(answer)["param"] == "model"
    assert sandbox.chats == ()
    assert app.calls[-1]["outcome"] == "refused"
    assert app.calls[-1]["client"] == "anna"


def test_the_operators_default_is_checked_too(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, OPENAI_MODEL=CODER) as app:
        anna = Caller(app, models=("qwen3.7*",))
        assert refused(anna.chat("gpt-9")) == MODEL_NOT_ALLOWED
        anna.edit(models=("qwen3-coder*",))
        assert anna.chat("gpt-9").status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/responses", {"input": "x", "background": True}),
        ("/v1/responses", {"input": "x", "stream": True}),
        ("/v1/responses/compact", {"input": "x"}),
        ("/v1/messages", {"messages": SAID, "max_tokens": 9}),
    ],
    ids=str,
)
def test_each_dialect_refuses_in_its_form(app: App, path: str, body: dict[str, Any]) -> None:
    answer = Caller(app, models=("qwen3.7*",)).post(path, {"model": CODER, **body})

    assert answer.status_code == 403
    error = answer.get_json()["error"]
    assert "qwen3.7*" in error["message"]
    if path == "/v1/messages":
        assert (answer.get_json()["type"], error["type"]) == ("error", "permission_error")
    else:
        assert error["code"] == "model_not_allowed"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "text-embedding-v4", "input": "x"}),
        ("/v1/rerank", {"model": "qwen3-rerank", "query": "x", "documents": ["y"]}),
        ("/v1/images/generations", {"model": IMAGES, "prompt": "x"}),
        ("/v1/videos", {"model": "wan2.5-t2v-preview", "prompt": "x"}),
        ("/v1/audio/speech", {"model": "qwen3-tts-flash", "input": "x", "voice": "Cherry"}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_models_that_are_no_chat_models_are_checked(
    app: App, sandbox: Sandbox, path: str, body: dict[str, Any]
) -> None:
    answer = Caller(app, models=("qwen3.7*",)).post(path, body)

    assert refused(answer) == MODEL_NOT_ALLOWED
    assert [each.route for each in sandbox.settle() if each.route != "models"] == []


def test_only_what_the_key_may_use_is_listed(app: App) -> None:
    anna = Caller(app, models=("qwen3-coder*",))
    ids = {entry["id"] for entry in anna.get("/v1/models").get_json()["data"]}
    anthropic = anna.get("/v1/models", **{"anthropic-version": "2023-06-01"}).get_json()["data"]
    codex = anna.get("/v1/models?client_version=1").get_json()["models"]

    assert CODER in ids and "fast" in ids and PLUS not in ids and "pinned" not in ids
    assert {each["id"].removeprefix("anthropic/") for each in anthropic} == ids
    assert {each["slug"] for each in codex} <= ids
    assert anna.get(f"/v1/models/{CODER}").status_code == 200
    assert anna.get("/v1/models/fast").status_code == 200
    for id in (PLUS, f"anthropic/{PLUS}"):
        assert refused(anna.get(f"/v1/models/{id}")) == (404, "model_not_found")


def test_a_key_without_models_sees_all(app: App) -> None:
    ids = {entry["id"] for entry in Caller(app).get("/v1/models").get_json()["data"]}

    assert {PLUS, CODER, "fast", "pinned"} <= ids


# --- accounts ------------------------------------------------------------------------------------


def test_other_accounts_are_not_asked_and_naming_one_is_refused(app: App) -> None:
    anna = Caller(app, accounts=("dashscope",))

    for _ in range(3):
        assert anna.chat(PLUS).headers["x-qwen-proxy-account"] == "dashscope"
    assert anna.chat(f"dashscope:{PLUS}").status_code == 200
    assert anna.chat(PLUS, **{"x-qwen-account": "dashscope"}).status_code == 200
    for answer in (
        anna.chat(PLUS, **{"x-qwen-account": "modelstudio"}),
        anna.chat(f"modelstudio:{PLUS}"),
        anna.post(
            "/v1/embeddings",
            {"model": "text-embedding-v4", "input": "x"},
            **{"x-qwen-account": "modelstudio"},
        ),
    ):
        assert refused(answer) == ACCOUNT_NOT_ALLOWED
        assert "dashscope" in error_of(answer)["message"]

    # A slash may as well name a vendor, as other proxies' clients do.
    assert anna.chat(f"modelstudio/{PLUS}").headers["x-qwen-proxy-account"] == "dashscope"

    anna.edit(accounts=("modelstudio",))
    assert refused(anna.chat("pinned")) == ACCOUNT_NOT_ALLOWED  # the alias names dashscope
    anna.edit(accounts=("elsewhere",))
    assert refused(anna.chat(PLUS)) == (503, "no_account")
    assert anna.get("/v1/models").get_json()["data"] == []


def test_an_account_that_nobody_has_is_still_an_unknown_model(app: App) -> None:
    answer = Caller(app, accounts=("dashscope",)).chat("nowhere:unknown-model")

    assert refused(answer) == (404, "model_not_found")


# --- other roads ---------------------------------------------------------------------------------


def test_a_key_with_models_begins_no_batch(app: App) -> None:
    anna = Caller(app, models=("qwen3.7*",))
    body = {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }

    assert refused(anna.post("/v1/batches", body)) == MODEL_NOT_ALLOWED
    anna.edit(models=("*",))
    assert refused(anna.post("/v1/batches", body)) == (404, "not_found")


def test_a_file_at_an_account_that_was_taken_away_is_out_of_reach(app: App) -> None:
    anna = Caller(app)
    file = file_object({"id": "file-1"})
    app.services.host_objects.put("file", anna.id, "modelstudio", file)
    anna.edit(accounts=("dashscope",))

    assert refused(anna.get("/v1/files/file-1")) == ACCOUNT_NOT_ALLOWED
    assert refused(anna.get("/v1/files/file-1/content")) == ACCOUNT_NOT_ALLOWED
    assert anna.get("/v1/files").status_code == 200


def test_so_is_a_video(app: App) -> None:
    anna = Caller(app)
    body = {"model": "wan2.5-t2v-preview", "prompt": "a cat"}
    made = anna.post("/v1/videos", body)
    assert made.status_code == 200, made.data
    id, account = made.get_json()["id"], made.headers["x-qwen-proxy-account"]
    anna.edit(accounts=("dashscope" if account == "modelstudio" else "modelstudio",))

    assert refused(anna.get(f"/v1/videos/{id}")) == ACCOUNT_NOT_ALLOWED
    (listed,) = anna.get("/v1/videos").get_json()["data"]
    assert (listed["id"], listed["status"]) == (id, "queued")


def test_the_image_tool_takes_a_model_that_the_key_may_use_or_none(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, QWEN_PROXY_IMAGE_MODEL=IMAGES) as app:
        anna = Caller(app, models=("qwen3.7*",))
        body = {"model": PLUS, "input": "A cat", "tools": [{"type": "image_generation"}]}

        without = anna.post("/v1/responses", body).get_json()
        anna.edit(models=("qwen3.7*", "qwen-image*"))
        with_one = anna.post("/v1/responses", body).get_json()

    kinds = [[item["type"] for item in each["output"]] for each in (without, with_one)]
    assert "image_generation_call" not in kinds[0]
    assert "image_generation_call" in kinds[1]


def test_a_hosts_tokenizer_is_not_asked_for_a_model_that_the_key_may_not_use(
    sandbox: Sandbox,
) -> None:
    with in_front_of(sandbox, QWEN_PROXY_TOKENIZER="host") as app:
        anna = Caller(app, models=("qwen3.7*",))
        body = {"messages": SAID, "model": CODER}

        answer = anna.post("/v1/messages/count_tokens", body)
        assert answer.headers["x-qwen-proxy-tokens"] == "estimated"
        assert "tokenizer" not in [each.route for each in sandbox.settle()]
        anna.post("/v1/messages/count_tokens", {**body, "model": PLUS})
        assert "tokenizer" in [each.route for each in sandbox.settle()]


# --- background ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [("revoke", "revoked_api_key"), ("expire", "expired_api_key"), ("models", "model_not_allowed")],
)
def test_a_response_in_the_background_looks_its_key_up_when_it_is_made(
    app: App, sandbox: Sandbox, change: str, code: str
) -> None:
    anna = Caller(app)
    begun = anna.post("/v1/responses", {"model": PLUS, "input": "hi", "background": True})
    assert begun.status_code == 200, begun.data
    if change == "revoke":
        app.services.client_keys.revoke(anna.id)
    elif change == "expire":
        app.services.client_keys.edit(anna.id, {"expires_at": 1})
    else:
        anna.edit(models=("other*",))
    app.services.key_ring.look_again()

    app.services.background.look()
    app.services.background.wait(5)

    stored = app.services.responses.get(anna.id, begun.get_json()["id"])
    assert stored is not None
    assert stored.response["status"] == "failed"
    (line,) = [call for call in app.calls if call["method"] == "BACKGROUND"]
    assert (line["error"], line["client"]) == (code, "anna")
    assert sandbox.chats == ()


def test_what_is_stored_stays_with_the_key_when_it_is_rotated(app: App) -> None:
    anna = Caller(app)
    id = anna.post("/v1/responses", {"model": PLUS, "input": "hi"}).get_json()["id"]
    rotated = app.services.client_keys.rotate(anna.id, grace_s=0)
    assert rotated is not None
    app.services.key_ring.look_again()

    assert refused(anna.get(f"/v1/responses/{id}")) == (401, "expired_api_key")
    anna._key = rotated.secret
    assert anna.get(f"/v1/responses/{id}").status_code == 200


# --- the rest ------------------------------------------------------------------------------------


def test_networks_are_checked_before_anything_is_read(app: App) -> None:
    anna = Caller(app, cidr=("192.168.1.0/24",))

    inside = anna.chat(PLUS, **{"X-Forwarded-For": "192.168.1.7"})
    outside = anna.chat(PLUS, **{"X-Forwarded-For": "192.168.2.7"})

    assert inside.status_code == 200
    assert refused(outside) == (403, "network_not_allowed")
    assert "192.168.2.7" in error_of(outside)["message"]
    line = app.calls[-1]
    assert (line["client"], line["address"], line["outcome"]) == ("anna", "192.168.2.7", "refused")


def test_health_and_pages_know_keys_of_the_database(app: App) -> None:
    page = {"Origin": "https://page.example"}
    assert app.get("/v1/models", headers=page).status_code == 403
    share = app.services.admission.share
    anna = Caller(app)

    answer = anna.get("/v1/models", **page)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert app.get("/v1/models").status_code == 401
    stranger = {"X-Forwarded-For": "203.0.113.9"}
    assert app.get("/health", headers=stranger).get_json().keys() == {"status", "ready"}
    assert "accounts" in anna.get("/health", **stranger).get_json()
    assert app.services.admission.share < share


def test_uses_are_noted(app: App) -> None:
    anna = Caller(app)
    anna.chat(PLUS)
    app.services.key_ring.write_uses()

    key = app.services.client_keys.find("anna")
    assert key is not None and key.last_used_at == int(app.clock.now())
