"""The access token: the only value that leaves this package."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_wsgi.redaction import mask


@dataclass(frozen=True, repr=False)
class AccessToken:
    """The secret that a request needs, and where it may be sent.

    Attributes:
        value: the secret; empty when the server needs none.
        base_url: without a slash at its end.
        expires_at_ms: wall clock, milliseconds since the epoch; None for API keys.
        cookies: the line of the Cookie header that goes with it, of a web account; else "".
    """

    value: str
    base_url: str
    expires_at_ms: int | None
    cookies: str = ""

    def __repr__(self) -> str:
        shown = mask(self.value) if self.value else ""
        return f"AccessToken({shown!r}, {self.base_url!r}, expires_at_ms={self.expires_at_ms})"
