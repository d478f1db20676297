"""Who answers while a plan's window is spent."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.access.permit import Permit
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import AccountUnavailable, Forbidden
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.failures.causes import PLAN_SPENT
from qwen_wsgi.upstream.routing.accounts import AccountPool, NoPlans
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.catalogue import Listing
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from qwen_wsgi.upstream.routing.router import Plan, Router
from tests.fakes.upstream import FakeFinder, account_of, settings_of


class Windows(NoPlans):
    """Plans whose windows a test spends: for so many seconds, and whether calls are kept away."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, bool]] = {}
        self.seen = self.spent

    def is_spent(self, account: str) -> bool:
        return account in self.spent

    def blocked_s(self, account: str) -> float:
        seconds, blocks = self.spent.get(account, (0.0, False))
        return seconds if blocks else 0.0

    def free_in_s(self, account: str) -> float:
        return self.spent.get(account, (0.0, False))[0]

    def spent_text(self, account: str) -> str:
        return f"the plan of account '{account}' is used up"


ACCOUNTS = {
    "plan": (Family.CODING_PLAN, ("m", "only-plan")),
    "second": (Family.TOKEN_PLAN, ("m",)),
    "pay": (Family.DASHSCOPE, ("m", "only-pay")),
    "local": (Family.OTHER, ("llama",)),
    "more": (Family.DASHSCOPE, ("m",)),
}


class World:
    def __init__(self, *names: str, fallback: str) -> None:
        settings = settings_of(
            QWEN_PROXY_PLAN_FALLBACK=fallback, QWEN_PROXY_MODEL_ALIASES="alias=plan:m"
        )
        self.cooldowns = Cooldowns(None)
        self.windows = Windows()
        found = [
            account_of(name, base_url=f"https://{name}.example/v1", family=ACCOUNTS[name][0])
            for name in names
        ]
        self.pool = AccountPool(
            settings,
            FakeFinder(*found),
            self.cooldowns,
            start_sandbox=lambda: "",
            plans=self.windows,
        )
        catalogue: Any = self
        self.router = Router(settings, self.pool, catalogue, Affinity(None))

    def listing_for_call(self, account: Account) -> Listing:
        return Listing({model: {"id": model} for model in ACCOUNTS[account.name][1]}, live=True)

    def spend(self, *names: str, blocks: bool = True) -> None:
        for name in names:
            self.windows.spent[name] = (100.0, blocks)

    def order(self, plan: Plan | None = None, **asked: Any) -> list[str]:
        """Who would be asked, one after the other, without whom is left alone."""
        plan = plan or self.router.plan(asked.pop("model", "m"), **asked)
        excluded: set[str] = set()
        found = []
        while (candidate := self.router.choose(plan, excluded)) is not None:
            name = candidate.route.account.name
            excluded.add(name)
            if candidate.cooldown_s <= 0:
                found.append(f"{name}:{candidate.route.model}")
        return found


def test_it_answers_only_while_the_plan_is_spent_and_before_others() -> None:
    world = World("plan", "more", "pay", fallback="pay")
    assert world.order() == ["plan:m", "more:m"]
    world.spend("plan")
    assert world.order() == ["pay:m", "more:m"]
    del world.windows.spent["plan"]
    assert world.order() == ["plan:m", "more:m"]


def test_the_order_is_the_list_s_whatever_was_found_first() -> None:
    world = World("pay", "second", "plan", fallback="second,pay")
    assert world.order() == ["plan:m"]
    world.spend("plan")
    assert world.order() == ["second:m", "pay:m"]
    world.spend("second")
    assert world.order() == ["pay:m"]


def test_all_plans_have_to_be_spent() -> None:
    world = World("plan", "second", "pay", fallback="pay")
    assert world.order() == ["plan:m", "second:m"]
    world.spend("plan")
    assert world.order() == ["second:m"]
    world.spend("second")
    assert world.order() == ["pay:m"]


def test_a_refusal_that_names_no_time_counts_as_well() -> None:
    world = World("plan", "pay", fallback="pay")
    plan = world.pool.accounts()[0]
    world.cooldowns.set_cooldown(world.pool.keys(plan).payer, 300, PLAN_SPENT)
    assert world.order() == ["pay:m"]


@pytest.mark.parametrize("cause", ["rate_limited", "key_refused", "usage_limited"])
def test_another_trouble_does_not(cause: str) -> None:
    world = World("plan", "pay", fallback="pay")
    plan = world.pool.accounts()[0]
    world.cooldowns.set_cooldown(world.pool.keys(plan).payer, 300, cause)
    assert world.order() == []


def test_a_limit_that_is_only_assumed_lets_the_plan_be_asked_last() -> None:
    world = World("plan", "pay", fallback="pay")
    world.spend("plan", blocks=False)
    assert world.order() == ["pay:m", "plan:m"]


def test_a_local_server_is_asked_for_its_own_model() -> None:
    world = World("plan", "local", "pay", fallback="local:llama,pay")
    assert world.order() == ["plan:m"]
    world.spend("plan")
    assert world.order() == ["local:llama", "pay:m"]
    assert world.order(model="llama") == ["local:llama"], "whoever asks for it gets it"


def test_what_no_plan_has_is_answered_as_ever() -> None:
    world = World("plan", "pay", fallback="pay")
    assert world.order(model="only-pay") == ["pay:only-pay"]
    assert World("pay", "more", fallback="pay").order() == ["pay:m", "more:m"]


def test_what_the_fallback_has_not_stays_with_the_plan() -> None:
    world = World("plan", "pay", fallback="pay")
    world.spend("plan")
    plan = world.router.plan("only-plan")
    assert world.order(plan) == []
    candidate = world.router.choose(plan, set())
    assert candidate is not None
    assert candidate.cooldown_s == 100


def test_whoever_names_an_account_gets_that_one() -> None:
    world = World("plan", "pay", "local", fallback="pay,local:llama")
    world.spend("plan")
    assert world.order(permit=Permit("plan")) == []
    assert world.order(model="plan:m") == []
    assert world.order(model="alias") == []
    del world.windows.spent["plan"]
    assert world.order(permit=Permit("pay")) == ["pay:m"]
    assert world.order(model="pay:m") == ["pay:m"]


def test_what_a_key_may_use_holds_for_fallbacks() -> None:
    world = World("plan", "pay", "local", fallback="pay,local:llama")
    world.spend("plan")
    assert world.order(permit=Permit(accounts=("plan",))) == []
    assert world.order(permit=Permit(accounts=("plan", "local"))) == ["local:llama"]
    assert world.order(permit=Permit(models=("m",))) == ["pay:m"]
    assert world.order(permit=Permit(models=("m", "ll*"))) == ["pay:m", "local:llama"]
    with pytest.raises(Forbidden):
        world.router.plan("m", permit=Permit(models=("llama",)))
    with pytest.raises(AccountUnavailable):
        world.router.plan("m", permit=Permit(accounts=("none",)))


def test_why_an_account_is_left_alone() -> None:
    world = World("plan", "pay", fallback="")
    plan, pay = world.pool.accounts()
    world.spend("plan")
    assert world.pool.cooldown_cause(plan, "m") == PLAN_SPENT
    assert world.pool.why_paused(plan, "m") == (
        PLAN_SPENT,
        "the plan of account 'plan' is used up",
        100,
    )
    world.cooldowns.set_cooldown(world.pool.keys(pay).payer, 5, "rate_limited")
    assert world.pool.why_paused(pay, "m") == ("rate_limited", "", 0)
    assert world.pool.cooldown_s(pay, "m") == pytest.approx(5, abs=1)
