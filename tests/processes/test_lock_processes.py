"""Both locks between real processes, among them some that lock as qwen-code does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.locks.cli_lock import CliLock
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from tests.processes.journal import Note, read
from tests.processes.lock_user import cli_path, proxy_path

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
#: Times of locks are divided by this.
SCALE = 5.0
#: After what time a qwen-code takes a lock over: up to 0.15.10, and in 0.24.4.
OLD_S, NEW_S = 10.0, 35.0
#: A process notes that it entered this much later than it created its lock, at most.
ENTERING_NS = 200_000_000


class Party:
    """Processes that share a directory; none of them outlives the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, module: str, *args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"tests.processes.{module}", *map(str, args)]
        # Not os.fork(): what is inherited is not what these tests are about.
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def own(self, until_s: float, hold_s: float) -> subprocess.Popen[str]:
        return self.start("lock_user", "contend", self.directory, self.log, until_s, hold_s, SCALE)

    def cli(self, stale_s: float, what: str, *args: object) -> subprocess.Popen[str]:
        lock = cli_path(self.directory)
        return self.start("cli_lookalike", lock, self.log, stale_s, SCALE, what, *args)

    def join(self) -> None:
        """Wait for all; each must have ended well."""
        for process in self._processes:
            assert process.wait(30) == 0

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Party]:
    directory = tmp_path / "qwen"
    directory.mkdir()
    party = Party(directory)
    yield party
    party.end()


class Stay(NamedTuple):
    """One process, once in the critical section."""

    entered_ns: int
    left_ns: int
    who: str
    #: What happened to its lock meanwhile.
    notes: tuple[str, ...]


def stays(notes: list[Note]) -> list[Stay]:
    entered: dict[str, int] = {}
    between: dict[str, list[str]] = defaultdict(list)
    found = []
    for note in notes:
        if note.what == "enter":
            entered[note.who] = note.at_ns
            between[note.who] = []
        elif note.what == "leave":
            stay = Stay(entered.pop(note.who), note.at_ns, note.who, tuple(between[note.who]))
            found.append(stay)
        else:
            between[note.who].append(note.what)
    assert not entered
    return sorted(found)


def overlaps(found: list[Stay]) -> list[tuple[Stay, Stay]]:
    return [
        (first, second)
        for number, first in enumerate(found)
        for second in found[number + 1 :]
        if second.entered_ns < first.left_ns
    ]


def check(notes: list[Note]) -> list[Stay]:
    """Exclusion ends only where a look-alike removed a lock, and our side notices each time."""
    found = stays(notes)
    removals = [note for note in notes if note.what in ("exit", "release", "take-over")]
    for first, second in overlaps(found):
        assert [
            each
            for each in removals
            if each.who != first.who
            and each.at_ns > first.entered_ns - ENTERING_NS
            and each.since_ns < second.entered_ns
        ], (first, second)
        # Never two of ours at the same time: that is what lock A is for.
        assert not first.who.startswith("own") or not second.who.startswith("own")
        if first.who.startswith("own"):
            assert "foreign_lock_lost" in first.notes, (first, second)
    for stay in found:
        if "lost" in stay.notes:
            assert "foreign_lock_lost" in stay.notes
    whats = {note.what for note in notes}
    assert "lock_a_timeout" not in whats
    assert "lock_timeout" not in whats
    return found


def test_twenty_processes_that_count_lose_nothing(party: Party) -> None:
    number = party.directory / "number"
    number.write_text("0")

    for _ in range(20):
        party.start("lock_user", "count", number, 5)
    party.join()

    assert number.read_text() == "100"


def test_qwen_codes_that_go_on_running_and_we_exclude_each_other(party: Party) -> None:
    # The first holds it for longer than the limit of the old ones: its heartbeat protects it.
    party.own(1, hold_s=1.25 * OLD_S / SCALE)
    for _ in range(2):
        party.own(3, hold_s=0.2)
    for stale_s in (OLD_S, OLD_S, NEW_S):
        party.cli(stale_s, "lock", 3)
    party.join()

    notes = read(party.log)
    found = check(notes)
    assert overlaps(found) == []
    assert not {note.what for note in notes} & {"foreign_lock_lost", "lost", "take-over"}
    assert any((stay.left_ns - stay.entered_ns) / 1e9 >= OLD_S / SCALE for stay in found)
    assert {stay.who[:3] for stay in found} == {"own", "cli"}
    assert os.listdir(party.directory / ".qwen-proxy") == ["refresh.lock"]
    assert not cli_path(party.directory).exists()


def test_qwen_codes_that_end_remove_our_lock_and_we_notice(party: Party) -> None:
    for _ in range(3):
        party.own(3, hold_s=0.6)
    for stale_s in (OLD_S, NEW_S):
        party.cli(stale_s, "lock", 3, "--drop-on-exit")
    for number in range(8):
        party.cli(OLD_S, "read", 0.5 + 0.4 * number)
    party.join()

    notes = read(party.log)
    found = check(notes)
    assert "exit" in {note.what for note in notes}
    assert [stay for stay in found if "foreign_lock_lost" in stay.notes]
    assert "foreign_lock_broken" not in {note.what for note in notes}


def test_all_break_the_same_abandoned_lock(party: Party) -> None:
    lock = cli_path(party.directory)
    lock.write_text("0d7c9f5e-0f6e-4b0e-9a53-3b8f6f6f2f10")
    os.utime(lock, (time.time() - 100,) * 2)
    party.log.touch()

    for _ in range(3):
        party.own(2, hold_s=0.2)
    # A qwen-code does not look twice: it would always be the first to break it.
    deadline_s = time.monotonic() + 20
    while "foreign_lock_broken" not in party.log.read_text() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for stale_s in (OLD_S, NEW_S):
        party.cli(stale_s, "lock", 1.2)
    party.join()

    notes = read(party.log)
    check(notes)
    broken = [note for note in notes if note.what in ("foreign_lock_broken", "take-over")]
    assert len(broken) == 1
    assert broken[0].who.startswith("own")
    assert [name for name in os.listdir(party.directory) if ".break." in name] == []


def test_both_locks_of_a_killed_process_are_had_at_once(party: Party) -> None:
    holder = party.start("lock_user", "hold", party.directory)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    events: list[str] = []
    proxy = ProxyLock(proxy_path(party.directory))
    cli = CliLock(
        cli_path(party.directory),
        clock=SystemClock(),
        on_event=lambda name, fields: events.append(name),
    )
    shown, seen = proxy.holder(), cli.observed()
    assert shown
    assert seen
    assert shown.pid == seen.pid == holder.pid
    assert seen.alive
    assert not proxy.acquire(0)
    assert not cli.acquire(0)

    holder.kill()
    # The end of the process, but not yet of its entry in /proc: nobody has waited for it.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    begun_s = time.monotonic()
    assert proxy.acquire(1)
    assert cli.acquire(0)
    took_s = time.monotonic() - begun_s
    cli.release()
    proxy.release()

    assert events == ["lock_timeout", "own_dead_lock_broken"]
    assert took_s < 0.5


def test_waiting_does_not_stall_the_hub(party: Party) -> None:
    holder = party.start("lock_user", "hold", party.directory)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"

    waiter = party.start("lock_user", "hub", party.directory)
    assert waiter.stdout
    result: dict[str, Any] = json.loads(waiter.stdout.readline())
    assert waiter.wait(10) == 0

    assert result["proxy"] is result["cli"] is False
    assert result["proxy_gap_s"] < 0.3
    assert result["cli_gap_s"] < 0.3
    # The heartbeat is a greenlet there: it touches, and a forked copy of it does nothing.
    assert result["touched"] is True
    assert result["child"] == 0
    assert result["held"] is True
    assert result["released"] is True
