"""When a login is renewed, when not, and what calls get meanwhile; against the sandbox."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.credential import Ability, CredentialStatus, TokenState
from qwen_wsgi.credentials.files import document, durable
from qwen_wsgi.credentials.files.journal import Journal, Received
from qwen_wsgi.credentials.files.login_store import from_environment
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.attempt import Attempt, Outcome
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.clock import FakeClock
from tests.kit.login_world import World, login_of, settle, shuffled
from tests.kit.privileges import as_ordinary_user
from tests.kit.qwen_home import Home

HOUR_S = 3600.0
#: The life of the sandbox's tokens, and how long they are fresh: all but the last 15 minutes.
LIFE_S = 6 * HOUR_S


@pytest.fixture
def world(home: Home, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    caplog.set_level(logging.INFO, "qwen_wsgi.credentials")
    with Sandbox() as sandbox:
        yield World(home, clock, sandbox)
        state = sandbox.state()
    assert state["internal_errors"] == 0, state["last_failure"]
    assert "sandbox-at-" not in caplog.text
    assert "sandbox-rt-" not in caplog.text


def refusal(login: OAuthLogin, rejected: str | None = None) -> CredentialError:
    with pytest.raises(CredentialError) as caught:
        login.current(rejected=rejected)
    assert caught.value.remedy
    return caught.value


def attempt(login: OAuthLogin, rejected: str | None = None) -> Attempt:
    """One attempt in this thread, as `creds refresh` makes it."""
    return login.refresher.attempt(rejected=rejected)


class TestStates:
    def test_a_fresh_token_costs_two_looks(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token = world.seed(LIFE_S)["access_token"]
        login = world.login()
        login.current()
        settle(login)  # the login of another program is backed up, once
        first = login.current()
        touched: list[str] = []
        mine = threading.get_ident()
        for name in ("stat", "access", "open", "listdir", "fstat"):
            real = getattr(os, name)

            def counted(*a: Any, _real: Any = real, _name: str = name, **more: Any) -> Any:
                if threading.get_ident() == mine:
                    touched.append(_name)
                return _real(*a, **more)

            monkeypatch.setattr(os, name, counted)

        again = login.current()

        assert first.value == token
        assert again is first
        assert touched == ["stat", "stat"]  # the login and its journal
        assert login.refresher._state.running is None

    def test_a_stale_token_is_used_at_once_and_renewed_beside(self, world: World) -> None:
        old = world.seed(600)["access_token"]
        login = world.login()
        world.faults("slow-before=1.5")

        begun = time.monotonic()
        assert {login.current().value for _ in range(5)} == {old}
        assert time.monotonic() - begun < 1.2
        settle(login)

        assert login.current().value == world.content()["access_token"] != old
        assert world.sent == 1

    def test_an_expiring_token_is_waited_for(self, world: World) -> None:
        old = world.seed(60)["access_token"]
        login = world.login()

        assert login.current().value == world.content()["access_token"] != old

    def test_an_expiring_token_is_used_when_nothing_better_comes(self, world: World) -> None:
        old = world.seed(60)["access_token"]
        login = world.login()
        world.faults("html-502")

        assert login.current().value == old
        sent = world.sent
        assert login.current().value == old
        assert world.sent == sent == 2, "ambiguous: once more at once, then not again"

    def test_an_expired_token_is_waited_for(self, world: World) -> None:
        old = world.seed(-5)["access_token"]

        assert world.login().current().value == world.content()["access_token"] != old

    @pytest.mark.parametrize("fault", ["throttle", "html-502", "denied"])
    def test_without_any_token_it_says_when_to_come_back(self, world: World, fault: str) -> None:
        world.seed(-5)
        login = world.login()
        world.faults(fault)

        error = refusal(login)

        assert error.code == "credentials_expired"
        assert error.retry_after_s
        assert "was not renewed (status " in str(error)
        assert refusal(login).retry_after_s
        assert world.sent <= 2

    def test_calls_that_wait_wait_for_one_refresh(self, world: World) -> None:
        world.seed(-5)
        login = world.login()
        world.faults("slow-before=0.3")

        got = together(12, lambda: login.current().value)

        assert got == [world.content()["access_token"]] * 12
        assert world.sent == 1

    def test_the_wait_ends_in_time(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qwen_wsgi.credentials.oauth_login.WAIT_S", 0.1)
        world.seed(-5)
        login = world.login()
        world.faults("slow-before=0.6")

        assert refusal(login).retry_after_s
        settle(login)
        assert login.current().value == world.content()["access_token"]

    def test_maintenance_needs_no_call(self, world: World) -> None:
        world.seed(LIFE_S)
        login = world.login()
        login.maintain()
        assert login.refresher._state.running is None

        world.clock.advance(LIFE_S - 600)
        login.maintain()
        settle(login)

        assert login.status().state is TokenState.FRESH
        assert world.sent == 1

    def test_there_is_nothing_to_maintain_without_a_login(self, world: World) -> None:
        login = world.login()
        login.maintain()
        assert login.refresher._state.running is None
        assert os.listdir(world.home.qwen) == []

    def test_the_cached_moment_is_the_states(self, world: World) -> None:
        """The fast path's limit is the one of `state`, to the millisecond, with any share."""
        for share in (0.0, 0.3, 1.0):
            world.seed(-5)
            boot: dict[str, float] = {}
            login = world.login(
                jitter=lambda share=share: share,
                boottime=lambda boot=boot: boot.get("at", world.clock.monotonic()),
            )
            login.current()
            snapshot = login.store.snapshot()
            until_s, until_boot_s = login.refresher.fresh_until(snapshot)
            now_s = world.clock.wall_s
            world.clock.wall_s = until_s - 0.01
            assert login.refresher.token_state(snapshot) is TokenState.FRESH
            world.clock.wall_s = until_s + 0.01
            assert login.refresher.token_state(snapshot) is TokenState.STALE
            world.clock.wall_s = now_s
            boot["at"] = until_boot_s - 0.01
            assert login.refresher.token_state(snapshot) is TokenState.FRESH
            boot["at"] = until_boot_s + 0.01
            assert login.refresher.token_state(snapshot) is TokenState.STALE


def together(count: int, work: Callable[[], Any]) -> list[Any]:
    """Do it in that many threads at the same time."""
    gate, got = threading.Barrier(count), []

    def one() -> None:
        gate.wait()
        got.append(work())

    threads = [threading.Thread(target=one) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return got


class TestRejected:
    def test_a_refused_token_is_replaced(self, world: World) -> None:
        old = world.seed(LIFE_S)["access_token"]
        login = world.login()

        assert login.current(rejected=old).value == world.content()["access_token"] != old
        assert world.sent == 1

    def test_one_that_is_older_than_the_file_costs_nothing(self, world: World) -> None:
        old = world.seed(LIFE_S)["access_token"]
        login = world.login()
        assert login.current().value == old
        new = world.seed(LIFE_S)["access_token"]

        assert login.current(rejected=old).value == new
        assert world.sent == 0

    def test_many_with_the_same_token_cost_one_refresh(self, world: World) -> None:
        old = world.seed(LIFE_S)["access_token"]
        logins = [world.login(), world.login()]
        turn = iter(range(100))
        world.faults("slow-before=0.1")

        got = together(20, lambda: logins[next(turn) % 2].current(rejected=old).value)

        assert set(got) == {world.content()["access_token"]} - {old}
        assert world.sent == 1
        assert world.oauth["refresh_reuses"] == 0

    def test_another_login_is_renewed_whatever_became_of_the_one_before(self, world: World) -> None:
        """A person logged in again: its token is not the one that we renewed a moment ago."""
        login = world.login()
        login.current(rejected=world.seed(LIFE_S)["access_token"])
        second = world.seed(LIFE_S)["access_token"]

        assert login.current(rejected=second).value == world.content()["access_token"] != second
        assert world.sent == 2

    def test_forced_refreshes_keep_their_distance(self, world: World) -> None:
        """A host that refuses good tokens now and then does not spend a refresh token each time;
        counted for all processes."""
        token = world.seed(LIFE_S)["access_token"]
        for _ in range(3):
            login = world.login()
            answered(login, login.current(rejected=token))
            token = world.content()["access_token"]

        for each in (login, world.login()):
            error = refusal(each, rejected=token)
            assert error.code == "credentials_rejected"
            assert "could not be replaced" not in str(error)
            assert "renewed again from 12:10:00 UTC on" in str(error)
            assert error.retry_after_s == 600
            assert token not in str(error) + error.remedy
            assert each.current().value == token, "other calls go on with it"
        assert world.sent == 3

        world.clock.advance(600)
        assert world.login().current(rejected=token).value != token
        assert world.sent == 4

    def test_a_token_that_answered_is_renewed_at_once_when_it_is_refused(
        self, world: World
    ) -> None:
        """Two revocations within a minute close nothing, whichever worker sees them."""
        first = world.seed(LIFE_S)["access_token"]
        one, other = world.login(), world.login()
        second = one.current(rejected=first)
        answered(one, second)

        third = other.current(rejected=second.value)

        assert third.value not in (first, second.value)
        assert other.status().state is TokenState.FRESH
        assert world.sent == 2

    def test_a_new_token_that_is_refused_closes_the_tier(self, world: World) -> None:
        login, other, new = closed(world)

        for each in (login, other, world.login()):
            error = refusal(each)
            assert error.code == "oauth_tier_closed"
            assert error.retry_after_s == 60
            assert "by a call from 12:01:00 UTC on, and without one at 12:04:00 UTC" in str(error)
            assert "API key" in error.remedy
            assert "2026-04-15" in error.remedy
            assert refusal(each, rejected=new).code == "oauth_tier_closed"
            status = each.status()
            assert "tier closed. It is tried again by a call from 12:01:00 UTC" in status.detail
            assert status.remedy == error.remedy
        assert world.sent == 1

    def test_after_a_minute_a_call_tries_it_again(self, world: World) -> None:
        login, other, new = closed(world)
        world.clock.advance(61)
        assert "The next call tries it again" in login.status().detail

        assert login.current().value == new
        assert refusal(login).code == "oauth_tier_closed", "one call, and not all of them"
        assert refusal(login, rejected=new).retry_after_s == 60
        assert refusal(other).code == "oauth_tier_closed"
        assert world.sent == 1, "without another renewal"

    def test_a_login_that_answers_again_is_open_for_all(self, world: World) -> None:
        login, other, new = closed(world)
        world.clock.advance(61)
        answered(login, login.current())

        for each in (login, other, world.login()):
            assert each.current().value == new
            assert each.status().state is TokenState.FRESH
            assert each.status().remedy == ""
        assert "closed" not in world.journal()
        assert other.current(rejected=new).value != new, "it is never closed again: it worked"

    def test_it_is_tried_again_without_a_call(self, world: World) -> None:
        login, other, new = closed(world)

        def due() -> list[bool]:
            return [login.trial_is_due, other.trial_is_due]

        assert due() == [False, False]
        world.clock.advance(241)
        assert due() == [True, True]
        refusal(login, rejected=new)  # refused again: for another four minutes
        assert due() == [False, False]
        world.clock.advance(241)
        other.give_another_chance()
        assert due() == [False, False]
        for each in (login, other):
            assert each.status().state is TokenState.FRESH
            assert each.current().value == new
        assert refusal(login, rejected=new).code == "oauth_tier_closed", "at once, and for nothing"
        assert refusal(other).code == "oauth_tier_closed"
        assert world.sent == 1

    def test_one_that_has_expired_meanwhile_is_renewed_by_the_call_that_tries_it(
        self, world: World
    ) -> None:
        login, other, new = closed(world)
        world.clock.advance(LIFE_S + 1)
        login.maintain()
        settle(login)
        assert world.sent == 1, "not for nobody"

        latest = login.current()
        assert latest.value == world.content()["access_token"] != new
        assert "tier closed" in other.status().detail, "still: the API has not accepted it"
        assert refusal(login, rejected=latest.value).code == "oauth_tier_closed"
        assert world.sent == 2

    def test_it_is_closed_where_no_journal_can_be_written(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = world.seed(LIFE_S)["access_token"]
        login = world.login()
        new = login.current(rejected=old).value
        assert login.current().value == new  # on the fast path from here on

        def full(value: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(login.store, "write_journal", full)

        assert refusal(login, rejected=new).code == "oauth_tier_closed"
        assert refusal(login).code == "oauth_tier_closed"
        assert world.sent == 1

    def test_a_new_login_opens_it_again(self, world: World) -> None:
        old = world.seed(LIFE_S)["access_token"]
        login = world.login()
        new = login.current(rejected=old).value
        refusal(login, rejected=new)

        latest = world.seed(LIFE_S)["access_token"]

        assert login.current().value == latest
        assert login.current() is login.current()
        assert login.refresher._state.running is None, "a thread for nothing"
        assert login.refresher.counters.total() == 1
        assert login.status().state is TokenState.FRESH
        assert login.status().remedy == ""

    def test_many_that_find_it_closed(self, world: World) -> None:
        old = world.seed(LIFE_S)["access_token"]
        login = world.login()
        new = login.current(rejected=old).value

        got = together(10, lambda: refusal(login, rejected=new).code)

        assert got == ["oauth_tier_closed"] * 10
        assert world.sent == 1

    def test_a_token_that_worked_for_a_while_was_good(self, world: World) -> None:
        old = world.seed(LIFE_S)["access_token"]
        login = world.login()
        new = login.current(rejected=old).value
        world.clock.advance(HOUR_S)

        assert login.current(rejected=new).value not in (old, new)
        assert world.sent == 2


def answered(login: OAuthLogin, token: AccessToken) -> None:
    """A call was answered with it."""
    login.answered(token)
    settle(login)


def closed(world: World) -> tuple[OAuthLogin, OAuthLogin, str]:
    """A login whose renewed token was refused, too, at 12:00:00 UTC: in two processes, and the
    token."""
    old = world.seed(LIFE_S)["access_token"]
    login, other = world.login(), world.login()
    new = login.current(rejected=old).value
    assert refusal(login, rejected=new).code == "oauth_tier_closed"
    return login, other, new


class TestRejectedRefreshToken:
    @pytest.fixture
    def refused(self, world: World) -> dict[str, Any]:
        content = world.seed(60)
        world.sandbox.control(revoke_all=True)
        return content

    def test_it_is_remembered_by_all(self, world: World, refused: dict[str, Any]) -> None:
        one, two = world.login(), world.login()

        assert attempt(one).outcome is Outcome.REJECTED
        assert attempt(two).outcome is Outcome.NOT_DUE
        assert attempt(world.login()).outcome is Outcome.NOT_DUE
        assert world.sent == 1
        assert world.slept_s == [1.0], "somebody else may have won a race: looked at again later"
        assert world.content() == refused, "never delete or change the file"
        for each in (one, two):
            assert each.refresher.ability(each.store.snapshot()) is Ability.REJECTED

    def test_the_access_token_is_served_to_its_end(
        self, world: World, refused: dict[str, Any]
    ) -> None:
        login = world.login()
        attempt(login)

        assert login.current().value == refused["access_token"]
        status = login.status()
        assert status.state is TokenState.EXPIRING
        assert "cannot be renewed (rejected)" in status.detail
        assert "qwen-proxy login" in status.remedy
        world.clock.advance(60)
        error = refusal(login)
        assert (error.code, error.retry_after_s) == ("credentials_expired", None)
        assert "its refresh token was refused" in str(error)
        assert "qwen-proxy login" in error.remedy
        assert world.sent == 1

    def test_a_new_login_cures_it(self, world: World, refused: dict[str, Any]) -> None:
        login = world.login()
        attempt(login)

        world.seed(60)
        assert login.refresher.ability(login.store.snapshot()) is Ability.REFRESHABLE
        assert attempt(login).outcome is Outcome.OK

    def test_somebody_else_was_faster(self, world: World, refused: dict[str, Any]) -> None:
        """The CLI spent the token, and its file comes while we wait before we believe it."""
        theirs: list[dict[str, Any]] = []

        def sleep(seconds: float) -> None:
            world.sandbox.control(revoke_all=False)
            theirs.append(world.seed(LIFE_S))

        login = world.login(sleep=sleep)

        assert attempt(login).outcome is Outcome.ADOPTED
        assert login.current().value == theirs[0]["access_token"]
        assert "tombstones" not in world.journal()


#: What the token endpoint does, the outcome, how often it was asked, and whether the old refresh
#: token was spent by it.
OUTCOMES = [
    ("", Outcome.OK, 1),
    ("expires-in=missing", Outcome.OK, 1),
    ("expires-in=string", Outcome.OK, 1),
    ("expires-in=zero", Outcome.OK, 1),
    ("expires-in=null", Outcome.OK, 1),
    ("expires-in=soon", Outcome.OK, 1),
    ("no-resource-url", Outcome.OK, 1),
    ("no-refresh-token", Outcome.OK, 1),
    ("gzip", Outcome.OK, 1),
    ("status=400", Outcome.REJECTED, 1),
    ("token-error=invalid_grant", Outcome.REJECTED, 1),
    ("status=401", Outcome.REJECTED, 1),
    ("status=429, retry-after=7", Outcome.THROTTLED, 1),
    ("status=500", Outcome.AMBIGUOUS, 2),
    ("html-502", Outcome.AMBIGUOUS, 2),
    ("empty-503", Outcome.AMBIGUOUS, 2),
    ("html-200", Outcome.AMBIGUOUS, 2),
    ("empty-200", Outcome.AMBIGUOUS, 2),
    ("not-json", Outcome.AMBIGUOUS, 2),
    ("no-access-token, no-refresh-token", Outcome.AMBIGUOUS, 2),
    ("drop", Outcome.AMBIGUOUS, 2),
    ("reset", Outcome.AMBIGUOUS, 2),
    ("half-headers", Outcome.AMBIGUOUS, 2),
    ("bad-request", Outcome.REFUSED, 1),
    ("empty-404", Outcome.REFUSED, 1),
    ("redirect", Outcome.REFUSED, 1),
    # The first answer is lost, the token is spent, and the repetition is refused: a lost login.
    ("cut-after-rotation", Outcome.REJECTED, 2),
    ("after-rotation, html-502", Outcome.REJECTED, 2),
    ("after-rotation, reset", Outcome.REJECTED, 2),
]


class TestOutcomes:
    @pytest.mark.parametrize(("spec", "outcome", "sent"), OUTCOMES, ids=[o[0] for o in OUTCOMES])
    def test_of_the_endpoint(self, world: World, spec: str, outcome: Outcome, sent: int) -> None:
        before = world.seed(60)
        login = world.login()
        world.faults(spec)

        made = attempt(login)

        assert (made.outcome, world.sent) == (outcome, sent), made.detail
        assert login.refresher.counters == {f"refresh_total.{outcome.value}": 1}
        assert before["refresh_token"] not in made.detail + repr(world.journal().get("backoff"))
        if outcome is Outcome.OK:
            assert login.current().value == world.content()["access_token"]
            assert login.status().state is TokenState.FRESH
        else:
            assert world.content() == before
            assert login.current().value == before["access_token"]
        assert not list(world.home.qwen.glob(".qwen-proxy-*")), "a reservation was left behind"
        assert not (world.home.qwen / "oauth_creds.lock").exists()

    def test_nobody_there(self, world: World) -> None:
        world.seed(600)
        login = login_of(world.home, world.clock)

        made = attempt(login)

        assert made.outcome is Outcome.NOT_SENT
        assert "intent" not in world.journal()
        assert attempt(world.login()).outcome is Outcome.NOT_DUE, "the pause counts for all"
        world.clock.advance(61)
        assert attempt(world.login()).outcome is Outcome.OK
        assert "backoff" not in world.journal()

    @pytest.mark.parametrize(
        ("spec", "life_s"), [("", LIFE_S), ("expires-in=missing", 1800), ("expires-in=90", 90)]
    )
    def test_the_life_of_the_new_token(self, world: World, spec: str, life_s: float) -> None:
        world.seed(-5)
        world.faults(spec)
        attempt(world.login())

        assert world.content()["expiry_date"] == (world.clock.now() + life_s) * 1000
        assert world.journal()["received"]["lifetime_ms"] == life_s * 1000

    def test_what_an_answer_leaves_out_stays(self, world: World) -> None:
        before = world.seed(-5, resource_url=f"{world.sandbox.origin}/elsewhere")
        world.faults("no-resource-url, no-refresh-token")
        login = world.login()
        attempt(login)

        after = world.content()
        assert after["refresh_token"] == before["refresh_token"]
        assert after["resource_url"] == before["resource_url"]
        assert login.current().base_url == f"{world.sandbox.origin}/elsewhere/v1"
        world.faults("")
        world.clock.advance(LIFE_S)
        assert attempt(login).outcome is Outcome.OK, "an endpoint that does not rotate"

    def test_a_pause_grows_up_to_ten_minutes(self, world: World) -> None:
        world.seed(600)
        world.faults("denied")
        pauses = []
        for _ in range(6):
            login = world.login()  # each time another process
            assert attempt(login).outcome is Outcome.REFUSED
            backoff = world.journal()["backoff"]
            pauses.append((backoff["not_before_ms"] - backoff["at_ms"]) / 1000)
            assert attempt(world.login()).outcome is Outcome.NOT_DUE
            world.clock.advance(pauses[-1] + 1)

        assert pauses == [60, 120, 240, 480, 600, 600]

    def test_retry_after_is_obeyed(self, world: World) -> None:
        world.seed(600)
        world.faults("status=429, retry-after=200")
        attempt(world.login())

        backoff = world.journal()["backoff"]
        assert backoff["not_before_ms"] - backoff["at_ms"] == 200_000
        assert backoff["outcome"] == "throttled"

    def test_the_intent_of_a_lost_answer_stays_and_is_quoted(self, world: World) -> None:
        world.seed(-5)
        world.faults("cut-after-rotation")
        made = attempt(world.login())

        assert "the answer to the first request was lost, and it was the login" in made.detail

    def test_a_process_that_stops_sends_nothing(self, world: World) -> None:
        world.seed(-5)
        login = world.login()

        assert login.refresher.drain(1)
        assert refusal(login).code == "credentials_expired"
        assert world.sent == 0

    def test_what_was_sent_is_waited_for(self, world: World) -> None:
        world.seed(600)
        login = world.login()
        world.faults("slow-after=0.3")
        login.current()
        assert world.sandbox.wait_until(lambda: world.sent == 1)

        assert login.refresher.drain(5)
        assert login.current().value == world.content()["access_token"]
        assert world.journal()["received"]["published"]


class TestReadOnly:
    @pytest.mark.parametrize("what", ["directory", "file", "journal"])
    def test_the_token_is_not_spent(self, world: World, what: str) -> None:
        content = world.seed(60)
        ours = world.home.qwen / ".qwen-proxy"
        ours.mkdir(0o700)
        locked = {"directory": world.home.qwen, "file": world.path, "journal": ours}[what]
        login = world.login()

        with as_ordinary_user(world.home.qwen):
            locked.chmod(0o500 if locked.is_dir() else 0o400)
            try:
                made = attempt(login)
                assert made.outcome is Outcome.READ_ONLY, made.detail
                assert world.sent == 0
                assert login.refresher.ability(login.store.snapshot()) is Ability.READ_ONLY
                assert login.current().value == content["access_token"]
                assert "cannot be renewed (read_only)" in login.status().detail
                assert "docs/credentials.md" in login.status().remedy
                world.clock.advance(60)
                error = refusal(login)
                assert (error.code, error.retry_after_s) == ("credentials_expired", None)
                assert "cannot be written" in str(error)
                assert world.sent == 0
                assert world.content() == content
            finally:
                locked.chmod(0o700)
            world.clock.advance(61)
            assert login.current().value == world.content()["access_token"]
            assert login.refresher.ability(login.store.snapshot()) is Ability.REFRESHABLE

    @pytest.mark.parametrize("left_s", [-5, 60, LIFE_S], ids=["expired", "expiring", "refused"])
    def test_a_healed_disk_is_used_within_seconds_when_calls_need_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch, left_s: float
    ) -> None:
        old = world.seed(left_s)["access_token"]
        login = world.login()
        rejected = old if left_s == LIFE_S else None
        reserve = durable.reserve

        def full(*arguments: Any, **more: Any) -> Any:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(durable, "reserve", full)
        assert attempt(login, rejected).outcome is Outcome.READ_ONLY
        monkeypatch.setattr(durable, "reserve", reserve)
        world.clock.advance(6)

        assert login.current(rejected=rejected).value == world.content()["access_token"] != old

    def test_a_shortage_of_files_is_told_as_such(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.seed(-5)
        login = world.login()

        def none_left(*arguments: Any, **more: Any) -> Any:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(durable, "reserve", none_left)
        error = refusal(login)

        assert "Too many open files" in str(error)
        assert "LimitNOFILE" in error.remedy

    def test_a_change_of_the_file_is_seen(self, world: World) -> None:
        world.seed(60)
        login = world.login()
        login.refresher._state.read_only = durable.WriteProblem(None, "as an attempt found out")

        new = world.seed(LIFE_S)["access_token"]

        assert login.current().value == new


class TestFile:
    def test_a_login_that_the_disk_does_not_take_is_served_and_told(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.seed(-5)
        disk = {"full": False}
        statuses: list[CredentialStatus] = []
        publish = durable.Reservation.publish

        def publishing(self: durable.Reservation, content: bytes, **more: Any) -> None:
            if disk["full"]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            publish(self, content, **more)

        def checkpoint(name: str) -> None:
            disk["full"] = name == "answered"

        def sleep(seconds: float) -> None:
            statuses.append(login.status())
            tokens.append(login.current().value)
            disk["full"] = len(statuses) < 3

        tokens: list[str] = []
        login = world.login(checkpoint=checkpoint, sleep=sleep)
        monkeypatch.setattr(durable.Reservation, "publish", publishing)

        assert attempt(login).outcome is Outcome.OK
        assert "not on disk yet (No space left on device)" in statuses[-1].detail
        assert "do not stop this process" in statuses[-1].remedy
        assert set(tokens) == {world.content()["access_token"]}
        assert len(statuses) == 3
        assert login.status().remedy == ""
        assert world.sent == 1

    def test_mode_keys_and_their_order_are_kept(self, world: World) -> None:
        content = shuffled(
            world.seed(-5, extra={"a": [1, None]}, zebra=True, note="gr\u00fc\u00df")
        )
        world.home.write(".qwen/oauth_creds.json", content)
        world.path.chmod(0o600)
        before = world.path.stat()

        assert attempt(world.login()).outcome is Outcome.OK

        after, status = world.content(), world.path.stat()
        assert list(after) == list(content)
        assert {k: after[k] for k in ("extra", "zebra", "note", "token_type")} == {
            k: content[k] for k in ("extra", "zebra", "note", "token_type")
        }
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert (status.st_uid, status.st_gid) == (before.st_uid, before.st_gid)
        assert world.path.read_text() == json.dumps(after, indent=2, ensure_ascii=False)
        assert stat.S_IMODE((world.home.qwen / ".qwen-proxy").stat().st_mode) == 0o700
        journal = world.home.qwen / ".qwen-proxy/journal.json"
        assert stat.S_IMODE(journal.stat().st_mode) == 0o600

    def test_a_mode_that_is_too_open_is_closed(self, world: World) -> None:
        world.seed(-5)
        world.path.chmod(0o644)
        attempt(world.login())

        assert stat.S_IMODE(world.path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("ahead_s", [-HOUR_S, 0.0, 10 * HOUR_S])
    def test_the_mtime_grows(self, world: World, ahead_s: float) -> None:
        """qwen-code reads the file again only then, and would spend the old token otherwise."""
        world.seed(-5)
        at_ns = time.time_ns() + int(ahead_s * 1e9)
        os.utime(world.path, ns=(at_ns, at_ns))
        attempt(world.login())

        assert world.path.stat().st_mtime_ns // 1_000_000 > at_ns // 1_000_000

    def test_a_symlink_stays_one(self, world: World) -> None:
        world.seed(-5)
        real = world.home.path / "vault.json"
        world.path.rename(real)
        world.path.symlink_to(real)

        assert attempt(world.login()).outcome is Outcome.OK
        assert world.path.is_symlink()
        assert json.loads(real.read_text())["expiry_date"] > world.clock.now() * 1000

    def test_a_file_that_is_torn_for_a_moment(self, world: World) -> None:
        """An old CLI writes in place. We may look, and even be about to spend the token, then."""
        content = world.seed(60)
        whole = world.path.read_text()
        login = world.login(sleep=lambda seconds: world.path.write_text(whole) and None)
        login.store.snapshot()
        world.path.write_text(whole[:40])

        assert login.store.snapshot().newest.login is not None, "the login as it was"
        assert attempt(login).outcome is Outcome.OK
        assert world.oauth["refreshes"] == 1
        assert world.content()["access_token"] != content["access_token"]

    def test_a_file_that_stays_torn_stops_the_refresh(self, world: World) -> None:
        content = world.seed(60)
        login = world.login()
        login.store.snapshot()
        world.path.write_text("{")

        made = attempt(login)

        assert made.outcome is Outcome.FAILED
        assert "nothing was sent" in made.detail
        assert world.sent == 0
        assert world.path.read_text() == "{"
        assert login.current().value == content["access_token"]

    def test_a_file_that_was_deleted_is_served_from_the_journal(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.seed(-5)
        login = world.login()
        attempt(login)
        token = world.content()["access_token"]
        world.path.unlink()

        for each in (login, world.login()):
            caplog.clear()
            assert each.current().value == token
            assert each.current().value == token
            assert caplog.text.count("login file is gone") == 1
            assert "the file is gone" in each.status().detail
            assert "creds forget" in each.status().remedy
        login.maintain()
        settle(login)
        assert not world.path.exists(), "it may have been a logout"

        world.clock.advance(LIFE_S - 600)
        assert attempt(login).outcome is Outcome.OK
        assert world.content()["refresh_token"] != token
        assert login.current().value == world.content()["access_token"]
        assert login.status().remedy == ""

    def test_a_login_of_somebody_else_outlives_its_file(self, world: World) -> None:
        """One qwen-code deletes what another one has just written, when its own is refused."""
        world.seed(LIFE_S)
        login = world.login()
        login.current()
        settle(login)
        theirs = world.seed(LIFE_S)
        assert login.current().value == theirs["access_token"]
        settle(login)
        world.path.unlink()

        for each in (login, world.login()):
            assert each.current().value == theirs["access_token"]
            assert "the file is gone" in each.status().detail
        world.clock.advance(LIFE_S - 600)
        assert attempt(login).outcome is Outcome.OK
        assert login.current().value == world.content()["access_token"] != theirs["access_token"]
        assert world.sent == 1

    def test_a_login_that_cannot_be_noted_is_used_all_the_same(self, world: World) -> None:
        token = world.seed(LIFE_S)["access_token"]
        with as_ordinary_user(world.path.parent):
            world.path.parent.chmod(0o500)
            login = world.login()
            for _ in range(3):
                assert login.current().value == token
                settle(login)
            assert not login.store.snapshot().journal.received
            world.path.parent.chmod(0o700)

    def test_a_rescue_that_ends_while_somebody_looks_hides_nothing(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.seed(-5)
        store = world.login().store
        fresh = document.parse(json.dumps(world.content()).encode(), None)
        held = Received("spent", fresh, 1, 1, forced=False, published=False)
        store.held = held
        real = store._journal.read

        def read() -> Any:
            seen = real()
            if store.held is not None:
                store.paths.journal.parent.mkdir(exist_ok=True)
                store.write_journal(Journal(received=held))
                store.held = None
            return seen

        monkeypatch.setattr(store._journal, "read", read)
        assert store.snapshot().journal.received is held

    def test_a_file_that_a_crash_has_torn_is_mended_from_the_journal(self, world: World) -> None:
        world.seed(-5)
        attempt(world.login())
        whole = world.content()
        world.path.write_text(world.path.read_text()[:40])
        login = world.login()

        assert login.current().value == whole["access_token"]
        assert "log in" not in login.status().remedy
        login.maintain()
        settle(login)

        assert world.content() == whole
        assert world.sent == 1

    def test_forgetting_makes_it_a_logout(self, world: World) -> None:
        world.seed(-5)
        login = world.login()
        attempt(login)
        world.path.unlink()

        assert login.refresher.forget()
        assert refusal(login).code == "credentials_missing"

    def test_somebody_logs_in_during_our_refresh(self, world: World) -> None:
        world.seed(-5)
        theirs: list[dict[str, Any]] = []

        def checkpoint(name: str) -> None:
            if name == "answered":
                theirs.append(world.seed(LIFE_S))

        login = world.login(checkpoint=checkpoint)

        assert attempt(login).outcome is Outcome.ADOPTED
        assert world.content() == theirs[0]
        for each in (login, world.login()):
            assert each.current().value == theirs[0]["access_token"]

    def test_somebody_logs_in_just_before_it_is_sent(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last moment at which the token is still ours to keep."""
        world.seed(-5)
        theirs: list[dict[str, Any]] = []
        login = world.login()
        reserve = login.store.reserve

        def reserving(*arguments: Any) -> Any:
            theirs.append(world.seed(LIFE_S))
            return reserve(*arguments)

        monkeypatch.setattr(login.store, "reserve", reserving)

        assert attempt(login).outcome in (Outcome.NOT_SENT, Outcome.ADOPTED)
        assert world.oauth["refreshes"] == 0
        assert login.current().value == theirs[0]["access_token"]

    @pytest.mark.parametrize("when", ["intent", "answered", "journaled", "replacing"])
    def test_what_is_written_into_the_file_meanwhile_stays(
        self, world: World, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        """By qwen-code, an editor, a person: all but what the renewal itself brings."""
        old = world.seed(-5, gone="soon")
        fsync = os.fsync
        renewing: list[int] = []

        def write() -> None:
            content = world.content()
            del content["gone"]
            world.home.write(".qwen/oauth_creds.json", {"first": 1, **content, "new": {"a": [2]}})

        def checkpoint(name: str) -> None:
            if name == when:
                write()
            if name == "journaled" and when == "replacing":
                renewing.append(threading.get_ident())
                monkeypatch.setattr(os, "fsync", syncing)

        def syncing(fd: int) -> None:
            fsync(fd)
            # The thread that copies a login to the journal may be writing, too.
            if threading.get_ident() in renewing:
                renewing.clear()
                write()

        login = world.login(checkpoint=checkpoint)
        assert attempt(login).outcome is Outcome.OK

        after = world.content()
        assert (after["first"], after["new"]) == (1, {"a": [2]})
        assert "gone" not in after
        assert list(after)[0] == "first", "in their order"
        assert after["access_token"] != old["access_token"]
        assert world.journal()["received"]["document"] == after
        assert login.current().value == after["access_token"]

    def test_an_endpoint_that_is_written_meanwhile_stays_unless_the_renewal_names_another(
        self, world: World
    ) -> None:
        for fault, kept in (("no-resource-url", True), ("", False)):
            world.seed(-5, resource_url=f"{world.sandbox.origin}/before")
            world.faults(fault)

            def checkpoint(name: str) -> None:
                if name == "answered":
                    content = {**world.content(), "resource_url": "elsewhere.example"}
                    world.home.write(".qwen/oauth_creds.json", content)

            attempt(world.login(checkpoint=checkpoint))
            assert (world.content()["resource_url"] == "elsewhere.example") is kept

    def test_it_also_stays_when_the_login_is_published_after_a_crash(self, world: World) -> None:
        world.seed(-5)

        def checkpoint(name: str) -> None:
            if name == "journaled":
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            attempt(world.login(checkpoint=checkpoint))
        world.home.write(".qwen/oauth_creds.json", {**world.content(), "new": 1})

        login = world.login()
        token = login.current().value
        login.maintain()
        settle(login)
        assert (world.content()["access_token"], world.content()["new"]) == (token, 1)

    def test_a_reservation_of_a_crash_is_swept_at_the_start_and_by_the_next_attempt(
        self, world: World
    ) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        # Reservations are told by the times of files, which no test can set; and no renewal is due.
        world.clock.wall_s = time.time() + 10
        world.seed(LIFE_S)
        login = world.login()
        login.current()
        settle(login)  # the directory of our lock is there
        left = world.home.qwen / f".qwen-proxy-{ended.pid}-0123"

        left.write_bytes(b"room")
        login.maintain()
        assert not left.exists()

        left.write_bytes(b"room")
        login.maintain()
        assert left.exists(), "once"
        world.clock.wall_s = time.time() + 10
        attempt(login, rejected=login.current().value)
        assert not left.exists()

    def test_the_journal_counts_after_a_crash_and_is_published(self, world: World) -> None:
        """The end of a process between journal and file, played by an exception."""
        old = world.seed(-5)

        def checkpoint(name: str) -> None:
            if name == "journaled":
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            attempt(world.login(checkpoint=checkpoint))
        assert world.content() == old

        login = world.login()
        token = login.current().value
        assert token != old["access_token"]
        login.maintain()
        settle(login)
        assert world.content()["access_token"] == token
        assert world.sent == 1

    def test_a_broken_journal_is_begun_anew(self, world: World) -> None:
        world.seed(60)
        path = world.home.qwen / ".qwen-proxy/journal.json"
        path.parent.mkdir()
        path.write_text("{")
        login = world.login()

        assert login.current().value == world.content()["access_token"]
        assert world.journal()["received"]["published"]


class TestClock:
    """Wall clock, monotonic clock and boot time go their own ways."""

    @pytest.fixture
    def boot(self) -> list[float]:
        return [5000.0]

    @pytest.fixture
    def login(self, world: World, boot: list[float]) -> OAuthLogin:
        """A login that this process has renewed a moment ago."""
        world.seed(-5)
        login = world.login(boottime=lambda: boot[0])
        login.current()
        assert world.sent == 1
        return login

    def test_an_hour_back(self, world: World, boot: list[float], login: OAuthLogin) -> None:
        world.clock.wall_s -= HOUR_S
        assert login.status().state is TokenState.FRESH
        boot[0] += LIFE_S - 600
        world.clock.wall_s += LIFE_S - 600  # an hour too early: the file alone says 70 min
        assert login.status().state is TokenState.STALE
        login.current()
        settle(login)
        assert world.sent == 2
        assert login.current().value == world.content()["access_token"]

    def test_an_hour_back_and_no_endpoint(
        self, world: World, boot: list[float], login: OAuthLogin
    ) -> None:
        world.faults("html-502")
        world.clock.wall_s += LIFE_S - HOUR_S
        boot[0] += LIFE_S + 1

        error = refusal(login)
        assert error.code == "credentials_expired"
        assert "set back" in str(error)
        assert "set back" in login.status().detail
        assert "-" not in login.status().detail

    def test_an_hour_forward(self, world: World, login: OAuthLogin) -> None:
        world.clock.wall_s += LIFE_S - 60
        assert login.status().state is TokenState.EXPIRING
        login.current()
        world.clock.wall_s -= LIFE_S - 60
        login.current()
        assert world.sent == 2

    def test_suspend(self, world: World, boot: list[float], login: OAuthLogin) -> None:
        old = login.current().value
        boot[0] += LIFE_S  # the wall clock was not set yet
        assert login.status().state is TokenState.EXPIRED
        assert login.current().value != old
        assert world.sent == 2

    def test_a_call_that_looks_at_the_old_token_while_it_is_renewed(
        self, world: World, boot: list[float], login: OAuthLogin
    ) -> None:
        before = login.store.snapshot()
        boot[0] += LIFE_S  # the wall clock was not set yet
        login.current()
        assert world.sent == 2
        assert login.refresher.token_state(before) is TokenState.EXPIRED
        assert login.refresher.token_state(login.store.snapshot()) is TokenState.FRESH

    @pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S, -24 * HOUR_S])
    def test_a_pause_does_not_grow_with_a_step(self, world: World, step_s: float) -> None:
        world.seed(600)
        world.faults("denied")
        attempt(world.login())
        world.faults("")
        world.clock.wall_s += step_s

        login = world.login()
        world.clock.advance(61)
        assert attempt(login, rejected=login.current().value).outcome in (
            Outcome.OK,
            Outcome.ADOPTED,
        )


class TestEnvironment:
    """QWEN_CLI_AUTH: its renewed document lives in the state directory."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "not/yet/there/oauth_creds_env.json"

    def variable(self, world: World, left_s: float = -5) -> str:
        world.seed(left_s)
        text = world.path.read_text()
        world.path.unlink()
        return text

    def process(self, world: World, path: Path, variable: str) -> OAuthLogin:
        return world.login(path=path, initial=from_environment(variable))

    def test_it_is_renewed_into_a_file(self, world: World, path: Path) -> None:
        variable = self.variable(world)
        login = self.process(world, path, variable)

        token = login.current().value
        assert token != json.loads(variable)["access_token"]
        assert json.loads(path.read_text())["access_token"] == token
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert self.process(world, path, variable).current().value == token
        assert world.sent == 1
        world.clock.advance(LIFE_S)
        assert self.process(world, path, variable).current().value != token
        assert world.oauth["refresh_reuses"] == 0

    def test_it_wins_again_when_its_value_changes(self, world: World, path: Path) -> None:
        first = self.variable(world)
        self.process(world, path, first).current()

        second = self.variable(world, LIFE_S)
        token = self.process(world, path, second).current().value
        assert token == json.loads(second)["access_token"]
        assert world.sent == 1

        world.clock.advance(LIFE_S)
        renewed = self.process(world, path, second).current().value
        assert renewed not in (token, json.loads(first)["access_token"])
        assert self.process(world, path, second).current().value == renewed

    def test_white_space_around_it_changes_nothing(self, world: World, path: Path) -> None:
        variable = self.variable(world)
        token = self.process(world, path, variable).current().value

        assert self.process(world, path, f" {variable}\n").current().value == token

    def test_a_lost_file_is_written_again(self, world: World, path: Path) -> None:
        variable = self.variable(world)
        token = self.process(world, path, variable).current().value
        path.unlink()

        login = self.process(world, path, variable)
        assert login.current().value == token
        login.maintain()
        settle(login)
        assert json.loads(path.read_text())["access_token"] == token
        assert world.sent == 1
