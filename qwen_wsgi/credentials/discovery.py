"""Finds the accounts of this machine: environment, qwen-code's settings, qwen-code's login.

In this order of preference:

1. `QWEN_UPSTREAM_BASE_URL`, an explicit OpenAI-compatible server;
2. API keys in the environment by qwen-code's names (`providers`);
3. qwen-code's settings files, with keys resolved as qwen-code does (`qwen_settings`);
4. qwen-code's login `oauth_creds.json`, further ones (`oauth_creds_<name>.json`), `QWEN_CLI_AUTH`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import dotenv, endpoint, providers, qwen_settings
from qwen_wsgi.credentials.document import CredentialDocument
from qwen_wsgi.credentials.files import FileIdentity, Reading, Unusable, WatchedFile
from qwen_wsgi.credentials.journal import Journal, fingerprint
from qwen_wsgi.credentials.keys import Keys, usable_key
from qwen_wsgi.credentials.qwen_settings import ProviderModel as ProviderModel
from qwen_wsgi.credentials.qwen_settings import QwenSettings, Variables
from qwen_wsgi.credentials.refresher import Refresher
from qwen_wsgi.credentials.source import CredentialSource, OAuthLogin, StaticKey
from qwen_wsgi.credentials.store import LoginPaths, LoginStore, from_environment
from qwen_wsgi.credentials.token_endpoint import TokenEndpoint
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings

T = TypeVar("T")

#: Further logins beside qwen-code's one, made by `qwen-proxy login --account NAME`, and their
#: journals, which outlive the file.
_LOGIN_FILE: Final = re.compile(r"oauth_creds(_[a-z0-9-]{1,32})\.json")
_JOURNAL_FILE: Final = re.compile(r"journal(_[a-z0-9-]{1,32})\.json")

_AUTH_REMEDY: Final = "set it to the whole content of an oauth_creds.json, or unset it"

#: Where an administrator's settings for all users are; qwen-code's path on Linux.
SYSTEM_SETTINGS: Final = "/etc/qwen-code/settings.json"


@dataclass(frozen=True)
class FoundAccount:
    """One endpoint with one credential.

    Attributes:
        name: short, unique, of `[a-z0-9-]`.
        base_url: None only for a login that names no endpoint that can be used.
        origin: where it was found, for a person.
        explicit: it is QWEN_UPSTREAM_BASE_URL.
        models: what qwen-code's settings list for it; empty when they say nothing.
    """

    name: str
    kind: Literal["key", "oauth"]
    base_url: str | None
    origin: str
    explicit: bool
    credential: CredentialSource
    models: tuple[ProviderModel, ...] = ()


class _Built(NamedTuple):
    """The result of one look at everything, and the readings that it rests on."""

    accounts: tuple[FoundAccount, ...]
    problems: tuple[str, ...]
    watched: tuple[tuple[WatchedFile[Any], Reading[Any]], ...]
    #: Journals: a change counts, a fault of theirs is not the operator's to correct first.
    journals: tuple[tuple[WatchedFile[Any], Reading[Any]], ...]
    #: qwen-code's directory and when something in it was last created, renamed or removed.
    directory: tuple[str, int]
    logins: tuple[OAuthLogin, ...]
    #: Sentences on logins that are left out because another account has them.
    twins: tuple[str, ...]


class _Candidate(NamedTuple):
    """A login that was found, before it is compared with the others."""

    name: str
    login: OAuthLogin
    origin: str
    #: Of its refresh token; empty without one.
    fp: str
    journal: Journal

    def has_left_behind(self, fp: str) -> bool:
        """Whether a refresh token is one that this login once had."""
        received, journal = self.journal.received, self.journal
        was_spent = fp in journal.spent or (received is not None and received.spent == fp)
        return was_spent or fp in journal.tombstones


class Discovery:
    """Knows the accounts now. Reads files; what writes is the renewal of a login alone.

    Invariant: `accounts()` returns the same object until a watched file changes, and what it
    returns was built from one reading of each file. The state is one reference to an immutable
    value, replaced in one step; greenlets or threads that race at worst build the same value
    twice. Nothing is opened or locked between calls, so a fork at any time is safe.
    """

    def __init__(self, settings: Settings, clock: Clock, *, look_every_s: float = 0.0) -> None:
        """
        Args:
            look_every_s: for how long an answer is good without another look at the files. It does
                not delay what changes in a login: each login looks at its own file for every call.
        """
        self._settings = settings
        self._clock = clock
        self._files: dict[Path, WatchedFile[Any]] = {}
        self._logins: dict[Path, OAuthLogin] = {}
        self._built: _Built | None = None
        self._look_every_s = look_every_s
        self._looked_at_s = -math.inf

    def accounts(self) -> tuple[FoundAccount, ...]:
        """All accounts, best first. One look at each watched file while nothing changes."""
        return self._current().accounts

    def problems(self) -> tuple[str, ...]:
        """Sentences for `qwen-proxy status`: files, entries and keys that cannot be used."""
        return self._current().problems

    def check(self) -> None:
        """Refuse to start on what the operator must correct first.

        Raises:
            SettingsError: a file that exists cannot be read, a settings.json is no JSON object,
                QWEN_CLI_AUTH is no login, or a variable holds an unusable base URL.
        """
        faults = list(_bad_urls(self._settings))
        try:
            _environment_login(self._settings)
        except Unusable as error:
            faults.append(f"QWEN_CLI_AUTH {error}: {_AUTH_REMEDY}")
        for file, reading in self._current().watched:
            # A login that says nothing usable is an account that is missing, no reason to stop.
            if reading.problem and (reading.unreadable or file.path not in self._logins):
                faults.append(f"{file.shown} {reading.problem}. {reading.remedy}".rstrip("."))
        if faults:
            raise SettingsError("; ".join(faults))

    def logins(self) -> tuple[OAuthLogin, ...]:
        """The logins among the accounts, for those who look after them."""
        return self._current().logins

    def twins(self) -> tuple[str, ...]:
        """Sentences on logins that are left out because another account has them."""
        return self._current().twins

    def qwen_home(self) -> Path:
        """qwen-code's directory."""
        return _Build(self._settings, self._clock, self._files, self._logins).qwen_home()

    def _current(self) -> _Built:
        built, now_s = self._built, self._clock.monotonic()
        if built is not None and now_s - self._looked_at_s < self._look_every_s:
            return built
        self._looked_at_s = now_s
        if built is not None and _changed_at(built.directory[0]) == built.directory[1]:
            for file, reading in (*built.watched, *built.journals):
                if file.read() is not reading:
                    break
            else:
                return built
        fresh = _Build(self._settings, self._clock, self._files, self._logins).run()
        if built is not None and built.accounts == fresh.accounts:
            # A change that changes nothing here, such as another theme.
            fresh = fresh._replace(accounts=built.accounts)
        self._built = fresh
        return fresh


class _Build:
    """One look at everything: lives for one call, holds the readings and the growing result."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        files: dict[Path, WatchedFile[Any]],
        logins: dict[Path, OAuthLogin],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._files = files
        self._logins = logins
        self._readings: dict[Path, tuple[WatchedFile[Any], Reading[Any]]] = {}
        self._journals: list[tuple[WatchedFile[Any], Reading[Any]]] = []
        self._accounts: list[FoundAccount] = []
        self._problems: list[str] = []
        self._twins: list[str] = []

    def run(self) -> _Built:
        home = self.qwen_home()
        # Before anything in it is looked at: what changes meanwhile is then looked at again.
        directory = (os.fspath(home), _changed_at(os.fspath(home)))
        variables = self._variables(home)
        self._add_upstream()
        self._add_environment_keys()
        self._add_settings(home, variables)
        self._add_logins(home)
        watched = tuple(self._readings.values())
        broken = [f"{file.shown} {r.problem}. {r.remedy}" for file, r in watched if r.problem]
        return _Built(
            tuple(self._accounts),
            (*broken, *self._problems, *self._twins),
            watched,
            tuple(self._journals),
            directory,
            tuple(a.credential for a in self._accounts if isinstance(a.credential, OAuthLogin)),
            tuple(self._twins),
        )

    # Files

    def _read(self, path: Path, parse: Callable[[bytes, FileIdentity], T]) -> T | None:
        """A file's last good content; read once per build, so that the result is of one piece."""
        if path not in self._readings:
            if path not in self._files:
                self._files[path] = WatchedFile(path, parse, self._clock, self._shown(path))
            file = self._files[path]
            self._readings[path] = (file, file.read())
        value: T | None = self._readings[path][1].value
        return value

    def _shown(self, path: Path) -> str:
        """The path with `~` for the home directory."""
        if path.is_relative_to(self._settings.home):
            return f"~/{path.relative_to(self._settings.home)}"
        return str(path)

    def _dotenv(self, path: Path) -> Mapping[str, str]:
        return self._read(path, _parse_dotenv) or {}

    def qwen_home(self) -> Path:
        """qwen-code's directory: QWEN_HOME of the environment, else of a `.env` at a usual place.

        A relative path is relative to the working directory, as in qwen-code.
        """
        home = self._settings.home
        default = home / ".qwen"
        named = self._settings.qwen_home.strip()
        for path in () if named else (default / ".env", home / ".env"):
            named = named or self._dotenv(path).get("QWEN_HOME", "").strip()
        if not named:
            return default
        in_home = named == "~" or named.startswith("~/")
        path = Path(os.path.normpath(home / named[2:]) if in_home else os.path.abspath(named))
        if not os.path.isdir(path):
            self._problems.append(f"QWEN_HOME is {named}, which is no directory.")
        return path

    def _variables(self, qwen_home: Path) -> Variables:
        home = self._settings.home
        paths = dict.fromkeys((qwen_home / ".env", home / ".qwen/.env", home / ".env"))
        return Variables(
            self._settings.environ,
            tuple((self._shown(path), self._dotenv(path)) for path in paths),
        )

    def _qwen_settings(self, qwen_home: Path, variables: Variables) -> QwenSettings:
        environ = self._settings.environ
        system = Path(environ.get("QWEN_CODE_SYSTEM_SETTINGS_PATH") or SYSTEM_SETTINGS)
        defaults = environ.get("QWEN_CODE_SYSTEM_DEFAULTS_PATH")
        paths = (
            Path(defaults) if defaults else system.parent / "system-defaults.json",
            qwen_home / "settings.json",
            system,
        )
        layers = [
            qwen_settings.Layer(self._shown(path), content)
            for path in paths
            if (content := self._read(path, qwen_settings.parse)) is not None
        ]
        return qwen_settings.merge(tuple(layers), variables)

    # Accounts

    def _add(self, found: FoundAccount) -> None:
        """Add an account, or its models and origin to the one with the same endpoint and key."""
        for index, known in enumerate(self._accounts):
            if _same_key(known, found):
                self._accounts[index] = replace(
                    known,
                    origin=f"{known.origin} and {found.origin}",
                    models=_distinct(known.models + found.models),
                )
                return
        names = {each.name for each in self._accounts}
        name, number = found.name, 2
        while name in names:
            name, number = f"{found.name}-{number}", number + 1
        self._accounts.append(replace(found, name=name))

    def _add_upstream(self) -> None:
        settings = self._settings
        if settings.upstream_base_url:
            self._add_from_environment(
                "upstream",
                "QWEN_UPSTREAM_BASE_URL",
                settings.upstream_base_url,
                "QWEN_UPSTREAM_API_KEY",
                settings.upstream_api_key,
            )
        elif settings.upstream_api_key:
            self._problems.append(
                "QWEN_UPSTREAM_API_KEY is set without QWEN_UPSTREAM_BASE_URL and is ignored."
            )

    def _add_environment_keys(self) -> None:
        environ = self._settings.environ
        for each in providers.PROVIDERS:
            if secret := environ.get(each.key_env, "").strip():
                url = environ.get(each.base_url_env, "").strip() or each.base_urls[0]
                self._add_from_environment(each.name, each.base_url_env, url, each.key_env, secret)

    def _add_from_environment(
        self, name: str, url_env: str, raw_url: str, key_env: str, secret: str
    ) -> None:
        explicit = name == "upstream"
        try:
            url = endpoint.base_url(raw_url)
        except ValueError as error:
            self._problems.append(f"{url_env} cannot be used: {error}. Its account is left out.")
            return
        key = usable_key(secret, url, key_env, "Correct it in the server's environment.")
        origin = f"environment {url_env if explicit else key_env}"
        if key.key is None:
            self._problems.append(f"{origin}: {key.fault}. {key.remedy}")
        self._add(FoundAccount(name, "key", url, origin, explicit, key))

    def _add_settings(self, qwen_home: Path, variables: Variables) -> None:
        qwen = self._qwen_settings(qwen_home, variables)
        self._problems.extend(qwen.problems)
        keys = Keys(qwen, variables, self._shown(qwen_home))
        groups: dict[tuple[str, str | None], list[ProviderModel]] = {}
        for entry in qwen.entries:
            whose = f"{qwen.entries_place}: model {entry.model.id} is skipped, its"
            url = self._checked_url(entry.base_url or keys.base_url_for_all(), whose)
            if url is not None:
                groups.setdefault((url, entry.env_key), []).append(entry.model)
        for (url, env_key), models in groups.items():
            key, place = keys.of_entry(url, env_key)
            self._hint_at_region(url, env_key, key)
            self._add_key(f"{qwen.entries_place} ({place})", url, key, tuple(models))
        for pair in keys.pairs():
            url = self._checked_url(pair.base_url, f"{pair.key.place}: its")
            if url is not None:
                self._add_key(pair.key.place, url, keys.usable(url, pair.key), pair.models)

    def _checked_url(self, raw: str, whose: str) -> str | None:
        try:
            return endpoint.base_url(raw)
        except ValueError as error:
            self._problems.append(f"{whose} base URL cannot be used: {error}.")
            return None

    def _add_key(
        self, origin: str, url: str, key: StaticKey, models: tuple[ProviderModel, ...]
    ) -> None:
        if key.key is None:
            self._problems.append(f"{origin}: {key.fault}. {key.remedy}")
        name = f"settings-{_short_name(url)}"
        self._add(FoundAccount(name, "key", url, origin, False, key, _distinct(models)))

    def _hint_at_region(self, url: str, env_key: str | None, key: StaticKey) -> None:
        """A key works in its own region only, so one of two regions must be wrong."""
        provider = providers.by_key_env(env_key or "")
        if provider is None or url not in provider.base_urls or key.key is None:
            return
        for account in self._accounts:
            other = account.base_url
            known = account.name == provider.name and other in provider.base_urls
            if known and other != url and account.credential == StaticKey(key.key, other or ""):
                self._problems.append(
                    f"{provider.key_env} is used with {other} and, by qwen-code's settings, with "
                    f"{url}; a key works in one region only. Set {provider.base_url_env} to the "
                    "right one."
                )

    def _add_logins(self, qwen_home: Path) -> None:
        found = []
        for path in _login_files(qwen_home):
            login = self._login(path, self._shown(path), LoginPaths.beside(path), None)
            found.append(self._candidate(_login_name(path), login, login.shown))
        try:
            if (initial := _environment_login(self._settings)) is not None:
                path = Path(self._settings.state_dir) / "oauth_creds_env.json"
                login = self._login(path, "in QWEN_CLI_AUTH", LoginPaths.beside(path), initial)
                found.append(self._candidate("oauth-env", login, "environment QWEN_CLI_AUTH"))
        except Unusable as error:
            self._problems.append(f"QWEN_CLI_AUTH {error}: {_AUTH_REMEDY}.")
        candidates = [each for each in found if each is not None]
        for each in candidates:
            if why := _twin(each, candidates):
                self._twins.append(f"{each.origin} holds {why}; it is left out.")
            else:
                url = each.login.base_url()
                self._add(FoundAccount(each.name, "oauth", url, each.origin, False, each.login))

    def _login(
        self, path: Path, shown: str, paths: LoginPaths, initial: CredentialDocument | None
    ) -> OAuthLogin:
        if path not in self._logins:
            store = LoginStore(paths, self._clock, shown=shown, initial=initial)
            self._logins[path] = OAuthLogin(
                store,
                Refresher(store, _token_endpoint(self._settings, self._clock), self._clock),
                fallback_base_url=self._settings.openai_base_url,
            )
        return self._logins[path]

    def _candidate(self, name: str, login: OAuthLogin, origin: str) -> _Candidate | None:
        """A login that is there, or was; None when there never was one."""
        shared, ours = login.store.watched()
        reading = shared.read()
        self._readings[shared.path] = (shared, reading)
        self._journals.append((ours, ours.read()))
        sight = login.store.look()
        document = sight.newest.login
        if document is None and not reading.exists:
            return None
        fp = fingerprint(document.refresh_token) if document is not None else ""
        return _Candidate(name, login, origin, fp, sight.journal)


def _twin(one: _Candidate, candidates: Sequence[_Candidate]) -> str:
    """Whose login this is as well, as the end of a sentence; empty when it is nobody else's.

    One refresh token can be spent once: whoever is second would lose the login for both. A copy
    that was left behind by a refresh is worse than equal: to send its token is the very misuse
    that a login service looks for.
    """
    before = True
    for other in candidates if one.fp else ():
        if other is one:
            before = False
        elif other.fp == one.fp:
            if before:
                return f"the same login as the account {other.name}"
        elif other.has_left_behind(one.fp) and not one.has_left_behind(other.fp):
            return f"an older copy of the login of the account {other.name}"
    return ""


def _login_files(qwen_home: Path) -> list[Path]:
    """qwen-code's own file first, then those of further accounts by name.

    A file that was taken away from a login that we renewed is among them: its journal counts.
    """
    names = {
        f"oauth_creds{match[1]}.json"
        for directory, pattern in (
            (qwen_home, _LOGIN_FILE),
            (LoginPaths.beside(qwen_home / "oauth_creds.json").journal.parent, _JOURNAL_FILE),
        )
        for match in map(pattern.fullmatch, _names(directory))
        if match is not None
    }
    return [qwen_home / "oauth_creds.json", *(qwen_home / name for name in sorted(names))]


def _names(directory: Path) -> list[str]:
    with suppress(OSError):
        return os.listdir(directory)
    return []


def _token_endpoint(settings: Settings, clock: Clock) -> TokenEndpoint:
    try:
        return TokenEndpoint(settings.oauth_base_url, clock=clock)
    except ValueError as error:
        raise SettingsError(f"QWEN_OAUTH_BASE_URL cannot be used: {error}") from None


def _login_name(path: Path) -> str:
    suffix = path.stem.removeprefix("oauth_creds_")
    return "oauth" if path.stem == "oauth_creds" else f"oauth-{suffix}"


def _environment_login(settings: Settings) -> CredentialDocument | None:
    """The login in QWEN_CLI_AUTH, if it is set.

    Raises:
        Unusable: it is set to something else.
    """
    text = settings.qwen_cli_auth.strip()
    return from_environment(text) if text else None


def _changed_at(directory: str) -> int:
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0


def _distinct(models: tuple[ProviderModel, ...]) -> tuple[ProviderModel, ...]:
    """The first model of each id."""
    by_id: dict[str, ProviderModel] = {}
    for model in models:
        by_id.setdefault(model.id, model)
    return tuple(by_id.values())


def _short_name(url: str) -> str:
    """The provider's name, or the host in `[a-z0-9-]`."""
    provider = providers.by_base_url(url)
    if provider is not None:
        return provider.name
    host = "".join(c if c.isalnum() else "-" for c in endpoint.host_of(url))
    return host.strip("-")[:40].strip("-")


def _same_key(one: FoundAccount, other: FoundAccount) -> bool:
    mine, theirs = one.credential, other.credential
    return (
        isinstance(mine, StaticKey)
        and isinstance(theirs, StaticKey)
        and mine.key is not None
        and (mine.base_url, mine.key) == (theirs.base_url, theirs.key)
    )


def _bad_urls(settings: Settings) -> Iterator[str]:
    """Variables of the operator that hold an unusable base URL."""
    named = [("QWEN_UPSTREAM_BASE_URL", settings.upstream_base_url)]
    named.append(("OPENAI_BASE_URL", settings.openai_base_url))
    for provider in providers.PROVIDERS:
        if settings.environ.get(provider.key_env, "").strip():
            named.append((provider.base_url_env, settings.environ.get(provider.base_url_env, "")))
    for name, raw in named:
        if raw.strip():
            try:
                endpoint.base_url(raw)
            except ValueError as error:
                yield f"{name} cannot be used: {error}"


def _parse_dotenv(content: bytes, _identity: FileIdentity) -> Mapping[str, str]:
    # Like qwen-code, which never fails on a .env for its encoding.
    return dotenv.parse(content.decode("utf-8-sig", errors="replace"))
