"""Two users' tokens never see one another; and a captcha is told as one wherever it comes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from qwen_wsgi.sandbox.native.images import png
from tests.api.apps import error_of
from tests.api.web.behind import Caller, routes, web_app

CAT = "data:image/png;base64," + base64.b64encode(png("cat", 8, 8)).decode()
SAID = [{"role": "user", "content": "the same words"}]


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_gets_an_answer_that_was_kept_for_another(stream: bool) -> None:
    with web_app(QWEN_PROXY_RESPONSE_CACHE="1h") as (app, site):
        ann, bob = (Caller(app, site, each) for each in ("ann", "bob"))
        for caller in (ann, bob, ann):
            answer = caller.chat("the same words", temperature=0, stream=stream)
            assert answer.status_code == 200, answer.text
            assert "said" in answer.text
            answer.close()

        asked = [each.route for each in site.settle()].count("web-chat")
        assert asked == 2  # the third time it was ann's own
        assert sorted(site.web.deleted.values()) == ["ann", "bob"]


def test_nobody_goes_on_with_another_s_response() -> None:
    with web_app() as (app, site):
        ann, bob = (Caller(app, site, each) for each in ("ann", "bob"))
        made = json.loads(ann.post("/v1/responses", {"model": "qwen3-max", "input": "hi"}).data)
        body = {"model": "qwen3-max", "input": "and?", "previous_response_id": made["id"]}

        assert bob.post("/v1/responses", body).status_code in (400, 404)
        assert ann.post("/v1/responses", body).status_code == 200
        assert bob.get(f"/v1/responses/{made['id']}/input_items").status_code == 404


def test_each_has_a_list_of_models_of_its_own() -> None:
    with web_app() as (app, site):
        for user in ("ann", "bob", "ann"):
            caller = Caller(app, site, user)
            assert caller.get("/v1/models").status_code == 200
        # A token, not a user, is what is known: ann's second one is another login.
        assert routes(site).count("GET web-models") == 3


def test_one_s_dead_login_stops_nobody_else() -> None:
    with web_app() as (app, site):
        ann, bob = (Caller(app, site, each) for each in ("ann", "bob"))
        site.web.gone.add("ann")

        assert ann.chat().status_code == 401
        assert bob.chat().status_code == 200


def test_what_the_server_tells_of_itself_names_no_token() -> None:
    with web_app() as (app, site):
        caller = Caller(app, site, "ann", cookies="a=secret-cookie-value")
        caller.chat()
        caller.post("/v1/images/generations", {"model": "qwen3-max-image", "prompt": "x"})
        told = "".join(
            app.client.get(path).text for path in ("/health", "/status", "/metrics", "/v1/models")
        )

        for secret in (caller.token[8:60], caller.session, "secret-cookie-value"):
            assert secret not in told
            assert secret not in app.log


def _ask(caller: Caller, what: str) -> Any:
    image = {"model": "qwen3-max-image", "prompt": "x"}
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": CAT}}]},
    ]
    calls: dict[str, Any] = {
        "chat": lambda: caller.chat(),
        "stream": lambda: caller.chat(stream=True),
        "responses": lambda: caller.post("/v1/responses", {"model": "qwen3-max", "input": "x"}),
        "messages": lambda: caller.post(
            "/v1/messages", {"model": "qwen3-max", "max_tokens": 9, "messages": SAID}
        ),
        "upload": lambda: caller.chat(messages=messages),
        "image": lambda: caller.post("/v1/images/generations", image),
        "edit": lambda: caller.post("/v1/images/edits", {**image, "image": CAT}),
        "video": lambda: caller.post("/v1/videos", {"model": "qwen3-max-video", "prompt": "x"}),
        "validate": lambda: caller.post("/v1/validate", {}),
        "refresh": lambda: caller.post("/v1/refresh", {}),
        "delete": lambda: caller.delete({"ids": ["chat-1"]}),
        "delete-all": lambda: caller.delete({"all": True}),
    }
    return calls[what]()


@pytest.mark.parametrize(
    ("what", "route"),
    [
        *(("chat", "web-chats"), ("chat", "web-chat"), ("stream", "web-chat")),
        *(("responses", "web-chat"), ("messages", "web-chat"), ("upload", "web-upload")),
        *(("image", "web-chats"), ("image", "web-chat"), ("edit", "web-upload")),
        *(("video", "web-chats"), ("video", "web-chat")),
        *(("validate", "web-auth"), ("refresh", "web-auth")),
        *(("delete", "web-chats"), ("delete-all", "web-chats")),
    ],
)
def test_a_captcha_is_told_with_what_to_do_wherever_it_comes(what: str, route: str) -> None:
    with web_app() as (app, site):
        site.control(faults={route: "web=challenge"})
        answer = _ask(Caller(app, site, "ann"), what)

        assert answer.status_code == 503, answer.text
        assert "solve it there" in answer.text
        if what != "messages":  # it has a form of its own, without a code
            assert error_of(answer)["code"] == "upstream_challenge"


def test_a_captcha_at_the_list_of_models_leaves_the_documented_names() -> None:
    with web_app() as (app, site):
        site.control(faults={"web-models": "web=challenge"})
        answer = Caller(app, site, "ann").get("/v1/models")

        assert answer.status_code == 200
        assert "qwen-max-video" in answer.text
