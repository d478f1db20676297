"""Runs all checks of doctor: their order, and what each of them is given."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TextIO

from qwen_wsgi import net
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey, TokenState
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.doctor import (
    accounts,
    clocks,
    configuration,
    dependencies,
    files,
    locks,
    models,
    network,
    nginx,
    plan_terms,
    report,
    server,
    shared_store,
    systemd,
    tools,
)
from qwen_wsgi.doctor import service as units
from qwen_wsgi.doctor.accounts import Calls
from qwen_wsgi.doctor.findings import Finding, Level, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.doctor.probe import NotingTransport, TokenProbe
from qwen_wsgi.errors import ApiError, SettingsError
from qwen_wsgi.net import Address
from qwen_wsgi.redaction import DISCOVERED, Redaction, names_secret
from qwen_wsgi.services import build_services
from qwen_wsgi.settings import Settings, with_command
from qwen_wsgi.upstream.routing.catalogue import Listing

#: A run requests each list of models once.
_LIST_AGE_S: Final = 3600.0
#: A shorter secret may also be a word.
_SECRET_CHARS: Final = 8
#: Back to the first column, and remove what is there (ECMA-48).
_CLEAR_LINE: Final = "\r\x1b[K"


class DoctorRun:
    """One run of all checks.

    Args:
        only: the account to check; None for all.
        calls: whether upstreams may be contacted.

    Raises:
        SettingsError: there is no such account.
    """

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        *,
        only: str | None,
        calls: bool,
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._transport = NotingTransport(settings, machine)
        self._services = build_services(
            settings, machine, transport=self._transport, known_in=Path(settings.state_dir)
        )
        self._discovery = self._services.discovery
        self._all = self._services.pool.accounts()
        self._accounts = _chosen(self._all, only)
        self._listings: dict[str, Listing] = {}
        self._calls = (
            Calls(TokenProbe(settings, self._transport, machine), self._listing, self._note)
            if calls
            else None
        )

    def groups(self) -> Iterator[tuple[str, list[Finding]]]:
        """Run one check after another; its name and its findings, with secrets masked."""
        unit, site = self._unit(), self._site()
        bind = self._bind(unit)
        checks = (
            ("settings", self._configuration()),
            ("files", self._files()),
            ("locks", locks.check(self._logins(), self._machine)),
            ("network", self._network()),
            ("accounts", self._check_accounts(bind)),
            ("models", self._models()),
            ("clock", self._clock()),
            ("dependencies", dependencies.check(self._machine)),
            ("redis", shared_store.check(self._services.shared_store)),
            ("tools", tools.check(self._settings, calls=self._calls is not None)),
            ("terms", self._terms(unit, site, bind)),
            ("server", self._server(unit, bind)),
            ("systemd", systemd.check(self._settings, unit, self._machine)),
            ("nginx", self._nginx(unit, site, bind)),
        )
        for name, findings in checks:
            found = _guarded(name, findings)
            # Built for each group: a call may have refreshed a login.
            redaction = Redaction(self._secrets(), DISCOVERED)
            yield name, [report.clean(each, redaction) for each in found]

    def close(self) -> None:
        """Finish the token refreshes that were sent, and free the rest."""
        self._services.close()

    # --- what the checks are given -----------------------------------------------------------

    def _configuration(self) -> Iterator[Finding]:
        yield from configuration.check(self._settings, self._discovery, self._all)

    def _files(self) -> Iterator[Finding]:
        home = self._discovery.qwen_home()
        yield from files.check(self._settings, home, self._machine, self._secrets())

    def _network(self) -> Iterator[Finding]:
        if self._calls is None:
            yield network.TELL.skipped("upstreams", "no upstream was contacted (--no-calls)")
            return
        used = [
            (each.name, each.base_url, _sends_secret(each))
            for each in self._accounts
            if each.base_url
        ]
        if self._logins():
            used.append(("logins", self._settings.oauth_base_url, True))
        yield from network.check(network.targets(used), self._settings.environ, self._machine)

    def _check_accounts(self, bind: Address | None) -> Iterator[Finding]:
        if not self._all and bind is not None and server.answers_from_sandbox(bind, self._machine):
            yield accounts.TELL.note(
                "accounts",
                "none was found, and the running server answers from its built-in fake upstream",
                "For real models: set an API key, such as DASHSCOPE_API_KEY, and start it again.",
            )
            return
        status_of = self._services.statuses.of
        yield from accounts.check(self._accounts, self._calls, self._machine, status_of)

    def _note(self, account: Account, error: ApiError | None) -> None:
        outcomes = self._services.outcomes
        if error is None:
            outcomes.answered(account)
        else:
            outcomes.failed(account, error)

    def _models(self) -> Iterator[Finding]:
        yield from models.check(self._settings, None if self._calls is None else self._listings)

    def _clock(self) -> Iterator[Finding]:
        home = self._discovery.qwen_home()
        dated = [home / "settings.json"]
        dated += [login.store.paths.document for login in self._logins().values()]
        fake = any(account.kind == server.SANDBOX for account in self._accounts)
        # The sandbox runs in this process.
        sightings = {} if fake else self._transport.sightings
        yield from clocks.check(self._machine, dated, sightings)

    def _terms(
        self, unit: units.Service | str, site: nginx.Site | nginx.NotHere, bind: Address | None
    ) -> Iterator[Finding]:
        open_at = [str(bind)] if bind is not None and bind.open_to_lan else []
        if isinstance(site, nginx.Site) and _leads_to(site, bind):
            open_at += site.open_at
        known = unit.settings if isinstance(unit, units.Service) else None
        shared = plan_terms.shared_by(known or self._settings, open_at)
        yield from plan_terms.check(self._accounts, shared)

    def _server(self, unit: units.Service | str, bind: Address | None) -> Iterator[Finding]:
        if bind is None:
            yield server.TELL.skipped("address", "it is not known where the server listens")
            return
        known = isinstance(unit, units.Service)
        # What cannot be read cannot be compared.
        same = isinstance(unit, str) or (
            unit.is_known and not units.differing(self._settings, unit)
        )
        yield from server.check(
            self._settings,
            bind,
            [account.name for account in self._all],
            self._machine,
            has_unit=known,
            same_settings=same,
            certain=isinstance(unit, str) or unit.is_known,
        )

    def _nginx(
        self, unit: units.Service | str, site: nginx.Site | nginx.NotHere, bind: Address | None
    ) -> Iterator[Finding]:
        known = unit if isinstance(unit, units.Service) else None
        settings = (known.settings if known else None) or self._settings
        group = known["Group"] if known else ""
        yield from nginx.check(settings, site, bind, self._machine, group=group)

    def _unit(self) -> units.Service | str:
        try:
            return units.look(self._machine)
        except units.NotHere as error:
            return str(error)

    def _site(self) -> nginx.Site | nginx.NotHere:
        try:
            return nginx.look(self._machine)
        except nginx.NotHere as error:
            return error
        except OSError as error:
            return nginx.NotHere(str(error))

    def _bind(self, unit: units.Service | str) -> Address | None:
        """Where the server listens: as the service is set, else as our own settings say."""
        mine = self._settings.bind_address
        if isinstance(unit, units.Service):
            same_user = self._machine.user(self._machine.uid) == unit.user
            if unit.settings is None and same_user:
                # Only root may read the environment file, so this command was started with it.
                return _parsed(mine)
            return _parsed(unit.bind)
        return _parsed(mine)

    def _listing(self, account: Account) -> Listing:
        found = self._services.catalogue.listing(account, max_age_s=_LIST_AGE_S)
        self._listings[account.name] = found
        return found

    def _logins(self) -> dict[str, OAuthLogin]:
        return {
            account.name: account.credential
            for account in self._accounts
            if isinstance(account.credential, OAuthLogin)
        }

    def _secrets(self) -> tuple[str, ...]:
        """Every secret that this run knows, to be masked in all findings."""
        settings = self._settings
        found = [*settings.all_client_keys, settings.upstream_api_key, settings.qwen_cli_auth]
        found += settings.redis_secrets
        found += [v for name, v in settings.environ.items() if names_secret(name)]
        for account in self._all:
            credential = account.credential
            if isinstance(credential, StaticKey):
                found.append(credential.key or "")
            elif isinstance(credential, OAuthLogin):
                login = credential.store.snapshot().newest.login
                found += [login.access_token, login.refresh_token] if login else []
        return tuple(secret for secret in found if len(secret) >= _SECRET_CHARS)


def run(
    settings: Settings,
    *,
    account: str | None,
    calls: bool,
    json_output: bool,
    out: TextIO,
    problems_only: bool = False,
    machine: Machine | None = None,
) -> int:
    """Run all checks and print the findings, what is wrong first; 1 if something does not work,
    else 0.

    Args:
        problems_only: print only what is wrong.

    Raises:
        SettingsError: there is no such account.
    """
    checks = DoctorRun(settings, machine or Machine(settings.environ), only=account, calls=calls)
    live = not json_output and _shows(out, settings)
    findings: list[Finding] = []
    complete = False
    # A call may refresh a login; on SIGTERM its answer must still be written down.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name, group in checks.groups():
            findings += group
            if live:
                out.write(f"{_CLEAR_LINE}checked: {name} ...")
                out.flush()
        complete = True
    finally:
        checks.close()
        signal.signal(signal.SIGTERM, before)
        # Also after Ctrl-C: what was found until then.
        out.write(_CLEAR_LINE if live else "")
        if json_output:
            shown = report.as_json(findings)
        else:
            lines = report.text(
                findings,
                problems_only=problems_only,
                colour=live and not settings.environ.get("NO_COLOR"),
                complete=complete,
            )
            shown = with_command("\n".join(lines), settings.command)
        print(shown, file=out)
    return 1 if any(finding.level is Level.FAIL for finding in findings) else 0


def _shows(out: TextIO, settings: Settings) -> bool:
    """Whether lines can be coloured, and rewritten."""
    return out.isatty() and settings.environ.get("TERM", "dumb") != "dumb"


def _guarded(name: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings of a check; an exception of the check itself becomes one, too."""
    found = []
    try:
        for finding in findings:
            found.append(finding)
    except Exception as error:  # a broken check must not stop the others
        why = f"the check itself failed ({type(error).__name__}: {error})"
        found.append(Teller(name).skipped("check", why, "Report this line as a bug."))
    return found


def _chosen(found: tuple[Account, ...], only: str | None) -> tuple[Account, ...]:
    if only is None:
        return found
    chosen = tuple(each for each in found if each.name in (only, f"oauth-{only}"))
    if not chosen:
        known = ", ".join(each.name for each in found) or "none"
        raise SettingsError(f"there is no account {only!r}; the accounts are: {known}")
    return chosen[:1]


def _sends_secret(account: Account) -> bool:
    """Whether calls to an account carry a key or token."""
    if isinstance(account.credential, StaticKey):
        return bool(account.credential.key)
    return account.credential.status().state is not TokenState.MISSING


def _parsed(bind: str) -> Address | None:
    try:
        return net.parse(bind)
    except ValueError:
        return None


def _leads_to(site: nginx.Site, bind: Address | None) -> bool:
    return bind is None or any(bind.is_same(each) for each in site.upstreams)
