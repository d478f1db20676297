"""The state of each account: one function for all that tell it.

What the credential says of itself, what the upstream said of it in the latest calls, and the
pauses. `/health`, `/health/ready`, doctor and `qwen-proxy status` ask here, so that they agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus, PausedModel, TokenState
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.failures.causes import CAUSES, PLAN_SPENT, Cause
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from qwen_wsgi.upstream.routing.outcomes import Outcomes

#: A key that was refused is taken to be refused for so long, unless it answers; it is tried again
#: before that (`trials`). What nobody has seen for longer is not known.
COUNTS_S: Final = 600.0

#: With these calls are served.
READY: Final = ("ok", "login_unsaved")


class Summary(NamedTuple):
    """The state of all accounts together.

    Attributes:
        status: `ok`, `login_unsaved` or `no_usable_account`.
        cause: why no account is usable: of the one that would be asked first; else "".
    """

    status: str
    cause: str
    accounts: tuple[tuple[Account, CredentialStatus], ...]


class AccountStatuses:
    """Tells the state of accounts. Asks no upstream, and takes a few microseconds each."""

    def __init__(
        self,
        settings: Settings,
        pool: AccountPool,
        cooldowns: Cooldowns,
        outcomes: Outcomes,
        catalogue: Catalogue,
    ) -> None:
        self._budget_s = settings.retry_budget_s
        self._pool = pool
        self._cooldowns = cooldowns
        self._outcomes = outcomes
        self._catalogue = catalogue

    def summary(self) -> Summary:
        """The state of all accounts, in order of preference."""
        accounts = tuple((each, self.of(each)) for each in self._pool.accounts())
        states = [status for _, status in accounts]
        if not any(status.state.is_usable for status in states):
            return Summary("no_usable_account", states[0].cause if states else "", accounts)
        if any(status.unsaved for status in states):
            # Ready all the same: a supervisor that restarts the server for a 503 would lose the
            # only copy of the login.
            return Summary("login_unsaved", "", accounts)
        return Summary("ok", "", accounts)

    def of(self, account: Account) -> CredentialStatus:
        """The state of one account."""
        status = account.credential.status()
        if not status.state.is_usable:
            return status
        seconds, cause = 0.0, ""
        models: tuple[PausedModel, ...] = ()
        blocked_s = self._pool.plans.blocked_s(account.name)
        if blocked_s or not self._cooldowns.is_clear:
            seconds, cause = self._pause(account, blocked_s)
            models = self._paused_models(account)
            status = replace(status, models=models)
        refused = self._refusal(account, cause)
        if refused is not None:
            return _refused(status, refused, seconds)
        if not seconds and models and self._has_no_other(account, models):
            seconds, cause = min((each.seconds, each.cause) for each in models)
        if not seconds:
            return status
        status = replace(status, cause=cause, again_s=seconds)
        return _paused(status) if seconds > self._budget_s else status

    def _pause(self, account: Account, blocked_s: float) -> tuple[float, str]:
        """For how long the whole account gets no calls, and why.

        Args:
            blocked_s: for how long because a window of its plan is spent.
        """
        keys = self._pool.keys(account)
        longest = max((keys.payer, keys.host), key=self._cooldowns.remaining_s)
        seconds = self._cooldowns.remaining_s(longest)
        if blocked_s > seconds:
            return blocked_s, PLAN_SPENT
        return seconds, self._cooldowns.cause(longest) if seconds else ""

    def _paused_models(self, account: Account) -> tuple[PausedModel, ...]:
        keys, cooldowns = self._pool.keys(account), self._cooldowns
        found = []
        for model in self._catalogue.known(account).models:
            key = keys.of_model(model)
            if (seconds := cooldowns.remaining_s(key)) > 0:
                found.append(PausedModel(model, seconds, cooldowns.cause(key)))
        return tuple(found)

    def _has_no_other(self, account: Account, paused: tuple[PausedModel, ...]) -> bool:
        return len(paused) == len(self._catalogue.known(account).models)

    def _refusal(self, account: Account, paused_for: str) -> Cause | None:
        """Why the upstream refuses the account, if it does."""
        if _is_refusal(paused_for):
            return CAUSES[paused_for]
        latest = self._outcomes.latest(account)
        # A login may be another one by now; its own file and journal tell what became of it.
        if latest is None or account.credential.renewable or latest.age_s >= COUNTS_S:
            return None
        return CAUSES[latest.cause] if _is_refusal(latest.cause) else None


def _is_refusal(cause: str) -> bool:
    row = CAUSES.get(cause)
    return row is not None and (row.refuses_account or row.name == "billing")


def _refused(status: CredentialStatus, cause: Cause, seconds: float) -> CredentialStatus:
    state = TokenState.REFUSED if cause.refuses_account else TokenState.UNPAID
    when = f"; the next call is possible in {seconds:.0f} s" if seconds >= 1 else ""
    detail = f"{cause.meaning} ({cause.name}), as its host says{when}"
    return replace(
        status,
        state=state,
        detail=detail,
        remedy=cause.remedy,
        cause=cause.name,
        again_s=seconds,
    )


def _paused(status: CredentialStatus) -> CredentialStatus:
    row, seconds = CAUSES.get(status.cause), status.again_s or 0.0
    why = status.cause if row is None else f"{row.meaning} ({row.name})"
    return replace(
        status,
        state=TokenState.PAUSED,
        detail=f"{why}; it gets no calls for {seconds:.0f} s",
        remedy=(row.remedy if row is not None else "") or "Wait: it is tried again by itself.",
    )
