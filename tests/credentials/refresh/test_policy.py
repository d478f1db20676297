"""Which state a token is in, at every boundary."""

from __future__ import annotations

import pytest

from qwen_wsgi.credentials.refresh.policy import State, state, windows

NOW_S = 1_795_176_000.0
NOW_MS = int(NOW_S * 1000)
MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("left_ms", "expected"),
    [
        (3 * 60 * MINUTE_MS, State.FRESH),
        (15 * MINUTE_MS + 1, State.FRESH),
        (15 * MINUTE_MS, State.STALE),
        (2 * MINUTE_MS + 1, State.STALE),
        (2 * MINUTE_MS, State.EXPIRING),
        (1, State.EXPIRING),
        (0, State.EXPIRED),
        (-1, State.EXPIRED),
        (-(10**15), State.EXPIRED),
    ],
)
def test_a_token_of_unknown_lifetime_has_the_full_windows(left_ms: int, expected: State) -> None:
    assert state(NOW_MS + left_ms, None, NOW_S) is expected


@pytest.mark.parametrize(
    ("left_ms", "expected"),
    [
        (2001, State.FRESH),
        (2000, State.STALE),
        (1001, State.STALE),
        (1000, State.EXPIRING),
        (0, State.EXPIRED),
    ],
)
def test_windows_shrink_with_a_short_lifetime(left_ms: int, expected: State) -> None:
    assert state(NOW_MS + left_ms, 8000, NOW_S) is expected


def test_windows_do_not_grow_with_a_long_lifetime() -> None:
    assert windows(24 * 3600 * 1000) == windows(None) == (15 * MINUTE_MS, 2 * MINUTE_MS)


def test_what_never_expires_is_fresh() -> None:
    assert state(None, None, NOW_S) is State.FRESH


def test_a_clock_that_stepped_back_makes_a_token_fresh_again() -> None:
    assert state(NOW_MS, None, NOW_S) is State.EXPIRED
    assert state(NOW_MS, None, NOW_S - 3600) is State.FRESH
