"""The runner as a child: when it is started, and started anew."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from qwen_wsgi import settings
from qwen_wsgi.tool_runner import sources
from qwen_wsgi.tool_runner.child import RunnerChild, _how, is_wanted


class Starts:
    """Starts programs that end at once, by a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.times: list[float] = []
        self.fails = False

    def __call__(self, environ: Mapping[str, str]) -> int:
        self.times.append(self.now_s - 100.0)
        if self.fails:
            raise OSError("no memory")
        return os.posix_spawn(sys.executable, [sys.executable, "-c", "exit(1)"], {})


@pytest.fixture
def starts() -> Starts:
    return Starts()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def child(starts: Starts, told: list[str]) -> RunnerChild:
    return RunnerChild(
        lambda text, is_error: told.append(text), start=starts, monotonic=lambda: starts.now_s
    )


def wanted(**more: str) -> settings.Settings:
    return settings.load({"QWEN_PROXY_TOOLS": "/tools.json", **more})


def pass_time(child: RunnerChild, starts: Starts, seconds: float) -> None:
    for _ in range(int(seconds)):
        child.keep(wanted())
        if child._pid:
            os.waitid(os.P_PID, child._pid, os.WEXITED | os.WNOWAIT)
        starts.now_s += 1.0


def test_one_that_always_ends_is_started_more_and_more_rarely(
    child: RunnerChild, starts: Starts, told: list[str]
) -> None:
    pass_time(child, starts, 40)
    child.reap()

    assert starts.times[:2] == [0.0, 2.0]
    pauses = [after - before for before, after in zip(starts.times, starts.times[1:], strict=False)]
    assert pauses == sorted(pauses)
    assert len(starts.times) < 8
    assert "the process that runs tools has ended (status 1)" in told[0]


def test_one_that_cannot_be_started_is_tried_again(
    child: RunnerChild, starts: Starts, told: list[str]
) -> None:
    starts.fails = True
    pass_time(child, starts, 10)

    assert starts.times == [0.0, 1.0, 3.0, 7.0]
    assert told[0] == "the process that runs tools cannot be started: no memory"


def test_it_is_wanted_where_there_are_tools_and_no_other_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SERVICE_SOCKET", str(tmp_path / "none"))

    assert is_wanted(wanted())
    assert not is_wanted(settings.load({}))
    assert not is_wanted(wanted(QWEN_PROXY_TOOLS_SOCKET="/run/x.sock"))
    monkeypatch.setattr(sources, "is_service", lambda: True)
    assert not is_wanted(wanted())


def test_where_workers_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SERVICE_SOCKET", str(tmp_path / "none"))
    own = wanted(QWEN_PROXY_STATE_DIR="/state")

    assert sources.socket_of(own) == "/state/tools.sock"
    assert sources.socket_of(wanted(QWEN_PROXY_TOOLS_SOCKET="/run/x.sock")) == "/run/x.sock"
    monkeypatch.setattr(sources, "is_service", lambda: True)
    assert sources.socket_of(own) == str(tmp_path / "none")


@pytest.mark.parametrize(
    ("status", "told"),
    [(3 << 8, "status 3"), (9, "signal SIGKILL"), (signal.SIGRTMIN + 1, "signal 35")],
)
def test_how_it_has_ended_is_told_whatever_the_signal(status: int, told: str) -> None:
    assert _how(status) == told
