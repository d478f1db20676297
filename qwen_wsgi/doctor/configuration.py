"""Checks the settings: values that cannot work, alone or together. Makes no call."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from qwen_wsgi import net
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.credentials.sources.environment import Note
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.redaction import mask
from qwen_wsgi.settings import Settings
from qwen_wsgi.state import key_copy

TELL: Final = Teller("settings")

#: A client key that is shorter can be guessed; `openssl rand -hex 24` gives 48.
_KEY_CHARS: Final = 16
#: nginx closes an idle connection to the proxy after 60 s.
_NGINX_IDLE_S: Final = 60
#: Most clients give up earlier than this.
_LONG_BUDGET_S: Final = 300

_NEW_KEY: Final = "Make one with `openssl rand -hex 24`, and restart the server."


def check(
    settings: Settings, discovery: Discovery, accounts: Sequence[Account]
) -> Iterator[Finding]:
    """Check everything that the settings and qwen-code's files show."""
    yield TELL.ok("environment", "every setting is valid")
    yield from variables(discovery.notes())
    yield from sources(discovery)
    yield from shared_logins(settings, discovery)
    yield from shared_prompts(settings)
    yield from reach(settings)
    yield from client_keys(settings, accounts)
    yield from web_pages(settings)
    yield from account_names(settings, {account.name for account in accounts})
    yield from sandbox(settings, discovery)
    yield from limits(settings)


def variables(notes: Iterable[Note]) -> Iterator[Finding]:
    """Tell of variables that have no effect, or another than it seems."""
    for note in notes:
        if note.misspelt:
            yield TELL.warn(note.name, note.what, note.remedy)
        else:
            yield TELL.note(note.name, note.what, note.remedy)


def sources(discovery: Discovery) -> Iterator[Finding]:
    """Report problems of the files and variables that name accounts."""
    fatal = ""
    try:
        discovery.check()
    except SettingsError as error:
        fatal = str(error)
        yield TELL.fail(
            "account sources",
            f"the server does not start: {fatal}",
            "Correct this first; until then `qwen-proxy serve` exits with status 2.",
        )
    duplicates = discovery.duplicates()
    problems = [
        each for each in discovery.problems() if each.split(". ")[0].rstrip(".") not in fatal
    ]
    for problem in problems:
        if problem in duplicates:
            yield TELL.warn(
                "logins",
                problem.rstrip("."),
                "Remove the copy, or log in again with one of the two.",
            )
            continue
        what, _, remedy = problem.partition(". ")
        yield TELL.warn("account sources", what.rstrip("."), remedy or "Correct or remove it.")
    if not fatal and not problems:
        yield TELL.ok("account sources", "the files and variables that name accounts are valid")


def shared_prompts(settings: Settings) -> Iterator[Finding]:
    """Tell of what clients store that others can read in Redis."""
    if settings.redis_url and not settings.state_key and settings.responses_ttl_s:
        yield TELL.warn(
            "stored responses",
            "lie in Redis as plain text: QWEN_PROXY_STATE_KEY is not set. Whoever can read Redis "
            "or its files can read prompts and answers",
            "Give all boxes the same QWEN_PROXY_STATE_KEY (openssl rand -hex 32).",
        )


def shared_logins(settings: Settings, discovery: Discovery) -> Iterator[Finding]:
    """Tell of logins that boxes cannot share."""
    if settings.redis_url and not settings.state_key and discovery.logins():
        yield TELL.warn(
            "logins",
            "are not shared with other boxes: QWEN_PROXY_REDIS_URL is set, QWEN_PROXY_STATE_KEY is "
            "not",
            "Give all boxes the same QWEN_PROXY_STATE_KEY (openssl rand -hex 32); else never use "
            "one login on two boxes.",
        )


def valid_keys(settings: Settings) -> int | None:
    """How many client keys are valid, of the environment and of the database; None where there are
    and were none, so that this machine needs none."""
    directory = Path(settings.state_dir)
    if not settings.all_client_keys and not key_copy.exists(directory):
        return None
    now = SystemClock().now()
    stored = sum(key.is_valid(now) for key in key_copy.keys_in(directory))
    return len(settings.all_client_keys) + stored


def reach(settings: Settings) -> Iterator[Finding]:
    """Check who can reach the server, and whether strangers get in."""
    try:
        bind = net.parse(settings.bind_address)
    except ValueError as error:
        yield TELL.fail("address", str(error), "Correct HOST and PORT, or QWEN_PROXY_BIND.")
        return
    keys = valid_keys(settings)
    if keys == 0:
        yield TELL.warn(
            "client keys",
            "every client key was revoked or has expired, so nobody is served",
            "Make one with `qwen-proxy keys add NAME`.",
        )
        return
    if keys:
        where = "the LAN" if bind.open_to_lan else "nginx" if bind.path else "this machine"
        yield TELL.ok("address", f"{bind}: open to {where}, with {keys} client key(s)")
        return
    if bind.open_to_lan:
        yield TELL.warn(
            "address",
            f"{bind} is open to the LAN, but without client keys only this machine is served",
            "Make a client key for the LAN (`qwen-proxy keys add NAME`), or listen on 127.0.0.1.",
        )
    else:
        yield TELL.ok(
            "address", f"{bind}: no client keys are set, so the server answers this machine only"
        )
    yield from impostors(settings, bind)


def impostors(settings: Settings, bind: net.Address) -> Iterator[Finding]:
    """Find callers that can forge their address: it decides who gets in without client keys."""
    networks = [
        ipaddress.ip_network(word, strict=False)
        for word in settings.trusted_proxies
        if word != "unix"
    ]
    wide = [str(network) for network in networks if not network.is_loopback]
    if wide and bind.open_to_lan:
        yield TELL.fail(
            "QWEN_PROXY_TRUSTED_PROXIES",
            f"everybody in {', '.join(wide)} can pose as this machine, and gets in without a key",
            f"Set QWEN_PROXY_API_KEYS, or trust the proxy's own address only. {_NEW_KEY}",
        )
    if bind.path and "unix" not in settings.trusted_proxies:
        yield TELL.fail(
            "QWEN_PROXY_TRUSTED_PROXIES",
            "`unix` is missing, so every client of nginx counts as this machine and needs no key",
            f"Add `unix`, and set QWEN_PROXY_API_KEYS. {_NEW_KEY}",
        )
    elif not bind.path and not any(network.is_loopback for network in networks):
        yield TELL.warn(
            "QWEN_PROXY_TRUSTED_PROXIES",
            "this machine is missing, so every client of an nginx on it counts as this machine",
            f"Add 127.0.0.0/8, or set QWEN_PROXY_API_KEYS. {_NEW_KEY}",
        )


def client_keys(settings: Settings, accounts: Sequence[Account]) -> Iterator[Finding]:
    """Find client keys that can be guessed, or that are also keys of accounts."""
    ours = {
        account.credential.key
        for account in accounts
        if isinstance(account.credential, StaticKey) and account.credential.key
    }
    for key in settings.all_client_keys:
        name = "QWEN_PROXY_API_KEYS"
        if key in settings.admin_keys:
            name = "QWEN_PROXY_ADMIN_KEYS"
        elif key == settings.openai_api_key:
            name = "OPENAI_API_KEY"
        if key in ours:
            yield TELL.warn(
                name,
                f"the client key {mask(key)} is also an account's key, so every client knows it",
                f"Give the clients another key. {_NEW_KEY}",
            )
        elif len(key) < _KEY_CHARS:
            yield TELL.warn(
                name, f"a client key has {len(key)} characters and can be guessed", _NEW_KEY
            )
    if settings.openai_api_key and not settings.openai_base_url:
        yield TELL.note(
            "OPENAI_API_KEY",
            "is used as a client key; it is never sent upstream",
            "Unset it if you set it for another purpose.",
        )


def web_pages(settings: Settings) -> Iterator[Finding]:
    """Check whether any web page in a browser may call."""
    if "*" in (settings.cors_origins or ()) and valid_keys(settings) is None:
        yield TELL.warn(
            "QWEN_PROXY_CORS_ORIGINS",
            "every web page that is open in a browser on this machine may call without a key",
            "List the origins, or set QWEN_PROXY_API_KEYS.",
        )


def account_names(settings: Settings, names: Collection[str]) -> Iterator[Finding]:
    """Find names in settings that are not accounts."""
    groups = tuple(name for group in settings.same_account for name in group.split("+"))
    for setting, named in (
        ("QWEN_PROXY_ACCOUNT_ORDER", settings.account_order),
        ("QWEN_PROXY_SAME_ACCOUNT", groups),
    ):
        if unknown := [name for name in dict.fromkeys(named) if name not in names]:
            yield TELL.warn(
                setting,
                f"there is no account named {', '.join(unknown)}",
                f"The accounts are: {', '.join(sorted(names)) or 'none'}.",
            )


def sandbox(settings: Settings, discovery: Discovery) -> Iterator[Finding]:
    """Check whether the fake upstream answers."""
    found = discovery.accounts()
    if settings.sandbox == "on" and found:
        yield TELL.note(
            "QWEN_PROXY_SANDBOX",
            f"the built-in fake upstream answers every call; {len(found)} account(s) are unused",
            "Unset QWEN_PROXY_SANDBOX to use them.",
        )
    elif settings.sandbox == "on" or (settings.sandbox == "auto" and not found):
        yield TELL.note(
            "QWEN_PROXY_SANDBOX",
            "the built-in fake upstream answers: good for trials, but no Qwen model answers",
        )


def limits(settings: Settings) -> Iterator[Finding]:
    """Find limits that act differently than they seem to."""
    limit, workers = settings.account_in_flight, settings.workers
    total = -(-limit // workers) * workers
    if limit and total != limit:
        yield TELL.note(
            "QWEN_PROXY_ACCOUNT_IN_FLIGHT",
            f"each of {workers} workers rounds its share up, so {total} calls may run at a time",
            f"If the limit is strict, set QWEN_PROXY_WORKERS to a divisor of {limit}.",
        )
    if settings.client_keepalive_s <= _NGINX_IDLE_S:
        yield TELL.warn(
            "QWEN_PROXY_CLIENT_KEEPALIVE",
            f"{settings.client_keepalive_s} s is not above nginx's {_NGINX_IDLE_S} s: nginx may "
            "use a connection that is just being closed (502)",
            f"Set it above {_NGINX_IDLE_S}; the default is 75.",
        )
    if settings.retry_budget_s == 0:
        yield TELL.note(
            "QWEN_PROXY_RETRY_BUDGET",
            "0: a call that fails at one account is not sent to another",
        )
    elif settings.retry_budget_s > _LONG_BUDGET_S:
        yield TELL.warn(
            "QWEN_PROXY_RETRY_BUDGET",
            f"a call may be retried for {settings.retry_budget_s:g} s; most clients give up sooner",
            "Set it to 60 or less; the default is 30.",
        )
    if settings.strict:
        yield TELL.note(
            "QWEN_PROXY_STRICT",
            "requests that a host does not accept unchanged get a 400 instead of being adapted",
        )
