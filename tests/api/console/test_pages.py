"""The pages of calls, usage, chats and logins, without a browser."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.api.console.live import Position, position_of
from qwen_wsgi.state.database.calls import line_of
from tests.api.console.browsing import ORIGIN, Browser, console, token_in, words_of
from tests.fakes.clock import NOON_S, FakeClock
from tests.kit.call_rows import call

HOSTILE = "=<img src=x onerror=alert(1)>\u202e"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with console(FakeClock(), state_dir=tmp_path / "state") as made:
        made.sign_in()
        yield made


def wrote(browser: Browser, **members: object) -> None:
    writer = browser.app.services.ledger._writer
    assert writer is not None
    writer.append(line_of(call(**{"at": NOON_S - 60, **members})))


def test_names_that_clients_choose_are_texts_and_no_formulas(browser: Browser) -> None:
    wrote(browser, model=HOSTILE, client=HOSTILE, error=HOSTILE, outcome="failed", request_id="a/b")
    for path in (
        "/console/usage?by=model",
        "/console/usage?by=client",
        "/console/live",
        "/console/live/call?id=a/b",
    ):
        page = browser.get(path)
        assert page.status_code == 200, path
        assert "<img" not in page.text
        assert "&lt;img" in page.text
        assert "\u202e" not in page.text
    made = browser.get("/console/usage/calls.csv?by=model")
    assert made.headers["content-disposition"].startswith("attachment; filename=")
    (_, row) = csv.reader(io.StringIO(made.text))
    assert row[:3] == ["'" + HOSTILE, "1", "1"]


def test_pages_and_their_scripts_need_a_session(browser: Browser) -> None:
    stranger = Browser(browser.app)
    stranger.app.client.delete_cookie("qwen-proxy-console")
    for path in ("/console/live", "/console/usage", "/console/try", "/console/login-to-qwen"):
        assert "Key of an admin" in stranger.get(path).text
    for path in ("/console/live/events", "/console/usage/calls.csv"):
        assert stranger.get(path).status_code == 401
    answer = stranger.get("/console/try/call?id=x")
    assert answer.status_code == 401
    assert answer.get_json()["error"]["code"] == "session_ended"


@pytest.mark.parametrize(
    "path",
    ["live/cancel", "login-to-qwen/start", "login-to-qwen/stop", "try/chat", "try/snippets"],
)
def test_a_change_needs_the_token(browser: Browser, path: str) -> None:
    assert browser.send(f"/console/{path}", id="x").status_code == 403


def test_a_call_that_nobody_knows(browser: Browser) -> None:
    page = browser.get("/console/live/call?id=nobody")
    assert page.status_code == 404
    assert "No call 'nobody' is in flight" in words_of(page)


def test_without_a_ledger_the_pages_say_so(tmp_path: Path) -> None:
    with console(state_dir=tmp_path / "state", QWEN_PROXY_LEDGER_DAYS="0") as browser:
        browser.sign_in()
        assert "keeps no record of calls" in words_of(browser.get("/console/live"))
        usage = browser.get("/console/usage")
        assert usage.status_code == 404
        assert "keeps no record of calls" in words_of(usage)


def test_there_are_only_so_many_open_pages(browser: Browser) -> None:
    in_flight = browser.app.services.in_flight
    taken = 0
    while in_flight.begin_watch():
        taken += 1
    assert taken == 16
    assert browser.get("/console/live/events").status_code == 503
    in_flight.end_watch()
    stream = browser.get("/console/live/events")
    assert stream.headers["x-accel-buffering"] == "no"
    first = next(iter(stream.response))
    assert first == b"retry: 2000\n\n"
    stream.close()
    assert in_flight.begin_watch()


def test_what_a_page_has_seen_is_read_back() -> None:
    seen = Position(95.5, {"b0b0": 7, "c0c0": 1764452378123})
    assert position_of(str(seen), 100.0) == seen
    assert position_of("95.5;b0b0=-1;c0c0=x;d0d0", 100.0) == (95.5, {})


@pytest.mark.parametrize(
    ("text", "own_s"),
    [("", 100), ("x", 100), ("inf", 100), ("101", 100), ("5", 90), ("-inf", 90), ("nan", 90)],
)
def test_a_page_asks_for_the_last_seconds_alone(text: str, own_s: float) -> None:
    assert position_of(text, 100.0).own_s == own_s


def test_a_request_is_told_as_curl_and_python(browser: Browser) -> None:
    token = token_in(browser.get("/console/try"))
    answer = browser.app.client.post(
        "/console/try/snippets",
        json={"dialect": "messages", "body": {"model": HOSTILE, "max_tokens": 5}},
        headers={"Origin": ORIGIN, "X-CSRF-Token": token},
    )
    told = answer.get_json()
    assert "x-api-key: $QWEN_PROXY_KEY" in told["curl"]
    assert "from anthropic import Anthropic" in told["python"]
    wrong = browser.app.client.post(
        "/console/try/snippets",
        json={"dialect": "x"},
        headers={"Origin": ORIGIN, "X-CSRF-Token": token},
    )
    assert wrong.status_code == 400
