"""The server: does it listen where the settings say, and what does it say of itself."""

from __future__ import annotations

import errno
import http.client
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from qwen_wsgi import __version__
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.net import Address
from qwen_wsgi.settings import Settings

TELL: Final = Teller("server")

_TIMEOUT_S: Final = 5.0
_STARTS: Final = {
    True: "Start it: sudo systemctl enable --now qwen-proxy",
    False: "Start it: `qwen-proxy serve` (or `make run`); if it runs, its HOST, PORT or "
    "QWEN_PROXY_BIND are others than here.",
}


def check(
    settings: Settings,
    bind: Address,
    accounts: Collection[str],
    machine: Machine,
    *,
    has_unit: bool,
    same_settings: bool,
) -> Iterator[Finding]:
    """
    Args:
        bind: where the server should listen.
        accounts: the names of those that were found here.
        has_unit: systemd knows the service.
        same_settings: as far as is known, the server has the settings that we have.
    """
    if not bind.path and not bind.port:
        yield TELL.skipped("address", "with PORT=0 the address is not known before the start")
    else:
        yield from health(bind, accounts, machine, has_unit=has_unit, same_settings=same_settings)
    if not has_unit:
        yield from open_files(settings, machine)


def health(
    bind: Address,
    accounts: Collection[str],
    machine: Machine,
    *,
    has_unit: bool,
    same_settings: bool,
) -> Iterator[Finding]:
    """Ask the server how it is."""
    subject = str(bind)
    try:
        status, body = machine.get(bind, "/health", timeout_s=_TIMEOUT_S)
    except PermissionError:
        yield TELL.skipped(
            subject,
            f"{machine.user(machine.uid)} may not connect to the socket",
            "Run it as root, or as a user in the socket's group.",
        )
        return
    except TimeoutError:
        yield TELL.fail(
            subject,
            f"GET /health is not answered within {_TIMEOUT_S:g} s",
            "Look at the log (journalctl -u qwen-proxy), and restart the server.",
        )
        return
    except OSError as error:
        yield TELL.fail(subject, f"nobody listens there ({_reason(error)})", _STARTS[has_unit])
        return
    except http.client.HTTPException:
        yield _somebody_else(subject)
        return
    told = _health_of(body)
    if told is None:
        yield _somebody_else(subject)
        return
    yield from judged(subject, status, told)
    if same_settings:
        yield from same_accounts(subject, told, accounts)


def judged(subject: str, status: int, told: Mapping[str, Any]) -> Iterator[Finding]:
    """What the answer of /health means."""
    word = str(told["status"])
    what = f"version {told.get('version')} answers {status}, status {word}"
    if word == "ok":
        yield TELL.ok(subject, f"{what}, {told.get('in_flight')} call(s) in flight")
    elif word == "draining":
        yield TELL.warn(
            subject, f"{what}: this worker is stopping", "Wait until the restart is over."
        )
    elif word == "login_unsaved":
        yield TELL.fail(
            subject,
            f"{what}: the newest login is in the memory of a worker alone",
            "Make room on the disk, or let the server write to ~/.qwen; do not stop it before.",
        )
    elif word == "no_usable_account":
        yield TELL.fail(
            subject,
            f"{what}: every call is answered 503",
            "See the accounts above; if they are usable, the server has another user or other "
            "settings than this command.",
        )
    else:
        yield TELL.warn(subject, what, "Look at the log: journalctl -u qwen-proxy")
    if told.get("sandbox"):
        yield TELL.note(subject, "the built-in fake upstream (the sandbox) answers its calls")
    if told.get("version") != __version__:
        yield TELL.warn(
            subject,
            f"it runs version {told.get('version')}, and {__version__} is installed",
            "Restart it: sudo systemctl restart qwen-proxy",
        )


def same_accounts(
    subject: str, told: Mapping[str, Any], accounts: Collection[str]
) -> Iterator[Finding]:
    """Whether the server sees the accounts that were found here."""
    rows = told.get("accounts")
    theirs = {str(row.get("name")) for row in rows if isinstance(row, dict)} if rows else set()
    if missing := sorted(set(accounts) - theirs):
        yield TELL.warn(
            subject,
            f"the server does not have the account(s) {', '.join(missing)} that were found here",
            "It runs as another user or with other settings: docs/operations.md, "
            '"As the owner of ~/.qwen".',
        )
    if more := sorted(theirs - set(accounts)):
        yield TELL.note(
            subject,
            f"the server has account(s) that were not found here: {', '.join(more)}",
            "Run this command with the server's user and settings to have them checked.",
        )


def open_files(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """Whether a server that is started from here gets as many files as its calls need."""
    needed = settings.worker_files
    _, hard = machine.open_files()
    told = f"a worker may need {needed} open files"
    if hard < 0 or hard >= needed:
        yield TELL.ok("open files", f"{told}, {'any number' if hard < 0 else hard} are allowed")
    else:
        yield TELL.warn(
            "open files",
            f"{told}, and {hard} are allowed: calls fail before QWEN_PROXY_MAX_IN_FLIGHT",
            f"Raise the limit (ulimit -Hn {needed}), or lower QWEN_PROXY_MAX_IN_FLIGHT.",
        )


def _health_of(body: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(told, dict) and "status" in told and "version" in told
    return told if ours else None


def _somebody_else(subject: str) -> Finding:
    return TELL.fail(
        subject,
        "another program listens there: its answer to /health is not qwen-proxy's",
        "Stop it, or choose another PORT or QWEN_PROXY_BIND.",
    )


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no socket"
    return error.strerror or str(error)
