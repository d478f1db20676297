"""Chat over a caller's own web token: what comes back, what goes up, and what is left there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.errors import StreamBroken
from tests.api.apps import error_of, running
from tests.api.web.behind import Caller, routes, web_app
from tests.fakes.raw_server import RawServer

KEY = "client-key-that-is-long-enough"


def json_of(response: TestResponse) -> Any:
    return json.loads(response.data)


def chunks_of(response: TestResponse) -> list[dict[str, Any]]:
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    response.close()  # as a server does behind the last byte
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def deltas_of(response: TestResponse) -> list[dict[str, Any]]:
    return [each["choices"][0]["delta"] for each in chunks_of(response) if each["choices"]]


class TestAnswers:
    def test_a_whole_answer_comes_with_usage_and_its_chat_is_deleted(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat("hello there")

            assert answer.status_code == 200, answer.text
            choice = json_of(answer)["choices"][0]
            assert choice["message"]["content"].strip() == "[sandbox] You said: hello there"
            assert choice["finish_reason"] == "stop"
            assert json_of(answer)["model"] == "qwen3-max"
            usage = json_of(answer)["usage"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 2
            assert routes(site)[1:] == ["POST web-chats", "POST web-chat", "DELETE web-chats"]
            assert (len(site.web.chats), len(site.web.deleted)) == (0, 1)
            assert answer.headers["x-qwen-proxy-account"] == "web-token"

    def test_a_stream_tells_thoughts_from_the_answer(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat("hi", stream=True, enable_thinking=True)
            deltas = deltas_of(answer)

            thoughts = "".join(each.get("reasoning_content") or "" for each in deltas)
            text = "".join(each.get("content") or "" for each in deltas)
            assert thoughts == "[sandbox] thinking about it"
            assert text.strip() == "[sandbox] You said: hi"
            assert not site.web.chats

    @pytest.mark.parametrize(
        ("model", "chat_type", "thinks"),
        [
            ("qwen3-max", "t2t", False),
            ("qwen3-max-thinking", "t2t", True),
            ("qwen3-max-search", "search", False),
            ("qwen3-max-deep-research", "deep_research", False),
        ],
    )
    def test_the_end_of_a_name_is_a_variant(self, model: str, chat_type: str, thinks: bool) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat(model=model)

            assert answer.status_code == 200, answer.text
            assert json_of(answer)["model"] == model
            sent = json.loads(site.settle()[2].body or b"")
            assert sent["model"] == "qwen3-max"
            message = sent["messages"][0]
            assert message["chat_type"] == chat_type
            assert message["feature_config"]["thinking_enabled"] is thinks

    def test_a_search_names_its_pages(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat(
                "[[sandbox: text=It is so [1]]] when?", tools=[{"type": "web_search"}]
            )

            assert answer.status_code == 200, answer.text
            annotations = json_of(answer)["choices"][0]["message"]["annotations"]
            assert annotations[0]["url_citation"]["url"] == "https://sandbox.invalid/page"

    def test_a_conversation_becomes_one_message(self) -> None:
        said = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?")]
        with web_app() as (app, site):
            messages = [{"role": role, "content": text} for role, text in said]
            answer = Caller(app, site, "ann").chat(messages=messages, temperature=0.5)

            (message,) = json.loads(site.settle()[2].body or b"")["messages"]
            assert message["content"] == "system:Be brief.\n\nuser:One?\n\nassistant:1\n\nuser:Two?"
            assert "-temperature" in answer.headers["x-qwen-proxy-changed"]

    def test_pictures_go_by_their_address(self) -> None:
        picture = {"type": "image_url", "image_url": {"url": "https://a.example/cat.png"}}
        with web_app() as (app, site):
            content = [{"type": "text", "text": "What?"}, picture]
            Caller(app, site, "ann").chat(messages=[{"role": "user", "content": content}])

            (message,) = json.loads(site.settle()[2].body or b"")["messages"]
            assert message["content"] == [
                {"type": "text", "text": "What?"},
                {"type": "image", "image": "https://a.example/cat.png"},
            ]

    def test_two_choices_are_two_chats(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat(n=2)

            assert [each["index"] for each in json_of(answer)["choices"]] == [0, 1]
            site.settle()
            assert (len(site.web.chats), len(site.web.deleted)) == (0, 2)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/responses", {"model": "qwen3-max", "input": "hi"}),
            (
                "/v1/messages",
                {
                    "model": "qwen3-max",
                    "max_tokens": 9,
                    "messages": [{"role": "user", "content": "hi"}],
                },
            ),
            ("/v1/completions", {"model": "qwen3-max", "prompt": "hi"}),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_every_dialect_works(self, path: str, body: dict[str, Any], stream: bool) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").post(path, {**body, "stream": stream})

            assert answer.status_code == 200, answer.text
            text = answer.text
            answer.close()
            assert "You" in text
            assert "said" in text
            site.settle()
            assert (len(site.web.chats), len(site.web.deleted)) == (0, 1)


class TestFailures:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fault", "status", "code"),
        [
            ("challenge", 503, "upstream_challenge"),
            ("limited", 429, "rate_limit_exceeded"),
            ("unauthorized", 401, "web_token_rejected"),
            ("internal", 502, "upstream_internal_error"),
            ("refused", 502, "upstream_refused"),
            ("no-text", 502, "upstream_empty"),
        ],
    )
    def test_a_failure_in_a_200_is_none(
        self, fault: str, status: int, code: str, stream: bool
    ) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            answer = caller.chat(f"[[sandbox: web={fault}]] hi", stream=stream)

            error = error_of(answer)
            assert (answer.status_code, error["code"]) == (status, code)
            site.settle()
            assert not site.web.chats
            assert caller.session not in app.log

    @pytest.mark.parametrize("route", ["web-chats", "web-chat"])
    def test_the_captcha_is_told_wherever_it_comes_with_its_remedy(self, route: str) -> None:
        with web_app() as (app, site):
            site.control(faults={route: "web=challenge"})
            answer = Caller(app, site, "ann").chat()

            assert (answer.status_code, error_of(answer)["code"]) == (503, "upstream_challenge")
            assert "open chat.qwen.ai in the browser" in error_of(answer)["message"]

    def test_a_limit_says_when_it_ends(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat("[[sandbox: web=limited]]")

            assert int(answer.headers["retry-after"]) == pytest.approx(3 * 3600, abs=5)

    def test_one_user_s_limit_is_not_another_s(self) -> None:
        with web_app() as (app, site):
            ann, bob = (Caller(app, site, each) for each in ("ann", "bob"))

            assert ann.chat("[[sandbox: web=limited]]").status_code == 429
            assert ann.chat().status_code == 429
            assert bob.chat().status_code == 200

    def test_a_stream_that_fails_late_tells_so(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat("[[sandbox: web=error-event]]", stream=True)

            # The connection is broken behind the error: nobody takes it for a whole answer.
            with pytest.raises(StreamBroken):
                _ = answer.data
            answer.close()
            assert app.calls[-1]["error"] == "upstream_internal_error"
            site.settle()
            assert not site.web.chats

    def test_thoughts_without_an_answer_are_no_answer(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat(
                "[[sandbox: web=think-only]]", enable_thinking=True
            )

            assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_broken")

    def test_an_end_in_good_order_behind_the_answer_is_one(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat("[[sandbox: web=no-status, no-done]] hi")

            assert json_of(answer)["choices"][0]["finish_reason"] == "stop"

    @pytest.mark.parametrize("stream", [False, True])
    def test_an_answer_that_was_being_typed_and_never_finished_is_cut(self, stream: bool) -> None:
        with web_app() as (app, site):
            said = "[[sandbox: web=no-end, no-done]] hi"
            answer = Caller(app, site, "ann").chat(said, stream=stream)

            if stream:
                with pytest.raises(StreamBroken):
                    _ = answer.data
                answer.close()
            else:
                assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_broken")
            assert app.calls[-1]["error"] == "upstream_broken"
            site.settle()
            assert not site.web.chats

    def test_a_cut_is_no_end(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat("[[sandbox: cut-after=4]] hello there all")

            assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_broken")
            site.settle()
            assert not site.web.chats

    def test_too_much_text_is_refused_before_anything_is_sent(self) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat("x" * (128 * 1024 + 1))

            assert (answer.status_code, error_of(answer)["code"]) == (413, "web_request_too_large")
            assert "POST web-chats" not in routes(site)

    @pytest.mark.parametrize(
        ("members", "param"),
        [
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
            ({"model": "qwen3-max-video"}, "model"),
            ({"model": "qwen-max-image"}, "model"),
            (
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {
                                    "type": "image_url",
                                    "image_url": {"url": "data:image/png;base64,"},
                                }
                            ],
                        }
                    ]
                },
                "messages",
            ),
        ],
        ids=["tools", "video", "image", "data"],
    )
    def test_what_cannot_be_done_is_refused_and_said(
        self, members: dict[str, Any], param: str
    ) -> None:
        with web_app() as (app, site):
            answer = Caller(app, site, "ann").chat(**members)

            assert (answer.status_code, error_of(answer)["param"]) == (400, param)
            assert "POST web-chats" not in routes(site)


class TestWhatGoesUp:
    def test_the_session_token_and_its_cookies_and_no_header_of_a_browser(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann", cookies="a=1; b=2")
            assert caller.chat().status_code == 200
            heads = [each.headers for each in site.settle()]
        assert len(heads) == 4
        for head in heads:
            assert set(head) <= {
                *("host", "authorization", "cookie", "accept", "accept-encoding", "user-agent"),
                *("content-type", "content-length", "x-qwen-proxy-hops", "connection"),
            }
            assert head["authorization"].endswith(caller.session[-4:])


class TestWhoMayCall:
    def test_it_is_off_by_default(self) -> None:
        with web_app(QWEN_PROXY_API_KEYS=KEY) as (app, site):
            token = Caller(app, site, "ann").token
        with running(QWEN_PROXY_API_KEYS=KEY) as app:
            refused = app.chat(headers={"Authorization": f"Bearer {token}"})
            assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
            refused = app.chat(headers={"x-qwen-token": token})
            assert (refused.status_code, error_of(refused)["code"]) == (403, "web_account_off")

    def test_with_client_keys_a_token_alone_is_not_enough(self) -> None:
        with web_app(QWEN_PROXY_API_KEYS=KEY) as (app, site):
            caller = Caller(app, site, "ann")
            assert caller.chat().status_code == 401

            caller.headers["x-api-key"] = KEY
            assert caller.chat().status_code == 200

            caller.headers = {"Authorization": f"Bearer {KEY}", "x-qwen-token": caller.token}
            assert caller.chat().status_code == 200
            assert not site.web.chats

    def test_without_client_keys_it_is_for_this_machine(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            answer = app.client.post(
                "/v1/chat/completions",
                data=b"{}",
                headers=caller.headers,
                environ_base={"REMOTE_ADDR": "192.168.1.9"},
            )
            assert answer.status_code == 401

    @pytest.mark.parametrize("token", ["H4sI", "H4sIAAAAAAAA", "H4sI%%%", "eyJh.eyJi.c|a=\x7f"])
    def test_a_broken_token_never_reaches_the_operator_s_accounts(self, token: str) -> None:
        with (
            RawServer() as server,
            web_app(
                QWEN_UPSTREAM_BASE_URL=server.url + "/v1", QWEN_UPSTREAM_API_KEY="operator-key"
            ) as (app, _),
        ):
            answer = app.chat(headers={"Authorization": f"Bearer {token}"})

            assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_web_token")
            assert not server.requests

    def test_an_expired_token_is_told_so(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            app.clock.advance(31 * 86400)

            answer = caller.chat()
            assert (answer.status_code, error_of(answer)["code"]) == (401, "expired_web_token")
            assert not site.requests

    def test_a_user_that_logged_out_is_told_so(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            site.web.gone.add("ann")

            answer = caller.chat()
            assert (answer.status_code, error_of(answer)["code"]) == (401, "web_token_rejected")

    def test_the_operator_s_accounts_are_neither_asked_nor_charged(self) -> None:
        with (
            RawServer() as server,
            web_app(
                QWEN_UPSTREAM_BASE_URL=server.url + "/v1", QWEN_UPSTREAM_API_KEY="operator-key"
            ) as (app, site),
        ):
            caller = Caller(app, site, "ann")
            assert caller.chat().status_code == 200
            assert caller.chat(model="no-such-model").status_code in (200, 404)
            body = {"model": "text-embedding-v4", "input": "x"}
            assert caller.post("/v1/embeddings", body).status_code == 501
            body = {"model": "qwen-image", "prompt": "x"}
            assert caller.post("/v1/images/generations", body).status_code == 404
            assert caller.post("/v1/videos", body).status_code == 404
            ranking = {"model": "qwen3-rerank", "query": "x", "documents": ["y"]}
            assert caller.post("/v1/rerank", ranking).status_code == 501
            pinned = caller.post(
                "/v1/chat/completions",
                {"model": "m", "messages": [{"role": "user", "content": "x"}]},
                **{"x-qwen-account": "upstream"},
            )
            assert (pinned.status_code, error_of(pinned)["code"]) == (400, "account_not_found")
            assert not server.requests
            assert {each.get("account", "") for each in app.calls} <= {"web-token", ""}

    def test_who_calls_is_named_by_a_digest_and_nothing_is_logged(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann", cookies="ssxmod_itna=secret-cookie-value")
            caller.chat()
            caller.get("/v1/models")

            names = {each["client"] for each in app.calls}
            assert len(names) == 1
            assert names.pop().startswith("web-")
            for secret in (caller.token, caller.session, "secret-cookie-value"):
                assert secret not in app.log

    def test_stored_responses_belong_to_the_digest_of_their_token(self) -> None:
        with web_app() as (app, site):
            ann, bob = (Caller(app, site, each) for each in ("ann", "bob"))
            made = json_of(ann.post("/v1/responses", {"model": "qwen3-max", "input": "hi"}))

            assert ann.get(f"/v1/responses/{made['id']}").status_code == 200
            assert bob.get(f"/v1/responses/{made['id']}").status_code == 404
            assert app.get(f"/v1/responses/{made['id']}").status_code == 404

    def test_nothing_goes_on_in_the_background(self) -> None:
        with web_app() as (app, site):
            body = {"model": "qwen3-max", "input": "hi", "background": True}
            answer = Caller(app, site, "ann").post("/v1/responses", body)

            assert (answer.status_code, error_of(answer)["param"]) == (400, "background")


class TestModels:
    def test_they_are_those_of_the_host_with_their_variants(self) -> None:
        with web_app() as (app, site):
            data = json_of(Caller(app, site, "ann").get("/v1/models"))["data"]

            ids = [each["id"] for each in data if "alias_of" not in each]
            assert ids == [
                *("qwen3-max", "qwen3-vl-plus", "qwen3-coder-plus", "qwen3-max-thinking"),
                *("qwen3-max-search", "qwen3-max-deep-research", "qwen3-max-image"),
                *("qwen3-max-video", "qwen3-vl-plus-thinking", "qwen3-coder-plus-image"),
            ]
            assert {each["context_length"] for each in data if "context_length" in each}

    def test_without_a_list_there_are_the_documented_names(self) -> None:
        with web_app() as (app, site):
            site.control(faults={"web-models": "web=challenge"})
            caller = Caller(app, site, "ann")
            ids = {each["id"] for each in json_of(caller.get("/v1/models"))["data"]}

            assert {"qwen-max", "qwen-max-thinking", "qwen-deep-research"} <= ids
            assert len([id for id in ids if id.endswith("-video")]) == 4
            assert caller.chat(model="qwen-max-thinking").status_code == 200

    def test_the_list_is_kept_an_hour_and_fetched_anew_on_request(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            caller.get("/v1/models")
            caller.get("/v1/models")
            assert routes(site).count("GET web-models") == 1

            app.clock.advance(2)
            caller.get("/v1/models?refresh=1")
            assert routes(site).count("GET web-models") == 2


class TestTheOperatorsAccount:
    def test_it_is_an_account_like_others(self) -> None:
        with web_app() as (app, site):
            token = Caller(app, site, "operator").token
            origin = site.origin
            site.web.clock = app.clock.now
            with running(QWEN_PROXY_WEB=1, QWEN_WEB_TOKEN=token, QWEN_WEB_BASE_URL=origin) as other:
                answer = other.chat(
                    {"model": "qwen3-max", "messages": [{"role": "user", "content": "x"}]}
                )

                assert answer.status_code == 200, answer.text
                assert answer.headers["x-qwen-proxy-account"] == "web"
                assert token not in other.log
                site.settle()
                assert not site.web.chats

    def test_a_wrong_token_is_left_out(self) -> None:
        with running(QWEN_PROXY_WEB=1, QWEN_WEB_TOKEN="H4sInonsense") as app:
            assert app.services.pool.accounts() == ()
            assert any("QWEN_WEB_TOKEN" in each for each in app.services.discovery.problems())


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_of_the_proxy_has_no_picture_made_by_the_operator_s_account(stream: bool) -> None:
    with (
        RawServer() as server,
        web_app(
            DASHSCOPE_BASE_URL=server.url + "/compatible-mode/v1",
            DASHSCOPE_API_KEY="operator-key",
            QWEN_PROXY_IMAGE_MODEL="qwen-image-3.0",
            QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
        ) as (app, site),
    ):
        body = {
            "model": "qwen3-max",
            "input": "draw",
            "stream": stream,
            "tools": [{"type": "image_generation"}],
        }
        answer = Caller(app, site, "ann").post("/v1/responses", body)
        _ = answer.data
        answer.close()

        assert answer.status_code == 200
        assert answer.headers["x-qwen-proxy-changed"] == "tools:image_generation-dropped"
        assert not server.requests
