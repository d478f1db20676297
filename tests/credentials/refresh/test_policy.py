"""Which state a token is in, at every boundary."""

from __future__ import annotations

import pytest

from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.credentials.refresh.policy import state, windows

NOW_S = 1_795_176_000.0
NOW_MS = int(NOW_S * 1000)
MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("left_ms", "expected"),
    [
        (3 * 60 * MINUTE_MS, TokenState.FRESH),
        (15 * MINUTE_MS + 1, TokenState.FRESH),
        (15 * MINUTE_MS, TokenState.STALE),
        (2 * MINUTE_MS + 1, TokenState.STALE),
        (2 * MINUTE_MS, TokenState.EXPIRING),
        (1, TokenState.EXPIRING),
        (0, TokenState.EXPIRED),
        (-1, TokenState.EXPIRED),
        (-(10**15), TokenState.EXPIRED),
    ],
)
def test_a_token_of_unknown_lifetime_has_the_full_windows(
    left_ms: int, expected: TokenState
) -> None:
    assert state(NOW_MS + left_ms, None, NOW_S) is expected


@pytest.mark.parametrize(
    ("left_ms", "expected"),
    [
        (2001, TokenState.FRESH),
        (2000, TokenState.STALE),
        (1001, TokenState.STALE),
        (1000, TokenState.EXPIRING),
        (0, TokenState.EXPIRED),
    ],
)
def test_windows_shrink_with_a_short_lifetime(left_ms: int, expected: TokenState) -> None:
    assert state(NOW_MS + left_ms, 8000, NOW_S) is expected


def test_windows_do_not_grow_with_a_long_lifetime() -> None:
    assert windows(24 * 3600 * 1000) == windows(None) == (15 * MINUTE_MS, 2 * MINUTE_MS)


def test_what_never_expires_is_fresh() -> None:
    assert state(None, None, NOW_S) is TokenState.FRESH


def test_a_clock_that_stepped_back_makes_a_token_fresh_again() -> None:
    assert state(NOW_MS, None, NOW_S) is TokenState.EXPIRED
    assert state(NOW_MS, None, NOW_S - 3600) is TokenState.FRESH
