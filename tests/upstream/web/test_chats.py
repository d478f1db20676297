"""Temporary chats: opened and deleted, on every way out; and answers that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.web import holder_account, operator_account
from qwen_wsgi.errors import ApiError, Scope, UpstreamError
from qwen_wsgi.protocol.web.token import WebToken
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.web.chats import TemporaryChat, WebChats, _Opening
from qwen_wsgi.upstream.web.site import WebSite
from tests.fakes.clock import FakeClock
from tests.fakes.raw_server import Answer, Peer, RawServer, whole
from tests.fakes.upstream import settings_of

TOKEN = WebToken("a-session-token", "a=cookie-value")
NEW = whole(b'{"success": true, "data": {"id": "chat-1"}}')
DONE = whole(b'{"success": true, "data": {"status": true}}')


@contextmanager
def site_of(*answers: Answer) -> Iterator[tuple[WebSite, Account, RawServer]]:
    settings, clock = settings_of(), FakeClock()
    transport = Transport(settings)
    with RawServer(*answers) as server:
        yield WebSite(settings, transport, clock), holder_account(TOKEN, server.url), server
        transport.close()


def failing(site: WebSite, account: Account) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        site.ask(account, "GET", "/api/models")
    return raised.value


class TestChats:
    def test_one_is_opened_and_deleted_once(self) -> None:
        with site_of(NEW, DONE) as (site, account, server):
            chats = WebChats(site)
            chat = chats.open(account, {"title": "t"}, {"User-Agent": "client/1", "Cookie": "x=1"})
            chat.delete()
            chat.delete()
            chats.drain()

            lines = [each.split(b"\r\n")[0] for each in server.requests]
            assert lines == [
                b"POST /api/v2/chats/new HTTP/1.1",
                b"DELETE /api/v2/chats/chat-1 HTTP/1.1",
            ]
            head = server.requests[0].lower()
            assert b"cookie: a=cookie-value\r\n" in head
            assert b"x=1" not in head
            assert b"user-agent: client/1\r\n" in head

    def test_a_deletion_is_tried_twice_and_then_told(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        failed = whole(b"oh", "500 Internal Server Error")
        with site_of(NEW, failed, failed) as (site, account, server):
            WebChats(site).open(account, {}, {}).delete()

            assert len(server.requests) == 3
        assert "a temporary chat was not deleted account=web-token" in caplog.text
        assert TOKEN.value not in caplog.text

    def test_the_second_try_may_succeed(self, caplog: pytest.LogCaptureFixture) -> None:
        with site_of(NEW, whole(b"", "502 Bad Gateway"), DONE) as (site, account, _):
            WebChats(site).open(account, {}, {}).delete()

        assert "not deleted" not in caplog.text

    @pytest.mark.parametrize("id", ["", "../../x", "a" * 129, "ä", 5])
    def test_one_without_a_sensible_id_is_none(self, id: object) -> None:
        answer = whole(json.dumps({"success": True, "data": {"id": id}}).encode())
        with site_of(answer) as (site, account, server):
            with pytest.raises(ApiError, match="without an id"):
                WebChats(site).open(account, {}, {})

            assert len(server.requests) == 1

    def test_one_that_nobody_waits_for_any_more_is_deleted_when_it_is_there(self) -> None:
        deleted: list[str] = []
        opening = _Opening()
        opening.abandoned = True
        opening.run(lambda: TemporaryChat("chat-1", lambda: deleted.append("chat-1")))

        assert deleted == ["chat-1"]

    def test_several_are_deleted_each_for_itself(self) -> None:
        missing = whole(b'{"success": false, "data": {"code": "Not_Found"}}', "404 Not Found")
        with site_of(DONE, missing) as (site, account, _):
            outcomes = WebChats(site).delete_each(account, ["a", "b"], {})

        assert [error is None for error in outcomes].count(True) == 1


class TestAnswersThatAreNone:
    @pytest.mark.parametrize(
        ("answer", "status", "code"),
        [
            (whole(b"<html>gone</html>", content_type="text/html"), 502, "upstream_refused"),
            (
                whole(b"<a href=/_____tmd_____/x>", content_type="text/html"),
                503,
                "upstream_challenge",
            ),
            (whole(b"", "403 Forbidden"), 401, "web_token_rejected"),
            (whole(b"RGV587_ERROR", "403 Forbidden"), 503, "upstream_challenge"),
            (whole(b"", "429 Too Many Requests"), 429, "rate_limit_exceeded"),
            (whole(b"", "503 Service Unavailable"), 502, "upstream_internal_error"),
            (whole(b"[]"), 502, "upstream_refused"),
        ],
        ids=range(7),
    )
    def test_each_is_told_as_what_it_is(self, answer: bytes, status: int, code: str) -> None:
        with site_of(answer) as (site, account, _):
            error = failing(site, account)

        assert (error.status, error.code) == (status, code)
        assert error.failure is not None
        assert error.failure.scope in (Scope.REQUEST, Scope.ACCOUNT_MODEL)

    def test_a_stream_that_is_json_is_a_failure(self) -> None:
        with (
            site_of(whole(b'{"success": true}')) as (site, account, _),
            pytest.raises(UpstreamError) as raised,
        ):
            site.open(account, "/x", {}, headers={})

        assert raised.value.code == "upstream_refused"

    def test_a_refusal_that_breaks_off_is_told_by_its_status(self) -> None:
        cut = whole(b"", "500 Oops").replace(b"content-length: 0", b"content-length: 99")

        def answer(peer: Peer) -> None:
            peer.send(cut)
            peer.close()

        with (
            site_of(answer) as (site, account, _),
            pytest.raises(UpstreamError) as raised,
        ):
            site.open(account, "/x", {}, headers={})

        assert raised.value.code == "upstream_internal_error"

    def test_what_the_host_quotes_of_a_token_is_masked(self) -> None:
        said = f"no such token: {TOKEN.value}; {TOKEN.cookies}"
        answer = whole(json.dumps({"error": {"code": "x", "message": said}}).encode())
        with site_of(answer) as (site, account, _):
            error = failing(site, account)

        for text in (error.message, error.upstream_message):
            assert TOKEN.value not in text
            assert TOKEN.cookies not in text

    @pytest.mark.parametrize(
        "body", [b'{"ret": ["FAIL_SYS_USER_VALIDATE"]}', b'{"detail": "need_login"}']
    )
    def test_the_operator_s_account_is_left_alone_after_a_challenge_and_a_refusal(
        self, body: bytes
    ) -> None:
        with site_of(whole(body)) as (site, _, server):
            account = operator_account(TOKEN, server.url, FakeClock())
            error = failing(site, account)

        assert error.failure is not None
        assert error.failure.scope is Scope.ACCOUNT
        assert error.failure.elsewhere
        assert error.status in (502, 503)
