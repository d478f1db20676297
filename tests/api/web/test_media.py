"""Pictures and videos over a caller's own web token, by OpenAI's endpoints."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.native.images import png
from tests.api.apps import App, error_of, running
from tests.api.web.behind import Caller, routes, web_app
from tests.fakes.raw_server import RawServer

IMAGES, EDITS, VIDEOS = "/v1/images/generations", "/v1/images/edits", "/v1/videos"
MODEL, VIDEO_MODEL = "qwen3-max-image", "qwen3-max-video"
CAT = png("cat", 8, 8)
CAT_URL = "data:image/png;base64," + base64.b64encode(CAT).decode()


def json_of(response: TestResponse) -> Any:
    return json.loads(response.data)


def sent_of(site: Sandbox) -> list[dict[str, Any]]:
    return [json.loads(each.body or b"") for each in site.settle() if each.route == "web-chat"]


def all_chats_are_gone(site: Sandbox, count: int = 1) -> bool:
    site.settle()
    return not site.web.chats and len(site.web.deleted) == count


class TestPictures:
    def test_one_is_made_in_a_chat_that_is_deleted(self) -> None:
        with web_app() as (app, site):
            body = {"model": MODEL, "prompt": "a cat", "size": "1792x1024"}
            answer = Caller(app, site, "ann").post(IMAGES, body)

            assert answer.status_code == 200, answer.text
            assert json_of(answer)["data"][0]["url"].startswith(site.origin)
            assert answer.headers["x-qwen-proxy-account"] == "web-token"
            assert answer.headers["x-qwen-proxy-changed"] == "size:16:9"
            (sent,) = sent_of(site)
            assert (sent["model"], sent["size"], sent["stream"]) == ("qwen3-max", "16:9", True)
            assert sent["messages"][0]["chat_type"] == "t2i"
            assert all_chats_are_gone(site)

    @pytest.mark.parametrize("fault", ["", "web=listed-picture", "web=late-picture"])
    def test_wherever_its_address_is_told_the_picture_itself_can_be_had(self, fault: str) -> None:
        with web_app() as (app, site):
            prompt = f"[[sandbox: {fault}]] a cat" if fault else "a cat"
            body = {"model": MODEL, "prompt": prompt, "response_format": "b64_json"}
            answer = Caller(app, site, "ann").post(IMAGES, body)

            assert answer.status_code == 200, answer.text
            picture = base64.b64decode(json_of(answer)["data"][0]["b64_json"])
            assert picture.startswith(b"\x89PNG")
            assert all_chats_are_gone(site)

    def test_several_are_several_chats(self) -> None:
        with web_app() as (app, site):
            body = {"model": MODEL, "prompt": "a cat", "n": 3}
            answer = Caller(app, site, "ann").post(IMAGES, body)

            assert len({each["url"] for each in json_of(answer)["data"]}) == 3
            assert all_chats_are_gone(site, 3)

    @pytest.mark.parametrize("count", [1, 2])
    def test_an_edit_has_its_picture_uploaded_once(self, count: int) -> None:
        with web_app() as (app, site):
            body = {"model": MODEL, "prompt": "a hat on it", "image": CAT_URL, "n": count}
            answer = Caller(app, site, "ann").post(EDITS, body)

            assert answer.status_code == 200, answer.text
            for sent in sent_of(site):
                (message,) = sent["messages"]
                assert message["chat_type"] == "image_edit"
                assert message["files"][0]["status"] == "uploaded"
            assert [data for _, _, data in site.web.objects.values()] == [CAT]
            assert all_chats_are_gone(site, count)

    def test_a_picture_at_an_address_goes_by_it(self) -> None:
        with web_app() as (app, site):
            body = {"model": MODEL, "prompt": "x", "image": "https://a.example/cat.png"}
            assert Caller(app, site, "ann").post(EDITS, body).status_code == 200

            (sent,) = sent_of(site)
            files = [{"type": "image", "url": "https://a.example/cat.png"}]
            assert sent["messages"][0]["files"] == files

    def test_a_form_as_the_official_packages_send_it(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            form = {"model": MODEL, "prompt": "x", "image": (io.BytesIO(CAT), "c.png")}
            answer = app.client.post(EDITS, data=form, headers=caller.headers)

            assert answer.status_code == 200, answer.text
            assert len(site.web.objects) == 1

    @pytest.mark.parametrize(
        ("fault", "status", "code"),
        [
            ("web=challenge", 503, "upstream_challenge"),
            ("web=limited", 429, "rate_limit_exceeded"),
            ("web=unauthorized", 401, "web_token_rejected"),
            ("web=no-picture", 502, "upstream_no_picture"),
            ("cut-after=1", 502, "upstream_broken"),
        ],
    )
    def test_a_failure_is_told_and_leaves_no_chat(self, fault: str, status: int, code: str) -> None:
        with web_app() as (app, site):
            site.control(faults={"web-chat": fault})
            body = {"model": MODEL, "prompt": "a cat"}
            answer = Caller(app, site, "ann").post(IMAGES, body)

            assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text
            assert all_chats_are_gone(site)

    def test_what_the_host_said_in_place_of_a_picture_is_told(self) -> None:
        with web_app() as (app, site):
            body = {"model": MODEL, "prompt": "[[sandbox: web=no-picture]]"}
            answer = Caller(app, site, "ann").post(IMAGES, body)

            assert "I cannot draw that" in error_of(answer)["message"]

    @pytest.mark.parametrize(
        ("members", "param", "code"),
        [
            ({"model": "qwen3-max"}, "model", "wrong_endpoint_for_model"),
            ({"model": VIDEO_MODEL}, "model", "wrong_endpoint_for_model"),
            ({"image": "data:image/png;base64,AAAA"}, "image", "invalid_image_format"),
            ({"prompt": "x" * (128 * 1024 + 1)}, "prompt", "web_request_too_large"),
        ],
    )
    def test_what_cannot_be_asked_is_refused_before_anything_is_sent(
        self, members: dict[str, Any], param: str, code: str
    ) -> None:
        with web_app() as (app, site):
            body = {"model": MODEL, "prompt": "a cat", **members}
            answer = Caller(app, site, "ann").post(IMAGES, body)

            assert (error_of(answer)["param"], error_of(answer)["code"]) == (param, code)
            assert "POST web-chats" not in routes(site)


def begun(caller: Caller, prompt: str = "a dog runs", **members: Any) -> TestResponse:
    return caller.post(VIDEOS, {"model": VIDEO_MODEL, "prompt": prompt, **members})


class TestVideos:
    def test_one_is_begun_looked_at_and_fetched(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            made = json_of(begun(caller, size="720x1280", seconds="8"))

            assert made["status"] == "queued"
            assert all_chats_are_gone(site)
            (sent,) = sent_of(site)
            assert (sent["stream"], sent["size"]) == (False, "9:16")
            app.clock.advance(5)
            assert json_of(caller.get(f"{VIDEOS}/{made['id']}"))["status"] == "in_progress"
            app.clock.advance(5)
            assert json_of(caller.get(f"{VIDEOS}/{made['id']}"))["status"] == "completed"
            content = caller.get(f"{VIDEOS}/{made['id']}/content")
            assert b"ftyp" in content.data
            assert [each["id"] for each in json_of(caller.get(VIDEOS))["data"]] == [made["id"]]

    def test_the_older_form_waits(self) -> None:
        with web_app() as (app, site):
            body = {"model": VIDEO_MODEL, "prompt": "a dog runs"}
            answer = Caller(app, site, "ann").post(VIDEOS + "/generations", body)

            assert json_of(answer)["data"][0]["url"].startswith(site.origin), answer.text

    def test_it_is_its_users_alone(self) -> None:
        with web_app() as (app, site):
            ann, bob = (Caller(app, site, each) for each in ("ann", "bob"))
            id = json_of(begun(ann))["id"]

            assert bob.get(f"{VIDEOS}/{id}").status_code == 404
            assert bob.get(f"{VIDEOS}/{id}/content").status_code == 404
            assert app.get(f"{VIDEOS}/{id}").status_code == 404
            assert json_of(bob.get(VIDEOS))["data"] == []
            assert app.client.delete(f"{VIDEOS}/{id}", headers=bob.headers).status_code == 404
            assert app.client.delete(f"{VIDEOS}/{id}", headers=ann.headers).status_code == 200

    def test_one_that_fails_says_why(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            id = json_of(begun(caller, "[[sandbox: web=failing-video]] x"))["id"]
            for _ in range(2):
                app.clock.advance(5)
                told = json_of(caller.get(f"{VIDEOS}/{id}"))

            assert told["status"] == "failed"
            assert "was not made" in told["error"]["message"]

    @pytest.mark.parametrize(
        ("fault", "status", "code"),
        [
            ("web=challenge", 503, "upstream_challenge"),
            ("web=limited", 429, "rate_limit_exceeded"),
            ("web=no-task", 502, "upstream_bad_answer"),
            ("html-200", 502, "upstream_refused"),
        ],
    )
    def test_a_failure_is_told_and_leaves_no_chat(self, fault: str, status: int, code: str) -> None:
        with web_app() as (app, site):
            site.control(faults={"web-chat": fault})
            answer = begun(Caller(app, site, "ann"))

            assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text
            assert all_chats_are_gone(site)

    def test_a_lost_answer_is_not_asked_for_again(self) -> None:
        with web_app(QWEN_PROXY_RETRY_BUDGET=5) as (app, site):
            site.control(faults={"web-chat": "reset"})
            answer = begun(Caller(app, site, "ann"))

            assert answer.status_code == 502
            assert "may have been done" in error_of(answer)["message"]
            assert routes(site).count("POST web-chat") == 1
            assert all_chats_are_gone(site)

    def test_the_captcha_at_a_look_is_told(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            id = json_of(begun(caller))["id"]
            site.control(faults={"web-tasks": "web=challenge"})
            app.clock.advance(5)
            answer = caller.get(f"{VIDEOS}/{id}")

            assert (answer.status_code, error_of(answer)["code"]) == (503, "upstream_challenge")

    def test_a_picture_to_begin_with_is_refused(self) -> None:
        with web_app() as (app, site):
            answer = begun(Caller(app, site, "ann"), input_reference={"image_url": CAT_URL})

            assert (answer.status_code, error_of(answer)["param"]) == (400, "input_reference")


class TestWhoseTheyAre:
    def test_a_token_s_are_made_by_its_own_account_alone(self) -> None:
        with (
            RawServer() as server,
            web_app(
                DASHSCOPE_BASE_URL=server.url + "/compatible-mode/v1",
                DASHSCOPE_API_KEY="operator-key",
                QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
            ) as (app, site),
        ):
            caller = Caller(app, site, "ann")
            for model in ("qwen-image-3.0", "wan2.7-image"):
                assert caller.post(IMAGES, {"model": model, "prompt": "x"}).status_code >= 400
            assert begun(caller, model="wan2.7-t2v").status_code >= 400
            assert not server.requests

    def test_the_operator_s_own_account_makes_them_too(self) -> None:
        with web_app() as (app, site):
            token = Caller(app, site, "operator").token
            with running(
                QWEN_PROXY_WEB=1, QWEN_WEB_TOKEN=token, QWEN_WEB_BASE_URL=site.origin
            ) as other:
                answer = _post(other, IMAGES, {"model": MODEL, "prompt": "a cat"})
                assert answer.headers["x-qwen-proxy-account"] == "web", answer.text
                video = json_of(_post(other, VIDEOS, {"model": VIDEO_MODEL, "prompt": "a dog"}))
                other.clock.advance(5)
                assert other.get(f"{VIDEOS}/{video['id']}").status_code == 200


def _post(app: App, path: str, body: dict[str, Any]) -> TestResponse:
    return app.client.post(path, data=json.dumps(body).encode())


def test_the_models_of_the_host_have_variants_for_what_they_make() -> None:
    with web_app() as (app, site):
        data = {
            each["id"]: each for each in json_of(Caller(app, site, "ann").get("/v1/models"))["data"]
        }

        assert data["qwen3-max-image"]["capabilities"] == ["image", "image_edit"]
        assert data["qwen3-max-video"]["capabilities"] == ["video"]
        assert data["qwen3-max"]["capabilities"] == ["chat"]
        assert "qwen3-vl-plus-video" not in data
