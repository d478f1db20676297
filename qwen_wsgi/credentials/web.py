"""Logins at the web API of chat.qwen.ai: a caller's own, and the operator's."""

from __future__ import annotations

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus, TokenState
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.web.token import WebToken
from qwen_wsgi.redaction import mask

#: The name of every account that a caller brings: one name, so that names of accounts stay few.
HOLDER = "web-token"
#: The name of the operator's.
OPERATOR = "web"

_REMEDY = (
    "Log in at chat.qwen.ai with a browser again, and make a new compressed token "
    "(docs/web-account.md)."
)


class WebCredential:
    """A session token, with its cookies. Immutable; a refreshed token is another credential.

    Args:
        clock: says when it has expired; None leaves that to the host.
    """

    renewable = False

    def __init__(self, token: WebToken, base_url: str, clock: Clock | None = None) -> None:
        self._token = token
        self._base_url = base_url
        self._clock = clock

    def __repr__(self) -> str:
        return f"WebCredential({self._token!r}, {self._base_url})"

    @property
    def digest(self) -> str:
        """Names the login, and reveals nothing of it."""
        return self._token.digest

    def answered(self, token: AccessToken) -> None:
        """It is not renewed by this proxy, so nobody needs to know."""

    def current(self, *, rejected: str | None = None) -> AccessToken:
        if rejected is not None or self._has_expired():
            what = "was refused by its host" if rejected is not None else "has expired"
            code = "credentials_rejected" if rejected is not None else "credentials_expired"
            raise CredentialError(f"The web token {what}.", code=code, remedy=_REMEDY)
        return AccessToken(
            self._token.value, self._base_url, self._expires_at_ms(), self._token.cookies
        )

    def status(self) -> CredentialStatus:
        shown, expires = mask(self._token.value), self._expires_at_ms()
        if self._has_expired():
            return CredentialStatus(
                TokenState.EXPIRED,
                shown,
                "the web token has expired",
                _REMEDY,
                expires,
                cause="credentials_expired",
            )
        detail = "web token, valid until its owner logs out"
        if self._token.expires_at is not None and self._clock is not None:
            days = (self._token.expires_at - self._clock.now()) / 86400
            detail = f"web token, valid for {days:.1f} days"
        return CredentialStatus(TokenState.FRESH, shown, detail, "", expires)

    def _has_expired(self) -> bool:
        expires = self._token.expires_at
        return self._clock is not None and expires is not None and expires <= self._clock.now()

    def _expires_at_ms(self) -> int | None:
        expires = self._token.expires_at
        return None if expires is None else int(expires * 1000)


def holder_account(token: WebToken, base_url: str) -> Account:
    """The account of a caller that brings its own login."""
    return _account(HOLDER, token, base_url, "the caller's web token", None)


def operator_account(token: WebToken, base_url: str, clock: Clock) -> Account:
    """The account of QWEN_WEB_TOKEN."""
    return _account(OPERATOR, token, base_url, "environment QWEN_WEB_TOKEN", clock)


def _account(
    name: str, token: WebToken, base_url: str, origin: str, clock: Clock | None
) -> Account:
    credential = WebCredential(token, base_url, clock)
    return Account(name, "web", base_url, origin, False, Family.WEB, credential)
