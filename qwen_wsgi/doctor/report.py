"""Renders findings as text for people, or as JSON for programs; secrets are masked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.redaction import Redaction

_WIDTH: Final = max(len(level.value) for level in Level)
_REMEDY: Final = " " * (_WIDTH + 4) + "to do: "


def clean(finding: Finding, redaction: Redaction) -> Finding:
    """Mask secrets in a finding, and remove terminal control characters."""

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
    """Render one finding: a line, and a second one with the remedy."""
    yield f"  {finding.level.value:<{_WIDTH}}  {finding.subject}: {finding.what}"
    if finding.remedy:
        yield _REMEDY + finding.remedy


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Count the findings of each level."""
    levels = [finding.level for finding in findings]
    return {level.value: levels.count(level) for level in Level}


def summary(findings: Sequence[Finding]) -> str:
    """Render the last line: the counts and a verdict."""
    by_level = counts(findings)
    parts = ", ".join(f"{number} {name}" for name, number in by_level.items() if number)
    if by_level["fail"]:
        verdict = "Something does not work: see the lines marked fail."
    elif by_level["warn"]:
        verdict = "It works; see the lines marked warn."
    else:
        verdict = "No problem was found in what was checked."
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
