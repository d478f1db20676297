"""The sandbox's web API, as projects that use it describe the real one."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import Answer, call

NEW = "/api/v2/chats/new"


def ask(sandbox: Sandbox, method: str, path: str, user: str, body: Any = None) -> Answer:
    headers = {"authorization": f"Bearer {sandbox.web.token(user)}"}
    return call(sandbox, method, path, body, headers)


def completion(sandbox: Sandbox, chat: str, *texts: str, **features: Any) -> Answer:
    messages = [{"content": text, "feature_config": features} for text in texts]
    body = {
        "stream": True,
        "incremental_output": True,
        "chat_id": chat,
        "model": "qwen3-max",
        "messages": messages,
    }
    return ask(sandbox, "POST", f"/api/v2/chat/completions?chat_id={chat}", "ann", body)


def chat_of(sandbox: Sandbox, user: str = "ann") -> str:
    return str(ask(sandbox, "POST", NEW, user, {}).json()["data"]["id"])


def test_a_chat_answers_with_phases_if_they_are_asked_for(sandbox: Sandbox) -> None:
    chat = chat_of(sandbox)
    answer = completion(sandbox, chat, "hi", output_schema="phase", thinking_enabled=True)

    assert "response.created" in answer.chunks[0]
    phases = [each["phase"] for each in answer.deltas]
    assert phases[:2] == ["think", "think"]
    assert set(phases[2:]) == {"answer"}
    assert [each["status"] for each in answer.deltas if each["status"] == "finished"] != []
    assert not any("phase" in each for each in completion(sandbox, chat, "hi").deltas)


def test_several_messages_get_an_empty_answer(sandbox: Sandbox) -> None:
    assert completion(sandbox, chat_of(sandbox), "one", "two").deltas == []


def test_a_chat_is_its_users(sandbox: Sandbox) -> None:
    chat = chat_of(sandbox, "bob")

    refused = completion(sandbox, chat, "hi").json()
    assert (refused["success"], refused["data"]["code"]) == (False, "RequestValidationError")
    assert ask(sandbox, "DELETE", f"/api/v2/chats/{chat}", "ann").status == 404
    assert ask(sandbox, "DELETE", f"/api/v2/chats/{chat}", "bob").json()["success"] is True


@pytest.mark.parametrize("missing", ["stream", "incremental_output"])
def test_text_comes_as_a_stream_of_pieces_alone(sandbox: Sandbox, missing: str) -> None:
    chat = chat_of(sandbox)
    body = {"stream": True, "incremental_output": True, "chat_id": chat, "messages": [{}]}
    del body[missing]
    answer = ask(sandbox, "POST", f"/api/v2/chat/completions?chat_id={chat}", "ann", body)

    assert answer.json()["success"] is False


def test_too_much_text_meets_the_captcha_with_status_200(sandbox: Sandbox) -> None:
    answer = completion(sandbox, chat_of(sandbox), "x" * (128 * 1024 + 1))

    assert answer.status == 200
    assert answer.json()["ret"][0] == "FAIL_SYS_USER_VALIDATE"


def test_both_lists_of_models_have_the_same(sandbox: Sandbox) -> None:
    first = ask(sandbox, "GET", "/api/models", "ann").json()["data"]

    assert first == ask(sandbox, "GET", "/api/v2/models", "ann").json()["data"]["data"]
    assert first[0]["info"]["meta"]["abilities"]["thinking"] is True


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "a.e30.c"])
def test_a_token_that_is_none_is_refused(sandbox: Sandbox, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}

    assert call(sandbox, "GET", "/api/v1/auths/", None, headers).status == 401


def test_tokens_expire_and_a_reset_forgets_all(sandbox: Sandbox) -> None:
    assert sandbox.web.user_of(sandbox.web.token("ann", lifetime_s=-1)) is None
    chat_of(sandbox)
    sandbox.web.gone.add("ann")
    assert ask(sandbox, "GET", "/api/v1/auths/", "ann").status == 401

    sandbox.reset()
    assert not sandbox.web.chats
    assert ask(sandbox, "GET", "/api/v1/auths/", "ann").json()["id"] == "ann"


def test_no_body_of_a_token_is_kept(sandbox: Sandbox) -> None:
    token = sandbox.web.token("ann")
    call(sandbox, "GET", "/api/v1/auths/", None, {"authorization": f"Bearer {token}"})

    assert all(token not in str(each.as_json()) for each in sandbox.settle())
