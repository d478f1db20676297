"""`qwen-proxy calls`: what it prints, and what it asks for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.cli import calls, main
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.in_flight import Calls, Cancelled
from tests.fakes.upstream import settings_of

ROW = {
    "id": "req_1",
    "client": "anna",
    "endpoint": "/v1/messages",
    "model": None,
    "account": "plan",
    "state": "streaming",
    "seconds": 200.4,
    "received_bytes": 12345,
}


def run(*words: str | None, json_output: bool = False) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    action, id = words
    status = calls.run(
        settings_of(QWEN_PROXY_STATE_DIR="/nowhere/state"),
        str(action),
        id,
        json_output=json_output,
        out=out,
        err=err,
    )
    return status, out.getvalue(), err.getvalue()


def answer(monkeypatch: pytest.MonkeyPatch, found: Calls | Cancelled) -> list[Any]:
    asked: list[Any] = []

    def told(*arguments: Any) -> Any:
        asked.append(arguments)
        return found

    monkeypatch.setattr(calls, "asked_calls", told)
    monkeypatch.setattr(calls, "cancel_in_workers", told)
    return asked


def test_no_server() -> None:
    status, out, err = run("list", None)
    assert (status, out) == (1, "")
    assert "no running server" in err
    status, _, err = run("cancel", "x")
    assert (status, err) == (1, "qwen-proxy: no call 'x' is in flight.\n")


def test_the_calls_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {**ROW, "id": "x" * 60, "client": "a\x1b[1m", "endpoint": "/" * 60, "received_bytes": 0}
    answer(monkeypatch, Calls([ROW, odd], False, 2, 1))
    status, out, err = run("list", None)
    head, first, second = out.splitlines()
    assert status == 0
    assert head.split() == list(calls._HEAD)
    assert first.split()[:6] == ["req_1", "anna", "/v1/messages", "–", "plan", "streaming"]
    assert "3 min" in first
    assert "12,345 B" in first
    assert "x" * 60 in second
    assert "\x1b" not in second
    assert "/" * 39 + "…" in second
    assert err == "qwen-proxy: 1 workers did not answer in time.\n"


def test_the_calls_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, Calls([ROW], True, 2, 0))
    status, out, err = run("list", None, json_output=True)
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "object": "list",
        "data": [ROW],
        "has_more": True,
        "workers": 2,
        "silent_workers": 0,
    }


def test_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, Cancelled(1, 0))
    assert run("cancel", "req_1") == (0, "Cancelled: the call req_1.\n", "")
    assert asked == [(Path("/nowhere/state"), "req_1", "qwen-proxy calls cancel")]
    answer(monkeypatch, Cancelled(3, 0))
    assert run("cancel", "req_1")[1] == "Cancelled: 3 calls req_1.\n"
    answer(monkeypatch, Cancelled(0, 2))
    assert "(2 workers did not answer in time)" in run("cancel", "req_1")[2]


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("cancel", None), ("list", "x")):
        with pytest.raises(SettingsError):
            run(*words)
    assert main.main(["calls", "cancel"]) == main.EXIT_CONFIGURATION
    assert "wants the id" in capsys.readouterr().err
