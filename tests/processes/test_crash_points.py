"""The crash table: a process is killed at exactly that point, and a new one recovers."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.refresh.refresher import Refresher
from tests.processes.logins import Ended, Home

pytestmark = pytest.mark.server

KILLED = -9


def crash(home: Home, point: str) -> dict[str, Any]:
    """Kill a process in the middle of a renewal; what the old tokens were."""
    tokens = home.log_in(left_s=-5)
    ended = home.run("attempt", f"kill-at={point}")
    assert ended.code == KILLED, ended.log
    return tokens


def recover(home: Home) -> tuple[dict[str, Any], str]:
    """Let a new process try, which must not have to wait for the locks of the dead one."""
    ended = home.run("attempt")
    assert ended.code == 0, ended.log
    (result,) = ended.out
    assert result["took_s"] < 6, ended.log
    return result, ended.log


def author(home: Home) -> str:
    return home.paths.cli_lock.read_text().split()[0]


def assert_renewed_once(home: Home, tokens: dict[str, Any], result: dict[str, Any]) -> None:
    document = home.document()
    assert document["refresh_token"] != tokens["refresh_token"]
    assert result["token"] == document["access_token"]
    assert result["state"] == "fresh"
    assert result["ability"] == "refreshable"
    assert home.counted() == (1, 0, 0)
    home.assert_sound()


def test_before_the_second_lock_nothing_is_left_behind(shared_home: Home) -> None:
    tokens = crash(shared_home, "alone")
    assert not shared_home.paths.cli_lock.exists()
    assert not shared_home.paths.journal.exists()
    assert shared_home.left_over() == []

    result, _ = recover(shared_home)

    assert result["outcome"] == "ok"
    assert_renewed_once(shared_home, tokens, result)


@pytest.mark.parametrize(("point", "files"), [("locked", 0), ("reserved", 2)])
def test_a_lock_with_nothing_sent_is_broken_at_once(
    shared_home: Home, point: str, files: int
) -> None:
    tokens = crash(shared_home, point)
    assert author(shared_home) == "qwen-proxy"
    assert not shared_home.paths.journal.exists()
    assert len(shared_home.left_over()) == files
    assert shared_home.document()["refresh_token"] == tokens["refresh_token"]

    result, log = recover(shared_home)

    assert result["outcome"] == "ok"
    assert "own_dead_lock_broken" in log
    assert_renewed_once(shared_home, tokens, result)


class Later(SystemClock):
    """ctime cannot be set, so it is the clock that has to move."""

    def now(self) -> float:
        return time.time() + 3700


def test_files_of_a_crash_are_swept_after_an_hour(shared_home: Home) -> None:
    crash(shared_home, "reserved")
    assert len(shared_home.left_over()) == 2

    recover(shared_home)
    assert len(shared_home.left_over()) == 2  # young ones may be somebody's

    clock = Later()
    store = LoginStore(shared_home.paths, clock, shown="login")
    endpoint = TokenEndpoint(shared_home.sandbox.origin, clock=clock)
    Refresher(store, endpoint, clock).attempt()
    assert shared_home.left_over() == []


def test_after_the_intent_the_token_still_works(shared_home: Home) -> None:
    tokens = crash(shared_home, "intent")
    journal = shared_home.journal()
    assert journal["intent"]["fp"] == fingerprint(tokens["refresh_token"])
    assert "received" not in journal
    assert shared_home.counted() == (0, 0, 0)

    result, _ = recover(shared_home)

    assert result["outcome"] == "ok"
    assert_renewed_once(shared_home, tokens, result)
    assert "intent" not in shared_home.journal()


def assert_lost_and_said_so(home: Home, tokens: dict[str, Any], pid: int) -> None:
    """The unrecoverable window: the token was spent, and nobody knows its successor."""
    intent = home.journal()["intent"]
    assert intent["pid"] == pid
    assert home.document()["refresh_token"] == tokens["refresh_token"]

    result, log = recover(home)

    assert result["outcome"] == "rejected"
    assert result["ability"] == "rejected"
    lost = [line for line in log.splitlines() if "outcome=rejected" in line]
    assert len(lost) == 1
    assert f"process {pid} at 20" in lost[0]
    assert f"(attempt {intent['attempt']})" in lost[0]
    assert "lost in a crash" in lost[0]
    # Sent once more, and never again; nothing is deleted, a new login is taken up.
    assert home.counted() == (1, 1, 0)
    assert recover(home)[0]["outcome"] == "not_due"
    assert home.counted() == (1, 1, 0)
    assert home.document()["refresh_token"] == tokens["refresh_token"]
    fingerprints = home.journal()["tombstones"]
    assert list(fingerprints) == [fingerprint(tokens["refresh_token"])]
    home.log_in(left_s=-5)
    again, _ = recover(home)
    assert again["outcome"] == "ok"
    assert again["ability"] == "refreshable"


def test_an_answer_that_dies_with_its_process_is_the_one_loss(shared_home: Home) -> None:
    tokens = shared_home.log_in(left_s=-5)
    process = shared_home.start("attempt", "kill-at=answered")
    assert shared_home.end(process).code == KILLED

    assert_lost_and_said_so(shared_home, tokens, process.pid)


def test_a_process_that_dies_before_the_answer_comes_is_the_same_loss(shared_home: Home) -> None:
    shared_home.sandbox.control(next={"spec": "slow-after=10", "route": "token"})
    tokens = shared_home.log_in(left_s=-5)
    process = shared_home.start("attempt")
    shared_home.wait_for(refreshes=1)
    process.kill()
    assert shared_home.end(process).code == KILLED

    assert_lost_and_said_so(shared_home, tokens, process.pid)


def test_a_token_that_was_sent_and_not_spent_is_sent_again(shared_home: Home) -> None:
    shared_home.sandbox.control(next={"spec": "slow-before=10", "route": "token"})
    tokens = shared_home.log_in(left_s=-5)
    process = shared_home.start("attempt")
    assert shared_home.sandbox.wait_until(lambda: len(shared_home.sandbox.requests) == 1, 15)
    process.kill()
    assert shared_home.end(process).code == KILLED

    result, _ = recover(shared_home)

    assert result["outcome"] == "ok"
    assert_renewed_once(shared_home, tokens, result)


def test_what_the_journal_has_is_published(shared_home: Home) -> None:
    tokens = crash(shared_home, "journaled")
    journal = shared_home.journal()
    received = journal["received"]
    assert received["spent"] == fingerprint(tokens["refresh_token"])
    assert not received["published"]
    assert shared_home.document()["refresh_token"] == tokens["refresh_token"]
    old_ns = shared_home.paths.document.stat().st_mtime_ns

    result, log = recover(shared_home)

    assert result["outcome"] == "ok"
    assert "login restored from the journal" in log
    assert shared_home.document() == received["document"]
    assert shared_home.paths.document.stat().st_mtime_ns > old_ns
    assert shared_home.journal()["received"]["published"]
    assert_renewed_once(shared_home, tokens, result)


def test_what_the_journal_has_is_used_before_it_is_published(shared_home: Home) -> None:
    crash(shared_home, "journaled")
    document = shared_home.journal()["received"]["document"]

    ended = shared_home.run("storm", "1")  # ends its input at once, which is the start

    assert ended.out[-1] == {"tokens": [document["access_token"]], "errors": [], "late": 0}


def test_a_crash_in_the_middle_of_publishing_again_is_no_loss(shared_home: Home) -> None:
    tokens = crash(shared_home, "journaled")
    ended = shared_home.run("attempt", "kill-at=published")
    assert ended.code == KILLED

    result, _ = recover(shared_home)

    assert result["outcome"] == "adopted"
    assert_renewed_once(shared_home, tokens, result)


def test_a_login_of_somebody_else_beats_what_the_journal_has(shared_home: Home) -> None:
    crash(shared_home, "journaled")
    theirs = shared_home.log_in(left_s=-1)

    result, _ = recover(shared_home)

    assert result["outcome"] == "ok"
    journal = shared_home.journal()
    assert journal["received"]["spent"] == fingerprint(theirs["refresh_token"])
    assert shared_home.counted() == (2, 0, 0)


@pytest.mark.parametrize("point", ["published", "finished"])
def test_after_publishing_only_the_lock_is_left(shared_home: Home, point: str) -> None:
    tokens = crash(shared_home, point)
    assert author(shared_home) == "qwen-proxy"
    assert shared_home.document() == shared_home.journal()["received"]["document"]
    assert shared_home.journal()["received"]["published"] == (point == "finished")

    result, _ = recover(shared_home)

    assert result["outcome"] == "adopted"
    assert_renewed_once(shared_home, tokens, result)


def test_a_file_that_was_torn_in_place_is_restored(shared_home: Home) -> None:
    tokens = crash(shared_home, "finished")
    content = shared_home.paths.document.read_bytes()
    shared_home.paths.document.write_bytes(content[: len(content) // 2])

    result, _ = recover(shared_home)

    assert result["token"] == json.loads(content)["access_token"]
    assert tokens["access_token"] != result["token"]
    assert result["source"] == "shared"
    assert shared_home.document() == json.loads(content)


def full_disk(home: Home, point: str) -> tuple[dict[str, Any], Any]:
    home.log_in(left_s=-5)
    process = home.start("attempt", f"full-at={point}")
    assert process.stdout
    return json.loads(process.stdout.readline()), process


def test_a_disk_that_fills_up_after_the_sending_is_outwaited(shared_home: Home) -> None:
    served, process = full_disk(shared_home, "answered")
    assert served["unsaved"]
    assert not shared_home.paths.cli_lock.exists()  # nobody is kept out meanwhile
    # Nobody else spends the old token, which is dead: our own lock stays taken.
    assert process.stdin
    process.stdin.write("room\n")
    process.stdin.flush()
    ended: Ended = shared_home.end(process)

    assert ended.code == 0
    assert ended.out[-1] == {"drained": True, "unsaved": ""}
    assert "keep this process alive" in ended.log
    assert "is written now" in ended.log
    document = shared_home.document()
    assert document["access_token"] == served["token"]
    assert shared_home.counted() == (1, 0, 0)
    assert shared_home.left_over() == []
    shared_home.assert_sound()


def test_a_disk_that_stays_full_until_the_stop_is_a_loss_that_is_named(shared_home: Home) -> None:
    served, process = full_disk(shared_home, "answered")
    assert process.stdin
    process.stdin.write("stop\n")
    process.stdin.flush()
    ended: Ended = shared_home.end(process)

    assert ended.code == 0
    assert ended.out[-1] == {"drained": True, "outcome": "failed"}
    assert "could not be written before the stop" in ended.log


def test_a_disk_that_fills_up_after_the_journal_costs_nothing(shared_home: Home) -> None:
    served, process = full_disk(shared_home, "journaled")
    assert process.stdin
    process.stdin.write("stop\n")
    process.stdin.flush()
    ended: Ended = shared_home.end(process)
    assert ended.out[-1] == {"drained": True, "outcome": "ok"}
    assert "in the journal only" in ended.log
    assert shared_home.document()["access_token"] != served["token"]

    result, log = recover(shared_home)

    assert result["outcome"] == "ok"
    assert "restored from the journal" in log
    assert shared_home.document()["access_token"] == served["token"]
    assert shared_home.counted() == (1, 0, 0)
    shared_home.assert_sound()


def test_a_disk_that_is_full_before_costs_no_token(shared_home: Home) -> None:
    tokens = shared_home.log_in(left_s=-5)
    process = shared_home.start("attempt", "full-at=locked")
    assert process.stdout
    line = process.stdout.readline()

    # An expired token and no room: the call is refused, and says why.
    ended = shared_home.end(process)
    assert line == ""
    assert "was not renewed: " in ended.log
    assert shared_home.counted() == (0, 0, 0)
    assert shared_home.document()["refresh_token"] == tokens["refresh_token"]
    assert shared_home.left_over() == []


def test_a_file_that_was_just_deleted_may_have_a_successor_on_the_way(shared_home: Home) -> None:
    crash(shared_home, "finished")
    document = shared_home.document()
    shared_home.paths.document.unlink()  # as a qwen-code does whose refresh was refused

    result, _ = recover(shared_home)
    assert result["outcome"] == "adopted"
    assert result["token"] == document["access_token"]
    assert shared_home.run("attempt", "rejected").out[0]["outcome"] == "not_due"
    assert shared_home.counted() == (1, 0, 0)
    assert not shared_home.paths.document.exists()

    # Nobody came: the journal's login is all there is.
    os.utime(shared_home.paths.document.parent, (time.time() - 100,) * 2)
    assert shared_home.run("attempt", "rejected").out[0]["outcome"] == "ok"
    assert shared_home.counted() == (2, 0, 0)
    shared_home.assert_sound()
