"""Finds the accounts of this machine in the environment, qwen-code's settings and its logins.

In this order of preference:

1. `QWEN_UPSTREAM_BASE_URL`, an explicit OpenAI-compatible server;
2. API keys in the environment by the names of qwen-code and others (`providers`);
3. qwen-code's settings files, with keys resolved as qwen-code does (`qwen_settings`);
4. the key in the files of the `dashscope` package (`dashscope_files`);
5. qwen-code's login `oauth_creds.json`, further ones (`oauth_creds_<name>.json`), `QWEN_CLI_AUTH`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_wsgi import net
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account as Account
from qwen_wsgi.credentials.account import ProviderModel as ProviderModel
from qwen_wsgi.credentials.files.watched import Unusable, WatchedFile
from qwen_wsgi.credentials.kept_web_token import KeptWebToken
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.shared.sharing import Sharing
from qwen_wsgi.credentials.sources import environment, login_files, providers
from qwen_wsgi.credentials.sources.account_list import Build, Built, changed_at
from qwen_wsgi.errors import CannotStartYet, SettingsError
from qwen_wsgi.protocol.web.token import WebToken
from qwen_wsgi.settings import Settings


class Discovery:
    """Lists the current accounts. It only reads files; the refresh of a login writes its own.

    Invariant: `accounts()` returns the same object until a watched file changes, built from one
    reading of each file. The state is one reference to an immutable value, replaced in one step;
    greenlets or threads that race at worst build the same value twice. Nothing is opened or locked
    between calls, so a fork at any time is safe.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        look_every_s: float = 0.0,
        sharing: Sharing | None = None,
        state_dir: Path | None = None,
    ) -> None:
        """
        Args:
            sharing: shares the logins with other boxes.
            state_dir: where a renewed web token is kept; None keeps it in this process.
            look_every_s: for how long an answer is reused without checking the files. It does not
                delay changes of a login: each login checks its own file for every call.
        """
        self._settings = settings
        self._sharing = sharing
        self._clock = clock
        self._state_dir = state_dir
        self._web_token: KeptWebToken | None = None
        self._files: dict[Path, WatchedFile[Any]] = {}
        self._logins: dict[Path, OAuthLogin] = {}
        self._built: Built | None = None
        self._look_every_s = look_every_s
        self._looked_at_s = -math.inf

    def accounts(self) -> tuple[Account, ...]:
        """All accounts, best first. One `stat` of each watched file while nothing changes."""
        return self._current().accounts

    def problems(self) -> tuple[str, ...]:
        """Sentences about files, entries and keys that cannot be used, for `qwen-proxy status`."""
        return self._current().problems

    def check(self) -> None:
        """Raise an error for what the operator must correct before the server can start.

        Raises:
            SettingsError: a file that exists cannot be read, a settings.json is not a JSON object,
                QWEN_CLI_AUTH is not a login, or a variable holds an unusable base URL.
            CannotStartYet: a file cannot be read now because of the disk or the machine.
        """
        passing: list[str] = []
        faults = list(_bad_urls(self._settings))
        try:
            login_files.environment_login(self._settings)
        except Unusable as error:
            faults.append(f"QWEN_CLI_AUTH {error}: {login_files.AUTH_REMEDY}")
        for file, reading in self._current().watched:
            # An unusable login is only a missing account, and does not stop the server.
            if reading.problem and (reading.unreadable or file.path not in self._logins):
                fault = f"{file.shown} {reading.problem}. {reading.remedy}".rstrip(".")
                (passing if reading.passing else faults).append(fault)
        if faults:
            raise SettingsError("; ".join(faults + passing))
        if passing:
            raise CannotStartYet("; ".join(passing))

    def logins(self) -> tuple[OAuthLogin, ...]:
        """The logins among the accounts, for maintenance and commands."""
        return self._current().logins

    def duplicates(self) -> tuple[str, ...]:
        """Sentences about logins that are left out because another account has the same one."""
        return self._current().duplicates

    def notes(self) -> tuple[environment.Note, ...]:
        """What there is to say about variables and keys that have no effect, or another than it
        seems."""
        current = self._current()
        names = [account.name for account in current.accounts]
        return (
            *environment.notes(self._settings),
            *environment.unknown_accounts(self._settings, names),
            *current.unused,
        )

    def qwen_home(self) -> Path:
        """qwen-code's directory."""
        return self._build().qwen_home()

    def maintain(self) -> None:
        """Bring the logins in step with other boxes, and refresh those that are due; for idle
        processes, which make no calls."""
        self.find_shared()
        for login in self.logins():
            login.maintain()

    def find_shared(self) -> None:
        """Look at the logins of other boxes that this one does not have, or has forgotten."""
        if self._sharing is None:
            return
        used = {each.name for each in self.accounts() if each.credential in self.logins()}
        build, home = self._build(), self.qwen_home()
        for name in sorted(self._sharing.names() - used):
            copy = self._sharing.copy_of(name)
            own = build.login_at(home / copy.name)
            # One that was forgotten here must not come back by the copy.
            ours = own.store.snapshot().journal
            path = copy if not ours.gone and own.store.identity() is None else home / copy.name
            login = build.login_at(path)
            before = login.store.snapshot().newest.login
            if (shared := login.refresher.context.shared) is not None:
                shared.sync()
            if before is None and login.store.snapshot().newest.login is not None:
                self._built = None  # there is a new one

    def _build(self) -> Build:
        return Build(
            self._settings,
            self._clock,
            self._files,
            self._logins,
            self._sharing,
            self._kept_web_token,
        )

    def _kept_web_token(self, configured: WebToken) -> KeptWebToken:
        if self._web_token is None:
            self._web_token = KeptWebToken(self._state_dir, configured)
        return self._web_token

    def _current(self) -> Built:
        built, now_s = self._built, self._clock.monotonic()
        recent = now_s - self._looked_at_s < self._look_every_s
        if built is not None and built.accounts and recent:
            return built
        self._looked_at_s = now_s
        if built is not None and changed_at(built.directory[0]) == built.directory[1]:
            for file, reading in (*built.watched, *built.journals):
                if file.read() is not reading:
                    break
            else:
                return built
        fresh = self._build().run()
        if built is not None and built.accounts == fresh.accounts:
            # A change without effect here, such as another theme.
            fresh = fresh._replace(accounts=built.accounts)
        self._built = fresh
        return fresh


def _bad_urls(settings: Settings) -> Iterator[str]:
    """Sentences about environment variables with an unusable base URL."""
    named = [("QWEN_UPSTREAM_BASE_URL", settings.upstream_base_url)]
    named.append(("OPENAI_BASE_URL", settings.openai_base_url))
    for provider in providers.PROVIDERS:
        if settings.environ.get(provider.key_env, "").strip():
            named.append((provider.base_url_env, settings.environ.get(provider.base_url_env, "")))
    for name, raw in named:
        if raw.strip():
            try:
                net.base_url(raw)
            except ValueError as error:
                yield f"{name} cannot be used: {error}"
