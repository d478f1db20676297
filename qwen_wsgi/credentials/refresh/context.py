"""What the parts of one login's refresh share: a fixed context, and the state of this process."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files.durable import WriteProblem
from qwen_wsgi.credentials.files.journal import Closed
from qwen_wsgi.credentials.files.login_store import LoginStore
from qwen_wsgi.credentials.locks.cli_lock import CliLock
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.refresh.attempt import Attempt
from qwen_wsgi.credentials.refresh.timing import RefreshTiming
from qwen_wsgi.credentials.shared.shared_login import SharedLogin

log = logging.getLogger(__name__)


class RunningAttempt:
    """The attempt under way, for callers that wait for it."""

    def __init__(self) -> None:
        #: The login has changed, or the attempt has ended: look at the login again.
        self.progress = threading.Event()
        #: The thread has ended.
        self.over = threading.Event()


@dataclass
class RefreshState:
    """What this process knows about the login beside its files. Only this package writes it.

    Attributes:
        read_only: why the files cannot be replaced; None when they can, as far as is known.
        unsaved: why the latest login is in this process's memory alone; empty when it is on disk.
        deadlines: of the latest two access tokens that this process fetched: when each expires, by
            boot time.
        refused: fingerprints of refused refresh tokens; the journal has them too, unless it cannot
            be written.
        closed: the access token of a closed account, as long as the journal could not be written.
        answered: fingerprint of the latest access token that the API accepted.
        trial_until: until when (monotonic) a call tries a closed login again.
        pause: until when (monotonic) this process makes no attempt with the refresh token of that
            fingerprint.
        draining: the process is stopping; nothing new is sent.
        attempt_id: stands in every log line of the attempt under way.
    """

    read_only: WriteProblem | None = None
    unsaved: str = ""
    deadlines: dict[str, float] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    closed: Closed | None = None
    answered: str = ""
    trial_until: float = -math.inf
    pause: tuple[str, float] = ("", 0.0)
    draining: bool = False
    attempt_id: str = ""
    last: Attempt | None = None
    running: RunningAttempt | None = None
    counters: Counter[str] = field(default_factory=Counter)

    def notify_waiters(self) -> None:
        """Let the callers that wait for the attempt go on before it ends."""
        if (running := self.running) is not None:
            running.progress.set()


@dataclass(frozen=True)
class RefreshContext:
    """What never changes: the login's files, endpoint and locks, and the clocks and times.

    Attributes:
        boottime: seconds that never step and go on while the machine is suspended.
        checkpoint: called between two steps of an attempt, see `Refresher`.
        share: from 0 to 1, drawn once per process, so that workers do not all become stale in the
            same moment.
    """

    store: LoginStore
    endpoint: TokenEndpoint
    clock: Clock
    boottime: Callable[[], float]
    timing: RefreshTiming
    sleep: Callable[[float], None]
    checkpoint: Callable[[str], None]
    share: float
    proxy_lock: ProxyLock
    cli_lock: CliLock
    #: None: it is this box's alone.
    shared: SharedLogin | None = None


def cli_lock_of(
    store: LoginStore, clock: Clock, timing: RefreshTiming, state: RefreshState
) -> CliLock:
    """qwen-code's lock for a login; its events are counted in `state` and logged."""

    def on_event(name: str, fields: Mapping[str, object] | None = None) -> None:
        state.counters[f"{name}_total"] += 1
        log.warning(
            "login lock event=%s login=%s attempt=%s %s",
            name,
            store.shown,
            state.attempt_id,
            dict(fields or {}),
        )

    return CliLock(
        store.paths.cli_lock,
        clock=clock,
        stale_s=timing.stale_s,
        seen_s=timing.seen_s,
        heartbeat_s=timing.heartbeat_s,
        on_event=on_event,
    )
