"""What one worker's requests share, and how it is wired; also for doctor and the command line."""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from qwen_wsgi import greenlets, logs
from qwen_wsgi.access.admission import Admission
from qwen_wsgi.access.budget import Budgets, Counters, limits_of
from qwen_wsgi.access.connections import Connections
from qwen_wsgi.access.guard import Client, Guard
from qwen_wsgi.access.key_ring import KeyRing
from qwen_wsgi.access.limits import Calendar, Limits
from qwen_wsgi.accounting import metric_families, metrics
from qwen_wsgi.accounting import prices as price_table
from qwen_wsgi.accounting.books import Books, journal_in
from qwen_wsgi.accounting.ledger import Ledger
from qwen_wsgi.accounting.metrics import Metrics
from qwen_wsgi.accounting.plan_watch import PlanAccount, PlanWatch
from qwen_wsgi.accounting.prices import Prices
from qwen_wsgi.accounting.recent import Recent
from qwen_wsgi.background import Background
from qwen_wsgi.box_calls import BoxCalls, BoxTeller
from qwen_wsgi.boxes import (
    client_keys_of,
    live_calls_of,
    seal_of,
    shared_store_of,
    sharing_of,
    usage_totals_of,
)
from qwen_wsgi.clock import Clock, SystemClock, sleep
from qwen_wsgi.console.doctor_process import DoctorProcess
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.phone_login import PhoneLogin
from qwen_wsgi.credentials.refresh.attempt import Outcome
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.credentials.web import WebCredential
from qwen_wsgi.documents.pdf import PdfReader
from qwen_wsgi.greenlets import ThreadApart
from qwen_wsgi.in_flight import CallsInFlight
from qwen_wsgi.metering import Metering
from qwen_wsgi.redaction import DISCOVERED, Redaction
from qwen_wsgi.reporting import REFUSED, Reporting, notifier
from qwen_wsgi.settings import Settings
from qwen_wsgi.sharing import BoxShare, RoutingShare, StateSharing
from qwen_wsgi.state.connection_memory import ConnectionMemory
from qwen_wsgi.state.counters import SharedCounters
from qwen_wsgi.state.database.cached_answers import CachedAnswers
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.console_sessions import ConsoleSessions
from qwen_wsgi.state.database.host_objects import HostObjects
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.database.tables import database_in
from qwen_wsgi.state.database.videos import VideoStore
from qwen_wsgi.state.limits.counters import LimitCounters
from qwen_wsgi.state.model_lists import SharedLists
from qwen_wsgi.state.recordings import Recordings
from qwen_wsgi.state.redis.connection import SharedStore
from qwen_wsgi.state.redis.limits import SharedLimitCounters
from qwen_wsgi.state.redis.news import NewsStream
from qwen_wsgi.state.redis.totals import UsageTotals
from qwen_wsgi.state.refused_inputs import RefusedInputs
from qwen_wsgi.state.shared.stores import SharedStores, stores_of
from qwen_wsgi.state.shared_files import SharedFiles
from qwen_wsgi.state.state_key import StateKey, command_key
from qwen_wsgi.state.token_counts import TokenCounts
from qwen_wsgi.state.workers import Workers
from qwen_wsgi.tools.runner import ToolRunner
from qwen_wsgi.upstream.answer_cache import AnswerCache
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.executor import Executor
from qwen_wsgi.upstream.failures.causes import CAUSES
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
from qwen_wsgi.upstream.web.attempt import WebAttempt
from qwen_wsgi.upstream.web.chats import WebChats
from qwen_wsgi.upstream.web.left_chats import LeftChats
from qwen_wsgi.upstream.web.media import WebMedia
from qwen_wsgi.upstream.web.renewal import WebRenewal
from qwen_wsgi.upstream.web.site import WebSite
from qwen_wsgi.upstream.web.uploads import WebUploads

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

    Accounts that were refused are tried again as well, shared files that were removed are begun
    anew, what dead workers held of clients' limits is given back, and what calls wrote down is
    brought into the ledger.

    One thread per worker; which worker renews a login is settled by the login's locks.
    """

    def __init__(
        self,
        discovery: Discovery,
        files: SharedFiles,
        trials: Trials,
        reporting: Reporting,
        budgets: Budgets,
        key_ring: KeyRing,
        bring_calls: Callable[[], None],
        cached_answers: CachedAnswers,
        web_renewal: WebRenewal,
        delete_left_chats: Callable[[], None],
    ) -> None:
        self._delete_left_chats = delete_left_chats
        self._web_renewal = web_renewal
        self._cached_answers = cached_answers
        self._discovery = discovery
        self._key_ring = key_ring
        self._files = files
        self._trials = trials
        self._reporting = reporting
        self._budgets = budgets
        self._bring_calls = bring_calls
        self._stop = threading.Event()
        #: Whether this is a worker; commands make no rounds.
        self.began = False

    def start(self) -> None:
        """Begin, in this process: after the fork."""
        self.began = True
        threading.Thread(target=self._run, name="login-maintenance", daemon=True).start()

    def stop(self) -> None:
        """Make no further round."""
        self._stop.set()
        self._reporting.close()

    def _run(self) -> None:
        self._guarded(self._maintain_logins)  # a box without a login may get one of another box
        self._guarded(self._reporting.report)
        self._guarded(self._bring_calls)  # what the workers before have left
        self._guarded(self._delete_left_chats)
        while not self._stop.wait(MAINTENANCE_S):
            self._guarded(self._maintain_logins)
            self._guarded(self._files.look_after)
            self._guarded(self._budgets.look_after)
            self._guarded(self._trials.run)
            self._guarded(self._web_renewal.look_after)
            self._guarded(self._bring_calls)
            self._guarded(self._cached_answers.look_after)
            self._guarded(self._reporting.report)
            self._guarded(self._key_ring.write_uses)

    def _maintain_logins(self) -> None:
        self._discovery.maintain()

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
    client_keys: ClientKeys
    key_ring: KeyRing
    console_sessions: ConsoleSessions
    doctor: DoctorProcess
    admission: Admission
    in_flight: CallsInFlight
    #: The calls of other boxes.
    box_calls: BoxCalls
    budgets: Budgets
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
    web_site: WebSite
    web_chats: WebChats
    web_media: WebMedia
    transport: Transport
    ledger: Ledger
    metrics: Metrics
    phone_login: PhoneLogin | None
    metering: Metering
    #: How much of the windows of plans is used.
    plans: PlanWatch
    recordings: Recordings
    #: Masks the secrets in a text that is written down.
    redact: Callable[[str], str]
    #: The ledger for those who read it; None keeps none.
    books: Books | None
    #: Why the operator's own prices are not used; "" if they are, or there are none.
    price_problem: str
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
    #: Runs the operator's tools; None if there are none.
    tool_runner: ToolRunner | None
    tokenizer: HostTokenizer
    sandbox: SandboxHost
    workers: Workers
    #: The Redis that several boxes share; None without one.
    shared_store: SharedStore | None
    #: What all boxes have used, and what keeps this box and the others together; None alone.
    usage_totals: UsageTotals | None
    sharing: tuple[StateSharing, ...]
    maintenance: Maintenance
    #: The worker's start, by the clock's monotonic time.
    started_at: float

    @property
    def statuses(self) -> AccountStatuses:
        """What tells the state of accounts."""
        return AccountStatuses(
            self.settings, self.pool, self.cooldowns, self.outcomes, self.catalogue
        )

    def begin(self) -> None:
        """Begin what a worker does beside its calls: in its own process, after the fork."""
        if self.shared_store is not None:
            self.shared_store.start()
        self.maintenance.start()
        self.background.start()
        self.in_flight.socket.start()
        self.metering.start()
        self.plans.start()
        for each in self.sharing:
            each.start()

    @property
    def logins(self) -> dict[str, OAuthLogin]:
        """The accounts that are logins, by their names."""
        return {
            account.name: account.credential
            for account in self.pool.accounts()
            if isinstance(account.credential, OAuthLogin)
        }

    def close(self) -> None:
        """Finish the token refreshes that were sent, and free the rest."""
        self.maintenance.stop()
        self.plans.stop()
        self.in_flight.socket.close()
        for each in reversed(self.sharing):  # the first one lets another worker do it
            each.stop()
        self.background.stop()
        self.web_chats.drain()
        self.key_ring.write_uses()
        drain_logins(self.discovery.logins(), self.clock)
        if self.maintenance.began:
            release_logins(self.discovery.logins())
        self.transport.close()
        self.budgets.close()
        self.ledger.close()
        if self.books is not None:
            greenlets.apart(self.books.close)  # where it is used
        self.database.close()
        self.sandbox.close()
        self.metering.stop()
        if self.shared_store is not None:
            self.shared_store.close()


def _tool_runner(settings: Settings, clock: Clock) -> ToolRunner | None:
    """What runs the operator's tools; None if the settings name none."""
    if not settings.tools:
        return None
    from qwen_wsgi.tools.runner_client import RunnerClient  # costs nothing where there are none

    return RunnerClient.of(settings, clock)


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


def release_logins(logins: Iterable[OAuthLogin]) -> None:
    """Let another box renew the logins that boxes share, if no other worker of this one does."""
    for login in logins:
        if (shared := login.refresher.context.shared) is not None:
            shared.release()


def build_services(
    settings: Settings,
    clock: Clock | None = None,
    *,
    transport: Transport | None = None,
    state_dir: Path | None = None,
    known_in: Path | None = None,
    sleep: Callable[[float], None] = sleep,
    limits_of: Callable[[Client], Limits | None] = limits_of,
    tool_runner: ToolRunner | None = None,
) -> Services:
    """Wire everything together; opens no connection and starts no thread.

    Args:
        transport: None makes the ordinary one.
        state_dir: where workers share what they know and store responses; None keeps both in this
            process, for commands that must leave no file behind.
        known_in: without `state_dir`: the state directory of a server. What it knows of accounts
            now is the beginning; nothing is written there.
        sleep: for the pauses between questions about tasks.
        limits_of: what a client may take, see `access.budget.Budgets`.
        tool_runner: None makes that of the settings, if there is any.
    """
    clock = clock or SystemClock()
    sandbox = SandboxHost()
    within = greenlets.within if greenlets.are_in_use() else None
    shared_store = shared_store_of(settings, clock, state_dir or known_in, within=within)
    sharing = sharing_of(settings, clock, shared_store, state_dir or known_in, sleep=sleep)
    discovery = Discovery(
        *(settings, clock),
        look_every_s=LOOK_EVERY_S,
        sharing=sharing,
        state_dir=state_dir or known_in,
    )
    files = SharedFiles(state_dir)
    known = files if known_in is None else SharedFiles(known_in, copy=True)
    cooldowns, outcomes, affinity = Cooldowns(known), Outcomes(known), Affinity(files)
    books = journal = None
    if state_dir is not None and settings.ledger_days:
        books = Books(state_dir, clock, days=settings.ledger_days, sleep=sleep)
        journal = journal_in(state_dir, clock)
    plans = PlanWatch(
        lambda: plan_accounts(pool),
        books,
        clock,
        in_flight=lambda: {name: each.in_flight for name, each in pool.limiters()},
        apart=greenlets.apart,
    )
    pool = AccountPool(settings, discovery, cooldowns, start_sandbox=sandbox.base_url, plans=plans)
    transport = transport or Transport(settings)
    database = database_in(state_dir, clock, sleep=sleep, apart=ThreadApart())
    catalogue = Catalogue(settings, pool, transport, clock, SharedLists(files), outcomes)
    router = Router(settings, pool, catalogue, affinity)
    client = UpstreamClient(settings, transport, clock)
    web_site = WebSite(settings, transport, clock)
    left_chats = LeftChats(None if state_dir is None else state_dir / "webchats")
    web_chats = WebChats(web_site, left_chats)
    downloads = Downloads(settings, transport)
    web_uploads = WebUploads(settings, web_site, downloads, clock)
    web_media = WebMedia(
        *(settings, web_site, web_chats, web_uploads, transport, clock),
        listed=router.listed,
        sleep=sleep,
    )
    tasks = Tasks(client, clock, web_media, sleep=sleep)
    client_keys = client_keys_of(shared_store, database, clock, state_dir)
    key_ring = KeyRing(client_keys, clock, later=greenlets.later)
    state_key = StateKey(settings.state_key, state_dir)
    prices, price_problem = _prices(settings)
    recent = Recent(clock.monotonic)
    ledger = Ledger(clock, journal, cost=prices.cost, recent=recent)
    admission = Admission(
        settings.max_in_flight, settings.max_body_bytes_in_flight, share=_share(settings, 0)
    )

    def share_anew(count: int) -> None:
        admission.share = _share(settings, count)

    key_ring.on_change = share_anew
    guard = Guard(settings, key_ring, clock, command_key=lambda: command_key(state_key.get()))
    connections = Connections(settings.websockets, settings.websockets_per_key)
    counted = Metrics(
        causes=CAUSES, models=lambda: _models(pool, catalogue), monotonic=clock.monotonic
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
    cached_answers = CachedAnswers(database, clock, max_bytes=settings.response_cache_bytes)
    retrier = Retrier(settings, router, pool, cooldowns, affinity, clock, outcomes=outcomes)
    executor = Executor(
        settings,
        router,
        retrier,
        client,
        clock,
        RefusedInputs(files),
        BatchChat(settings, pool),
        AnswerCache(settings, cached_answers),
        WebAttempt(settings, web_site, web_chats, web_uploads, clock, listed=router.listed),
    )
    budgets = Budgets(limits_of, _counters(settings, clock, state_dir, shared_store))
    # A command that leaves nothing behind shares nothing.
    together = shared_store if state_dir is not None else None
    stores = stores_of(
        *(settings, database, clock, together),
        seal=None if together is None else seal_of(settings),
        apart=ThreadApart(),
        sleep=sleep,
    )
    background = Background(
        stores.queue,
        stores.responses,
        clock,
        limit=settings.background,
        stop_s=settings.graceful_timeout_s,
        elsewhere=stores.cancel_elsewhere,
    )
    in_flight = CallsInFlight(clock, state_dir, address_of=guard.client_address, recent=recent)
    usage_totals = live_calls = None
    state_sharing: tuple[StateSharing, ...] = ()
    if together is not None and isinstance(stores, SharedStores):
        usage_totals = usage_totals_of(settings, together)
        routing = RoutingShare(NewsStream(together), cooldowns, affinity)
        box = BoxShare(state_dir, clock, stores, background, books, usage_totals)
        live_calls = live_calls_of(settings, together, ThreadApart())
        teller = BoxTeller(
            live_calls, in_flight, books, clock, socket.gethostname(), is_mine=box.is_mine
        )
        state_sharing = (
            StateSharing(
                together, (routing.exchange, box.look, stores.responses.tell_uses), box.close
            ),
            # Beside it: it waits for workers, which may take a second.
            StateSharing(together, (teller.look,), name="calls of boxes"),
        )
    return Services(
        settings=settings,
        clock=clock,
        guard=guard,
        client_keys=client_keys,
        key_ring=key_ring,
        console_sessions=ConsoleSessions(database, clock),
        doctor=DoctorProcess(settings.environ),
        admission=admission,
        in_flight=in_flight,
        box_calls=BoxCalls(live_calls, clock, socket.gethostname(), sleep=sleep),
        budgets=budgets,
        connections=connections,
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
        web_site=web_site,
        web_chats=web_chats,
        web_media=web_media,
        transport=transport,
        ledger=ledger,
        metrics=counted,
        phone_login=None
        if state_dir is None
        else PhoneLogin(settings, state_dir, clock, begin=greenlets.later, sleep=sleep),
        metering=Metering(
            counted,
            SharedCounters(None if state_dir is None else state_dir / "metrics", since=clock.now()),
            clock,
            zeros=lambda: _zeros(pool),
            gauges=lambda: _gauges(admission, connections, pool),
            logins=lambda: _logins(pool),
        ),
        plans=plans,
        recordings=Recordings(None if state_dir is None else state_dir / "recordings", clock),
        redact=Redaction(_secrets(settings), DISCOVERED).redact,
        books=books,
        price_problem=price_problem,
        database=database,
        responses=stores.responses,
        background=background,
        host_objects=stores.host_objects,
        host_files=HostFiles(retrier, client, idle_s=settings.idle_timeout_s),
        token_counts=TokenCounts(files),
        state_key=state_key,
        videos=stores.videos,
        tasks=tasks,
        looks=TaskLooks(tasks, clock, workers=settings.workers, sleep=sleep),
        lost_tasks=LostTasks(client, tasks, clock, sleep=sleep),
        downloads=downloads,
        pictures=Pictures(settings, executor, tasks, downloads, web_media),
        uploads=Uploads(client, downloads),
        tool_runner=tool_runner or _tool_runner(settings, clock),
        pdf_reader=PdfReader(clock),
        tokenizer=HostTokenizer(settings, router, executor, clock),
        sandbox=sandbox,
        workers=workers,
        shared_store=shared_store,
        usage_totals=usage_totals,
        sharing=state_sharing,
        maintenance=Maintenance(
            discovery,
            files,
            Trials(pool, catalogue, outcomes),
            reporting,
            budgets,
            key_ring,
            partial(_bring_calls, ledger, books),
            cached_answers,
            WebRenewal(web_site, discovery.accounts, clock),
            partial(_delete_left_chats, web_chats, discovery),
        ),
        started_at=clock.monotonic(),
    )


def _delete_left_chats(chats: WebChats, discovery: Discovery) -> None:
    """Delete the temporary chats that killed workers have left in the operator's web account."""
    chats.sweep()
    for account in discovery.accounts():
        if isinstance(account.credential, WebCredential):
            chats.delete_left(account, {})


def plan_accounts(pool: AccountPool) -> list[PlanAccount]:
    """The accounts that belong to plans."""
    return [
        PlanAccount(account.name, account.family.value, limits)
        for account in pool.accounts()
        if (limits := pool.limits_of(account)) is not None
    ]


def _counters(
    settings: Settings, clock: Clock, state_dir: Path | None, shared_store: SharedStore | None
) -> Counters:
    """What counts what clients take: in files of this box, or with other boxes."""
    calendar = Calendar(settings.timezone)
    files = LimitCounters(None if state_dir is None else state_dir / "limits", clock, calendar)
    if shared_store is None:
        return files
    return SharedLimitCounters(shared_store, files, clock, calendar, later=greenlets.later)


def _prices(settings: Settings) -> tuple[Prices, str]:
    """The prices of models, and why those of the operator are not among them."""
    if not settings.prices:
        return price_table.load(), ""
    try:
        return price_table.load(Path(settings.prices)), ""
    except ValueError as error:
        return price_table.load(), (
            f"The prices of QWEN_PROXY_PRICES={settings.prices} are not used, and the built-in "
            f"ones are: {error}"
        )


def _bring_calls(ledger: Ledger, books: Books | None) -> None:
    """Bring what calls wrote down into the table, while the loop goes on."""
    ledger.flush()
    if books is not None:
        greenlets.apart(books.maintain)


def _share(settings: Settings, of_database: int) -> int:
    """The calls of one client key that a worker serves at a time: of several keys, none takes all
    places.

    Args:
        of_database: how many keys there are besides those of the environment.
    """
    most = settings.max_in_flight
    count = len(settings.all_client_keys) + of_database
    if not count:
        return most
    if count == 1:
        return max(1, most - _SPARE)  # so that a place is left for whoever looks what is wrong
    return max(1, math.ceil(most * settings.key_share))


def _models(pool: AccountPool, catalogue: Catalogue) -> set[str]:
    """The models of all accounts, as far as they are known."""
    return {model for account in pool.accounts() for model in catalogue.known(account).models}


def _logins(pool: AccountPool) -> list[tuple[str, Counter[str]]]:
    """The counters of each account's login, by the name of the account."""
    return [
        (account.name, account.credential.refresher.counters)
        for account in pool.accounts()
        if isinstance(account.credential, OAuthLogin)
    ]


def _zeros(pool: AccountPool) -> Iterable[metrics.Key]:
    outcomes = [outcome.value for outcome in Outcome]
    return metrics.zeros(
        CAUSES,
        [account.name for account in pool.accounts()],
        {account: outcomes for account, _ in _logins(pool)},
    )


def _gauges(admission: Admission, connections: Connections, pool: AccountPool) -> metrics.Rows:
    """How things are with this worker."""
    rows: metrics.Rows = {
        (metric_families.IN_FLIGHT.name,): [admission.in_flight],
        (metric_families.WEBSOCKETS.name,): [len(connections)],
    }
    for name, limiter in pool.limiters():
        rows[metric_families.ACCOUNT_IN_FLIGHT.name, name] = [limiter.in_flight]
        rows[metric_families.QUEUED.name, name] = [limiter.waiting]
    return rows


def _usable(statuses: AccountStatuses) -> tuple[int, int]:
    """How many accounts there are, and how many of them are usable."""
    states = [status.state for _, status in statuses.summary().accounts]
    return len(states), sum(state.is_usable for state in states)


def _secrets(settings: Settings) -> tuple[str, ...]:
    """The secrets that the settings hold."""
    return (
        *(*settings.all_client_keys, settings.upstream_api_key),
        *(settings.state_key, settings.old_state_key, settings.web_token),
        *settings.redis_secrets,
    )


def configure_logs(settings: Settings) -> None:
    """Send the package's log to standard error, without the secrets that the settings hold."""
    logs.configure(
        level=settings.log_level,
        style=settings.log_format,
        secrets=_secrets(settings),
        environ=settings.environ,
    )
