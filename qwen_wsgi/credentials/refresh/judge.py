"""Judges one login: what its token is worth now, and whether an attempt to renew it is due."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.credential import Ability, TokenState
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore, Snapshot
from qwen_wsgi.credentials.refresh import policy
from qwen_wsgi.credentials.refresh.pace import RefreshTiming

#: From least to most urgent.
_URGENCY: Final = (
    TokenState.FRESH,
    TokenState.STALE,
    TokenState.EXPIRING,
    TokenState.EXPIRED,
    TokenState.MISSING,
)


class RefreshPolicy:
    """The verdict on what a store has; and what this process knows of the login beside that."""

    def __init__(
        self,
        store: LoginStore,
        clock: Clock,
        pace: RefreshTiming,
        *,
        share: float,
        boottime: Callable[[], float],
    ) -> None:
        """
        Args:
            share: from 0 to 1.
            boottime: seconds that never step and go on while the machine is suspended.
        """
        self._store = store
        self._clock = clock
        self._pace = pace
        self.boottime = boottime
        #: Why the file cannot be replaced; empty when it can, as far as is known.
        self.read_only = ""
        #: So that the workers do not all become stale in the same moment; of the window.
        self._share = share
        #: Deadlines of tokens that this process fetched, by a clock that does not step.
        self.deadlines: dict[str, float] = {}
        #: Fingerprints of refused refresh tokens and of the access token of a closed account: what
        #: the journal should say, where it cannot be written.
        self.refused: frozenset[str] = frozenset()
        self.closed = ""
        #: What this process waits for before it tries again: fingerprint and monotonic time.
        self._pause: tuple[str, float] = ("", 0.0)

    def state(self, snapshot: Snapshot) -> TokenState:
        """What the login's access token is worth now."""
        login = snapshot.newest.login
        if login is None:
            return TokenState.MISSING
        lifetime_ms = self._lifetime_ms(snapshot)
        early_ms = self._share * min(30_000, policy.windows(lifetime_ms).advisory_ms / 4)
        now_s = self._clock.now()
        judged = policy.state(login.expires_at_ms, lifetime_ms, now_s)
        if judged is TokenState.FRESH and early_ms:
            judged = policy.state(login.expires_at_ms, lifetime_ms, now_s + early_ms / 1000)
            judged = TokenState.STALE if judged is not TokenState.FRESH else judged
        deadline = self.deadlines.get(login.access_token)
        if deadline is not None and judged is not TokenState.EXPIRED:
            # The wall clock may have been set back since; boot time goes on, in suspend too.
            by_boot = policy.state(int(deadline * 1000), lifetime_ms, self.boottime())
            judged = max(judged, by_boot, key=_URGENCY.index)
        return judged

    def fresh_until(self, snapshot: Snapshot) -> tuple[float, float]:
        """Until when `state` is FRESH, by wall clock and by boot time; for who asks all the time.

        It stays right for this very `snapshot`: whatever else `state` looks at came before it.
        """
        login = snapshot.newest.login
        if login is None:
            return -math.inf, -math.inf
        advisory_s = policy.windows(self._lifetime_ms(snapshot)).advisory_ms / 1000
        early_s = self._share * min(30.0, advisory_s / 4)
        deadline = self.deadlines.get(login.access_token, math.inf)
        return login.expires_at_ms / 1000 - advisory_s - early_s, deadline - advisory_s

    def ability(self, snapshot: Snapshot) -> Ability:
        """Whether, and if not why, the login can be renewed."""
        login = snapshot.newest.login
        if login is not None and fingerprint(login.access_token) in (
            snapshot.journal.closed,
            self.closed,
        ):
            return Ability.TIER_CLOSED
        if login is None or not login.refresh_token:
            return Ability.NO_REFRESH_TOKEN
        fp = fingerprint(login.refresh_token)
        if fp in snapshot.journal.tombstones or fp in self.refused:
            return Ability.REJECTED
        return Ability.READ_ONLY if self.read_only else Ability.REFRESHABLE

    def settled(self, snapshot: Snapshot, rejected: str | None) -> bool:
        """Whether there is nothing to do: somebody was faster."""
        login = snapshot.newest.login
        return (
            login is not None
            and login.access_token != rejected
            and self.state(snapshot) is TokenState.FRESH
        )

    def due(self, snapshot: Snapshot, rejected: str | None) -> bool:
        """Whether an attempt may be made now, as far as this and all other processes know."""
        login = snapshot.newest.login
        if login is None or self.ability(snapshot) not in (Ability.REFRESHABLE, Ability.READ_ONLY):
            return False
        if self._pausing(login) or self._just_gone(snapshot):
            return False
        now_ms = self._clock.now() * 1000
        backoff = snapshot.journal.backoff
        if backoff is not None and backoff.fp == fingerprint(login.refresh_token):
            # A pause that lies further ahead than the longest is a clock that was set back.
            left_ms = backoff.not_before_ms - now_ms
            if 0 < left_ms <= self._pace.longest_retry_s * 1000:
                return False
        if rejected is not None and self.state(snapshot) is TokenState.FRESH:
            forced = snapshot.journal.forced_at_ms
            if forced is not None and 0 <= now_ms - forced < self.pause_s(snapshot) * 1000:
                return False
        return True

    def _pausing(self, login: CredentialDocument) -> bool:
        """Whether this process failed with this very login a moment ago."""
        fp, until_s = self._pause
        return self._clock.monotonic() < until_s and fp == fingerprint(login.refresh_token)

    def _just_gone(self, snapshot: Snapshot) -> bool:
        """Whether the file was deleted so lately that the journal's token may be in use elsewhere.

        Its successor is in the file then before long. Meanwhile the access token is still good.
        """
        return snapshot.is_gone and self._store.gone_s() < self._pace.gone_s

    def wanted(self, snapshot: Snapshot, rejected: str | None) -> bool:
        """Whether there is something to do now: a rescued login to publish, or a renewal."""
        login = snapshot.newest.login
        if login is not None and snapshot.newest.unpublished and not self._pausing(login):
            return True
        return self.due(snapshot, rejected)

    def _lifetime_ms(self, snapshot: Snapshot) -> int | None:
        if snapshot.lifetime_ms is None and self._pace.lifetime_s is not None:
            return int(self._pace.lifetime_s * 1000)
        return snapshot.lifetime_ms

    def pause_s(self, snapshot: Snapshot) -> float:
        """The shortest pause between two attempts; tests' tokens live seconds, real ones hours."""
        lifetime_ms = self._lifetime_ms(snapshot)
        return min(
            self._pace.retry_s, self._pace.retry_s if lifetime_ms is None else lifetime_ms / 8000
        )

    def hold_off(self, fp: str, pause_s: float) -> None:
        """Keep this process from trying again with this very login for some time."""
        self._pause = fp, self._clock.monotonic() + pause_s

    def is_urgent(self, snapshot: Snapshot) -> bool:
        """Whether calls wait for a renewal, or soon will."""
        return self.state(snapshot) in (TokenState.EXPIRING, TokenState.EXPIRED)
