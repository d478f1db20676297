"""Parses the login service's response to one request, and classifies failures."""

from __future__ import annotations

import email.utils
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from qwen_wsgi.credentials.oauth.errors import (
    Ambiguous,
    OAuthFailure,
    Refused,
    Rejected,
    Throttled,
)
from qwen_wsgi.credentials.oauth.wire import Moment

#: A clock that differs by more is worth a warning: tokens would be used too long. Seconds.
WRONG_CLOCK_S: Final = 60.0
#: How much of a page is shown that came instead of an answer.
PREVIEW_CHARS: Final = 256

#: What may be a token in a page: longer than ordinary words.
_TOKEN_LIKE: Final = re.compile(r"[A-Za-z0-9._~+/=%-]{16,}")
_SPACE: Final = re.compile(r"\s+")
_NUMBER: Final = re.compile(r"\s*[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\s*", re.ASCII)
#: The error codes of RFC 6749 §5.2 and RFC 8628 §3.5, and those that the real service adds. Others
#: are not shown, because a server could put anything there.
_WORDS: Final = frozenset(
    {
        "access_denied",
        "authorization_pending",
        "expired_token",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "rate_limit_exceeded",
        "server_error",
        "slow_down",
        "temporarily_unavailable",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)
#: Errors that say nothing about the token, although they may come with status 400.
_PASSING: Final = frozenset({"server_error", "temporarily_unavailable"})
_TOO_OFTEN: Final = frozenset({"rate_limit_exceeded", "slow_down"})


class Reply:
    """A response of the login service."""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        secrets: list[str],
        sent: Moment,
        received_s: float,
    ) -> None:
        self.status = status
        self.sent = sent
        self.received_s = received_s
        self._headers = headers
        self._secrets = secrets
        self._body = body
        self._is_json = False
        #: Empty when the body is not a JSON object.
        self.json: Mapping[str, Any] = {}
        with suppress(ValueError, RecursionError):
            value = json.loads(body.decode("utf-8-sig"))
            self._is_json = True
            self.json = value if isinstance(value, dict) else {}
        error = self.json.get("error")
        #: OAuth's error code; empty if it is unknown.
        self.word = error if isinstance(error, str) and error in _WORDS else ""

    @property
    def is_page(self) -> bool:
        """Whether it is a web page."""
        html = "html" in self._headers.get("content-type", "").lower()
        return not self._is_json and (html or self._body.lstrip()[:1] == b"<")

    @property
    def date_s(self) -> float | None:
        """The server's clock, seconds since the epoch."""
        return _http_date_s(self._headers.get("date", ""))

    @property
    def skew_s(self) -> float | None:
        """The server's clock minus ours; None unless they differ by over WRONG_CLOCK_S."""
        return _skew(self.date_s, self.sent.wall_s, self.received_s)

    def text(self, name: str) -> str:
        """A string member of the JSON; empty when it is missing or something else."""
        value = self.json.get(name)
        return value if isinstance(value, str) and value.strip() else ""

    def positive(self, name: str) -> float | None:
        """A member of the JSON that is a number above zero, or a string with one; else None."""
        return _positive(self.json.get(name))

    def unusable(self, what: str) -> OAuthFailure:
        """The error for a success without what it should contain."""
        return Ambiguous(f"{self._shown()} {what}", status=self.status, page=self.is_page)

    def failure(self) -> OAuthFailure:
        """The error for a response other than 200."""
        status, shown = self.status, self._shown()
        if status >= 500 or status < 300 or self.word in _PASSING:
            return Ambiguous(shown, status=status, page=self.is_page)
        if status == HTTPStatus.TOO_MANY_REQUESTS or self.word in _TOO_OFTEN:
            return Throttled(shown, status=status, retry_after_s=self._retry_after_s())
        if self._is_rejection():
            return Rejected(shown, status=status, word=self.word)
        return Refused(shown, status=status, page=self.is_page)

    def _is_rejection(self) -> bool:
        """Whether the endpoint itself refuses the token, which it does in JSON.

        A firewall uses 400 and 401, too, and a response cut in its headers may look like an empty
        one. To treat a good token as bad costs a login; the contrary costs a few requests.
        """
        if self.status == HTTPStatus.BAD_REQUEST:
            error = self.json.get("error")
            return isinstance(error, str) and bool(error)
        return self.status == HTTPStatus.UNAUTHORIZED and bool(self.json)

    def _retry_after_s(self) -> float | None:
        raw = self._headers.get("retry-after", "")
        if (seconds := _positive(raw)) is not None:
            return seconds
        at_s = _http_date_s(raw)
        if at_s is None:
            return 0.0 if raw.strip() == "0" else None
        # Relative to the server's clock: ours may be wrong.
        now_s = self.received_s if self.date_s is None else self.date_s
        return max(0.0, at_s - now_s)

    def _shown(self) -> str:
        """The response for a log: status and error code, or a preview of what is not JSON."""
        if self._is_json:
            return f"status {self.status}" + (f" {self.word}" if self.word else "")
        kind = _plain(self._headers.get("content-type", "no content type"), 64)
        text = self._body[: 64 * 1024].decode("utf-8", "replace")
        for secret in self._secrets:
            text = text.replace(secret, "…")
        text = _plain(_TOKEN_LIKE.sub("…", text), PREVIEW_CHARS)
        return f"status {self.status} ({kind}" + (f": {text!r})" if text else ", empty)")


def _positive(value: object) -> float | None:
    """A number above zero, or a string with one; None for everything else."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        number = float(value)
        return number if number > 0 and math.isfinite(number) else None
    return None


def _http_date_s(raw: str) -> float | None:
    with suppress(ValueError, TypeError, IndexError, OverflowError):
        return email.utils.parsedate_to_datetime(raw).timestamp()
    return None


def _skew(date_s: float | None, sent_s: float, received_s: float) -> float | None:
    """How far a date lies outside the time in which it was made; None up to WRONG_CLOCK_S."""
    if date_s is None:
        return None
    skew_s = date_s - min(max(date_s, sent_s), max(sent_s, received_s))
    return skew_s if abs(skew_s) > WRONG_CLOCK_S else None


def _plain(text: str, limit: int) -> str:
    """One line without control characters."""
    text = _SPACE.sub(" ", "".join(c if c.isprintable() else " " for c in text)).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
