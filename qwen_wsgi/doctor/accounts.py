"""The accounts: what their credentials are worth, and whether a real call goes through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import Ability, CredentialStatus, TokenState
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.doctor import probe
from qwen_wsgi.doctor.files import nearest
from qwen_wsgi.doctor.findings import Finding, Level, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.doctor.parallel import run_parallel
from qwen_wsgi.errors import ApiError
from qwen_wsgi.upstream.routing.catalogue import Listing

TELL: Final = Teller("accounts")

#: A model may be closed to an account without the account being to blame; so many are tried.
_MODELS: Final = 3
_OF_THE_MODEL: Final = ("model_not_found", "model_denied", "free_tier_spent", "denied", "not_found")

#: A login that has to be renewed first, a model list, and three calls that end by themselves.
_PATIENCE_S: Final = 150.0

_NO_ACCOUNT: Final = (
    "Put an API key such as DASHSCOPE_API_KEY into the server's environment, log in (`qwen-proxy "
    "login`, or qwen-code), or set QWEN_UPSTREAM_BASE_URL. To try things out without: "
    "QWEN_PROXY_SANDBOX=auto."
)
_READ_STATUS: Final = "`qwen-proxy creds status` tells more."


class Asker(Protocol):
    """What the check needs of `call.OneToken`."""

    def ask(self, account: Account, model: str) -> int | None:
        """Ask for one token; see there."""


class Calls(NamedTuple):
    """How accounts are asked."""

    asker: Asker
    listing: Callable[[Account], Listing]


def check(accounts: Sequence[Account], calls: Calls | None, machine: Machine) -> Iterator[Finding]:
    """
    Args:
        calls: None makes none.
    """
    if not accounts:
        yield TELL.fail("accounts", "no account was found", _NO_ACCOUNT)
        return
    asked = _asked(accounts, calls, machine) if calls is not None else {}
    # Looked at after the calls: one may have had a login renewed, or found that its tier is closed.
    states = {account.name: account.credential.status() for account in accounts}
    tried = {
        account.name: calls is not None and not not_to_be_asked(account, machine)
        for account in accounts
    }
    usable = any(
        _is_usable(status) or (_is_renewable(status) and not tried[name])
        for name, status in states.items()
    )
    for account in accounts:
        status = states[account.name]
        yield from state(account, status, others=usable, tried=tried[account.name])
        if calls is None:
            yield TELL.skipped(account.name, "no call was made (--no-calls)")
        elif status.ability is not Ability.TIER_CLOSED:
            yield from asked[account.name]
    if not usable:
        yield TELL.fail("accounts", "none of them can be used now", "See the lines above.")


def state(
    account: Account, status: CredentialStatus, *, others: bool, tried: bool
) -> Iterator[Finding]:
    """What a credential is worth.

    Args:
        others: some account is usable, so that one that never was is no failure.
        tried: a call was made, which would have had a login renewed.
    """
    told = f"{status.detail} ({account.origin}, {status.shown})"
    remedy = status.remedy or _READ_STATUS
    if account.kind == "sandbox":
        yield TELL.note(
            account.name, "the built-in fake upstream: needs no account, and is no Qwen"
        )
    elif status.ability is Ability.TIER_CLOSED:
        closed = probe.tier_closed()
        yield Finding(
            TELL.check,
            account.name,
            Level.WARN if others else Level.FAIL,
            f"{closed.what} ({account.origin})",
            closed.remedy,
        )
    elif status.state is TokenState.MISSING:
        missing = TELL.warn if others else TELL.fail
        yield missing(account.name, told, remedy)
    elif _is_renewable(status) and not tried:
        yield TELL.warn(account.name, f"{told}; the next call has it renewed", remedy)
    elif status.state is TokenState.EXPIRED:
        yield TELL.fail(account.name, told, remedy)
    elif status.ability not in (None, Ability.REFRESHABLE) or status.remedy:
        # A token that is good for now, and for no longer.
        yield TELL.warn(account.name, told, remedy)
    else:
        yield TELL.ok(account.name, told)


def _is_usable(status: CredentialStatus) -> bool:
    return status.state.is_usable and status.ability is not Ability.TIER_CLOSED


def _is_renewable(status: CredentialStatus) -> bool:
    return status.state is TokenState.EXPIRED and status.ability is Ability.REFRESHABLE


def _asked(
    accounts: Sequence[Account], calls: Calls, machine: Machine
) -> Mapping[str, list[Finding]]:
    """The findings of all calls, made at the same time; by account."""

    def otherwise(place: int, error: Exception | None) -> list[Finding]:
        name = accounts[place].name
        if error is not None:
            return [TELL.skipped(name, f"a fault of the check ({error!r})")]
        return [
            TELL.fail(
                name, f"no answer within {_PATIENCE_S:.0f} s", "Try again; check the network."
            )
        ]

    works = [partial(ask, account, calls, machine) for account in accounts]
    found = run_parallel(works, timeout_s=_PATIENCE_S, otherwise=otherwise)
    return {account.name: list(each) for account, each in zip(accounts, found, strict=True)}


def ask(account: Account, calls: Calls, machine: Machine) -> list[Finding]:
    """Ask one account for one token, of its cheapest model."""
    if why := not_to_be_asked(account, machine):
        return [TELL.skipped(account.name, why)]
    listing = calls.listing(account)
    models = probe.chat_models(listing.models)
    if not models:
        why = "it lists no chat model" if listing.models else "it lists no model"
        if listing.error:
            why += f" ({probe.quoted(listing.error)})"
        return [TELL.skipped(account.name, f"no call was made: {why}")]
    told: list[Finding] = []
    for model in models[:_MODELS]:
        finding, of_the_model = _one(account, model, calls.asker, machine)
        told.append(finding)
        if not of_the_model:
            break
    # The account is good if one model answers; that others are closed to it is worth a word.
    answered = told[-1].level in (Level.OK, Level.WARN)
    return [replace(each, level=Level.WARN) for each in told[:-1]] + told[-1:] if answered else told


def _one(account: Account, model: str, asker: Asker, machine: Machine) -> tuple[Finding, bool]:
    """One call; and whether another model may fare better."""
    begun_s = machine.monotonic()
    try:
        tokens = asker.ask(account, model)
    except ApiError as error:
        told = probe.meaning(error)
        took = f"{model}, after {machine.monotonic() - begun_s:.2f} s: "
        found = Finding(TELL.check, account.name, told.level, took + told.what, told.remedy)
        return found, told.cause in _OF_THE_MODEL
    used = "" if tokens is None else f", {tokens} tokens used"
    took = f"{model} answered in {machine.monotonic() - begun_s:.2f} s{used}"
    return TELL.ok(account.name, took), False


def not_to_be_asked(account: Account, machine: Machine) -> str:
    """Why no call is made; empty if one is."""
    status = account.credential.status()
    if status.ability is Ability.TIER_CLOSED:
        return "no call was made: the tier is closed"
    if status.state is TokenState.MISSING:
        return "no call was made: there is no credential"
    login = account.credential
    if not isinstance(login, OAuthLogin):
        return ""
    # A call may have the login renewed, and what is written then must be its owner's.
    owner = _owner(login.store.paths.document)
    if owner == machine.uid:
        return ""
    return (
        f"no call was made: the login belongs to {machine.user(owner)}, this is run as "
        f"{machine.user(machine.uid)}, and a call might renew it"
    )


def _owner(path: Path) -> int:
    return os.stat(nearest(path)).st_uid
