"""All times of a refresh, and why they are what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qwen_wsgi.credentials.locks import cli_lock, stale

#: Lock A may be held for 25 s of waiting for B and 26 s of transaction.
PROXY_LOCK_S: Final = 55.0
#: qwen-code gives up waiting for its lock after 29 s.
CLI_LOCK_S: Final = 25.0
#: Connect and read timeouts of the first request, and of the one repetition: together below 26 s.
FIRST_TIMEOUT_S: Final = (3.05, 15.0)
SECOND_TIMEOUT_S: Final = (3.05, 5.0)

#: Pause after a failed attempt; scaled down for short-lived tokens, doubled up to the longest.
RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 600.0
#: The pause while there is no valid token and the failure cost nothing.
URGENT_RETRY_S: Final = 5.0
#: A refused refresh token may mean that another process won a race: its file is there by then.
REJECTED_PAUSE_S: Final = 1.0
#: A token that a forced refresh brought and that is refused within this time was never good.
CLOSED_WITHIN_S: Final = 60.0
#: A login that the API refused even with a new token may be tried by a call after this time, and is
#: tried without one after the other: a host that errs for a moment refuses everybody.
CLOSED_CALL_S: Final = 60.0
CLOSED_TRIAL_S: Final = 240.0
#: So many refreshes because of refused access tokens are made within ten pauses (`RETRY_S`) of one
#: login: a host that refuses good tokens now and then must not spend a refresh token each time.
MOST_FORCED: Final = 3
FORCED_PAUSES: Final = 10
#: Pause between tries to write a login that could not be written.
RESCUE_S: Final = 5.0
#: A qwen-code deletes the file when its refresh token is refused, most likely because another one
#: has spent it and lost its lock: that one waits for its answer no longer than 30 s.
GONE_S: Final = 35.0


@dataclass(frozen=True)
class RefreshTiming:
    """All times of a refresh, in seconds; the module's constants say why. Tests scale them.

    Attributes:
        lifetime_s: the assumed life of a token that another program fetched; None: hours.
    """

    proxy_lock_s: float = PROXY_LOCK_S
    cli_lock_s: float = CLI_LOCK_S
    first_timeout_s: tuple[float, float] = FIRST_TIMEOUT_S
    second_timeout_s: tuple[float, float] = SECOND_TIMEOUT_S
    retry_s: float = RETRY_S
    longest_retry_s: float = LONGEST_RETRY_S
    urgent_retry_s: float = URGENT_RETRY_S
    rejected_pause_s: float = REJECTED_PAUSE_S
    rescue_s: float = RESCUE_S
    stale_s: float = stale.STALE_S
    seen_s: float = stale.SEEN_S
    heartbeat_s: float = cli_lock.HEARTBEAT_S
    gone_s: float = GONE_S
    lifetime_s: float | None = None
