"""How the latest call of an account ended, as all workers see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.errors import AccountUnavailable, ApiError, Failure, Scope, UpstreamError
from qwen_wsgi.state.shared_files import SharedFiles
from qwen_wsgi.upstream.routing.outcomes import LatestCall, Outcomes
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import account_of


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def outcomes(clock: FakeClock) -> Outcomes:
    return Outcomes(None, boottime=clock.monotonic)


def refused(cause: str = "invalid_key", scope: Scope = Scope.ACCOUNT) -> ApiError:
    return UpstreamError("no", failure=Failure(cause, scope, retry=False, elsewhere=True))


def test_an_account_that_nobody_called_has_none(outcomes: Outcomes) -> None:
    assert outcomes.latest(account_of()) is None


def test_an_answer(outcomes: Outcomes, clock: FakeClock) -> None:
    outcomes.answered(account_of())
    clock.advance(5)

    assert outcomes.latest(account_of()) == LatestCall(5, "", 5)
    assert outcomes.latest(account_of("another")) is None


def test_a_failure_after_an_answer(outcomes: Outcomes, clock: FakeClock) -> None:
    outcomes.answered(account_of())
    clock.advance(60)
    outcomes.failed(account_of(), refused())
    clock.advance(3)

    assert outcomes.latest(account_of()) == LatestCall(3, "invalid_key", 63)


def test_an_answer_at_once_after_a_failure(outcomes: Outcomes, clock: FakeClock) -> None:
    outcomes.answered(account_of())
    clock.advance(0.1)
    outcomes.failed(account_of(), refused())
    clock.advance(0.1)
    outcomes.answered(account_of())

    assert outcomes.latest(account_of()) == LatestCall(0, "", 0)


def test_a_fault_of_the_request_is_an_answer(outcomes: Outcomes) -> None:
    outcomes.failed(account_of(), refused("prompt_too_long", Scope.REQUEST))

    assert outcomes.latest(account_of()) == LatestCall(0, "", 0)


def test_what_was_never_sent_counts_for_nothing(outcomes: Outcomes) -> None:
    outcomes.failed(account_of(), AccountUnavailable("no key"))

    assert outcomes.latest(account_of()) is None


def test_an_error_without_a_cause_is_told_by_its_code(outcomes: Outcomes) -> None:
    outcomes.failed(account_of(), UpstreamError("?", code="a_code_that_is_longer_than_a_row_has"))

    latest = outcomes.latest(account_of())
    assert latest is not None
    assert (latest.cause, latest.answered_s) == ("a_code_that_is_longer_th", None)


def test_another_key_is_another_account(outcomes: Outcomes) -> None:
    def keyed(key: str) -> Account:
        account = account_of()
        return Account(**{**vars(account), "credential": StaticKey(key, "https://up.example/v1")})

    outcomes.answered(keyed("old-key"))

    assert outcomes.latest(keyed("old-key")) is not None
    assert outcomes.latest(keyed("new-key")) is None


def test_other_workers_see_it(tmp_path: Path, clock: FakeClock) -> None:
    one, other = (
        Outcomes(SharedFiles(tmp_path, boot_id="b"), boottime=clock.monotonic) for _ in range(2)
    )
    one.failed(account_of(), refused())

    assert other.latest(account_of()) == LatestCall(0, "invalid_key", None)
