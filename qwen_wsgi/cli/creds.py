"""`qwen-proxy creds status | refresh | forget | take-over`: shows and maintains the logins."""

from __future__ import annotations

import datetime
import json
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.credential import Ability
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.attempt import Attempt, Outcome
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.shared.board import BoardAway
from qwen_wsgi.credentials.shared.shared_login import SharedLogin
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings


def run(
    settings: Settings, action: str, *, account: str | None, json_output: bool, out: TextIO
) -> int:
    """Do one of the actions with the chosen login, or with every login.

    Args:
        account: the name that was given to `login --account`, or an account's name as `status`
            shows it; None for every login.

    Returns:
        The exit status: 0 if all of them are well now, else 1.

    Raises:
        SettingsError: there is no such login.
    """
    clock, directory = SystemClock(), Path(settings.state_dir)
    store, sharing = None, None
    if settings.redis_url:  # what a box alone need not load
        from qwen_wsgi.boxes import shared_store_of, sharing_of

        store = shared_store_of(settings, clock, directory)
        sharing = sharing_of(settings, clock, store, directory)
    try:
        return _run(
            Discovery(settings, clock, sharing=sharing),
            action,
            account=account,
            json_output=json_output,
            out=out,
        )
    finally:
        if store is not None:
            store.close()


def _run(
    discovery: Discovery, action: str, *, account: str | None, json_output: bool, out: TextIO
) -> int:
    discovery.find_shared()
    logins = _chosen(discovery, account)
    rows = []
    well = True
    for name, login in logins.items():
        if action == "refresh":
            row, good = _refresh(name, login)
        elif action == "forget":
            row, good = _forget(name, login)
        elif action == "take-over":
            row, good = _take_over(name, login)
        else:
            row, good = status(name, login), _is_well(login)  # in this order: `status` checks
        rows.append(row)
        well = well and good
    shown = json.dumps(rows, indent=2) if json_output else _text(rows, discovery.duplicates())
    out.write(shown + "\n")
    return 0 if well else 1


def _chosen(discovery: Discovery, account: str | None) -> dict[str, OAuthLogin]:
    found = {
        each.name: each.credential
        for each in discovery.accounts()
        if isinstance(each.credential, OAuthLogin)
    }
    if account is None:
        if not found:
            raise SettingsError(
                f"there is no Qwen login in {discovery.qwen_home()}; make one with "
                "`qwen-proxy login`, or use an API key"
            )
        return found
    for name in (account, f"oauth-{account}"):
        if name in found:
            return {name: found[name]}
    known = ", ".join(found) or "none"
    duplicates = "".join(f"; {duplicate.rstrip('.')}" for duplicate in discovery.duplicates())
    raise SettingsError(f"there is no login {account!r}; there is: {known}{duplicates}")


def status(name: str, login: OAuthLogin) -> dict[str, Any]:
    """One login as `creds status --json` prints it: no secret, and `null` for what is unknown."""
    login.refresher.check_writable()
    if (shared := login.refresher.context.shared) is not None:
        shared.sync()
    snapshot = login.store.snapshot()
    current = login.status()
    left_s = None
    if current.expires_at_ms is not None:
        left_s = round(current.expires_at_ms / 1000 - login.refresher.context.clock.now())
    return {
        "account": name,
        "file": str(login.store.paths.document),
        "state": current.state.value,
        "ability": login.refresher.ability(snapshot).value,
        "seconds_left": left_s,
        "access_token": current.shown,
        "detail": current.detail,
        "remedy": current.remedy or None,
        "journal": _journal(login),
        "locks": _locks(login),
        "sharing": _sharing(login),
    }


def _sharing(login: OAuthLogin) -> dict[str, Any] | None:
    """What this box has to do with the others; None for a login that is not shared."""
    shared = login.refresher.context.shared
    if shared is None:
        return None
    custody = shared.custody()
    return {
        "state": shared.state,
        "this_box": shared.board.box,
        "renewed_by": custody.box or None,
        "also_without_redis": custody.keeps,
        "problem": shared.problem or None,
    }


def _journal(login: OAuthLogin) -> dict[str, Any]:
    snapshot = login.store.snapshot()
    journal = snapshot.journal
    received, backoff, intent = journal.received, journal.backoff, journal.intent
    file, reading = login.store.paths.journal, login.store.watched()[1].read()
    return {
        "problem": f"{file} {reading.problem}. {reading.remedy}" if reading.problem else None,
        "login_counts_from": snapshot.newest.source,
        "unpublished": snapshot.newest.unpublished,
        "last_refresh": _when(received.at_ms) if received else None,
        "open_attempt": (
            {"at": _when(intent.at_ms), "pid": intent.pid, "attempt": intent.attempt}
            if intent
            else None
        ),
        "last_failure": (
            {
                "outcome": backoff.outcome,
                "at": _when(backoff.at_ms),
                "failures": backoff.failures,
                "not_before": _when(backoff.not_before_ms),
            }
            if backoff
            else None
        ),
        "refused_refresh_tokens": len(journal.tombstones),
    }


def _locks(login: OAuthLogin) -> dict[str, Any]:
    context = login.refresher.context
    locks: dict[str, Any] = {"proxy": None, "qwen_code": None}
    with suppress(OSError):
        if (holder := context.proxy_lock.holder()) is not None:
            since = None if holder.since_s is None else _when(int(holder.since_s * 1000))
            locks["proxy"] = {"pid": holder.pid, "since": since}
    with suppress(OSError):
        if (lock := context.cli_lock.observed()) is not None:
            locks["qwen_code"] = {
                "age_s": round(lock.age_s, 1),
                "ours": lock.ours,
                "pid": lock.pid,
                "symlink": lock.symlink,
            }
    return locks


def _refresh(name: str, login: OAuthLogin) -> tuple[dict[str, Any], bool]:
    """Refresh now, even if it is early, because the user wants it. Pauses still count."""
    held = login.store.snapshot().newest.login
    attempt = _attempt(login.refresher, held.access_token if held else None)
    good = attempt.outcome in (Outcome.OK, Outcome.ADOPTED)
    why = _why_not_sent(login) if attempt.outcome is Outcome.NOT_DUE else attempt.detail
    return {**status(name, login), "refresh": attempt.outcome.value, "why": why}, good


def _attempt(refresher: Refresher, rejected: str | None) -> Attempt:
    """Make one attempt, in a thread: once a token was sent, its answer must be saved, even when
    Ctrl-C or SIGTERM stops the command meanwhile."""
    made: list[Attempt] = []
    thread = threading.Thread(target=lambda: made.append(refresher.attempt(rejected=rejected)))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        thread.start()
        thread.join()
    except KeyboardInterrupt:
        refresher.drain(0)  # cancels what was not sent yet
        thread.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return made[0]


def _why_not_sent(login: OAuthLogin) -> str:
    """Why `creds refresh` made no attempt."""
    snapshot = login.store.snapshot()
    if (ability := login.refresher.ability(snapshot)) is not Ability.REFRESHABLE:
        return f"nothing was sent: {ability.value.replace('_', ' ')}"
    backoff = snapshot.journal.backoff
    if backoff is not None and backoff.not_before_ms > login.refresher.context.clock.now() * 1000:
        return (
            "nothing was sent: the last attempt failed, the next one is possible at "
            f"{_when(backoff.not_before_ms)}"
        )
    return "nothing was sent: it was refreshed a moment ago"


def _take_over(name: str, login: OAuthLogin) -> tuple[dict[str, Any], bool]:
    """Let this box renew the login, because the one that did is gone for good."""
    shared = login.refresher.context.shared
    if shared is None:
        why = "the login is not shared with other boxes (docs/boxes.md)"
        return {**status(name, login), "taken_over": False, "why": why}, False
    try:
        done = shared.take_over()
        why = "this box renews it now" if done else "another process or box was faster; try again"
    except (BoardAway, OSError) as error:
        done, why = False, str(error)
    return {**status(name, login), "taken_over": done, "why": why}, done


def _forget(name: str, login: OAuthLogin) -> tuple[dict[str, Any], bool]:
    snapshot = login.store.snapshot()
    shared = login.refresher.context.shared
    if shared is not None and shared.keeper:
        why = f"delete {login.store.paths.document} first; then this forgets the login on all boxes"
        return {**status(name, login), "forgotten": False, "why": why}, False
    if snapshot.newest.unpublished:
        # The file's own refresh token is spent: without the journal the login would be lost.
        why = (
            "only the journal has the newest login; `qwen-proxy creds refresh` writes it to the "
            "file, and after the file was deleted it can be forgotten"
        )
        return {**status(name, login), "forgotten": False, "why": why}, False
    try:
        done = login.refresher.forget()
        gone = "the journal is gone" if shared is None else _forgotten(shared)
        why = gone if done else "another process holds the lock; try again"
    except OSError as error:
        done, why = False, f"the journal cannot be removed: {error.strerror}"
    return {**status(name, login), "forgotten": done, "why": why}, done


def _forgotten(shared: SharedLogin) -> str:
    if shared.state == "in_step":
        return "it is forgotten on all boxes"
    return "it is forgotten here; the other boxes hear of it when Redis is back"


def _is_well(login: OAuthLogin) -> bool:
    # Not the refresher's token state: a fresh login may be unusable for its resource_url.
    usable = login.status().state.is_usable
    return usable and login.refresher.ability(login.store.snapshot()) is Ability.REFRESHABLE


def _text(rows: list[dict[str, Any]], duplicates: tuple[str, ...]) -> str:
    blocks = []
    for row in rows:
        lines = [f"{row['account']}  {str(row['state']).upper()}  {row['detail']}"]
        for name, value in row.items():
            if name in ("account", "state", "detail") or value in (None, {}, ""):
                continue
            lines += _lines(name, value)
        blocks.append("\n".join(lines))
    return "\n".join((*blocks, *duplicates))


def _lines(name: str, value: Any) -> list[str]:
    label = name.replace("_", " ")
    if not isinstance(value, dict):
        return [f"    {label:<14} {value}"]
    known = {key: inner for key, inner in value.items() if inner not in (None, False, 0)}
    shown = "; ".join(f"{key.replace('_', ' ')}: {_short(inner)}" for key, inner in known.items())
    return [f"    {label:<14} {shown or 'nothing'}"]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
    return str(value)


def _when(at_ms: int) -> str:
    with suppress(OverflowError, ValueError, OSError):
        return f"{datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    return "at an impossible time"
