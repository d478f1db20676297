"""Calls that wait for the end of a pause, and are woken by news of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from qwen_wsgi.state.shared_files import SharedFiles, key_of
from qwen_wsgi.upstream.routing.cooldown import BREAKS_AT, Cooldowns
from qwen_wsgi.upstream.routing.waiting import LOOK_EVERY_S, Waiting

KEY = key_of("host")


def threads() -> int:
    return sum(each.name == "pause-news" for each in threading.enumerate())


def gone(within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    return threads() == 0


def test_everybody_is_woken_by_news_and_one_looks_for_all() -> None:
    news = [1.0]
    looks = []

    def look() -> float:
        looks.append(time.monotonic())
        return news[0]

    waiting = Waiting(look)
    woken: list[float] = []

    def wait() -> None:
        waiting.wait(20.0, 1.0)
        woken.append(time.monotonic())

    calls = [threading.Thread(target=wait) for _ in range(30)]
    for call in calls:
        call.start()
    time.sleep(4 * LOOK_EVERY_S)
    assert threads() == 1
    assert len(looks) < 30 + 40, "each of them once, and one of them now and then"
    told_at, news[0] = time.monotonic(), 2.0
    for call in calls:
        call.join(10)
    assert len(woken) == 30
    assert max(woken) - told_at < 2.0
    assert gone(), "nobody looks while nobody waits"


def test_news_from_before_the_wait_are_not_missed() -> None:
    begun = time.monotonic()
    Waiting(lambda: 2.0).wait(20.0, 1.0)
    assert time.monotonic() - begun < 5


def test_without_news_it_takes_its_time() -> None:
    begun = time.monotonic()
    Waiting(lambda: 1.0).wait(0.2, 1.0)
    assert time.monotonic() - begun >= 0.19
    assert gone()


def test_a_wait_that_is_broken_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(lambda: 1.0)

    real, mine = threading.Event.wait, threading.get_ident()

    def leave(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.get_ident() != mine:  # of another test, which is not over
            return real(self, timeout)
        raise GeneratorExit

    monkeypatch.setattr(threading.Event, "wait", leave)
    with pytest.raises(GeneratorExit):
        waiting.wait(20.0, 1.0)
    monkeypatch.undo()
    assert gone()


def test_news_come_from_another_worker(tmp_path: Path) -> None:
    mine, others = (
        Cooldowns(SharedFiles(tmp_path / "state")),
        Cooldowns(SharedFiles(tmp_path / "state")),
    )
    for _ in range(BREAKS_AT):
        mine.record_failure(KEY, "timeout")
    seen = mine.news
    threading.Timer(0.1, lambda: others.clear(KEY)).start()
    begun = time.monotonic()
    Waiting(lambda: mine.news).wait(20.0, seen)
    assert time.monotonic() - begun < 5
    assert mine.remaining_s(KEY) == 0
