"""`qwen-proxy creds`: what whoever looks after the logins sees, and the exit status."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.cli import main
from qwen_wsgi.sandbox import Sandbox
from tests.kit.creds_machine import HOUR_S, Machine
from tests.kit.privileges import as_ordinary_user

EXIT_CONFIGURATION = main.EXIT_CONFIGURATION


@pytest.fixture
def machine(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Machine]:
    with Sandbox() as sandbox:
        yield Machine(home, sandbox, monkeypatch, capsys)
        state = sandbox.state()
    assert state["internal_errors"] == 0, state["last_failure"]


class TestStatus:
    def test_all_is_well(self, machine: Machine) -> None:
        machine.seed()

        status, out, err = machine.run("status")

        assert (status, err) == (0, "")
        assert re.match(r"oauth  FRESH  valid for 5 h 59 min\n", out)
        assert re.search(r"^    ability +refreshable$", out, re.M)
        assert re.search(r"^    seconds left +2\d{4}$", out, re.M)
        assert re.search(r"^    access token +…\S{4}$", out, re.M)
        assert re.search(r"^    journal +login counts from: shared$", out, re.M)
        assert re.search(r"^    locks +nothing$", out, re.M)
        assert "remedy" not in out
        assert machine.sent == 0
        assert os.listdir(machine.qwen) == ["oauth_creds.json"], "it only looks"

    def test_the_same_for_programs(self, machine: Machine) -> None:
        machine.seed()

        (row,) = machine.run("status", "--json").rows

        assert row["seconds_left"] == pytest.approx(6 * HOUR_S, abs=5)
        assert row.pop("seconds_left")
        assert row.pop("access_token").startswith("…")
        assert row == {
            "account": "oauth",
            "file": str(machine.qwen / "oauth_creds.json"),
            "state": "fresh",
            "ability": "refreshable",
            "detail": "valid for 5 h 59 min",
            "remedy": None,
            "journal": {
                "problem": None,
                "login_counts_from": "shared",
                "unpublished": False,
                "last_refresh": None,
                "open_attempt": None,
                "last_failure": None,
                "refused_refresh_tokens": 0,
            },
            "locks": {"proxy": None, "qwen_code": None},
            "sharing": None,
        }

    def test_an_expired_login(self, machine: Machine) -> None:
        machine.seed(left_s=-2 * HOUR_S)

        status, out, _ = machine.run("status")

        assert status == 1
        assert out.startswith("oauth  EXPIRED  expired 2 h 0 min ago\n")
        assert "renewed as soon as the login service answers" in out
        assert machine.sent == 0

    def test_a_login_with_an_endpoint_that_is_refused(self, machine: Machine) -> None:
        content = machine.seed()
        content["resource_url"] = "http://10.0.0.5"
        (machine.qwen / "oauth_creds.json").write_text(json.dumps(content))

        status, out, _ = machine.run("status")

        assert status == 1
        assert out.startswith("oauth  MISSING  has a resource_url that is refused")

    def test_the_last_refresh_and_the_last_failure(self, machine: Machine) -> None:
        machine.seed()
        assert machine.run("refresh").status == 0
        (row,) = machine.run("status", "--json").rows
        last = row["journal"]["last_refresh"]
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", last)
        machine.seed(left_s=600)
        machine.sandbox.control(faults={"token": "denied"})
        assert machine.run("refresh").status == 1

        ended = machine.run("status", "--json")

        (row,) = ended.rows
        assert ended.status == 0, "it is good for ten more minutes"
        told = row["journal"]
        assert told["last_failure"]["outcome"] == "refused"
        assert told["last_failure"]["failures"] == 1
        assert told["last_failure"]["not_before"] > told["last_failure"]["at"]
        assert "last failure: outcome refused, at 20" in machine.run("status").out

    def test_a_refused_refresh_token(self, machine: Machine) -> None:
        machine.seed()
        machine.sandbox.control(revoke_all=True)
        machine.run("refresh")

        status, out, _ = machine.run("status")

        assert status == 1
        assert "cannot be renewed (rejected)" in out
        assert "refused refresh tokens: 1" in out
        assert re.search(r"^    remedy +Log in with `qwen-proxy login`", out, re.M)

    def test_a_closed_tier(self, machine: Machine) -> None:
        content = machine.seed()
        machine.run("refresh")
        journal = machine.qwen / ".qwen-proxy/journal.json"
        value = json.loads(journal.read_text())
        from qwen_wsgi.credentials.files.journal import fingerprint

        fp = fingerprint(machine.content()["access_token"])
        value["closed"] = {"fp": fp, "at_ms": int(time.time() * 1000)}
        journal.write_text(json.dumps(value))

        status, out, _ = machine.run("status")

        assert status == 1
        assert out.startswith(
            "oauth  EXPIRED  refused by the API: tier closed. It is tried again by"
        )
        assert re.search(r"^    ability +oauth_tier_closed$", out, re.M)
        assert re.search(r"^    remedy +Use an API key", out, re.M)
        assert content["access_token"] not in out

    def test_a_broken_journal(self, machine: Machine) -> None:
        machine.seed()
        (machine.qwen / ".qwen-proxy").mkdir()
        (machine.qwen / ".qwen-proxy/journal.json").write_text("{")

        assert "journal.json is not JSON. Remove the file" in machine.run("status").out

    def test_an_attempt_that_never_ended(self, machine: Machine) -> None:
        machine.seed()
        (machine.qwen / ".qwen-proxy").mkdir()
        intent = {"fp": "0" * 16, "pid": 4711, "at_ms": 1_795_176_000_000, "attempt": "deadbeef"}
        (machine.qwen / ".qwen-proxy/journal.json").write_text(json.dumps({"intent": intent}))

        shown = "open attempt: at 2026-11-20T12:00:00Z, pid 4711, attempt deadbeef"
        assert shown in machine.run("status").out

    def test_who_holds_the_locks(self, machine: Machine) -> None:
        machine.seed()
        machine.run("refresh")
        (machine.qwen / "oauth_creds.lock").write_text("5b8d2a46-8c8e-4f0e-9d29-7d3a3e9d1f10")

        with open(machine.qwen / ".qwen-proxy/refresh.lock", "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = machine.run("status").out
            (row,) = machine.run("status", "--json").rows

        assert row["locks"]["proxy"]["pid"] == os.getpid()
        assert row["locks"]["proxy"]["since"].endswith("Z")
        assert row["locks"]["qwen_code"].pop("age_s") < 10
        assert row["locks"]["qwen_code"] == {"ours": False, "pid": None, "symlink": False}
        assert re.search(
            rf"^    locks +proxy: pid {os.getpid()}, since 20\S+; qwen code: ", text, re.M
        )
        assert row["ability"] == "refreshable"

    @pytest.mark.parametrize("what", ["directory", "file", "journal"])
    def test_a_place_that_cannot_be_written(self, machine: Machine, what: str) -> None:
        """Found out by looking: an attempt would find it out in the middle of the night."""
        machine.seed()
        ours = machine.qwen / ".qwen-proxy"
        ours.mkdir()
        path = {
            "directory": machine.qwen,
            "file": machine.qwen / "oauth_creds.json",
            "journal": ours,
        }[what]

        with as_ordinary_user(machine.qwen):
            path.chmod(0o500 if path.is_dir() else 0o400)
            try:
                status, out, _ = machine.run("status")
            finally:
                path.chmod(0o700)

        assert status == 1
        assert "cannot be renewed (read_only)" in out
        assert re.search(r"^    remedy .*docs/credentials\.md", out, re.M)

    def test_a_file_that_was_deleted(self, machine: Machine) -> None:
        machine.seed()
        machine.run("refresh")
        (machine.qwen / "oauth_creds.json").unlink()

        status, out, _ = machine.run("status")

        assert status == 0
        assert "the file is gone" in out
        assert "login counts from: journal" in out
        assert "creds forget" in out


class TestRefresh:
    def test_now_although_it_is_early(self, machine: Machine) -> None:
        before = machine.seed()

        status, out, _ = machine.run("refresh")

        assert status == 0
        assert machine.content()["access_token"] != before["access_token"]
        assert re.search(r"^    refresh +ok$", out, re.M)
        assert re.search(r"^    why +valid for 21\d{3} s$", out, re.M)
        assert machine.sent == 1

    def test_not_at_once_again(self, machine: Machine) -> None:
        machine.seed()
        machine.run("refresh")

        ended = machine.run("refresh", "--json")

        (row,) = ended.rows
        assert ended.status == 1
        assert row["refresh"] == "not_due"
        assert row["why"] == "nothing was sent: it was refreshed a moment ago"
        assert machine.sent == 1

    @pytest.mark.parametrize(
        ("control", "why"),
        [
            (
                {"faults": {"token": "denied"}},
                "the last attempt failed, the next one is possible",
            ),
            ({"revoke_all": True}, "rejected"),
        ],
    )
    def test_not_after_a_failure(self, machine: Machine, control: Any, why: str) -> None:
        machine.seed()
        machine.sandbox.control(**control)
        machine.run("refresh")

        status, out, _ = machine.run("refresh")

        assert status == 1
        assert f"nothing was sent: {why}" in out
        assert machine.sent == 1

    @pytest.mark.parametrize(
        ("fault", "outcome"),
        [("status=429", "throttled"), ("html-502", "ambiguous"), ("denied", "refused")],
    )
    def test_a_failure(self, machine: Machine, fault: str, outcome: str) -> None:
        before = machine.seed()
        machine.sandbox.control(faults={"token": fault})

        ended = machine.run("refresh", "--json")

        (row,) = ended.rows
        assert (ended.status, row["refresh"]) == (1, outcome)
        assert "status" in row["why"]
        assert row["state"] == "fresh"
        assert machine.content() == before

    def test_nobody_there(self, machine: Machine) -> None:
        machine.seed()
        machine.sandbox.stop()

        status, out, _ = machine.run("refresh")

        assert status == 1
        assert "cannot be reached: Connection refused" in out

    def test_without_permission(self, machine: Machine) -> None:
        before = machine.seed()
        with as_ordinary_user(machine.qwen):
            machine.qwen.chmod(0o500)
            try:
                ended = machine.run("refresh", "--json")
            finally:
                machine.qwen.chmod(0o700)

        assert (ended.status, ended.rows[0]["refresh"]) == (1, "read_only")
        assert machine.sent == 0
        assert machine.content() == before


class TestForget:
    def test_after_a_logout(self, machine: Machine) -> None:
        machine.seed()
        machine.run("refresh")
        (machine.qwen / "oauth_creds.json").unlink()

        status, out, _ = machine.run("forget")

        assert status == 0
        assert "oauth  MISSING" in out
        assert re.search(r"^    forgotten +True$", out, re.M)
        status, out, err = machine.run("status")
        assert (status, out) == (EXIT_CONFIGURATION, "")
        assert "there is no Qwen login in " in err
        assert "qwen-proxy login" in err

    def test_while_the_file_is_there(self, machine: Machine) -> None:
        machine.seed()
        machine.run("refresh")

        assert machine.run("forget").status == 0
        (row,) = machine.run("status", "--json").rows
        assert row["state"] == "fresh"
        assert row["journal"]["last_refresh"] is None

    def test_a_login_that_only_the_journal_has_is_kept(self, machine: Machine) -> None:
        before = machine.seed()
        machine.run("refresh")
        new = machine.content()
        (machine.qwen / "oauth_creds.json").write_text(json.dumps(before))

        ended = machine.run("forget", "--json")

        assert ended.status == 1
        assert ended.rows[0]["forgotten"] is False
        assert "creds refresh" in ended.rows[0]["why"]
        machine.run("refresh")
        assert machine.content() == new


class TestAccounts:
    def test_each_or_one(self, machine: Machine) -> None:
        machine.seed()
        machine.seed("oauth_creds_work.json", left_s=-HOUR_S)

        ended = machine.run("status", "--json")
        assert (ended.status, [r["account"] for r in ended.rows]) == (1, ["oauth", "oauth-work"])
        for name in ("work", "oauth-work"):
            ended = machine.run("status", "--json", "--account", name)
            assert (ended.status, [r["account"] for r in ended.rows]) == (1, ["oauth-work"])
        assert machine.run("status", "--account", "oauth").status == 0

        before = machine.content()
        assert machine.run("refresh", "--account", "work").status == 0
        assert machine.content() == before
        assert (machine.qwen / ".qwen-proxy/journal_work.json").exists()
        assert machine.run("status").status == 0

    def test_one_that_is_not_there(self, machine: Machine) -> None:
        machine.seed()

        status, out, err = machine.run("status", "--account", "home")

        assert (status, out) == (EXIT_CONFIGURATION, "")
        assert "there is no login 'home'; there is: oauth" in err

    def test_one_whose_file_was_deleted_can_be_forgotten(self, machine: Machine) -> None:
        machine.seed("oauth_creds_work.json")
        machine.run("refresh")
        (machine.qwen / "oauth_creds_work.json").unlink()

        assert "the file is gone" in machine.run("status", "--account", "work").out
        assert machine.run("forget", "--account", "work").status == 0
        assert machine.run("status", "--account", "work").status == EXIT_CONFIGURATION

    def test_a_second_copy_of_a_login_is_told_and_left_alone(self, machine: Machine) -> None:
        machine.seed()
        (machine.qwen / "oauth_creds_work.json").write_bytes(
            (machine.qwen / "oauth_creds.json").read_bytes()
        )

        text = machine.run("status").out
        assert "oauth_creds_work.json holds the same login as the account oauth" in text
        ended = machine.run("refresh", "--account", "work")
        assert ended.status == EXIT_CONFIGURATION
        assert "holds the same login as the account oauth" in ended.err
        assert machine.sent == 0

        assert machine.run("refresh").status == 0
        assert machine.sent == 1
        text = machine.run("status").out
        assert "holds an older copy of the login of the account oauth" in text

    def test_bad_arguments(self, machine: Machine) -> None:
        assert machine.run("delete").status == 2
        assert machine.run().status == 2

    def test_an_endpoint_that_cannot_be_used(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.seed()
        monkeypatch.setenv("QWEN_OAUTH_BASE_URL", "http://10.0.0.5")

        status, _, err = machine.run("status")

        assert status == EXIT_CONFIGURATION
        assert "QWEN_OAUTH_BASE_URL cannot be used: it is plain http" in err
