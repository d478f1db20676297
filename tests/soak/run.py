"""Hundreds of streams at once through a real server, with everything going wrong now and then.

    python -m tests.soak [--seconds 180] [--streams 500] [--workers 2]

`qwen-proxy serve` with two accounts, in front of the sandbox in a process of its own. Every fault
of the sandbox's table that a chat can meet befalls one call in a hundred, for all its attempts or
for the first one alone. Some clients go away, some read slowly, some ask for whole answers. What
would make the accounts be left alone for minutes is forgotten every half second.

Four rounds, the first one to warm up. Each ends when the last call has ended; then the workers are
looked at from outside. The goals: every call ends as it should, and nothing is left of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.kit import open_files, processes
from tests.kit.processes import StartError
from tests.soak import town
from tests.soak.clients import (
    ACCOUNTS,
    CLIENT_KEYS,
    Crowd,
    Ending,
    Kind,
    Pace,
    Tally,
    get_json,
    post_control,
)
from tests.soak.faults import Faults
from tests.soak.town import Lines, Look, Proxy, Watchman
from tests.soak.upstream import KEEP_ALIVE_S

#: Each fault, for each call.
_PROBABILITY: Final = 0.01
#: What may be more of the memory in use after a round: it wanders by some tens of kB.
_USED_KB: Final = 1024
#: Pause between two times that all troubles are forgotten.
_FORGET_S: Final = (0.1, 1.0)
#: After the last call, until nothing of it is left.
_SETTLE_S: Final = 30.0

#: How the log may call an ending that a client saw.
_OUTCOMES: Final = {
    Ending.COMPLETE: {"complete"},
    Ending.REFUSED: {"refused"},
    Ending.STATUS: {"upstream_error", "refused"},
    Ending.EVENT: {"upstream_error", "refused"},
    Ending.ABORTED: {"client_gone", "complete", "upstream_error", "refused"},
}


@dataclass(frozen=True)
class Plan:
    """A soak: how much of everything, and what is still good. Durations are seconds.

    Attributes:
        settings: of the proxy.
        rounds: parts of the time: to warm up, and those that are compared.
        memory_kb: what a worker may grow by in a round.
        ready_s: within what time the health is told, on a CPU that nobody else wants.
    """

    seconds: float
    streams: int
    workers: int
    pace: Pace
    settings: dict[str, str]
    rounds: tuple[float, ...] = (0.1, 0.3, 0.3, 0.3)
    memory_kb: float = 5 * 1024
    ready_s: float = 1.0
    seed: int | None = None

    @property
    def places(self) -> int:
        """Calls at a time that a worker may have at one account. Sometimes there is a queue."""
        return 10 + -(-self.streams * 4 // 5) // self.workers


def plan(seconds: float, streams: int, workers: int, seed: int | None = None) -> Plan:
    """The soak that the command runs."""
    return Plan(
        seconds=seconds,
        streams=streams,
        workers=workers,
        pace=Pace(chunks=(4, 60), pause_s=(0.05, 0.5), longest_s=10.0, deadline_s=60.0),
        settings={
            "QWEN_PROXY_RETRY_BUDGET": "6",
            "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "4",
            "QWEN_PROXY_IDLE_TIMEOUT": "3",
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "1",
        },
        seed=seed,
    )


@dataclass
class Result:
    """What was seen."""

    plan: Plan
    tally: Tally
    fault_kinds: int
    #: By round and worker.
    looks: list[dict[int, Look]] = field(default_factory=list)
    #: When every connection that a worker kept had been used once more, and closed.
    last: dict[int, Look] = field(default_factory=dict)
    pids_at_end: list[int] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    upstream_open: int = 0
    upstream_failures: str = ""
    attempts: int = 0
    in_flight: list[int] = field(default_factory=list)
    asked: int = 0
    worst_ready_s: float = 0.0
    worst_served_s: float = 0.0
    not_ready: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    exit_status: int | None = None
    log: LogFindings | None = None

    # --- the verdict -------------------------------------------------------------------------

    def growth_kb(self, pid: int, name: str = "memory_kb") -> float:
        """What memory grew by in each of the last two rounds, at least.

        Pages that are free but for a little make it jump in one of them. A leak is in both.
        """
        amounts = [getattr(look[pid], name) for look in self.looks[-3:]]
        return float(min(after - before for before, after in itertools.pairwise(amounts)))

    def complaints(self) -> list[str]:
        """What does not hold; nothing, if all is well."""
        told = [f"WRONG: {text}" for text in self.tally.wrong]
        told += [f"not settled: {text}" for text in self.unsettled]
        if not self.tally.of(Ending.COMPLETE):
            told.append("no call was answered")
        if self.upstream_open:
            told.append(f"{self.upstream_open} calls are still open upstream")
        if self.upstream_failures:
            told.append(f"the sandbox itself failed: {self.upstream_failures}")
        for pid, first in self.looks[0].items():
            told += self._left_over(first, self.last[pid])
            if self.growth_kb(pid) > self.plan.memory_kb:
                told.append(f"worker {pid} grew by {self.growth_kb(pid):.0f} kB")
            if (more := self.growth_kb(pid, "used_kb")) > _USED_KB:
                told.append(f"worker {pid} uses {more:.0f} kB more after each round")
            if cycles := self._cycles(pid):
                told.append(f"worker {pid} left to the garbage collector: {dict(cycles)}")
        if sorted(self.pids_at_end) != sorted(self.looks[0]):
            told.append(f"workers {sorted(self.looks[0])} became {sorted(self.pids_at_end)}")
        told += [f"not ready: {text}" for text in self.not_ready[:5]]
        if self.worst_served_s > self.plan.ready_s:
            told.append(f"the health took {self.worst_served_s:.2f} s")
        if self.exit_status != 0:
            told.append(f"the server's exit status after SIGTERM is {self.exit_status}")
        if self.log is None:
            told.append("the log was not read")
        else:
            told += self.log.complaints()
        return told

    def _cycles(self, pid: int) -> Counter[str]:
        return sum((Counter(look[pid].cycles) for look in (*self.looks, self.last)), Counter())

    @staticmethod
    def _left_over(first: Look, last: Look) -> list[str]:
        told = []
        for name in ("in_flight", "client_sockets", "upstream_sockets"):
            if getattr(last, name):
                told.append(f"worker {last.pid}: {name} is {getattr(last, name)}")
        for name in ("other_files", "threads", "greenlets"):
            before, after = getattr(first, name), getattr(last, name)
            if after > before:
                told.append(f"worker {last.pid}: {name} went from {before} to {after}")
                if name == "other_files":
                    told[-1] += f": {last.files.more_than(first.files)}"
                if name == "greenlets":
                    fresh = Counter(last.running) - Counter(first.running)
                    told[-1] += f": {', '.join(fresh.elements())}"
        return told

    def good(self) -> bool:
        return not self.complaints()

    # --- the tables --------------------------------------------------------------------------

    def table(self) -> str:
        """What was seen, for a person."""
        return "\n\n".join((self._endings(), self._workers(), self._rest()))

    def _endings(self) -> str:
        rows = [["calls", *(kind.value for kind in Kind), "all"]]
        for ending in Ending:
            counts = [self.tally.calls[kind, ending] for kind in Kind]
            rows.append([ending.value, *map(str, counts), str(sum(counts))])
        sums = [sum(self.tally.calls[kind, ending] for ending in Ending) for kind in Kind]
        rows.append(["all", *map(str, sums), str(sum(sums))])
        return _markdown(rows)

    def _workers(self) -> str:
        pids = sorted(self.looks[0])
        rows = [["", *(f"worker {number + 1}" for number in range(len(pids))), "goal"]]

        def row(title: str, name: str, goal: str) -> None:
            looks = [*self.looks, self.last]
            cells = [" → ".join(f"{getattr(each[p], name):g}" for each in looks) for p in pids]
            rows.append([title, *cells, goal])

        row("calls in flight", "in_flight", "0")
        row("clients' connections", "client_sockets", "0")
        row("upstream connections, at last all used", "upstream_sockets", "at last 0")
        row("other open files", "other_files", "as at first")
        row("threads", "threads", "as at first")
        row("greenlets", "greenlets", "as at first")
        for title, name in (
            ("memory (PSS), MB", "held_kb"),
            ("… without what was free", "memory_kb"),
            ("… in use", "used_kb"),
        ):
            memory = [
                " → ".join(f"{getattr(each[p], name) / 1024:.1f}" for each in self.looks)
                for p in pids
            ]
            rows.append([title, *memory, ""])
        for title, name, goal_kb in (
            ("… growth of a round, without what was free", "memory_kb", self.plan.memory_kb),
            ("… growth of a round, in use", "used_kb", _USED_KB),
        ):
            cells = [f"{self.growth_kb(pid, name) / 1024:+.2f}" for pid in pids]
            rows.append([title, *cells, f"≤ {goal_kb / 1024:g}"])
        left = [str(self._cycles(pid).total()) for pid in pids]
        rows.append(["our objects that only the collector freed", *left, "0"])
        return _markdown(rows)

    def _rest(self) -> str:
        tally, log = self.tally, self.log or LogFindings()
        bad = {"calls that ended in a way that no client should see": (tally.of(Ending.WRONG), "0")}
        rows = [["", "", "goal"]]
        for title, (value, goal) in {
            **bad,
            "calls at once, at most": (tally.most_running, ""),
            "… as the workers count them, median": (statistics.median(self.in_flight or [0]), ""),
            "upstream requests": (self.attempts, ""),
            "faults drawn": (sum(tally.faults.values()), ""),
            "… kinds of them": (f"{len(tally.faults)} of {self.fault_kinds}", ""),
            "events read": (tally.chunks, ""),
            "… that were broken upstream, and passed on": (tally.broken_json, ""),
            "calls still open upstream": (self.upstream_open, "0"),
            "health checks": (self.asked, ""),
            "… not ready": (len(self.not_ready), "0"),
            "… slowest, s": (f"{self.worst_ready_s:.3f}", ""),
            "… slowest without waits for a CPU, s": (
                f"{self.worst_served_s:.3f}",
                f"≤ {self.plan.ready_s:g}",
            ),
            "log lines of calls": (log.calls, ""),
            "… calls without their line": (len(log.missing), "0"),
            "… calls with another line too many": (len(log.repeated), "0"),
            "… lines that say what the client did not see": (len(log.differing), "0"),
            "log: tracebacks and faults": (len(log.faults), "0"),
            "log: accounts left alone": (log.left_alone, ""),
            "CPU of the workers, %": (f"{100 * self.cpu_s / max(self.wall_s, 1e-9):.0f}", ""),
            "exit status after SIGTERM": (self.exit_status, "0"),
        }.items():
            rows.append([title, str(value), goal])
        return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


# --- the log -------------------------------------------------------------------------------------


@dataclass
class LogFindings:
    """What the proxy's log says."""

    calls: int = 0
    left_alone: int = 0
    missing: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    def complaints(self) -> list[str]:
        told = [f"log: a fault: {text}" for text in self.faults[:5]]
        told += [f"log: no line for {text}" for text in self.missing[:5]]
        told += [f"log: more than one line for {text}" for text in self.repeated[:5]]
        return told + [f"log: {text}" for text in self.differing[:5]]


def read_log(path: Path, tally: Tally) -> LogFindings:
    """Compare the log with what the clients saw."""
    found, lines = LogFindings(), Counter[str]()
    for text in path.read_text(errors="replace").splitlines():
        entry = _entry(text)
        if entry is None:
            if "Traceback" in text or "Error" in text:
                found.faults.append(text[:300])
            continue
        event = str(entry.get("event"))
        if event == "call":
            found.calls += 1
            lines[entry["request_id"]] += 1
            ending = tally.told.get(entry["request_id"])
            if ending in _OUTCOMES and entry["outcome"] not in _OUTCOMES[ending]:
                found.differing.append(f"{ending.value!r} for a client, but {text[:400]}")
        elif "trace" in entry or event.startswith("fault") or entry.get("level") == "ERROR":
            found.faults.append(text[:2000])
        else:
            found.left_alone += event.startswith("account is cooling down")
            found.other[event.split("=")[0]] += 1
    for id, (least, most) in tally.lines.items():
        if lines[id] < least:
            found.missing.append(f"{id}: {tally.told.get(id)}")
        elif lines[id] > most:
            found.repeated.append(f"{id}: {tally.told.get(id)}")
    return found


def _entry(text: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return None


# --- the run -------------------------------------------------------------------------------------


async def _settle(running: Proxy, looks: Sequence[dict[int, Look]]) -> list[str]:
    """Wait until nothing of the calls is left; what is, when the time is up.

    gevent's own threads, which look up the names of hosts, are gone after five idle seconds.
    """
    deadline = time.monotonic() + _SETTLE_S
    while True:
        busy = {pid: n for pid, n in (await town.in_flight(running)).items() if n}
        files = await town.idle_files(running)
        clients = {pid: opened.client for pid, opened in files.items() if opened.client}
        state = await get_json(running.upstream_port, "/_sandbox/state")
        more = [
            pid for pid in running.pids if looks and open_files.threads(pid) > looks[0][pid].threads
        ]
        if not (busy or clients or more or state["open_chats"]):
            return []
        if time.monotonic() > deadline:
            return [
                f"in flight {busy}, connections {clients}, upstream {state['open_chats']}, "
                f"more threads in {more}"
            ]
        await asyncio.sleep(0.3)


async def _use_all_that_is_kept(running: Proxy, places: int, model: str) -> list[str]:
    """Use every upstream connection that a worker keeps, and close it; what went wrong.

    The sandbox has closed them all, which the proxy notices when it wants to use one. With a call
    at each place of each account all are used, and what is still there afterwards is nobody's.
    """
    await asyncio.sleep(KEEP_ALIVE_S + 1)
    running.forget_troubles()
    async with Lines(running) as lines:
        await lines.open(dict.fromkeys(running.pids, places * len(ACCOUNTS)))
        for opened in lines.by_pid.values():
            for number, line in enumerate(opened[: places * len(ACCOUNTS)]):
                line.writer.write(_waiting_call(model, ACCOUNTS[number % len(ACCOUNTS)]))
        total = places * len(ACCOUNTS) * len(running.pids)
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            state = await get_json(running.upstream_port, "/_sandbox/state")
            if state["open_chats"] >= total:
                return []
            await asyncio.sleep(0.2)
    return [f"only {state['open_chats']} of {total} calls at once were answered"]


def _waiting_call(model: str, account: str) -> bytes:
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": "[[sandbox: chunks=100, interval=1]]"}],
    }
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {CLIENT_KEYS[0]}\r\nX-Qwen-Account: {account}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@contextlib.asynccontextmanager
async def _forgetting(running: Proxy, dice: random.Random) -> AsyncIterator[None]:
    async def forget() -> None:
        while True:
            await asyncio.sleep(dice.uniform(*_FORGET_S))
            running.forget_troubles()

    task = asyncio.create_task(forget())
    try:
        yield
    finally:
        task.cancel()


async def _round(running: Proxy, crowd: Crowd, result: Result, seconds: float) -> None:
    """Let the crowd call for a while."""
    crowd.start(result.plan.streams, min(5.0, seconds / 3))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(min(2.0, seconds / 3))
        result.in_flight.append(sum((await town.in_flight(running)).values()))
    await crowd.stop()


async def soak(chosen: Plan, directory: Path) -> Result:
    """Run a soak; leaves no process behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    dice = random.Random(chosen.seed)
    # Of their own: which faults there are does not depend on when they come.
    fault_dice = random.Random(chosen.seed)
    with contextlib.ExitStack() as stack:
        upstream_port = stack.enter_context(town.sandbox())
        models = tuple(f"qwen3.7-plus-soak{n}" for n in range(chosen.streams))
        await post_control(upstream_port, {"models": models})
        settings = {
            **chosen.settings,
            "QWEN_PROXY_ACCOUNT_IN_FLIGHT": str(chosen.places * chosen.workers),
        }
        running = stack.enter_context(
            town.proxy(
                upstream_port, workers=chosen.workers, directory=directory, settings=settings
            )
        )
        listing = await get_json(upstream_port, "/_sandbox/faults")
        faults = Faults(listing, fault_dice, probability=_PROBABILITY)
        crowd = Crowd(
            running.port, upstream_port, faults=faults, pace=chosen.pace, dice=dice, models=models
        )
        result = Result(chosen, crowd.tally, fault_kinds=len(faults.names))
        with Watchman(running) as watchman:
            await _rounds(running, crowd, result, dice)
        result.asked, result.worst_ready_s = watchman.asked, watchman.worst_s
        result.worst_served_s = watchman.worst_served_s
        result.not_ready = watchman.faults
        result.pids_at_end = processes.tree(running.process.pid)[1:]
        state = await get_json(upstream_port, "/_sandbox/state")
        result.upstream_open = state["open_chats"]
        result.upstream_failures = state["last_failure"]
        result.attempts = state["requests"].get("chat", 0)
        result.exit_status = await asyncio.to_thread(running.stop)
        result.log = read_log(running.log, crowd.tally)
    return result


async def _rounds(running: Proxy, crowd: Crowd, result: Result, dice: random.Random) -> None:
    for part in result.plan.rounds:
        seconds = part * result.plan.seconds
        _progress(f"{seconds:.0f} s with {result.plan.streams} streams")
        cpu_s, began_s = processes.cpu_s(running.pids), time.monotonic()
        async with _forgetting(running, dice):
            await _round(running, crowd, result, seconds)
        result.cpu_s += processes.cpu_s(running.pids) - cpu_s
        result.wall_s += time.monotonic() - began_s
        await post_control(running.upstream_port, {"clear_rules": True})
        result.unsettled += await _settle(running, result.looks)
        result.looks.append(await town.look(running))
    _progress("looking for what is left")
    result.unsettled += await _use_all_that_is_kept(
        running, result.plan.places, "qwen3.7-plus-soak0"
    )
    result.unsettled += await _settle(running, result.looks)
    result.last = await town.look(running)
    _progress("")


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def grown(result: Result) -> str:
    """Types of objects that became more in the last round, for a person."""
    lines = []
    for pid, before in result.looks[-2].items():
        after = result.looks[-1][pid].objects
        more = {name: after[name] - before.objects.get(name, 0) for name in after}
        worst = sorted(more.items(), key=lambda item: -item[1])[:12]
        lines.append(f"worker {pid}: " + ", ".join(f"{name} {n:+d}" for name, n in worst if n > 0))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak that the arguments ask for; the value is the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="of calls, in four rounds")
    parser.add_argument("--streams", type=int, default=500, help="at once")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, help="of what is drawn; when it happens still varies")
    parser.add_argument("--objects", action="store_true", help="types of objects that became more")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="where the log shall stay")
    chosen = parser.parse_args(arguments)
    processes.raise_open_files_limit(16_384)
    with contextlib.ExitStack() as stack:
        directory = chosen.keep
        if directory is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="qwen-proxy-soak-"))
            directory = Path(name)
        directory.mkdir(exist_ok=True)
        try:
            result = asyncio.run(
                soak(plan(chosen.seconds, chosen.streams, chosen.workers, chosen.seed), directory)
            )
        except StartError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
        except (KeyboardInterrupt, asyncio.CancelledError):
            return 130
    print(result.table())
    if chosen.objects:
        print(f"\n{grown(result)}")
    complaints = result.complaints()
    print("\n".join(["", *complaints, "goals NOT met" if complaints else "goals met"]))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
