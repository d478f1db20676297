"""The audit of `.ci/run`: a known flaw fails it, and what could not be looked at is named."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.servers import REPO

_AUDIT: dict[str, Any] = runpy.run_path(str(REPO / ".ci/audit.py"))

GOOD = {"name": "flask", "version": "3.1.3", "vulns": []}
BAD = {
    "name": "urllib3",
    "version": "2.5.0",
    "vulns": [{"id": "CVE-2025-66418", "fix_versions": ["2.6.0"], "aliases": []}],
}
HOPELESS = {"name": "idna", "version": "1", "vulns": [{"id": "X-1", "fix_versions": []}]}
#: What pip-audit 2.10 says where the index has no data on flaws; its exit status is 0.
UNKNOWN = {"name": "click", "skip_reason": "Dependency not found on PyPI"}


def audit(tmp_path: Path, script: str) -> int:
    """The exit status with a program in place of pip-audit."""
    program = tmp_path / "auditor.py"
    program.write_text(f"import json, sys\n{script}\n")
    status: int = _AUDIT["audit"]([sys.executable, str(program)])
    return status


def printing(dependencies: list[dict[str, Any]], status: int) -> str:
    text = json.dumps({"dependencies": dependencies, "fixes": []})
    return f"print({text!r})\nsys.exit({status})"


@pytest.mark.parametrize(
    ("dependencies", "status", "said"),
    [
        ([GOOD], 0, "No known flaw"),
        ([GOOD, BAD], 1, "Known flaw: urllib3 2.5.0: CVE-2025-66418, mended in 2.6.0\n"),
        ([HOPELESS], 1, "Known flaw: idna 1: X-1, mended in no version yet\n"),
        ([GOOD, UNKNOWN], 0, "Not audited, for nothing is known of them: click\n"),
        ([BAD, UNKNOWN], 1, "Not audited, for nothing is known of them: click\n"),
        ([UNKNOWN, UNKNOWN], 0, "skipped: Dependency not found on PyPI\n"),
        ([], 0, "skipped: pip-audit looked at no dependency\n"),
    ],
)
def test_the_result_of_an_audit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dependencies: list[dict[str, Any]],
    status: int,
    said: str,
) -> None:
    found = audit(tmp_path, printing(dependencies, int(any("vulns" in d for d in dependencies))))

    assert found == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sys.exit('Traceback\\nNo route to host')", "No route to host"),
        ("sys.exit(3)", "it ended with status 3"),
        ("print('no json')", "pip-audit printed no result"),
        ("print('[]')", "pip-audit printed no result"),
    ],
)
def test_an_audit_that_cannot_be_made_is_skipped_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, why: str
) -> None:
    assert audit(tmp_path, script) == 0
    assert capsys.readouterr().out == f"Audit of the dependencies skipped: {why}\n"


def test_it_takes_no_longer_than_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(_AUDIT["ran"].__globals__, "_TIMEOUT_S", 0.5)

    assert audit(tmp_path, "import time; time.sleep(50)") == 0
    assert "skipped: it took longer than 0.5 s" in capsys.readouterr().out


def test_it_looks_at_the_constraints_file_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without pip's resolver, so that what is audited is what `make install` installs."""
    audit(tmp_path, f"open({str(tmp_path / 'args')!r}, 'w').write(' '.join(sys.argv))")

    words = (tmp_path / "args").read_text()
    assert words.endswith(f"--requirement {REPO / 'qwen_wsgi/constraints.txt'}")
    assert "--disable-pip --require-hashes" in words


def test_ci_runs_it() -> None:
    assert ".ci/audit.py >" in (REPO / ".ci/run").read_text()
