"""The locks of the logins: who has them, and what was left behind. Takes none."""

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
    """Look at the locks of each login, by account."""
    if not logins:
        yield TELL.skipped("logins", "there is no Qwen login, and keys need no locks")
        return
    directories: dict[Path, None] = {}
    for name, login in logins.items():
        yield from proxy_lock(name, login, machine)
        yield from cli_lock(name, login)
        yield from journal(name, login)
        paths = login.store.paths
        directories |= dict.fromkeys((paths.document.parent, paths.journal.parent))
    for directory in directories:
        yield from left_behind(directory, machine)


def proxy_lock(name: str, login: OAuthLogin, machine: Machine) -> Iterator[Finding]:
    """Ours. The kernel frees it, so it is never stale; but its holder may hang."""
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
            f"{who} has held qwen-proxy's lock for {held_s:.0f} s; a renewal takes less than "
            f"{PROXY_LOCK_S:.0f}",
            f"See what it does: ps -fp {holder.pid}. If it hangs, restart the server.",
        )
    else:
        yield TELL.note(name, f"{who} is renewing this login right now")


def cli_lock(name: str, login: OAuthLogin) -> Iterator[Finding]:
    """qwen-code's: a file."""
    path = login.store.paths.cli_lock
    try:
        lock = login.refresher.context.cli_lock.observed()
    except IsADirectoryError:
        yield TELL.fail(name, f"{path} is a directory; nobody can lock the login", f"rmdir {path}")
        return
    except OSError as error:
        yield TELL.fail(name, f"{path} cannot be looked at ({error.strerror})", _give(path))
        return
    if lock is None:
        yield TELL.ok(name, "nobody holds qwen-code's lock")
        return
    whose = f"qwen-proxy (process {lock.pid})" if lock.ours else "a qwen-code"
    if lock.symlink:
        yield TELL.warn(name, f"{path} is a symbolic link, which no qwen-code makes", f"rm {path}")
    elif lock.in_future:
        yield TELL.warn(
            name,
            f"{path} is dated {-lock.age_s:.0f} s in the future: the clock was set back",
            f"If no qwen-code runs: rm {path}",
        )
    elif lock.alive is False or lock.age_s > STALE_S:
        yield TELL.warn(
            name,
            f"{path} was left behind by {whose}, {lock.age_s:.0f} s ago",
            f"The next renewal removes it. At once, if no qwen-code runs: rm {path}",
        )
    else:
        yield TELL.note(name, f"{whose} is renewing this login, since {lock.age_s:.0f} s")


def journal(name: str, login: OAuthLogin) -> Iterator[Finding]:
    """The journal of the renewals, and what it says of the latest."""
    file = login.store.watched()[1]
    reading = file.read()
    if reading.problem:
        yield TELL.warn(name, f"the journal {file.path} {reading.problem}", reading.remedy)
        return
    snapshot = login.store.snapshot()
    if snapshot.newest.unpublished:
        yield TELL.warn(
            name,
            "the newest login is in the journal alone, not in qwen-code's file",
            "Run `qwen-proxy creds refresh` as the owner of the file.",
        )
    backoff, newest = snapshot.journal.backoff, snapshot.newest.login
    if backoff is not None and newest and backoff.fp == fingerprint(newest.refresh_token):
        yield TELL.note(
            name,
            f"the latest {backoff.failures} renewal(s) failed ({backoff.outcome})",
            "`qwen-proxy creds status` tells more.",
        )


def left_behind(directory: Path, machine: Machine) -> Iterator[Finding]:
    """Files that a crash left; a renewal that goes on would be younger."""
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield TELL.skipped(str(directory), f"it cannot be listed ({error.strerror})")
        return
    old = []
    for entry in entries:
        if not (entry.name.startswith(durable.PREFIX) or ".lock.break." in entry.name):
            continue
        with suppress(FileNotFoundError):  # its owner was quicker
            # ctime, as those who sweep look at: a mtime may have been pushed into the future.
            age_s = machine.now() - entry.stat(follow_symlinks=False).st_ctime
            if age_s > max(SWEEP_S, durable.LEFT_OVER_S):
                old.append(entry.name)
    if old:
        yield TELL.note(
            str(directory),
            f"{len(old)} file(s) of a crash were left behind: {', '.join(old[:3])}",
            "The next renewal sweeps them away.",
        )


def _give(path: Path) -> str:
    return f"Give it to the user who runs the server: sudo chown USER {path}"
