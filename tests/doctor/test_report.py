"""What people and programs get to read."""

from __future__ import annotations

import json

import pytest

from qwen_wsgi.doctor import report
from qwen_wsgi.doctor.findings import Finding, Level, Teller
from qwen_wsgi.redaction import Redaction
from tests.kit.secrets import core, secret

TELL = Teller("files")
KEY = secret("doctor-report")

FINDINGS = [
    TELL.ok("a", "is well"),
    TELL.note("b", "is said"),
    TELL.skipped("c", "not installed here"),
    TELL.warn("d", "may break", "Look after it."),
    TELL.fail("e", "is broken", "Mend it."),
]


def test_a_finding_is_a_line_and_its_remedy_stands_beneath() -> None:
    assert [line for each in FINDINGS for line in report.lines(each)] == [
        "  ok       a: is well",
        "  note     b: is said",
        "  skipped  c: not installed here",
        "  warn     d: may break",
        "           to do: Look after it.",
        "  fail     e: is broken",
        "           to do: Mend it.",
    ]


@pytest.mark.parametrize(
    ("what", "remedy", "shown"),
    [
        ("The key was refused. Check the key.", "Check the key.", "The key was refused"),
        ("it is broken; check the key", "Check the key.", "it is broken; check the key"),
        ("it is broken: Check the key.", "Check the key.", "it is broken"),
        ("Check the key. It was refused.", "Check the key. Then restart.", "It was refused"),
        ("Check the key.", "Check the key.", "Check the key."),
        ("is broken", "", "is broken"),
        ("no answer. Not within 5 s.", "Look at the log.", "no answer. Not within 5 s."),
    ],
)
def test_a_remedy_does_not_repeat_the_finding(what: str, remedy: str, shown: str) -> None:
    found = report.clean(Finding("accounts", "a", Level.FAIL, what, remedy), Redaction())

    assert (found.what, found.remedy) == (shown, remedy)


def test_what_is_wrong_is_shown_first_and_once() -> None:
    assert list(report.text(FINDINGS, problems_only=False, colour=False)) == [
        "what is wrong",
        "  fail     files, e: is broken",
        "           to do: Mend it.",
        "  warn     files, d: may break",
        "           to do: Look after it.",
        "",
        "files",
        "  ok       a: is well",
        "  note     b: is said",
        "  skipped  c: not installed here",
        "",
        report.summary(FINDINGS),
    ]
    assert list(report.text(FINDINGS, problems_only=True, colour=True))[1] == (
        "  \x1b[31mfail   \x1b[0m  files, e: is broken"
    )


def test_the_last_line_counts() -> None:
    assert report.summary(FINDINGS).startswith("1 ok, 1 note, 1 skipped, 1 warn, 1 fail. ")
    assert report.summary(FINDINGS).endswith("see the lines marked fail.")
    assert report.summary(FINDINGS[:4]).endswith("see the lines marked warn.")
    assert report.summary(FINDINGS[:3]).endswith("No problem was found in what was checked.")


def test_programs_get_all_of_it() -> None:
    value = json.loads(report.as_json(FINDINGS))

    assert value["findings"][4] == {
        "check": "files",
        "subject": "e",
        "level": "fail",
        "what": "is broken",
        "remedy": "Mend it.",
    }
    assert value["counts"] == {"ok": 1, "note": 1, "skipped": 1, "warn": 1, "fail": 1}


def test_nothing_secret_and_nothing_that_controls_a_terminal_gets_through() -> None:
    odd = TELL.fail(f"x {KEY}", "a\x1b[2J\nb sk-0123456789abcdef", f"use {KEY}")

    found = report.clean(odd, Redaction((KEY,)))

    assert core(KEY) not in str(found)
    assert "0123456789" not in str(found)
    assert found.what == "a?[2J b sk-…cdef"
    assert found.level is Level.FAIL
