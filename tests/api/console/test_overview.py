"""The overview and the page of doctor."""

from __future__ import annotations

import pytest

from qwen_wsgi.console.doctor_process import DoctorProcess, Report
from tests.api.console.browsing import console, words_of
from tests.kit.secrets import core, secret


def test_the_overview_tells_accounts_and_the_box() -> None:
    key = secret("shown-in-console")
    with console(QWEN_UPSTREAM_API_KEY=key) as browser:
        browser.sign_in()
        page = browser.get("/console")

    words = words_of(page)
    assert "upstream ready, not tried yet" in words
    assert "http://127.0.0.1:9/v1" in words
    assert "0 calls in flight" in words
    assert core(key) not in page.text
    assert f"…{key[-4:]}" in words


def test_what_failed_is_told_with_what_to_do() -> None:
    with console() as browser:
        browser.sign_in()
        headers = {"Authorization": f"Bearer {browser.app.services.settings.admin_keys[0]}"}
        assert browser.app.chat(headers=headers).status_code >= 500
        words = words_of(browser.get("/console"))

    assert "failed" in words
    assert "ago" in words


def test_without_accounts_it_says_what_to_do() -> None:
    with console(QWEN_UPSTREAM_BASE_URL="", QWEN_PROXY_SANDBOX="0") as browser:
        browser.sign_in()
        assert "No account was found" in words_of(browser.get("/console"))


def test_the_sandbox_is_no_real_model() -> None:
    with console(QWEN_UPSTREAM_BASE_URL="", QWEN_PROXY_SANDBOX="1") as browser:
        browser.sign_in()
        assert "no real model is asked" in words_of(browser.get("/console"))


FOUND = Report(
    [
        {"check": "files", "subject": "/home", "level": "ok", "what": "fits", "remedy": ""},
        {"check": "net", "subject": "<b>", "level": "fail", "what": "is away", "remedy": "Wait."},
    ]
)


def asked(monkeypatch: pytest.MonkeyPatch, report: Report, **form: str) -> tuple[str, list[bool]]:
    """The page after a check with a result of the test's own, and whether upstreams were asked."""
    tried: list[bool] = []

    def run(self: DoctorProcess, *, calls: bool) -> Report:
        tried.append(calls)
        return report

    monkeypatch.setattr(DoctorProcess, "run", run)
    with console() as browser:
        browser.sign_in()
        assert browser.get("/console/doctor").status_code == 200
        assert tried == []  # on demand alone
        page = browser.change("/console/doctor", "/console/doctor", **form)
        return page.text, tried


def test_doctor_is_asked_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    page, calls = asked(monkeypatch, FOUND)

    assert calls == [False]
    assert page.index("is away") < page.index("All that was checked")
    assert "Wait." in page
    assert "&lt;b&gt;" in page


def test_doctor_tries_accounts_when_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    page, calls = asked(monkeypatch, Report(FOUND.findings[:1]), calls="on")

    assert calls == [True]
    assert "No problem was found" in page


def test_a_check_that_failed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    page, _ = asked(monkeypatch, Report((), "A check is running already."))

    assert "A check is running already." in page
