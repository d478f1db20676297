"""Two boxes with one login in Redis, against single-use refresh tokens.

    python -m tests.torture.boxes [--seconds 60] [--workers 2] [--clis 1] [--calm]

The first box has qwen-code's file, and qwen-code look-alikes beside it; the other one has nothing.
Workers are killed (SIGKILL), stopped for longer than a lease lasts (SIGSTOP), and a whole box is
stopped in order and started again; Redis is killed and started empty, stopped, and flushed. The
sandbox slows down, loses requests, and revokes access tokens; it never loses an answer.

The goals: no refresh token is sent by two boxes, none is refused for reuse but after a kill in the
one window that no client can close, no login is lost, and in the end both boxes have the same one.
With `--calm` nothing is killed or stopped but Redis: then nothing may be refused at all.
"""

from __future__ import annotations

import argparse
import sys

if "worker" in sys.argv[1:2]:
    # As in gunicorn.conf.py: before everything else.
    from gevent import monkey

    monkey.patch_all()

# ruff: noqa: E402
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qwen_wsgi import greenlets, settings
from qwen_wsgi.clock import SystemClock, sleep
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import LoginPaths, LoginStore
from qwen_wsgi.credentials.oauth.token_endpoint import Timeout, TokenAnswer, TokenEndpoint
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.shared import custody
from qwen_wsgi.credentials.shared.shared_login import SharingTiming
from qwen_wsgi.credentials.shared.sharing import Sharing
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.sandbox import Record, Sandbox
from qwen_wsgi.state.redis.connection import SharedStore
from qwen_wsgi.state.redis.logins import RedisLogins
from tests.kit.redis_server import RedisServer
from tests.torture.run import (
    CALL_PAUSE_S,
    FAULTS,
    GREENLETS,
    LIFE_S,
    LOST_AFTER_S,
    REVOKE_S,
    ROOT,
    SCALE,
    TIMING,
    ask,
    log_in,
    was_forced,
)

SHARING: Final = SharingTiming(
    lease_s=custody.LEASE_S / SCALE,
    settle_s=custody.SETTLE_S / SCALE,
    # Not in scale: calls wait for 20 s.
    ask_s=5.0,
    ask_every_s=0.1,
)
log = logging.getLogger(__name__)

STATE_KEY: Final = "torture-" * 5
#: What happens between two pauses, and how often: of a hundred.
CALM: Final = (("kill redis", 25), ("stop redis", 25), ("flush redis", 20), ("nothing", 30))
WILD: Final = (
    ("kill redis", 10),
    ("stop redis", 10),
    ("flush redis", 10),
    ("kill worker", 40),
    ("stop worker", 15),
    ("restart box", 15),
)
PAUSE_S: Final = (0.5, 2.0)
#: Nothing is broken any more in the last seconds, so that all can come to rest.
REST_S: Final = 4.0


@dataclass
class Result:
    """What was seen."""

    #: How the token requests of our boxes ended.
    sent: Counter[int] = field(default_factory=Counter)
    #: Refresh tokens that two boxes sent.
    twice: list[str] = field(default_factory=list)
    #: Refused refreshes of ours.
    refused: int = 0
    #: What workers noted, and outcomes by their logs.
    ours: Counter[str] = field(default_factory=Counter)
    trouble: Counter[str] = field(default_factory=Counter)
    #: Logins whose refresh token was refused for good, and those of them that our log explains: a
    #: kill between a request and its answer.
    logins_lost: int = 0
    named: int = 0
    in_step: bool = False
    secrets_logged: int = 0
    wild: bool = False

    def good(self) -> bool:
        refused = 0 if self.wild else self.refused
        return (
            not (self.twice or refused or self.logins_lost > self.named or self.secrets_logged)
            and self.in_step
        )

    def table(self) -> str:
        rows = [
            f"token requests by status   {dict(self.sent)}",
            f"sent by both boxes         {len(self.twice)}",
            f"refused                    {self.refused}",
            f"logins lost                {self.logins_lost} (explained: {self.named})",
            f"in step at the end         {self.in_step}",
            f"trouble                    {dict(self.trouble)}",
            f"workers                    {dict(sorted(self.ours.items()))}",
        ]
        return "\n".join(rows)


# --- a worker ------------------------------------------------------------------------------------


class NotingEndpoint(TokenEndpoint):
    """Notes in the log which refresh token is sent: the sandbox keeps none."""

    def refresh(
        self,
        refresh_token: str,
        *,
        timeout_s: Timeout = (3.0, 10.0),
        before_send: Callable[[], None] = lambda: None,
    ) -> TokenAnswer:
        def noted() -> None:
            before_send()
            log.info("sending=%s", fingerprint(refresh_token))

        return super().refresh(refresh_token, timeout_s=timeout_s, before_send=noted)


def work(seconds: float) -> None:
    """Use the login as a worker of its box does; SIGTERM is an orderly stop."""
    import gevent

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s.%(msecs)03d %(process)d %(message)s"
    )
    loaded, clock = settings.load(), SystemClock()
    within = greenlets.within
    print(f"box={os.environ['TORTURE_BOX']}", file=sys.stderr, flush=True)
    store = SharedStore(
        os.environ["TORTURE_REDIS"], os.environ["TORTURE_BOX"], clock, within=within
    )
    store.start()
    sharing = Sharing(
        RedisLogins(store, [STATE_KEY]),
        Path(loaded.state_dir) / "logins",
        clock,
        sleep,
        SHARING,
    )
    discovery = Discovery(loaded, clock, sharing=sharing)
    endpoint = NotingEndpoint(loaded.oauth_base_url, clock=clock)
    scaled: set[OAuthLogin] = set()
    end_s = [time.monotonic() + seconds]
    seen: Counter[str] = Counter()
    signal.signal(signal.SIGTERM, lambda *_: end_s.__setitem__(0, 0.0))

    def login() -> OAuthLogin | None:
        for each in discovery.logins():
            if each not in scaled:
                shared = each.refresher.context.shared
                each.refresher = Refresher(
                    each.store, endpoint, clock, timing=TIMING, shared=shared
                )
                scaled.add(each)
            return each
        return None

    def call() -> None:
        while time.monotonic() < end_s[0]:
            rejected = None
            for _ in range(2):
                if (used := login()) is None:
                    seen["no-login"] += 1
                    break
                try:
                    token = used.current(rejected=rejected)
                except CredentialError as error:
                    seen[f"no-token: {error.code}"] += 1
                    break
                status = ask(loaded.oauth_base_url, token.value)
                seen[f"call-{status}"] += 1
                if status != 401:
                    break
                rejected = token.value
            time.sleep(random.uniform(*CALL_PAUSE_S))

    def maintain() -> None:
        while time.monotonic() < end_s[0]:
            login()
            discovery.maintain()
            time.sleep(0.4)

    gevent.joinall([gevent.spawn(call) for _ in range(GREENLETS)] + [gevent.spawn(maintain)])
    for each in scaled:
        each.refresher.drain(10)
        if (shared := each.refresher.context.shared) is not None and end_s[0] == 0.0:
            shared.release()
    store.close()
    print(json.dumps(seen), flush=True)


# --- the run -------------------------------------------------------------------------------------


class Box:
    """The processes of one box, and its directories."""

    def __init__(self, number: int, torture: Torture) -> None:
        self.number = number
        self.workers: list[subprocess.Popen[str]] = []
        self._torture = torture
        self.home = torture.directory / f"box{number}"
        self.home.mkdir()
        place = ".qwen" if number == 0 else "state/logins"
        self.paths = LoginPaths.beside(self.home / place / "oauth_creds.json")
        self.store = LoginStore(self.paths, SystemClock(), shown="login")

    def start(self) -> subprocess.Popen[str]:
        torture = self._torture
        environ = {
            "HOME": str(self.home),
            "QWEN_OAUTH_BASE_URL": torture.origin,
            "QWEN_PROXY_STATE_DIR": str(self.home / "state"),
            "TORTURE_REDIS": torture.redis.url,
            "TORTURE_BOX": f"b{self.number}",
        }
        left_s = max(0.5, torture.end_s - time.monotonic())
        worker = torture.start("worker", environ, "tests.torture.boxes", "worker", left_s)
        self.workers.append(worker)
        return worker


class Torture:
    """One run; a context manager that leaves no process behind."""

    def __init__(self, *, seconds: float, workers: int, clis: int, wild: bool) -> None:
        self.result = Result(wild=wild)
        self.directory = Path(tempfile.mkdtemp(prefix="qwen-boxes-"))
        (self.directory / "redis").mkdir()
        self.redis = RedisServer(self.directory / "redis")
        self.redis.start()
        self.end_s = 0.0
        self._seconds, self._workers, self._clis = seconds, workers, clis
        self._sandbox = Sandbox()
        self._processes: list[subprocess.Popen[str]] = []
        self._logs: list[Path] = []
        #: When, and what then: something that was stopped goes on.
        self._dead_since_s = 0.0
        self._noted = 0
        #: By fingerprint of the refresh token: the boxes that sent it.
        self._senders: dict[str, set[str]] = defaultdict(set)
        #: To the token endpoint.
        self._requests: list[Record] = []
        self._later: list[tuple[float, Callable[[], object]]] = []

    def __enter__(self) -> Torture:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self.redis.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def origin(self) -> str:
        return self._sandbox.origin

    def start(self, log: str, environ: dict[str, str], *command: object) -> subprocess.Popen[str]:
        path = self.directory / f"{log}-{len(self._processes)}.log"
        self._logs.append(path)
        with path.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                cwd=ROOT,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                    **environ,
                },
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
            )
        self._processes.append(process)
        return process

    def run(self) -> Result:
        with self._sandbox:
            self._sandbox.control(access_ttl_s=LIFE_S)
            boxes = [Box(number, self) for number in range(2)]
            log_in(self._sandbox, boxes[0].paths)
            self.end_s = time.monotonic() + self._seconds
            for box in boxes:
                for _ in range(self._workers):
                    box.start()
            clis = [self._start_cli(boxes[0], ("old", "new")[i % 2]) for i in range(self._clis)]
            self._trouble(boxes)
            for process in self._processes:
                out, _ = process.communicate(timeout=60)
                if process not in clis:
                    for line in out.splitlines():
                        self.result.ours.update(Counter(json.loads(line)))
            self._sandbox.settle()
            self._note_requests()
            self._judge(boxes)
        for path in self._logs:
            self._read_log(path.read_text())
        self.result.twice = [fp for fp, boxes in self._senders.items() if len(boxes) > 1]
        return self.result

    def _start_cli(self, box: Box, generation: str) -> subprocess.Popen[str]:
        return self.start(
            "cli",
            {"HOME": str(box.home)},
            "tests.torture.cli_lookalike",
            box.paths.document.parent,
            self._sandbox.origin,
            generation,
            SCALE,
            self._seconds,
        )

    # --- trouble ---------------------------------------------------------------------------------

    def _trouble(self, boxes: list[Box]) -> None:
        specs, weights = zip(*FAULTS, strict=True)
        events, often = zip(*(WILD if self.result.wild else CALM), strict=True)
        now_s = time.monotonic()
        next_s, revoke_s = now_s + 2.0, now_s + random.uniform(*REVOKE_S)
        while (now_s := time.monotonic()) < self.end_s - REST_S:
            self._sandbox.control(faults={"token": random.choices(specs, weights)[0]})
            if now_s > next_s:
                next_s = now_s + random.uniform(*PAUSE_S)
                self._do(random.choices(events, often)[0], boxes)
            if now_s > revoke_s and not any(was_forced(box.store) for box in boxes):
                revoke_s = now_s + random.uniform(*REVOKE_S)
                self._sandbox.control(revoke_access_tokens=True)
                self.result.trouble["revoked"] += 1
            self._go_on(now_s)
            self._check_login(boxes[0], now_s)
            self._note_requests()
            time.sleep(0.1)
        self._go_on(float("inf"))
        self._sandbox.control(faults={"token": ""})

    def _check_login(self, box: Box, now_s: float) -> None:
        """Notice a login that is lost, and make a new one, as a person would."""
        if not _is_dead(box):
            self._dead_since_s = now_s
        elif now_s - self._dead_since_s > LOST_AFTER_S:
            self.result.logins_lost += 1
            log_in(self._sandbox, box.paths)

    def _do(self, event: str, boxes: list[Box]) -> None:
        box = random.choice(boxes)
        self.result.trouble[event] += 1
        now_s = time.monotonic()
        if event == "kill redis" and not self._later:
            self.redis.kill()
            self._later.append((now_s + random.uniform(0.2, 3.0), self.redis.start))
        elif event == "stop redis" and not self._later:
            self.redis.send(signal.SIGSTOP)
            self._later.append(
                (now_s + random.uniform(0.2, 3.0), lambda: self.redis.send(signal.SIGCONT))
            )
        elif event == "flush redis" and not self._later:
            self.redis.command("FLUSHALL")
        elif not box.workers:
            return  # the whole box is stopped
        elif event == "kill worker":
            worker = box.workers.pop(random.randrange(len(box.workers)))
            worker.send_signal(signal.SIGKILL)
            box.start()
        elif event == "stop worker":
            worker = random.choice(box.workers)
            worker.send_signal(signal.SIGSTOP)
            # Some for longer than a lease.
            self._later.append(
                (
                    now_s + random.uniform(0.3, 1.4 * SHARING.lease_s),
                    lambda: worker.send_signal(signal.SIGCONT),
                )
            )
        elif event == "restart box":
            for worker in box.workers:
                worker.send_signal(signal.SIGTERM)
            box.workers.clear()
            self._later.append((now_s + random.uniform(1.0, 4.0), box.start))
            box.start() if random.random() < 0.5 else None

    def _go_on(self, now_s: float) -> None:
        due = [each for each in self._later if each[0] <= now_s]
        self._later = [each for each in self._later if each[0] > now_s]
        for _, work in due:
            work()

    # --- the verdict -----------------------------------------------------------------------------

    def _note_requests(self) -> None:
        """The sandbox remembers only the latest requests."""
        fresh = [each for each in self._sandbox.requests if each.seq > self._noted]
        self._noted = max([self._noted, *(each.seq for each in fresh)])
        self._requests += (each for each in fresh if each.route == "token")

    def _judge(self, boxes: list[Box]) -> None:
        result = self.result
        for record in self._requests:
            if not record.headers.get("user-agent", "").startswith("qwen-proxy/"):
                continue
            result.sent[record.status] += 1
            result.refused += record.status == 400
        # The last renewal may have come after the other box's last look.
        snapshots = [box.store.reload() for box in boxes]
        first, second = (
            fingerprint(each.newest.login.refresh_token) if each.newest.login else ""
            for each in snapshots
        )
        result.in_step = bool(first) and (
            first == second
            or second in snapshots[0].journal.spent
            or first in snapshots[1].journal.spent
        )

    def _read_log(self, text: str) -> None:
        self.result.ours.update(re.findall(r"\boutcome=\w+", text))
        box = (re.findall(r"^box=(\w+)", text) or [""])[0]
        for fp in re.findall(r"\bsending=(\w+)", text):
            self._senders[fp].add(box)
        self.result.named += len(
            re.findall(r"was lost in a crash|was lost, and it was the login", text)
        )
        self.result.ours["traceback"] += text.count("Traceback")
        self.result.secrets_logged += "sandbox-at-" in text or "sandbox-rt-" in text


def _is_dead(box: Box) -> bool:
    """Whether the login service has refused the box's login for good."""
    snapshot = box.store.reload()
    login = snapshot.newest.login
    return login is None or fingerprint(login.refresh_token) in snapshot.journal.tombstones


def run(*, seconds: float, workers: int = 2, clis: int = 0, wild: bool = True) -> Result:
    """Torture a login of two boxes for so long."""
    with Torture(seconds=seconds, workers=workers, clis=clis, wild=wild) as torture:
        return torture.run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2, help="of each box")
    parser.add_argument("--clis", type=int, default=1)
    parser.add_argument("--calm", action="store_true", help="only Redis is in trouble")
    chosen = parser.parse_args(arguments)
    result = run(
        seconds=chosen.seconds,
        workers=chosen.workers,
        clis=chosen.clis,
        wild=not chosen.calm,
    )
    print(result.table())
    print("goals met" if result.good() else "goals NOT met")
    return 0 if result.good() else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(float(sys.argv[2]))
    else:
        sys.exit(main())
