"""Hostile clients and hostile upstreams at once against a real server, and one client beside them.

    python -m tests.attack [--seconds 60] [--attackers 6] [--seed N] [--keep DIRECTORY]

`qwen-proxy serve` with two workers and two accounts. One account is at an upstream that means harm
(`upstream.py`), the other one at a sandbox that serves the client that asks all the time
(`bystander.py`). The attackers draw from `clients.ATTACKS`.

The goals: no worker dies; nobody gets a 500; afterwards no place, connection, file or thread is
left; memory stays within its bound; of a thousand requests of the client, 999 are answered within
500 ms of the time in which the server had a CPU, and all are answered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.attack.clients import ATTACKS, Aim, Attack, prepare
from tests.kit import open_files, processes
from tests.kit.open_files import OpenFiles
from tests.kit.proxy import Proxy, start
from tests.kit.raw_client import Exchange
from tests.kit.secrets import secret

_SETTLE_S: Final = 30.0
#: An attack lasts longer only if the server hangs.
_ATTACK_S: Final = 60.0
_LOOK_S: Final = 0.25
#: An upstream connection that is kept for others is no leak; so many are kept.
_KEPT: Final = 10

#: What a worker opens when it needs it first: a database, and a thread for long bodies.
_LAZY_FILES: Final = 6
_LAZY_THREADS: Final = 2

_SETTINGS: Final = {
    "QWEN_PROXY_WORKERS": "2",
    "QWEN_PROXY_MAX_IN_FLIGHT": "32",
    "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "2",
    "QWEN_PROXY_IDLE_TIMEOUT": "2",
    "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.5",
    "QWEN_PROXY_MAX_ANSWER": "16m",
    "QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT": "192m",
    "QWEN_PROXY_WEBSOCKETS_PER_KEY": "4",
}


@dataclass(frozen=True)
class Plan:
    """An attack: how much of it, and what is still good.

    Attributes:
        peak_kb: what a worker may need at most, while it is attacked.
        growth_kb: what it may need more at the end than after the first half.
    """

    seconds: float
    attackers: int = 6
    seed: int | None = None
    wait_s: float = 0.5
    peak_kb: float = 1024 * 1024
    growth_kb: float = 96 * 1024


@dataclass(frozen=True)
class Look:
    """A worker as it is now, seen from outside. Memory in kB (PSS)."""

    memory_kb: float
    threads: int
    files: OpenFiles


@dataclass
class Result:
    """What was seen."""

    plan: Plan
    attacks: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    #: Attacks that had an effect that none may have.
    wrong: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    pids_at_end: list[int] = field(default_factory=list)
    #: By worker: before, after the first half, at the end.
    looks: list[dict[int, Look]] = field(default_factory=list)
    peak_kb: float = 0.0
    places: list[int] = field(default_factory=list)
    bystander: dict[str, Any] = field(default_factory=dict)
    log_faults: list[str] = field(default_factory=list)
    exit_status: int | None = None

    @property
    def slowest_s(self) -> float:
        """The wait that 99.9 % of the bystander's requests did not exceed, by the server's part."""
        longest: list[float] = self.bystander["served_s"]
        asked: int = self.bystander["asked"]
        return longest[min(asked // 1000, len(longest) - 1)]

    def complaints(self) -> list[str]:
        """What does not hold; nothing, if all is well."""
        told = [f"an attack: {text}" for text in self.wrong[:10]]
        told += [f"500 for {name}" for name, status in self.statuses if status == 500]
        if self.pids_at_end != self.pids:
            return [*told, f"workers {self.pids} became {self.pids_at_end}"]
        told += [f"places are taken: {self.places}"] if any(self.places) else []
        for pid in self.pids:
            told += self._left_over(pid)
        if self.peak_kb > self.plan.peak_kb:
            told.append(f"a worker needed {self.peak_kb / 1024:.0f} MB")
        told += [f"the other client: {text}" for text in self.bystander["faults"][:5]]
        if self.slowest_s > self.plan.wait_s:
            told.append(f"the other client waited {self.slowest_s:.3f} s for the server")
        told += [f"log: {text}" for text in self.log_faults[:5]]
        if self.exit_status != 0:
            told.append(f"the server's exit status after SIGTERM is {self.exit_status}")
        return told

    def _left_over(self, pid: int) -> Iterator[str]:
        _, half, last = (look[pid] for look in self.looks)
        if last.files.client:
            yield f"worker {pid}: {last.files.client} connections of clients are open"
        if last.files.upstream > _KEPT:
            yield f"worker {pid}: {last.files.upstream} connections to upstreams are open"
        before, after = half.files.other.total(), last.files.other.total()
        if after > before + _LAZY_FILES:
            fresh = last.files.more_than(half.files)
            yield f"worker {pid}: other files {before} → {after}: {fresh}"
        if last.threads > half.threads + _LAZY_THREADS:
            yield f"worker {pid}: threads {half.threads} → {last.threads}"
        if (more := last.memory_kb - half.memory_kb) > self.plan.growth_kb:
            yield f"worker {pid} grew by {more / 1024:.0f} MB"

    def table(self) -> str:
        """What was seen, for a person."""
        lines = [f"{'attack':32}{'times':>7}  statuses"]
        for name, count in sorted(self.attacks.items()):
            statuses = sorted(
                (str(s or "–"), n) for (a, s), n in self.statuses.items() if a == name
            )
            lines.append(f"{name:32}{count:7}  " + " ".join(f"{s}×{n}" for s, n in statuses))
        for pid in self.pids:
            looks = [look[pid] for look in self.looks if pid in look]
            memory = " → ".join(f"{look.memory_kb / 1024:.0f}" for look in looks)
            files = " → ".join(str(look.files.total) for look in looks)
            lines.append(f"worker {pid}: memory {memory} MB, open files {files}")
        waits, served = self.bystander["waits_s"], self.bystander["served_s"]
        lines += [
            f"most memory of a worker: {self.peak_kb / 1024:.0f} MB "
            f"(at most {self.plan.peak_kb / 1024:.0f})",
            f"the other client: {self.bystander['asked']} requests, the longest {waits[0]:.3f} s, "
            f"{served[0]:.3f} s of it the server's; 99.9 % within {self.slowest_s:.3f} s "
            f"(at most {self.plan.wait_s:g})",
        ]
        return "\n".join(lines)


# --- the attackers -------------------------------------------------------------------------------


class Attackers:
    """Threads that make one attack after the other, until they are stopped; a context manager."""

    def __init__(self, port: int, key: str, result: Result) -> None:
        self._result = result
        self._stop = threading.Event()
        self._lock = threading.Lock()
        dice = random.Random(result.plan.seed)
        # Each attack at least once, in any order, before any is drawn.
        self._first = list(ATTACKS)
        dice.shuffle(self._first)
        self._threads = [
            threading.Thread(target=self._run, args=(Aim(port, key, random.Random(dice.random())),))
            for _ in range(result.plan.attackers)
        ]

    def __enter__(self) -> Attackers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_ATTACK_S)
            if thread.is_alive():
                self._result.wrong.append("one does not end")

    def _run(self, aim: Aim) -> None:
        while not self._stop.is_set():
            attack = self._next(aim.dice)
            name = attack.__name__
            try:
                status = attack(aim)
            except Exception as error:
                with self._lock:
                    self._result.wrong.append(f"{name}: {error!r}")
                continue
            with self._lock:
                self._result.attacks[name] += 1
                self._result.statuses[name, status] += 1

    def _next(self, dice: random.Random) -> Attack:
        with self._lock:
            if self._first:
                return self._first.pop()
        return dice.choices(list(ATTACKS), list(ATTACKS.values()))[0]


# --- the processes beside the proxy --------------------------------------------------------------


@contextlib.contextmanager
def _beside(module: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that prints a port and serves until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=processes.REPOSITORY,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        with contextlib.suppress(ValueError, OSError):
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


# --- looking from outside ------------------------------------------------------------------------


def _workers(proxy: Proxy) -> list[int]:
    return sorted(processes.tree(proxy.process.pid)[1:])


def _look(proxy: Proxy, pids: Sequence[int], upstream_ports: set[int]) -> dict[int, Look]:
    files = open_files.look(pids, proxy.port, upstream_ports)
    return {
        pid: Look(processes.memory_kb([pid]), open_files.threads(pid), files[pid]) for pid in pids
    }


def _places(proxy: Proxy, key: str) -> list[int]:
    """Calls in flight by the word of whichever worker answers; often enough to ask both."""
    found = []
    for _ in range(12):
        with Exchange(proxy.port, method="GET", path="/health", key=key) as exchange:
            found.append(int(json.loads(exchange.body())["in_flight"]))
    return found


def _settled(proxy: Proxy, key: str, pids: Sequence[int], upstream_ports: set[int]) -> list[int]:
    """Wait until nothing is left of the attacks, but not for ever; the places that are taken."""
    end_s = time.monotonic() + _SETTLE_S
    while True:
        places = _places(proxy, key)
        time.sleep(0.1)
        files = open_files.look(pids, proxy.port, upstream_ports)
        clients = sum(opened.client for opened in files.values())
        if not (any(places) or clients) or time.monotonic() > end_s:
            return places
        time.sleep(0.3)


def _faults_of(log: Path) -> list[str]:
    """Lines of the log that tell of a fault of ours."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        entry = json.loads(line) if line.startswith("{") else None
        if entry is None:
            if "Traceback" in line or "Error" in line or "WORKER TIMEOUT" in line:
                found.append(line[:300])
        elif "trace" in entry or entry.get("level") in ("ERROR", "CRITICAL"):
            found.append(line[:2000])
    return found


# --- the whole -----------------------------------------------------------------------------------


def attack(plan: Plan, directory: Path) -> Result:
    """Start everything, attack in two halves, and look what is left after each."""
    prepare()
    result = Result(plan)
    key, other_key = secret("attacker"), secret("bystander")
    with (
        _beside("tests.attack.upstream") as (_, hostile_port),
        _beside("tests.attack.bystander") as (bystander, sandbox_port),
    ):
        settings = {
            **_SETTINGS,
            "QWEN_UPSTREAM_BASE_URL": f"http://127.0.0.1:{hostile_port}/v1",
            "QWEN_UPSTREAM_API_KEY": secret("hostile-upstream"),
            "DASHSCOPE_BASE_URL": f"http://127.0.0.1:{sandbox_port}/compatible-mode/v1",
            "DASHSCOPE_API_KEY": secret("sandbox"),
            "QWEN_PROXY_API_KEYS": f"{key},{other_key}",
        }
        proxy = start(directory, settings)
        try:
            ports = {hostile_port, sandbox_port}
            _attack(result, proxy, ports, (key, other_key), bystander)
        finally:
            result.exit_status = proxy.stop(timeout_s=45)
    result.log_faults = _faults_of(proxy.log)
    return result


def _attack(
    result: Result,
    proxy: Proxy,
    ports: set[int],
    keys: tuple[str, str],
    bystander: subprocess.Popen[str],
) -> None:
    key, other_key = keys
    _places(proxy, other_key)  # both workers have started
    result.pids = _workers(proxy)
    result.looks.append(_look(proxy, result.pids, ports))
    told = {"port": proxy.port, "key": other_key, "pids": result.pids}
    assert bystander.stdin is not None
    bystander.stdin.write(json.dumps(told) + "\n")
    bystander.stdin.flush()
    for half in range(2):
        with Attackers(proxy.port, key, result):
            _watch(result, proxy, result.plan.seconds / 2)
        if half:
            result.bystander = json.loads(bystander.communicate("", timeout=60)[0])
        result.places = _settled(proxy, other_key, result.pids, ports)
        result.looks.append(_look(proxy, result.pids, ports))
    result.pids_at_end = _workers(proxy)


def _watch(result: Result, proxy: Proxy, seconds: float) -> None:
    """Note the most memory of a worker, and forget that the hostile account fails."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            result.peak_kb = max(
                result.peak_kb, *(processes.memory_kb([pid]) for pid in result.pids)
            )
        proxy.forget_troubles()
        time.sleep(_LOOK_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the attack that the arguments ask for; the value is the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--attackers", type=int, default=6, help="at once")
    parser.add_argument("--seed", type=int, help="of what is drawn; when it happens still varies")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="where the log shall stay")
    chosen = parser.parse_args(arguments)
    processes.raise_open_files_limit(4096)
    with contextlib.ExitStack() as stack:
        directory = chosen.keep
        if directory is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="qwen-proxy-attack-"))
            directory = Path(name)
        directory.mkdir(exist_ok=True)
        try:
            result = attack(Plan(chosen.seconds, chosen.attackers, chosen.seed), directory)
        except KeyboardInterrupt:
            return 130
    print(result.table())
    complaints = result.complaints()
    print("\n".join(["", *complaints, "goals NOT met" if complaints else "goals met"]))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
