"""Decides how long a token is good for, and whether a refresh of its login is due.

The windows only matter to refreshing; a request may use a token until it expires.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from qwen_wsgi.credentials.credential import Ability, TokenState
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import Closed, fingerprint
from qwen_wsgi.credentials.files.login_store import Snapshot
from qwen_wsgi.credentials.refresh.context import RefreshContext, RefreshState
from qwen_wsgi.credentials.refresh.timing import (
    CLOSED_CALL_S,
    CLOSED_TRIAL_S,
    FORCED_PAUSES,
    MOST_FORCED,
)

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
        if self.closed_at_ms(snapshot) is not None:
            return Ability.TIER_CLOSED
        return self._ability_if_open(snapshot)

    def _ability_if_open(self, snapshot: Snapshot) -> Ability:
        login = snapshot.newest.login
        if login is None or not login.refresh_token:
            return Ability.NO_REFRESH_TOKEN
        fp = fingerprint(login.refresh_token)
        if fp in snapshot.journal.tombstones or fp in self._state.refused:
            return Ability.REJECTED
        return Ability.READ_ONLY if self._state.read_only else Ability.REFRESHABLE

    # --- what the API said of the access token ----------------------------------------------------

    def has_answered(self, snapshot: Snapshot) -> bool:
        """Whether the API has accepted the login's access token, as far as is known."""
        login, received = snapshot.newest.login, snapshot.journal.received
        if login is None:
            return False
        if fingerprint(login.access_token) == self._state.answered:
            return True
        same = received is not None and received.login.access_token == login.access_token
        return received is not None and same and received.answered

    def closed_at_ms(self, snapshot: Snapshot) -> int | None:
        """When the API refused the login for good, as it seems; None if it did not."""
        if self.has_answered(snapshot):
            return None
        closed = self._closed(snapshot)
        return None if closed is None else closed.at_ms or None

    def was_closed(self, snapshot: Snapshot) -> bool:
        """Whether the login is closed, or has but another chance."""
        return not self.has_answered(snapshot) and self._closed(snapshot) is not None

    def call_tries_in_s(self, snapshot: Snapshot) -> float:
        """In how many seconds a call may try a closed login again."""
        return self._closed_for_s(snapshot, CLOSED_CALL_S)

    def trial_in_s(self, snapshot: Snapshot) -> float:
        """In how many seconds a closed login is tried again without a call."""
        return self._closed_for_s(snapshot, CLOSED_TRIAL_S)

    def _closed(self, snapshot: Snapshot) -> Closed | None:
        login = snapshot.newest.login
        # What could not be written is later than what the journal has.
        known = self._state.closed or snapshot.journal.closed
        if login is None or known is None or known.fp != fingerprint(login.access_token):
            return None
        return known

    def _closed_for_s(self, snapshot: Snapshot, limit_s: float) -> float:
        at_ms = self.closed_at_ms(snapshot)
        since_s = limit_s if at_ms is None else self._context.clock.now() - at_ms / 1000
        # Before it was closed: the clock was set back.
        return max(0.0, limit_s - since_s) if since_s >= 0 else 0.0

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
        able = self._ability_if_open(snapshot) in (Ability.REFRESHABLE, Ability.READ_ONLY)
        if login is None or not able or self._is_left_closed(snapshot):
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
        fresh = self.token_state(snapshot) is TokenState.FRESH
        return rejected is None or not fresh or self.forced_in_s(snapshot) <= 0

    def forced_in_s(self, snapshot: Snapshot) -> float:
        """In how many seconds the login may be refreshed because its access token is refused.

        At once if the one before it worked, or was another login's; but a few times only.
        """
        login, forced = snapshot.newest.login, snapshot.journal.forced
        if login is None or forced is None or forced.fp != fingerprint(login.refresh_token):
            return 0.0
        now_s, pause_s = self._context.clock.now(), self.pause_s(snapshot)
        window_s = FORCED_PAUSES * pause_s
        ago = [now_s - at_ms / 1000 for at_ms in forced.at_ms]
        recent = [each for each in ago if 0 <= each < window_s]
        if len(recent) >= MOST_FORCED:
            return window_s - recent[-MOST_FORCED]
        if not recent or self.has_answered(snapshot):
            return 0.0
        return max(0.0, pause_s - recent[-1])

    def _is_left_closed(self, snapshot: Snapshot) -> bool:
        """Whether a closed login is to be left alone: all but one that a call tries, and whose
        token has expired meanwhile."""
        if self.closed_at_ms(snapshot) is None:
            return False
        tried = self._context.clock.monotonic() < self._state.trial_until
        return not tried or self.token_state(snapshot) is not TokenState.EXPIRED

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
