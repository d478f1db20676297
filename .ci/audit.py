"""Ask pip-audit whether a pinned dependency has a known flaw; `.ci/run` runs it.

    python .ci/audit.py

1 if there is a flaw. Where the data cannot be reached it says so and fails nothing: the state of a
network is no fault of a commit. pip-audit is installed into a directory that is removed again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PINNED = Path(__file__).resolve().parent.parent / "qwen_wsgi/constraints.txt"

_AUDITOR = "pip-audit >= 2.9, < 3"
#: Of the installation, and of the audit.
_TIMEOUT_S = 60
#: Of one answer. There is one request per dependency.
_ANSWER_S = 5


class NoAudit(Exception):
    """The audit says nothing about any dependency; the text is why."""


def judged(printed: str) -> tuple[list[str], list[str]]:
    """What pip-audit's JSON says: the flaws, each a line, and the dependencies that it knows not.

    It reports success, too, when it could look at none of them.

    Raises:
        NoAudit: it knows none, or that is no JSON of pip-audit.
    """
    try:
        dependencies = json.loads(printed)["dependencies"]
    except (ValueError, TypeError, KeyError):
        raise NoAudit("pip-audit printed no result") from None
    unknown = [each for each in dependencies if "skip_reason" in each]
    if len(unknown) == len(dependencies):
        why = unknown[0]["skip_reason"] if unknown else "pip-audit looked at no dependency"
        raise NoAudit(why)
    flaws = [
        f"{each['name']} {each['version']}: {flaw['id']},"
        f" mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for each in dependencies
        for flaw in each.get("vulns", ())
    ]
    return flaws, [each["name"] for each in unknown]


def ran(command: list[str]) -> str:
    """The standard output of a program.

    Raises:
        NoAudit: it takes too long, cannot be run, or fails and prints nothing; with its last words.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise NoAudit(f"it took longer than {_TIMEOUT_S} s") from None
    except OSError as error:
        raise NoAudit(str(error)) from None
    if done.returncode != 0 and not done.stdout.strip():
        words = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise NoAudit(words[-1][:300])
    return done.stdout


def installed(directory: Path) -> list[str]:
    """Install pip-audit into a directory; the command that runs it.

    Raises:
        NoAudit: it cannot be installed.
    """
    venv.create(directory, with_pip=True)
    python = str(directory / "bin/python")
    quiet = ["--quiet", "--disable-pip-version-check"]
    ran([python, "-m", "pip", "install", *quiet, _AUDITOR])
    return [python, "-m", "pip_audit"]


def audit(auditor: list[str] | None = None) -> int:
    """Audit the constraints file and print the result; 1 for a known flaw, else 0.

    Args:
        auditor: the command to run; None installs pip-audit first.
    """
    # With hashes and without pip it takes the file as it is, and installs nothing to resolve it.
    how = ["--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    how += ["--format", "json", "--timeout", str(_ANSWER_S), "--requirement", str(PINNED)]
    try:
        with tempfile.TemporaryDirectory() as directory:
            flaws, unknown = judged(ran([*(auditor or installed(Path(directory))), *how]))
    except NoAudit as why:
        print(f"Audit of the dependencies skipped: {why}")
        return 0
    if unknown:
        print(f"Not audited, for nothing is known of them: {', '.join(unknown)}")
    for flaw in flaws:
        print(f"Known flaw: {flaw}")
    if flaws:
        print("Take newer versions: python install/requirements.py pin (CONTRIBUTING.md)")
        return 1
    print("No known flaw in the dependencies.")
    return 0


if __name__ == "__main__":
    sys.exit(audit())
