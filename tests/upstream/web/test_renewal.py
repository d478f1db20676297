"""The operator's web token is renewed before it ends: once, kept, and only by a better one."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.credentials.kept_web_token import FILE, KeptWebToken
from qwen_wsgi.credentials.web import WebCredential, operator_account
from qwen_wsgi.protocol.web.token import WebToken, packed, parse
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.web.renewal import WebRenewal
from qwen_wsgi.upstream.web.site import WebSite
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import settings_of

DAY_S = 86400.0


class Box:
    """A server with a web token of its own, at the sandbox."""

    def __init__(self, site: Sandbox, clock: FakeClock, token: WebToken, directory: Path) -> None:
        self.clock, self.directory, self.token = clock, directory, token
        self.site = site
        self._settings = settings_of()
        self._transport = Transport(self._settings)

    def worker(
        self, later: Callable[[Callable[[], None]], None] = lambda work: work()
    ) -> tuple[WebRenewal, WebCredential]:
        account = self.account()
        site = WebSite(self._settings, self._transport, self.clock)
        assert isinstance(account.credential, WebCredential)
        renewal = WebRenewal(site, lambda: (account,), self.clock, later=later)
        return renewal, account.credential

    def account(self) -> Account:
        kept = KeptWebToken(self.directory, self.token)
        return operator_account(self.token, self.site.origin, self.clock, kept)

    @property
    def asked(self) -> int:
        return len([each for each in self.site.settle() if each.route == "web-auth"])


@contextmanager
def box_of(tmp_path: Path, *, left_s: float = 2 * DAY_S) -> Iterator[Box]:
    clock = FakeClock()
    with Sandbox() as site:
        site.web.clock = clock.now
        session = site.web.token("operator", left_s)
        yield Box(site, clock, parse(packed(WebToken(session, "a=1"))), tmp_path)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with box_of(tmp_path) as made:
        yield made


def test_a_token_that_ends_soon_is_renewed_and_kept_for_its_owner_alone(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "qwen_wsgi")
    renewal, credential = box.worker()
    old = credential.current().value
    renewal.look_after()

    new = credential.current()
    assert new.value != old
    assert new.cookies == "a=1"
    assert "valid for 30.0 days; the server renews it" in credential.status().detail
    file = box.directory / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "the web token was renewed account=web: it is valid for 30.0 days" in caplog.text
    assert new.value not in caplog.text
    # Another worker, and the next start of the server, use it as well.
    assert box.worker()[1].current().value == new.value
    assert box.asked == 2


def test_one_that_has_time_is_left_alone(tmp_path: Path) -> None:
    with box_of(tmp_path, left_s=4 * DAY_S) as box:
        renewal, _ = box.worker()
        renewal.look_after()
        assert box.asked == 0

        box.clock.advance(1.5 * DAY_S)
        renewal.look_after()
        assert box.asked == 2


def test_workers_renew_it_once(box: Box) -> None:
    workers = [box.worker() for _ in range(4)]
    threads = [threading.Thread(target=renewal.look_after) for renewal, _ in workers]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert box.asked == 2
    assert len({credential.current().value for _, credential in workers}) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("web=challenge", "captcha"),
        ("web=unauthorized", "refused the web token"),
        ("reset", ""),
        ("html-200", "neither events nor known JSON"),
    ],
)
def test_a_renewal_that_fails_is_told_and_tried_again_later(
    box: Box, caplog: pytest.LogCaptureFixture, fault: str, said: str
) -> None:
    renewal, credential = box.worker()
    old = credential.current().value
    box.site.control(faults={"web-auth": fault})
    renewal.look_after()
    renewal.look_after()  # nothing: it was just tried
    box.worker()[0].look_after()  # nor does another worker

    assert box.asked == 1
    assert credential.current().value == old
    status = credential.status()
    assert status.state is TokenState.FRESH
    assert "it was not renewed: " in status.detail
    assert said in status.detail
    assert "make a new compressed token" in status.remedy
    assert "the web token was not renewed account=web" in caplog.text
    assert old not in caplog.text

    box.site.control(clear_faults=True)
    box.clock.advance(6 * 3600 + 1)
    renewal.look_after()
    assert credential.current().value != old
    assert credential.status().remedy == ""


@pytest.mark.parametrize("problem", ["shorter", "of-another"])
def test_a_token_that_is_no_better_is_not_used(box: Box, problem: str) -> None:
    if problem == "shorter":
        box.site.web.renewed_s = DAY_S
    else:
        box.site.web.renewed_for = "mallory"
    renewal, credential = box.worker()
    old = credential.current().value
    renewal.look_after()

    assert credential.current().value == old
    assert "not renewed: chat.qwen.ai gave" in credential.status().detail


def test_one_that_has_ended_is_not_asked_about_and_says_what_to_do(box: Box) -> None:
    renewal, credential = box.worker()
    box.clock.advance(3 * DAY_S)
    renewal.look_after()

    assert box.asked == 0
    assert credential.status().state is TokenState.EXPIRED
    assert "Log in at chat.qwen.ai" in credential.status().remedy


def test_a_new_token_of_the_operator_counts_at_once(box: Box) -> None:
    box.worker()[0].look_after()
    box.token = WebToken(box.site.web.token("operator-2"))

    assert box.worker()[1].current().value == box.token.value


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"of": 5}', b"\xff" * 100, b"[" * 100_000]
)
def test_a_file_that_is_damaged_is_as_none(box: Box, content: bytes) -> None:
    (box.directory / FILE).write_bytes(content)

    assert box.worker()[1].current().value == box.token.value


def test_what_it_keeps_may_not_be_a_token(box: Box) -> None:
    value = {"of": box.token.digest, "token": "H4sInonsense", "tried_at": "x", "problem": 5}
    (box.directory / FILE).write_text(json.dumps(value))

    assert box.worker()[1].current().value == box.token.value


def test_a_directory_that_cannot_be_written_is_told(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    box.directory = box.directory / "missing" / "below"
    renewal, credential = box.worker()
    renewal.look_after()

    assert credential.current().value == box.token.value
    assert "a renewed web token cannot be kept account=web" in caplog.text
