"""POST /v1/validate and /v1/refresh, and the deletion of chats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.protocol.web.token import WebToken, packed, parse
from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import App, error_of, running
from tests.api.web.behind import Caller, web_app
from tests.fakes.clock import FakeClock
from tests.fakes.raw_server import RawServer, whole
from tests.kit.web_tokens import gzipped


def post(app: App, path: str, body: Any, **headers: str) -> TestResponse:
    return app.client.post(path, data=json.dumps(body).encode(), headers=headers)


def value_of(response: TestResponse) -> Any:
    assert response.status_code == 200, response.text
    return json.loads(response.data)


class TestValidate:
    @pytest.mark.parametrize("where", ["body", "Authorization", "x-qwen-token"])
    def test_a_live_token_is_told_with_its_user_masked(self, where: str) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "annabel")
            body = {"token": caller.token} if where == "body" else {}
            value = caller.token if where == "x-qwen-token" else f"Bearer {caller.token}"
            headers = {} if where == "body" else {where: value}
            told = value_of(post(app, "/v1/validate", body, **headers))

            assert told == {
                "object": "web_token.validation",
                "well_formed": True,
                "valid": True,
                "live": True,
                "user": {"id": "an…", "name": "an…", "email": "an…@sandbox.invalid"},
                "expires_at": parse(caller.token).expires_at,
            }

    def test_a_dead_one_is_told_why(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            site.web.gone.add("ann")
            told = value_of(post(app, "/v1/validate", {"token": caller.token}))
            assert (told["valid"], told["reason"]) == (False, "rejected")

            app.clock.advance(31 * 86400)
            told = value_of(post(app, "/v1/validate", {"token": caller.token}))
            assert (told["valid"], told["reason"]) == (False, "expired")

    @pytest.mark.parametrize("path", ["/v1/validate", "/v1/refresh"])
    @pytest.mark.parametrize(
        ("token", "word"),
        [
            ("nonsense", "neither"),
            ("H4sI!", "base64"),
            (gzipped(b"{}")[:-8], "cut"),
            (gzipped(b"{}"), "no session token"),
            (gzipped(b"0" * 2_000_000), "unpacks to more than"),
            (gzipped(b'{"token": "a.b.cdefgh\\r\\nX-Evil: 1"}'), "no header takes"),
        ],
        ids=["plain", "alphabet", "truncated", "empty", "bomb", "injection"],
    )
    def test_a_malformed_one_is_refused_and_told_which(
        self, path: str, token: str, word: str
    ) -> None:
        with web_app() as (app, site):
            refused = post(app, path, {"token": token})

            error = error_of(refused)
            assert (refused.status_code, error["code"]) == (400, "invalid_web_token")
            assert word in error["message"]
            assert not site.requests

    def test_ten_megabytes_are_refused(self) -> None:
        with web_app() as (app, _):
            assert post(app, "/v1/validate", {"token": "H4sI" * 2_500_000}).status_code == 413

    def test_a_query_string_is_not_read(self) -> None:
        with web_app() as (app, site):
            token = Caller(app, site, "ann").token
            assert post(app, f"/v1/validate?token={token}", {}).status_code == 400

    def test_the_captcha_is_no_verdict(self) -> None:
        with web_app() as (app, site):
            site.control(faults={"web-auth": "web=challenge"})
            answer = post(app, "/v1/validate", {"token": Caller(app, site, "ann").token})

            assert (answer.status_code, error_of(answer)["code"]) == (503, "upstream_challenge")

    @pytest.mark.parametrize("path", ["/v1/validate", "/v1/refresh"])
    def test_it_is_off_by_default(self, path: str) -> None:
        with running() as app:
            refused = post(app, path, {"token": "H4sI"})
            assert (refused.status_code, error_of(refused)["code"]) == (403, "web_account_off")

    @pytest.mark.parametrize("body", [{}, {"token": 1}])
    def test_without_a_token_there_is_nothing_to_do(self, body: dict[str, Any]) -> None:
        with web_app() as (app, _):
            assert error_of(post(app, "/v1/refresh", body))["param"] == "token"


class TestRefresh:
    def test_a_fresh_one_works_and_keeps_its_cookies(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann", cookies="a=1")
            app.clock.advance(86400)
            told = value_of(post(app, "/v1/refresh", {"token": caller.token}))

            fresh, old = parse(told["token"]), parse(caller.token)
            assert told["renewed"] is True
            assert fresh.value != old.value
            assert (fresh.cookies, old.cookies) == ("a=1", "a=1")
            assert told["expires_at"] == fresh.expires_at == (old.expires_at or 0) + 86400
            caller.headers["Authorization"] = f"Bearer {told['token']}"
            assert caller.chat().status_code == 200
            assert told["token"] not in app.log

    def test_an_answer_without_a_token_is_no_refresh(self) -> None:
        answer = whole(b'{"id": "ann"}')
        with Sandbox() as site, RawServer(answer) as server:
            token = packed(WebToken(site.web.token("ann")))
            with running(FakeClock(), QWEN_PROXY_WEB=1, QWEN_WEB_BASE_URL=server.url) as app:
                refused = post(app, "/v1/refresh", {"token": token})
        assert error_of(refused)["code"] == "web_token_not_refreshed"

    def test_a_200_without_a_user_is_no_live_token(self) -> None:
        with Sandbox() as site, RawServer(whole(b'{"detail": null}')) as server:
            token = packed(WebToken(site.web.token("ann")))
            with running(FakeClock(), QWEN_PROXY_WEB=1, QWEN_WEB_BASE_URL=server.url) as app:
                told = value_of(post(app, "/v1/validate", {"token": token}))
        assert (told["live"], told["reason"]) == (False, "no_user")

    def test_a_dead_one_is_refused(self) -> None:
        with web_app() as (app, site):
            caller = Caller(app, site, "ann")
            site.web.gone.add("ann")
            refused = post(app, "/v1/refresh", {"token": caller.token})

            assert (refused.status_code, error_of(refused)["code"]) == (401, "web_token_rejected")


class TestLoginsOfTheServer:
    ADMIN = "admin-key-that-is-long-enough"
    CLIENT = "client-key-that-is-long-enough"

    @contextmanager
    def served(self, tmp_path: Path, *names: str) -> Iterator[tuple[App, Sandbox, Path]]:
        """The application with these logins, each with an hour left; web tokens are off."""
        clock = FakeClock()
        with Sandbox(clock=clock.now) as site:
            for name in names:
                issued = site.issue()
                content = {
                    "access_token": issued["access_token"],
                    "token_type": "Bearer",
                    "refresh_token": issued["refresh_token"],
                    "resource_url": site.origin,
                    "expiry_date": int((clock.now() + 3600) * 1000),
                }
                (tmp_path / name).write_text(json.dumps(content))
                (tmp_path / name).chmod(0o600)
            with running(
                clock,
                QWEN_HOME=str(tmp_path),
                QWEN_OAUTH_BASE_URL=site.origin,
                QWEN_PROXY_ADMIN_KEYS=self.ADMIN,
                QWEN_PROXY_API_KEYS=self.CLIENT,
            ) as app:
                yield app, site, tmp_path / names[0]

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def test_an_admin_validates_and_refreshes_the_only_one(self, tmp_path: Path) -> None:
        with self.served(tmp_path, "oauth_creds.json") as (app, site, path):
            told = value_of(post(app, "/v1/validate", {}, **self.headers(self.ADMIN)))
            assert (told["account"], told["valid"], told["state"]) == ("oauth", True, "fresh")
            assert told["expires_at"] == pytest.approx(app.clock.now() + 3600, abs=1)

            before = json.loads(path.read_text())
            told = value_of(post(app, "/v1/refresh", {}, **self.headers(self.ADMIN)))
            after = json.loads(path.read_text())
            assert (told["account"], told["refresh"]) == ("oauth", "ok")
            assert before["refresh_token"] != after["refresh_token"]
            assert told["expires_at"] == after["expiry_date"] / 1000

    def test_one_of_several_is_named(self, tmp_path: Path) -> None:
        names = ("oauth_creds.json", "oauth_creds_work.json")
        with self.served(tmp_path, *names) as (app, _, _path):
            admin = self.headers(self.ADMIN)
            refused = post(app, "/v1/refresh", {}, **admin)
            assert (refused.status_code, error_of(refused)["code"]) == (400, "account_not_found")
            assert "oauth, oauth-work" in error_of(refused)["message"]

            told = value_of(post(app, "/v1/refresh", {"account": "oauth-work"}, **admin))
            assert told["account"] == "oauth-work"

    def test_one_that_is_refused_is_told(self, tmp_path: Path) -> None:
        with self.served(tmp_path, "oauth_creds.json") as (app, site, _path):
            site.control(faults={"token": "html-200"})
            refused = post(app, "/v1/refresh", {}, **self.headers(self.ADMIN))

            assert (refused.status_code, error_of(refused)["code"]) == (502, "login_not_refreshed")

    @pytest.mark.parametrize("path", ["/v1/validate", "/v1/refresh"])
    def test_it_is_for_admins(self, tmp_path: Path, path: str) -> None:
        with self.served(tmp_path, "oauth_creds.json") as (app, site, _path):
            refused = post(app, path, {}, **self.headers(self.CLIENT))

            assert (refused.status_code, error_of(refused)["param"]) == (400, "token")
            assert not site.requests


class TestDeletionOfChats:
    def test_named_ones_are_deleted_and_told(self) -> None:
        with web_app() as (app, site):
            ann = Caller(app, site, "ann")
            mine, other = [site.web.open("ann") for _ in range(2)], site.web.open("bob")
            told = value_of(ann.delete({"ids": [mine[0], other]}))

            assert told["deleted"] == [mine[0]]
            assert [each["id"] for each in told["failed"]] == [other]
            assert set(site.web.chats) == {mine[1], other}

    def test_all_means_all_of_the_caller_s(self) -> None:
        with web_app() as (app, site):
            ann = Caller(app, site, "ann")
            for _ in range(3):
                site.web.open("ann")
            other = site.web.open("bob")

            assert value_of(ann.delete({"all": True})) == {"object": "chats.deleted", "all": True}
            assert set(site.web.chats) == {other}

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"all": False},
            {"all": "true"},
            {"ids": []},
            {"ids": "all"},
            {"ids": ["../../v1/auths"]},
            {"ids": ["a?b"]},
            {"ids": [1]},
            {"ids": ["a"] * 101},
            {"ids": ["a"], "all": True},
        ],
        ids=str,
    )
    def test_nothing_is_deleted_by_mistake(self, body: dict[str, Any]) -> None:
        with web_app() as (app, site):
            site.web.open("ann")
            refused = Caller(app, site, "ann").delete(body)

            assert (refused.status_code, error_of(refused)["param"]) == (400, "ids")
            assert len(site.web.chats) == 1
            assert not site.requests

    def test_the_operator_s_chats_are_not_for_client_keys(self) -> None:
        key = "client-key-that-is-long-enough"
        with web_app() as (_, site):
            token = Caller(_, site, "operator").token
            with running(
                QWEN_PROXY_WEB=1,
                QWEN_WEB_BASE_URL=site.origin,
                QWEN_WEB_TOKEN=token,
                QWEN_PROXY_API_KEYS=key,
            ) as app:
                refused = app.client.delete(
                    "/v1/chats/delete",
                    data=b'{"all": true}',
                    headers={"Authorization": f"Bearer {key}"},
                )
            assert (refused.status_code, error_of(refused)["code"]) == (403, "web_token_required")
            assert not site.requests

    def test_one_that_is_not_there_is_told(self) -> None:
        with web_app() as (app, site):
            refused = Caller(app, site, "ann").delete({"ids": ["no-such-chat"]})

            assert refused.status_code == 502
            assert "no such chat" in error_of(refused)["message"]
