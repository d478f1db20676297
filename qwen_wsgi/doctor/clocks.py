"""Checks the clock: is the date plausible, was it set back, do the upstreams agree."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.upstream.routing.model_profiles import AS_OF_EPOCH

TELL: Final = Teller("clock")

_DAY_S: Final = 86_400.0
#: A date before that of the built-in model tables is wrong; with a month of tolerance.
_EARLIEST_S: Final = AS_OF_EPOCH - 31 * _DAY_S
_LATEST_S: Final = 4_102_444_800.0  # 2100-01-01
#: Logins are refreshed two minutes before they expire; `Date` has whole seconds.
_FAR_S: Final = 60.0
#: A refresh may date its file slightly ahead, so that others notice the change.
_AHEAD_S: Final = 60.0

_SET: Final = "Set the clock: sudo timedatectl set-ntp true"


class Sighting(NamedTuple):
    """An upstream's `Date` and our own time at its arrival, both in seconds since 1970."""

    theirs_s: float
    ours_s: float


def sighting(date: str, now_s: float) -> Sighting | None:
    """Read a `Date` header; None if it cannot be read."""
    try:
        return Sighting(parsedate_to_datetime(date).timestamp(), now_s)
    except (TypeError, ValueError, OverflowError):
        return None


def check(
    machine: Machine, files: Iterable[Path], sightings: Mapping[str, Sighting]
) -> Iterator[Finding]:
    """
    Args:
        files: none of them should have a date in the future.
        sightings: by host; empty if no upstream was called.
    """
    yield from date(machine)
    yield from files_ahead(machine, files)
    yield from compared(sightings)


def date(machine: Machine) -> Iterator[Finding]:
    """Whether the current date and the date of the last boot are plausible."""
    now_s = machine.now()
    if not _EARLIEST_S <= now_s <= _LATEST_S:
        yield TELL.fail("date", f"{_day(now_s)} is not plausible", _SET)
        return
    started_s = now_s - machine.boottime()
    if started_s < 0:
        yield TELL.fail("date", f"the machine would have booted on {_day(started_s)}", _SET)
    else:
        yield TELL.ok("date", f"{_day(now_s)}; the machine has been up since {_day(started_s)}")


def files_ahead(machine: Machine, files: Iterable[Path]) -> Iterator[Finding]:
    """Files with a date in the future: the clock was set back since they were written."""
    for path in files:
        try:
            ahead_s = os.stat(path).st_mtime - machine.now()
        except OSError:
            continue
        if ahead_s > _AHEAD_S:
            yield TELL.warn(
                str(path),
                f"is dated {ahead_s:.0f} s in the future: the clock is slow, or was set back",
                _SET,
            )


def compared(sightings: Mapping[str, Sighting]) -> Iterator[Finding]:
    """Compare our time with the upstreams'."""
    if not sightings:
        yield TELL.skipped("upstreams", "no upstream has sent its time")
    for host, seen in sightings.items():
        off_s = seen.ours_s - seen.theirs_s
        if abs(off_s) > _FAR_S:
            which = "ahead of" if off_s > 0 else "behind"
            yield TELL.warn(
                host,
                f"this machine's clock is {abs(off_s):.0f} s {which} the upstream's: logins are "
                "refreshed too late or too early",
                _SET,
            )
        else:
            yield TELL.ok(host, "its clock and ours agree")


def _day(at_s: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "an impossible date"
