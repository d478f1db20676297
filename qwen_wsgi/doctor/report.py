"""The findings as text for people, or as JSON for programs. No secret gets through."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.logs import Redaction

_WIDTH: Final = max(len(level.value) for level in Level)
_REMEDY: Final = " " * (_WIDTH + 4) + "to do: "


def clean(finding: Finding, redaction: Redaction) -> Finding:
    """The finding without secrets, and without what would control a terminal."""

    def safe(text: str) -> str:
        text = redaction.redact(" ".join(text.split()))
        return "".join(char if char.isprintable() else "?" for char in text)

    return replace(
        finding,
        subject=safe(finding.subject),
        what=safe(finding.what),
        remedy=safe(finding.remedy),
    )


def lines(finding: Finding) -> Iterable[str]:
    """One finding: a line, and what to do about it."""
    yield f"  {finding.level.value:<{_WIDTH}}  {finding.subject}: {finding.what}"
    if finding.remedy:
        yield _REMEDY + finding.remedy


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each level."""
    levels = [finding.level for finding in findings]
    return {level.value: levels.count(level) for level in Level}


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    told = counts(findings)
    parts = ", ".join(f"{number} {name}" for name, number in told.items() if number)
    if told["fail"]:
        verdict = "Something does not work: see what says fail."
    elif told["warn"]:
        verdict = "It works; see what says warn."
    else:
        verdict = "Nothing is wrong, as far as was looked."
    return f"{parts}. {verdict}"


def as_json(findings: Sequence[Finding]) -> str:
    """`{"findings": [{"check", "subject", "level", "what", "remedy"}], "counts": {level: n}}`."""
    rows: list[dict[str, Any]] = [
        {
            "check": finding.check,
            "subject": finding.subject,
            "level": finding.level.value,
            "what": finding.what,
            "remedy": finding.remedy,
        }
        for finding in findings
    ]
    return json.dumps({"findings": rows, "counts": counts(findings)}, indent=2, ensure_ascii=False)
