"""A new login of a person: where it is saved, and what is said of it, wherever it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.login_store import LoginPaths
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.oauth import device_flow
from qwen_wsgi.credentials.oauth.token_endpoint import TokenAnswer, TokenEndpoint
from qwen_wsgi.credentials.refresh.timing import PROXY_LOCK_S
from qwen_wsgi.credentials.sources import discovery
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings

#: What a person must know before logging in.
TIER_CLOSED: Final = (
    "Qwen's free tier closed on 2026-04-15. Without a paid account this login may succeed, but "
    "every call will be refused: use an API key then."
)
#: What a poll without a token means, by `device_flow.Waiting.why`.
NOTES: Final[Mapping[str, str]] = {
    "pending": "",
    "slow_down": "the service asks us to poll less often",
    "offline": "offline, trying again",
    "server_error": "the service fails, trying again",
}


def path_of(settings: Settings, account: str | None, clock: Clock) -> Path:
    """The file of an account's login.

    Raises:
        SettingsError: the name cannot be used.
    """
    try:
        name = device_flow.credentials_name(account)
    except ValueError as error:
        raise SettingsError(f"account name {account!r} cannot be used: {error}") from None
    return discovery.Discovery(settings, clock).qwen_home() / name


def endpoint_of(settings: Settings, clock: Clock) -> TokenEndpoint:
    """The service that logs in.

    Raises:
        SettingsError: its address cannot be used.
    """
    try:
        return TokenEndpoint(settings.oauth_base_url, clock=clock)
    except ValueError as error:
        raise SettingsError(f"QWEN_OAUTH_BASE_URL cannot be used: {error}") from None


def save(path: Path, answer: TokenAnswer, clock: Clock) -> None:
    """Write the login under our lock, so that no refresh of ours overwrites it.

    Raises:
        LoginNotSaved: why; the file is unchanged.
    """
    lock = ProxyLock(LoginPaths.beside(path).proxy_lock)
    locked = False
    with suppress(OSError):
        # Without the lock it is still as safe as qwen-code's own login, which takes none.
        durable.make_directory(path.parent)
        locked = lock.acquire(PROXY_LOCK_S)
    try:
        device_flow.write_login(path, answer, clock=clock)
    finally:
        if locked:
            lock.release()
