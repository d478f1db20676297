"""Builds the list of accounts, best first, from one reading of everything that may name one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from qwen_wsgi import net
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import web
from qwen_wsgi.credentials.account import Account, ProviderModel, family_for
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import LoginPaths, LoginStore
from qwen_wsgi.credentials.files.watched import (
    FileIdentity,
    Reading,
    Unusable,
    WatchedFile,
)
from qwen_wsgi.credentials.kept_web_token import KeptWebToken
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.shared.sharing import Sharing
from qwen_wsgi.credentials.sources import (
    dashscope_files,
    dotenv,
    environment,
    login_files,
    providers,
    qwen_settings,
)
from qwen_wsgi.credentials.sources.api_keys import Keys, usable_key
from qwen_wsgi.credentials.sources.login_files import Candidate
from qwen_wsgi.credentials.sources.qwen_settings import KEY_ENDING, QwenSettings, Variables
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.hosts import Family, openai_base_url
from qwen_wsgi.protocol.web import token as web_token
from qwen_wsgi.protocol.web.token import WebToken
from qwen_wsgi.redaction import DISCOVERED
from qwen_wsgi.settings import Settings

T = TypeVar("T")

#: The administrator's settings for all users; qwen-code's path on Linux.
SYSTEM_SETTINGS: Final = "/etc/qwen-code/settings.json"


class Built(NamedTuple):
    """The result of one build, and the readings that it is based on."""

    accounts: tuple[Account, ...]
    problems: tuple[str, ...]
    watched: tuple[tuple[WatchedFile[Any], Reading[Any]], ...]
    #: Journals, and files of other programs: a change causes a new build, a problem does not stop
    #: the server's start.
    journals: tuple[tuple[WatchedFile[Any], Reading[Any]], ...]
    #: qwen-code's directory and when something in it was last created, renamed or removed.
    directory: tuple[str, int]
    logins: tuple[OAuthLogin, ...]
    #: Sentences about logins that are left out because another account has the same one.
    duplicates: tuple[str, ...]
    #: About keys in files of which no account was made.
    unused: tuple[environment.Note, ...]


class Build:
    """One build of the list: lives for one call, holds the readings and the growing result."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        files: dict[Path, WatchedFile[Any]],
        logins: dict[Path, OAuthLogin],
        sharing: Sharing | None = None,
        web_token_of: Callable[[WebToken], KeptWebToken | None] = lambda token: None,
    ) -> None:
        self._web_token_of = web_token_of
        self._settings = settings
        self._sharing = sharing
        self._clock = clock
        self._files = files
        self._logins = logins
        self._readings: dict[Path, tuple[WatchedFile[Any], Reading[Any]]] = {}
        self._journals: list[tuple[WatchedFile[Any], Reading[Any]]] = []
        self._host_families = {host: Family(each) for host, each in settings.host_families}
        self._accounts: list[Account] = []
        self._problems: list[str] = []
        self._duplicates: list[str] = []
        self._unused: list[environment.Note] = []

    def run(self) -> Built:
        """Read everything, and build the list."""
        home = self.qwen_home()
        # Before anything in it is read: what changes meanwhile is then read again.
        directory = (os.fspath(home), changed_at(os.fspath(home)))
        variables = self._variables(home)
        self._add_upstream()
        self._add_environment_keys()
        self._add_settings(home, variables)
        self._add_dashscope_files()
        self._add_logins(home)
        self._add_web()
        watched = tuple(self._readings.values())
        broken = [f"{file.shown} {r.problem}. {r.remedy}" for file, r in watched if r.problem]
        return Built(
            tuple(self._accounts),
            (*broken, *self._problems, *self._duplicates),
            watched,
            tuple(self._journals),
            directory,
            tuple(a.credential for a in self._accounts if isinstance(a.credential, OAuthLogin)),
            tuple(self._duplicates),
            tuple(self._unused),
        )

    # Files

    def _read(self, path: Path, parse: Callable[[bytes, FileIdentity], T]) -> T | None:
        """A file's last usable content; read once per build, so that the result is consistent."""
        if path not in self._readings:
            if path not in self._files:
                self._files[path] = WatchedFile(path, parse, self._clock, self._shown(path))
            file = self._files[path]
            self._readings[path] = (file, file.read())
        value: T | None = self._readings[path][1].value
        return value

    def _read_foreign(self, path: Path, parse: Callable[[bytes, FileIdentity], T]) -> T | None:
        """As `_read`, for a file whose problem must not stop the server."""
        value = self._read(path, parse)
        file, reading = self._readings.pop(path)
        self._journals.append((file, reading))
        if reading.problem:
            self._problems.append(f"{file.shown} {reading.problem}. {reading.remedy}")
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
            self._problems.append(f"QWEN_HOME is {named}, which is not a directory.")
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

    def _add(self, found: Account) -> None:
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
                named = environ.get(each.base_url_env, "").strip()
                url = openai_base_url(named) if named else each.base_urls[0]
                self._add_from_environment(each.name, each.base_url_env, url, each.key_env, secret)

    def _add_from_environment(
        self, name: str, url_env: str, raw_url: str, key_env: str, secret: str
    ) -> None:
        explicit = name == "upstream"
        try:
            url = net.base_url(raw_url)
        except ValueError as error:
            self._problems.append(f"{url_env} cannot be used: {error}. Its account is left out.")
            return
        key = usable_key(secret, url, key_env, "Correct it in the server's environment.")
        origin = f"environment {url_env if explicit else key_env}"
        if key.key is None:
            self._problems.append(f"{origin}: {key.fault}. {key.remedy}")
        self._add(
            Account(
                name,
                "key",
                url,
                origin,
                explicit,
                self._family(name, url, explicit=explicit),
                key,
            )
        )

    def _add_web(self) -> None:
        """Add the operator's own login at the web API, if there is one and it is switched on."""
        settings = self._settings
        if not settings.web or not settings.web_token:
            return
        try:
            token = web_token.parse(settings.web_token.strip())
        except web_token.BadWebToken as error:
            self._problems.append(f"QWEN_WEB_TOKEN cannot be used: {error}. It is left out.")
            return
        DISCOVERED.add(token.value)
        kept = self._web_token_of(token)
        self._add(web.operator_account(token, settings.web_base_url, self._clock, kept))

    def _add_dashscope_files(self) -> None:
        """Add the key in the `dashscope` package's files, where its variable is not set."""
        environ = self._settings.environ
        if environ.get(dashscope_files.KEY_ENV, "").strip():
            return
        where = dashscope_files.paths(environ, self._settings.home)
        config = self._read_foreign(where.config, dashscope_files.parse_config) or {}
        key = self._read_foreign(where.key, dashscope_files.parse_key) or ""
        found = dashscope_files.find(environ, config, key, where)
        if found is None:
            return
        shown = self._shown(found.path)
        url = self._checked_url(openai_base_url(found.base_url), f"{shown}: its")
        if url is not None:
            remedy = f"Correct the key in {shown}."
            static = usable_key(found.key, url, "the API key", remedy)
            if static.key is None:
                self._problems.append(f"{shown}: {static.fault}. {static.remedy}")
            family = self._family("dashscope", url)
            self._add(Account("dashscope", "key", url, shown, False, family, static))

    def _family(
        self, name: str, url: str | None, kind: str = "key", *, explicit: bool = False
    ) -> Family:
        return family_for(name, kind, url, explicit=explicit, named=self._host_families)

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
        self._note_unused(qwen, variables, f"{self._shown(qwen_home)}/settings.json")

    def _note_unused(self, qwen: QwenSettings, variables: Variables, file: str) -> None:
        """Note the keys of the files that no account has."""
        of_settings = (each for each in qwen.env.items() if each[0].endswith(KEY_ENDING))
        credentials = [each.credential for each in self._accounts]
        used = {each.key for each in credentials if isinstance(each, StaticKey) and each.key}
        self._unused += environment.unused_in_files(
            (*variables.api_keys(), *of_settings), used, file
        )

    def _checked_url(self, raw: str, whose: str) -> str | None:
        try:
            return net.base_url(raw)
        except ValueError as error:
            self._problems.append(f"{whose} base URL cannot be used: {error}.")
            return None

    def _add_key(
        self, origin: str, url: str, key: StaticKey, models: tuple[ProviderModel, ...]
    ) -> None:
        if key.key is None:
            self._problems.append(f"{origin}: {key.fault}. {key.remedy}")
        name = f"settings-{_short_name(url)}"
        family = self._family(name, url)
        self._add(Account(name, "key", url, origin, False, family, key, _distinct(models)))

    def _hint_at_region(self, url: str, env_key: str | None, key: StaticKey) -> None:
        """Report a key that is used in two regions: it works in its own region only."""
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
        found = [self._file_login(path) for path in login_files.login_files(qwen_home)]
        if self._sharing is not None:
            names = {each.name for each in found if each is not None}
            for path in login_files.login_files(self._sharing.directory):
                if login_files.login_name(path) not in names:
                    found.append(self._file_login(path))
        try:
            if (initial := login_files.environment_login(self._settings)) is not None:
                path = Path(self._settings.state_dir) / "oauth_creds_env.json"
                login = self._login(path, "in QWEN_CLI_AUTH", "oauth-env", initial)
                found.append(self._candidate("oauth-env", login, "environment QWEN_CLI_AUTH"))
        except Unusable as error:
            self._problems.append(f"QWEN_CLI_AUTH {error}: {login_files.AUTH_REMEDY}.")
        candidates = [each for each in found if each is not None]
        for each in candidates:
            if why := login_files.duplicate_of(each, candidates):
                self._duplicates.append(f"{each.origin} holds {why}; it is not used.")
            else:
                url = each.login.base_url()
                family = self._family(each.name, url, "oauth")
                self._add(Account(each.name, "oauth", url, each.origin, False, family, each.login))

    def _file_login(self, path: Path) -> Candidate | None:
        name = login_files.login_name(path)
        login = self.login_at(path)
        return self._candidate(name, login, login.shown)

    def login_at(self, path: Path) -> OAuthLogin:
        """The login in qwen-code's file, or in our copy of another box's; it may not exist."""
        name, shown = login_files.login_name(path), self._shown(path)
        if self._sharing is not None and path.parent == self._sharing.directory:
            shown = f"{name} of other boxes"
        return self._login(path, shown, name, None)

    def _login(
        self, path: Path, shown: str, name: str, initial: CredentialDocument | None
    ) -> OAuthLogin:
        if path not in self._logins:
            store = LoginStore(LoginPaths.beside(path), self._clock, shown=shown, initial=initial)
            endpoint = _token_endpoint(self._settings, self._clock)
            sharing = self._sharing
            shared = None if sharing is None else sharing.of(name, store, initial)
            self._logins[path] = OAuthLogin(
                store,
                Refresher(store, endpoint, self._clock, shared=shared),
                fallback_base_url=self._settings.openai_base_url,
            )
        return self._logins[path]

    def _candidate(self, name: str, login: OAuthLogin, origin: str) -> Candidate | None:
        """A login that exists, or did; None when there never was one."""
        shared, ours = login.store.watched()
        reading = shared.read()
        self._readings[shared.path] = (shared, reading)
        self._journals.append((ours, ours.read()))
        snapshot = login.store.snapshot()
        document = snapshot.newest.login
        if document is None and not reading.exists:
            return None
        fp = fingerprint(document.refresh_token) if document is not None else ""
        return Candidate(name, login, origin, fp, snapshot.journal)


def _token_endpoint(settings: Settings, clock: Clock) -> TokenEndpoint:
    try:
        return TokenEndpoint(settings.oauth_base_url, clock=clock)
    except ValueError as error:
        raise SettingsError(f"QWEN_OAUTH_BASE_URL cannot be used: {error}") from None


def changed_at(directory: str) -> int:
    """When something in it was last created, renamed or removed; 0 without such a directory."""
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
    host = "".join(c if c.isalnum() else "-" for c in net.host_of(url))
    return host.strip("-")[:40].strip("-")


def _same_key(one: Account, other: Account) -> bool:
    mine, theirs = one.credential, other.credential
    return (
        isinstance(mine, StaticKey)
        and isinstance(theirs, StaticKey)
        and mine.key is not None
        and (mine.base_url, mine.key) == (theirs.base_url, theirs.key)
    )


def _parse_dotenv(content: bytes, _identity: FileIdentity) -> Mapping[str, str]:
    # Like qwen-code, which never fails on a .env for its encoding.
    return dotenv.parse(content.decode("utf-8-sig", errors="replace"))
