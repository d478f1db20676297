"""What the running server says of itself."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from qwen_wsgi import __version__, net
from qwen_wsgi.doctor import server
from qwen_wsgi.doctor.findings import Finding, Level
from tests.fakes.machine import FakeMachine, faults, levels, of, one
from tests.kit.installed_machine import Load

BIND = net.parse("127.0.0.1:8080")


def answer(status: str = "ok", code: int = 200, **more: Any) -> tuple[int, bytes]:
    body = {
        "status": status,
        "version": __version__,
        "sandbox": False,
        "in_flight": 3,
        "accounts": [{"name": "dashscope"}],
        **more,
    }
    return code, json.dumps(body).encode()


def found_at(
    machine: FakeMachine, *names: str, has_unit: bool = False, same: bool = True
) -> list[Finding]:
    return list(
        server.health(BIND, names or ("dashscope",), machine, has_unit=has_unit, same_settings=same)
    )


def test_a_good_server(machine: FakeMachine) -> None:
    machine.health = answer()

    found = one(found_at(machine))

    assert (found.level, "3 call(s) in flight" in found.what) == (Level.OK, True)


@pytest.mark.parametrize(
    ("error", "level", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "fail", "no server listens"),
        (FileNotFoundError(2, "No such file"), "fail", "there is no socket"),
        (PermissionError(13, "denied"), "skipped", "may not connect"),
        (TimeoutError("timed out"), "fail", "no answer to GET /health within 5 s"),
        (http.client.BadStatusLine("SSH-2.0"), "fail", "another program listens there"),
    ],
)
def test_a_server_that_does_not_answer(
    machine: FakeMachine, error: Exception, level: str, words: str
) -> None:
    machine.health = error

    found = one(found_at(machine))

    assert (found.level.value, words in found.what, bool(found.remedy)) == (level, True, True)


def test_how_it_is_started_depends_on_systemd(machine: FakeMachine) -> None:
    assert "serve" in one(found_at(machine)).remedy
    assert "systemctl" in one(found_at(machine, has_unit=True)).remedy


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"status": "ok"}'])
def test_somebody_else_answers(machine: FakeMachine, body: bytes) -> None:
    machine.health = (200, body)

    assert "another program" in one(faults(found_at(machine))).what


@pytest.mark.parametrize(
    ("status", "code", "level"),
    [
        ("draining", 503, "warn"),
        ("no_usable_account", 503, "fail"),
        ("login_unsaved", 200, "fail"),
        ("something new", 200, "warn"),
    ],
)
def test_a_server_that_is_not_well(
    machine: FakeMachine, status: str, code: int, level: str
) -> None:
    machine.health = answer(status, code)

    fault = one(faults(found_at(machine)))

    assert (fault.level.value, status in fault.what) == (level, True)


def plan_of(**window: Any) -> list[dict[str, Any]]:
    usual = {
        "window": "5h",
        "kind": "rolling",
        "unit": "calls",
        "used": 95,
        "limit": 100.0,
        "share": 0.95,
        "calls": 95,
        "tokens": 9,
        "spent": False,
        "ends_at": 1_795_176_000,
        "free_at": None,
        "forecast_at": None,
        "told_by_vendor": False,
    }
    return [{"name": "dashscope", "plan": {"windows": [{**usual, **window}]}}]


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({}, "5h: 95 of 100 calls (95%)"),
        ({"spent": True, "free_at": 1_795_176_000, "told_by_vendor": True}, "SPENT until 2026-11"),
    ],
)
def test_a_plan_that_is_nearly_spent_is_told(
    machine: FakeMachine, window: dict[str, Any], words: str
) -> None:
    machine.health = answer(accounts=plan_of(**window))

    fault = one(faults(found_at(machine)))

    assert (fault.level, fault.subject) == (Level.WARN, "dashscope")
    assert words in fault.what
    assert "usage --plans" in fault.remedy


def test_a_plan_with_room_is_not(machine: FakeMachine) -> None:
    machine.health = answer(accounts=[*plan_of(share=0.5), {"name": "x", "plan": None}, "odd"])

    assert not [each for each in faults(found_at(machine)) if "plan" in each.what]


def test_the_sandbox_is_noted(machine: FakeMachine) -> None:
    machine.health = answer(sandbox=True)

    assert "fake upstream" in one(of(found_at(machine), Level.NOTE)).what


def test_an_old_process_still_runs(machine: FakeMachine) -> None:
    machine.health = answer(version="0.0.1")

    assert "restart" in one(faults(found_at(machine))).remedy


def test_the_server_sees_other_accounts(machine: FakeMachine) -> None:
    machine.health = answer()

    found = found_at(machine, "oauth")

    assert "lacks the account(s) oauth" in one(faults(found)).what
    assert "this command did not find: dashscope" in one(of(found, Level.NOTE)).what
    assert faults(found_at(machine, "oauth", same=False)) == []


@pytest.mark.parametrize(
    ("hard", "level"), [(524_288, "ok"), (-1, "ok"), (3152, "ok"), (3151, "warn")]
)
def test_the_limit_of_open_files(machine: FakeMachine, load: Load, hard: int, level: str) -> None:
    machine.files = (1024, hard)

    assert one(server.open_files(load(), machine)).level.value == level


def test_the_whole_check(machine: FakeMachine, load: Load) -> None:
    machine.health = answer()

    found = list(
        server.check(load(), BIND, ["dashscope"], machine, has_unit=False, same_settings=True)
    )
    unknown = list(
        server.check(
            load(PORT=0),
            net.parse("127.0.0.1:0"),
            [],
            machine,
            has_unit=True,
            same_settings=True,
        )
    )

    assert levels(found) == {"127.0.0.1:8080": "ok", "open files": "ok"}
    assert levels(unknown) == {"address": "skipped"}
