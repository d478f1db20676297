"""Whether the clock can be right."""

from __future__ import annotations

import os
from email.utils import formatdate
from pathlib import Path

import pytest

from qwen_wsgi.doctor import clocks
from qwen_wsgi.doctor.clocks import Sighting, sighting
from qwen_wsgi.doctor.findings import Level
from tests.fakes.machine import NOON_S, FakeMachine, faults, levels, of, one


@pytest.mark.parametrize(
    ("at_s", "level"),
    [(NOON_S, "ok"), (0.0, "fail"), (1_700_000_000.0, "fail"), (5e9, "fail"), (1e20, "fail")],
)
def test_the_date(machine: FakeMachine, at_s: float, level: str) -> None:
    machine.at_s = at_s

    assert levels(clocks.date(machine)) == {"date": level}


def test_a_machine_cannot_have_started_before_1970(machine: FakeMachine) -> None:
    machine.up_s = NOON_S + 1

    assert one(clocks.date(machine)).level is Level.FAIL


def test_a_file_from_the_future(machine: FakeMachine, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("")
    os.utime(path, (NOON_S + 30, NOON_S + 30))
    assert list(clocks.files_ahead(machine, [path, tmp_path / "none"])) == []

    os.utime(path, (NOON_S + 300, NOON_S + 300))

    assert "300 s in the future" in one(faults(clocks.files_ahead(machine, [path]))).what


@pytest.mark.parametrize(
    ("off_s", "words"), [(0, ""), (59, ""), (-59, ""), (61, "61 s ahead of"), (-90, "90 s behind")]
)
def test_our_time_beside_an_upstream_s(off_s: float, words: str) -> None:
    found = one(clocks.compared({"up.example": Sighting(NOON_S, NOON_S + off_s)}))

    assert found.level is (Level.WARN if words else Level.OK)
    assert words in found.what


def test_nobody_told_the_time(machine: FakeMachine) -> None:
    found = list(clocks.check(machine, [], {}))

    assert [each.subject for each in of(found, Level.SKIPPED)] == ["upstreams"]


def test_a_date_header() -> None:
    assert sighting(formatdate(NOON_S, usegmt=True), 5.0) == Sighting(NOON_S, 5.0)
    assert sighting("yesterday", 5.0) is None
    assert sighting("", 5.0) is None
