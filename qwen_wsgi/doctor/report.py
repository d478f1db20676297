"""Renders findings as text for people, or as JSON for programs; secrets are masked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.redaction import Redaction

_WIDTH: Final = max(len(level.value) for level in Level)
_REMEDY: Final = " " * (_WIDTH + 4) + "to do: "

#: What is wrong, the worst first.
_WRONG: Final = (Level.FAIL, Level.WARN)

#: Colours by ECMA-48: red, yellow, green, and dim for what needs no attention.
_COLOURS: Final = {
    Level.FAIL: "\x1b[31m",
    Level.WARN: "\x1b[33m",
    Level.OK: "\x1b[32m",
    Level.NOTE: "\x1b[2m",
    Level.SKIPPED: "\x1b[2m",
}
_PLAIN: Final = "\x1b[0m"


def clean(finding: Finding, redaction: Redaction) -> Finding:
    """Mask secrets in a finding, remove terminal control characters, and say nothing twice."""

    def safe(text: str) -> str:
        text = redaction.redact(" ".join(text.split()))
        return "".join(char if char.isprintable() else "?" for char in text)

    remedy = safe(finding.remedy)
    return replace(
        finding,
        subject=safe(finding.subject),
        what=_without(safe(finding.what), remedy),
        remedy=remedy,
    )


def _without(what: str, remedy: str) -> str:
    """The finding without the sentences that its remedy says, too: an error that a client gets has
    both in one text."""
    said = _bare(remedy)
    if not said:
        return what
    sentences = re.split(r"(?<=[.!?]) ", what)
    kept = [each for each in sentences if _bare(each) not in said]
    shorter = " ".join(kept) if kept else what
    # Half a sentence, after a semicolon or a colon.
    for end in (f"; {remedy}", f": {remedy}", f", {remedy}"):
        shorter = shorter.removesuffix(end).removesuffix(end.rstrip("."))
    return shorter if shorter == what else shorter.rstrip(".")


def _bare(text: str) -> str:
    return text.strip().rstrip(".!").lower()


def text(
    findings: Sequence[Finding], *, problems_only: bool, colour: bool, complete: bool = True
) -> Iterator[str]:
    """Render all of it, as lines: what is wrong, then what was checked, then the verdict.

    Args:
        problems_only: leave out what is not wrong.
        complete: all checks were run.
    """
    wrong = [finding for level in _WRONG for finding in findings if finding.level is level]
    if wrong:
        yield "what is wrong"
        for finding in wrong:
            yield from lines(finding, colour=colour, group=finding.check)
        yield ""
    if not problems_only:
        yield from _others([each for each in findings if each.level not in _WRONG], colour)
    yield summary(findings) if complete else "Stopped before everything was checked."


def _others(findings: Sequence[Finding], colour: bool) -> Iterator[str]:
    """The findings in the order of the checks, each group with its name."""
    name = ""
    for finding in findings:
        if finding.check != name:
            name = finding.check
            yield name
        yield from lines(finding, colour=colour)
    yield ""


def lines(finding: Finding, *, colour: bool = False, group: str = "") -> Iterable[str]:
    """Render one finding: a line, and a second one with the remedy.

    Args:
        group: the name of its check, where the line does not stand below it.
    """
    level = f"{finding.level.value:<{_WIDTH}}"
    if colour:
        level = f"{_COLOURS[finding.level]}{level}{_PLAIN}"
    where = f"{group}, " if group and group != finding.subject else ""
    yield f"  {level}  {where}{finding.subject}: {finding.what}"
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
