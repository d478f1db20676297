"""gunicorn's master as ours: settings at a reload, and which workers it starts and sends off."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from qwen_wsgi import env_file, master
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.master import Master
from qwen_wsgi.reporting import REFUSED


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An environment file, and a process that has not loaded its settings yet."""
    path = tmp_path / "a.env"
    path.write_text("LOG_LEVEL=WARNING\nPORT=1234\n")
    monkeypatch.setattr(master, "_Current", type("Fresh", (master._Current,), {}))
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("QWEN") or name in ("HOST", "PORT", "LOG_LEVEL"):
            del os.environ[name]
    os.environ |= {"QWEN_PROXY_ENV_FILE": str(path), "LOG_LEVEL": "ERROR"}
    yield path
    os.environ.clear()
    os.environ.update(before)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    caplog.set_level(logging.INFO)
    caplog.clear()
    server: Any = SimpleNamespace(log=logging.getLogger("test"))
    master.tell_reload(server)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


class TestSettings:
    def test_the_start_puts_the_file_into_the_process(self, file: Path) -> None:
        settings = master.load_settings()

        assert (settings.log_level, settings.port) == ("WARNING", 1234)
        assert (os.environ["LOG_LEVEL"], os.environ["PORT"]) == ("WARNING", "1234")

    def test_a_start_with_bad_settings_fails(self, file: Path) -> None:
        file.write_text("PORT=http\n")

        with pytest.raises(SettingsError, match="PORT='http'"):
            master.load_settings()
        assert "PORT" not in os.environ

    def test_a_reload_takes_what_is_new_and_gives_back_what_is_gone(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        master.load_settings()
        file.write_text("QWEN_PROXY_WORKERS=7\nPORT=1234\n")

        settings = master.load_settings()

        assert (settings.log_level, settings.workers) == ("ERROR", 7)
        assert os.environ["LOG_LEVEL"] == "ERROR"
        assert told(caplog) == [("INFO", "reload: changed LOG_LEVEL, QWEN_PROXY_WORKERS")]

    def test_an_address_waits_for_a_restart(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        master.load_settings()
        file.write_text("QWEN_PROXY_BIND=unix:/new\nLOG_LEVEL=WARNING\n")

        assert master.load_settings().bind_address == "127.0.0.1:1234"
        assert os.environ["PORT"] == "1234"
        assert "QWEN_PROXY_BIND" not in os.environ
        assert told(caplog) == [
            (
                "WARNING",
                "reload: QWEN_PROXY_BIND, PORT changed, which takes effect at the next restart",
            )
        ]
        # Still so at the next reload, and the restart finds what the file says.
        assert master.load_settings().bind_address == "127.0.0.1:1234"
        assert env_file.layered(dict(os.environ))["QWEN_PROXY_BIND"] == "unix:/new"

    def test_bad_settings_change_nothing_and_are_told_to_the_workers(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = master.load_settings()
        file.write_text("PORT=1234\nQWEN_PROXY_WORKERS=many\nLOG_LEVEL=INFO\n")

        assert master.load_settings() == first
        assert os.environ["LOG_LEVEL"] == "WARNING"
        ((level, line),) = told(caplog)
        assert level == "ERROR"
        assert line.startswith("reload: the settings stay as they were: bad setting: QWEN_PROXY_W")
        assert "QWEN_PROXY_WORKERS='many'" in os.environ[REFUSED]

        file.write_text("PORT=1234\n")
        master.load_settings()
        assert REFUSED not in os.environ

    def test_a_file_that_is_taken_away_changes_nothing(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = master.load_settings()
        file.unlink()

        assert master.load_settings() == first
        assert told(caplog)[0][1].endswith("is not there any more")

    def test_a_file_that_never_was_there_is_not_missed(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file.unlink()
        options = env_file.with_options(dict(os.environ), {"QWEN_PROXY_PORT": "9"})
        os.environ.update(options)
        assert master.load_settings().port == 9

        assert master.load_settings().port == 9
        assert told(caplog) == []

    def test_a_file_that_comes_is_taken(self, file: Path) -> None:
        file.unlink()
        assert master.load_settings().log_level == "ERROR"

        file.write_text("LOG_LEVEL=DEBUG\n")
        assert master.load_settings().log_level == "DEBUG"


class FakeWorker:
    """What the master knows of a worker."""

    def __init__(self, age: int) -> None:
        self.age = age
        self.pid = str(1000 + age)
        self.is_ready = self.is_old = self.is_sent_off = self.tells = self.refuses = False

    def refuse(self) -> None:
        self.refuses = True


class Harness(Master):
    """A master without processes."""

    def __init__(self, workers: int) -> None:  # not gunicorn's: that one wants an application
        self._num_workers: Any = workers
        vars(self).update(WORKERS={}, LISTENERS=[])  # gunicorn calls them class variables
        self.log = logging.getLogger("test")
        self.systemd = False
        self.reexec_pid = self.master_pid = 0
        self.sent: list[tuple[int, int]] = []
        self.loaded = 0
        self.app: Any = SimpleNamespace(reload=self._load)
        self.cfg: Any = SimpleNamespace(
            on_reload=lambda server: None, nworkers_changed=lambda server, new, old: None
        )

    def _load(self) -> None:
        self.loaded += 1

    def setup(self, app: Any) -> None:
        self.log.reopen_files = lambda: None

    def spawn_worker(self) -> int:
        age = len(self.WORKERS) + len(self.sent) + 1
        worker: Any = FakeWorker(age)
        worker.tells, self._has_reloaded = self._has_reloaded, False
        self.WORKERS[1000 + age] = worker
        return 1000 + age

    def kill_worker(self, pid: int, sig: int) -> None:
        self.sent.append((pid, sig))

    def end(self, *ages: int) -> None:
        for age in ages:
            del self.WORKERS[1000 + age]

    def ready(self, *ages: int) -> None:
        for worker in self.fakes:
            worker.is_ready |= worker.age in ages
        self.manage_workers()

    @property
    def fakes(self) -> list[Any]:
        """The workers that run."""
        return list(self.WORKERS.values())

    @property
    def gone(self) -> list[int]:
        """The ages of those that were sent off."""
        assert all(sig == signal.SIGTERM for _, sig in self.sent)
        return [pid - 1000 for pid, _ in self.sent]


@pytest.fixture
def running() -> Harness:
    """A master whose two workers serve."""
    found = Harness(2)
    found.manage_workers()
    found.ready(1, 2)
    assert found.gone == []
    return found


class TestWorkers:
    def test_old_ones_go_when_all_new_ones_serve(self, running: Harness) -> None:
        running.reload()
        assert (len(running.WORKERS), running.gone) == (4, [])
        assert [each.tells for each in running.fakes] == [False, False, True, False]

        running.ready(3)
        assert running.gone == []
        running.ready(4)
        assert running.gone == [1, 2]
        running.manage_workers()
        assert running.gone == [1, 2], "told once"

    def test_a_reload_within_a_reload_takes_the_place_of_new_ones(self, running: Harness) -> None:
        running.reload()
        running.reload()

        assert running.gone == [3, 4], "they have served nobody"
        running.end(3, 4)
        running.ready(*(worker.age for worker in running._current()))
        assert running.gone == [3, 4, 1, 2]

    def test_a_worker_that_dies_meanwhile_is_replaced(self, running: Harness) -> None:
        running.reload()
        running.ready(3)
        running.end(4)
        running.manage_workers()

        assert running.gone == []
        assert len(running._current()) == 2

    def test_one_too_many_goes(self, running: Harness) -> None:
        running.handle_ttin()
        running.ready(3)
        running.handle_ttou()

        assert running.gone == [1]

    def test_a_new_count_of_workers(self, running: Harness) -> None:
        running._num_workers = 1
        running.reload()
        running.ready(3)

        assert running.gone == [1, 2]

    def test_new_ones_that_cannot_start_leave_the_old_ones(
        self, running: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        running._num_workers = 3
        running.reload()

        def halt(arbiter: Arbiter) -> None:
            running.end(3)
            raise HaltServer("Worker failed to boot.", 3)

        monkeypatch.setattr(Arbiter, "reap_workers", halt)
        running.reap_workers()
        running.manage_workers()

        assert running.gone == [4, 5]
        assert [worker.age for worker in running._current()] == [1, 2]
        assert "the old ones go on" in caplog.text

    def test_workers_that_cannot_start_end_a_server_that_has_no_others(
        self, running: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def halt(arbiter: Arbiter) -> None:
            raise HaltServer("Worker failed to boot.", 3)

        monkeypatch.setattr(Arbiter, "reap_workers", halt)
        with pytest.raises(HaltServer):
            running.reap_workers()


class Listener:
    """A listening socket with a path."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self.is_closed = False

    def getsockname(self) -> str:
        return str(self.path)

    def close(self) -> None:
        self.is_closed = True


class TestStop:
    @pytest.mark.parametrize("systemd", [False, True], ids=["own socket", "systemd's"])
    def test_the_listener_is_open_until_the_workers_have_ended(
        self, running: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemd: bool
    ) -> None:
        listener = Listener(tmp_path / "http.sock")
        vars(running).update(LISTENERS=[listener], systemd=systemd)
        seen = []

        def stop(arbiter: Arbiter, graceful: bool) -> None:
            refuses = {worker.refuses for worker in running.fakes}
            seen.append((graceful, listener.is_closed, listener.path.exists(), refuses))

        monkeypatch.setattr(Arbiter, "stop", stop)
        running.stop()

        assert seen == [(True, False, True, {not systemd})]
        assert (listener.is_closed, listener.path.exists()) == (True, systemd)

    def test_a_quick_stop_is_gunicorns(
        self, running: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vars(running).update(LISTENERS=[Listener(tmp_path / "http.sock")])
        stopped: list[bool] = []
        monkeypatch.setattr(Arbiter, "stop", lambda self, graceful: stopped.append(graceful))

        running.stop(graceful=False)

        assert stopped == [False]
        assert not any(worker.refuses for worker in running.fakes)


def test_gunicorns_master_becomes_ours() -> None:
    arbiter = Arbiter.__new__(Arbiter)

    Master.take_over(arbiter)

    assert isinstance(arbiter, Master)
