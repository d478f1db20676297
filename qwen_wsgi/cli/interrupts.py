"""Raises KeyboardInterrupt again after a Ctrl-C that Python dropped.

An exception in a finalizer is dropped, also a KeyboardInterrupt. urllib3 and http.client close
their connections in finalizers: a login, which polls every few seconds, went on after a Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

#: After a Ctrl-C, until the command is interrupted once more if it still runs.
_PAUSE_S: Final = 0.5


@contextmanager
def repeated() -> Iterator[None]:
    """Within it, a Ctrl-C raises KeyboardInterrupt every _PAUSE_S until the block is left.

    For the main thread. From a Ctrl-C on it has SIGALRM.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, as in a shell's background job; or somebody handles it
        return
    show, came = sys.unraisablehook, False
    alarm = signal.getsignal(signal.SIGALRM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, _PAUSE_S)
        raise KeyboardInterrupt

    def hook(dropped: UnraisableHookArgs) -> None:
        # It may have come in a constructor: of what is half made no finalizer knows how to end it.
        if not came:
            show(dropped)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is interrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = show
