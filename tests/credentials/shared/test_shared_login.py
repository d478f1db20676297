"""One login on several boxes: against the sandbox's login service, with a fake Redis."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import settings
from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.credentials.files.durable import WriteProblem
from qwen_wsgi.credentials.files.login_store import LoginPaths
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.attempt import Outcome
from qwen_wsgi.credentials.shared import shared_login
from qwen_wsgi.credentials.shared.custody import LEASE_S
from qwen_wsgi.credentials.shared.shared_login import SharedLogin
from qwen_wsgi.credentials.shared.sharing import Sharing
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import CredentialError
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.board import FakeBoard, FakeRedis
from tests.fakes.clock import FakeClock
from tests.kit.login_world import settle

LIFE_S = 6 * 3600.0


class Box:
    """One box with a state directory of its own, and one process on it."""

    def __init__(self, world: World, id: str, **environ: str) -> None:
        self.directory = world.directory / id
        self.home = self.directory / "home"
        (self.home / ".qwen").mkdir(parents=True)
        self.file = self.home / ".qwen/oauth_creds.json"
        self.board = FakeBoard(world.redis, id)
        self._world = world
        self._environ = environ
        self.start()

    def start(self) -> None:
        world = self._world
        environ = {
            "HOME": str(self.home),
            "QWEN_OAUTH_BASE_URL": world.sandbox.origin,
            "QWEN_CODE_SYSTEM_SETTINGS_PATH": str(self.directory / "none.json"),
            "QWEN_PROXY_STATE_DIR": str(self.directory / "state"),
            **self._environ,
        }
        sharing = Sharing(self.board, self.directory / "state/logins", world.clock, world.sleep)
        self.discovery = Discovery(settings.load(environ), world.clock, sharing=sharing)

    def log_in(self, left_s: float = LIFE_S) -> dict[str, Any]:
        content = self._world.document(left_s)
        self.file.write_text(json.dumps(content))
        return content

    @property
    def login(self) -> OAuthLogin:
        (login,) = self.discovery.logins()
        return login

    @property
    def shared(self) -> SharedLogin:
        shared = self.login.refresher.context.shared
        assert shared is not None
        return shared

    @property
    def token(self) -> str:
        return self.login.current().value

    def look(self) -> None:
        self.discovery.maintain()
        for login in self.discovery.logins():
            settle(login)


class World:
    def __init__(self, directory: Path, clock: FakeClock, sandbox: Sandbox) -> None:
        self.directory, self.clock, self.sandbox = directory, clock, sandbox
        self.redis = FakeRedis()
        self.boxes: list[Box] = []
        #: Looks of the other boxes, while one of them sleeps.
        self.meanwhile: list[Box] = []

    def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for box in self.meanwhile:
            box.look()

    def box(self, **environ: str) -> Box:
        box = Box(self, f"b{len(self.boxes)}", **environ)
        self.boxes.append(box)
        return box

    def look(self, seconds: float = 5.0) -> None:
        """All boxes look, every five seconds."""
        for _ in range(max(1, int(seconds / 5))):
            for box in self.boxes:
                box.look()
            self.clock.advance(5)

    def document(self, left_s: float) -> dict[str, Any]:
        answer = self.sandbox.issue()
        return {
            "access_token": answer["access_token"],
            "token_type": "Bearer",
            "refresh_token": answer["refresh_token"],
            "resource_url": self.sandbox.origin,
            "expiry_date": int((self.clock.now() + left_s) * 1000),
        }

    @property
    def sent(self) -> list[int]:
        """The statuses of all requests to the token endpoint."""
        return [each.status for each in self.sandbox.requests if each.route == "token"]

    def cut(self, text: str = "Redis is away") -> None:
        for box in self.boxes:
            box.board.away = text


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    caplog.set_level(logging.INFO, "qwen_wsgi.credentials")
    with Sandbox() as sandbox:
        yield World(tmp_path, clock, sandbox)
        state = sandbox.state()
    assert state["internal_errors"] == 0, state["last_failure"]
    assert "sandbox-at-" not in caplog.text
    assert "sandbox-rt-" not in caplog.text


def content(box: Box) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.file.read_text())
    return found


def test_a_box_without_a_file_uses_the_login_of_another_one(world: World) -> None:
    one, other = world.box(), world.box()
    token = one.log_in()["access_token"]

    world.look()

    assert other.token == token
    assert [each.name for each in other.discovery.accounts()] == ["oauth"]
    assert not other.file.exists()


def test_only_the_box_with_the_file_renews_and_both_have_the_new_token(world: World) -> None:
    one, other = world.box(), world.box()
    one.log_in()
    world.look(30)

    world.clock.advance(LIFE_S - 600)
    world.look(20)

    assert world.sent == [200]
    assert one.token == other.token == content(one)["access_token"]
    assert one.shared.custody().keeps
    assert not other.shared.custody().mine
    assert other.shared.describe() == "box b0 renews it"


def test_a_login_made_on_any_box_reaches_all_and_their_files(world: World) -> None:
    one, other = world.box(), world.box()
    one.log_in()
    world.look(20)
    other.log_in()  # a person logs in there with qwen-code
    world.look(20)

    assert one.token == other.token == content(one)["access_token"]
    assert content(one)["access_token"] == content(other)["access_token"]


def test_a_token_that_the_api_refuses_on_one_box_is_renewed_by_the_other(world: World) -> None:
    one, other = world.box(), world.box()
    old = one.log_in()["access_token"]
    world.look(20)
    world.meanwhile = [one]

    new = other.login.current(rejected=old).value

    assert new != old
    assert one.token == new
    assert world.sent == [200]


def test_a_box_without_the_right_does_not_renew_and_says_why(world: World) -> None:
    one, other = world.box(), world.box()
    one.log_in()
    world.look(20)
    world.clock.advance(LIFE_S + 1)

    with pytest.raises(CredentialError, match="box b0 renews it") as caught:
        other.login.current()

    assert caught.value.code == "credentials_expired"
    assert world.sent == []


class TestRedisIsAway:
    def test_the_box_with_the_file_renews_and_the_other_waits(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        world.cut("Redis has been away since 12:00")
        world.clock.advance(LIFE_S + 1)

        world.look(10)

        assert world.sent == [200]
        assert one.login.status().state is TokenState.FRESH
        with pytest.raises(CredentialError, match="Redis has been away since 12:00"):
            other.login.current()
        assert world.sent == [200]

        world.cut("")
        world.look(20)
        assert other.token == one.token

    def test_a_call_goes_on_with_the_token_that_is_known(self, world: World) -> None:
        one, other = world.box(), world.box()
        token = one.log_in()["access_token"]
        world.look(20)
        world.cut()

        other.start()  # also after a restart

        assert other.token == token

    def test_a_lease_is_not_used(self, world: World) -> None:
        auth = json.dumps(world.document(LIFE_S))
        one, other = world.box(QWEN_CLI_AUTH=auth), world.box(QWEN_CLI_AUTH=auth)
        world.look(30)
        world.cut()
        world.clock.advance(LIFE_S - 600)
        world.look(120)

        assert world.sent == []
        for box in (one, other):
            assert box.login.refresher.attempt().outcome is Outcome.LEFT

    def test_a_login_made_meanwhile_counts_when_it_is_back(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        world.cut()
        new = one.log_in()["access_token"]
        world.look(10)
        world.cut("")
        world.look(20)

        assert one.token == other.token == new


def test_a_flushed_redis_is_filled_again(world: World) -> None:
    one, other = world.box(), world.box()
    one.log_in()
    world.look(20)
    world.redis.flush()
    world.clock.advance(LIFE_S - 600)

    world.look(30)

    assert world.sent == [200]
    assert one.token == other.token


def test_the_same_login_in_two_environments_is_renewed_once(world: World) -> None:
    auth = json.dumps(world.document(600.0))
    one, other = world.box(QWEN_CLI_AUTH=auth), world.box(QWEN_CLI_AUTH=auth)

    world.look(60)

    assert world.sent == [200]
    assert one.token == other.token


class TestARightThatChangesHands:
    def test_after_an_orderly_stop_another_box_renews_at_once(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        one.shared.release()
        world.boxes.remove(one)
        world.clock.advance(LIFE_S - 600)

        world.look(30)

        assert world.sent == [200]
        assert other.shared.custody().mine
        assert other.login.status().state is TokenState.FRESH

    def test_another_worker_of_the_box_takes_it_back(self, world: World) -> None:
        one, _ = world.box(), world.box()
        one.log_in()
        world.look(20)
        fence = one.shared.custody().fence

        one.shared.release()
        assert not one.shared.custody().mine
        world.look(20)

        assert one.shared.custody().mine
        assert one.shared.custody().fence > fence

    def test_a_lease_goes_to_another_box_when_its_box_is_silent(self, world: World) -> None:
        auth = json.dumps(world.document(LIFE_S))
        one, other = world.box(QWEN_CLI_AUTH=auth), world.box(QWEN_CLI_AUTH=auth)
        world.look(30)
        first, second = (one, other) if one.shared.custody().mine else (other, one)
        world.boxes.remove(first)
        world.look(LEASE_S - 10)
        assert not second.shared.custody().mine

        world.look(20)
        assert second.shared.custody().mine

        world.clock.advance(LIFE_S - 600)
        world.look(20)
        # The first one comes back, from a stop of hours, in the middle of what it did.
        first.login.refresher.attempt()
        assert world.sent == [200]
        assert first.token == second.token
        first.look()
        assert not first.shared.custody().mine

    def test_it_goes_to_the_box_with_the_file(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        one.shared.release()
        world.boxes.remove(one)
        world.look(20)
        assert other.shared.custody().mine
        assert not other.shared.custody().keeps

        world.boxes.append(one)
        world.look(20)

        assert one.shared.custody().keeps
        assert not other.shared.custody().mine

    def test_nobody_takes_it_from_the_box_with_the_file_but_a_person(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        world.boxes.remove(one)
        world.clock.advance(LIFE_S - 600)
        world.look(600)
        assert world.sent == []

        assert other.shared.take_over()
        world.look(20)

        assert world.sent == [200]
        one.look()
        assert not one.shared.custody().mine
        assert one.token == other.token

    def test_a_box_that_stops_between_the_lock_and_the_request_sends_nothing(
        self, world: World
    ) -> None:
        auth = json.dumps(world.document(LIFE_S))
        one, other = world.box(QWEN_CLI_AUTH=auth), world.box(QWEN_CLI_AUTH=auth)
        world.look(30)
        first, second = (one, other) if one.shared.custody().mine else (other, one)

        def stopped(name: str) -> None:
            if name == "reserved":
                world.boxes.remove(first)
                world.look(LEASE_S + 30)
                second.login.refresher.attempt(rejected=second.token)

        object.__setattr__(first.login.refresher.context, "checkpoint", stopped)
        attempt = first.login.refresher.attempt(rejected=first.token)

        assert attempt.outcome is Outcome.NOT_SENT
        assert "another box has the right" in attempt.detail
        assert world.sent == [200]  # the other box's
        assert second.login.status().state is TokenState.FRESH

    def test_a_token_that_a_dead_box_may_have_spent_is_sent_by_nobody_else(
        self, world: World
    ) -> None:
        auth = json.dumps(world.document(LIFE_S))
        one, other = world.box(QWEN_CLI_AUTH=auth), world.box(QWEN_CLI_AUTH=auth)
        world.look(30)
        first, second = (one, other) if one.shared.custody().mine else (other, one)

        class Killed(BaseException):
            pass

        def killed(name: str) -> None:
            if name == "intent":
                raise Killed

        object.__setattr__(first.login.refresher.context, "checkpoint", killed)
        with pytest.raises(Killed):
            first.login.refresher.attempt(rejected=first.token)
        world.boxes.remove(first)
        world.clock.advance(LIFE_S - 600)
        world.look(2 * LEASE_S)

        assert world.sent == []
        assert "was renewing it when it disappeared" in second.shared.describe()

        first.start()
        world.boxes.append(first)
        world.look(60)
        assert world.sent == [200]
        assert one.token == other.token


class TestLogout:
    def test_it_reaches_all_boxes_and_the_login_does_not_come_back(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        one.file.unlink()

        assert one.login.refresher.forget()
        world.look(20)

        assert one.discovery.accounts() == ()
        assert other.discovery.accounts() == ()
        world.clock.advance(LIFE_S)
        world.look(20)
        assert world.sent == []

    def test_it_is_told_when_redis_is_back(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        world.cut()
        one.file.unlink()
        assert one.login.refresher.forget()
        world.look(5)
        assert other.token

        world.cut("")
        world.look(20)

        assert one.discovery.accounts() == ()
        assert other.discovery.accounts() == ()

    def test_a_later_login_counts(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        one.file.unlink()
        assert one.login.refresher.forget()
        world.look(10)

        token = other.log_in()["access_token"]
        world.look(20)

        assert one.token == other.token == token

    def test_a_file_that_only_disappears_is_no_logout(self, world: World) -> None:
        """A qwen-code deletes it when its own renewal is refused."""
        one, other = world.box(), world.box()
        token = one.log_in()["access_token"]
        world.look(20)
        one.file.unlink()
        world.look(20)

        assert one.token == other.token == token


def test_a_refused_refresh_token_is_refused_on_all_boxes(world: World) -> None:
    one, other = world.box(), world.box()
    one.log_in(600.0)
    world.sandbox.control(faults={"token": "token-error=invalid_grant"})
    world.look(60)

    for box in (one, other):
        assert box.login.status().ability is not None
        assert "rejected" in box.login.status().detail
    assert world.sent == [400]


def test_a_record_of_another_key_is_neither_read_nor_replaced(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = world.box(), world.box()
    one.log_in()
    world.look(20)
    before = world.redis.entries["oauth"].content
    other.board.problem = "the login in Redis was sealed with another QWEN_PROXY_STATE_KEY"
    other.log_in()

    world.look(20)

    assert world.redis.entries["oauth"].content == before
    assert "sealed with another" in other.shared.describe()
    assert caplog.text.count("sealed with another QWEN_PROXY_STATE_KEY") == 1


def test_the_copies_are_private(world: World) -> None:
    one, other = world.box(), world.box()
    one.log_in()
    world.look(20)

    paths = LoginPaths.beside(other.directory / "state/logins/oauth_creds.json")
    assert paths.journal.stat().st_mode & 0o077 == 0


class TestWhatGoesWrong:
    def test_a_record_of_another_version_is_told_and_stays(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        entry = world.redis.entries["oauth"]
        entry.version, entry.content = 10_000, b'{"format": 2}'

        world.look(20)

        assert "another format" in other.shared.describe()
        assert other.login.status().sharing == "not_in_step"
        assert entry.content == b'{"format": 2}'
        assert one.token == other.token

    def test_a_box_that_cannot_write_lets_another_one_renew(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        full = WriteProblem(28, "No space left on device")
        monkeypatch.setattr(one.login.store, "write_problem", lambda: full)

        world.look(30)

        assert not one.shared.custody().mine
        assert other.shared.custody().mine

    def test_a_login_that_cannot_be_written_is_used_from_memory(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)

        def full(journal: object) -> None:
            raise OSError(28, "No space left on device")

        store = other.login.store
        monkeypatch.setattr(store, "write_journal", full)
        token = one.log_in()["access_token"]
        world.look(20)
        assert other.token == token
        assert "No space left" in other.shared.problem

        monkeypatch.undo()
        world.look(20)
        assert other.token == token
        assert store.held is None

    def test_a_lock_that_is_held_is_waited_for_by_the_next_look(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_login, "_LOCK_S", 0.0)
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        lock = ProxyLock(other.login.store.paths.proxy_lock)
        assert lock.acquire(0.0)
        token = one.log_in()["access_token"]
        world.look(10)
        assert other.token != token
        lock.release()

        world.look(10)
        assert other.token == token

    def test_redis_goes_away_before_a_lease_is_used(self, world: World) -> None:
        auth = json.dumps(world.document(LIFE_S))
        box = world.box(QWEN_CLI_AUTH=auth)
        world.look(30)

        at(box, "reserved", world.cut)
        attempt = box.login.refresher.attempt(rejected=box.token)

        assert attempt.outcome is Outcome.NOT_SENT
        assert "Redis went away" in attempt.detail
        assert world.sent == []

    def test_redis_goes_away_between_the_answer_and_the_others(self, world: World) -> None:
        one, other = world.box(), world.box()
        one.log_in()
        world.look(20)
        at(one, "journaled", world.cut)

        attempt = one.login.refresher.attempt(rejected=one.token)
        assert attempt.outcome is Outcome.OK
        assert one.token != other.token

        world.cut("")
        world.look(20)
        assert one.token == other.token
        assert world.sent == [200]

    def test_a_token_that_was_not_spent_is_free_for_others(self, world: World) -> None:
        auth = json.dumps(world.document(LIFE_S))
        box = world.box(QWEN_CLI_AUTH=auth)
        world.look(30)
        world.sandbox.control(faults={"token": "throttle, retry-after=1"})

        attempt = box.login.refresher.attempt(rejected=box.token)

        assert attempt.outcome is Outcome.THROTTLED
        (entry,) = world.redis.entries.values()
        assert entry.spending == ""

    def test_another_process_decides_about_the_right(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_login, "_LOCK_S", 0.0)
        one = world.box()
        one.log_in()
        world.look(20)
        lock = ProxyLock(one.directory / "state/logins/custody_oauth.lock")
        assert lock.acquire(0.0)

        attempt = one.login.refresher.attempt(rejected=one.token)
        assert attempt.outcome is Outcome.LEFT
        assert not one.shared.take_over()
        one.shared.release()
        lock.release()

        assert one.shared.custody().mine
        assert world.sent == []

    def test_a_box_with_an_open_attempt_keeps_the_right(self, world: World) -> None:
        """Its process was killed while it waited for the answer."""
        one, _ = world.box(), world.box()
        one.log_in()
        world.look(20)

        class Killed(BaseException):
            pass

        def killed() -> None:
            raise Killed

        at(one, "intent", killed)
        with pytest.raises(Killed):
            one.login.refresher.attempt(rejected=one.token)
        one.start()
        one.shared.release()

        assert one.shared.custody().mine


def at(box: Box, name: str, work: Callable[[], object]) -> None:
    """Have something happen between two steps of the box's next attempts."""
    context = box.login.refresher.context
    object.__setattr__(context, "checkpoint", lambda each: work() if each == name else None)
