"""Checks the systemd unit: its state, and whether its limits and protection fit the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qwen_wsgi import env_file
from qwen_wsgi.doctor import service as services
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.doctor.service import Service
from qwen_wsgi.redaction import names_secret
from qwen_wsgi.settings import Settings

TELL: Final = Teller("systemd")

#: What a stop takes beyond the time for open streams: the exit of the workers, and a reserve.
_STOP_S: Final = 35
_MANY_RESTARTS: Final = 3

#: Exit statuses of the service (docs/operations.md, "Exit codes", and systemd.exec(5)).
_STATUSES: Final = {
    "1": ("the address is in use or not there yet, or gunicorn failed", "journalctl -u qwen-proxy"),
    "2": ("a setting is wrong", "journalctl -u qwen-proxy -n 5"),
    "3": ("a worker could not start", "journalctl -u qwen-proxy -n 50"),
    "4": ("the application could not be imported", "journalctl -u qwen-proxy -n 50"),
    "200": ("its working directory does not exist", "systemctl cat qwen-proxy"),
    "216": (
        "a group of the unit does not exist",
        "install it again: sudo make install, or its package",
    ),
    "203": ("its program does not exist: was it removed?", "install it again: sudo make install"),
    "217": ("the user of User= does not exist", "systemctl cat qwen-proxy"),
    "226": ("a directory of BindPaths= does not exist", "systemctl cat qwen-proxy"),
    "238": ("its state directory cannot be created", "ls -ld /var/lib/qwen-proxy"),
}


def check(settings: Settings, found: Service | str, machine: Machine) -> Iterator[Finding]:
    """
    Args:
        found: the service, or why there is none.
    """
    if isinstance(found, str):
        yield TELL.skipped(services.UNIT, found)
        return
    yield from state(found)
    yield from socket(found)
    yield from environment(found)
    yield from compared(settings, found, machine)
    yield from homes(found, machine)
    yield from limits(found.settings or settings, found)


def state(unit: Service) -> Iterator[Finding]:
    """Check that it runs, and that it starts at boot."""
    active, sub = unit["ActiveState"], unit["SubState"]
    if unit.runs:
        yield TELL.ok("state", f"{active} ({sub})")
    elif active in ("failed", "activating"):
        why, where = _why(unit)
        yield TELL.fail("state", f"{active} ({sub}): {why}", where)
    else:
        yield TELL.fail(
            "state", f"{active} ({sub}): it is not running", "sudo systemctl start qwen-proxy"
        )
    if unit["UnitFileState"] == "disabled":
        yield TELL.warn(
            "start at boot", "it does not start at boot", "sudo systemctl enable qwen-proxy"
        )
    if (restarts := _number(unit["NRestarts"])) > 0:
        report = TELL.warn if restarts >= _MANY_RESTARTS else TELL.note
        what = f"systemd has restarted it {restarts} time(s) since its start"
        yield report("restarts", what, "journalctl -u qwen-proxy")
    if unit["NeedDaemonReload"] == "yes":
        yield TELL.warn(
            "unit file",
            "it has changed since systemd read it",
            "sudo systemctl daemon-reload && sudo systemctl restart qwen-proxy",
        )
    for path in unit["DropInPaths"].split():
        yield TELL.note("drop-in", path)


def socket(unit: Service) -> Iterator[Finding]:
    """Check the socket unit, which keeps calls waiting during a restart."""
    if unit.socket.get("LoadState") != "loaded":
        return
    if unit.sockets:
        listening = " and ".join(unit.sockets)
        if unit.own_bind and unit.own_bind not in unit.sockets:
            yield TELL.warn(
                services.SOCKET,
                f"systemd listens on {listening}, so the address {unit.own_bind} of the settings "
                "has no effect",
                "Correct one of them: sudo systemctl edit qwen-proxy.socket",
            )
        else:
            yield TELL.ok(services.SOCKET, f"keeps {listening}: calls wait during a restart")
    elif unit.socket.get("UnitFileState") == "enabled":
        yield TELL.warn(
            services.SOCKET,
            "it is enabled, but systemd does not listen: calls fail during a restart",
            f"sudo systemctl stop {services.UNIT} && sudo systemctl start {services.SOCKET} "
            f"{services.UNIT}",
        )
    else:
        yield TELL.note(
            services.SOCKET,
            "is not used: calls fail for some seconds during a restart or an upgrade",
            'docs/operations.md, "Restarts without a lost call"',
        )


def _why(unit: Service) -> tuple[str, str]:
    """Why it does not run, and the command that shows more."""
    if unit["Result"] == "start-limit-hit":
        why = "systemd gave up after too many starts in a short time"
        return why, "journalctl -u qwen-proxy -n 50, then: sudo systemctl reset-failed qwen-proxy"
    status = unit["ExecMainStatus"]
    why, where = _STATUSES.get(status, (f"status {status}", "journalctl -u qwen-proxy -n 50"))
    return f"{why} (result {unit['Result']}, status {status})", where


def environment(unit: Service) -> Iterator[Finding]:
    """Check the service's environment."""
    if unit.problem:
        yield TELL.fail(
            "settings",
            f"the service's settings are invalid: {unit.problem}",
            "Correct the environment file.",
        )
    for file in unit.files:
        if file.text is None:
            yield TELL.skipped(
                str(file.path), "this user may not read it, so its settings are unknown"
            )
        elif lines := env_file.parse(file.text).ignored:
            numbers = ", ".join(map(str, lines[:5]))
            yield TELL.warn(
                str(file.path),
                f"line {numbers} is ignored: it has no `=`, or more than a name before it",
                "Write NAME=value, without `export`.",
            )
    secrets = list(filter(names_secret, services.open_variables(unit)))
    if secrets:
        yield TELL.warn(
            "Environment=",
            f"every user of this machine can read {', '.join(secrets)} in the unit",
            "Move it to /etc/qwen-proxy/qwen-proxy.env, which only root and the service can read.",
        )


def compared(settings: Settings, unit: Service, machine: Machine) -> Iterator[Finding]:
    """Check that this command has the settings and the user of the service."""
    mine = machine.user(machine.uid)
    others = services.differing(settings, unit)
    what = []
    if mine != unit.user:
        what.append(f"doctor runs as {mine}, the service as {unit.user}")
    if not unit.is_known and what:
        # What it has in that file may be what is missing here, or the other way round.
        what.append("only root can read all settings of the service, so they are not compared")
    elif unit.is_known and others:
        what.append(f"these settings differ from the service's: {', '.join(others)}")
    if what:
        report = TELL.warn if unit.is_known else TELL.skipped
        yield report(
            "this command",
            f"{'; '.join(what)}. The findings about settings, files and accounts are those of this "
            "command",
            "To see what the service sees: sudo qwen-proxy doctor",
        )
    elif unit.is_known:
        yield TELL.ok("this command", "has the user and the settings of the service")


def homes(unit: Service, machine: Machine) -> Iterator[Finding]:
    """Check that the service can read, and write to, qwen-code's directory."""
    named = unit.environ.get("QWEN_HOME", "")
    if not named:
        if unit.is_known:
            yield TELL.note("QWEN_HOME", "is not set: the service has only its own keys and logins")
        return
    path = Path(named)
    try:
        owner = machine.user(os.stat(machine.root / named.lstrip("/")).st_uid)
    except PermissionError:
        yield TELL.skipped(named, "this user may not read it")
        return
    except OSError as error:
        yield TELL.fail(named, f"{error.strerror}", "Correct QWEN_HOME in the drop-in.")
        return
    if owner != unit.user:
        yield TELL.fail(
            named,
            f"belongs to {owner}, but the service runs as {unit.user}",
            f"Set User={owner} in a drop-in: /etc/qwen-proxy/owner.conf.example",
        )
    yield from _visible(unit, path, logins=_has_logins(machine.root / named.lstrip("/")))


def _visible(unit: Service, path: Path, *, logins: bool) -> Iterator[Finding]:
    """Check that the unit's protection does not hide the directory."""
    hidden = unit["ProtectHome"] in ("yes", "tmpfs") and _below(
        path, ("/home", "/root", "/run/user")
    )
    locked = unit["ProtectSystem"] == "strict" or unit["ProtectHome"] == "read-only"
    bound, read_only = unit.paths("BindPaths"), unit.paths("BindReadOnlyPaths")
    writable = _below(path, (*bound, *(() if hidden else unit.paths("ReadWritePaths"))))
    if hidden and not _below(path, (*bound, *read_only)):
        yield TELL.fail(
            str(path),
            f"ProtectHome={unit['ProtectHome']} hides it from the service",
            f"Add BindPaths={path} to a drop-in: /etc/qwen-proxy/owner.conf.example",
        )
    elif (hidden or locked) and not writable:
        what = "the service can read it, but not write to it"
        if logins:
            yield TELL.fail(
                str(path),
                f"{what}, so no login is refreshed",
                f"Add BindPaths={path} to a drop-in: /etc/qwen-proxy/owner.conf.example",
            )
        else:
            yield TELL.ok(str(path), f"{what}: enough for API keys, but not for a login")
    else:
        yield TELL.ok(str(path), "the service can read it and write to it")


def limits(settings: Settings, unit: Service) -> Iterator[Finding]:
    """Check the limit of open files, and the time for a stop."""
    needed, allowed = settings.worker_files, unit["LimitNOFILE"]
    if allowed.isdigit() and int(allowed) < needed:
        yield TELL.warn(
            "LimitNOFILE",
            f"{allowed} open files are allowed, but a full worker needs {needed}",
            f"sudo systemctl edit qwen-proxy: LimitNOFILE={needed}",
        )
    stop_s = services.seconds(unit["TimeoutStopUSec"])
    least_s = settings.graceful_timeout_s + _STOP_S
    if stop_s is not None and stop_s < least_s:
        yield TELL.warn(
            "TimeoutStopSec",
            f"systemd kills it {stop_s:g} s after a stop, which may take {least_s} s "
            f"(QWEN_PROXY_GRACEFUL_TIMEOUT + {_STOP_S})",
            f"sudo systemctl edit qwen-proxy: TimeoutStopSec={least_s}",
        )


def _has_logins(directory: Path) -> bool:
    """Whether there are logins, as far as this user may read."""
    try:
        return any(name.startswith("oauth_creds") for name in os.listdir(directory))
    except OSError:
        return False


def _below(path: Path, directories: tuple[str, ...]) -> bool:
    return any(path == Path(each) or Path(each) in path.parents for each in directories)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
