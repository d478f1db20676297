"""Real processes that count one client's calls together, and some that die or stop meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.access.limits import Granted, Limits, Refused
from tests.kit.process_users import Started, Users
from tests.processes.limit_user import CLIENT, counters

pytestmark = pytest.mark.server

PROCESSES = 8


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    with Users.of("tests.processes.limit_user", tmp_path / "limits") as users:
        yield users


def line_of(process: Started) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("calls", [50, 400])
def test_of_many_at_once_exactly_as_many_pass_as_the_limit_says(users: Users, calls: int) -> None:
    processes = [users.start("reserve", 100, calls) for _ in range(PROCESSES)]
    assert [line_of(process) for process in processes] == ["ready"] * PROCESSES
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()

    allowed = [int(line_of(process)) for process in processes]

    assert sum(allowed) == 100
    all_counters = counters(users.directory)
    assert all_counters.of(CLIENT).remaining(Limits(rpm=100))["rpm"].left == 0
    all_counters.close()


def test_what_a_killed_process_held_is_free_at_once_where_it_is_needed(users: Users) -> None:
    process = users.start("hold", 3, 100)
    assert line_of(process) == "held"
    all_counters = counters(users.directory)
    counter, limits = all_counters.of(CLIENT), Limits(concurrency=3, tokens_per_day=350)
    found = counter.reserve(limits, tokens=300)
    assert isinstance(found, Refused)

    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.6)  # a refusal has looked for dead workers just now

    # Also its tokens: else these would be too many.
    assert isinstance(counter.reserve(limits, tokens=300), Granted)
    left = counter.remaining(limits)
    assert (left["concurrency"].left, left["tokens_per_day"].left) == (2, 50)
    all_counters.close()


def test_the_next_round_gives_back_what_a_killed_process_held(users: Users) -> None:
    process = users.start("hold", 3, 100)
    assert line_of(process) == "held"
    all_counters = counters(users.directory)
    counter, limits = all_counters.of(CLIENT), Limits(concurrency=3, tpm=1000)
    all_counters.look_after()
    assert counter.remaining(limits)["concurrency"].left == 0

    process.send_signal(signal.SIGKILL)
    process.wait()
    all_counters.look_after()

    left = counter.remaining(limits)
    assert (left["concurrency"].left, left["tpm"].left) == (3, 1000)
    all_counters.close()


def test_a_process_that_is_stopped_with_the_lock_holds_nobody_up(
    users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    all_counters = counters(users.directory, patience_s=0.25)
    counter, limits = all_counters.of(CLIENT), Limits(rpm=5)
    assert isinstance(counter.reserve(limits), Granted)
    process = users.start("lock")
    assert line_of(process) == "locked"

    began_s = time.monotonic()
    found = [counter.reserve(limits) for _ in range(6)]
    took_s = time.monotonic() - began_s

    assert [isinstance(each, Granted) for each in found] == [True] * 4 + [False] * 2
    assert 0.25 <= took_s < 1.5  # one of them has waited, and the others did not again
    assert "locked by a process that does not go on" in caplog.text
    process.send_signal(signal.SIGCONT)
    process.wait(10)
    counter.count(1)
    other = counters(users.directory)
    assert other.of(CLIENT).remaining(Limits(rpm=10))["rpm"].left == 4
    other.close()
    all_counters.close()
