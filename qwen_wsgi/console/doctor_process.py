"""Runs `qwen-proxy doctor` in a process of its own: its checks wait for names, disks and upstreams,
and a worker's event loop must not."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

log = logging.getLogger(__name__)

#: How long the checks may take. Seconds.
MOST_S: Final = 120.0
#: Of what it prints.
_MOST_BYTES: Final = 1 << 20
#: What is told of a failure.
_MOST_CHARS: Final = 500

_PACKAGE: Final = Path(__file__).resolve().parents[1]


class Report(NamedTuple):
    """What doctor found.

    Attributes:
        findings: `{"check", "subject", "level", "what", "remedy"}` each, in order.
        why: why there are none, as a sentence; else "".
    """

    findings: Sequence[Mapping[str, str]]
    why: str = ""


class DoctorProcess:
    """Runs doctor, once at a time in a worker.

    Args:
        environ: of the server.
        command: what is run in place of doctor, for tests.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        command: Sequence[str] = (sys.executable, "-m", "qwen_wsgi.cli", "doctor", "--json"),
        most_s: float = MOST_S,
    ) -> None:
        self._environ = environ
        self._command = command
        self._most_s = most_s
        self._place = threading.BoundedSemaphore(1)

    def run(self, *, calls: bool) -> Report:
        """What doctor finds.

        Args:
            calls: each account is tried with a real call.
        """
        if not self._place.acquire(blocking=False):
            return Report((), "A check is running already. Try again when it has ended.")
        try:
            return self._run(() if calls else ("--no-calls",))
        finally:
            self._place.release()

    def _run(self, options: Sequence[str]) -> Report:
        try:
            with subprocess.Popen(
                [*self._command, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(),
                start_new_session=True,
            ) as process:
                try:
                    out, err = process.communicate(timeout=self._most_s)
                finally:  # also when the browser is gone meanwhile
                    if process.poll() is None:
                        # With all that it has started: the session is its own.
                        os.killpg(process.pid, signal.SIGKILL)
        except subprocess.TimeoutExpired:
            return Report(
                (), f"The checks did not end within {self._most_s:g} s. Run `qwen-proxy doctor`."
            )
        except OSError as error:
            log.warning("console: doctor could not be started: %s", error)
            return Report((), f"The checks could not be started: {error.strerror or error}.")
        return _read(out[:_MOST_BYTES], err)

    def _environment(self) -> dict[str, str]:
        """The server's own, so that doctor sees what it sees; and the way to this package."""
        path = [str(_PACKAGE.parent), self._environ.get("PYTHONPATH", "")]
        return {**self._environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _read(out: bytes, err: bytes) -> Report:
    try:
        rows = json.loads(out)["findings"]
        return Report([{name: str(row[name]) for name in _MEMBERS} for row in rows])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = " ".join(err.decode(errors="replace").split())[:_MOST_CHARS]
        log.warning("console: doctor has failed: %s", said)
        return Report((), f"The checks ended with no result. {said or 'They said nothing of it.'}")


_MEMBERS: Final = ("check", "subject", "level", "what", "remedy")


def grouped(report: Report) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The findings by their check, in the order of the checks."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for finding in report.findings:
        groups.setdefault(finding["check"], []).append(finding)
    return list(groups.items())


def wrong(report: Report) -> list[Mapping[str, str]]:
    """What somebody has to see to, the worst first."""
    return [
        finding
        for level in ("fail", "warn")
        for finding in report.findings
        if finding["level"] == level
    ]
