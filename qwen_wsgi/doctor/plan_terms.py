"""Checks the terms of plans: what they forbid, and who can use this server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.doctor.configuration import valid_keys
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.hosts import Family
from qwen_wsgi.settings import Settings

TELL: Final = Teller("terms")

_PLANS: Final = {Family.CODING_PLAN: "Coding Plan", Family.TOKEN_PLAN: "Token Plan"}


def check(accounts: Sequence[Account], shared: Sequence[str]) -> Iterator[Finding]:
    """
    Args:
        shared: why more than one person may use the accounts; see `shared_by`.
    """
    plans = [account for account in accounts if account.family in _PLANS]
    if not plans:
        yield TELL.ok("plans", "no account belongs to a plan that forbids sharing")
    for account in plans:
        plan = _PLANS[account.family]
        if shared:
            yield TELL.warn(
                account.name,
                f"the terms of the {plan} allow interactive coding tools of one person, and forbid "
                f"shared keys, scripts and back ends; but {' and '.join(shared)}",
                "Use a pay-as-you-go key for the LAN (DASHSCOPE_API_KEY), or serve this machine "
                "only. The vendor suspends shared keys.",
            )
        else:
            yield TELL.note(
                account.name,
                f"the {plan} is for interactive coding tools of one person: do not share it",
            )


def shared_by(settings: Settings, open_at: Sequence[str]) -> tuple[str, ...]:
    """Why more than one person may use the accounts, each as a clause.

    Args:
        open_at: addresses that other machines reach.
    """
    why = [f"other machines reach {', '.join(open_at)}"] if open_at else []
    if (keys := valid_keys(settings) or 0) > 1:
        why.append(f"there are {keys} client keys")
    return tuple(why)
