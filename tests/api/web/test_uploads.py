"""Pictures in chats over a web token: they are uploaded, once, into the caller's own account."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from qwen_wsgi.sandbox.native.images import png
from tests.api.apps import error_of
from tests.api.web.behind import Caller, routes, web_app

CAT = png("cat", 8, 8)


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def asked(*urls: str, text: str = "What is it?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


def messages_of(site: Any) -> list[dict[str, Any]]:
    return [
        json.loads(each.body or b"")["messages"][0]
        for each in site.settle()
        if each.route == "web-chat"
    ]


def test_a_picture_is_uploaded_and_named_in_the_message() -> None:
    with web_app() as (app, site):
        answer = Caller(app, site, "ann").chat(messages=asked(data_url(CAT), data_url(CAT)))

        assert answer.status_code == 200, answer.text
        assert routes(site)[1:] == [
            *("POST web-upload", "PUT web-object", "POST web-chats", "POST web-chat"),
            "DELETE web-chats",
        ]
        ((path, kept),) = site.web.objects.items()
        assert kept == ("ann", "image/png", CAT)
        (message,) = messages_of(site)
        assert message["content"] == "What is it?"
        (entry,) = message["files"]
        assert path in entry["url"]


def test_it_is_not_uploaded_again_for_another_attempt_and_for_the_next_turn() -> None:
    with web_app(QWEN_PROXY_RETRY_BUDGET=5) as (app, site):
        caller = Caller(app, site, "ann")
        site.control(next={"spec": "empty-503", "route": "web-chat"})
        answer = caller.chat(messages=asked(data_url(CAT)))

        assert answer.status_code == 200, answer.text
        assert routes(site).count("POST web-chat") == 2
        assert routes(site).count("PUT web-object") == 1
        assert caller.chat(messages=asked(data_url(CAT), data_url(png("dog", 8, 8)))).status_code
        assert routes(site).count("PUT web-object") == 2
        app.clock.advance(3601)
        caller.chat(messages=asked(data_url(CAT)))
        assert routes(site).count("PUT web-object") == 3


def test_two_users_share_no_upload() -> None:
    with web_app() as (app, site):
        for user in ("ann", "bob"):
            assert Caller(app, site, user).chat(messages=asked(data_url(CAT))).status_code == 200

        assert sorted(user for user, _, _ in site.web.objects.values()) == ["ann", "bob"]
        first, second = (each["files"][0]["url"] for each in messages_of(site))
        assert first != second


def test_a_refused_request_has_its_pictures_uploaded_anew() -> None:
    with web_app() as (app, site):
        caller = Caller(app, site, "ann")
        refused = caller.chat(messages=asked(data_url(CAT), text="[[sandbox: web=refused]]"))
        assert refused.status_code == 502

        site.web.objects.clear()  # as if its host had thrown them away
        assert caller.chat(messages=asked(data_url(CAT))).status_code == 200


@pytest.mark.parametrize(
    ("route", "fault", "status", "code"),
    [
        ("web-upload", "web=challenge", 503, "upstream_challenge"),
        ("web-upload", "web=limited", 429, "rate_limit_exceeded"),
        ("web-upload", "web=unauthorized", 401, "web_token_rejected"),
        ("web-object", "empty-404", 502, "upstream_upload_failed"),
        ("web-object", "reset", 502, "upstream_upload_failed"),
    ],
)
def test_an_upload_that_fails_is_told_and_no_chat_is_opened(
    route: str, fault: str, status: int, code: str
) -> None:
    with web_app(QWEN_PROXY_RETRY_BUDGET=1) as (app, site):
        site.control(faults={route: fault})
        answer = Caller(app, site, "ann").chat(messages=asked(data_url(CAT)))

        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (status, code), answer.text
        if code == "upstream_upload_failed":
            assert "Picture 1" in error["message"]
        assert "POST web-chats" not in routes(site)


def test_a_storage_elsewhere_is_not_sent_to() -> None:
    with web_app() as (app, site):
        caller = Caller(app, site, "ann")
        site.web.endpoint = "https://evil.example"
        answer = caller.chat(messages=asked(data_url(CAT)))

        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_upload_failed")
        assert "QWEN_PROXY_RESULT_HOSTS" in error_of(answer)["message"]


@pytest.mark.parametrize(
    ("urls", "status", "code"),
    [
        (["data:image/png;base64,AAAA"], 400, "invalid_image_format"),
        (
            [data_url(png(str(number), 8, 8 + number)) for number in range(17)],
            400,
            "too_many_images",
        ),
    ],
    ids=["none", "many"],
)
def test_what_cannot_be_uploaded_is_refused(urls: list[str], status: int, code: str) -> None:
    with web_app() as (app, site):
        answer = Caller(app, site, "ann").chat(messages=asked(*urls))

        assert (answer.status_code, error_of(answer)["code"]) == (status, code)
        assert "POST web-upload" not in routes(site)


def test_every_dialect_s_pictures_are_uploaded() -> None:
    url = data_url(CAT)
    source = {"type": "base64", "media_type": "image/png", "data": url.split(",")[1]}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/responses": {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
        },
        "/v1/messages": {
            "max_tokens": 9,
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": source}]},
            ],
        },
    }
    with web_app() as (app, site):
        for number, (path, body) in enumerate(bodies.items()):
            caller = Caller(app, site, f"user-{number}")
            answer = caller.post(path, {"model": "qwen3-max", **body})
            assert answer.status_code == 200, answer.text

        assert all(message["files"] for message in messages_of(site))
        assert len(site.web.objects) == 2
