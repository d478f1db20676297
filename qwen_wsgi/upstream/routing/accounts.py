"""The accounts that calls can go to: what was found on the machine, and the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.account import Account as FoundAccount
from qwen_wsgi.credentials.credential import CredentialStatus, TokenState
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.hosts import Family


class Finder(Protocol):
    """What `AccountBook` needs of `credentials.discovery.Discovery`."""

    def accounts(self) -> tuple[FoundAccount, ...]:
        """All accounts, in order of preference; the same object while nothing changed."""


class SandboxKey:
    """The sandbox's credential. Its server is started by the first call that needs it."""

    renewable = False

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
            accounts = found
            if not accounts and self._sandbox_mode == "auto":
                accounts = (self._sandbox,)
            self._accounts, self._seen = accounts, found
        return self._accounts
