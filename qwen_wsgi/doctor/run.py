"""The whole examination: which checks there are, in which order, and what they are given."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TextIO

from qwen_wsgi import net
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.doctor import (
    accounts,
    clocks,
    configuration,
    files,
    locks,
    models,
    network,
    nginx,
    plan_terms,
    report,
    server,
    systemd,
)
from qwen_wsgi.doctor import service as services
from qwen_wsgi.doctor.accounts import Calls
from qwen_wsgi.doctor.findings import Finding, Level, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.doctor.probe import NotingTransport, OneToken
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.logs import Redaction
from qwen_wsgi.net import Address
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.catalogue import Catalogue, Listing
from qwen_wsgi.upstream.routing.cooldown import Cooldowns

#: A list of models is asked for once.
_LIST_AGE_S: Final = 3600.0
#: A renewal that was sent ends within this: 18 s, and 8 s for the repetition.
_DRAIN_S: Final = 27.0
#: A secret that is shorter is also a word.
_SECRET_CHARS: Final = 8
_SECRET_NAMES: Final = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


class Run:
    """One run over everything.

    Args:
        only: the account to be looked at; None for all.
        calls: whether upstreams may be contacted at all.
        start_sandbox: starts the built-in fake upstream and returns its base URL.

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
        start_sandbox: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._discovery = Discovery(settings, machine)
        pool = AccountPool(settings, self._discovery, Cooldowns(None), start_sandbox=start_sandbox)
        self._all = pool.accounts()
        self._accounts = _chosen(self._all, only)
        self._transport = NotingTransport(settings, machine)
        self._catalogue = Catalogue(settings, pool, self._transport, machine)
        self._listings: dict[str, Listing] = {}
        self._calls = (
            Calls(OneToken(settings, self._transport, machine), self._listing) if calls else None
        )

    def groups(self) -> Iterator[list[Finding]]:
        """The findings of each check in turn, ready to be shown."""
        unit, site = self._unit(), self._site()
        bind = self._bind(unit)
        checks = (
            ("settings", self._configuration()),
            ("files", self._files()),
            ("locks", locks.check(self._logins(), self._machine)),
            ("network", self._network()),
            ("accounts", accounts.check(self._accounts, self._calls, self._machine)),
            ("models", self._models()),
            ("clock", self._clock()),
            ("terms", self._terms(unit, site, bind)),
            ("server", self._server(unit, bind)),
            ("systemd", systemd.check(self._settings, unit, self._machine)),
            ("nginx", self._nginx(unit, site, bind)),
        )
        for name, findings in checks:
            found = _guarded(name, findings)
            # Made anew each time: a call may have had a login renewed.
            redaction = Redaction(self._secrets())
            if found:
                yield [report.clean(each, redaction) for each in found]

    def close(self) -> None:
        """Let a renewal that was sent be written down; close the rest."""
        logins = self._discovery.logins()
        for login in logins:
            login.refresher.drain(0)  # none of them starts anything more
        deadline_s = self._machine.monotonic() + _DRAIN_S
        for login in logins:
            login.refresher.drain(max(0.0, deadline_s - self._machine.monotonic()))
        self._transport.close()

    # --- what the checks are given -----------------------------------------------------------

    def _configuration(self) -> Iterator[Finding]:
        yield from configuration.check(self._settings, self._discovery, self._all)

    def _files(self) -> Iterator[Finding]:
        home = self._discovery.qwen_home()
        yield from files.check(self._settings, home, self._machine, self._secrets())

    def _network(self) -> Iterator[Finding]:
        if self._calls is None:
            yield network.TELL.skipped("upstreams", "none was contacted (--no-calls)")
            return
        used = [
            (each.name, each.base_url, each.credential.status().shown != "–")
            for each in self._accounts
            if each.base_url
        ]
        if self._logins():
            used.append(("logins", self._settings.oauth_base_url, True))
        yield from network.check(network.targets(used), self._settings.environ, self._machine)

    def _models(self) -> Iterator[Finding]:
        yield from models.check(self._settings, None if self._calls is None else self._listings)

    def _clock(self) -> Iterator[Finding]:
        home = self._discovery.qwen_home()
        dated = [home / "settings.json"]
        dated += [login.store.paths.document for login in self._logins().values()]
        yield from clocks.check(self._machine, dated, self._transport.sightings)

    def _terms(
        self, unit: services.Service | str, site: nginx.Site | str, bind: Address | None
    ) -> Iterator[Finding]:
        open_at = [str(bind)] if bind is not None and bind.open_to_lan else []
        if isinstance(site, nginx.Site) and _leads_to(site, bind):
            open_at += site.open_at
        known = unit.settings if isinstance(unit, services.Service) else None
        shared = plan_terms.shared_by(known or self._settings, open_at)
        yield from plan_terms.check(self._accounts, shared)

    def _server(self, unit: services.Service | str, bind: Address | None) -> Iterator[Finding]:
        if bind is None:
            yield server.TELL.skipped("address", "where it listens is not known")
            return
        known = isinstance(unit, services.Service)
        same = isinstance(unit, str) or not services.differing(self._settings, unit)
        yield from server.check(
            self._settings,
            bind,
            [account.name for account in self._all],
            self._machine,
            has_unit=known,
            same_settings=same,
        )

    def _nginx(
        self, unit: services.Service | str, site: nginx.Site | str, bind: Address | None
    ) -> Iterator[Finding]:
        known = unit if isinstance(unit, services.Service) else None
        settings = (known.settings if known else None) or self._settings
        group = known["Group"] if known else ""
        yield from nginx.check(settings, site, bind, self._machine, group=group)

    def _unit(self) -> services.Service | str:
        try:
            return services.look(self._machine)
        except services.NotHere as error:
            return str(error)

    def _site(self) -> nginx.Site | str:
        try:
            return nginx.look(self._machine)
        except (nginx.NotHere, OSError) as error:
            return str(error)

    def _bind(self, unit: services.Service | str) -> Address | None:
        """Where the server listens: the service, if it runs or nothing else is known."""
        mine = self._settings.bind_address
        if isinstance(unit, services.Service):
            same_user = self._machine.user(self._machine.uid) == unit.user
            if unit.settings is None and same_user:
                # Only root may read its environment file: this command was given it.
                return _parsed(mine)
            return _parsed(unit.bind)
        return _parsed(mine)

    def _listing(self, account: Account) -> Listing:
        found = self._catalogue.listing(account, max_age_s=_LIST_AGE_S)
        self._listings[account.name] = found
        return found

    def _logins(self) -> dict[str, OAuthLogin]:
        return {
            account.name: account.credential
            for account in self._accounts
            if isinstance(account.credential, OAuthLogin)
        }

    def _secrets(self) -> tuple[str, ...]:
        """Every secret that this run knows: none is shown, whoever quotes it."""
        settings = self._settings
        found = [*settings.all_client_keys, settings.upstream_api_key, settings.qwen_cli_auth]
        found += [v for name, v in settings.environ.items() if name.endswith(_SECRET_NAMES)]
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
    start_sandbox: Callable[[], str],
    out: TextIO,
    machine: Machine | None = None,
) -> int:
    """Examine everything and tell; 1 if something does not work, else 0.

    Raises:
        SettingsError: there is no such account.
    """
    examination = Run(
        settings,
        machine or Machine(settings.environ),
        only=account,
        calls=calls,
        start_sandbox=start_sandbox,
    )
    findings: list[Finding] = []
    # A call may have a login renewed, and what was sent must have its answer written down.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for group in examination.groups():
            findings += group
            if not json_output:
                told = (line for finding in group for line in report.lines(finding))
                print(group[0].check, *told, sep="\n", file=out, flush=True)
    finally:
        examination.close()
        signal.signal(signal.SIGTERM, before)
    print(report.as_json(findings) if json_output else report.summary(findings), file=out)
    return 1 if any(finding.level is Level.FAIL for finding in findings) else 0


def _guarded(name: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings of a check; a fault of the check itself is told, and not taken for an ok."""
    found = []
    try:
        for finding in findings:
            found.append(finding)
    except Exception as error:  # one check must not cost the others
        why = f"a fault of the check itself ({type(error).__name__}: {error})"
        found.append(Teller(name).skipped("check", why, "Report it, with this line."))
    return found


def _chosen(found: tuple[Account, ...], only: str | None) -> tuple[Account, ...]:
    if only is None:
        return found
    chosen = tuple(each for each in found if each.name in (only, f"oauth-{only}"))
    if not chosen:
        known = ", ".join(each.name for each in found) or "none"
        raise SettingsError(f"there is no account {only!r}; there is: {known}")
    return chosen[:1]


def _parsed(bind: str) -> Address | None:
    try:
        return net.parse(bind)
    except ValueError:
        return None


def _leads_to(site: nginx.Site, bind: Address | None) -> bool:
    return bind is None or any(bind.is_same(each) for each in site.upstreams)
