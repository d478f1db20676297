"""What a failed request to the login service proves: whether the token may have been spent."""

from __future__ import annotations

from qwen_wsgi.errors import QwenProxyError


class OAuthFailure(QwenProxyError):
    """No answer that can be used. `str()` says why, as a clause without a full stop or a secret.

    Attributes:
        status: of the HTTP response; None when there was none.
        page: a web page came in place of JSON: a firewall, a gateway, or a portal.
    """

    def __init__(self, reason: str, *, status: int | None = None, page: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.page = page


class NotSent(OAuthFailure):
    """Not one byte of the request left: the token is as good as before, try again freely."""


class Ambiguous(OAuthFailure):
    """The request may have been carried out, and its answer is lost."""


class Rejected(OAuthFailure):
    """The endpoint says that this token, or device code, is not good.

    Attributes:
        word: OAuth's error code, if it is a known one, else empty.
    """

    def __init__(self, reason: str, *, status: int | None = None, word: str = "") -> None:
        super().__init__(reason, status=status)
        self.word = word


class Denied(Rejected):
    """The person said no."""


class Expired(Rejected):
    """The device code is too old, or was used."""


class Throttled(OAuthFailure):
    """Too many requests; nothing was carried out.

    Attributes:
        retry_after_s: how long to wait, if the endpoint said so.
    """

    def __init__(self, reason: str, *, status: int, retry_after_s: float | None) -> None:
        super().__init__(reason, status=status)
        self.retry_after_s = retry_after_s


class Refused(OAuthFailure):
    """Somebody on the way said no (firewall, wrong address); it says nothing about the token."""
