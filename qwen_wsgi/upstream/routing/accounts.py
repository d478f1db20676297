"""The accounts that calls can go to: what was found on the machine, and the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from qwen_wsgi.credentials.oauth_login import CredentialSource, CredentialStatus
from qwen_wsgi.credentials.refresh.policy import TokenState
from qwen_wsgi.credentials.sources.discovery import FoundAccount, ProviderModel
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.hosts import Family, family


@dataclass(frozen=True)
class Account:
    """One upstream endpoint with one credential, and the models that are known of it."""

    name: str
    kind: Literal["key", "oauth", "sandbox"]
    #: None while a login's document, which names the endpoint, cannot be read.
    base_url: str | None
    #: Where it comes from, in words.
    origin: str
    #: Named by QWEN_UPSTREAM_BASE_URL.
    explicit: bool
    family: Family
    credential: CredentialSource
    #: Models that qwen-code's settings list for it.
    models: tuple[ProviderModel, ...]


class Finder(Protocol):
    """What `AccountBook` needs of `credentials.discovery.Discovery`."""

    def accounts(self) -> tuple[FoundAccount, ...]:
        """All accounts, in order of preference; the same object while nothing changed."""


class SandboxKey:
    """The sandbox's credential. Its server is started by the first call that needs it."""

    def __init__(self, start: Callable[[], str]) -> None:
        self._start = start

    def current(self, *, rejected: str | None = None) -> AccessToken:
        """A token that the sandbox takes; `rejected` changes nothing, there is no other."""
        return AccessToken(value="sandbox", base_url=self._start(), expires_at_ms=None)

    def status(self) -> CredentialStatus:
        """Always ready."""
        return CredentialStatus(
            state=TokenState.FRESH,
            shown="–",
            detail="built-in fake upstream, for trying things out",
            remedy="",
            expires_at_ms=None,
        )


class AccountBook:
    """All accounts, in order of preference.

    Args:
        finder: finds what the machine has.
        sandbox: `off`, `on` (only the sandbox, real accounts are left alone) or `auto` (only while
            nothing else is found).
        start_sandbox: starts the sandbox once and returns its base URL.
    """

    def __init__(self, finder: Finder, *, sandbox: str, start_sandbox: Callable[[], str]) -> None:
        self._finder = finder
        self._sandbox_mode = sandbox
        self._sandbox = Account(
            name="sandbox",
            kind="sandbox",
            base_url=None,
            origin="built in",
            explicit=False,
            family=Family.SANDBOX,
            credential=SandboxKey(start_sandbox),
            models=(),
        )
        self._seen: tuple[FoundAccount, ...] | None = None
        self._accounts: tuple[Account, ...] = ()

    def accounts(self) -> tuple[Account, ...]:
        """Called on every request: costs the finder's few `stat`s while nothing changes."""
        if self._sandbox_mode == "on":
            return (self._sandbox,)
        found = self._finder.accounts()
        if found is not self._seen:
            accounts = tuple(_account(one) for one in found)
            if not accounts and self._sandbox_mode == "auto":
                accounts = (self._sandbox,)
            self._accounts, self._seen = accounts, found
        return self._accounts


#: A key by one of these names speaks to a host of its plan, also when a gateway of one's own stands
#: in front of it.
_NAMED: Final = {
    "dashscope": Family.DASHSCOPE,
    "coding-plan": Family.CODING_PLAN,
    "token-plan": Family.TOKEN_PLAN,
}


def _family(found: FoundAccount) -> Family:
    by_host = family(found.base_url) if found.base_url else Family.OTHER
    if by_host is not Family.OTHER or found.explicit:
        return by_host
    return Family.PORTAL if found.kind == "oauth" else _NAMED.get(found.name, by_host)


def _account(found: FoundAccount) -> Account:
    return Account(
        name=found.name,
        kind=found.kind,
        base_url=found.base_url,
        origin=found.origin,
        explicit=found.explicit,
        family=_family(found),
        credential=found.credential,
        models=found.models,
    )
