"""The device flow from the code to the file, against the look-alike's endpoints."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.files import document
from qwen_wsgi.credentials.oauth import device_flow
from qwen_wsgi.credentials.oauth.device_flow import (
    CodeShown,
    DeviceLogin,
    Event,
    LoginBlocked,
    LoginDenied,
    LoginExpired,
    LoginFailed,
    LoginNotSaved,
    LoginOffline,
    Waiting,
    write_login,
)
from qwen_wsgi.credentials.oauth.token_endpoint import TokenAnswer, TokenEndpoint
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.clock import FakeClock
from tests.fakes.raw_server import RawServer, whole
from tests.kit.privileges import as_ordinary_user


class Time(FakeClock):
    """Passes while somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def sandbox(clock: Time) -> Iterator[Sandbox]:
    with Sandbox(clock=clock.now) as running:
        yield running
        state = running.state()
    assert state["internal_errors"] == 0, state["last_failure"]


class Run:
    """One login, and the events that it reported."""

    def __init__(
        self, origin: str, clock: Time, during: Callable[[Event, int], object] = lambda e, n: None
    ) -> None:
        """Args: during: called with each event and the number of those before it."""
        self.events: list[Event] = []

        def report(event: Event) -> None:
            during(event, len(self.events))
            self.events.append(event)

        endpoint = TokenEndpoint(origin, clock=clock)
        self.login = DeviceLogin(endpoint, clock=clock, sleep=clock.sleep, report=report)

    @property
    def told(self) -> list[str]:
        return [event.why for event in self.events if isinstance(event, Waiting)]

    def fails(self, kind: type[LoginFailed]) -> LoginFailed:
        with pytest.raises(LoginFailed) as caught:
            self.login.run()
        assert type(caught.value) is kind, caught.value
        assert caught.value.remedy
        return caught.value


def polls(sandbox: Sandbox) -> int:
    return int(sandbox.state()["oauth"]["device_polls"])


# --- the ways it ends ----------------------------------------------------------------------------


def test_a_login(sandbox: Sandbox, clock: Time) -> None:
    sandbox.control(approve_after_polls=2)
    run = Run(sandbox.origin, clock)

    answer = run.login.run()

    assert answer.access_token.startswith("sandbox-at-")
    shown = run.events[0]
    assert isinstance(shown, CodeShown)
    assert shown.code.user_code in shown.code.url
    assert shown.left_s == 900
    assert run.told == ["pending", "pending"]
    assert clock.slept == [2, 2, 2]
    assert [e.left_s for e in run.events if isinstance(e, Waiting)] == [898, 896]
    assert sandbox.state()["oauth"]["pkce_failures"] == 0


@pytest.mark.parametrize(("verdict", "kind"), [("deny", LoginDenied), ("expire", LoginExpired)])
def test_denied_and_expired_stop_at_once(
    sandbox: Sandbox, clock: Time, verdict: str, kind: type[LoginFailed]
) -> None:
    def during(_event: Event, before: int) -> None:
        if before == 2:
            sandbox.control({verdict: "*"})

    run = Run(sandbox.origin, clock, during)

    run.fails(kind)
    assert run.told == ["pending", "pending"]
    assert polls(sandbox) == 3


def test_nobody_polls_after_the_code_expired(sandbox: Sandbox, clock: Time) -> None:
    sandbox.control(device_ttl_s=9)
    run = Run(sandbox.origin, clock)

    failure = run.fails(LoginExpired)

    assert str(failure) == "Nobody confirmed the login in time."
    assert clock.slept == [2, 2, 2, 2, 1]
    assert polls(sandbox) == 4


def test_slow_down_slows_down_for_good(sandbox: Sandbox, clock: Time) -> None:
    sandbox.control(slow_down_polls=6, approve_after_polls=7)
    run = Run(sandbox.origin, clock)

    run.login.run()

    assert run.told == ["slow_down"] * 6 + ["pending"]
    assert clock.slept == [2, 3, 4.5, 6.75, 10, 10, 10, 10]


def test_another_throttling_is_obeyed_for_as_long_as_it_says(sandbox: Sandbox, clock: Time) -> None:
    sandbox.control(
        approve_after_polls=0, next={"spec": "status=429, retry-after=30", "route": "token"}
    )
    run = Run(sandbox.origin, clock)

    run.login.run()
    assert run.told == ["slow_down"]
    assert clock.slept == [2, 30]


def test_an_interval_of_the_service_is_kept(clock: Time) -> None:
    code = {"device_code": "d", "user_code": "AB", "verification_uri": "https://x/", "interval": 7}
    tokens = {"access_token": "a" * 20, "refresh_token": "r" * 20}
    with RawServer(whole(json.dumps(code).encode()), whole(json.dumps(tokens).encode())) as server:
        Run(server.url, clock).login.run()
    assert clock.slept == [7]


def test_offline_at_the_start_ends_at_once(sandbox: Sandbox, clock: Time) -> None:
    origin = sandbox.origin
    sandbox.stop()
    run = Run(origin, clock)

    assert "Connection refused" in str(run.fails(LoginOffline))
    assert clock.slept == []
    assert run.events == []


def test_offline_later_is_told_and_survived(sandbox: Sandbox, clock: Time) -> None:
    def during(_event: Event, before: int) -> None:
        if before == 1:
            sandbox.stop()
        if before == 3:
            sandbox.start()
            sandbox.control(approve="*")

    run = Run(sandbox.origin, clock, during)

    assert run.login.run().refresh_token
    assert run.told == ["pending", "offline", "offline"]
    (detail,) = {e.detail for e in run.events if isinstance(e, Waiting) and e.why == "offline"}
    assert detail.endswith("cannot be reached: Connection refused")


def test_offline_to_the_end_is_no_expiry(sandbox: Sandbox, clock: Time) -> None:
    """The person may well have confirmed."""
    sandbox.control(device_ttl_s=9)
    run = Run(sandbox.origin, clock, lambda e, n: sandbox.stop())

    assert "Connection refused" in str(run.fails(LoginOffline))
    assert run.told == ["offline"] * 4


@pytest.mark.parametrize("route", ["device", "token"])
@pytest.mark.parametrize("spec", ["html-200", "token-error=x, status=403"])
def test_a_firewalls_page_ends_it_at_once(
    sandbox: Sandbox, clock: Time, route: str, spec: str
) -> None:
    sandbox.control(faults={route: spec})
    run = Run(sandbox.origin, clock)

    failure = run.fails(LoginBlocked if spec == "html-200" else LoginFailed)
    assert "200 (text/html" in str(failure) or "status 403" in str(failure)
    assert run.told == []


@pytest.mark.parametrize("spec", ["status=500", "html-502", "empty-200", "reset", "not-json"])
def test_a_service_in_trouble_fails_at_the_start(sandbox: Sandbox, clock: Time, spec: str) -> None:
    sandbox.control(faults={"device": spec})
    Run(sandbox.origin, clock).fails(LoginFailed)


@pytest.mark.parametrize("spec", ["status=500", "html-502", "empty-200", "reset", "not-json"])
def test_a_hiccup_of_the_service_is_survived(sandbox: Sandbox, clock: Time, spec: str) -> None:
    sandbox.control(approve_after_polls=0, next={"spec": spec, "route": "token", "count": 4})
    run = Run(sandbox.origin, clock)

    assert run.login.run().refresh_token
    assert run.told == ["server_error"] * 4


def test_a_service_that_stays_in_trouble_ends_it(sandbox: Sandbox, clock: Time) -> None:
    sandbox.control(faults={"token": "html-502"})
    run = Run(sandbox.origin, clock)

    assert "status 502" in str(run.fails(LoginFailed))
    assert run.told == ["server_error"] * 4


def test_a_throttled_start_says_for_how_long(sandbox: Sandbox, clock: Time) -> None:
    sandbox.control(faults={"device": "status=429, retry-after=30"})

    failure = Run(sandbox.origin, clock).fails(LoginFailed)
    assert "refuses further requests for 30 s" in str(failure)


def test_a_code_that_died_after_a_lost_answer_says_so(clock: Time) -> None:
    """The tokens were in it: without the hint "expired" would be a riddle."""
    code = {"device_code": "d", "user_code": "AB", "verification_uri": "https://x/"}
    gone = json.dumps({"error": "expired_token"}).encode()
    with RawServer(
        whole(json.dumps(code).encode()), lambda peer: peer.reset(), whole(gone, "401 x")
    ) as server:
        failure = Run(server.url, clock).fails(LoginExpired)
    assert "an answer was lost before" in str(failure)


def test_an_unknown_code_ends_it(sandbox: Sandbox, clock: Time) -> None:
    sandbox.control(faults={"token": "token-error=invalid_grant"})
    assert "invalid_grant" in str(Run(sandbox.origin, clock).fails(LoginFailed))


def test_a_login_without_a_refresh_token_is_none(sandbox: Sandbox, clock: Time) -> None:
    """qwen-code would take a file without one for "not logged in"."""
    sandbox.control(approve_after_polls=0, faults={"token": "no-refresh-token"})
    assert "no refresh token" in str(Run(sandbox.origin, clock).fails(LoginFailed))


def test_ctrl_c_goes_through(sandbox: Sandbox, clock: Time) -> None:
    def interrupt(event: Event, _before: int) -> None:
        if isinstance(event, Waiting):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(sandbox.origin, clock, interrupt).login.run()


def test_every_login_has_a_verifier_of_its_own(clock: Time) -> None:
    code = {"device_code": "d", "user_code": "AB", "verification_uri": "https://x/"}
    denied = json.dumps({"error": "access_denied"}).encode()
    answers = [whole(json.dumps(code).encode()), whole(denied, "400 x")]
    with RawServer(*answers, *answers) as server:
        for _ in range(2):
            Run(server.url, clock).fails(LoginDenied)
    challenges = {request.rpartition(b"code_challenge=")[2] for request in server.requests[::2]}
    verifiers = {request.rpartition(b"code_verifier=")[2] for request in server.requests[1::2]}

    assert len(challenges) == len(verifiers) == 2
    assert all(len(verifier) == 43 for verifier in verifiers)


# --- the file ------------------------------------------------------------------------------------


def answer(**changes: Any) -> TokenAnswer:
    values: dict[str, Any] = {
        "access_token": "access-of-the-new-login",
        "token_type": "Bearer",
        "refresh_token": "refresh-of-the-new-login",
        "resource_url": "portal.qwen.ai",
        "expires_in_s": 21600.0,
        "sent_wall_ms": 1_795_176_000_000,
        "sent_boottime_s": 1000.0,
        "received_wall_ms": 1_795_176_000_100,
        "clock_skew_s": None,
    }
    return TokenAnswer(**{**values, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qwen" / "oauth_creds.json"


def write(path: Path, clock: Time, **changes: Any) -> str:
    write_login(path, answer(**changes), clock=clock)
    return path.read_text()


def test_a_first_login_looks_as_qwen_code_writes_it(path: Path, clock: Time) -> None:
    text = write(path, clock)

    assert text == (
        "{\n"
        '  "access_token": "access-of-the-new-login",\n'
        '  "refresh_token": "refresh-of-the-new-login",\n'
        '  "token_type": "Bearer",\n'
        '  "resource_url": "portal.qwen.ai",\n'
        '  "expiry_date": 1795197600000\n'
        "}"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]
    assert document.parse(text.encode(), None).expires_at_ms == 1_795_197_600_000


def test_unknown_keys_and_their_order_stay(path: Path, clock: Time) -> None:
    path.parent.mkdir()
    old = {
        "note": "ßecret ünicode \ud83d\ude00",
        "expiry_date": 1,
        "refresh_token": "old",
        "nested": {"b": [1, 2.5, None], "a": True},
        "access_token": "old",
        "resource_url": "of-another-account.example",
    }
    path.write_text(json.dumps(old))

    new = json.loads(write(path, clock))
    assert list(new) == [*old, "token_type"]
    assert new["note"] == "ßecret ünicode 😀"
    assert new["nested"] == old["nested"]
    assert new["resource_url"] == "portal.qwen.ai"

    assert "resource_url" not in json.loads(write(path, clock, resource_url=None))


def test_a_life_that_is_not_said_is_half_an_hour(path: Path, clock: Time) -> None:
    new = json.loads(write(path, clock, expires_in_s=None))
    assert new["expiry_date"] == 1_795_176_000_000 + 1_800_000


@pytest.mark.parametrize(
    "old", ["", "{", "[]", "null", '{"a": NaN}', "\ufeff{}", "[" * 100_000, '{"a": "\\ud800"}']
)
def test_a_broken_or_odd_file_is_repaired(path: Path, clock: Time, old: str) -> None:
    path.parent.mkdir()
    path.write_text(old)

    assert document.parse(write(path, clock).encode(), None).refresh_token


def test_the_mtime_grows_and_a_symlink_stays(path: Path, clock: Time, tmp_path: Path) -> None:
    path.parent.mkdir()
    real = tmp_path / "real.json"
    real.write_text("{}")
    path.symlink_to(real)
    future_ns = time.time_ns() + 10**15
    os.utime(real, ns=(future_ns, future_ns))

    write(path, clock)

    assert path.is_symlink()
    assert real.stat().st_mtime_ns > future_ns + 1_000_000


def test_a_full_disk_spares_the_old_login(path: Path, clock: Time) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"refresh_token": "old", "long": "x" * 2000}))
    old = path.read_text()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(LoginNotSaved, match="File too large") as caught:
            write(path, clock)
        with pytest.raises(LoginNotSaved):
            device_flow.check_writable(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert "Make room" in caught.value.remedy
    assert path.read_text() == old
    assert os.listdir(path.parent) == [path.name]


def test_a_read_only_directory_is_found_before_the_login(path: Path, clock: Time) -> None:
    path.parent.mkdir(mode=0o500)
    with (
        as_ordinary_user(path.parent),
        pytest.raises(LoginNotSaved, match="Permission denied"),
    ):
        device_flow.check_writable(path)


def test_what_cannot_be_a_login_file_is_found_before_the_login(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(LoginNotSaved, match="Is a directory"):
        device_flow.check_writable(path)

    (path.parent / "file").write_text("")
    with pytest.raises(LoginNotSaved, match="Not a directory"):
        device_flow.check_writable(path.parent / "file" / "oauth_creds.json")


def test_the_check_changes_nothing(path: Path) -> None:
    device_flow.check_writable(path)
    assert os.listdir(path.parent) == []

    path.write_text("{}")
    before = path.stat()
    device_flow.check_writable(path)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("account", "name"),
    [
        (None, "oauth_creds.json"),
        ("work", "oauth_creds_work.json"),
        ("a-1", "oauth_creds_a-1.json"),
    ],
)
def test_file_names(account: str | None, name: str) -> None:
    assert device_flow.credentials_name(account) == name


@pytest.mark.parametrize("account", ["", "A", "a b", "../x", "a.b", "a_b", "x" * 33, "é", "a\n"])
def test_names_that_are_none(account: str) -> None:
    with pytest.raises(ValueError, match="1 to 32 characters"):
        device_flow.credentials_name(account)
