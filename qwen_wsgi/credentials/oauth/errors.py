"""Errors of the login service, by what they prove: whether the token may have been spent."""

from __future__ import annotations

from qwen_wsgi.errors import QwenProxyError


class OAuthFailure(QwenProxyError):
    """There is no usable answer. `str()` says why, as a clause without a full stop or a secret.

    Attributes:
        status: of the HTTP response; None when there was none.
        page: a web page came instead of JSON: from a firewall, a gateway, or a portal.
    """

    def __init__(self, reason: str, *, status: int | None = None, page: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.page = page


class NotSent(OAuthFailure):
    """No byte of the request was sent: the token is unspent, and can be sent again."""


class Ambiguous(OAuthFailure):
    """The request may have been carried out, and its answer is lost."""


class Rejected(OAuthFailure):
    """The endpoint refuses this token, or device code.

    Attributes:
        word: OAuth's error code; empty if it is unknown.
    """

    def __init__(self, reason: str, *, status: int | None = None, word: str = "") -> None:
        super().__init__(reason, status=status)
        self.word = word


class Denied(Rejected):
    """The person denied the login."""


class Expired(Rejected):
    """The device code has expired, or was used."""


class Throttled(OAuthFailure):
    """Too many requests; nothing was carried out.

    Attributes:
        retry_after_s: how long to wait; None if the endpoint does not say.
    """

    def __init__(self, reason: str, *, status: int, retry_after_s: float | None) -> None:
        super().__init__(reason, status=status)
        self.retry_after_s = retry_after_s


class Refused(OAuthFailure):
    """A firewall or a wrong server refused the request; it proves nothing about the token."""
