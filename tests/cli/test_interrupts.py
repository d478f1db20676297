"""A Ctrl-C in the moment in which Python would drop it."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwen_wsgi.cli import interrupts, main, settings


class Thing:
    """Something with a finalizer."""


def press_ctrl_c_in_a_finalizer() -> None:
    thing = Thing()
    weakref.finalize(thing, signal.raise_signal, signal.SIGINT)
    del thing


class Stream(io.RawIOBase):
    """The finalizer of such streams drops exceptions without a word."""

    def close(self) -> None:
        if not self.closed:
            super().close()
            signal.raise_signal(signal.SIGINT)


def press_ctrl_c_in_the_finalizer_of_a_stream() -> None:
    Stream()


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """pytest-timeout has the alarm otherwise."""
    before = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGALRM, before[0])
    signal.setitimer(signal.ITIMER_REAL, *before[1])


def test_python_drops_an_interrupt_in_a_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))

    press_ctrl_c_in_a_finalizer()

    assert dropped == [KeyboardInterrupt]


@pytest.mark.parametrize(
    "press", [press_ctrl_c_in_a_finalizer, press_ctrl_c_in_the_finalizer_of_a_stream]
)
def test_a_dropped_interrupt_is_raised_again_and_ends_a_pause(
    press: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    hook = sys.unraisablehook
    began_s = time.monotonic()

    with pytest.raises(KeyboardInterrupt), interrupts.repeated():
        press()
        time.sleep(20)

    assert time.monotonic() - began_s < 10
    assert sys.unraisablehook is hook
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert capfd.readouterr().err == ""


def test_other_exceptions_of_finalizers_are_shown_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))

    with interrupts.repeated():
        thing = Thing()
        weakref.finalize(thing, int, "no number")
        del thing

    assert dropped == [ValueError]


def test_what_an_interrupt_has_left_half_made_says_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As an answer of http.client, whose finalizer asks for what its constructor had yet to set."""

    class HalfMade:
        def __init__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            self.made = True

        def __del__(self) -> None:
            assert self.made

    # Where the inner block ends, its frames are freed, and so is what is half made.
    with interrupts.repeated(), contextlib.suppress(KeyboardInterrupt):
        HalfMade()

    assert capfd.readouterr().err == ""


def test_every_command_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object, **__: object) -> int:
        press_ctrl_c_in_a_finalizer()
        time.sleep(20)
        return 0

    monkeypatch.setattr(settings, "show", wait)

    assert main.main(["settings"]) == 130
