"""A login that is begun on a page: what is shown of it, and every way in which it ends."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import settings
from qwen_wsgi.console.login_words import words_of
from qwen_wsgi.credentials.phone_login import (
    DONE,
    FILE,
    LOST,
    LOST_S,
    STOPPED,
    WAITING,
    PhoneLogin,
    Progress,
)
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.clock import FakeClock, FastClock, fast_sleep


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


class World:
    """A box with a login service; each `login` stands for a worker of its own."""

    def __init__(self, origin: str, directory: Path) -> None:
        self.home = directory / "person"
        self.home.mkdir()
        self.state_dir = directory / "state"
        self.settings = settings.load({"HOME": str(self.home), "QWEN_OAUTH_BASE_URL": origin})
        self.threads: list[threading.Thread] = []
        self.login = self.worker()

    def worker(self, **more: Any) -> PhoneLogin:
        more = {"clock": FastClock(), "sleep": fast_sleep, **more}
        return PhoneLogin(self.settings, self.state_dir, begin=self._begin, **more)

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self.threads.append(thread)
        thread.start()

    def until(self, wanted: Callable[[Progress], bool]) -> Progress:
        end_s = time.monotonic() + 10
        while time.monotonic() < end_s:
            found = self.worker().seen()
            if found is not None and wanted(found):
                return found
            time.sleep(0.01)
        raise AssertionError(self.login.seen())

    def ended(self) -> Progress:
        found = self.until(lambda progress: not progress.runs)
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()
        return found


@pytest.fixture
def world(sandbox: Sandbox, tmp_path: Path) -> World:
    return World(sandbox.origin, tmp_path)


def test_another_worker_shows_the_code_and_the_end(world: World, sandbox: Sandbox) -> None:
    assert world.login.seen() is None
    sandbox.control(approve_after_polls=2)
    started = world.login.start("work")
    shown = world.until(lambda progress: progress.state == WAITING)
    assert shown.id == started.id
    assert shown.user_code in shown.url
    assert shown.expires_at > time.time()

    ended = world.ended()

    assert (ended.state, ended.account) == (DONE, "work")
    saved = json.loads(Path(ended.file).read_text())
    file = world.state_dir / FILE
    assert saved["access_token"] not in file.read_text()
    assert saved["refresh_token"] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Path(ended.file).name == "oauth_creds_work.json"


def test_a_login_is_stopped_from_another_worker(world: World, sandbox: Sandbox) -> None:
    world.login.start(None)
    world.until(lambda progress: progress.state == WAITING)
    world.worker().stop()
    assert world.ended().state == STOPPED
    assert [path.name for path in world.state_dir.iterdir()] == [FILE]


def test_a_new_login_takes_the_place_of_the_old_one(world: World, sandbox: Sandbox) -> None:
    world.login.start(None)
    world.until(lambda progress: progress.state == WAITING)
    second = world.worker().start("other")
    world.threads[0].join(5)
    assert not world.threads[0].is_alive()
    found = world.until(lambda progress: progress.state == WAITING)
    assert (found.id, found.account) == (second.id, "other")
    world.login.stop()
    assert world.ended().state == STOPPED


def test_a_login_whose_worker_died_is_lost(world: World, sandbox: Sandbox) -> None:
    clock = FakeClock()
    login = PhoneLogin(
        world.settings, world.state_dir, clock, begin=lambda work: None, sleep=clock.advance
    )
    login.start(None)
    assert login.seen().runs  # type: ignore[union-attr]  # it was started
    clock.advance(LOST_S + 1)
    found = login.seen()
    assert found is not None
    assert found.state == LOST


@pytest.mark.parametrize(
    ("control", "later", "event"),
    [
        ({}, {"deny": "*"}, "denied"),
        ({"device_ttl_s": 3}, {}, "expired"),
        ({"faults": {"device": "html-502"}}, {}, "server_error"),
        ({"faults": {"device": "html-200"}}, {}, "blocked"),
    ],
)
def test_every_end_has_its_own_words(
    world: World, sandbox: Sandbox, control: dict[str, Any], later: dict[str, Any], event: str
) -> None:
    sandbox.control(control)
    world.login.start(None)
    world.until(lambda progress: progress.state == WAITING or not progress.runs)
    sandbox.control(later)
    ended = world.ended()
    assert ended.state == event
    assert ended.message
    assert "command" not in ended.remedy
    assert words_of(event).title not in (words_of("else").title, words_of(DONE).title)


def test_a_service_that_cannot_be_reached(tmp_path: Path) -> None:
    world = World("http://127.0.0.1:1", tmp_path)
    world.login.start(None)
    assert world.ended().state == "offline"


def test_a_file_that_cannot_be_written(world: World, sandbox: Sandbox) -> None:
    (world.home / ".qwen").mkdir(exist_ok=True)
    (world.home / ".qwen/oauth_creds.json").mkdir()
    world.login.start(None)
    assert world.ended().state == "not_saved"


def test_a_name_that_cannot_be_used_is_refused_at_once(world: World) -> None:
    with pytest.raises(SettingsError, match="cannot be used"):
        world.login.start("../../x")
    assert world.login.seen() is None


@pytest.mark.parametrize("content", ["", "[]", '{"id": 1}', '{"state": "done"}', "\xff"])
def test_any_file_can_be_there(world: World, content: str) -> None:
    world.state_dir.mkdir()
    (world.state_dir / FILE).write_text(content, encoding="latin-1")
    world.login.seen()
    world.login.stop()
