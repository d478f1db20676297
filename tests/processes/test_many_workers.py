"""Many processes and greenlets with one login: one refresh, and nobody is kept waiting for it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.processes.logins import Ended, Home

pytestmark = pytest.mark.server

PROCESSES = 8
GREENLETS = 50


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The first line of a process: it has begun."""
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    found: dict[str, Any] = json.loads(line)
    return found


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


def storm(home: Home, *options: str) -> tuple[list[str], list[str]]:
    """All want a token in the same moment; which ones they got, and which errors."""
    # Whoever comes late still finds the refresh under way.
    home.sandbox.control(faults={"token": "slow-after=1"})
    processes = [home.start("storm", GREENLETS, *options) for _ in range(PROCESSES)]
    for process in processes:
        ready(process)
    for process in processes:
        go(process)
    ended = [home.end(process) for process in processes]
    tokens: list[str] = []
    errors: list[str] = []
    for each in ended:
        assert each.code == 0, each.log
        assert each.out[-1]["late"] == 0
        tokens += each.out[-1]["tokens"]
        errors += each.out[-1]["errors"]
    return tokens, errors


def test_an_expired_token_costs_one_refresh(shared_home: Home) -> None:
    shared_home.log_in(left_s=-5)

    tokens, errors = storm(shared_home)

    assert errors == []
    assert tokens == [shared_home.document()["access_token"]] * (PROCESSES * GREENLETS)
    assert shared_home.counted() == (1, 0, 0)
    shared_home.assert_sound()


def test_a_refused_token_costs_one_refresh(shared_home: Home) -> None:
    refused = shared_home.log_in(left_s=3 * 3600)["access_token"]

    tokens, errors = storm(shared_home, "rejected")

    assert errors == []
    assert refused not in tokens
    assert tokens == [shared_home.document()["access_token"]] * (PROCESSES * GREENLETS)
    assert shared_home.counted() == (1, 0, 0)
    shared_home.assert_sound()


def test_an_account_that_is_closed_costs_one_refresh(shared_home: Home) -> None:
    shared_home.log_in(left_s=3 * 3600)

    tokens, errors = storm(shared_home, "rejected", "again")

    # Whoever comes after the verdict gets no token at all.
    assert set(tokens) == {shared_home.document()["access_token"]}
    assert errors == ["oauth_tier_closed"] * (PROCESSES * GREENLETS)
    assert shared_home.counted() == (1, 0, 0)
    assert shared_home.run("attempt", "rejected").out[0]["outcome"] == "not_due"
    assert shared_home.counted() == (1, 0, 0)


@pytest.mark.parametrize("how", [(), ("gevent",), ("late",)], ids=["early", "gevent", "late"])
def test_a_fork_after_construction_and_in_a_refresh(
    shared_home: Home, how: tuple[str, ...]
) -> None:
    shared_home.sandbox.control(faults={"token": "slow-after=1.5"})
    shared_home.log_in(left_s=-5)

    ended = shared_home.run("fork", *how)

    assert ended.code == 0, ended.log
    document = shared_home.document()
    assert [each["token"] for each in ended.out] == [document["access_token"]] * 3
    assert ended.out[-1]["codes"] == [0, 0]
    assert all(each["drained"] for each in ended.out[:2])
    assert shared_home.counted() == (1, 0, 0)
    shared_home.assert_sound()


@pytest.mark.parametrize("how", [(), ("gevent",)], ids=["threads", "gevent"])
def test_a_stop_waits_for_a_refresh_that_was_sent(shared_home: Home, how: tuple[str, ...]) -> None:
    shared_home.sandbox.control(faults={"token": "slow-after=2"})
    shared_home.log_in(left_s=-5)
    process = shared_home.start("drain", *how)
    ready(process)
    shared_home.wait_for(refreshes=1)
    go(process)
    ended = shared_home.end(process)

    assert ended.code == 0, ended.log
    assert ended.out[-1]["drained"] is True
    assert ended.out[-1]["outcome"] == "ok"
    assert shared_home.counted() == (1, 0, 0)
    shared_home.assert_sound()


def test_a_stop_cancels_a_refresh_that_was_not_sent(shared_home: Home) -> None:
    tokens = shared_home.log_in(left_s=-5)
    shared_home.paths.cli_lock.write_text("0d7c9f5e-0f6e-4b0e-9a53-3b8f6f6f2f10")
    process = shared_home.start("drain")
    ready(process)
    go(process)
    ended: Ended = shared_home.end(process)

    assert ended.code == 0, ended.log
    assert ended.out[-1]["drained"] is True
    assert ended.out[-1]["outcome"] == "not_sent"
    assert ended.out[-1]["took_s"] < 5
    assert shared_home.counted() == (0, 0, 0)
    assert shared_home.document()["refresh_token"] == tokens["refresh_token"]
    assert shared_home.paths.cli_lock.exists()


def test_waiting_for_a_refresh_of_another_process_never_stalls_the_hub(shared_home: Home) -> None:
    # Longer than another process takes to begin on a busy machine.
    shared_home.sandbox.control(faults={"token": "slow-after=6"})
    shared_home.log_in(left_s=-5)
    other = shared_home.start("drain")
    ready(other)
    shared_home.wait_for(refreshes=1)

    ended = shared_home.run("wait")  # for our own lock

    assert ended.code == 0, ended.log
    assert ended.out[0]["outcome"] == "adopted"
    assert ended.out[0]["gap_s"] < 0.5
    assert ended.out[0]["ticks"] > 20
    go(other)
    shared_home.end(other)
    assert shared_home.counted() == (1, 0, 0)


def test_waiting_for_qwen_codes_lock_and_for_an_answer_never_stalls_the_hub(
    shared_home: Home,
) -> None:
    shared_home.sandbox.control(faults={"token": "slow-after=1"})
    shared_home.log_in(left_s=-5)
    shared_home.paths.cli_lock.write_text("0d7c9f5e-0f6e-4b0e-9a53-3b8f6f6f2f10")
    process = shared_home.start("wait")
    # It is at the second lock once it has the first.
    journal = shared_home.paths.proxy_lock
    assert shared_home.sandbox.wait_until(lambda: journal.exists(), 15)
    assert not shared_home.sandbox.wait_until(lambda: shared_home.counted()[0] > 0, 1)
    shared_home.paths.cli_lock.unlink()
    ended = shared_home.end(process)

    assert ended.code == 0, ended.log
    assert ended.out[0]["outcome"] == "ok"
    assert ended.out[0]["gap_s"] < 0.5
    assert ended.out[0]["ticks"] > 50
    shared_home.assert_sound()


def test_a_killed_worker_leaves_both_locks_to_the_others(shared_home: Home) -> None:
    shared_home.sandbox.control(faults={"token": "slow-before=3"})
    shared_home.log_in(left_s=-5)
    victim = shared_home.start("drain", "gevent")
    ready(victim)
    assert shared_home.sandbox.wait_until(lambda: len(shared_home.sandbox.requests) == 1, 15)
    shared_home.sandbox.control(faults={"token": ""})
    victim.kill()

    ended = shared_home.run("wait")

    assert ended.out[0]["outcome"] == "ok", ended.log
    assert shared_home.counted() == (1, 0, 0)
    shared_home.assert_sound()
