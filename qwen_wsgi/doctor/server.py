"""Checks the server: does it listen where the settings say, and what does /health report."""

from __future__ import annotations

import errno
import http.client
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from qwen_wsgi import __version__, text
from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.net import Address
from qwen_wsgi.settings import Settings

TELL: Final = Teller("server")

#: From this part of a plan's window on it is told.
_NEARLY_SPENT: Final = 0.9
_SPENT: Final = (
    "`qwen-proxy usage --plans` shows more; QWEN_PROXY_PLAN_FALLBACK names who answers when it is "
    "spent (docs/plans.md)."
)

#: The account that a server has which found no other.
SANDBOX: Final = "sandbox"

_TIMEOUT_S: Final = 5.0
_STARTS: Final = {
    True: "Start it: sudo systemctl enable --now qwen-proxy",
    False: "Start it: `qwen-proxy serve` (or `make run`); if it is running, its HOST, PORT or "
    "QWEN_PROXY_BIND differ from those of this command.",
}


def check(
    settings: Settings,
    bind: Address,
    accounts: Collection[str],
    machine: Machine,
    *,
    has_unit: bool,
    same_settings: bool,
    certain: bool = True,
) -> Iterator[Finding]:
    """
    Args:
        bind: where the server should listen.
        accounts: the names of the accounts that this command found.
        has_unit: systemd knows the service.
        same_settings: as far as is known, the server has the same settings as this command.
        certain: all settings of the server could be read, so `bind` is where it listens.
    """
    if not bind.path and not bind.port:
        yield TELL.skipped("address", "with PORT=0 the address is unknown before the start")
    else:
        yield from health(
            bind,
            accounts,
            machine,
            has_unit=has_unit,
            same_settings=same_settings,
            certain=certain,
        )
    if not has_unit:
        yield from open_files(settings, machine)


def health(
    bind: Address,
    accounts: Collection[str],
    machine: Machine,
    *,
    has_unit: bool,
    same_settings: bool,
    certain: bool = True,
) -> Iterator[Finding]:
    """Call the server's /health."""
    subject = str(bind)
    try:
        status, body = machine.get(bind, "/health", timeout_s=_TIMEOUT_S)
    except PermissionError:
        yield TELL.skipped(
            subject,
            f"{machine.user(machine.uid)} may not connect to the socket",
            "Run doctor as root, or as a user in the socket's group.",
        )
        return
    except TimeoutError:
        yield TELL.fail(
            subject,
            f"no answer to GET /health within {_TIMEOUT_S:g} s",
            "Look at the log (journalctl -u qwen-proxy), and restart the server.",
        )
        return
    except OSError as error:
        what = f"no server listens there ({_reason(error)})"
        if certain:
            yield TELL.fail(subject, what, _STARTS[has_unit])
        else:
            what += "; the service may have another address, in a file that only root can read"
            yield TELL.skipped(subject, what, "sudo qwen-proxy doctor")
        return
    except http.client.HTTPException:
        yield _other_program(subject)
        return
    report = _health_of(body)
    if report is None:
        yield _other_program(subject)
        return
    yield from judged(subject, status, report)
    yield from plans(report)
    if same_settings:
        yield from same_accounts(subject, report, accounts)


def answers_from_sandbox(bind: Address, machine: Machine) -> bool:
    """Whether a server runs there that answers from the built-in fake upstream."""
    if not bind.path and not bind.port:
        return False
    try:
        _, body = machine.get(bind, "/health", timeout_s=_TIMEOUT_S)
    except (OSError, http.client.HTTPException):
        return False
    report = _health_of(body)
    return report is not None and report.get("sandbox") is True


def judged(subject: str, status: int, report: Mapping[str, Any]) -> Iterator[Finding]:
    """Interpret the answer of /health."""
    word = str(report["status"])
    what = f"version {report.get('version')} answers {status}, status {word}"
    if word == "ok":
        yield TELL.ok(subject, f"{what}, {report.get('in_flight')} call(s) in flight")
    elif word == "draining":
        yield TELL.warn(
            subject, f"{what}: this worker is stopping", "Wait until the restart has finished."
        )
    elif word == "login_unsaved":
        yield TELL.fail(
            subject,
            f"{what}: the newest login exists only in the memory of a worker",
            "Free disk space, or let the server write to ~/.qwen; do not stop the server before.",
        )
    elif word == "no_usable_account":
        cause = f" ({report['cause']})" if report.get("cause") else ""
        yield TELL.fail(
            subject,
            f"{what}{cause}: every call is answered 503",
            "See the findings about accounts; if those are usable, the server runs as another user "
            "or with other settings than this command.",
        )
    else:
        yield TELL.warn(subject, what, "Look at the log: journalctl -u qwen-proxy")
    if report.get("sandbox"):
        yield TELL.note(subject, "the built-in fake upstream (the sandbox) answers its calls")
    if report.get("version") != __version__:
        yield TELL.warn(
            subject,
            f"it runs version {report.get('version')}, but {__version__} is installed",
            "Restart it: sudo systemctl restart qwen-proxy",
        )


def plans(report: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge how much of the windows of plans is used, as the server has counted."""
    rows = report.get("accounts")
    for row in rows if isinstance(rows, list) else ():
        plan = row.get("plan") if isinstance(row, dict) else None
        if not isinstance(plan, dict):
            continue
        for window in plan.get("windows", ()):
            what = f"the plan's window {text.window_text(window)}"
            if window["spent"] or (window["share"] or 0.0) >= _NEARLY_SPENT:
                yield TELL.warn(str(row.get("name")), what, _SPENT)


def same_accounts(
    subject: str, report: Mapping[str, Any], accounts: Collection[str]
) -> Iterator[Finding]:
    """Compare the server's accounts with those that this command found."""
    rows = report.get("accounts")
    theirs = {str(row.get("name")) for row in rows if isinstance(row, dict)} if rows else set()
    theirs -= {SANDBOX}
    if missing := sorted(set(accounts) - theirs - {SANDBOX}):
        yield TELL.warn(
            subject,
            f"the server lacks the account(s) {', '.join(missing)}, which this command found",
            "It runs as another user or with other settings: docs/operations.md, "
            '"As the owner of ~/.qwen".',
        )
    if more := sorted(theirs - set(accounts)):
        yield TELL.note(
            subject,
            f"the server has account(s) that this command did not find: {', '.join(more)}",
            "To check them, run doctor with the server's user and settings.",
        )


def open_files(settings: Settings, machine: Machine) -> Iterator[Finding]:
    """Check that a server started from here may open as many files as its calls need."""
    needed = settings.worker_files
    _, hard = machine.open_files()
    what = f"a worker may need {needed} open files"
    if hard < 0 or hard >= needed:
        yield TELL.ok("open files", f"{what}, {'any number' if hard < 0 else hard} are allowed")
    else:
        yield TELL.warn(
            "open files",
            f"{what}, but {hard} are allowed: calls fail before QWEN_PROXY_MAX_IN_FLIGHT",
            f"Raise the limit (ulimit -Hn {needed}), or lower QWEN_PROXY_MAX_IN_FLIGHT.",
        )


def _health_of(body: bytes) -> dict[str, Any] | None:
    try:
        report = json.loads(body)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(report, dict) and "status" in report and "version" in report
    return report if ours else None


def _other_program(subject: str) -> Finding:
    return TELL.fail(
        subject,
        "another program listens there: its answer to /health is not qwen-proxy's",
        "Stop it, or choose another PORT or QWEN_PROXY_BIND.",
    )


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no socket"
    return error.strerror or str(error)
