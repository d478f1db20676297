"""The accounts that calls can go to, and what this worker keeps of each of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from qwen_wsgi.credentials import web
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus, StaticKey, TokenState
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import AccountUnavailable, CredentialError
from qwen_wsgi.hosts import Family
from qwen_wsgi.net import is_local
from qwen_wsgi.plan_limits import PlanLimits
from qwen_wsgi.protocol.web.token import WebToken
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.shared_files import key_of, this_boot
from qwen_wsgi.upstream.failures.causes import PLAN_SPENT
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from qwen_wsgi.upstream.routing.limiter import Limiter

#: Causes of failures (`failures.causes`) that mean that an account does not serve a model.
MODEL_NOT_FOUND: Final = "model_not_found"
MODEL_DENIED: Final = "model_denied"

#: A key that names its workspace, and with it the Alibaba account that pays.
_WORKSPACE_KEY: Final = re.compile(r"sk-ws-[A-Za-z]\.([^.]+)\.")


class Finder(Protocol):
    """What `AccountPool` needs of `credentials.sources.discovery.Discovery`."""

    def accounts(self) -> tuple[Account, ...]:
        """All accounts, in order of preference; the same object while nothing changed."""


class PlanWindows(Protocol):
    """Which windows of plans are spent; `accounting.plan_watch.PlanWatch` is one. Cheap to ask."""

    @property
    def seen(self) -> Mapping[str, object]:
        """By account, what is known of its plan; mostly empty, and then there is nothing to ask."""

    def began(self, account: str) -> None:
        """A call begins at an account."""

    def is_spent(self, account: str) -> bool:
        """Whether a window of its plan is spent, also of one that is only assumed."""

    def blocked_s(self, account: str) -> float:
        """For how long it is not to be asked because a window is spent."""

    def free_in_s(self, account: str) -> float:
        """In what time no window of it is spent any more."""

    def spent_text(self, account: str) -> str:
        """Which window is spent, as half a sentence; "" if none is."""

    def told(self, account: str, text: str, seconds: float) -> None:
        """A vendor says that a window is spent, and for how long."""


class NoPlans:
    """Accounts without plans."""

    seen: Mapping[str, object] = MappingProxyType({})

    def began(self, account: str) -> None:
        """Nobody counts it."""

    def is_spent(self, account: str) -> bool:
        """Nothing can be."""
        return False

    def blocked_s(self, account: str) -> float:
        """Nobody is."""
        return 0.0

    def free_in_s(self, account: str) -> float:
        """Everything is."""
        return 0.0

    def spent_text(self, account: str) -> str:
        """There is nothing to say."""
        return ""

    def told(self, account: str, text: str, seconds: float) -> None:
        """Only the cooldown remembers it."""


class Keys(NamedTuple):
    """An account's keys in the shared files.

    Attributes:
        payer: the Alibaba account behind it, whose limits they are: more keys of it do not help.
        host: what serves its base URL.
        own: this very account, for affinity.
    """

    payer: bytes
    host: bytes
    own: bytes

    def of_model(self, model: str) -> bytes:
        """The payer's limits for one model."""
        return _of_model(self.payer, model)


@functools.lru_cache(maxsize=4096)
def _of_model(payer: bytes, model: str) -> bytes:
    return key_of(payer.hex(), model)


class SandboxKey:
    """The sandbox's credential. Its server is started by the first call that needs it."""

    renewable = False

    def __init__(self, start: Callable[[], str]) -> None:
        self._start = start

    def current(self, *, rejected: str | None = None) -> AccessToken:
        """A token that the sandbox accepts; there is no other one, whatever `rejected` says."""
        return AccessToken(value="sandbox", base_url=self._start(), expires_at_ms=None)

    def answered(self, token: AccessToken) -> None:
        """It is accepted always."""

    def status(self) -> CredentialStatus:
        """Always ready."""
        return CredentialStatus(
            state=TokenState.FRESH,
            shown="–",
            detail="built-in fake upstream, for trying things out",
            remedy="",
            expires_at_ms=None,
        )


class AccountPool:
    """All accounts, in order of preference, with their keys, priorities and limiters.

    Args:
        finder: finds what the machine has.
        start_sandbox: starts the sandbox once and returns its base URL.
        plans: which windows of plans are spent; None knows nothing of it.
    """

    def __init__(
        self,
        settings: Settings,
        finder: Finder,
        cooldowns: Cooldowns,
        *,
        start_sandbox: Callable[[], str],
        plans: PlanWindows | None = None,
    ) -> None:
        self.plans = plans or NoPlans()
        self._limits = settings.plans
        self._finder = finder
        self._cooldowns = cooldowns
        self._sandbox_mode = settings.sandbox
        self._web_base_url = settings.web_base_url
        self._sandbox = Account(
            name="sandbox",
            kind="sandbox",
            base_url=None,
            origin="built in",
            explicit=False,
            family=Family.SANDBOX,
            credential=SandboxKey(start_sandbox),
        )
        self._order = settings.account_order
        self._groups = _groups(settings.same_account)
        self._slots = -(-settings.account_in_flight // settings.workers)
        self._queue = settings.account_queue
        self._found: tuple[Account, ...] | None = None
        self._accounts: tuple[Account, ...] = ()
        self._keys: dict[str, Keys] = {}
        self._priorities: dict[str, int] = {}
        self._limiters: dict[str, Limiter] = {}

    def accounts(self) -> tuple[Account, ...]:
        """Asked for on every request: costs the finder's few `stat`s while nothing changes.

        The sandbox is alone where it is switched on, and stands in where it may (`auto`) and
        nothing else is found.
        """
        found = () if self._sandbox_mode == "on" else self._finder.accounts()
        if found is not self._found:
            stands_in = not found and self._sandbox_mode != "off"
            self._accounts = (self._sandbox,) if stands_in else found
            self._keys = {each.name: _keys(each, self._groups) for each in self._accounts}
            self._priorities = _priorities(self._accounts, self._order)
            self._found = found
        return self._accounts

    def of_token(self, token: WebToken) -> Account:
        """The account of a caller's own login at the web API; nothing of it is kept here."""
        return web.holder_account(token, self._web_base_url)

    def keys(self, account: Account) -> Keys:
        """The account's keys in the shared files."""
        if account.name == web.HOLDER:  # many logins have this name
            return _keys(account, self._groups)
        return self._keys.get(account.name) or _keys(account, self._groups)

    def priority(self, account: Account) -> int:
        """Its place among the accounts; a lower one is asked first."""
        return self._priorities.get(account.name, 0)

    def limiter(self, account: Account) -> Limiter:
        """The account's slots in this worker."""
        limiter = self._limiters.get(account.name)
        if limiter is None:
            limiter = self._limiters[account.name] = Limiter(self._slots, self._queue)
        return limiter

    def limiters(self) -> list[tuple[str, Limiter]]:
        """The slots of each account in this worker, by the account's name; those of Batch Chat, and
        of accounts that are gone, once they were used."""
        for account in self.accounts():
            self.limiter(account)
        return list(self._limiters.items())

    def cooldown_s(self, account: Account, model: str) -> float:
        """For how long the account is not to be asked for a model; 0.0 mostly."""
        cooldowns, plans = self._cooldowns, self.plans
        blocked_s = plans.blocked_s(account.name) if plans.seen else 0.0
        if cooldowns.is_clear:
            return blocked_s
        keys, remaining_s = self.keys(account), cooldowns.remaining_s
        return max(
            remaining_s(keys.payer),
            remaining_s(keys.of_model(model)),
            remaining_s(keys.host),
            blocked_s,
        )

    def limits_of(self, account: Account) -> PlanLimits | None:
        """The limits of the plan that an account belongs to; None if it has none."""
        return self._limits.limits_of(account.name, account.family)

    def plan_is_spent(self, account: Account) -> bool:
        """Whether a window of the account's plan is spent: by our count, by its vendor's word, or
        because it has just refused a call for it."""
        if self.plans.is_spent(account.name):
            return True
        payer = self.keys(account).payer
        return self._cooldowns.cause(payer) == PLAN_SPENT and self._cooldowns.remaining_s(payer) > 0

    def why_paused(self, account: Account, model: str) -> tuple[str, str, float]:
        """Why an account is not to be asked for a model: the cause, more words for it or "", and
        until when, in seconds from now, if that is longer than the pause."""
        cause = self.cooldown_cause(account, model)
        if cause != PLAN_SPENT:
            return cause, "", 0.0
        return cause, self.plans.spent_text(account.name), self.plans.free_in_s(account.name)

    def is_probed(self, account: Account, model: str) -> bool:
        """Whether it is not to be asked only because one call finds out whether its host is up."""
        keys, cooldowns = self.keys(account), self._cooldowns
        others = (keys.payer, keys.of_model(model))
        return cooldowns.is_probed(keys.host) and not any(map(cooldowns.remaining_s, others))

    def cooldown_cause(self, account: Account, model: str) -> str:
        """Why it is not to be asked for a model, by the longest of its cooldowns."""
        keys, cooldowns = self.keys(account), self._cooldowns
        longest = max((keys.payer, keys.of_model(model), keys.host), key=cooldowns.remaining_s)
        if self.plans.blocked_s(account.name) > cooldowns.remaining_s(longest):
            return PLAN_SPENT
        return cooldowns.cause(longest)

    def has_refused(self, account: Account, model: str) -> bool:
        """Whether the account answered lately that it has no such model, or may not use it."""
        key = self.keys(account).of_model(model)
        refused = self._cooldowns.cause(key) in (MODEL_NOT_FOUND, MODEL_DENIED)
        return refused and self._cooldowns.remaining_s(key) > 0


def token_of(account: Account, *, rejected: str | None = None) -> AccessToken:
    """The account's credential for a call now.

    Args:
        rejected: the token that the upstream refused; another one is returned.

    Raises:
        AccountUnavailable: it has none; the message says what the operator has to do.
    """
    try:
        return account.credential.current(rejected=rejected)
    except CredentialError as error:
        raise AccountUnavailable(
            f"The proxy's account '{account.name}' cannot be used: {error} {error.remedy}".strip(),
            code=error.code,
            retry_after_s=error.retry_after_s,
            should_retry=None if error.retry_after_s else False,
        ) from error


def base_url_of(account: Account) -> str:
    """Where an account is asked now: what its token says, if it has no base URL of its own.

    Raises:
        AccountUnavailable: as `token_of`.
    """
    return account.base_url or token_of(account).base_url


def _groups(same: tuple[str, ...]) -> Mapping[str, str]:
    """Account name -> its group, of `("a+b", "c+d")`."""
    return {name: group for group in same for name in group.split("+")}


def _keys(account: Account, groups: Mapping[str, str]) -> Keys:
    """The keys, by which other boxes know the account as well, unless it is on this machine."""
    url = account.base_url or account.name
    here = (this_boot(),) if account.base_url and is_local(account.base_url) else ()
    group = groups.get(account.name)
    return Keys(
        payer=key_of("payer", group) if group else key_of("payer", _payer(account), *here),
        host=key_of("host", url, *here),
        own=key_of("own", account.name, url, *here),
    )


def _payer(account: Account) -> str:
    """Who pays, as far as it shows: the same key, or keys of one workspace, have one set of limits.

    Two other keys may belong to one Alibaba account as well, which only their owner knows.
    """
    credential = account.credential
    if account.batch_wait_s is not None:
        return f"batch chat {account.name}"  # its limits are its own
    if isinstance(credential, StaticKey) and credential.key:
        if found := _WORKSPACE_KEY.match(credential.key):
            return f"workspace {found[1]}"
        return f"key {credential.key}"
    if isinstance(credential, web.WebCredential):
        return f"web {credential.digest}"
    return f"account {account.name} {account.base_url}"


def _priorities(accounts: tuple[Account, ...], order: tuple[str, ...]) -> dict[str, int]:
    """First the accounts that the operator named, then the others as they were found.

    Accounts of one kind of host that were found in a row are equals: calls are spread over them.
    """
    named = {name: place for place, name in enumerate(order)}
    priorities: dict[str, int] = {}
    kinds: list[tuple[Family, bool]] = []
    for account in accounts:
        kind = (account.family, account.explicit)
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
        priorities[account.name] = named.get(account.name, len(order) + len(kinds))
    return priorities
