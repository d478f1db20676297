"""The notation of plans' limits."""

from __future__ import annotations

import pytest

from qwen_wsgi import plan_limits
from qwen_wsgi.hosts import Family
from qwen_wsgi.plan_limits import Credit, Limit, PlanLimits, Window, parse

HOUR = 3600.0
DAY = 24 * HOUR
FIVE_HOURS = Window("5h", "rolling", 5 * HOUR)
FIVE_FROM_FIRST = Window("5h", "first", 5 * HOUR)
WEEK = Window("week", "week", 7 * DAY)


def month(day: int = 1) -> Window:
    return Window("month", "month", 31 * DAY, day)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("6000/5h", [Limit(FIVE_HOURS, 6000)]),
        ("6k/5h", [Limit(FIVE_HOURS, 6000)]),
        ("45000 calls/week", [Limit(WEEK, 45_000)]),
        ("90000/month@17", [Limit(month(17), 90_000)]),
        ("90000/month", [Limit(month(), 90_000)]),
        ("3000credits/5h@first", [Limit(FIVE_FROM_FIRST, 3000, "credits")]),
        ("2m tokens/7d", [Limit(Window("7d", "rolling", 7 * DAY), 2e6, "tokens")]),
        ("1.5mtokens/30min", [Limit(Window("30min", "rolling", 1800), 1.5e6, "tokens")]),
        ("?/7d@first", [Limit(Window("7d", "first", 7 * DAY), None)]),
        ("10/5h, 1000tokens/5h", [Limit(FIVE_HOURS, 10), Limit(FIVE_HOURS, 1000, "tokens")]),
        ("off", []),
    ],
)
def test_limits(text: str, limits: list[Limit]) -> None:
    plans = parse(f"mine={text}")

    assert plans.entries == (("mine", PlanLimits(tuple(limits), None, True)),)
    assert str(plans) == f"mine={text}"


def test_names_of_what_is_sold() -> None:
    found = dict(
        parse("coding=pro@17; token=standard, credit=1.2k tokens; a=lite-monthly@3").entries
    )

    assert [(each.window.name, each.amount) for each in found["coding"].limits] == [
        *(("5h", 6000), ("week", 45_000), ("month", 90_000)),
    ]
    assert found["coding"].limits[-1].window == month(17)
    assert found["token"].credit == Credit(1200, "tokens")
    assert found["token"].limits[0] == Limit(FIVE_FROM_FIRST, 3000, "credits")
    assert found["a"].limits == (Limit(month(3), 11_500, "credits"),)


def test_an_account_s_own_entry_comes_before_its_plan_s_and_that_before_the_vendor_s() -> None:
    plans = parse("coding=7/5h;mine=8/5h;none=off")

    def amount(account: str, family: Family) -> float | None:
        found = plans.limits_of(account, family)
        return None if found is None else found.limits[0].amount

    assert amount("mine", Family.CODING_PLAN) == amount("mine", Family.OTHER) == 8
    assert amount("coding-plan", Family.CODING_PLAN) == 7
    assert amount("none", Family.CODING_PLAN) is None
    assert amount("dashscope", Family.DASHSCOPE) is None
    assert plans.accounts == ("mine", "none")
    token = plans.limits_of("token-plan", Family.TOKEN_PLAN)
    assert token is not None
    assert not token.stated
    assert [(each.window.name, each.amount) for each in token.limits] == [
        ("5h", None),
        ("7d", None),
    ]
    coding = parse("").limits_of("x", Family.CODING_PLAN)
    assert coding == plan_limits.DEFAULTS["coding"]


def test_every_name_of_what_is_sold_can_be_read() -> None:
    for kind, names in plan_limits.PRESETS.items():
        for name in names:
            assert parse(f"{kind}={name}").entries[0][1].limits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("6000/5h", "must be entries"),
        ("Coding=6000/5h", "must be entries"),
        ("coding=", "no limit"),
        ("coding=credit=5tokens", "no limit"),
        ("coding=1/5h;coding=2/5h", "two entries"),
        ("coding=1/5h,2/5h", "two limits for the same window"),
        ("coding=1/5h,2tokens/5h@first", "begin differently"),
        ("coding=0/5h", "above 0"),
        ("coding=6000/5y", "neither a limit"),
        ("coding=gold", "nor one of pro, off"),
        ("mine=pro", "two plans"),
        ("mine=gold", "lite-monthly"),
        ("token=lite@3", "only months"),
        ("coding=1/5h@3", "only a month"),
        ("coding=1/week@first", "Monday"),
        ("coding=1/month@first", "a day from 1 to 31"),
        ("coding=1/month@32", "a day from 1 to 31"),
        ("coding=pro@0", "a day from 1 to 31"),
        ("coding=1/32d", "at most 31d"),
        ("coding=1/0h", "at least 1min"),
        ("coding=-1/5h", "neither a limit"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)
