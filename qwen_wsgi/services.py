"""What one worker's requests share, and how it is wired; also for doctor and the command line."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwen_wsgi import logs
from qwen_wsgi.access.admission import Admission
from qwen_wsgi.access.connections import Connections
from qwen_wsgi.access.guard import Guard
from qwen_wsgi.accounting.ledger import Ledger
from qwen_wsgi.background import Background
from qwen_wsgi.clock import Clock, SystemClock, sleep
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.documents.pdf import PdfReader
from qwen_wsgi.greenlets import ThreadApart
from qwen_wsgi.reporting import REFUSED, Reporting, notifier
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.connection_memory import ConnectionMemory
from qwen_wsgi.state.database.background import BackgroundQueue
from qwen_wsgi.state.database.host_objects import HostObjects
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.database.tables import database_in
from qwen_wsgi.state.database.videos import VideoStore
from qwen_wsgi.state.model_lists import SharedLists
from qwen_wsgi.state.refused_inputs import RefusedInputs
from qwen_wsgi.state.shared_files import SharedFiles
from qwen_wsgi.state.state_key import StateKey
from qwen_wsgi.state.token_counts import TokenCounts
from qwen_wsgi.state.workers import Workers
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.executor import Executor
from qwen_wsgi.upstream.host_files import HostFiles
from qwen_wsgi.upstream.http.download import Downloads
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.pictures import Pictures
from qwen_wsgi.upstream.retry import Retrier
from qwen_wsgi.upstream.routing.account_status import AccountStatuses
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.batch_chat import BatchChat
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from qwen_wsgi.upstream.routing.outcomes import Outcomes
from qwen_wsgi.upstream.routing.router import Router
from qwen_wsgi.upstream.routing.trials import Trials
from qwen_wsgi.upstream.tasks.looks import TaskLooks
from qwen_wsgi.upstream.tasks.lost import LostTasks
from qwen_wsgi.upstream.tasks.tasks import Tasks
from qwen_wsgi.upstream.tasks.uploads import Uploads
from qwen_wsgi.upstream.tokenizer import HostTokenizer

log = logging.getLogger(__name__)

#: How often logins are looked at while nobody calls; two `stat`s each.
MAINTENANCE_S: Final = 5.0
#: A token refresh that was sent ends within its timeouts: 18 s, and 8 s for its one retry.
DRAIN_S: Final = 27.0
#: How soon a change of qwen-code's settings is seen. A look costs 12 µs, which a call need not pay.
LOOK_EVERY_S: Final = 0.25


#: Places that a single client key does not get.
_SPARE: Final = 10


class SandboxHost:
    """Starts the built-in sandbox in this process, once, when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base_url = ""
        self._stop: Callable[[], None] | None = None

    def base_url(self) -> str:
        """The running sandbox's OpenAI base URL."""
        with self._lock:
            if self._stop is None:
                # Loaded when it is needed: a server with accounts needs none of it.
                from qwen_wsgi.sandbox import Sandbox

                # A visible pace for people; tests that need speed run their own sandbox.
                sandbox = Sandbox(chunk_interval_s=0.03, private=True).start()
                self._base_url, self._stop = sandbox.base_url, sandbox.stop
            return self._base_url

    def close(self) -> None:
        """Stop it, if it runs."""
        with self._lock:
            if self._stop is not None:
                self._stop()
                self._stop = None


class Maintenance:
    """Keeps the logins of an idle proxy fresh, so that the first call after a night need not wait;
    and reports what the worker does.

    Accounts that were refused are tried again as well, and shared files that were removed are begun
    anew.

    One thread per worker; which worker renews a login is settled by the login's locks.
    """

    def __init__(
        self, discovery: Discovery, files: SharedFiles, trials: Trials, reporting: Reporting
    ) -> None:
        self._discovery = discovery
        self._files = files
        self._trials = trials
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
            self._guarded(self._files.look_after)
            self._guarded(self._trials.run)
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
    connections: Connections
    connection_memory: ConnectionMemory
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
    database: Database
    responses: ResponseStore
    background: Background
    host_objects: HostObjects
    host_files: HostFiles
    token_counts: TokenCounts
    state_key: StateKey
    videos: VideoStore
    tasks: Tasks
    looks: TaskLooks
    lost_tasks: LostTasks
    downloads: Downloads
    pictures: Pictures
    uploads: Uploads
    pdf_reader: PdfReader
    tokenizer: HostTokenizer
    sandbox: SandboxHost
    workers: Workers
    maintenance: Maintenance
    #: The worker's start, by the clock's monotonic time.
    started_at: float

    @property
    def statuses(self) -> AccountStatuses:
        """What tells the state of accounts."""
        return AccountStatuses(
            self.settings, self.pool, self.cooldowns, self.outcomes, self.catalogue
        )

    def close(self) -> None:
        """Finish the token refreshes that were sent, and free the rest."""
        self.maintenance.stop()
        self.background.stop()
        drain_logins(self.discovery.logins(), self.clock)
        self.transport.close()
        self.database.close()
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
    known_in: Path | None = None,
    sleep: Callable[[float], None] = sleep,
) -> Services:
    """Wire everything together; opens no connection and starts no thread.

    Args:
        transport: None makes the ordinary one.
        state_dir: where workers share what they know and store responses; None keeps both in this
            process, for commands that must leave no file behind.
        known_in: without `state_dir`: the state directory of a server. What it knows of accounts
            now is the beginning; nothing is written there.
        sleep: for the pauses between questions about tasks.
    """
    clock = clock or SystemClock()
    sandbox = SandboxHost()
    discovery = Discovery(settings, clock, look_every_s=LOOK_EVERY_S)
    files = SharedFiles(state_dir)
    known = files if known_in is None else SharedFiles(known_in, copy=True)
    cooldowns, outcomes, affinity = Cooldowns(known), Outcomes(known), Affinity(files)
    pool = AccountPool(settings, discovery, cooldowns, start_sandbox=sandbox.base_url)
    transport = transport or Transport(settings)
    database = database_in(state_dir, clock, sleep=sleep, apart=ThreadApart())
    catalogue = Catalogue(settings, pool, transport, clock, SharedLists(files), outcomes)
    router = Router(settings, pool, catalogue, affinity)
    client = UpstreamClient(settings, transport, clock)
    tasks = Tasks(client, clock, sleep=sleep)
    ledger = Ledger()
    admission = Admission(
        settings.max_in_flight, settings.max_body_bytes_in_flight, share=_share(settings)
    )
    workers = Workers(files)
    statuses = AccountStatuses(settings, pool, cooldowns, outcomes, catalogue)
    reporting = Reporting(
        workers,
        calls=lambda: (admission.in_flight, ledger.calls),
        accounts=lambda: _usable(statuses),
        stopping=lambda: admission.draining,
        notify=notifier(settings.environ.get("NOTIFY_SOCKET", "")),
        refused=settings.environ.get(REFUSED, ""),
    )
    retrier = Retrier(settings, router, pool, cooldowns, affinity, clock, outcomes=outcomes)
    executor = Executor(
        settings,
        router,
        retrier,
        client,
        clock,
        RefusedInputs(files),
        BatchChat(settings, pool),
    )
    downloads = Downloads(settings, transport)
    responses = ResponseStore(
        database,
        clock,
        ttl_s=settings.responses_ttl_s,
        max_bytes=settings.responses_max_bytes,
        largest_history=settings.max_body_bytes,
    )
    return Services(
        settings=settings,
        clock=clock,
        guard=Guard(settings),
        admission=admission,
        connections=Connections(settings.websockets, settings.websockets_per_key),
        connection_memory=ConnectionMemory(
            # One request of the largest size must fit.
            max(settings.websocket_memory_bytes, settings.max_body_bytes)
        ),
        discovery=discovery,
        cooldowns=cooldowns,
        outcomes=outcomes,
        pool=pool,
        catalogue=catalogue,
        router=router,
        client=client,
        executor=executor,
        transport=transport,
        ledger=ledger,
        database=database,
        responses=responses,
        background=Background(
            BackgroundQueue(
                database,
                clock,
                per_client=settings.background_per_key,
                kept_s=settings.responses_ttl_s,
            ),
            responses,
            clock,
            limit=settings.background,
            stop_s=settings.graceful_timeout_s,
        ),
        host_objects=HostObjects(database, clock),
        host_files=HostFiles(retrier, client, idle_s=settings.idle_timeout_s),
        token_counts=TokenCounts(files),
        state_key=StateKey(settings.state_key, state_dir),
        videos=VideoStore(database, clock),
        tasks=tasks,
        looks=TaskLooks(tasks, clock, workers=settings.workers, sleep=sleep),
        lost_tasks=LostTasks(client, tasks, clock, sleep=sleep),
        downloads=downloads,
        pictures=Pictures(settings, executor, tasks, downloads),
        uploads=Uploads(client, downloads),
        pdf_reader=PdfReader(clock),
        tokenizer=HostTokenizer(settings, router, executor, clock),
        sandbox=sandbox,
        workers=workers,
        maintenance=Maintenance(discovery, files, Trials(pool, catalogue, outcomes), reporting),
        started_at=clock.monotonic(),
    )


def _share(settings: Settings) -> int:
    """The calls of one client key that a worker serves at a time: of several keys, none takes all
    places."""
    most = settings.max_in_flight
    if not settings.all_client_keys:
        return most
    if len(settings.all_client_keys) == 1:
        return max(1, most - _SPARE)  # so that a place is left for whoever looks what is wrong
    return max(1, math.ceil(most * settings.key_share))


def _usable(statuses: AccountStatuses) -> tuple[int, int]:
    """How many accounts there are, and how many of them are usable."""
    states = [status.state for _, status in statuses.summary().accounts]
    return len(states), sum(state.is_usable for state in states)


def configure_logs(settings: Settings) -> None:
    """Send the package's log to standard error, without the secrets that the settings hold."""
    logs.configure(
        level=settings.log_level,
        style=settings.log_format,
        secrets=(*settings.all_client_keys, settings.upstream_api_key, settings.state_key),
        environ=settings.environ,
    )
