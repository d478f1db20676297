"""The wiring of the parts, and how token refreshes are finished at the end of a process."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_wsgi.services import build_services, drain_logins
from qwen_wsgi.upstream.http.transport import Transport
from tests.fakes.upstream import settings_of


class MovingClock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def now(self) -> float:
        return self.at_s

    def monotonic(self) -> float:
        return self.at_s


def login(name: str, clock: MovingClock, calls: list[Any], *, needs_s: float) -> Any:
    """A login whose running refresh takes some seconds more."""

    def drain(timeout_s: float) -> bool:
        calls.append((name, timeout_s))
        clock.at_s += min(needs_s, timeout_s)
        return timeout_s >= needs_s

    return SimpleNamespace(shown=name, refresher=SimpleNamespace(drain=drain))


def test_no_login_starts_a_refresh_while_another_one_finishes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = MovingClock()
    calls: list[tuple[str, float]] = []
    quick = login("quick", clock, calls, needs_s=4)
    slow = login("slow", clock, calls, needs_s=20)

    with caplog.at_level(logging.ERROR, "qwen_wsgi"):
        drain_logins((each for each in (quick, slow)), clock, timeout_s=10)

    assert calls == [("quick", 0), ("slow", 0), ("quick", 10.0), ("slow", 6.0)]
    assert [record.getMessage() for record in caplog.records] == [
        "stopped while refreshing the login slow"
    ]


def test_the_parts_share_the_transport_that_was_given() -> None:
    settings = settings_of()
    transport = Transport(settings)

    services = build_services(settings, transport=transport)
    services.close()

    assert services.transport is transport
