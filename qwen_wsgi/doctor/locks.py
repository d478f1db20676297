"""Checks the locks of the logins: who holds them, and what a crash left behind. Takes no lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.locks.stale import STALE_S, SWEEP_S
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.timing import PROXY_LOCK_S
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine

TELL: Final = Teller("locks")


def check(logins: Mapping[str, OAuthLogin], machine: Machine) -> Iterator[Finding]:
    """Check the locks of each login, by account name."""
    if not logins:
        yield TELL.skipped("logins", "there is no Qwen login, and API keys need no locks")
        return
    directories: dict[Path, None] = {}
    for name, login in logins.items():
        yield from proxy_lock(name, login, machine)
        yield from cli_lock(name, login)
        yield from journal(name, login)
        yield from sharing(name, login)
        paths = login.store.paths
        directories |= dict.fromkeys((paths.document.parent, paths.journal.parent))
    for directory in directories:
        yield from left_behind(directory, machine)


def proxy_lock(name: str, login: OAuthLogin, machine: Machine) -> Iterator[Finding]:
    """Check our lock. The kernel frees it, so it is never stale; but its holder may hang."""
    path = login.store.paths.proxy_lock
    try:
        holder = login.refresher.context.proxy_lock.holder()
    except OSError as error:
        yield TELL.fail(name, f"{path} cannot be opened ({error.strerror})", _give(path))
        return
    if holder is None:
        yield TELL.ok(name, "nobody holds qwen-proxy's lock")
        return
    held_s = None if holder.since_s is None else machine.now() - holder.since_s
    who = "a process" if holder.pid is None else f"process {holder.pid}"
    if held_s is not None and held_s > PROXY_LOCK_S:
        yield TELL.warn(
            name,
            f"{who} has held qwen-proxy's lock for {held_s:.0f} s; a token refresh takes less "
            f"than {PROXY_LOCK_S:.0f} s",
            f"Look at it: ps -fp {holder.pid}. If it hangs, restart the server.",
        )
    else:
        yield TELL.note(name, f"{who} is refreshing this login now")


def cli_lock(name: str, login: OAuthLogin) -> Iterator[Finding]:
    """Check qwen-code's lock, a file."""
    path = login.store.paths.cli_lock
    try:
        lock = login.refresher.context.cli_lock.observed()
    except IsADirectoryError:
        yield TELL.fail(
            name, f"{path} is a directory, so no process can lock the login", f"rmdir {path}"
        )
        return
    except OSError as error:
        yield TELL.fail(name, f"{path} cannot be checked ({error.strerror})", _give(path))
        return
    if lock is None:
        yield TELL.ok(name, "nobody holds qwen-code's lock")
        return
    whose = f"qwen-proxy (process {lock.pid})" if lock.ours else "qwen-code"
    if lock.symlink:
        yield TELL.warn(
            name, f"{path} is a symbolic link, which qwen-code never makes", f"rm {path}"
        )
    elif lock.in_future:
        yield TELL.warn(
            name,
            f"{path} is dated {-lock.age_s:.0f} s in the future: the clock was set back",
            f"If qwen-code is not running: rm {path}",
        )
    elif lock.alive is False or lock.age_s > STALE_S:
        yield TELL.warn(
            name,
            f"{path} was left behind by {whose}, {lock.age_s:.0f} s ago",
            f"The next token refresh removes it. Sooner, if qwen-code is not running: rm {path}",
        )
    else:
        yield TELL.note(name, f"{whose} has been refreshing this login for {lock.age_s:.0f} s")


def journal(name: str, login: OAuthLogin) -> Iterator[Finding]:
    """Check the journal of a login, and how its latest refresh ended."""
    file = login.store.watched()[1]
    reading = file.read()
    if reading.problem:
        yield TELL.warn(name, f"the journal {file.path} {reading.problem}", reading.remedy)
        return
    snapshot = login.store.snapshot()
    if snapshot.newest.unpublished:
        yield TELL.warn(
            name,
            "the newest login is only in the journal, not in qwen-code's file",
            "As the owner of the file, run `qwen-proxy creds refresh`.",
        )
    backoff, newest = snapshot.journal.backoff, snapshot.newest.login
    if backoff is not None and newest and backoff.fp == fingerprint(newest.refresh_token):
        yield TELL.note(
            name,
            f"the last {backoff.failures} token refresh(es) failed ({backoff.outcome})",
            "`qwen-proxy creds status` shows more.",
        )


def sharing(name: str, login: OAuthLogin) -> Iterator[Finding]:
    """Check whether a login that several boxes share is in step with them."""
    shared = login.refresher.context.shared
    if shared is None:
        return
    shared.sync()
    what = f"shared with other boxes: {shared.describe()}"
    if shared.state == "in_step":
        yield TELL.ok(name, what)
    else:
        yield TELL.warn(
            name,
            what,
            "Until this is mended, only the box that is named renews the login; see docs/boxes.md.",
        )


def left_behind(directory: Path, machine: Machine) -> Iterator[Finding]:
    """Find files that a crash left: those of a running refresh are younger."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield TELL.skipped(str(directory), f"cannot be listed ({error.strerror})")
        return
    old = []
    for entry in entries:
        if not (entry.name.startswith(durable.PREFIX) or ".lock.break." in entry.name):
            continue
        with suppress(FileNotFoundError):  # its owner removed it meanwhile
            # ctime, as the cleanup uses: an mtime may have been set to the future.
            age_s = machine.now() - entry.stat(follow_symlinks=False).st_ctime
            if age_s > max(SWEEP_S, durable.LEFT_OVER_S):
                old.append(entry.name)
    if old:
        yield TELL.note(
            str(directory),
            f"a crash left {len(old)} file(s) behind: {', '.join(old[:3])}",
            "The next token refresh removes them.",
        )


def _give(path: Path) -> str:
    return f"Make the server's user its owner: sudo chown USER {path}"
