"""Logins at the web API as credentials."""

from __future__ import annotations

import pytest

from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.credentials.web import WebCredential, holder_account, operator_account
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.web.token import WebToken
from tests.fakes.clock import FakeClock

URL = "https://web.example"


def test_a_caller_s_own_gives_its_token_with_its_cookies_and_shows_neither() -> None:
    account = holder_account(WebToken("session-token", "a=cookie"), URL)
    token = account.credential.current()

    assert (account.name, account.kind, account.family) == ("web-token", "web", Family.WEB)
    assert (token.value, token.cookies, token.base_url) == ("session-token", "a=cookie", URL)
    assert token.expires_at_ms is None
    for shown in (repr(account), repr(token), repr(account.credential.status())):
        assert "session-token" not in shown
        assert "cookie'" not in shown


def test_the_operator_s_expires() -> None:
    clock = FakeClock()
    credential = operator_account(
        WebToken("session-token", expires_at=clock.now() + 86400), URL, clock
    ).credential
    assert credential.status().state is TokenState.FRESH
    assert "1.0 days" in credential.status().detail
    assert credential.current().expires_at_ms == int((clock.now() + 86400) * 1000)

    clock.advance(86400)
    assert credential.status().state is TokenState.EXPIRED
    with pytest.raises(CredentialError) as raised:
        credential.current()
    assert raised.value.code == "credentials_expired"


def test_one_that_was_refused_is_not_given_again() -> None:
    credential = WebCredential(WebToken("session-token"), URL)
    credential.answered(credential.current())

    with pytest.raises(CredentialError) as raised:
        credential.current(rejected="session-token")
    assert raised.value.code == "credentials_rejected"
    assert "until its owner logs out" in credential.status().detail
    assert not credential.renewable
