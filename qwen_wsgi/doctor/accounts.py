"""Checks the accounts: the state of each credential, and whether a real call succeeds."""

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
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.routing.catalogue import Listing

TELL: Final = Teller("accounts")

#: An account may lack access to a single model, so several are tried.
_MODELS: Final = 3
_OF_THE_MODEL: Final = ("model_not_found", "model_denied", "free_tier_spent", "denied", "not_found")

#: Covers a token refresh, a model list and three calls, each with its own timeout.
_PATIENCE_S: Final = 150.0

_NO_ACCOUNT: Final = (
    "Put an API key such as DASHSCOPE_API_KEY into the server's environment, log in (`qwen-proxy "
    "login`, or qwen-code), or set QWEN_UPSTREAM_BASE_URL. To try the server "
    "without an account: QWEN_PROXY_SANDBOX=auto."
)
_READ_STATUS: Final = "`qwen-proxy creds status` shows more."


class Probe(Protocol):
    """What the check needs of `probe.TokenProbe`."""

    def request(self, account: Account, model: str) -> int | None:
        """Request one token; see there."""


def _forget(account: Account, error: ApiError | None) -> None:
    return None


class Calls(NamedTuple):
    """How upstreams are called.

    Attributes:
        note: is told how each call ended; None is an answer.
    """

    probe: Probe
    listing: Callable[[Account], Listing]
    note: Callable[[Account, ApiError | None], None] = _forget


def check(
    accounts: Sequence[Account],
    calls: Calls | None,
    machine: Machine,
    status_of: Callable[[Account], CredentialStatus] = lambda account: account.credential.status(),
) -> Iterator[Finding]:
    """
    Args:
        calls: None makes no call.
        status_of: the state of an account, as `/health` and `status` tell it, too.
    """
    if not accounts:
        yield TELL.fail("accounts", "no account was found", _NO_ACCOUNT)
        return
    probed = _probe_all(accounts, calls, machine) if calls is not None else {}
    # Read after the calls: one may have refreshed a login, or found that its tier is closed.
    states = {account.name: status_of(account) for account in accounts}
    called = {
        account.name: calls is not None and not why_not_called(account, machine)
        for account in accounts
    }
    usable = any(
        _is_usable(status) or (_is_refreshable(status) and not called[name])
        for name, status in states.items()
    )
    for account in accounts:
        status = states[account.name]
        if called[account.name]:
            # What the call found is told by its own line.
            status = account.credential.status()
        yield from state(account, status, others=usable, called=called[account.name])
        if calls is None:
            yield TELL.skipped(account.name, "no call was made (--no-calls)")
        else:
            closed = status.ability is Ability.TIER_CLOSED
            # A call that was refused is told by the state already.
            yield from (
                each for each in probed[account.name] if not closed or each.level is Level.SKIPPED
            )
    if not usable:
        yield TELL.fail("accounts", "none of them is usable now", "See the lines above.")


def state(
    account: Account, status: CredentialStatus, *, others: bool, called: bool
) -> Iterator[Finding]:
    """Judge a credential by its state.

    Args:
        others: some account is usable, so a missing credential is only a warning.
        called: a call was made, which refreshes an expired login.
    """
    what = f"{status.detail} ({account.origin}, {status.shown})"
    remedy = status.remedy or _READ_STATUS
    if account.kind == "sandbox":
        yield TELL.note(
            account.name,
            "the built-in fake upstream: it needs no account, and no Qwen model answers",
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
        yield missing(account.name, what, remedy)
    elif status.state in (TokenState.REFUSED, TokenState.UNPAID, TokenState.PAUSED):
        refused = TELL.warn if others else TELL.fail
        yield refused(account.name, f"{status.detail} ({account.origin}, {status.shown})", remedy)
    elif _is_refreshable(status) and not called:
        yield TELL.warn(account.name, f"{what}; the next call refreshes it", remedy)
    elif status.state is TokenState.EXPIRED:
        yield TELL.fail(account.name, what, remedy)
    elif status.ability not in (None, Ability.REFRESHABLE) or status.remedy:
        # The token works now, and cannot be refreshed.
        yield TELL.warn(account.name, what, remedy)
    else:
        yield TELL.ok(account.name, what)


def _is_usable(status: CredentialStatus) -> bool:
    return status.state.is_usable and status.ability is not Ability.TIER_CLOSED


def _is_refreshable(status: CredentialStatus) -> bool:
    return status.state is TokenState.EXPIRED and status.ability is Ability.REFRESHABLE


def _probe_all(
    accounts: Sequence[Account], calls: Calls, machine: Machine
) -> Mapping[str, list[Finding]]:
    """Call all accounts at the same time; the findings by account name."""

    def failed(place: int, error: Exception | None) -> list[Finding]:
        name = accounts[place].name
        if error is not None:
            return [TELL.skipped(name, f"the check itself failed ({error!r})")]
        return [
            TELL.fail(
                name, f"no answer within {_PATIENCE_S:.0f} s", "Try again; check the network."
            )
        ]

    works = [partial(probe_account, account, calls, machine) for account in accounts]
    found = run_parallel(works, timeout_s=_PATIENCE_S, failed=failed)
    return {account.name: list(each) for account, each in zip(accounts, found, strict=True)}


def probe_account(account: Account, calls: Calls, machine: Machine) -> list[Finding]:
    """Request one token from an account, of its cheapest model."""
    if why := why_not_called(account, machine):
        return [TELL.skipped(account.name, why)]
    listing = calls.listing(account)
    models = probe.chat_models(listing.models)
    if not models and (row := CAUSES.get(listing.cause)) is not None:
        return [TELL.fail(account.name, probe.quoted(listing.error), row.remedy)]
    if not models:
        why = "it lists no chat model" if listing.models else "it lists no model"
        if listing.error:
            why += f" ({probe.quoted(listing.error)})"
        return [TELL.skipped(account.name, f"no call was made: {why}")]
    findings: list[Finding] = []
    for model in models[:_MODELS]:
        finding, try_another = _probe_model(account, model, calls, machine)
        findings.append(finding)
        if not try_another:
            break
    # The account works if one model answers; no access to the others is a warning.
    if findings[-1].level in (Level.OK, Level.WARN):
        findings[:-1] = [replace(each, level=Level.WARN) for each in findings[:-1]]
    return findings


def _probe_model(
    account: Account, model: str, calls: Calls, machine: Machine
) -> tuple[Finding, bool]:
    """Make one call; also say whether another model may succeed."""
    begun_s = machine.monotonic()
    try:
        tokens = calls.probe.request(account, model)
    except ApiError as error:
        calls.note(account, error)
        diagnosis = probe.meaning(error)
        took = f"{model}, after {machine.monotonic() - begun_s:.2f} s: "
        found = Finding(
            TELL.check, account.name, diagnosis.level, took + diagnosis.what, diagnosis.remedy
        )
        return found, diagnosis.cause in _OF_THE_MODEL
    calls.note(account, None)
    used = "" if tokens is None else f", {tokens} tokens used"
    took = f"{model} answered in {machine.monotonic() - begun_s:.2f} s{used}"
    return TELL.ok(account.name, took), False


def why_not_called(account: Account, machine: Machine) -> str:
    """Why no call is made to an account; empty if one is made."""
    status = account.credential.status()
    if status.ability is Ability.TIER_CLOSED and status.again_s:
        return f"no call was made: a call may try it again in {status.again_s:.0f} s"
    if status.state is TokenState.MISSING:
        return "no call was made: there is no credential"
    login = account.credential
    if not isinstance(login, OAuthLogin):
        return ""
    # A call may refresh the login; a file written by another user would lock its owner out.
    owner = _owner(login.store.paths.document)
    if owner == machine.uid:
        return ""
    return (
        f"no call was made: the login belongs to {machine.user(owner)}, this is run as "
        f"{machine.user(machine.uid)}, and a call might refresh it"
    )


def _owner(path: Path) -> int:
    return os.stat(nearest(path)).st_uid
