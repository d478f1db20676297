"""Who holds a login's locks, and what was left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.credentials.files import document
from qwen_wsgi.credentials.files.journal import Backoff, Journal, Received, fingerprint
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.doctor import locks
from qwen_wsgi.doctor.findings import Finding, Level
from tests.fakes.machine import FakeMachine, faults, of, one
from tests.kit.installed_machine import Load
from tests.kit.secrets import secret


@pytest.fixture
def login(load: Load, qwen_home: Path, machine: FakeMachine) -> OAuthLogin:
    (qwen_home / "oauth_creds.json").write_text(
        json.dumps(
            {
                "access_token": secret("doctor-access"),
                "refresh_token": secret("doctor-refresh"),
                "token_type": "Bearer",
                "resource_url": "portal.qwen.ai",
                "expiry_date": 4_000_000_000_000,
            }
        )
    )
    (found,) = Discovery(load(), machine).logins()
    return found


def found_at(login: OAuthLogin, machine: FakeMachine) -> list[Finding]:
    return list(locks.check({"oauth": login}, machine))


@contextmanager
def held(login: OAuthLogin, since_s: float) -> Iterator[None]:
    lock = ProxyLock(login.store.paths.proxy_lock, now=lambda: since_s)
    assert lock.acquire(0)
    try:
        yield
    finally:
        lock.release()


def cli_lock(login: OAuthLogin, *, dated_s: float) -> Path:
    path = login.store.paths.cli_lock
    path.write_text("1234")
    os.utime(path, (dated_s, dated_s))
    return path


def test_without_a_login_there_is_nothing_to_look_at(machine: FakeMachine) -> None:
    assert one(locks.check({}, machine)).level is Level.SKIPPED


def test_free_locks_are_fine(login: OAuthLogin, machine: FakeMachine) -> None:
    assert {each.level for each in found_at(login, machine)} == {Level.OK}
    assert os.listdir(login.store.paths.document.parent) == ["oauth_creds.json"], "it only looks"


def test_a_renewal_that_goes_on_is_no_fault(login: OAuthLogin, machine: FakeMachine) -> None:
    with held(login, machine.at_s - 3):
        found = found_at(login, machine)

    assert faults(found) == []
    assert f"process {os.getpid()} is refreshing" in of(found, Level.NOTE)[0].what


def test_a_renewal_that_hangs_is_one(login: OAuthLogin, machine: FakeMachine) -> None:
    with held(login, machine.at_s - 600):
        fault = one(faults(found_at(login, machine)))

    assert "for 600 s" in fault.what
    assert str(os.getpid()) in fault.remedy


def test_our_lock_that_cannot_be_opened(login: OAuthLogin, machine: FakeMachine) -> None:
    path = login.store.paths.proxy_lock
    path.parent.mkdir()
    path.symlink_to("elsewhere")

    fault = one(faults(found_at(login, machine)))

    assert (fault.level, "cannot be opened" in fault.what) == (Level.FAIL, True)


def test_a_fresh_lock_of_qwen_code_is_no_fault(login: OAuthLogin, machine: FakeMachine) -> None:
    cli_lock(login, dated_s=machine.at_s - 5)

    found = found_at(login, machine)

    assert faults(found) == []
    assert "qwen-code has been refreshing this login for 5 s" in of(found, Level.NOTE)[0].what


@pytest.mark.parametrize(
    ("age_s", "words"), [(300, "left behind by qwen-code, 300 s ago"), (-300, "in the future")]
)
def test_a_lock_of_qwen_code_that_is_in_the_way(
    login: OAuthLogin, machine: FakeMachine, age_s: float, words: str
) -> None:
    path = cli_lock(login, dated_s=machine.at_s - age_s)

    fault = one(faults(found_at(login, machine)))

    assert words in fault.what
    assert f"rm {path}" in fault.remedy


def test_a_lock_of_a_qwen_proxy_that_died(login: OAuthLogin, machine: FakeMachine) -> None:
    path = cli_lock(login, dated_s=machine.at_s - 5)
    path.write_text("qwen-proxy 4194305 1 00\n")  # above the largest pid
    os.utime(path, (machine.at_s - 5, machine.at_s - 5))

    assert (
        "left behind by qwen-proxy (process 4194305)" in one(faults(found_at(login, machine))).what
    )


def test_a_link_in_place_of_qwen_code_s_lock(login: OAuthLogin, machine: FakeMachine) -> None:
    path = login.store.paths.cli_lock
    path.symlink_to("elsewhere")

    assert one(faults(found_at(login, machine))).remedy == f"rm {path}"


def test_a_directory_in_place_of_qwen_code_s_lock(login: OAuthLogin, machine: FakeMachine) -> None:
    path = login.store.paths.cli_lock
    path.mkdir()

    fault = one(faults(found_at(login, machine)))

    assert (fault.level, fault.remedy) == (Level.FAIL, f"rmdir {path}")


def test_a_journal_that_cannot_be_used(login: OAuthLogin, machine: FakeMachine) -> None:
    path = login.store.paths.journal
    path.parent.mkdir()
    path.write_text("no json")

    assert str(path) in one(faults(found_at(login, machine))).what


def test_what_a_crash_left_is_noted_once_it_is_old(login: OAuthLogin, machine: FakeMachine) -> None:
    home = login.store.paths.document.parent
    (home / ".qwen-proxy-123").write_text("")
    (home / "oauth_creds.lock.break.1.abc").write_text("")
    machine.at_s = (home / ".qwen-proxy-123").stat().st_ctime + 60
    assert of(locks.left_behind(home, machine), Level.NOTE) == []

    machine.at_s += 7200

    found = one(locks.left_behind(home, machine))
    assert (found.level, found.what.split(":")[0]) == (
        Level.NOTE,
        "a crash left 2 file(s) behind",
    )


def test_a_renewal_that_failed_is_noted(login: OAuthLogin, machine: FakeMachine) -> None:
    newest = login.store.snapshot().newest.login
    assert newest is not None
    failed = Backoff(fingerprint(newest.refresh_token), 3, 0, "rejected", 0)
    login.store.paths.journal.parent.mkdir()
    login.store.write_journal(Journal(backoff=failed))

    note = one(of(found_at(login, machine), Level.NOTE))

    assert "the last 3 token refresh(es) failed (rejected)" in note.what


def test_a_login_that_is_in_the_journal_alone(login: OAuthLogin, machine: FakeMachine) -> None:
    newest = login.store.snapshot().newest.login
    assert newest is not None
    content = {**newest.raw, "refresh_token": secret("doctor-next")}
    next_one = document.parse(json.dumps(content).encode(), None)
    spent = fingerprint(newest.refresh_token)
    received = Received(spent, next_one, 0, None, forced=False, published=False)
    login.store.paths.journal.parent.mkdir()
    login.store.write_journal(Journal(received=received))

    assert "only in the journal" in one(faults(found_at(login, machine))).what
