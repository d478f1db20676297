"""Logins at the web API of chat.qwen.ai: a caller's own, and the operator's."""

from __future__ import annotations

from typing import Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus, TokenState
from qwen_wsgi.credentials.kept_web_token import KeptWebToken
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


#: A token that ends within this time is renewed, if it is the operator's.
_RENEWED_BEFORE_S: Final = 3 * 86400.0
#: After a renewal that failed: at most so long until the next one, and a quarter of what is left.
_TRIED_AGAIN_S: Final = 6 * 3600.0
_TRIED_AT_MOST_EVERY_S: Final = 600.0


class WebCredential:
    """A session token, with its cookies.

    Args:
        clock: says when it has expired; None leaves that to the host.
        kept: what renewals brought; None for one that is not renewed by this proxy.
    """

    renewable = False

    def __init__(
        self,
        token: WebToken,
        base_url: str,
        clock: Clock | None = None,
        kept: KeptWebToken | None = None,
    ) -> None:
        self._given = token
        self._base_url = base_url
        self._clock = clock
        self.kept = kept

    def __repr__(self) -> str:
        return f"WebCredential({self.token!r}, {self._base_url})"

    @property
    def token(self) -> WebToken:
        """The newest token."""
        return self._given if self.kept is None else self.kept.token

    @property
    def digest(self) -> str:
        """Names the login, and reveals nothing of it."""
        return self.token.digest

    @property
    def is_due(self) -> bool:
        """Whether it is to be renewed now: it ends soon, has not ended yet, and nobody has tried
        lately."""
        expires = self.token.expires_at
        if self.kept is None or self._clock is None or expires is None:
            return False
        now = self._clock.now()
        left_s = expires - now
        pause_s = max(_TRIED_AT_MOST_EVERY_S, min(_TRIED_AGAIN_S, left_s / 4))
        return 0 < left_s < _RENEWED_BEFORE_S and now - self.kept.read().tried_at >= pause_s

    @property
    def lifetime(self) -> str:
        """For how long it is still valid, in words."""
        expires = self.token.expires_at
        if expires is None or self._clock is None:
            return "valid until its owner logs out"
        left_s = expires - self._clock.now()
        if left_s <= 0:
            return "not valid any more"
        return f"valid for {left_s / 86400:.1f} days"

    def answered(self, token: AccessToken) -> None:
        """Nobody needs to know."""

    def current(self, *, rejected: str | None = None) -> AccessToken:
        if rejected is not None or self._has_expired():
            what = "was refused by its host" if rejected is not None else "has expired"
            code = "credentials_rejected" if rejected is not None else "credentials_expired"
            raise CredentialError(f"The web token {what}.", code=code, remedy=_REMEDY)
        now = self.token
        return AccessToken(now.value, self._base_url, _milliseconds(now), now.cookies)

    def status(self) -> CredentialStatus:
        now = self.token
        shown, expires = mask(now.value), _milliseconds(now)
        if self._has_expired():
            return CredentialStatus(
                TokenState.EXPIRED,
                shown,
                "the web token has expired",
                _REMEDY,
                expires,
                cause="credentials_expired",
            )
        detail, remedy = f"web token, {self.lifetime}", ""
        problem = "" if self.kept is None else self.kept.read().problem
        if problem:
            detail += f"; it was not renewed: {problem.rstrip('.')}"
            remedy = f"{_REMEDY} The server tries to renew this one again."
        elif self.kept is not None and now.expires_at is not None:
            detail += "; the server renews it before it ends"
        return CredentialStatus(TokenState.FRESH, shown, detail, remedy, expires)

    def _has_expired(self) -> bool:
        expires = self.token.expires_at
        return self._clock is not None and expires is not None and expires <= self._clock.now()


def _milliseconds(token: WebToken) -> int | None:
    return None if token.expires_at is None else int(token.expires_at * 1000)


def holder_account(token: WebToken, base_url: str) -> Account:
    """The account of a caller that brings its own login."""
    return _account(HOLDER, token, base_url, "the caller's web token", None)


def operator_account(
    token: WebToken, base_url: str, clock: Clock, kept: KeptWebToken | None = None
) -> Account:
    """The account of QWEN_WEB_TOKEN."""
    return _account(OPERATOR, token, base_url, "environment QWEN_WEB_TOKEN", clock, kept)


def _account(
    name: str,
    token: WebToken,
    base_url: str,
    origin: str,
    clock: Clock | None,
    kept: KeptWebToken | None = None,
) -> Account:
    credential = WebCredential(token, base_url, clock, kept)
    return Account(name, "web", base_url, origin, False, Family.WEB, credential)
