"""Stand-ins for what constructors take, and short ways to the real values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen_wsgi import settings as settings_module
from qwen_wsgi.credentials.account import Account, ProviderModel
from qwen_wsgi.credentials.credential import CredentialStatus, TokenState
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.hosts import Family
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from tests.kit.secrets import secret

SECRET = secret("upstream")


class FakeCredential:
    """A credential that has a token, or an error for who asks."""

    renewable = False

    def __init__(self, token: str | None = SECRET, base_url: str = "https://up.example/v1") -> None:
        self.token = token
        self.base_url = base_url

    def current(self, *, rejected: str | None = None) -> AccessToken:
        if self.token is None:
            raise CredentialError(
                "The key is not set.", code="credentials_missing", remedy="Set SOME_KEY."
            )
        return AccessToken(self.token, self.base_url, None)

    def answered(self, token: AccessToken) -> None:
        """Its token is not renewable, so nobody tells."""

    def status(self) -> CredentialStatus:
        state = TokenState.FRESH if self.token is not None else TokenState.MISSING
        return CredentialStatus(state, "…cdef", "as a test set it", "", None)


class FakeFinder:
    """Finds the accounts that a test lists; the same tuple while nothing changes, as promised."""

    def __init__(self, *accounts: Account) -> None:
        self.found = accounts

    def accounts(self) -> tuple[Account, ...]:
        return self.found


def pool_of(
    *accounts: Account, settings: Settings | None = None, cooldowns: Cooldowns | None = None
) -> AccountPool:
    """A pool of these accounts."""
    return AccountPool(
        settings or settings_of(),
        FakeFinder(*accounts),
        cooldowns or Cooldowns(None),
        start_sandbox=lambda: "http://127.0.0.1:1/v1",
    )


def settings_of(**environ: Any) -> Settings:
    return settings_module.load({name: str(value) for name, value in environ.items()})


def account_of(
    name: str = "dashscope",
    *,
    token: str | None = SECRET,
    base_url: str = "https://up.example/v1",
    family: Family = Family.DASHSCOPE,
    models: Sequence[ProviderModel] = (),
    explicit: bool = False,
) -> Account:
    return Account(
        name=name,
        kind="key",
        base_url=base_url,
        origin="a test",
        explicit=explicit,
        family=family,
        credential=FakeCredential(token, base_url),
        models=tuple(models),
    )
