"""The state of accounts, as /health, doctor, `status` and the client's error tell it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus, StaticKey, TokenState
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.routing.account_status import COUNTS_S, AccountStatuses
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from qwen_wsgi.upstream.routing.cooldown import BREAKS_AT, Cooldowns
from qwen_wsgi.upstream.routing.outcomes import Outcomes
from qwen_wsgi.upstream.routing.trials import AGAIN_S, Trials
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import account_of, pool_of, settings_of
from tests.kit.login_world import login_of
from tests.kit.qwen_home import Home
from tests.kit.secrets import secret

BUDGET_S = 30.0


class FakeTransport:
    """Answers `GET /models`, and counts."""

    def __init__(self) -> None:
        self.reply: tuple[int, bytes] | ApiError = listing("m", "n")
        self.asked = 0

    def get(self, token: Any, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        self.asked += 1
        if isinstance(self.reply, ApiError):
            raise self.reply
        return self.reply


def listing(*ids: str) -> tuple[int, bytes]:
    return 200, json.dumps({"object": "list", "data": [{"id": id} for id in ids]}).encode()


REFUSED = 401, b'{"error": {"message": "Incorrect API key provided."}}'


class World:
    """One account, or more, with everything that its state depends on."""

    def __init__(self, *accounts: Account) -> None:
        self.clock = FakeClock()
        settings = settings_of(QWEN_PROXY_RETRY_BUDGET=BUDGET_S)
        self.accounts = accounts or (key(),)
        self.cooldowns = Cooldowns(None, boottime=self.clock.monotonic)
        self.outcomes = Outcomes(None, boottime=self.clock.monotonic)
        self.pool = pool_of(*self.accounts, settings=settings, cooldowns=self.cooldowns)
        self.transport = FakeTransport()
        self.catalogue = Catalogue(
            settings,
            self.pool,
            self.transport,  # type: ignore[arg-type]  # all that it uses of a transport
            self.clock,
            outcomes=self.outcomes,
        )
        self.statuses = AccountStatuses(
            settings, self.pool, self.cooldowns, self.outcomes, self.catalogue
        )
        self.trials = Trials(self.pool, self.catalogue, self.outcomes)

    @property
    def status(self) -> CredentialStatus:
        self.pool.accounts()
        return self.statuses.of(self.accounts[0])

    def state(self) -> TokenState:
        return self.status.state

    def fails(self, cause: str) -> None:
        row = CAUSES[cause]
        self.outcomes.failed(self.accounts[0], UpstreamError("no", failure=row.failure()))

    def pauses(self, seconds: float, cause: str, model: str = "") -> None:
        keys = self.pool.keys(self.accounts[0])
        self.cooldowns.set_cooldown(keys.of_model(model) if model else keys.payer, seconds, cause)

    def summary(self) -> tuple[str, str]:
        found = self.statuses.summary()
        return found.status, found.cause


def key(name: str = "upstream") -> Account:
    url = f"https://{name}.example/v1"
    static = StaticKey(secret(name), url)
    return replace(account_of(name, base_url=url, family=Family.OTHER), credential=static)


def test_a_key_of_which_nothing_is_known_is_usable() -> None:
    world = World()

    assert world.status == world.accounts[0].credential.status()
    assert world.summary() == ("ok", "")


@pytest.mark.parametrize("cause", [row.name for row in CAUSES.values() if row.refuses_account])
def test_a_refused_key_is_not_usable_with_cause_and_remedy(cause: str) -> None:
    world = World()
    world.fails(cause)

    assert world.state() is TokenState.REFUSED
    assert world.status.cause == cause
    assert world.status.remedy == CAUSES[cause].remedy
    assert CAUSES[cause].meaning in world.status.detail
    assert world.summary() == ("no_usable_account", cause)


def test_also_when_its_pause_is_over_until_it_answers() -> None:
    world = World()
    world.fails("key_refused")
    world.pauses(5, "key_refused")
    assert "the next call is possible in 5 s" in world.status.detail
    world.clock.advance(60)
    assert world.state() is TokenState.REFUSED
    world.outcomes.answered(world.accounts[0])
    assert world.state() is TokenState.FRESH


def test_what_nobody_has_seen_for_long_is_not_known() -> None:
    world = World()
    world.fails("key_refused")
    world.clock.advance(COUNTS_S)
    assert world.state() is TokenState.FRESH


def test_a_bill_that_is_not_paid_is_told_as_such() -> None:
    world = World()
    world.fails("billing")
    assert (world.status.state, world.status.cause) == (TokenState.UNPAID, "billing")
    assert world.summary() == ("no_usable_account", "billing")


@pytest.mark.parametrize(
    ("seconds", "usable"), [(BUDGET_S - 1, True), (BUDGET_S + 1, False)], ids=["short", "long"]
)
def test_a_pause_counts_if_it_is_longer_than_a_call_waits(seconds: float, usable: bool) -> None:
    world = World()
    world.pauses(seconds, "usage_limited")

    assert world.state() is (TokenState.FRESH if usable else TokenState.PAUSED)
    assert (world.status.cause, world.status.again_s) == ("usage_limited", seconds)
    assert world.summary()[0] == ("ok" if usable else "no_usable_account")
    if not usable:
        assert world.status.remedy == CAUSES["usage_limited"].remedy


def test_so_does_an_open_circuit() -> None:
    world = World()
    host = world.pool.keys(world.accounts[0]).host
    for _ in range(10):
        for _ in range(BREAKS_AT):
            world.cooldowns.record_failure(host, "unreachable")
        left_s = world.cooldowns.remaining_s(host)
        if left_s > BUDGET_S:
            break
        world.clock.advance(left_s)
    assert (world.status.state, world.status.cause) == (TokenState.PAUSED, "unreachable")


def test_a_model_that_is_left_alone_is_listed_and_no_harm_to_the_others() -> None:
    world = World()
    world.catalogue.models()
    world.pauses(300, "rate_limited", model="m")

    assert world.state() is TokenState.FRESH
    assert [tuple(each) for each in world.status.models] == [("m", 300.0, "rate_limited")]
    assert world.summary() == ("ok", "")

    world.pauses(60, "tokens_limited", model="n")
    assert (world.status.state, world.status.again_s) == (TokenState.PAUSED, 60.0), "all of them"
    assert world.status.cause == "tokens_limited", "the one that is free first"


def test_one_usable_account_is_enough() -> None:
    world = World(key(), key("second"))
    world.fails("key_refused")
    assert world.summary() == ("ok", "")
    assert world.state() is TokenState.REFUSED


def test_the_credential_s_own_trouble_comes_first() -> None:
    world = World(account_of(token=None))
    world.fails("key_refused")
    assert world.state() is TokenState.MISSING
    assert world.summary()[0] == "no_usable_account"


class TestLists:
    """A key that the list of models is refused with."""

    def test_it_is_refused_before_any_call(self) -> None:
        world = World()
        world.transport.reply = REFUSED
        world.catalogue.models()

        assert (world.status.state, world.status.cause) == (TokenState.REFUSED, "key_refused")
        found = world.catalogue.known(world.accounts[0])
        assert found.cause == "key_refused"
        assert "HTTP 401" in found.error and CAUSES["key_refused"].remedy in found.error

    def test_calls_that_were_answered_count_more(self) -> None:
        """Some hosts keep the list from keys that are good for calls."""
        world = World()
        world.outcomes.answered(world.accounts[0])
        world.transport.reply = REFUSED
        world.catalogue.models()

        assert world.state() is TokenState.FRESH

    @pytest.mark.parametrize("reply", [(404, b""), (403, b"{}"), (500, b""), (200, b"x")], ids=str)
    def test_no_list_is_no_refusal(self, reply: tuple[int, bytes]) -> None:
        world = World()
        world.transport.reply = reply
        world.catalogue.models()

        assert world.state() is TokenState.FRESH


class TestTrials:
    def test_a_refused_key_is_tried_again_every_few_minutes(self) -> None:
        world = World()
        world.fails("key_refused")
        world.transport.reply = REFUSED
        world.trials.run()
        assert world.transport.asked == 0
        for count in (1, 2, 3):
            world.clock.advance(AGAIN_S)
            world.trials.run()
            world.trials.run()
            assert world.transport.asked == count
            assert world.state() is TokenState.REFUSED, "however long nobody calls"

        world.transport.reply = listing("m")
        world.clock.advance(AGAIN_S)
        world.trials.run()
        assert world.state() is TokenState.FRESH, "the next call tries it"
        assert world.outcomes.latest(world.accounts[0]) is None

    def test_a_host_that_does_not_answer_tells_nothing(self) -> None:
        world = World()
        world.fails("key_refused")
        world.clock.advance(AGAIN_S)
        world.transport.reply = UpstreamError("It cannot be reached.")
        world.trials.run()
        assert world.state() is TokenState.REFUSED

    @pytest.mark.parametrize("cause", ["billing", "rate_limited", "unreachable"])
    def test_other_troubles_pass_without_it(self, cause: str) -> None:
        world = World()
        world.fails(cause)
        world.clock.advance(AGAIN_S)
        world.trials.run()
        assert world.transport.asked == 0


@pytest.mark.parametrize("answer", [REFUSED, listing("m")], ids=["refused", "answered"])
def test_a_closed_login_is_tried_again_without_a_call(
    closed_login: OAuthLogin, answer: tuple[int, bytes]
) -> None:
    world = World(replace(account_of("oauth"), kind="oauth", credential=closed_login))
    world.transport.reply = answer
    assert world.status.cause == "oauth_tier_closed"
    world.trials.run()
    assert world.transport.asked == 0

    clock = closed_login.refresher.context.clock
    assert isinstance(clock, FakeClock)
    clock.advance(241)
    world.trials.run()
    world.trials.run()

    assert world.transport.asked == 1
    state = TokenState.EXPIRED if answer is REFUSED else TokenState.FRESH
    assert world.state() is state


@pytest.fixture
def closed_login(tmp_path: Path) -> OAuthLogin:
    clock = FakeClock()
    home = Home(tmp_path, clock)
    home.login()
    login = login_of(home, clock)
    document = login.store.snapshot().newest.login
    assert document is not None
    login.refresher.close_tier(document)
    return login
