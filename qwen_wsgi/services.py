"""What one worker's requests share, and how it is wired; also for doctor and the command line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwen_wsgi import logs
from qwen_wsgi.access.admission import Admission
from qwen_wsgi.access.guard import Guard
from qwen_wsgi.accounting.ledger import Ledger
from qwen_wsgi.clock import Clock, SystemClock
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.reporting import Reporting, notifier
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.responses import ResponseStore
from qwen_wsgi.state.token_counts import TokenCounts
from qwen_wsgi.state.workers import Workers
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.executor import Executor
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.retry import Retrier
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from qwen_wsgi.upstream.routing.outcomes import Outcomes
from qwen_wsgi.upstream.routing.router import Router

log = logging.getLogger(__name__)

#: How often logins are looked at while nobody calls; two `stat`s each.
MAINTENANCE_S: Final = 5.0
#: A token refresh that was sent ends within its timeouts: 18 s, and 8 s for its one retry.
DRAIN_S: Final = 27.0
#: How soon a change of qwen-code's settings is seen. A look costs 12 µs, which a call need not pay.
LOOK_EVERY_S: Final = 0.25


class SandboxHost:
    """Starts the built-in sandbox in this process, once, when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None

    def base_url(self) -> str:
        """The running sandbox's OpenAI base URL."""
        with self._lock:
            if self._sandbox is None:
                # A visible pace for people; tests that need speed run their own sandbox.
                self._sandbox = Sandbox(chunk_interval_s=0.03).start()
            return self._sandbox.base_url

    def close(self) -> None:
        """Stop it, if it runs."""
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.stop()
                self._sandbox = None


class Maintenance:
    """Keeps the logins of an idle proxy fresh, so that the first call after a night need not wait;
    and reports what the worker does.

    One thread per worker; which worker renews a login is settled by the login's locks.
    """

    def __init__(self, discovery: Discovery, reporting: Reporting) -> None:
        self._discovery = discovery
        self._reporting = reporting
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin, in this process: after the fork."""
        threading.Thread(target=self._run, name="login-maintenance", daemon=True).start()

    def stop(self) -> None:
        """Make no further round."""
        self._stop.set()
        self._reporting.close()

    def _run(self) -> None:
        self._guarded(self._reporting.report)
        while not self._stop.wait(MAINTENANCE_S):
            self._guarded(self._maintain_logins)
            self._guarded(self._reporting.report)

    def _maintain_logins(self) -> None:
        for login in self._discovery.logins():
            login.maintain()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the thread's top: the next round may go better
            log.error("maintenance failed", exc_info=error)


@dataclass(frozen=True)
class Services:
    """Everything that requests share in one worker; kept in `app.extensions["qwen_wsgi"]`."""

    settings: Settings
    clock: Clock
    guard: Guard
    admission: Admission
    discovery: Discovery
    cooldowns: Cooldowns
    outcomes: Outcomes
    pool: AccountPool
    catalogue: Catalogue
    router: Router
    client: UpstreamClient
    executor: Executor
    transport: Transport
    ledger: Ledger
    responses: ResponseStore
    token_counts: TokenCounts
    sandbox: SandboxHost
    workers: Workers
    maintenance: Maintenance
    #: The worker's start, by the clock's monotonic time.
    started_at: float

    def close(self) -> None:
        """Finish the token refreshes that were sent, and free the rest."""
        self.maintenance.stop()
        drain_logins(self.discovery.logins(), self.clock)
        self.transport.close()
        self.responses.close()
        self.sandbox.close()


def drain_logins(logins: Iterable[OAuthLogin], clock: Clock, timeout_s: float = DRAIN_S) -> None:
    """Start no further token refresh, and wait for those that were sent.

    A refresh spends the old token: its answer must be written down before the process ends.
    """
    logins = tuple(logins)
    for login in logins:
        login.refresher.drain(0)
    deadline_s = clock.monotonic() + timeout_s
    for login in logins:
        if not login.refresher.drain(max(0.0, deadline_s - clock.monotonic())):
            log.error("stopped while refreshing the login %s", login.shown)


def build_services(
    settings: Settings,
    clock: Clock | None = None,
    *,
    transport: Transport | None = None,
    state_dir: Path | None = None,
) -> Services:
    """Wire everything together; opens no connection and starts no thread.

    Args:
        transport: None makes the ordinary one.
        state_dir: where workers share what they know and store responses; None keeps both in this
            process, for commands that must leave no file behind.
    """
    clock = clock or SystemClock()
    sandbox = SandboxHost()
    discovery = Discovery(settings, clock, look_every_s=LOOK_EVERY_S)
    cooldowns, affinity = Cooldowns(state_dir), Affinity(state_dir)
    outcomes = Outcomes(state_dir)
    pool = AccountPool(settings, discovery, cooldowns, start_sandbox=sandbox.base_url)
    transport = transport or Transport(settings)
    catalogue = Catalogue(settings, pool, transport, clock)
    router = Router(settings, pool, catalogue, affinity)
    client = UpstreamClient(settings, transport, clock, outcomes)
    ledger, admission = Ledger(), Admission(settings.max_in_flight)
    workers = Workers(state_dir)
    reporting = Reporting(
        workers,
        calls=lambda: (admission.in_flight, ledger.calls),
        accounts=lambda: _usable(pool),
        stopping=lambda: admission.draining,
        notify=notifier(settings.environ.get("NOTIFY_SOCKET", "")),
    )
    retrier = Retrier(settings, router, pool, cooldowns, affinity, clock)
    return Services(
        settings=settings,
        clock=clock,
        guard=Guard(settings),
        admission=admission,
        discovery=discovery,
        cooldowns=cooldowns,
        outcomes=outcomes,
        pool=pool,
        catalogue=catalogue,
        router=router,
        client=client,
        executor=Executor(settings, router, retrier, client, clock),
        transport=transport,
        ledger=ledger,
        responses=ResponseStore(
            None if state_dir is None else state_dir / "responses",
            clock,
            ttl_s=settings.responses_ttl_s,
            max_bytes=settings.responses_max_bytes,
        ),
        token_counts=TokenCounts(state_dir),
        sandbox=sandbox,
        workers=workers,
        maintenance=Maintenance(discovery, reporting),
        started_at=clock.monotonic(),
    )


def _usable(pool: AccountPool) -> tuple[int, int]:
    """How many accounts there are, and how many of them have a usable credential."""
    accounts = pool.accounts()
    states = [account.credential.status().state for account in accounts]
    return len(states), sum(state.is_usable for state in states)


def configure_logs(settings: Settings) -> None:
    """Send the package's log to standard error, without the secrets that the settings hold."""
    logs.configure(
        level=settings.log_level,
        style=settings.log_format,
        secrets=(*settings.all_client_keys, settings.upstream_api_key),
        environ=settings.environ,
    )
