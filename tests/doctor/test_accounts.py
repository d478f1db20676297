"""What the accounts are worth."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import Ability, CredentialStatus, TokenState
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.doctor import accounts
from qwen_wsgi.doctor.accounts import Calls
from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.routing.accounts import SandboxKey
from qwen_wsgi.upstream.routing.catalogue import Listing
from tests.fakes.machine import FakeMachine, faults, of, one
from tests.fakes.upstream import account_of


class FakeProbe:
    """Answers by model: tokens, or an error."""

    def __init__(self, **answers: int | None | Exception) -> None:
        self.answers = answers
        self.requests: list[tuple[str, str]] = []

    def request(self, account: Account, model: str) -> int | None:
        self.requests.append((account.name, model))
        answer = self.answers.get(model, 9)
        if isinstance(answer, Exception):
            raise answer
        return answer


def calls(probe: FakeProbe, *models: str, error: str = "") -> Calls:
    listing = Listing({model: {} for model in models or ("flash",)}, not error, error)
    return Calls(probe, lambda account: listing)


def refused(name: str) -> UpstreamError:
    return UpstreamError("Its words.", failure=CAUSES[name].failure())


def status_of(state: TokenState, **more: Any) -> CredentialStatus:
    status = CredentialStatus(state, "…0000", "as it is", "", None)
    return replace(status, **more)


class FakeLogin(OAuthLogin):
    """A login whose status a test sets, with a file of its own."""

    def __init__(self, status: CredentialStatus, document: Path) -> None:
        self.reported = status
        self.store = SimpleNamespace(paths=SimpleNamespace(document=document))  # type: ignore[assignment]  # all that is used

    def status(self) -> CredentialStatus:
        return self.reported


Make = Callable[..., Account]


@pytest.fixture
def login_of(tmp_path: Path) -> Make:
    def make(state: TokenState, ability: Ability = Ability.REFRESHABLE, **more: Any) -> Account:
        credential = FakeLogin(status_of(state, ability=ability, **more), tmp_path / "creds.json")
        return replace(account_of("oauth"), kind="oauth", credential=credential)

    return make


def found_of(
    *listed: Account, machine: FakeMachine, probe: FakeProbe | None = None
) -> list[Finding]:
    return list(accounts.check(listed, calls(probe or FakeProbe()), machine))


def test_a_good_account(machine: FakeMachine) -> None:
    found = found_of(account_of(), machine=machine)

    assert [each.level for each in found] == [Level.OK, Level.OK]
    assert "flash answered in" in found[1].what
    assert "9 tokens used" in found[1].what


@pytest.mark.parametrize("state", [TokenState.REFUSED, TokenState.UNPAID, TokenState.PAUSED])
def test_what_a_running_server_found_counts_where_no_call_is_made(
    machine: FakeMachine, state: TokenState
) -> None:
    told = status_of(state, detail="its host says no", remedy="Do this.", cause="key_refused")

    found = list(accounts.check((account_of(),), None, machine, lambda account: told))

    fault, none_usable = faults(found)
    assert (fault.level, fault.remedy) == (Level.FAIL, "Do this.")
    assert "its host says no" in fault.what
    assert "none of them is usable" in none_usable.what


def test_a_key_with_which_no_list_is_given_does_not_work(machine: FakeMachine) -> None:
    """Where no model is known without the list, no call can be made; all the same it is known."""
    error = UpstreamError("GET /models answered HTTP 401: the key is not accepted. Check it.")
    listing = Listing({}, False, error.message, "key_refused")

    found = list(
        accounts.check((account_of(),), Calls(FakeProbe(), lambda account: listing), machine)
    )

    fault = one(faults(found))
    assert fault.level is Level.FAIL
    assert "HTTP 401" in fault.what
    assert fault.remedy == CAUSES["key_refused"].remedy


def test_how_each_call_ended_is_noted(machine: FakeMachine) -> None:
    ended: list[ApiError | None] = []
    error = refused("model_denied")
    probe = FakeProbe(a=error)
    told = calls(probe, "a", "b")._replace(note=lambda account, error: ended.append(error))

    list(accounts.check((account_of(),), told, machine))

    assert ended == [error, None]


def test_without_any_account_it_fails(machine: FakeMachine) -> None:
    fault = one(faults(found_of(machine=machine)))

    assert (fault.level, "DASHSCOPE_API_KEY" in fault.remedy) == (Level.FAIL, True)


def test_without_calls_nobody_is_asked_and_nothing_is_ok_for_it(machine: FakeMachine) -> None:
    found = list(accounts.check((account_of(),), None, machine))

    assert [each.level for each in found] == [Level.OK, Level.SKIPPED]
    assert "--no-calls" in found[1].what


def test_a_key_that_is_refused_fails(machine: FakeMachine) -> None:
    probe = FakeProbe(flash=refused("key_refused"))

    fault = one(faults(found_of(account_of(), machine=machine, probe=probe)))

    assert (fault.level, fault.subject) == (Level.FAIL, "dashscope")
    assert "Check the key" in fault.remedy
    assert len(probe.requests) == 1, "another model does not help"


def test_another_model_is_tried_where_one_is_closed(machine: FakeMachine) -> None:
    probe = FakeProbe(a=refused("model_denied"), b=refused("free_tier_spent"))

    found = list(accounts.check((account_of(),), calls(probe, "a", "b", "c"), machine))

    assert [each.level for each in found] == [Level.OK, Level.WARN, Level.WARN, Level.OK]


def test_only_so_many_are_tried(machine: FakeMachine) -> None:
    probe = FakeProbe(**{name: refused("model_denied") for name in "abcd"})

    found = list(accounts.check((account_of(),), calls(probe, *"abcd"), machine))

    assert len(probe.requests) == 3
    assert {each.level for each in faults(found)} == {Level.FAIL}


@pytest.mark.parametrize(
    ("models", "error", "words"),
    [
        (("text-embedding-v4",), "", "lists no chat model"),
        ((), "No route.", "lists no model (No route.)"),
    ],
)
def test_nothing_to_ask_for_is_no_ok(
    machine: FakeMachine, models: tuple[str, ...], error: str, words: str
) -> None:
    listing = Listing({model: {} for model in models}, not error, error)

    found = list(
        accounts.check((account_of(),), Calls(FakeProbe(), lambda account: listing), machine)
    )

    assert words in one(of(found, Level.SKIPPED)).what


def test_a_fault_of_the_check_is_no_ok(machine: FakeMachine) -> None:
    found = found_of(account_of(), machine=machine, probe=FakeProbe(flash=RuntimeError("oops")))

    assert "oops" in one(of(found, Level.SKIPPED)).what


def test_accounts_are_asked_at_the_same_time_and_told_in_order(machine: FakeMachine) -> None:
    found = found_of(account_of("a"), account_of("b"), machine=machine)

    assert [each.subject for each in found] == ["a", "a", "b", "b"]


class TestMissing:
    """Settings often name providers whose key nobody ever had."""

    def test_it_is_no_failure_beside_another_account(self, machine: FakeMachine) -> None:
        probe = FakeProbe()

        found = found_of(account_of("a"), account_of("b", token=None), machine=machine, probe=probe)

        assert one(faults(found)).level is Level.WARN
        assert probe.requests == [("a", "flash")]

    def test_alone_it_is_one(self, machine: FakeMachine) -> None:
        found = faults(found_of(account_of(token=None), machine=machine))

        assert [each.level for each in found] == [Level.FAIL, Level.FAIL]
        assert found[1].what == "none of them is usable now"


class TestLogins:
    @pytest.mark.parametrize("state", [TokenState.FRESH, TokenState.STALE, TokenState.EXPIRING])
    def test_a_good_one(self, machine: FakeMachine, login_of: Make, state: TokenState) -> None:
        machine.uid = os.geteuid()

        assert faults(found_of(login_of(state), machine=machine)) == []

    @pytest.mark.parametrize(
        "ability", [Ability.READ_ONLY, Ability.REJECTED, Ability.NO_REFRESH_TOKEN]
    )
    def test_one_that_ends(self, machine: FakeMachine, login_of: Make, ability: Ability) -> None:
        found = found_of(login_of(TokenState.FRESH, ability), machine=machine)

        assert one(faults(found)).level is Level.WARN

    def test_one_that_has_ended(self, machine: FakeMachine, login_of: Make) -> None:
        probe = FakeProbe(flash=ApiError("no", status=503))

        found = faults(found_of(login_of(TokenState.EXPIRED), machine=machine, probe=probe))

        assert {each.level for each in found} == {Level.FAIL}

    def test_one_that_the_next_call_refreshes(self, machine: FakeMachine, login_of: Make) -> None:
        found = list(accounts.check((login_of(TokenState.EXPIRED),), None, machine))

        assert one(faults(found)).level is Level.WARN
        assert "the next call refreshes it" in one(faults(found)).what

    def test_a_closed_tier_alone(self, machine: FakeMachine, login_of: Make) -> None:
        probe = FakeProbe()

        found = found_of(
            login_of(TokenState.EXPIRED, Ability.TIER_CLOSED, again_s=42.0),
            machine=machine,
            probe=probe,
        )

        first = faults(found)[0]
        assert (first.level, probe.requests) == (Level.FAIL, [])
        assert "a call may try it again in 42 s" in one(of(found, Level.SKIPPED)).what
        assert "2026-04-15" in first.what
        assert "DASHSCOPE_API_KEY" in first.remedy

    def test_a_closed_tier_whose_time_has_come_is_tried(
        self, machine: FakeMachine, login_of: Make
    ) -> None:
        probe = FakeProbe()

        found_of(login_of(TokenState.EXPIRED, Ability.TIER_CLOSED), machine=machine, probe=probe)

        assert len(probe.requests) == 1

    def test_a_closed_tier_beside_a_key(self, machine: FakeMachine, login_of: Make) -> None:
        found = found_of(
            account_of(), login_of(TokenState.EXPIRED, Ability.TIER_CLOSED), machine=machine
        )

        assert one(faults(found)).level is Level.WARN

    def test_somebody_else_s_is_left_alone(self, machine: FakeMachine, login_of: Make) -> None:
        """A renewal by root would leave files of root's in the owner's home."""
        machine.uid = os.geteuid() + 1
        probe = FakeProbe()

        found = found_of(login_of(TokenState.EXPIRED), machine=machine, probe=probe)

        assert probe.requests == []
        assert "belongs to server" in one(of(found, Level.SKIPPED)).what
        assert of(found, Level.FAIL) == []


def test_the_sandbox_is_fine_and_said(machine: FakeMachine) -> None:
    sandbox = replace(
        account_of("sandbox", family=Family.SANDBOX),
        kind="sandbox",
        credential=SandboxKey(lambda: "http://127.0.0.1:1/v1"),
    )

    found = found_of(sandbox, machine=machine)

    assert [each.level for each in found] == [Level.NOTE, Level.OK]
    assert "needs no account" in found[0].what
