"""What a check has found, and how much it matters."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How much a finding matters, the worst last. What could not be looked at is never ok."""

    OK = "ok"
    NOTE = "note"
    SKIPPED = "skipped"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: the group that it stands in.
        subject: what was looked at: a file, an account, a host, a setting.
        what: what was found, as half a sentence.
        remedy: what to do about it, as a sentence or a command; never empty for WARN and FAIL.
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
        """Worth knowing, and no fault."""
        return Finding(self.check, subject, Level.NOTE, what, remedy)

    def skipped(self, subject: str, why: str, remedy: str = "") -> Finding:
        """It could not be looked at, or there is nothing to look at."""
        return Finding(self.check, subject, Level.SKIPPED, why, remedy)

    def warn(self, subject: str, what: str, remedy: str) -> Finding:
        """It works, and may not for long or not for everybody."""
        return Finding(self.check, subject, Level.WARN, what, remedy)

    def fail(self, subject: str, what: str, remedy: str) -> Finding:
        """It does not work."""
        return Finding(self.check, subject, Level.FAIL, what, remedy)
