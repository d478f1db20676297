"""How long a token is good for: a pure function of document, clock and two windows.

The windows only matter to refreshing; a request may use a token until it expires.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from qwen_wsgi.credentials.credential import TokenState

#: Refresh in the background from here on. Far above the 30 s at which qwen-code refreshes, so that
#: a running CLI finds a fresh token and never spends the refresh token itself.
ADVISORY_MS: Final = 15 * 60_000
#: Wait for the refresh from here on.
MANDATORY_MS: Final = 2 * 60_000


class Windows(NamedTuple):
    """Time left, in milliseconds, at which a token stops being fresh, and stops being stale."""

    advisory_ms: float
    mandatory_ms: float


def windows(lifetime_ms: int | None) -> Windows:
    """Scale the windows to a token's lifetime; real ones live hours, tests use seconds.

    Args:
        lifetime_ms: from issue to expiry; None when unknown, as for a file that somebody else
            wrote.
    """
    if lifetime_ms is None:
        return Windows(ADVISORY_MS, MANDATORY_MS)
    return Windows(min(ADVISORY_MS, lifetime_ms / 4), min(MANDATORY_MS, lifetime_ms / 8))


def state(expires_at_ms: int | None, lifetime_ms: int | None, now_s: float) -> TokenState:
    """Judge a token. `MISSING` is not for this function: there is no token then.

    Args:
        expires_at_ms: wall clock; None never expires.
        lifetime_ms: see `windows`.
        now_s: wall clock, seconds.
    """
    if expires_at_ms is None:
        return TokenState.FRESH
    left_ms = expires_at_ms - now_s * 1000
    advisory_ms, mandatory_ms = windows(lifetime_ms)
    if left_ms <= 0:
        return TokenState.EXPIRED
    if left_ms <= mandatory_ms:
        return TokenState.EXPIRING
    return TokenState.STALE if left_ms <= advisory_ms else TokenState.FRESH
