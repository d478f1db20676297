"""The result of a check, and its level."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How serious a finding is, the worst last. What could not be checked is never ok."""

    OK = "ok"
    NOTE = "note"
    SKIPPED = "skipped"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: the group that it belongs to.
        subject: what was checked: a file, an account, a host, a setting.
        what: what was found, as a clause.
        remedy: what to do, as a sentence or a command; never empty for WARN and FAIL.
    """

    check: str
    subject: str
    level: Level
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Teller:
    """Makes the findings of one check."""

    check: str

    def ok(self, subject: str, what: str) -> Finding:
        """It is as it should be."""
        return Finding(self.check, subject, Level.OK, what)

    def note(self, subject: str, what: str, remedy: str = "") -> Finding:
        """Worth knowing, and not a fault."""
        return Finding(self.check, subject, Level.NOTE, what, remedy)

    def skipped(self, subject: str, why: str, remedy: str = "") -> Finding:
        """It could not be checked, or there is nothing to check."""
        return Finding(self.check, subject, Level.SKIPPED, why, remedy)

    def warn(self, subject: str, what: str, remedy: str) -> Finding:
        """It works, but perhaps not for long or not for everybody."""
        return Finding(self.check, subject, Level.WARN, what, remedy)

    def fail(self, subject: str, what: str, remedy: str) -> Finding:
        """It does not work."""
        return Finding(self.check, subject, Level.FAIL, what, remedy)
