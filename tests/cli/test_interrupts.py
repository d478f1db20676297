"""A Ctrl-C in the moment in which Python would drop it."""

from __future__ import annotations

import signal
import sys
import time
import weakref
from typing import Any

import pytest

from qwen_wsgi.cli import interrupts, main


class Thing:
    """Something with a finalizer."""


def press_ctrl_c_in_a_finalizer() -> None:
    thing = Thing()
    weakref.finalize(thing, signal.raise_signal, signal.SIGINT)
    del thing


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_python_drops_an_interrupt_in_a_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))

    press_ctrl_c_in_a_finalizer()

    assert dropped == [KeyboardInterrupt]


def test_a_dropped_interrupt_is_sent_again_and_ends_a_pause(
    capfd: pytest.CaptureFixture[str],
) -> None:
    hook = sys.unraisablehook
    began_s = time.monotonic()

    with pytest.raises(KeyboardInterrupt), interrupts.sent_again():
        press_ctrl_c_in_a_finalizer()
        time.sleep(20)

    assert time.monotonic() - began_s < 10
    assert sys.unraisablehook is hook
    assert capfd.readouterr().err == ""


def test_other_exceptions_of_finalizers_are_shown_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))

    with interrupts.sent_again():
        thing = Thing()
        weakref.finalize(thing, int, "no number")
        del thing

    assert dropped == [ValueError]


def test_every_command_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object) -> int:
        press_ctrl_c_in_a_finalizer()
        time.sleep(20)
        return 0

    monkeypatch.setattr(main, "show_settings", wait)

    assert main.main(["settings"]) == 130
