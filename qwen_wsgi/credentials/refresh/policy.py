"""Decides how long a token is good for, and whether a refresh of its login is due.

The windows only matter to refreshing; a request may use a token until it expires.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from qwen_wsgi.credentials.credential import Ability, TokenState
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import Snapshot
from qwen_wsgi.credentials.refresh.context import RefreshContext, RefreshState

#: Refresh in the background from here on. Far above the 30 s at which qwen-code refreshes, so that
#: a running CLI finds a fresh token and never spends the refresh token itself.
ADVISORY_MS: Final = 15 * 60_000
#: Wait for the refresh from here on.
MANDATORY_MS: Final = 2 * 60_000

#: From least to most urgent.
_URGENCY: Final = (
    TokenState.FRESH,
    TokenState.STALE,
    TokenState.EXPIRING,
    TokenState.EXPIRED,
    TokenState.MISSING,
)


class Windows(NamedTuple):
    """Time left, in milliseconds, at which a token stops being fresh, and stops being stale."""

    advisory_ms: float
    mandatory_ms: float


def windows(lifetime_ms: int | None) -> Windows:
    """Scale the windows to a token's lifetime; real ones live hours, tests use seconds.

    Args:
        lifetime_ms: from issue to expiry; None when unknown, as for a file that another program
            wrote.
    """
    if lifetime_ms is None:
        return Windows(ADVISORY_MS, MANDATORY_MS)
    return Windows(min(ADVISORY_MS, lifetime_ms / 4), min(MANDATORY_MS, lifetime_ms / 8))


def state(expires_at_ms: int | None, lifetime_ms: int | None, now_s: float) -> TokenState:
    """Classify a token by the time that is left; never `MISSING`.

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


class RefreshPolicy:
    """Applies the rules to a snapshot of one login, and to what this process knows beside it."""

    def __init__(self, context: RefreshContext, state: RefreshState) -> None:
        self._context = context
        self._state = state

    # --- the access token ------------------------------------------------------------------------

    def token_state(self, snapshot: Snapshot) -> TokenState:
        """Classify the login's access token, with this process's share of the advisory window."""
        login = snapshot.newest.login
        if login is None:
            return TokenState.MISSING
        lifetime_ms = self._lifetime_ms(snapshot)
        early_ms = self._context.share * min(30_000, windows(lifetime_ms).advisory_ms / 4)
        now_s = self._context.clock.now()
        found = state(login.expires_at_ms, lifetime_ms, now_s)
        if found is TokenState.FRESH and early_ms:
            found = state(login.expires_at_ms, lifetime_ms, now_s + early_ms / 1000)
            found = TokenState.STALE if found is not TokenState.FRESH else found
        deadline = self._state.deadlines.get(login.access_token)
        if deadline is not None and found is not TokenState.EXPIRED:
            # The wall clock may have been set back since; boot time goes on, in suspend too.
            by_boot = state(int(deadline * 1000), lifetime_ms, self._context.boottime())
            found = max(found, by_boot, key=_URGENCY.index)
        return found

    def fresh_until(self, snapshot: Snapshot) -> tuple[float, float]:
        """Until when the token is FRESH, by wall clock and by boot time; for the fast path.

        It stays right for this very snapshot: everything else that `token_state` uses is older.
        """
        login = snapshot.newest.login
        if login is None:
            return -math.inf, -math.inf
        advisory_s = windows(self._lifetime_ms(snapshot)).advisory_ms / 1000
        early_s = self._context.share * min(30.0, advisory_s / 4)
        deadline = self._state.deadlines.get(login.access_token, math.inf)
        return login.expires_at_ms / 1000 - advisory_s - early_s, deadline - advisory_s

    def is_urgent(self, snapshot: Snapshot) -> bool:
        """Whether calls wait for a refresh, or soon will."""
        return self.token_state(snapshot) in (TokenState.EXPIRING, TokenState.EXPIRED)

    def _lifetime_ms(self, snapshot: Snapshot) -> int | None:
        assumed_s = self._context.timing.lifetime_s
        if snapshot.lifetime_ms is None and assumed_s is not None:
            return int(assumed_s * 1000)
        return snapshot.lifetime_ms

    # --- the refresh -----------------------------------------------------------------------------

    def ability(self, snapshot: Snapshot) -> Ability:
        """Whether the login can be refreshed, and if not, why."""
        login = snapshot.newest.login
        if login is not None and fingerprint(login.access_token) in (
            snapshot.journal.closed,
            self._state.closed,
        ):
            return Ability.TIER_CLOSED
        if login is None or not login.refresh_token:
            return Ability.NO_REFRESH_TOKEN
        fp = fingerprint(login.refresh_token)
        if fp in snapshot.journal.tombstones or fp in self._state.refused:
            return Ability.REJECTED
        return Ability.READ_ONLY if self._state.read_only else Ability.REFRESHABLE

    def is_settled(self, snapshot: Snapshot, rejected: str | None) -> bool:
        """Whether no refresh is needed, because another process or program was faster."""
        login = snapshot.newest.login
        return (
            login is not None
            and login.access_token != rejected
            and self.token_state(snapshot) is TokenState.FRESH
        )

    def is_due(self, snapshot: Snapshot, rejected: str | None) -> bool:
        """Whether an attempt may be made now, as far as this and all other processes know."""
        login = snapshot.newest.login
        if login is None or self.ability(snapshot) not in (Ability.REFRESHABLE, Ability.READ_ONLY):
            return False
        if self._is_paused(login) or self._is_just_gone(snapshot):
            return False
        now_ms = self._context.clock.now() * 1000
        backoff = snapshot.journal.backoff
        if backoff is not None and backoff.fp == fingerprint(login.refresh_token):
            # A pause beyond the longest one means that the clock was set back.
            left_ms = backoff.not_before_ms - now_ms
            if 0 < left_ms <= self._context.timing.longest_retry_s * 1000:
                return False
        if rejected is not None and self.token_state(snapshot) is TokenState.FRESH:
            forced = snapshot.journal.forced_at_ms
            if forced is not None and 0 <= now_ms - forced < self.pause_s(snapshot) * 1000:
                return False
        return True

    def is_wanted(self, snapshot: Snapshot, rejected: str | None) -> bool:
        """Whether an attempt has work now: a login to publish from the journal, or a refresh."""
        login = snapshot.newest.login
        if login is not None and snapshot.newest.unpublished and not self._is_paused(login):
            return True
        return self.is_due(snapshot, rejected)

    def pause_s(self, snapshot: Snapshot) -> float:
        """The shortest pause between two attempts; tests' tokens live seconds, real ones hours."""
        lifetime_ms = self._lifetime_ms(snapshot)
        retry_s = self._context.timing.retry_s
        return retry_s if lifetime_ms is None else min(retry_s, lifetime_ms / 8000)

    def hold_off(self, fp: str, pause_s: float) -> None:
        """Keep this process from another attempt with this very refresh token for some time."""
        self._state.pause = fp, self._context.clock.monotonic() + pause_s

    def _is_paused(self, login: CredentialDocument) -> bool:
        """Whether this process failed with this very login a moment ago."""
        fp, until_s = self._state.pause
        return self._context.clock.monotonic() < until_s and fp == fingerprint(login.refresh_token)

    def _is_just_gone(self, snapshot: Snapshot) -> bool:
        """Whether the file was deleted so recently that another program may be spending the
        journal's refresh token; its successor is in the file before long. The access token is
        still good meanwhile."""
        return snapshot.is_gone and self._context.store.gone_s() < self._context.timing.gone_s
