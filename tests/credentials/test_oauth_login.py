"""What a call gets, and what a person is told."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.credentials.credential import StaticKey, TokenState
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from tests.fakes.clock import FakeClock
from tests.kit.login_world import login_of
from tests.kit.qwen_home import Home

URL = "https://portal.qwen.ai/v1"
KEY = "sk-0123456789-0123456789"


@pytest.fixture
def source(home: Home, clock: FakeClock) -> OAuthLogin:
    """qwen-code's own login, with a token endpoint that nobody can reach."""
    return login_of(home, clock)


def refusal(source: Any, rejected: str | None = None) -> CredentialError:
    with pytest.raises(CredentialError) as caught:
        source.current(rejected=rejected)
    assert caught.value.remedy
    return caught.value


def test_a_token_never_shows_itself() -> None:
    token = AccessToken(KEY, URL, None)

    assert "…6789" in repr(token)
    assert KEY not in repr(token) + str(token) + f"{token}"
    assert repr(AccessToken("short", URL, None)) == (
        "AccessToken('****', 'https://portal.qwen.ai/v1', expires_at_ms=None)"
    )


class TestStaticKey:
    def test_a_key_is_used_as_it_is(self) -> None:
        source = StaticKey(KEY, URL)

        assert source.current() == AccessToken(KEY, URL, None)
        assert source.current(rejected="another") == AccessToken(KEY, URL, None)
        status = source.status()
        assert (status.state, status.shown, status.remedy) == (TokenState.FRESH, "…6789", "")

    def test_a_server_may_ask_for_no_key(self) -> None:
        source = StaticKey("", URL)

        assert source.current().value == ""
        assert source.status().state is TokenState.FRESH
        assert source.status().shown == "–"

    def test_a_missing_key_says_what_to_do(self) -> None:
        source = StaticKey(None, URL, "the API key FOO is not set", "Set FOO.")

        error = refusal(source)
        assert (error.code, str(error), error.remedy) == (
            "credentials_missing",
            "the API key FOO is not set.",
            "Set FOO.",
        )
        status = source.status()
        assert (status.state, status.shown) == (TokenState.MISSING, "–")
        assert (status.detail, status.remedy) == ("the API key FOO is not set", "Set FOO.")

    def test_a_rejected_key_is_not_offered_again(self) -> None:
        error = refusal(StaticKey(KEY, URL), rejected=KEY)

        assert error.code == "credentials_rejected"
        assert "portal.qwen.ai refused the API key …6789" in str(error)
        assert "region" in error.remedy

    def test_a_repr_shows_no_secret(self) -> None:
        assert repr(StaticKey(KEY, URL)) == f"StaticKey(…6789, {URL})"


class TestOAuthLogin:
    def test_a_valid_login_is_used(self, source: OAuthLogin, home: Home) -> None:
        content = home.login()

        assert source.current() == AccessToken(content["access_token"], URL, content["expiry_date"])
        status = source.status()
        assert (status.state, status.shown) == (TokenState.FRESH, "…abcd")
        assert (status.detail, status.remedy) == ("valid for 3 h 0 min", "")
        assert status.expires_at_ms == content["expiry_date"]

    def test_it_serves_until_the_last_moment(
        self, source: OAuthLogin, home: Home, clock: FakeClock
    ) -> None:
        home.login()
        clock.advance(3 * 3600 - 600)
        assert source.status().state is TokenState.STALE
        clock.advance(600 - 1)
        assert source.status().state is TokenState.EXPIRING
        assert source.current().value
        clock.advance(1)
        assert source.status().state is TokenState.EXPIRED
        assert refusal(source).code == "credentials_expired"

    def test_an_expired_login_says_since_when_and_what_to_do(
        self, source: OAuthLogin, home: Home, clock: FakeClock
    ) -> None:
        home.login()
        clock.advance(3 * 3600 + 2 * 86400 + 5)

        error = refusal(source, rejected="access-0123456789-abcd")

        assert error.code == "credentials_expired"
        assert str(error) == (
            "The Qwen login ~/.qwen/oauth_creds.json expired on 2026-11-20 15:00 UTC, 2 days ago, "
            "and was not renewed (127.0.0.1:9 cannot be reached: Connection refused)."
        )
        assert error.retry_after_s
        assert "as soon as the login service answers" in error.remedy
        assert source.status().detail == "expired 2 days ago"
        assert source.status().remedy == error.remedy

    def test_an_impossible_date_is_no_crash(self, source: OAuthLogin, home: Home) -> None:
        home.login(expiry_date=-(10**17))

        assert refusal(source).code == "credentials_expired"
        assert source.status().state is TokenState.EXPIRED

    def test_a_rejected_token_names_the_closed_tier(self, source: OAuthLogin, home: Home) -> None:
        token = home.login()["access_token"]

        error = refusal(source, rejected=token)

        assert error.code == "credentials_rejected"
        assert "2026-04-15" in error.remedy
        assert token not in str(error) + error.remedy

    def test_a_rejection_of_an_older_token_returns_the_newer_one(
        self, source: OAuthLogin, home: Home
    ) -> None:
        old = home.login()["access_token"]
        assert source.current().value == old
        new = home.login(access_token="access-9876543210-wxyz")["access_token"]

        assert source.current(rejected=old).value == new

    def test_no_file_is_missing(self, source: OAuthLogin) -> None:
        error = refusal(source)

        assert error.code == "credentials_missing"
        assert str(error) == "The Qwen login ~/.qwen/oauth_creds.json does not exist."
        assert source.status().state is TokenState.MISSING
        assert source.base_url() is None

    def test_a_deleted_file_is_missing_and_a_new_one_is_used(
        self, source: OAuthLogin, home: Home
    ) -> None:
        # Not into the journal: from there it would be used on, see test_renewal.
        source.refresher.drain(0)
        home.login()
        source.current()
        (home.qwen / "oauth_creds.json").unlink()
        assert refusal(source).code == "credentials_missing"

        home.login()
        assert source.current().value

    def test_a_file_that_breaks_leaves_the_last_login_in_use(
        self, source: OAuthLogin, home: Home, clock: FakeClock
    ) -> None:
        token = home.login()["access_token"]
        source.current()
        home.write(".qwen/oauth_creds.json", '{"access_token": "acc')

        assert source.current().value == token
        status = source.status()
        assert status.state is TokenState.FRESH
        assert "as last read" in status.detail
        assert "not JSON" in status.detail
        assert status.remedy

        home.login(access_token="access-9876543210-wxyz")
        assert source.current().value == "access-9876543210-wxyz"
        assert source.status().remedy == ""

    def test_a_file_that_was_never_good_is_missing(self, source: OAuthLogin, home: Home) -> None:
        home.login(refresh_token=None)

        assert refusal(source).code == "credentials_missing"
        assert "has no refresh_token" in source.status().detail

    @pytest.mark.parametrize(
        "url", ["http://portal.qwen.ai", "ftp://x", "https://user:hunter2@portal.qwen.ai"]
    )
    def test_a_dangerous_endpoint_gets_no_token(
        self, source: OAuthLogin, home: Home, url: str
    ) -> None:
        home.login(resource_url=url)

        error = refusal(source)
        assert error.code == "credentials_invalid"
        assert "resource_url that is refused" in str(error)
        assert source.status().state is TokenState.MISSING
        assert source.base_url() is None
        assert "hunter2" not in str(error) + source.status().detail

    def test_a_token_that_would_break_a_header_is_not_used(
        self, source: OAuthLogin, home: Home
    ) -> None:
        home.login(access_token="access-0123456789\r\nX-Evil: 1")

        assert refusal(source).code == "credentials_invalid"
        assert "Evil" not in source.status().detail

    @pytest.mark.parametrize(
        ("fallback", "expected"),
        [("", URL), ("https://example.test/api", "https://example.test/api")],
    )
    def test_without_resource_url_the_fallback_counts(
        self, home: Home, clock: FakeClock, fallback: str, expected: str
    ) -> None:
        home.login(resource_url=None)
        source = login_of(home, clock, fallback_base_url=fallback)

        assert source.current().base_url == expected

    def test_a_repr_shows_no_secret(self, source: OAuthLogin, home: Home) -> None:
        home.login()
        source.current()

        shown = repr(source) + repr(vars(source)) + repr(vars(source.store))
        assert "0123456789" not in shown


@pytest.mark.parametrize(
    ("left_s", "text"),
    [(40, "40 s"), (60, "1 min"), (3599, "59 min"), (3 * 3600 + 720, "3 h 12 min")],
)
def test_durations_are_for_people(
    source: OAuthLogin, home: Home, clock: FakeClock, left_s: int, text: str
) -> None:
    home.login(expiry_date=int((clock.now() + left_s) * 1000))

    assert source.status().detail == f"valid for {text}"
