"""Several workers and several qwen-codes with one login, against single-use refresh tokens.

    python -m tests.torture [--seconds 60] [--workers 4] [--clis 4] [--kill]

The sandbox issues tokens that live for seconds, answers slowly, loses answers, and revokes access
tokens now and then. Workers are processes as gunicorn runs them, with the product's own code; the
others are `cli_lookalike`. All times of both are divided by the same number. With `--kill`, workers
are killed (SIGKILL) at random and replaced.

The goals: no refresh of ours is refused for reuse, and no login is lost. With `--kill`, the one
window that no client can close may cost a login, and then the log says so.
"""

from __future__ import annotations

import argparse
import sys

if "worker" in sys.argv[1:2]:
    # As in gunicorn.conf.py: before everything else.
    from gevent import monkey

    monkey.patch_all()

# ruff: noqa: E402
import http.client
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
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qwen_wsgi import settings
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.files import journal
from qwen_wsgi.credentials.files.login_store import LoginPaths, LoginStore
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.locks import cli_lock, stale
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.refresh import timing
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.refresh.timing import RefreshTiming
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.sandbox import Record, Sandbox

ROOT: Final = Path(__file__).resolve().parents[2]
#: Real seconds are divided by this.
SCALE: Final = 10.0
#: Life of an access token; with the scale it is minutes. Seconds.
LIFE_S: Final = 6.0
#: Greenlets of a worker, and their pause between two calls.
GREENLETS: Final = 6
CALL_PAUSE_S: Final = (0.05, 0.4)
#: What becomes of the next refresh, and how often: of a hundred. None of them loses an answer
#: whose token is spent, which no client could survive.
FAULTS: Final = (
    ("slow-after=0.4", 20),
    ("slow-after=0.9", 20),
    ("slow-before=0.5", 10),
    ("drop", 5),
    ("reset", 5),
    ("html-502", 5),
    ("throttle, retry-after=1", 5),
    ("", 30),
)
#: A login counts as lost when its refresh token is refused for this long: whoever has spent it may
#: just be writing its successor. Seconds.
LOST_AFTER_S: Final = 2.5
#: Pause between two kills, and between two revocations of all access tokens.
KILL_S: Final = (1.0, 4.0)
REVOKE_S: Final = (4.0, 12.0)

TIMING: Final = RefreshTiming(
    proxy_lock_s=timing.PROXY_LOCK_S / SCALE,
    cli_lock_s=timing.CLI_LOCK_S / SCALE,
    # Not in scale: a busy machine must not make us lose an answer.
    first_timeout_s=(2.0, 8.0),
    second_timeout_s=(2.0, 5.0),
    retry_s=timing.RETRY_S / SCALE,
    longest_retry_s=timing.LONGEST_RETRY_S / SCALE,
    urgent_retry_s=timing.URGENT_RETRY_S / SCALE,
    rejected_pause_s=timing.REJECTED_PAUSE_S,
    stale_s=stale.STALE_S / SCALE,
    seen_s=stale.SEEN_S / SCALE,
    heartbeat_s=cli_lock.HEARTBEAT_S / SCALE,
    gone_s=timing.GONE_S / SCALE,
    lifetime_s=LIFE_S,
)


@dataclass
class Result:
    """What was seen."""

    #: Token requests by who sent them ("us", "cli") and by how they ended.
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Outcomes of our attempts and events of our locks, by the workers' logs.
    ours: Counter[str] = field(default_factory=Counter)
    #: What the look-alikes noted.
    clis: Counter[str] = field(default_factory=Counter)
    #: Fingerprints of refresh tokens that nobody knows the successor of.
    lost: list[str] = field(default_factory=list)
    #: Logins that a look-alike deleted while the journal had none that counts: the file was that
    #: of another one; or, with kills, its token was spent in the window and they noticed first.
    lost_by_clis: int = 0
    #: Lines in our logs that name an attempt whose answer a crash has lost.
    named: int = 0
    killed: int = 0
    revoked: int = 0
    secrets_logged: int = 0

    @property
    def reused(self) -> int:
        """Refreshes of ours that were refused and that nothing excuses.

        It is no fault of ours when a look-alike took away the lock of another one that still
        waited for its answer, or ours; and after a kill the one more sending is as designed.
        """
        return 0 if self.killed else max(0, self.sent["us", "refused"] - self.locks_broken)

    @property
    def locks_broken(self) -> int:
        """How often a look-alike took the lock of another process that was at work."""
        return self.clis["lock-removed-at-exit-of-another"] + self.clis["lock-taken-over"]

    @property
    def explained(self) -> int:
        """How many of the lost logins are no fault of ours: the one unrecoverable window took them;
        or two look-alikes sent one token because the lock was broken, and the one that was refused
        deleted the file in which the other one had just written the successor."""
        deleted = min(self.clis["file-deleted"], self.locks_broken)
        return min(self.named + deleted, len(self.lost))

    def good(self) -> bool:
        return not self.reused and len(self.lost) == self.explained and not self.secrets_logged

    def table(self) -> str:
        rows = [("", "qwen-proxy", "qwen-code look-alikes")]
        for name in ("carried out", "refused for reuse", "failed or lost on purpose"):
            key = {"carried out": "ok", "refused for reuse": "refused"}.get(name, "lost")
            rows.append(
                (f"refreshes {name}", str(self.sent["us", key]), str(self.sent["cli", key]))
            )
        for name in ("adopted", "ambiguous", "not_sent", "throttled", "lock_timeout", "rejected"):
            rows.append((f"attempts: {name}", str(self.ours[f"outcome={name}"]), "–"))
        for name in ("foreign_lock_lost", "foreign_lock_broken", "own_dead_lock_broken"):
            rows.append((f"lock: {name}", str(self.ours[f"event={name}"]), "–"))
        for name in (
            "lock-removed-at-exit",
            "lock-removed-at-exit-of-another",
            "lock-taken-over",
            "lock-timeout",
            "file-deleted",
        ):
            rows.append((name.replace("-", " "), "–", str(self.clis[name])))
        rows.append(("files that the other one calls invalid", "–", str(self.clis["invalid-file"])))
        rows.append(("API calls answered", str(self.ours["call-200"]), str(self.clis["call-200"])))
        rows.append(("API calls refused", str(self.ours["call-401"]), str(self.clis["call-401"])))
        for name in sorted(name for name in self.ours if name.startswith("no-token: ")):
            rows.append((name.replace("no-token", "no token"), str(self.ours[name]), "–"))
        rows.append(("workers killed", str(self.killed), "–"))
        rows.append(("logins lost", str(len(self.lost)), str(self.lost_by_clis)))
        rows.append(("… of them no fault of ours", str(self.explained), "–"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)


# --- a worker ------------------------------------------------------------------------------------


def work(seconds: float) -> None:
    """Use the login as a worker does, until the time is up; then drain, as on a graceful stop."""
    import gevent

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    loaded, clock = settings.load(), SystemClock()
    login = Discovery(loaded, clock).logins()[0]
    login.refresher = Refresher(
        login.store, TokenEndpoint(loaded.oauth_base_url, clock=clock), clock, timing=TIMING
    )
    end_s = time.monotonic() + seconds
    seen: Counter[str] = Counter()

    def call() -> None:
        while time.monotonic() < end_s:
            rejected = None
            for _ in range(2):
                try:
                    token = login.current(rejected=rejected)
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
        while time.monotonic() < end_s:
            login.maintain()
            time.sleep(0.5)

    gevent.joinall([gevent.spawn(call) for _ in range(GREENLETS)] + [gevent.spawn(maintain)])
    login.refresher.drain(10)
    print(json.dumps(seen), flush=True)


def ask(origin: str, token: str) -> int:
    """Make a call; its status, 0 if there was none."""
    connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=10)
    body = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def log_in(sandbox: Sandbox, paths: LoginPaths) -> None:
    """As a person would, who has to: without any lock."""
    tokens = sandbox.issue()
    document = {
        "access_token": tokens["access_token"],
        "refresh_token": tokens["refresh_token"],
        "token_type": "Bearer",
        "resource_url": tokens["resource_url"],
        "expiry_date": int((time.time() + LIFE_S) * 1000),
    }
    paths.document.parent.mkdir(exist_ok=True)
    aside = paths.document.with_suffix(".person")
    aside.write_text(json.dumps(document, indent=2))
    aside.chmod(0o600)
    aside.rename(paths.document)


def was_forced(store: LoginStore) -> bool:
    """Whether the token is the answer to a refusal: if it is refused, too, an account counts as
    closed."""
    snapshot = store.snapshot()
    login, received = snapshot.newest.login, snapshot.journal.received
    if login is None or received is None or not received.forced:
        return False
    return login.access_token == received.login.access_token


# --- the run -------------------------------------------------------------------------------------


class Torture:
    """One run; a context manager that leaves no process behind."""

    def __init__(self, *, seconds: float, workers: int, clis: int, kill: bool) -> None:
        self.result = Result()
        self._workers = workers
        self._clis = clis
        self._kill = kill
        self._seconds = seconds
        self._sandbox = Sandbox()
        self._directory = Path(tempfile.mkdtemp(prefix="qwen-torture-"))
        self._paths = LoginPaths.beside(self._directory / ".qwen/oauth_creds.json")
        self._store = LoginStore(self._paths, SystemClock(), shown="login")
        self._processes: list[subprocess.Popen[str]] = []
        self._logs: list[Path] = []
        self._end_s = 0.0
        self._counted = 0
        self._open: list[Record] = []
        self._refused_since_s: float | None = None

    def __enter__(self) -> Torture:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        shutil.rmtree(self._directory, ignore_errors=True)

    def run(self) -> Result:
        with self._sandbox:
            self._sandbox.control(access_ttl_s=LIFE_S)
            log_in(self._sandbox, self._paths)
            self._end_s = time.monotonic() + self._seconds
            workers = [self._start_worker() for _ in range(self._workers)]
            clis = [self._start_cli(("old", "new")[i % 2]) for i in range(self._clis)]
            self._trouble(workers)
            self._collect(workers, self.result.ours)
            self._collect(clis, self.result.clis)
            self._sandbox.settle()
            self._count()
            self._check_login(final=True)
        for path in self._logs:
            self._read_log(path.read_text())
        return self.result

    def _start(self, log: str, *command: object) -> subprocess.Popen[str]:
        path = self._directory / f"{log}-{len(self._processes)}.log"
        self._logs.append(path)
        with path.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                cwd=ROOT,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self._directory),
                    "QWEN_OAUTH_BASE_URL": self._sandbox.origin,
                },
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
            )
        self._processes.append(process)
        return process

    def _start_worker(self) -> subprocess.Popen[str]:
        left_s = max(0.5, self._end_s - time.monotonic())
        return self._start("worker", "tests.torture.run", "worker", left_s)

    def _start_cli(self, generation: str) -> subprocess.Popen[str]:
        place, origin = self._paths.document.parent, self._sandbox.origin
        return self._start(
            "cli", "tests.torture.cli_lookalike", place, origin, generation, SCALE, self._seconds
        )

    def _trouble(self, workers: list[subprocess.Popen[str]]) -> None:
        """Until the end: choose faults, kill workers, revoke tokens, and look at the login."""
        specs, weights = zip(*FAULTS, strict=True)
        now_s = time.monotonic()
        kill_s = now_s + 1.0
        revoke_s = now_s + random.uniform(*REVOKE_S)
        while (now_s := time.monotonic()) < self._end_s:
            self._sandbox.control(faults={"token": random.choices(specs, weights)[0]})
            if self._kill and now_s > kill_s:
                kill_s = now_s + random.uniform(*KILL_S)
                number = self._victim(workers)
                workers[number].send_signal(signal.SIGKILL)
                self.result.killed += 1
                workers[number] = self._start_worker()
            if now_s > revoke_s and not was_forced(self._store):
                revoke_s = now_s + random.uniform(*REVOKE_S)
                self._sandbox.control(revoke_access_tokens=True)
                self.result.revoked += 1
            self._count()
            self._check_login(final=False)
            time.sleep(0.1)
        self._sandbox.control(faults={"token": ""})

    def _victim(self, workers: list[subprocess.Popen[str]]) -> int:
        """Mostly the one that is renewing the login, if somebody begins to within a while."""
        end_s = time.monotonic() + random.uniform(0.0, 1.5)
        while time.monotonic() < end_s:
            with suppress(OSError):
                holder = ProxyLock(self._paths.proxy_lock).holder()
                for number, worker in enumerate(workers):
                    if holder is not None and worker.pid == holder.pid:
                        time.sleep(random.uniform(0.0, 0.5))  # somewhere in the middle of it
                        return number
            time.sleep(0.02)
        return random.randrange(len(workers))

    def _check_login(self, *, final: bool) -> None:
        """Notice a lost login, and make a new one."""
        now_s = time.monotonic()
        with suppress(Unusable, OSError):
            snapshot = self._store.reload()
            login = snapshot.newest.login
            dead = (
                login is None
                or journal.fingerprint(login.refresh_token) in snapshot.journal.tombstones
            )
            if not dead:
                self._refused_since_s = None
            elif self._refused_since_s is None:
                self._refused_since_s = now_s
            if dead and (final or now_s - (self._refused_since_s or now_s) > LOST_AFTER_S):
                if login is None:
                    # The file held what a look-alike had fetched, and another one deleted it.
                    self.result.lost_by_clis += 1
                else:
                    self.result.lost.append(journal.fingerprint(login.refresh_token))
                self._refused_since_s = None
                log_in(self._sandbox, self._paths)

    def _count(self) -> None:
        """Token requests that have ended since the last look, by who sent them."""
        fresh = [r for r in self._sandbox.requests if r.seq > self._counted and r.route == "token"]
        self._counted = max([self._counted, *(r.seq for r in self._sandbox.requests)])
        waiting = []
        for record in self._open + fresh:
            if record.outcome == "open":
                waiting.append(record)
                continue
            ours = record.headers.get("user-agent", "").startswith("qwen-proxy/")
            how = {200: "ok", 400: "refused"}.get(record.status, "lost")
            self.result.sent["us" if ours else "cli", how] += 1
        self._open = waiting

    def _collect(self, processes: list[subprocess.Popen[str]], into: Counter[str]) -> None:
        for process in processes:
            out, _ = process.communicate(timeout=60)
            for line in out.splitlines():
                into.update(Counter(json.loads(line)))

    def _read_log(self, text: str) -> None:
        self.result.ours.update(re.findall(r"\boutcome=\w+", text))
        self.result.ours.update(re.findall(r"\bevent=\w+", text))
        self.result.named += text.count("was lost in a crash")
        self.result.secrets_logged += "sandbox-at-" in text or "sandbox-rt-" in text
        self.result.ours["traceback"] += text.count("Traceback")


def run(*, seconds: float, workers: int = 4, clis: int = 4, kill: bool = False) -> Result:
    """Torture a login of one's own for so long."""
    with Torture(seconds=seconds, workers=workers, clis=clis, kill=kill) as torture:
        return torture.run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clis", type=int, default=4)
    parser.add_argument("--kill", action="store_true", help="kill workers at random")
    chosen = parser.parse_args(arguments)
    result = run(seconds=chosen.seconds, workers=chosen.workers, clis=chosen.clis, kill=chosen.kill)
    print(result.table())
    print("goals met" if result.good() else "goals NOT met")
    return 0 if result.good() else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(float(sys.argv[2]))
    else:
        sys.exit(main())
